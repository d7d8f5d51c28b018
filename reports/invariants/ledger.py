"""Ledger: money moves from account to account, is never made, lost or rewritten, and every balance says why.

The checks follow one another: entries balance within their transaction, an account's entries follow one
another, and its balance is what they sum to; so the whole sums to zero unless an account itself is missing.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.probed import probed

# As the probe makes it, of every entry that it has seen.
DIGEST = """md5(concat_ws('|', entry_id, transaction_id, account_id, account_version, debit_micro,
    credit_micro, balance_after_micro))"""


@invariant(group="ledger", unit="transactions")
@probed
def every_transaction_balances(evidence: Evidence) -> Finding:
    """The entries of every transaction sum to zero, and each moves money one way.

    A transaction has at least two entries, and no entry is without its transaction.
    """
    return finding(
        evidence,
        examined="SELECT count(*) FROM transactions",
        breaches="""
            WITH sums AS (
                SELECT transaction_id, count(*) AS entries,
                    sum(credit_micro - debit_micro) AS difference_micro,
                    count(*) FILTER (
                        debit_micro < 0 OR credit_micro < 0 OR (debit_micro > 0) = (credit_micro > 0)
                    ) AS two_way
                FROM entries GROUP BY transaction_id
            )
            SELECT transaction_id, t.kind, coalesce(entries, 0) AS entries, difference_micro,
                nullif(two_way, 0) AS entries_not_one_way,
                CASE WHEN t.transaction_id IS NULL THEN true END AS without_transaction
            FROM transactions AS t FULL JOIN sums USING (transaction_id)
            WHERE t.transaction_id IS NULL OR coalesce(entries, 0) < 2 OR difference_micro <> 0 OR two_way > 0
        """,
    )


@invariant(group="ledger", unit="accounts")
@probed
def money_is_conserved(evidence: Evidence) -> Finding:
    """All balances together are zero: what came in from outside is what there is."""
    return finding(
        evidence,
        examined="SELECT count(*) FROM accounts",
        breaches="""
            SELECT sum(balance_micro) AS sum_micro, count(*) AS accounts,
                coalesce(-sum(balance_micro) FILTER (kind = 'external_onchain'), 0) AS brought_in_micro
            FROM accounts HAVING sum_micro <> 0
        """,
    )


@invariant(group="ledger", unit="accounts")
@probed
def balances_equal_entries(evidence: Evidence) -> Finding:
    """Every account's balance is the sum of its entries, and its version is their number."""
    return finding(
        evidence,
        examined="SELECT count(*) FROM accounts",
        breaches="""
            WITH sums AS (
                SELECT account_id, count(*) AS entries, sum(credit_micro - debit_micro) AS entries_micro
                FROM entries GROUP BY account_id
            )
            SELECT account_id, kind, user_id, market_id, balance_micro,
                coalesce(entries_micro, 0) AS entries_micro, version, coalesce(entries, 0) AS entries
            FROM accounts LEFT JOIN sums USING (account_id)
            WHERE balance_micro <> coalesce(entries_micro, 0) OR version <> coalesce(entries, 0)
        """,
    )


@invariant(group="ledger", unit="entries")
@probed
def running_balances_are_continuous(evidence: Evidence) -> Finding:
    """Every entry is its account's next version, and leaves the balance before it plus what it moves."""
    return finding(
        evidence,
        examined="SELECT count(*) FROM entries",
        breaches="""
            SELECT account_id, account_version, entry_id, credit_micro - debit_micro AS change_micro,
                balance_after_micro,
                coalesce(lag(account_version) OVER by_version, 0) AS version_before,
                coalesce(lag(balance_after_micro) OVER by_version, 0) AS balance_before_micro
            FROM entries
            WINDOW by_version AS (PARTITION BY account_id ORDER BY account_version, entry_id)
            QUALIFY account_version <> version_before + 1
                OR balance_after_micro <> balance_before_micro + change_micro
        """,
    )


@invariant(group="ledger", unit="balances")
@probed
def no_account_goes_below_its_floor(evidence: Evidence) -> Finding:
    """No balance was below its account's floor at any version; that of the outside was never above zero.

    Nor was what users owe, which is a balance of the outside's sort.
    """
    balances = """
        SELECT account_id, account_version, balance_after_micro AS balance_micro FROM entries
        UNION ALL
        SELECT account_id, NULL, balance_micro FROM accounts
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM ({balances}) SEMI JOIN accounts USING (account_id)",
        breaches=f"""
            SELECT account_id, account_version, kind, a.user_id, a.market_id, b.balance_micro, floor_micro
            FROM ({balances}) AS b JOIN accounts AS a USING (account_id)
            WHERE b.balance_micro < floor_micro
                OR (kind IN ('external_onchain', 'suspense_receivable') AND b.balance_micro > 0)
        """,
    )


@invariant(group="ledger", unit="entries")
@probed
def entries_never_change(evidence: Evidence) -> Finding:
    """Every entry that was seen during the load is in the books at the end, unchanged."""
    return finding(
        evidence,
        examined="SELECT count(DISTINCT entry_id) FROM probe_entries",
        breaches=f"""
            WITH seen AS (
                SELECT entry_id, digest, min(time_ns) AS seen_ns FROM probe_entries GROUP BY entry_id, digest
            ),
            kept AS (SELECT *, {DIGEST} AS digest FROM entries SEMI JOIN seen USING (entry_id))
            SELECT entry_id, s.seen_ns, s.digest AS digest_seen, coalesce(k.digest, 'none') AS digest_kept,
                k.transaction_id, k.account_id, k.account_version
            FROM seen AS s LEFT JOIN kept AS k USING (entry_id)
            WHERE k.digest IS DISTINCT FROM s.digest
        """,
    )
