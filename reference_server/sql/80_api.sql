-- What the server calls beside trading: users, funding, markets, accounts. Replies are rendered here, so that
-- a stored answer is the answer; lock order as in the ledger.

-- Who a token belongs to; no row for an unknown one.
CREATE FUNCTION api_authenticate(p_token_hash bytea) RETURNS TABLE (user_id text, role text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        u.user_id,
        u.role
    FROM tokens AS t
    INNER JOIN users AS u ON t.user_id = u.user_id
    WHERE t.token_hash = p_token_hash;
END;

-- A user with an available and a reserved account, and a token; p_user_id null: one is made up.
CREATE FUNCTION api_create_user(p_user_id text, p_name text, p_token_hash bytea)
RETURNS TABLE (status int, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_user_id text := coalesce(p_user_id, replace(gen_random_uuid()::text, '-', ''));
BEGIN
    IF v_user_id !~ '^[A-Za-z0-9_.:@-]{1,64}$' THEN
        RETURN QUERY SELECT 400, problem('malformed', 'letters, digits and _.:@-, at most 64', 'userId');
        RETURN;
    END IF;
    IF p_name IS null OR char_length(p_name) NOT BETWEEN 1 AND 200 THEN
        RETURN QUERY SELECT 400, problem('malformed', 'a name has 1 to 200 characters', 'name');
        RETURN;
    END IF;
    INSERT INTO users (user_id, name) VALUES (v_user_id, p_name) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 409, problem('user_exists', 'the user id is taken', 'userId');
        RETURN;
    END IF;
    INSERT INTO accounts (kind, user_id) VALUES ('user_available', v_user_id), ('user_reserved', v_user_id);
    INSERT INTO tokens (token_hash, user_id) VALUES (p_token_hash, v_user_id);
    RETURN QUERY SELECT 201, row_to_json(b)::text FROM (SELECT v_user_id AS "userId") AS b;
END
$$;

-- What stops an administrator's request before it is looked at, as a code; null: nothing. Passes the pause
-- gate if the request moves money, and locks p_accounts and the account that guards the administrator's keys.
CREATE FUNCTION begin_admin_request(
    p_admin_id text, p_key text, p_request_hash text, p_moves_money boolean, p_accounts bigint[]
) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF p_key IS null OR char_length(p_key) NOT BETWEEN 1 AND 255 OR p_request_hash IS null THEN
        RETURN 'malformed';
    ELSIF NOT is_admin(p_admin_id) THEN
        RETURN 'forbidden';
    ELSIF p_moves_money AND NOT pass_pause_gate() THEN
        RETURN 'trading_paused';
    END IF;
    PERFORM FROM accounts
    WHERE account_id = ANY(p_accounts || user_account(p_admin_id))
    ORDER BY account_id FOR NO KEY UPDATE;
    RETURN null;
END
$$;

-- Keep the answer of an administrator's key if it is one that lasts, and hand it on.
CREATE FUNCTION answer_admin_request(
    p_admin_id text,
    p_key text,
    p_request_hash text,
    p_endpoint text,
    p_status int,
    p_body text,
    p_transaction_id bigint DEFAULT null
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO idempotency_keys (
        user_id, idempotency_key, endpoint, request_hash, status, body, transaction_id
    )
    VALUES (p_admin_id, p_key, p_endpoint, p_request_hash, p_status, p_body, p_transaction_id);
    SELECT
        p_status AS status,
        false AS replayed,
        p_body AS body;
END;

-- A refusal that is not kept under the key.
CREATE FUNCTION refuse(p_code text, p_detail text, p_field text DEFAULT null)
RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        r.status,
        false AS replayed,
        problem(r.code, p_detail, p_field) AS body
    FROM refusals AS r
    WHERE r.code = p_code;
END;

-- Money from outside into a user's account or, p_account 'house_treasury', the house's; micro-USDC.
CREATE FUNCTION api_fund(
    p_admin_id text, p_key text, p_request_hash text, p_user_id text, p_account text, p_amount bigint
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_account bigint;
    v_code text;
    v_answer record;
    v_transaction_id bigint;
BEGIN
    IF p_amount IS null OR p_amount NOT BETWEEN 1 AND 1000000000000000 THEN
        RETURN QUERY SELECT * FROM refuse('malformed', 'from 1 to 1000000000000000', 'amount');
        RETURN;
    ELSIF (p_user_id IS null) = (p_account IS null) OR p_account <> 'house_treasury' THEN
        RETURN QUERY SELECT * FROM refuse('malformed', 'either userId or account house_treasury', 'account');
        RETURN;
    END IF;
    v_account := CASE WHEN p_user_id IS null THEN 2 ELSE user_account(p_user_id) END;
    v_code := begin_admin_request(p_admin_id, p_key, p_request_hash, true, ARRAY[1, v_account]);
    IF v_code IS NOT null THEN
        RETURN QUERY SELECT * FROM refuse(v_code, 'the request was not looked at');
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM recall_answer(p_admin_id, p_key, p_request_hash);
    IF FOUND THEN
        RETURN;
    END IF;
    IF v_account IS null THEN
        RETURN QUERY SELECT * FROM refuse('user_not_found', 'no such user', 'userId');
        RETURN;
    ELSIF (SELECT balance FROM accounts WHERE account_id = 1) < p_amount - 9000000000000000000 THEN
        RETURN QUERY SELECT * FROM refuse('malformed', 'more than the books can hold', 'amount');
        RETURN;
    END IF;
    v_transaction_id := record_ledger_entry(1, v_account, p_amount, 'fund', p_admin_id, p_key);
    RETURN QUERY
    SELECT r.*
    FROM (
        SELECT
            v_transaction_id AS "transactionId",
            p_user_id AS "userId",
            p_amount AS amount,
            a.balance,
            a.version AS "accountVersion"
        FROM accounts AS a
        WHERE a.account_id = v_account
    ) AS b
    CROSS JOIN LATERAL answer_admin_request(
        p_admin_id, p_key, p_request_hash, 'POST /api/fundings', 201, row_to_json(b)::text, v_transaction_id
    ) AS r;
END
$$;

-- A market with 2 to 8 outcomes; its subsidy, Cint(0), comes from the treasury. b in micro-shares.
CREATE FUNCTION api_create_market(
    p_admin_id text,
    p_key text,
    p_request_hash text,
    p_question text,
    p_outcomes text[],
    p_b bigint,
    p_fee_bps int
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_field text;
    v_code text;
    v_quantities bigint[];
    v_subsidy bigint;
    v_market markets;
    v_transaction_id bigint;
BEGIN
    v_field := CASE
        WHEN p_question IS null OR char_length(p_question) NOT BETWEEN 1 AND 1000 THEN 'question'
        WHEN p_outcomes IS null OR array_ndims(p_outcomes) IS DISTINCT FROM 1
            OR cardinality(p_outcomes) NOT BETWEEN 2 AND 8
            OR EXISTS (
                SELECT FROM unnest(p_outcomes) AS o WHERE o IS null OR char_length(o) NOT BETWEEN 1 AND 100
            )
            OR (SELECT count(DISTINCT o) FROM unnest(p_outcomes) AS o) <> cardinality(p_outcomes)
            THEN 'outcomes'
        WHEN p_b IS null OR p_b NOT BETWEEN 1000000 AND 1000000000000 THEN 'b'
        WHEN p_fee_bps NOT BETWEEN 0 AND 1000 THEN 'feeBps'
    END;
    IF v_field IS NOT null THEN
        RETURN QUERY SELECT * FROM refuse('malformed', 'missing or out of range', v_field);
        RETURN;
    END IF;
    v_code := begin_admin_request(p_admin_id, p_key, p_request_hash, true, ARRAY[2]::bigint[]);
    IF v_code IS NOT null THEN
        RETURN QUERY SELECT * FROM refuse(v_code, 'the request was not looked at');
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM recall_answer(p_admin_id, p_key, p_request_hash);
    IF FOUND THEN
        RETURN;
    END IF;
    v_quantities := array_fill(0::bigint, ARRAY[cardinality(p_outcomes)]);
    v_subsidy := lmsr_cost(v_quantities, p_b);
    IF (SELECT balance FROM accounts WHERE account_id = 2) < v_subsidy THEN
        RETURN QUERY SELECT * FROM answer_admin_request(
            p_admin_id, p_key, p_request_hash, 'POST /api/markets', 422,
            problem('insufficient_funds', 'the treasury has less than the subsidy of ' || v_subsidy)
        );
        RETURN;
    END IF;
    INSERT INTO markets (question, outcomes, b, fee_bps, quantities, liquidity_pool, subsidy)
    VALUES (p_question, p_outcomes, p_b, coalesce(p_fee_bps, 0), v_quantities, v_subsidy, v_subsidy)
    RETURNING * INTO v_market;
    INSERT INTO accounts (kind, market_id) VALUES ('market_pool', v_market.market_id)
    RETURNING account_id INTO v_market.pool_account;
    INSERT INTO accounts (kind, market_id) VALUES ('house_fees', v_market.market_id)
    RETURNING account_id INTO v_market.fee_account;
    UPDATE markets AS m
    SET pool_account = v_market.pool_account, fee_account = v_market.fee_account
    WHERE m.market_id = v_market.market_id;
    INSERT INTO price_history (market_id, market_version, prices, created_at)
    VALUES (v_market.market_id, 0, lmsr_prices(v_quantities, p_b), v_market.created_at);
    v_transaction_id := record_ledger_entry(
        2, v_market.pool_account, v_subsidy, 'create_market', p_admin_id, p_key
    );
    RETURN QUERY SELECT * FROM answer_admin_request(
        p_admin_id, p_key, p_request_hash, 'POST /api/markets', 201,
        market_json(v_market, v_transaction_id)::text, v_transaction_id
    );
END
$$;

-- No trade after this one version; a market closes once.
CREATE FUNCTION api_close_market(p_admin_id text, p_key text, p_request_hash text, p_market_id bigint)
RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_endpoint text := 'POST /api/markets/' || p_market_id;
    v_code text;
    v_market markets;
BEGIN
    v_code := begin_admin_request(p_admin_id, p_key, p_request_hash, false, '{}');
    IF v_code IS NOT null THEN
        RETURN QUERY SELECT * FROM refuse(v_code, 'the request was not looked at');
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM recall_answer(p_admin_id, p_key, p_request_hash);
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO v_market FROM markets AS m WHERE m.market_id = p_market_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM refuse('market_not_found', 'no such market', 'marketId');
        RETURN;
    ELSIF v_market.status <> 'open' THEN
        RETURN QUERY SELECT * FROM answer_admin_request(
            p_admin_id, p_key, p_request_hash, v_endpoint, 422, problem('market_closed', 'the market is closed')
        );
        RETURN;
    END IF;
    UPDATE markets AS m
    SET status = 'closed', version = m.version + 1, closed_version = m.version + 1
    WHERE m.market_id = p_market_id
    RETURNING m.* INTO v_market;
    RETURN QUERY SELECT * FROM answer_admin_request(
        p_admin_id, p_key, p_request_hash, v_endpoint, 200, market_json(v_market)::text
    );
END
$$;

-- Every market, oldest first.
CREATE FUNCTION api_markets() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT row_to_json(body)::text AS markets
    FROM (
        SELECT ARRAY(
            SELECT market_json(m) FROM markets AS m
            ORDER BY m.market_id
        ) AS markets
    ) AS body
    WHERE pass_read_gate();
END;

-- One market, null when there is none.
CREATE FUNCTION api_market(p_market_id bigint) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT market_json(m)::text AS market
    FROM markets AS m
    WHERE m.market_id = p_market_id AND pass_read_gate();
END;

-- A user's money and shares, null when there is no such user.
CREATE FUNCTION api_account(p_user_id text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT row_to_json(body)::text AS account
    FROM (
        SELECT
            a.user_id AS "userId",
            a.balance AS available,
            r.balance AS reserved,
            a.version AS "accountVersion",
            ARRAY(
                SELECT row_to_json(h)
                FROM (
                    SELECT
                        p.market_id AS "marketId",
                        p.outcome,
                        p.shares
                    FROM positions AS p
                    WHERE p.user_id = p_user_id AND p.shares > 0
                    ORDER BY p.market_id, p.outcome
                ) AS h
            ) AS positions
        FROM accounts AS a
        INNER JOIN accounts AS r ON a.user_id = r.user_id AND r.kind = 'user_reserved'
        WHERE a.user_id = p_user_id AND a.kind = 'user_available' AND pass_read_gate()
    ) AS body;
END;

-- A user's newest entries, at most p_limit, newest first.
CREATE FUNCTION api_account_ledger(p_user_id text, p_limit int) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT row_to_json(body)::text AS ledger
    FROM (
        SELECT
            ARRAY(
                SELECT row_to_json(l)
                FROM (
                    SELECT
                        e.entry_id AS "entryId",
                        e.transaction_id AS "transactionId",
                        a.kind AS account,
                        e.kind,
                        e.debit,
                        e.credit,
                        e.balance_after AS "balanceAfter",
                        e.account_version AS "accountVersion",
                        to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                            AS "createdAt"
                    FROM get_user_ledger(p_user_id, p_limit) AS e
                    INNER JOIN accounts AS a ON e.account_id = a.account_id
                    ORDER BY e.created_at DESC, e.entry_id DESC
                ) AS l
            ) AS entries
    ) AS body
    WHERE pass_read_gate();
END;

-- A user's balances against the sum of the entries; null when there is no such user.
CREATE FUNCTION api_account_reconciliation(p_user_id text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT row_to_json(body)::text AS reconciliation
    FROM (
        SELECT
            p_user_id AS "userId",
            sum(r.balance)::bigint AS balance,
            sum(r.entries_sum)::bigint AS "entriesSum",
            sum(r.entries)::bigint AS entries,
            sum(r.difference)::bigint AS difference,
            bool_and(r.reconciled) AS reconciled
        FROM reconcile_user_balance(p_user_id) AS r
        WHERE pass_read_gate()
        HAVING count(*) > 0
    ) AS body;
END;
