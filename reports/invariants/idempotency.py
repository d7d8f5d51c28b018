"""Idempotency: one key is one operation, whose effect exists once, whole, and exactly if it was acknowledged.

Outcomes are those of the contract: an `ok` exists exactly once from then on; a `fail` never; an `info` is
zero or one whole effect, which the books decide by its key. A request that the proxy sent again
(faults.jsonl, duplicate_*) is a cause of its own: its copy may be executed where the client was put off.

Scope of a key: (user, key). Codes are those of docs/api.md.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant

STORED = (
    "('insufficient_funds', 'insufficient_shares', 'limit_exceeded', 'market_closed', 'trade_too_small',"
    " 'trade_too_large', 'wallet_not_linked')"
)
PUT_OFF = "('rate_limited', 'overloaded', 'trading_paused', 'contention')"
TRADING = "('buy_amount', 'buy_shares', 'sell', 'buy_closed', 'reuse_key')"
# How long before the end of its budget a client may give up, because its next pause would be too long.
LAST_PAUSE_S = 2.0

# A key as its clients saw it. An answer is an ok or a refusal that the system keeps under the key.
ASKED = f"""
CREATE TEMP TABLE asked AS
WITH seen AS (
    SELECT *, type = 'ok' OR (type = 'fail' AND code IN {STORED}) AS answer
    FROM attempts WHERE key IS NOT NULL
)
SELECT user_id, key, count(*) AS attempts, bool_and(type = 'fail') AS refused,
    bool_or(type = 'fail' AND (code IS NULL OR code IN {PUT_OFF})) AS put_off,
    count(*) FILTER (answer) AS answers, count(*) FILTER (answer AND NOT replayed) AS first_answers,
    min(reply_hash) FILTER (answer) AS reply_hash, max(reply_hash) FILTER (answer) AS reply_hash_max,
    min(status) FILTER (answer) AS status, max(status) FILTER (answer) AS status_max,
    min(request_hash) FILTER (answer) AS request_hash, max(request_hash) FILTER (answer) AS request_hash_max
FROM seen GROUP BY user_id, key
"""
# Keys of requests that the proxy sent a second time.
COPIED = """
CREATE TEMP TABLE copied AS
SELECT DISTINCT evidence ->> 'key' AS key
FROM faults WHERE state = 'landed' AND starts_with(fault, 'duplicate') AND evidence ->> 'key' IS NOT NULL
"""
# What was there before the run began is not judged by the history of the run.
IN_THIS_RUN = "created_at >= make_timestamp({unix_us})"


def prepare(evidence: Evidence) -> None:
    """Make what the checks of this module share."""
    if "idempotency" not in evidence.memo:
        evidence.memo["idempotency"] = True
        evidence.db.execute(ASKED)
        evidence.db.execute(COPIED)


def in_this_run(evidence: Evidence) -> str:
    """The condition that a row of the books was made since the run began, by the clocks of both machines."""
    return IN_THIS_RUN.format(unix_us=evidence.plan.unix_ns // 1000)


@invariant(group="idempotency", unit="keys")
def a_key_applies_once(evidence: Evidence) -> Finding:
    """However often a key is sent, its effect exists at most once."""
    prepare(evidence)
    return finding(
        evidence,
        examined="SELECT count(*) FROM asked",
        breaches="""
            WITH effects AS (
                SELECT 't' AS what, user_id, idempotency_key AS key, transaction_id FROM transactions
                WHERE idempotency_key IS NOT NULL
                UNION ALL
                SELECT 'd', user_id, idempotency_key, transaction_id FROM trades
                WHERE idempotency_key IS NOT NULL
            ),
            suspects AS (  -- by a number first: grouping a million pairs of texts takes four times as long
                SELECT what, hash(user_id, key) AS place FROM effects GROUP BY ALL HAVING count(*) > 1
            )
            SELECT user_id, key, count(*) FILTER (what = 't') AS transactions,
                count(*) FILTER (what = 'd') AS trades,
                list_sort(list(DISTINCT transaction_id)) AS transaction_ids
            FROM effects WHERE hash(user_id, key) IN (SELECT place FROM suspects)
            GROUP BY user_id, key HAVING transactions > 1 OR trades > 1
        """,
    )


@invariant(group="idempotency", unit="refused operations")
def rejected_operations_leave_no_trace(evidence: Evidence) -> Finding:
    """An operation that was refused at every attempt has no effect."""
    prepare(evidence)
    refused = """
        SELECT o.operation, o.user_id, o.key, o.code FROM operations AS o JOIN asked AS a USING (user_id, key)
        WHERE o.type = 'fail' AND NOT (a.put_off AND o.key IN (SELECT key FROM copied))
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM ({refused})",
        breaches=f"""
            WITH effects AS (
                SELECT user_id, idempotency_key AS key, transaction_id FROM transactions
                WHERE idempotency_key IS NOT NULL
                UNION
                SELECT user_id, idempotency_key, transaction_id FROM idempotency_keys
                WHERE status < 300 OR transaction_id IS NOT NULL
            )
            SELECT r.operation, any_value(r.user_id) AS user_id, any_value(r.key) AS key,
                any_value(r.code) AS code, min(e.transaction_id) AS transaction_id
            FROM ({refused}) AS r JOIN asked AS a USING (user_id, key) JOIN effects AS e USING (user_id, key)
            WHERE a.refused GROUP BY r.operation
        """,
    )


