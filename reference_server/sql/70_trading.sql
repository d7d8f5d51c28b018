-- Trading: batches of trades on one market, in one transaction, refusals as values.
--
-- 1. pause gate, which may let sells alone pass  2. the users' accounts locked in id order  3. answers the
-- keys already have  4. the market, locked last  5. a loop in arrival order that prices each trade on the
-- state the one before it left  6. one set-based write per table  7. a result per trade, by position.
--
-- Plans here are cached for as long as a pooled connection lives, and tables grow by a million rows an hour:
-- sequential scans and hash or merge joins are off, so that a plan made on an empty table stays good.
-- Generic plans at once: otherwise the statements with arrays are planned anew in every call, for nothing.

CREATE TYPE trade_quote AS (
    code text,      -- null: it can be done
    detail text,
    shares bigint,  -- micro-shares
    cost bigint,    -- micro-USDC
    fee bigint,
    total bigint
);

CREATE TYPE executed_trade AS (
    transaction_id bigint,
    trade_id bigint,
    market_version bigint,
    account_id bigint,
    account_version bigint,
    balance bigint,
    user_id text,
    idempotency_key text,
    outcome int,
    side text,
    shares bigint,
    amount_asked bigint,
    limit_asked bigint,
    cost bigint,
    fee bigint,
    total bigint,
    held bigint,        -- shares of this outcome the user holds after it
    pool_after bigint,
    fees_sum bigint,    -- of this batch, up to and with this trade
    fees_count bigint,
    prices bigint [],
    created_at timestamptz
);

-- What is wrong with a request whatever the market's state, as the name of the field; null: nothing.
CREATE FUNCTION malformed_field(
    p_user_id text,
    p_key text,
    p_request_hash text,
    p_outcomes int,
    p_outcome int,
    p_side text,
    p_shares bigint,
    p_amount bigint,
    p_limit bigint
) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE
    WHEN p_user_id IS null THEN 'userId'
    WHEN p_key IS null OR char_length(p_key) NOT BETWEEN 1 AND 255 THEN 'Idempotency-Key'
    WHEN p_request_hash IS null THEN 'request'
    WHEN p_outcome IS null OR p_outcome < 0 OR p_outcome >= p_outcomes THEN 'outcome'
    WHEN p_side IS null OR p_side NOT IN ('buy', 'sell') THEN 'side'
    WHEN p_shares IS null AND (p_side = 'sell' OR p_amount IS null) THEN 'shares'
    WHEN p_shares IS NOT null AND p_amount IS NOT null THEN 'amount'
    WHEN p_shares <= 0 THEN 'shares'
    WHEN p_amount <= 0 THEN 'amount'
    WHEN p_limit <= 0 THEN 'limit'
END;

-- Price one well-formed trade on an open market of these quantities; p_available in micro-USDC and p_held in
-- micro-shares are the user's. fee = ceil(cost * fee_bps / 10000).
CREATE FUNCTION quote_trade(
    p_quantities bigint[],
    p_b bigint,
    p_fee_bps int,
    p_pool bigint,
    p_outcome int,
    p_side text,
    p_shares bigint,
    p_amount bigint,
    p_limit bigint,
    p_available bigint,
    p_held bigint
) RETURNS trade_quote
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_quote trade_quote;
    v_quantity bigint := p_quantities[p_outcome + 1];
    v_divisor bigint := 10000 + p_fee_bps;
