-- Moving money between two accounts: the general balanced transaction of two entries.

-- Debit one account and credit another with p_amount micro-USDC; returns the transaction id. The key, where
-- given, is p_user_id's and is used up for ever (23505 when it was used before).
-- Raises 22023 for an amount not above 0 or one account twice, P0002 for an unknown account, ST004 while the
-- platform is paused, 23514 when a balance would go below its floor, 22003 when it would not fit a bigint.
CREATE FUNCTION record_ledger_entry(
    p_debit_account bigint,
    p_credit_account bigint,
    p_amount bigint,
    p_kind text,
    p_user_id text DEFAULT null,
    p_idempotency_key text DEFAULT null
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_ids bigint[] := ARRAY[p_debit_account, p_credit_account];
    v_markets bigint[];
    v_transaction_id bigint;
    v_now timestamptz;
BEGIN
    IF p_amount IS null OR p_amount <= 0 OR p_debit_account = p_credit_account THEN
        RAISE EXCEPTION 'a transfer moves more than 0 between two accounts' USING ERRCODE = '22023';
    END IF;
    IF NOT pass_pause_gate() THEN
        RAISE EXCEPTION 'the platform is paused' USING ERRCODE = 'ST004';
    END IF;
    -- the one lock order: accounts by id, then markets by id
    PERFORM FROM accounts
    WHERE account_id = ANY(v_ids) AND market_id IS null
    ORDER BY account_id FOR NO KEY UPDATE;
    v_markets := ARRAY(SELECT market_id FROM accounts WHERE account_id = ANY(v_ids) AND market_id IS NOT null);
    PERFORM FROM markets WHERE market_id = ANY(v_markets) ORDER BY market_id FOR NO KEY UPDATE;

    v_now := clock_timestamp();
    UPDATE accounts
    SET
        balance = balance + CASE account_id WHEN p_credit_account THEN p_amount ELSE -p_amount END,
        version = version + 1
    WHERE account_id = ANY(v_ids);
    IF (SELECT count(*) FROM accounts WHERE account_id = ANY(v_ids)) <> 2 THEN
        RAISE EXCEPTION 'no such account' USING ERRCODE = 'P0002';
    END IF;
    INSERT INTO transactions (kind, user_id, idempotency_key, market_id, created_at)
    VALUES (p_kind, p_user_id, p_idempotency_key, v_markets[1], v_now)
    RETURNING transaction_id INTO v_transaction_id;
    INSERT INTO ledger_entries (
        transaction_id, account_id, account_version, user_id, kind, debit, credit, balance_after, created_at
    )
    SELECT
        v_transaction_id,
        account_id,
        version,
        user_id,
        p_kind,
        CASE account_id WHEN p_debit_account THEN p_amount ELSE 0 END,
        CASE account_id WHEN p_credit_account THEN p_amount ELSE 0 END,
        balance,
        v_now
    FROM accounts
    WHERE account_id = ANY(v_ids)
    ORDER BY account_id;
    RETURN v_transaction_id;
END
$$;

-- The id of a user's account of one kind, null when there is none.
CREATE FUNCTION user_account(p_user_id text, p_kind text DEFAULT 'user_available') RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT account_id FROM accounts
    WHERE user_id = p_user_id AND kind = p_kind;
END;
