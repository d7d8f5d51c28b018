-- The refusals every caller may meet, and the gate that stops all money at once.

CREATE TABLE refusals (
    code text PRIMARY KEY,
    status int NOT NULL CHECK (status BETWEEN 400 AND 599),
    title text NOT NULL,
    stored boolean NOT NULL
);

COMMENT ON TABLE refusals IS 'What a refusal means; stored: it is the lasting answer of its idempotency key.';

INSERT INTO refusals (code, status, title, stored)
VALUES
('malformed', 400, 'Malformed request', false),
('forbidden', 403, 'Forbidden', false),
('not_found', 404, 'Not found', false),
('market_not_found', 404, 'Market not found', false),
('user_not_found', 404, 'User not found', false),
('user_exists', 409, 'User exists', false),
('idempotency_key_reused', 422, 'Idempotency key reused', false),
('insufficient_funds', 422, 'Insufficient funds', true),
('insufficient_shares', 422, 'Insufficient shares', true),
('limit_exceeded', 422, 'Limit exceeded', true),
('market_closed', 422, 'Market closed', true),
('trade_too_small', 422, 'Trade too small', true),
('trade_too_large', 422, 'Trade too large', true),
('trading_paused', 503, 'Trading paused', false);

-- The body of a refusal: problem+json of RFC 9457, compact.
CREATE FUNCTION problem(p_code text, p_detail text, p_field text DEFAULT null) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT json_strip_nulls(row_to_json(body))::text AS problem
    FROM (
        SELECT
            'about:blank' AS "type",
            r.title,
            r.status,
            r.code,
            p_detail AS detail,
            p_field AS field
        FROM refusals AS r
        WHERE r.code = p_code
    ) AS body;
END;

CREATE TABLE platform_state (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    paused boolean NOT NULL,
    reason text,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO platform_state (paused) VALUES (false);

-- The number of the gate's advisory lock.
CREATE FUNCTION pause_gate() RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN 5301;

-- Whether money may move; true stays true until the calling transaction ends.
-- Why not a share lock on the row: every one of n concurrent trades would write a multixact of n members.
-- The lock comes first: in READ COMMITTED the next statement then sees what the last pause committed.
CREATE FUNCTION pass_pause_gate() RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(pause_gate());
    RETURN (SELECT NOT paused FROM platform_state);
END
$$;

-- Whoever changes the row, by function or by hand, waits for the money in motion and holds up the rest.
CREATE FUNCTION close_pause_gate() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(pause_gate());
    RETURN null;
END
$$;

CREATE TRIGGER state_changes_alone BEFORE INSERT OR UPDATE OR DELETE ON platform_state
FOR EACH STATEMENT EXECUTE FUNCTION close_pause_gate();

ALTER TABLE platform_state ENABLE ALWAYS TRIGGER state_changes_alone;

-- Stop all money; returns when nothing is in motion any more.
CREATE FUNCTION pause_trading(p_reason text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    UPDATE platform_state SET paused = true, reason = p_reason, changed_at = clock_timestamp();
END;

-- Let money move again.
CREATE FUNCTION resume_trading() RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    UPDATE platform_state SET paused = false, reason = null, changed_at = clock_timestamp();
END;