BEGIN
    IF greatest(p_shares, p_amount) > lmsr_quantity_max() THEN
        v_quote.code := 'trade_too_large';
        v_quote.detail := 'one trade is at most 1000000000000000';
        RETURN v_quote;
    END IF;
    IF p_side = 'sell' THEN
        v_quote.shares := p_shares;
        IF p_shares > p_held THEN
            v_quote.code := 'insufficient_shares';
            v_quote.detail := p_held || ' shares are held';
            RETURN v_quote;
        END IF;
        p_quantities[p_outcome + 1] := v_quantity - p_shares;
        v_quote.cost := p_pool - lmsr_cost(p_quantities, p_b);
    ELSE
        IF p_shares IS null THEN
            -- the largest cost whose sum with its fee stays within the amount: floor(amount * 10000 / divisor)
            v_quote.cost := p_amount / v_divisor * 10000 + p_amount % v_divisor * 10000 / v_divisor;
            IF v_quote.cost > 0 THEN
                v_quote.shares := lmsr_shares_for(p_quantities, p_b, p_pool, p_outcome + 1, v_quote.cost);
            ELSE
                v_quote.shares := 0;
            END IF;
        ELSE
            v_quote.shares := p_shares;
        END IF;
        IF v_quantity + v_quote.shares > lmsr_quantity_max() THEN
            v_quote.code := 'trade_too_large';
            v_quote.detail := 'an outcome has at most 1000000000000000 shares';
            RETURN v_quote;
        END IF;
        p_quantities[p_outcome + 1] := v_quantity + v_quote.shares;
        v_quote.cost := lmsr_cost(p_quantities, p_b) - p_pool;
    END IF;
    v_quote.fee := (v_quote.cost * p_fee_bps + 9999) / 10000;
    IF p_side = 'sell' THEN
        v_quote.total := v_quote.cost - v_quote.fee;
    ELSE
        v_quote.total := v_quote.cost + v_quote.fee;
    END IF;
    IF v_quote.shares < 1 OR v_quote.cost < 1 OR v_quote.total < 1 THEN
        v_quote.code := 'trade_too_small';
        v_quote.detail := 'it would move less than one micro-USDC';
    ELSIF p_side = 'sell' THEN
        IF v_quote.total < p_limit THEN
            v_quote.code := 'limit_exceeded';
            v_quote.detail := 'it would bring ' || v_quote.total;
        END IF;
    ELSIF v_quote.total > p_limit THEN
        v_quote.code := 'limit_exceeded';
        v_quote.detail := 'it would cost ' || v_quote.total;
    ELSIF v_quote.total > p_available THEN
        v_quote.code := 'insufficient_funds';
        v_quote.detail := 'it would cost ' || v_quote.total || ' and ' || p_available || ' are available';
    END IF;
    RETURN v_quote;
END
$$;

