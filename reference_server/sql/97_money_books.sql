-- The books of money in and out: what docs/books.md says of them, column by column; money in micro-USDC.

CREATE VIEW books.reconciliations AS
SELECT
    run_id,
    verdict,
    cutoff_at,
    finished_at,
    block_number,
    custody_micro,
    books_micro,
    in_flight_micro,
    difference_micro,
    account_drift_micro,
    drift_micro,
    accounts_wrong,
    entries_read,
    base_run_id,
    snapshot,
    consecutive,
    last_clean_at,
    first_found_at,
    paused_at,
    trouble
FROM reconciliation_runs;

CREATE VIEW books.reconciliation_items AS
SELECT
    run_id,
    item_kind,
    item_id,
    amount_micro,
    explains,
    explanation
FROM reconciliation_items;

CREATE VIEW books.snapshots AS
SELECT
    run_id,
    account_id,
    kind,
    user_id,
    market_id,
    balance AS balance_micro,
    version
FROM balance_snapshots;

CREATE VIEW books.platform_changes AS
SELECT
    change_id,
    paused,
    sells_while_paused,
    reads_while_paused,
    reason,
    changed_by,
    changed_at
FROM platform_changes;

REVOKE ALL ON books.reconciliations, books.reconciliation_items, books.snapshots, books.platform_changes
FROM public;
GRANT SELECT ON books.reconciliations, books.reconciliation_items, books.snapshots, books.platform_changes
TO seatrial_judge;
