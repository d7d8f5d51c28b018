"""Chain: the system's own reconciliation finds what was planted and nothing else, and stops trading for it.

What a run must have found follows from the evidence of the fault that planted it. For the vault it is exact:
a run names its block, and a drift is there from one block on until before another. For the accounts a run has
one snapshot, between its cut-off and its end, and the act one instant between two readings of the same
machine's clock: where the two overlap, both answers are right.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.planted_drift import PLANTED

# As a system is installed (docs/reconciliation.md); critical_micro is in the evidence of a planted drift.
PAUSE_MICRO = 1_000_000
PAUSE_AFTER = 3
CRITICAL_MICRO = 100_000_000
# So many items of a sort a run writes down; beyond, its sums are of more than can be seen.
ITEMS_MAX = 1_000

RUNS = f"""
    SELECT run_id,
        coalesce(sum(p.drift_micro) FILTER (in_the_vault AND healed), 0) AS sure_micro,
        coalesce(sum(p.drift_micro) FILTER (in_the_vault), 0) AS perhaps_micro,
        coalesce(sum(p.account_drift_micro)
            FILTER (healed AND cutoff_at >= by_at AND finished_at <= removed_from_at), 0)
            AS account_sure_micro,
        coalesce(sum(p.account_drift_micro)
            FILTER (finished_at > from_at AND (NOT healed OR cutoff_at < removed_by_at)), 0)
            AS account_perhaps_micro
    FROM reconciliations AS r LEFT JOIN (
        SELECT *, from_block IS NOT NULL AS of_the_vault FROM ({PLANTED})
    ) AS p ON true
    CROSS JOIN LATERAL (
        SELECT of_the_vault AND r.block_number >= p.from_block
            AND (NOT healed OR to_block IS NULL OR r.block_number < to_block) AS in_the_vault
    )
    GROUP BY run_id
"""
ITEMS = """
    SELECT run_id, count(*) FILTER (explains) AS explained,
        sum(amount_micro) FILTER (explains) AS explained_micro,
        sum(abs(amount_micro)) FILTER (NOT explains) AS wrong_micro, count(*) FILTER (NOT explains) AS wrong
    FROM reconciliation_items GROUP BY run_id
"""


@invariant(group="chain", unit="reconciliations and planted drifts")
def reconciliation_finds_exactly_the_drift(evidence: Evidence) -> Finding:
    """Every reconciliation finds the drift that was planted, to the micro-dollar, and otherwise none.

    Its figures add up, its verdict follows from them, and each planted drift is found by at least one. One
    that could not learn the custody is no verdict on the vault, but one on the accounts all the same.
    """
    return finding(
        evidence,
        examined=f"""SELECT (SELECT count(*) FROM reconciliations)
            + (SELECT count(*) FROM ({PLANTED}))""",
        breaches=f"""
            WITH expected AS ({RUNS}), items AS ({ITEMS}),
            runs AS (
                SELECT r.*, e.* EXCLUDE (run_id), coalesce(explained_micro, 0) AS explained_micro,
                    coalesce(wrong_micro, 0) AS wrong_micro, coalesce(explained, 0) AS explained,
                    coalesce(wrong, 0) AS wrong,
                    drift_micro > 0 OR accounts_wrong > 0 AS found
                FROM reconciliations AS r JOIN expected AS e USING (run_id) LEFT JOIN items USING (run_id)
            ),
            problems AS ({OF_RUNS} UNION ALL {OF_PLANTED})
            SELECT run_id, fault_id, any_value(r.block_number) AS block_number,
                any_value(r.verdict) AS verdict, any_value(r.difference_micro) AS difference_micro,
                any_value(r.account_drift_micro) AS account_drift_micro,
                any_value(r.sure_micro) AS planted_micro,
                any_value(r.account_sure_micro) AS account_planted_micro,
                list_sort(list(DISTINCT problem)) AS problems
            FROM problems LEFT JOIN runs AS r USING (run_id) GROUP BY run_id, fault_id
        """,
    )


OF_RUNS = f"""
    SELECT run_id, NULL AS fault_id, 'the vault: not the drift that was planted' AS problem
    FROM runs WHERE difference_micro NOT IN (sure_micro, perhaps_micro)
    UNION ALL
    SELECT run_id, NULL, 'the accounts: not the drift that was planted'
    FROM runs WHERE account_drift_micro NOT IN (account_sure_micro, account_perhaps_micro)
        OR (accounts_wrong = 0 AND account_drift_micro > 0)
        OR (accounts_wrong > 0 AND account_perhaps_micro = 0)
    UNION ALL
    SELECT run_id, NULL, 'its figures do not add up'
    FROM runs WHERE difference_micro IS DISTINCT FROM custody_micro - books_micro - in_flight_micro
        OR (difference_micro IS NULL) <> (trouble IS NOT NULL)
        OR drift_micro < greatest(abs(coalesce(difference_micro, 0)), account_drift_micro)
        OR (explained < {ITEMS_MAX} AND explained_micro <> in_flight_micro)
        OR (wrong < {ITEMS_MAX} AND (wrong_micro, wrong) <> (account_drift_micro, accounts_wrong))
    UNION ALL
    SELECT run_id, NULL, 'its verdict is not what it found'
    FROM runs WHERE verdict NOT IN (CASE WHEN found THEN 'alert' WHEN trouble IS NULL THEN 'clean'
        ELSE 'inconclusive' END, if(found, 'pause', 'clean'))
