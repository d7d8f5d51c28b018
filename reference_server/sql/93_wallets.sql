-- Wallets: which address belongs to which user, proven by a message that the wallet signed (EIP-4361).
--
-- The server checks message and signature; here the nonce is used up and the address becomes the user's, both
-- or neither. An address is lower case, whatever its spelling outside, and belongs to one user for ever: so
-- a deposit's owner never changes afterwards, and money leaves only to addresses that were proven.

CREATE TABLE wallets (
    address text PRIMARY KEY CHECK (address ~ '^0x[0-9a-f]{40}$'),
    user_id text NOT NULL REFERENCES users,
    linked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX wallets_user ON wallets (user_id);

CREATE TABLE wallet_nonces (
    nonce text PRIMARY KEY CHECK (nonce ~ '^[A-Za-z0-9]{8,64}$'),
    user_id text NOT NULL REFERENCES users,
    expires_at timestamptz NOT NULL
);

COMMENT ON TABLE wallet_nonces IS 'Nonces that can still be used: a used one is deleted.';

CREATE INDEX wallet_nonces_user ON wallet_nonces (user_id, expires_at);

INSERT INTO refusals (code, status, title, stored)
VALUES
('message_refused', 422, 'Message refused', false),
('signature_invalid', 422, 'Signature invalid', false),
('nonce_invalid', 422, 'Nonce invalid', false),
('wallet_linked', 409, 'Wallet already linked', false);

-- A time as replies show it: UTC with microseconds.
CREATE FUNCTION time_text(p_time timestamptz) RETURNS text
LANGUAGE sql STABLE
RETURN to_char(p_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');

-- Keep a nonce for a message of this user; the user's expired ones go, and all but the 10 newest.
CREATE FUNCTION api_wallet_nonce(p_user_id text, p_nonce text, p_lifetime_s float8)
RETURNS TABLE (status int, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_expires_at timestamptz := clock_timestamp() + make_interval(secs => p_lifetime_s);
BEGIN
    DELETE FROM wallet_nonces
    WHERE user_id = p_user_id
        AND (
            expires_at <= clock_timestamp()
            OR nonce NOT IN (
                SELECT n.nonce FROM wallet_nonces AS n
                WHERE n.user_id = p_user_id ORDER BY n.expires_at DESC LIMIT 9
            )
        );
    INSERT INTO wallet_nonces (nonce, user_id, expires_at) VALUES (p_nonce, p_user_id, v_expires_at);
    RETURN QUERY
    SELECT 201, row_to_json(b)::text
    FROM (SELECT p_nonce AS nonce, time_text(v_expires_at) AS "expiresAt") AS b;
END
$$;

-- Use up the nonce and give the address to the user. The nonce is gone even when the wallet is refused.
CREATE FUNCTION api_link_wallet(p_user_id text, p_address text, p_nonce text)
RETURNS TABLE (status int, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_wallet wallets;
BEGIN
    DELETE FROM wallet_nonces
    WHERE nonce = p_nonce AND user_id = p_user_id AND expires_at > clock_timestamp();
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT r.status, r.body FROM refuse('nonce_invalid', 'unknown, used, expired or not yours', 'message') AS r;
        RETURN;
    END IF;
    INSERT INTO wallets (address, user_id) VALUES (p_address, p_user_id)
    ON CONFLICT DO NOTHING RETURNING * INTO v_wallet;
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT r.status, r.body FROM refuse('wallet_linked', 'the wallet has its owner', 'message') AS r;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT 201, row_to_json(b)::text
    FROM (SELECT v_wallet.address, v_wallet.user_id AS "userId", time_text(v_wallet.linked_at) AS "linkedAt") AS b;
END
$$;

-- A user's wallets, oldest first.
CREATE FUNCTION api_wallets(p_user_id text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT row_to_json(body)::text AS wallets
    FROM (
        SELECT
            ARRAY(
                SELECT row_to_json(l)
                FROM (
                    SELECT
                        w.address,
                        time_text(w.linked_at) AS "linkedAt"
                    FROM wallets AS w
                    WHERE w.user_id = p_user_id
                    ORDER BY w.linked_at, w.address
                ) AS l
            ) AS wallets
    ) AS body;
END;

CREATE VIEW books.wallets AS
SELECT
    address,
    user_id,
    linked_at
FROM wallets;

REVOKE ALL ON wallets, wallet_nonces, books.wallets FROM public;
REVOKE ALL ON FUNCTION time_text, api_wallet_nonce, api_link_wallet, api_wallets FROM public;
GRANT EXECUTE ON FUNCTION api_wallet_nonce, api_link_wallet, api_wallets TO seatrial_server;
GRANT SELECT ON books.wallets TO seatrial_judge;
