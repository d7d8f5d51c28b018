"""Chain: what the vault holds is what the books owe, when nothing is in flight any more."""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.planted_drift import PLANTED

# What one side has and the other cannot yet have: it is not deep enough. A drained run has none of it.
IN_FLIGHT = """
    SELECT amount_micro FROM chain_deposits AS c JOIN chain_head AS h
        ON c.block_number > h.number - h.confirmations
    ANTI JOIN deposits AS d ON c.tx_hash = d.tx_hash AND c.log_index = d.log_index
        AND d.status IN ('credited', 'suspended')
    UNION ALL
    SELECT -p.amount_micro FROM chain_payments AS p JOIN chain_head AS h
        ON p.block_number > h.number - h.confirmations
    SEMI JOIN withdrawals AS w ON p.withdrawal_id = w.withdrawal_id AND w.status <> 'final'
    UNION ALL
    -- in the vault, and more than the books can hold
    SELECT c.amount_micro FROM chain_deposits AS c JOIN deposits AS d USING (tx_hash, log_index)
    WHERE d.status = 'refused'
"""
BALANCES = f"""
    WITH held AS (
        SELECT kind, sum(balance_micro) AS balance_micro FROM accounts
        WHERE kind IN ('external_onchain', 'withdraw_in_flight', 'suspense', 'suspense_receivable')
        GROUP BY kind
    ),
    flying AS (SELECT coalesce(sum(amount_micro), 0) AS flying_micro FROM ({IN_FLIGHT})),
    drift AS (
        SELECT coalesce(sum(drift_micro) FILTER (healed), 0) AS sure_micro,
            coalesce(sum(drift_micro), 0) AS perhaps_micro
        FROM ({PLANTED}) AS p JOIN chain_head AS h ON p.from_block <= h.number
        WHERE NOT healed OR to_block IS NULL OR to_block > h.number
    )
    SELECT 'external_onchain' AS kind, 'the vault at the last block' AS held_against,
        -coalesce(balance_micro, 0) AS balance_micro,
        custody_micro - flying_micro - sure_micro AS found_micro,
        custody_micro - flying_micro - perhaps_micro AS or_micro
    FROM chain_head CROSS JOIN flying CROSS JOIN drift LEFT JOIN held ON held.kind = 'external_onchain'
    UNION ALL
    SELECT kind, 'withdrawals under way', balance_micro, open_micro, open_micro FROM held, (
        SELECT coalesce(sum(amount_micro), 0) AS open_micro FROM withdrawals
        WHERE status NOT IN ('final', 'returned')
    ) WHERE kind = 'withdraw_in_flight'
    UNION ALL
    SELECT kind, 'deposits in suspense', balance_micro, suspended_micro, suspended_micro FROM held, (
        SELECT coalesce(sum(amount_micro), 0) AS suspended_micro FROM deposits WHERE status = 'suspended'
    ) WHERE kind = 'suspense'
    UNION ALL
    SELECT kind, 'what users owe', balance_micro, owed_micro, owed_micro FROM held, (
        SELECT coalesce(-sum(owed_micro), 0) AS owed_micro FROM receivables
    ) WHERE kind = 'suspense_receivable'
"""


@invariant(group="chain", unit="balances")
def custody_equals_the_chain(evidence: Evidence) -> Finding:
    """The vault holds exactly what came into the books from outside, and what waits there is accounted for.

    That is: withdraw_in_flight is the sum of the open withdrawals, suspense that of the deposits in it, and
    suspense_receivable what users owe. A drift that was planted and not taken out is in the vault exactly;
    one of which nobody knows whether it was taken out is there, or is not.
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM ({BALANCES})",
        breaches=f"""
            SELECT kind, held_against, balance_micro, found_micro,
                balance_micro - found_micro AS difference_micro
            FROM ({BALANCES}) WHERE balance_micro NOT IN (found_micro, or_micro)
        """,
    )
