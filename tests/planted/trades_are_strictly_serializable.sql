-- An account's version and its balance are read at two moments: the balance is that of the entry before.
SELECT pg_temp.patch_function(
    'api_account', 'a.balance AS available',
    'coalesce((
        SELECT e.balance_after FROM ledger_entries AS e
        WHERE e.account_id = a.account_id AND e.account_version = a.version - 1
    ), a.balance) AS available'
);
