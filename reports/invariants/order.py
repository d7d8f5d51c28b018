"""Trades in time: what happened first by the clock happened first in the books, and readers see it so.

The order is the books' (versions), the time is the history's. A reader that saw less than was known when it
asked is for reads_never_go_back; whether one order explains all that was seen, by everyone, in markets and
accounts together, is for trades_are_strictly_serializable.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import WITNESS_MAX, Finding, invariant
from reports.serializability import NEVER, Breaches, Integers, Links, find_breaches

READS = "('read_market', 'read_account', 'read_ledger')"
TRADING = "('buy_amount', 'buy_shares', 'sell', 'buy_closed')"

# What ok replies told of versions. A trade tells its market's and its user's, a funding its receiver's, a
# withdrawal its user's. Of a withdrawal's states one only is left for good: once under way, or ended, it is
# not merely reserved any more; what a block had paid may be on its way again when the block has gone.
TOLD = f"""
CREATE TEMP TABLE told AS
WITH replies AS (
    SELECT operation, action IN {READS} OR action = 'read_withdrawal' AS is_read, invoke_ns, complete_ns,
        market_id, market_version,
        CASE WHEN action = 'fund' THEN coalesce(to_user, r_user_id) ELSE user_id END AS owner,
        account_version, withdrawal_id, withdrawal_status
    FROM attempts WHERE type = 'ok'
)
SELECT operation, is_read, invoke_ns, complete_ns, 'market ' || market_id AS object, market_version AS version
FROM replies WHERE market_version IS NOT NULL
UNION ALL
SELECT operation, is_read, invoke_ns, complete_ns, 'account of ' || owner, account_version
FROM replies WHERE account_version IS NOT NULL AND owner IS NOT NULL
UNION ALL
SELECT operation, is_read, invoke_ns, complete_ns, 'withdrawal ' || withdrawal_id,
    (withdrawal_status <> 'reserved')::BIGINT
FROM replies WHERE withdrawal_id IS NOT NULL AND withdrawal_status IS NOT NULL
"""
# Who wrote which version. `operations.end_ns` is null where no ok came; then only the invocation bounds it.
WRITTEN = f"""
WITH effects AS (
    SELECT t.user_id, t.idempotency_key, t.transaction_id, coalesce(d.market_id, t.market_id) AS market_id,
        CASE WHEN t.kind = 'create_market' THEN 0 ELSE d.market_version END AS market_version
    FROM transactions AS t LEFT JOIN trades AS d USING (transaction_id)
),
own AS (
    SELECT e.transaction_id, e.account_id, e.account_version
    FROM entries AS e SEMI JOIN (SELECT * FROM accounts WHERE kind = 'user_available') USING (account_id)
)
SELECT o.operation, o.action, o.first_invoke_ns AS invoke_ns, o.end_ns, false AS is_read,
    CASE WHEN f.market_version IS NOT NULL THEN f.market_id END AS market_id, f.market_version,
    own.account_id, own.account_version
FROM (
    SELECT * FROM operations WHERE action IN ('fund', 'create_market', 'withdraw') OR action IN {TRADING}
) AS o
JOIN effects AS f ON f.user_id = o.user_id AND f.idempotency_key = o.key
LEFT JOIN own ON own.transaction_id = f.transaction_id
UNION ALL
-- credited some time after it was sent: the answer to its client is the node's, and no bound
SELECT o.operation, o.action, o.first_invoke_ns, NULL, false, NULL, NULL, own.account_id, own.account_version
FROM (SELECT * FROM operations WHERE action = 'deposit') AS o
JOIN deposits AS d ON d.tx_hash = o.tx_hash
JOIN own ON own.transaction_id = d.transaction_id
UNION ALL
SELECT o.operation, o.action, o.first_invoke_ns, o.end_ns, false, m.market_id, m.closed_version, NULL, NULL
FROM operations AS o JOIN markets AS m ON m.market_id = o.market
WHERE o.action = 'close_market' AND o.type <> 'fail' AND m.closed_version IS NOT NULL
-- of several closings it is not known which one made the version
QUALIFY count(*) OVER (PARTITION BY m.market_id) = 1
"""
READ = f"""
SELECT t.operation, t.action, t.invoke_ns, t.complete_ns, true, t.market_id, t.market_version,
    CASE WHEN t.account_version IS NOT NULL THEN a.account_id END, t.account_version
FROM attempts AS t LEFT JOIN accounts AS a ON a.user_id = t.user_id AND a.kind = 'user_available'
WHERE t.type = 'ok' AND t.action IN {READS} AND coalesce(t.market_version, t.account_version) IS NOT NULL
"""
# In the order of time; what is told in the nanosecond in which a read begins is not before it.
WENT_BACK = """
WITH moments AS (
    SELECT object, complete_ns AS at_ns, true AS tells, version, NULL AS operation FROM told
    UNION ALL
    SELECT object, invoke_ns, false, version, operation FROM told WHERE is_read
)
SELECT object, version, version_told, at_ns AS invoke_ns, operation FROM (
    SELECT *, max(CASE WHEN tells THEN version END) OVER (
        PARTITION BY object ORDER BY at_ns, tells ROWS UNBOUNDED PRECEDING
    ) AS version_told FROM moments
) WHERE NOT tells AND version < version_told
"""
# A read of a version must show what the books have at it; closing makes a version without new prices.
NEVER_WAS = f"""
WITH seen AS (SELECT * FROM attempts WHERE type = 'ok' AND action IN {READS})
SELECT s.operation, s.market_id, s.market_version, NULL AS account_version,
    s.prices_micro AS prices_seen_micro, p.prices_micro, NULL AS balance_seen_micro, NULL AS balance_micro
