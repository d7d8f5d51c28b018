"""Outbox, from the side of the books: what the world must hear of is in the outbox once, and nothing else is.

Which event an effect has is said by its dedup key. Some events may be there and need not: a receivable that
was paid off in the step that made it is told to nobody, a deposit's alert may be of a payment that has left
the chain since, and what two reconciliations found at the same time is compared with either of them.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant

# The events that this module knows the causes of; a target may have others.
KNOWN = """(split_part(event_type, '.', 1) IN ('withdrawal', 'notice') OR event_type IN (
    'alert.deposit_suspended', 'alert.deposit_refused', 'alert.receivable', 'alert.reconciliation',
    'alert.dead_letter', 'alert.unknown_payment'))"""

# In all of these: aggregate_type, aggregate_id, event_type, dedup_key, required, and the facts that the
# payload must tell.
OF_WITHDRAWALS = """
    SELECT 'withdrawal' AS aggregate_type, withdrawal_id AS aggregate_id,
        'withdrawal.requested' AS event_type, 'withdrawal:' || withdrawal_id AS dedup_key, true AS required,
        {'withdrawal_id': withdrawal_id, 'address': address, 'amount_micro': amount_micro::VARCHAR} AS facts
    FROM withdrawals
    UNION ALL BY NAME
    -- asked for by the watcher, once for each time that a relay has seen to it
    SELECT 'withdrawal' AS aggregate_type, w.withdrawal_id AS aggregate_id,
        'withdrawal.resend' AS event_type, e.dedup_key, false AS required,
        {'withdrawal_id': w.withdrawal_id, 'address': NULL, 'amount_micro': NULL} AS facts
    FROM outbox_events AS e JOIN withdrawals AS w ON e.aggregate_id = w.withdrawal_id
    WHERE e.event_type = 'withdrawal.resend' AND starts_with(e.dedup_key, 'withdrawal:' || w.withdrawal_id)
        AND try_cast(split_part(e.dedup_key, ':', 3) AS BIGINT) BETWEEN 1 AND w.sends
"""
OF_ENDS = """
    SELECT 'inbox' AS aggregate_type, t.user_id AS aggregate_id,
        if(t.kind = 'return_withdraw', 'notice.withdrawal_returned', 'notice.withdrawal_paid') AS event_type,
        'notice:' || t.transaction_id AS dedup_key, true AS required,
        {'user_id': t.user_id, 'amount_micro': sum(debit_micro)::VARCHAR} AS facts
    FROM transactions AS t JOIN entries AS e USING (transaction_id) JOIN accounts AS a USING (account_id)
    -- paid after it was returned, the money is not in flight but the user's: a receivable, no notice
    WHERE t.kind IN ('withdraw_final', 'return_withdraw') AND a.kind = 'withdraw_in_flight'
    GROUP BY t.transaction_id, t.user_id, t.kind HAVING sum(debit_micro) > 0
"""
DEPOSIT_FACTS = "{'amount_micro': amount_micro::VARCHAR, 'deposit_id': deposit_id::VARCHAR}"
OF_DEPOSITS = f"""
    SELECT 'inbox' AS aggregate_type, user_id AS aggregate_id, 'notice.deposit_credited' AS event_type,
        'notice:' || transaction_id AS dedup_key, true AS required,
        {DEPOSIT_FACTS} AS facts
    FROM deposits WHERE user_id IS NOT NULL AND transaction_id IS NOT NULL
    UNION ALL BY NAME
    SELECT 'inbox' AS aggregate_type, user_id AS aggregate_id, 'notice.deposit_reversed' AS event_type,
        'notice:reversed:' || deposit_id AS dedup_key, true AS required,
        {DEPOSIT_FACTS} AS facts
    FROM deposits WHERE status = 'reversed' AND user_id IS NOT NULL
    UNION ALL BY NAME
    -- also of those that were given to their owner, or reversed, afterwards
    SELECT 'deposit' AS aggregate_type, deposit_id::VARCHAR AS aggregate_id,
        if(d.transaction_id IS NULL, 'alert.deposit_refused', 'alert.deposit_suspended') AS event_type,
        'deposit:' || deposit_id AS dedup_key, true AS required,
        {DEPOSIT_FACTS} AS facts
    FROM deposits AS d LEFT JOIN transactions AS t USING (transaction_id)
    WHERE d.status <> 'seen' AND t.user_id IS NULL
        AND (t.transaction_id IS NOT NULL OR d.transaction_id IS NULL)
"""
OF_RECEIVABLES = """
    SELECT 'receivable' AS aggregate_type, receivable_id::VARCHAR AS aggregate_id,
        'alert.receivable' AS event_type, 'receivable:' || receivable_id AS dedup_key,
        owed_micro > 0 AS required, {'user_id': user_id} AS facts
    FROM receivables
"""
OF_RECONCILIATIONS = """
    SELECT 'reconciliation' AS aggregate_type, run_id::VARCHAR AS aggregate_id,
        'alert.reconciliation' AS event_type, 'reconciliation:' || run_id AS dedup_key,
        NOT beside AS required,
        {'verdict': verdict, 'drift_micro': drift_micro::VARCHAR, 'run_id': run_id::VARCHAR} AS facts
    FROM (
        SELECT *, coalesce(lag(finished_at) OVER by_run > cutoff_at, false) AS beside,
            verdict <> lag(verdict, 1, 'clean') OVER by_run
            OR drift_micro <> lag(drift_micro, 1, 0) OVER by_run
            OR paused_at IS NOT NULL AS news
        FROM reconciliations WINDOW by_run AS (ORDER BY run_id)
    )
    WHERE news OR beside
