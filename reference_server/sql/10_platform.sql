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
    sells_while_paused boolean NOT NULL DEFAULT false,
    reads_while_paused boolean NOT NULL DEFAULT true,
    reason text,
    changed_by text,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN platform_state.sells_while_paused IS 'Whether users may get out: sell what they hold.';
COMMENT ON COLUMN platform_state.reads_while_paused IS 'Whether markets and accounts are shown.';
COMMENT ON COLUMN platform_state.changed_by IS 'The administrator who resumed; null: nobody in particular.';

INSERT INTO platform_state (paused) VALUES (false);

-- The number of the gate's advisory lock.
CREATE FUNCTION pause_gate() RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN 5301;

-- Whether money may move; the answer holds until the calling transaction ends. Without a row: it may not.
-- Why not a share lock on the row: every one of n concurrent trades would write a multixact of n members.
-- The lock comes first: in READ COMMITTED the next statement then sees what the last pause committed.
CREATE FUNCTION pass_pause_gate() RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(pause_gate());
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- a snapshot from before a pause would still show the gate open: a row changed since then raises 40001
        PERFORM FROM platform_state FOR SHARE;
    END IF;
    RETURN coalesce((SELECT NOT paused FROM platform_state), false);
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

-- The time of a change is when it had the gate to itself: all money that moved before is committed by then,
-- and what moves after it is later.
CREATE FUNCTION date_change() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    new.changed_at := clock_timestamp();
    RETURN new;
END
$$;

CREATE TRIGGER changes_are_dated BEFORE INSERT OR UPDATE ON platform_state
FOR EACH ROW EXECUTE FUNCTION date_change();

ALTER TABLE platform_state ENABLE ALWAYS TRIGGER state_changes_alone;
ALTER TABLE platform_state ENABLE ALWAYS TRIGGER changes_are_dated;

-- Whether sells pass a gate that is closed; for callers who were turned back by pass_pause_gate.
CREATE FUNCTION pass_exit_gate() RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(bool_and(sells_while_paused), false) AS passes FROM platform_state;
END;

-- Always true; raises ST004 while the platform is paused and shows nothing.
CREATE FUNCTION pass_read_gate() RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF (SELECT paused AND NOT reads_while_paused FROM platform_state) THEN
        RAISE EXCEPTION 'the platform is paused and shows nothing' USING ERRCODE = 'ST004';
    END IF;
    RETURN true;
END
$$;

-- Stop all money; returns when nothing is in motion any more. Letting it move again: 96_reconciliation.sql.
CREATE FUNCTION pause_trading(p_reason text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    UPDATE platform_state
    SET paused = true, reason = p_reason, changed_by = null;
END;