FROM (SELECT * FROM seen WHERE market_version IS NOT NULL AND prices_micro IS NOT NULL) AS s
ASOF LEFT JOIN prices AS p ON p.market_id = s.market_id AND p.market_version <= s.market_version
LEFT JOIN markets AS m ON m.market_id = s.market_id
WHERE s.prices_micro IS DISTINCT FROM p.prices_micro OR s.market_version > coalesce(m.version, -1)
UNION ALL
SELECT s.operation, NULL, NULL, s.account_version, NULL, NULL, s.balance_micro, e.balance_after_micro
FROM seen AS s LEFT JOIN accounts AS a ON a.user_id = s.user_id AND a.kind = 'user_available'
LEFT JOIN entries AS e ON e.account_id = a.account_id AND e.account_version = s.account_version
WHERE s.account_version IS NOT NULL AND s.balance_micro IS NOT NULL
    AND s.balance_micro IS DISTINCT FROM CASE WHEN s.account_version = 0 THEN 0 ELSE e.balance_after_micro END
"""


@invariant(group="trades", unit="operations")
def trades_are_strictly_serializable(evidence: Evidence) -> Finding:
    """One order of trades and reads follows every version and the clock, and every read saw a state of it.

    Reads take part as long as none went back: those that did are witnesses against themselves already, and
    what is left to judge is the order of the trades.
    """
    parts = [WRITTEN] if reads_never_go_back(evidence).violations else [WRITTEN, READ]
    evidence.db.execute(
        "CREATE OR REPLACE TEMP TABLE ordered AS SELECT *, row_number() OVER () - 1 AS number FROM ("
        + " UNION ALL ".join(f"({part})" for part in parts)
        + ")"
    )
    breaches = _breaches(evidence)
    cycle = _cycle(evidence, breaches) if breaches else []
    never_was = finding(evidence, examined="SELECT 0", breaches=NEVER_WAS)
    return Finding(
        examined=evidence.scalar("SELECT count(*) FROM ordered"),
        violations=(breaches.count if breaches else 0) + never_was.violations,
        witness=[*cycle, *never_was.witness][:WITNESS_MAX],
    )


def _breaches(evidence: Evidence) -> Breaches | None:
    """The rows of `ordered`, by their number, through the search for an order."""
    table = evidence.db.execute(
        "SELECT invoke_ns, coalesce(end_ns, ?) AS end_ns, is_read, coalesce(market_id, -1) AS market_id,"
        " coalesce(market_version, -1) AS market_version, coalesce(account_id, -1) AS account_id,"
        " coalesce(account_version, -1) AS account_version FROM ordered ORDER BY number",
        [int(NEVER)],
    ).fetchnumpy()
    if not len(table["invoke_ns"]):
        return None
    columns: dict[str, Integers] = {name: np.asarray(values, np.int64) for name, values in table.items()}
    kinds = []
    for kind in ("market", "account"):
        linked = np.flatnonzero((columns[f"{kind}_id"] >= 0) & (columns[f"{kind}_version"] >= 0))
        levels = 2 * columns[f"{kind}_version"] + columns["is_read"]
        kinds.append(Links(linked, columns[f"{kind}_id"][linked], levels[linked]))
    return find_breaches(columns["invoke_ns"], columns["end_ns"], kinds)


def _cycle(evidence: Evidence, breaches: Breaches) -> list[dict[str, Any]]:
    """The cycle as rows, each saying why it comes before the next, the last before the first."""
    rows = [
        evidence.rows("SELECT * EXCLUDE (is_read, number) FROM ordered WHERE number = ?", number)[0]
        for number in breaches.cycle
    ]
    told = []
    for number, row in enumerate(rows):
        following = rows[(number + 1) % len(rows)]
        by_time = breaches.by_time and number == len(rows) - 1
        reason = "ended before the first began" if by_time else _lower(row, following)
        told.append(
            {name: value for name, value in row.items() if value is not None} | {"before_next": reason}
        )
    return told


def _lower(row: dict[str, Any], following: dict[str, Any]) -> str:
    """The object in which a row has the lower version, or reads what the following makes."""
    for kind in ("market", "account"):
        mine, other = row[f"{kind}_version"], following[f"{kind}_version"]
        same = row[f"{kind}_id"] is not None and row[f"{kind}_id"] == following[f"{kind}_id"]
        if same and mine is not None and other is not None and mine <= other:
            return f"by the versions of {kind} {row[f'{kind}_id']}"
    return "by versions"


@invariant(group="trades", unit="reads", needs_state=False)
def reads_never_go_back(evidence: Evidence) -> Finding:
    """No read shows a version older than one that any reply had told before the read began."""
    if "told" not in evidence.memo:
        evidence.db.execute(TOLD)
        evidence.memo["told"] = finding(
            evidence, examined="SELECT count(*) FROM told WHERE is_read", breaches=WENT_BACK
        )
    found: Finding = evidence.memo["told"]
    return replace(found, witness=[row | _teller(evidence, row) for row in found.witness])


def _teller(evidence: Evidence, row: dict[str, Any]) -> dict[str, Any]:
    """The earliest reply that had told the newer version."""
    return evidence.rows(
        "SELECT operation AS told_by, complete_ns AS told_ns FROM told WHERE object = ? AND version = ?"
        " ORDER BY complete_ns, operation LIMIT 1",
        row["object"],
        row["version_told"],
    )[0]