"""
# A replay counts attempts anew and the lease token goes on: the difference is the token of the last death.
OF_DEATHS = """
    SELECT 'dead_letter' AS aggregate_type, event_id || ':' || token AS aggregate_id,
        'alert.dead_letter' AS event_type, 'dead_letter:' || event_id || ':' || token AS dedup_key, required,
        {'event_id': event_id::VARCHAR} AS facts
    FROM (
        SELECT event_id, lease_token AS token, true AS required, event_type FROM outbox_events
        WHERE status = 'dead'
        UNION ALL
        SELECT event_id, lease_token - attempts, true, event_type FROM outbox_events
        WHERE lease_token > attempts
        UNION ALL
        SELECT e.event_id, try_cast(split_part(a.dedup_key, ':', 3) AS BIGINT) AS earlier, false, e.event_type
        FROM outbox_events AS a JOIN outbox_events AS e
            ON try_cast(split_part(a.dedup_key, ':', 2) AS BIGINT) = e.event_id
        WHERE a.event_type = 'alert.dead_letter' AND earlier BETWEEN 1 AND e.lease_token - e.attempts - 1
    )
    WHERE event_type <> 'alert.dead_letter'
"""
OF_UNKNOWN_PAYMENTS = """
    SELECT 'payment' AS aggregate_type, tx_hash || ':' || log_index AS aggregate_id,
        'alert.unknown_payment' AS event_type, 'payment:' || tx_hash || ':' || log_index AS dedup_key,
        h.drained AND p.block_number <= h.number - h.confirmations AS required, {'tx_hash': tx_hash} AS facts
    FROM chain_payments AS p CROSS JOIN chain_head AS h
    ANTI JOIN withdrawals AS w ON p.withdrawal_id = w.withdrawal_id AND p.receiver = w.address
        AND p.amount_micro = w.amount_micro
    UNION ALL BY NAME
    -- of a block that has left the chain
    SELECT aggregate_type, aggregate_id, event_type, dedup_key, false AS required,
        {'tx_hash': split_part(dedup_key, ':', 2)} AS facts
    FROM outbox_events ANTI JOIN chain_payments ON dedup_key = 'payment:' || tx_hash || ':' || log_index
    WHERE event_type = 'alert.unknown_payment'
"""
CAUSES = (
    OF_WITHDRAWALS,
    OF_ENDS,
    OF_DEPOSITS,
    OF_RECEIVABLES,
    OF_RECONCILIATIONS,
    OF_DEATHS,
    OF_UNKNOWN_PAYMENTS,
)
EXPECTED = " UNION ALL ".join(
    "SELECT aggregate_type, aggregate_id, event_type, dedup_key, required, to_json(facts) AS facts"
    f" FROM ({cause})"
    for cause in CAUSES
)


@invariant(group="outbox", unit="effects and events")
def external_effects_are_in_the_outbox_once(evidence: Evidence) -> Finding:
    """Each effect that the world must hear of has one event that tells it, and no event lacks its effect.

    Those are: withdrawals and their ends; deposits credited, reversed, in suspense and refused; what users
    owe; each change of what reconciliations found; each death of an event; payments that nobody asked for.
    """
    evidence.db.execute(f"CREATE OR REPLACE TEMP TABLE expected_events AS {EXPECTED}")
    try:
        return finding(
            evidence,
            examined="""SELECT (SELECT count(*) FROM expected_events WHERE required)
                + (SELECT count(*) FROM outbox_events)""",
            breaches=BREACHES,
        )
    finally:
        evidence.db.execute("DROP TABLE expected_events")


BREACHES = f"""
    WITH problems AS (
        SELECT dedup_key, NULL AS event_id, event_type, 'no event' AS problem
        FROM expected_events ANTI JOIN outbox_events USING (dedup_key) WHERE required
        UNION ALL
        SELECT dedup_key, event_id, o.event_type, 'its key belongs to another effect'
        FROM outbox_events AS o JOIN expected_events AS e USING (dedup_key)
        WHERE (o.aggregate_type, o.aggregate_id, o.event_type)
            IS DISTINCT FROM (e.aggregate_type, e.aggregate_id, e.event_type)
        UNION ALL
        SELECT dedup_key, event_id, o.event_type, 'it tells something else'
        FROM outbox_events AS o JOIN expected_events AS e USING (dedup_key, event_type),
            LATERAL (SELECT unnest(json_keys(e.facts)) AS name)
        WHERE (e.facts ->> name) <> coalesce(o.payload::JSON ->> name, '')
        UNION ALL
        SELECT dedup_key, event_id, event_type, 'an event without its effect'
        FROM outbox_events ANTI JOIN expected_events USING (dedup_key) WHERE {KNOWN}
        UNION ALL
        SELECT dedup_key, max(event_id), any_value(event_type), 'more than one event'
        FROM outbox_events GROUP BY dedup_key HAVING count(*) > 1
        UNION ALL
        SELECT dedup_key, NULL, any_value(event_type), 'two effects under one key'
        FROM expected_events WHERE required GROUP BY dedup_key HAVING count(*) > 1
    )
    SELECT dedup_key, max(event_id) AS event_id, max(event_type) AS event_type,
        list_sort(list(DISTINCT problem)) AS problems
    FROM problems GROUP BY dedup_key
"""
