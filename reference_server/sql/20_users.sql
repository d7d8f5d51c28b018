-- Users and the hashes of their bearer tokens.

CREATE TABLE users (
    user_id text PRIMARY KEY CHECK (user_id ~ '^[A-Za-z0-9_.:@-]{1,64}$'),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    role text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE tokens (
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    user_id text NOT NULL REFERENCES users,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN tokens.token_hash IS 'SHA-256 of the token; the token itself is never stored.';

-- Whether this user may administer.
CREATE FUNCTION is_admin(p_user_id text) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS(
        SELECT FROM users
        WHERE user_id = p_user_id AND role = 'admin'
    ) AS is_admin;
END;