@invariant(group="idempotency", unit="answers")
def retries_get_the_first_reply(evidence: Evidence) -> Finding:
    """All answers under a key are the stored one, to the byte, and all but one say that they are replays."""
    prepare(evidence)
    return finding(
        evidence,
        examined="SELECT sum(answers) FROM asked",
        breaches="""
            WITH odd AS (
                SELECT a.user_id, a.key, k.status AS stored_status, k.body_hash AS stored_hash
                FROM asked AS a
                LEFT JOIN idempotency_keys AS k ON a.user_id = k.user_id AND a.key = k.idempotency_key
                WHERE a.answers > 0 AND a.request_hash = a.request_hash_max AND (
                    a.reply_hash <> a.reply_hash_max OR a.status <> a.status_max OR a.first_answers > 1
                    OR k.body_hash <> a.reply_hash OR k.status <> a.status)
            )
            SELECT o.user_id, o.key, list({'operation': t.operation, 'attempt': t.attempt, 'status': t.status,
                'reply_hash': t.reply_hash, 'replayed': t.replayed} ORDER BY t.complete_ns) AS answers,
                any_value(o.stored_status) AS stored_status, any_value(o.stored_hash) AS stored_hash
            FROM odd AS o JOIN attempts AS t USING (user_id, key)
            WHERE t.type = 'ok' OR (t.type = 'fail' AND t.code IN """
        + STORED
        + """)
            GROUP BY o.user_id, o.key
        """,
    )


@invariant(group="idempotency", unit="keys")
def a_key_belongs_to_one_request(evidence: Evidence) -> Finding:
    """A key answers one request only, and its effect is what that request asked for."""
    prepare(evidence)
    return finding(
        evidence,
        examined="SELECT count(*) FROM asked WHERE answers > 0 OR NOT refused",
        breaches=f"""
            WITH asking AS (
                SELECT * FROM operations WHERE key IS NOT NULL
                    AND (type <> 'fail' OR code IS NULL OR code IN {PUT_OFF})
            ),
            funded AS (
                SELECT x.user_id, x.idempotency_key AS key, c.user_id AS to_user,
                    e.credit_micro AS amount_micro
                FROM transactions AS x
                JOIN entries AS e USING (transaction_id)
                JOIN accounts AS c USING (account_id)
                WHERE x.kind = 'fund' AND c.kind IN ('user_available', 'house_treasury')
            ),
            withdrawn AS (
                SELECT w.user_id, x.idempotency_key AS key, w.amount_micro
                FROM withdrawals AS w JOIN transactions AS x USING (transaction_id)
            )
            SELECT user_id, key, 'two requests were answered' AS problem, NULL AS trade_id
            FROM asked WHERE request_hash <> request_hash_max
            UNION ALL
            SELECT d.user_id, d.idempotency_key, 'the trade is not what was asked', d.trade_id
            FROM trades AS d
            SEMI JOIN (SELECT * FROM asking WHERE action IN {TRADING}) AS o
                ON d.user_id = o.user_id AND d.idempotency_key = o.key
            ANTI JOIN asking AS o
                ON d.user_id = o.user_id AND d.idempotency_key = o.key AND d.market_id = o.market
                AND d.outcome = o.outcome AND d.side = o.side
                AND d.amount_micro IS NOT DISTINCT FROM o.amount_micro
                AND d.limit_micro IS NOT DISTINCT FROM o.limit_micro
                AND (o.shares_micro IS NULL OR d.shares_micro = o.shares_micro)
            UNION ALL
            SELECT f.user_id, f.key, 'the funding is not what was asked', NULL
            FROM funded AS f
            SEMI JOIN (SELECT * FROM asking WHERE action = 'fund') AS o USING (user_id, key)
            ANTI JOIN asking AS o ON f.user_id = o.user_id AND f.key = o.key
                AND f.to_user IS NOT DISTINCT FROM o.to_user AND f.amount_micro = o.amount_micro
            UNION ALL
            SELECT w.user_id, w.key, 'the withdrawal is not what was asked', NULL
            FROM withdrawn AS w
            SEMI JOIN (SELECT * FROM asking WHERE action = 'withdraw') AS o USING (user_id, key)
            ANTI JOIN (SELECT * FROM asking WHERE action = 'withdraw') AS o
                ON w.user_id = o.user_id AND w.key = o.key AND w.amount_micro = o.amount_micro
        """,
    )


@invariant(group="idempotency", unit="operations")
def every_key_reaches_an_answer(evidence: Evidence) -> Finding:
    """A client that asks long enough gets an answer: no key stays unknown, or in progress, for ever.

    A breach is an operation that was pursued for its whole budget (less the last pause), in vain, and given
    up when no fault was in effect and the last was healed for longer than the plan's recovery_s; or a key
    whose stored answer has no status. Who gave up early, because the load ended, is no breach.
    """
    budget_s = evidence.plan.plan.load.answer_budget_s
    pursued_ns = int(max(budget_s - LAST_PAUSE_S, budget_s / 2) * 1e9)
    recovery_ns = int(evidence.plan.plan.service.recovery_s * 1e9)
    return finding(
        evidence,
        examined="SELECT count(*) FROM operations WHERE key IS NOT NULL",
        breaches=f"""
            SELECT operation, user_id, key, attempts, (answer_ns - first_invoke_ns) / 1e9 AS pursued_s, code,
                error FROM operations AS o
            WHERE key IS NOT NULL AND type = 'info' AND answer_ns - first_invoke_ns >= {pursued_ns}
                AND NOT EXISTS (
                    SELECT 1 FROM fault_windows AS w
                    WHERE w.felt AND o.answer_ns >= w.from_ns
                        AND (w.to_ns IS NULL OR o.answer_ns <= w.to_ns + {recovery_ns})
                )
            UNION ALL
            SELECT NULL, user_id, idempotency_key, NULL, NULL, 'no stored status', NULL
            FROM idempotency_keys WHERE status IS NULL
        """,
    )