-- Write executed trades of one market: one statement a table. False, and nothing is written, when the market
-- is no longer at p_version; with the market locked before that it was read, it always is.
CREATE FUNCTION write_trades(
    p_market_id bigint, p_version bigint, p_quantities bigint[], p_pool bigint, p_trades executed_trade[]
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_pool_account bigint;
    v_fee_account bigint;
    v_pool_version bigint;
    v_fees bigint;
    v_fee_version bigint;
BEGIN
    UPDATE markets AS m
    SET quantities = p_quantities, liquidity_pool = p_pool, version = p_version + cardinality(p_trades)
    WHERE m.market_id = p_market_id AND m.version = p_version
    RETURNING m.pool_account, m.fee_account INTO v_pool_account, v_fee_account;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- the market's row, locked by now, guards both
    SELECT a.version INTO STRICT v_pool_version FROM accounts AS a WHERE a.account_id = v_pool_account;
    SELECT a.version, a.balance INTO STRICT v_fee_version, v_fees
    FROM accounts AS a WHERE a.account_id = v_fee_account;

    UPDATE accounts AS a
    SET balance = n.balance, version = n.version
    FROM (
        (
            SELECT DISTINCT ON (t.account_id) t.account_id, t.balance, t.account_version AS version
            FROM unnest(p_trades) AS t
            ORDER BY t.account_id ASC, t.account_version DESC
        )
        UNION ALL
        SELECT v_pool_account, p_pool, v_pool_version + cardinality(p_trades)
        UNION ALL
        (
            SELECT v_fee_account, v_fees + t.fees_sum, v_fee_version + t.fees_count
            FROM unnest(p_trades[cardinality(p_trades):]) AS t
            WHERE t.fees_count > 0
        )
    ) AS n
    WHERE a.account_id = n.account_id;

    INSERT INTO transactions (transaction_id, kind, user_id, idempotency_key, market_id, created_at)
    SELECT t.transaction_id, 'trade', t.user_id, t.idempotency_key, p_market_id, t.created_at
    FROM unnest(p_trades) AS t;

    INSERT INTO ledger_entries (
        transaction_id, account_id, account_version, user_id, kind, debit, credit, balance_after, created_at
    )
    SELECT
        t.transaction_id, e.account_id, e.account_version, e.user_id, 'trade',
        greatest(-e.gain, 0), greatest(e.gain, 0), e.balance_after, t.created_at
    FROM unnest(p_trades) AS t
    CROSS JOIN LATERAL (
        VALUES
        (
            t.account_id, t.account_version, t.user_id,
            CASE t.side WHEN 'buy' THEN -t.total ELSE t.total END, t.balance
        ),
        (
            v_pool_account, v_pool_version + t.market_version - p_version, null,
            CASE t.side WHEN 'buy' THEN t.cost ELSE -t.cost END, t.pool_after
        ),
        (v_fee_account, v_fee_version + t.fees_count, null, t.fee, v_fees + t.fees_sum)
    ) AS e (account_id, account_version, user_id, gain, balance_after)
    WHERE e.gain <> 0;

    INSERT INTO trades (
        trade_id, transaction_id, market_id, market_version, user_id, outcome, side, shares,
        amount_asked, limit_asked, cost, fee, pool_after, created_at
    )
    SELECT
        t.trade_id, t.transaction_id, p_market_id, t.market_version, t.user_id, t.outcome, t.side, t.shares,
        t.amount_asked, t.limit_asked, t.cost, t.fee, t.pool_after, t.created_at
    FROM unnest(p_trades) AS t;

    INSERT INTO price_history (market_id, market_version, prices, created_at)
    SELECT p_market_id, t.market_version, t.prices, t.created_at
    FROM unnest(p_trades) AS t;

    INSERT INTO positions AS p (market_id, user_id, outcome, shares)
    SELECT DISTINCT ON (t.user_id, t.outcome) p_market_id, t.user_id, t.outcome, t.held
    FROM unnest(p_trades) AS t
    ORDER BY t.user_id ASC, t.outcome ASC, t.market_version DESC
    ON CONFLICT (market_id, user_id, outcome) DO UPDATE SET shares = excluded.shares;
    RETURN true;
END
$$;

-- Execute trades on one market in arrival order; one result a trade, by position (from 1). Arrays are
-- parallel; a buy has shares or an amount, a sell has shares; shares in micro-shares, amounts and limits in
-- micro-USDC. A refusal is a result; an error (an array of another length: 22023) undoes the whole batch.
-- p_optimistic: do not lock the market; when it moved meanwhile nothing is done and every status is 0.
CREATE FUNCTION execute_trade_batch(
    p_market_id bigint,
    p_user_ids text[],
    p_keys text[],
    p_request_hashes text[],
    p_outcomes int[],
    p_sides text[],
    p_shares bigint[],
    p_amounts bigint[],
    p_limits bigint[],
    p_optimistic boolean DEFAULT false
) RETURNS TABLE ("position" int, status int, replayed boolean, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_count int := coalesce(cardinality(p_user_ids), 0);
    v_exit_only boolean;
    v_market markets;
    v_version bigint;
    v_quantities bigint[];
    v_pool bigint;
    v_outcomes int;
    v_now timestamptz;
    -- by locked account
    v_owners text[];
    v_accounts bigint[];
    v_balances bigint[];
    v_versions bigint[];
    v_held bigint[];         -- flat: account, then outcome
    -- by position
    v_account_of int[];
    v_first_use int[];       -- where in the batch the key is used first
    v_answers idempotency_keys[];
    v_statuses int[] := array_fill(0, ARRAY[v_count]);
    v_replayed boolean[] := array_fill(false, ARRAY[v_count]);
    v_bodies text[] := array_fill(null::text, ARRAY[v_count]);
    v_stored_at int[] := array_fill(0, ARRAY[v_count]);  -- by first use: where its answer is
    v_transactions bigint[] := array_fill(null::bigint, ARRAY[v_count]);
    v_trades executed_trade[] := '{}';
    v_trade executed_trade;
    v_quote trade_quote;
    v_code text;
    v_detail text;
    v_field text;
    v_answer idempotency_keys;
    v_refusal refusals;
    v_a int;
    v_h int;
    v_first int;
    v_outcome int;
    v_side text;
    v_shares bigint;
    v_limit bigint;
    v_gain bigint;
    v_total bigint;
    v_done int := 0;
    v_fees_sum bigint := 0;
    v_fees_count bigint := 0;
BEGIN
    IF ARRAY[
        cardinality(p_user_ids), cardinality(p_keys), cardinality(p_request_hashes), cardinality(p_outcomes),
        cardinality(p_sides), cardinality(p_shares), cardinality(p_amounts), cardinality(p_limits)
    ] <> array_fill(v_count, ARRAY[8]) THEN
        RAISE EXCEPTION 'the arrays of a batch have one length' USING ERRCODE = '22023';
    END IF;
    v_exit_only := NOT pass_pause_gate();
    IF v_exit_only AND NOT pass_exit_gate() THEN
        RETURN QUERY SELECT i, 503, false, problem('trading_paused', 'no money moves now')
        FROM generate_series(1, v_count) AS i;
        RETURN;
    END IF;

    -- in id order, so that two batches with common users cannot wait for each other
    SELECT array_agg(l.user_id), array_agg(l.account_id), array_agg(l.balance), array_agg(l.version)
    INTO v_owners, v_accounts, v_balances, v_versions
    FROM (
        SELECT a.user_id, a.account_id, a.balance, a.version
        FROM accounts AS a
        WHERE a.user_id = ANY(p_user_ids) AND a.kind = 'user_available'
        ORDER BY a.account_id
        FOR NO KEY UPDATE
    ) AS l;

    SELECT
        array_agg(r.account_of ORDER BY r.n),
        array_agg(r.first_use ORDER BY r.n),
        array_agg(r.answer ORDER BY r.n)
    INTO v_account_of, v_first_use, v_answers
    FROM (
        SELECT
            u.n,
            array_position(v_owners, u.user_id) AS account_of,
            min(u.n) OVER (PARTITION BY u.user_id, u.idempotency_key) AS first_use,
            (
                SELECT k FROM idempotency_keys AS k
                WHERE k.user_id = u.user_id AND k.idempotency_key = u.idempotency_key
            ) AS answer
        FROM unnest(p_user_ids, p_keys) WITH ORDINALITY AS u (user_id, idempotency_key, n)
    ) AS r;

    IF p_optimistic THEN
        SELECT * INTO v_market FROM markets AS m WHERE m.market_id = p_market_id;
    ELSE
        SELECT * INTO v_market FROM markets AS m WHERE m.market_id = p_market_id FOR NO KEY UPDATE;
    END IF;
    v_version := v_market.version;
    v_quantities := v_market.quantities;
    v_pool := v_market.liquidity_pool;
    v_outcomes := cardinality(v_quantities);
    v_held := array_fill(0::bigint, ARRAY[coalesce(cardinality(v_owners) * v_outcomes, 0)]);
    FOR v_h, v_shares IN
        SELECT (array_position(v_owners, p.user_id) - 1) * v_outcomes + p.outcome + 1, p.shares
        FROM positions AS p
        WHERE p.market_id = p_market_id AND p.user_id = ANY(v_owners)
    LOOP
        v_held[v_h] := v_shares;
    END LOOP;

    FOR i IN 1 .. v_count LOOP
        v_outcome := p_outcomes[i];
        v_side := p_sides[i];
        v_shares := p_shares[i];
        v_limit := p_limits[i];
        v_field := malformed_field(
            p_user_ids[i], p_keys[i], p_request_hashes[i], v_outcomes,
            v_outcome, v_side, v_shares, p_amounts[i], v_limit
        );
        v_a := v_account_of[i];
        v_first := v_first_use[i];
        v_answer := v_answers[i];
        v_code := null;
        v_detail := null;
        IF v_field IS NOT null THEN
            v_code := 'malformed';
            v_detail := 'missing, out of range, or one too many';
        ELSIF v_a IS null THEN
            v_code := 'user_not_found';
            v_detail := 'no such user';
        ELSIF v_exit_only AND v_side = 'buy' THEN
            v_code := 'trading_paused';
            v_detail := 'only sells are executed now';
        ELSIF v_stored_at[v_first] > 0 THEN
            v_h := v_stored_at[v_first];
            IF p_request_hashes[v_h] = p_request_hashes[i] THEN
                v_statuses[i] := v_statuses[v_h];
                v_bodies[i] := v_bodies[v_h];
                v_replayed[i] := true;
                CONTINUE;
            END IF;
            v_code := 'idempotency_key_reused';
            v_detail := 'the key belongs to another request';
        ELSIF v_answer.status IS NOT null THEN
            IF v_answer.request_hash = p_request_hashes[i] THEN
                v_statuses[i] := v_answer.status;
                v_bodies[i] := v_answer.body;
                v_replayed[i] := true;
                CONTINUE;
            END IF;
            v_code := 'idempotency_key_reused';
            v_detail := 'the key belongs to another request';
        ELSIF v_market.market_id IS null THEN
            v_code := 'market_not_found';
            v_detail := 'no such market';
            v_field := 'marketId';
        ELSIF v_market.status <> 'open' THEN
            v_code := 'market_closed';
            v_detail := 'the market is closed';
        ELSE
            v_h := (v_a - 1) * v_outcomes + v_outcome + 1;
            v_quote := quote_trade(
                v_quantities, v_market.b, v_market.fee_bps, v_pool, v_outcome, v_side,
                v_shares, p_amounts[i], v_limit, v_balances[v_a], v_held[v_h]
            );
            v_code := v_quote.code;
            v_detail := v_quote.detail;
        END IF;
        IF v_code IS NOT null THEN
            SELECT * INTO STRICT v_refusal FROM refusals AS r WHERE r.code = v_code;
            v_statuses[i] := v_refusal.status;
            v_bodies[i] := problem(v_code, v_detail, v_field);
            IF v_refusal.stored THEN
                v_stored_at[v_first] := i;
            END IF;
            CONTINUE;
        END IF;

        v_stored_at[v_first] := i;
        v_now := greatest(clock_timestamp(), v_now + interval '1 microsecond');
        v_shares := v_quote.shares;
        v_gain := v_quote.cost;
        v_total := v_quote.total;
        IF v_side = 'buy' THEN
            v_total := -v_total;
        ELSE
            v_shares := -v_shares;
            v_gain := -v_gain;
        END IF;
        v_version := v_version + 1;
        v_pool := v_pool + v_gain;
        v_quantities[v_outcome + 1] := v_quantities[v_outcome + 1] + v_shares;
        v_held[v_h] := v_held[v_h] + v_shares;
        v_balances[v_a] := v_balances[v_a] + v_total;
        v_versions[v_a] := v_versions[v_a] + 1;
        IF v_quote.fee > 0 THEN
            v_fees_sum := v_fees_sum + v_quote.fee;
            v_fees_count := v_fees_count + 1;
        END IF;
        v_done := v_done + 1;
        v_transactions[i] := nextval('transactions_transaction_id_seq');
        v_trade := ROW(
            v_transactions[i], nextval('trades_trade_id_seq'), v_version,
            v_accounts[v_a], v_versions[v_a], v_balances[v_a], p_user_ids[i], p_keys[i],
            v_outcome, v_side, v_quote.shares, p_amounts[i], v_limit,
            v_quote.cost, v_quote.fee, v_quote.total, v_held[v_h],
            v_pool, v_fees_sum, v_fees_count, lmsr_prices(v_quantities, v_market.b), v_now
        );
        v_trades[v_done] := v_trade;
        v_statuses[i] := 200;
        v_bodies[i] := format(
            '{"tradeId":%s,"transactionId":%s,"marketId":%s,"marketVersion":%s,"outcome":%s,"side":"%s",'
            '"shares":%s,"cost":%s,"fee":%s,"total":%s,"balance":%s,"accountVersion":%s,"prices":[%s]}',
            v_trade.trade_id, v_trade.transaction_id, p_market_id, v_version, v_outcome, v_side,
            v_quote.shares, v_quote.cost, v_quote.fee, v_quote.total, v_balances[v_a], v_versions[v_a],
            array_to_string(v_trade.prices, ',')
        );
    END LOOP;

    IF v_done > 0 AND NOT write_trades(p_market_id, v_market.version, v_quantities, v_pool, v_trades) THEN
        RETURN QUERY SELECT i, 0, false, null::text FROM generate_series(1, v_count) AS i;
        RETURN;
    END IF;
    INSERT INTO idempotency_keys (
        user_id, idempotency_key, endpoint, request_hash, status, body, transaction_id
    )
    SELECT
        r.user_id, r.idempotency_key, 'POST /api/trade', r.request_hash, r.status, r.body, r.transaction_id
    FROM unnest(
        p_user_ids, p_keys, p_request_hashes, v_statuses, v_bodies, v_transactions, v_first_use
    ) WITH ORDINALITY AS r (
        user_id, idempotency_key, request_hash, status, body, transaction_id, first_use, n
    )
    WHERE v_stored_at[r.first_use] = r.n;
    RETURN QUERY SELECT r.n::int, r.status, r.replayed, r.body
    FROM unnest(v_statuses, v_replayed, v_bodies) WITH ORDINALITY AS r (status, replayed, body, n);
END
$$;

-- Execute one trade without locking the market; status 0: the market moved meanwhile and nothing was done.
CREATE FUNCTION execute_trade_optimistic(
    p_user_id text,
    p_market_id bigint,
    p_key text,
    p_request_hash text,
    p_outcome int,
    p_side text,
    p_shares bigint,
    p_amount bigint,
    p_limit bigint
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        t.status,
        t.replayed,
        t.body
    FROM execute_trade_batch(
        p_market_id, ARRAY[p_user_id], ARRAY[p_key], ARRAY[p_request_hash], ARRAY[p_outcome], ARRAY[p_side],
        ARRAY[p_shares], ARRAY[p_amount], ARRAY[p_limit], true
    ) AS t;
END;

-- Buy one outcome by shares or by amount: a batch of one. Micro-shares, micro-USDC.
CREATE FUNCTION execute_trade_lmsr(
    p_user_id text,
    p_market_id bigint,
    p_outcome int,
    p_shares bigint,
    p_amount bigint,
    p_limit bigint,
    p_key text,
    p_request_hash text
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        t.status,
        t.replayed,
        t.body
    FROM execute_trade_batch(
        p_market_id, ARRAY[p_user_id], ARRAY[p_key], ARRAY[p_request_hash], ARRAY[p_outcome], ARRAY['buy'],
        ARRAY[p_shares], ARRAY[p_amount], ARRAY[p_limit]
    ) AS t;
END;

-- Sell held shares of one outcome: a batch of one. Micro-shares, micro-USDC.
CREATE FUNCTION sell_shares_lmsr(
    p_user_id text,
    p_market_id bigint,
    p_outcome int,
    p_shares bigint,
    p_limit bigint,
    p_key text,
    p_request_hash text
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        t.status,
        t.replayed,
        t.body
    FROM execute_trade_batch(
        p_market_id, ARRAY[p_user_id], ARRAY[p_key], ARRAY[p_request_hash], ARRAY[p_outcome], ARRAY['sell'],
        ARRAY[p_shares], ARRAY[null::bigint], ARRAY[p_limit]
    ) AS t;
END;