"""
OF_PLANTED = f"""
    SELECT NULL, fault_id, 'planted, and never found'
    FROM ({PLANTED}) AS p
    WHERE NOT EXISTS (
        SELECT 1 FROM runs AS r
        WHERE r.verdict IN ('alert', 'pause') AND CASE p.kind
            WHEN 'pair' THEN r.account_drift_micro >= p.account_drift_micro AND r.finished_at > p.from_at
                AND (p.removed_by_at IS NULL OR r.cutoff_at < p.removed_by_at)
            ELSE r.difference_micro = r.perhaps_micro AND r.block_number >= p.from_block
                AND (p.to_block IS NULL OR r.block_number < p.to_block) END
    )
"""
# Every state the platform was in, until the next one.
STATES = """
    SELECT change_id, paused, sells_while_paused, reason, changed_by, changed_at,
        lag(paused, 1, false) OVER own AS paused_before, lag(changed_at) OVER own AS paused_at,
        lead(changed_at) OVER own AS until_at
    FROM platform_changes WINDOW own AS (ORDER BY change_id)
"""


@invariant(group="chain", unit="reconciliations and states of the platform")
def a_mismatch_pauses_trading(evidence: Evidence) -> Finding:
    """A critical drift, or three lesser ones in a row, stops all money until a clean reconciliation.

    Between a pause and the resumption no transaction and no signature is made. The bounds are exact, by one
    clock: a state is dated by who changes it, when the gate's lock is its own, and what moves money has
    the lock shared before it reads the time and until it commits. So it is not later than the pause, or not
    earlier than the resumption. Trading is resumed by somebody, for a reason, after a reconciliation whose
    cut-off is behind the pause, which was clean and after which nothing was found.
    """
    return finding(
        evidence,
        examined="SELECT (SELECT count(*) FROM reconciliations) + (SELECT count(*) FROM platform_changes)",
        breaches=f"""
            WITH states AS ({STATES}),
            critical AS (
                SELECT coalesce(max(critical_micro), {CRITICAL_MICRO}) AS critical_micro FROM ({PLANTED})
            ),
            problems AS ({OF_FINDINGS} UNION ALL {OF_PAUSES} UNION ALL {OF_RESUMPTIONS})
            SELECT run_id, change_id, transaction_id, tx_hash, moment, problem FROM problems
        """,
    )


# Runs beside each other do not see each other: which of them is the third is not known.
OF_FINDINGS = f"""
    SELECT run_id, NULL AS change_id, NULL AS transaction_id, NULL AS tx_hash, finished_at AS moment,
        'found what must pause trading, and its verdict is another' AS problem
    FROM (
        SELECT *, count(*) FILTER (drift_micro >= {PAUSE_MICRO}) OVER row_of AS drifting,
            coalesce(bool_or(beside) OVER row_of, false) AS unclear
        FROM (
            SELECT *, coalesce(lag(finished_at) OVER (ORDER BY run_id) > cutoff_at, false) AS beside
            FROM reconciliations WHERE verdict <> 'inconclusive'
        ) WINDOW row_of AS (ORDER BY run_id ROWS BETWEEN {PAUSE_AFTER - 1} PRECEDING AND CURRENT ROW)
    ), critical
    WHERE verdict <> 'pause'
        AND (drift_micro >= critical_micro OR (drifting = {PAUSE_AFTER} AND NOT unclear))
    UNION ALL
    SELECT run_id, s.change_id, NULL, NULL, finished_at, 'its verdict is a pause, and trading went on'
    FROM (SELECT * FROM reconciliations WHERE verdict = 'pause') AS r
    ASOF LEFT JOIN states AS s ON r.finished_at >= s.changed_at
    WHERE NOT coalesce(s.paused, false)
    UNION ALL
    SELECT run_id, NULL, NULL, NULL, r.paused_at, 'says that it paused trading, and did not'
    FROM reconciliations AS r ANTI JOIN states AS s ON r.paused_at = s.changed_at AND s.paused
    WHERE r.paused_at IS NOT NULL
"""
OF_PAUSES = """
    SELECT NULL, change_id, transaction_id, NULL, t.created_at, 'money moved while trading was paused'
    FROM states AS s JOIN transactions AS t
        ON t.created_at > s.changed_at AND (t.created_at < s.until_at OR s.until_at IS NULL)
    LEFT JOIN (SELECT transaction_id, side FROM trades) AS d USING (transaction_id)
    WHERE s.paused AND NOT (s.sells_while_paused AND coalesce(d.side = 'sell', false))
    UNION ALL
    SELECT NULL, change_id, NULL, a.tx_hash, a.created_at, 'a payment was signed while trading was paused'
    FROM states AS s JOIN withdrawal_attempts AS a
        ON a.created_at > s.changed_at AND (a.created_at < s.until_at OR s.until_at IS NULL)
    WHERE s.paused
"""
OF_RESUMPTIONS = """
    SELECT NULL, change_id, NULL, NULL, changed_at, 'resumed by nobody, or for no reason'
    FROM states WHERE paused_before AND NOT paused AND (changed_by IS NULL OR coalesce(reason, '') = '')
    UNION ALL
    SELECT NULL, change_id, NULL, NULL, changed_at, 'resumed without a clean reconciliation'
    FROM (SELECT * FROM states WHERE paused_before AND NOT paused) AS s
    ASOF LEFT JOIN (
        SELECT finished_at, verdict, cutoff_at FROM reconciliations WHERE verdict <> 'inconclusive'
    ) AS r ON s.changed_at >= r.finished_at
    WHERE r.verdict IS DISTINCT FROM 'clean' OR r.cutoff_at < s.paused_at
"""
