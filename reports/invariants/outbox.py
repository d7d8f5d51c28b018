"""Outbox: what the world was told, held against the outbox, the record of the receiver, and the chain.

The receiver stands for whoever gets alerts and notices: it writes every arrival down before it answers, and
applies each key once. What a withdrawal's event brings about is seen on the chain.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.planted_drift import PLANTED_WORDS

# Who is told by a message; the other events are told to the chain.
MESSAGES = "split_part(event_type, '.', 1) IN ('alert', 'notice')"


@invariant(group="outbox", unit="events")
def the_outbox_delivers_everything(evidence: Evidence) -> Finding:
    """Every event is delivered in the end, and each alert and notice was taken by its receiver.

    What was taken under its key had its title, where both have one.
    What was written only after the load was stopped has had less than the whole drain: it is no loss yet,
    but the run is then inconclusive. A dead event is a loss whenever it was written: the drain replays.
    """
    plan = evidence.plan
    stopped_us = (plan.unix_ns + evidence.load_ended_ns - plan.monotonic_ns) // 1000
    late = f"status = 'pending' AND created_at > make_timestamp({stopped_us})"
    waiting = evidence.scalar(f"SELECT count(*) FROM outbox_events WHERE {late}")
    return finding(
        evidence,
        examined="SELECT count(*) FROM outbox_events",
        breaches=f"""
            WITH taken AS (
                SELECT key AS dedup_key, max(title) AS title FROM deliveries WHERE applied GROUP BY key
            ),
            told AS (
                SELECT e.*, t.dedup_key IS NOT NULL AS taken, t.title AS taken_title,
                    payload::JSON ->> 'title' AS title
                FROM outbox_events AS e LEFT JOIN taken AS t USING (dedup_key)
            )
            SELECT event_id, event_type, aggregate_type, aggregate_id, dedup_key, status, attempts,
                last_error, CASE WHEN status <> 'delivered' THEN 'not delivered'
                    WHEN taken THEN 'its receiver took another'
                    ELSE 'its receiver never took it' END AS problem
            FROM told
            WHERE if(status = 'delivered', {MESSAGES} AND (NOT taken OR title <> taken_title), NOT ({late}))
        """,
        unresolved=f"{waiting} events were written after the load was stopped and are not delivered"
        if waiting
        else None,
    )


@invariant(group="outbox", unit="payments, attempts and keys")
def chain_effects_happen_once(evidence: Evidence) -> Finding:
    """However often it is sent, a withdrawal is paid once, by one transaction, and a key is applied once."""
    return finding(
        evidence,
        examined="""SELECT (SELECT count(*) FROM chain_payments) + (SELECT count(*) FROM withdrawal_attempts)
            + (SELECT count(DISTINCT key) FROM deliveries WHERE applied)""",
        breaches="""
            SELECT 'one word, paid again' AS problem, word, any_value(withdrawal_id) AS withdrawal_id,
                NULL AS key, count(*) AS times, list(tx_hash ORDER BY block_number, log_index) AS transactions
            FROM chain_payments GROUP BY word HAVING count(*) > 1
            UNION ALL
            SELECT 'paid by two of its transactions', NULL, a.withdrawal_id, NULL, count(*),
                list(tx_hash ORDER BY block_number, log_index)
            FROM withdrawal_attempts AS a JOIN chain_payments USING (tx_hash)
            GROUP BY a.withdrawal_id HAVING count(*) > 1
            UNION ALL
            SELECT 'one key, applied again', NULL, NULL, key, count(*), NULL
            FROM deliveries WHERE applied AND key IS NOT NULL GROUP BY key HAVING count(*) > 1
        """,
    )


@invariant(group="outbox", unit="events behind another of their aggregate")
def events_leave_in_order(evidence: Evidence) -> Finding:
    """Events of one aggregate leave in their order, each after the one before it was delivered and taken.

    By the outbox: none was claimed while an earlier one is open, none marked before an earlier one. By the
    receiver: none arrived before an earlier one was applied. That a repetition arrives late is no breach.
    """
    followers = f"""
        WITH heard AS (
            SELECT key AS dedup_key, min(number) AS first_number,
                min(number) FILTER (applied) AS applied_number
            FROM deliveries GROUP BY key
        ),
        told AS (
            SELECT e.*, first_number, if({MESSAGES}, applied_number, NULL) AS applied_number
            FROM outbox_events AS e LEFT JOIN heard USING (dedup_key)
        )
        SELECT event_id, aggregate_type, aggregate_id, event_type, lease_token, delivered_at, first_number,
            lag(event_id) OVER own AS before_id, lag(status) OVER own AS before_status,
            max(delivered_at) OVER before AS before_delivered_at,
            max(applied_number) OVER before AS before_number
        FROM told
        WINDOW own AS (PARTITION BY aggregate_type, aggregate_id ORDER BY event_id),
            before AS (own ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        QUALIFY before_id IS NOT NULL
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM ({followers})",
        breaches=f"""
            SELECT event_id, aggregate_type, aggregate_id, event_type, before_id, delivered_at,
                before_delivered_at, first_number AS arrival, before_number AS arrival_before,
                CASE WHEN before_status <> 'delivered' AND lease_token > 0
                    THEN 'begun before the one before it was delivered'
                    WHEN delivered_at <= before_delivered_at THEN 'delivered before the one before it'
                    ELSE 'arrived before the one before it was applied' END AS problem
            FROM ({followers})
            WHERE (before_status <> 'delivered' AND lease_token > 0) OR delivered_at <= before_delivered_at
                OR first_number <= before_number
        """,
    )


@invariant(group="outbox", unit="arrivals and payments")
def nothing_leaves_an_aborted_transaction(evidence: Evidence) -> Finding:
    """Whatever reached the world belongs to an event, or a signed transaction, that is in the books.

    An event was claimed before it was sent. Not the system's are the payments that the trial made itself to
    plant a drift.
    """
    return finding(
        evidence,
        examined="SELECT (SELECT count(*) FROM deliveries) + (SELECT count(*) FROM chain_payments)",
        breaches=f"""
            SELECT 'an arrival without its event' AS problem, key, min(number) AS arrival,
                count(*) AS times, any_value(title) AS title, NULL AS withdrawal_id, NULL AS tx_hash
            FROM deliveries ANTI JOIN
                (SELECT dedup_key AS key FROM outbox_events WHERE {MESSAGES} AND lease_token > 0) USING (key)
            GROUP BY key
            UNION ALL
            SELECT 'a payment that was never signed in the books', NULL, NULL, NULL, NULL,
                coalesce(p.withdrawal_id, p.word), p.tx_hash
            FROM chain_payments AS p
            ANTI JOIN withdrawal_attempts AS a
                ON p.tx_hash = a.tx_hash AND p.withdrawal_id = a.withdrawal_id
            WHERE p.word NOT IN ({PLANTED_WORDS})
        """,
    )
