-- Idempotency keys: one row a key, written with the effect it names and with the answer it got.
--
-- A transaction that uses a user's key holds the row lock of that user's available account from before it
-- looks the key up until it commits. So two uses of one key follow each other, the second sees the first's
-- answer, and the row is written once, whole. The primary key is the guard, the lock only the order.
-- Why not insert the key first and fill in the answer later: twice the row versions for the same guarantee.

CREATE TABLE idempotency_keys (
    user_id text NOT NULL,
    idempotency_key text NOT NULL CHECK (char_length(idempotency_key) BETWEEN 1 AND 255),
    endpoint text NOT NULL,
    request_hash text NOT NULL,
    status int NOT NULL,
    body text NOT NULL,
    transaction_id bigint,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, idempotency_key)
);

COMMENT ON COLUMN idempotency_keys.body IS 'The reply, byte for byte.';

-- The answer this key already has: no row at its first use, a refusal when it belongs to another request.
CREATE FUNCTION recall_answer(p_user_id text, p_key text, p_request_hash text)
RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        CASE WHEN k.request_hash = p_request_hash THEN k.status ELSE 422 END AS status,
        k.request_hash = p_request_hash AS replayed,
        CASE
            WHEN k.request_hash = p_request_hash THEN k.body
            ELSE problem('idempotency_key_reused', 'the key belongs to another request')
        END AS body
    FROM idempotency_keys AS k
    WHERE k.user_id = p_user_id AND k.idempotency_key = p_key;
END;
