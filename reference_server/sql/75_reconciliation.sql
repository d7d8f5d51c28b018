-- Reconciliation of the ledger with itself: what the accounts say against what their entries add up to.

-- Every account, those that do not agree first; micro-USDC. Reads all entries.
CREATE FUNCTION reconcile_all_balances() RETURNS TABLE (
    account_id bigint,
    kind text,
    user_id text,
    balance bigint,
    entries_sum bigint,
    entries bigint,
    difference bigint,
    reconciled boolean
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        a.account_id,
        a.kind,
        a.user_id,
        a.balance,
        coalesce(s.entries_sum, 0)::bigint AS entries_sum,
        coalesce(s.entries, 0) AS entries,
        (a.balance - coalesce(s.entries_sum, 0))::bigint AS difference,
        a.balance = coalesce(s.entries_sum, 0) AND a.version = coalesce(s.entries, 0) AS reconciled
    FROM accounts AS a
    LEFT JOIN (
        SELECT
            e.account_id,
            sum(e.credit - e.debit) AS entries_sum,
            count(*) AS entries
        FROM ledger_entries AS e
        GROUP BY e.account_id
    ) AS s ON a.account_id = s.account_id
    ORDER BY reconciled, a.account_id;
END;

-- The accounts of one user; reads only the user's entries.
CREATE FUNCTION reconcile_user_balance(p_user_id text) RETURNS TABLE (
    account_id bigint,
    kind text,
    user_id text,
    balance bigint,
    entries_sum bigint,
    entries bigint,
    difference bigint,
    reconciled boolean
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        a.account_id,
        a.kind,
        a.user_id,
        a.balance,
        s.entries_sum,
        s.entries,
        a.balance - s.entries_sum AS difference,
        a.balance = s.entries_sum AND a.version = s.entries AS reconciled
    FROM accounts AS a
    CROSS JOIN
        LATERAL (
            SELECT
                coalesce(sum(e.credit - e.debit), 0)::bigint AS entries_sum,
                count(*) AS entries
            FROM ledger_entries AS e
            WHERE e.account_id = a.account_id
        ) AS s
    WHERE a.user_id = p_user_id
    ORDER BY a.account_id;
END;

-- A user's newest entries, newest first.
CREATE FUNCTION get_user_ledger(p_user_id text, p_limit int DEFAULT 50) RETURNS SETOF ledger_entries
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT *
    FROM ledger_entries
    WHERE user_id = p_user_id
    ORDER BY created_at DESC, entry_id DESC
    LIMIT greatest(p_limit, 0);
END;
