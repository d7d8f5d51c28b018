"""One reading of the books while they are in use: the invariants that hold at any instant, in one snapshot.

1. Accounts, markets and positions are read whole: there are about as many as users.
2. Entries and trades are read once: of every account the entries above the version that the reading before
   saw, of every market the trades likewise. Versions are dense and follow the order of the commits, so these
   are exactly the rows that are new, and each is found by the key that makes versions unique.
3. What is new, added to the last snapshot, must give this one: balances, versions.

`examined` counts what this reading looked at: accounts, markets or outcomes that there are, entries and
transactions that are new. The readings of a run together have seen every entry, each at the cost of the last
second; the first sees all there is, unless that is too much.

Why not sums over everything: at 6,000 trades/s they would be most of the load after a minute.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg.rows import dict_row

from scenarios.history import ProbeResult

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Row: TypeAlias = dict[str, Any]

WITNESS_MAX = 10
SAMPLE_MAX = 40
# About a second of reading. Who is further behind takes the books as they are and goes on there; the judge
# reads the rest once the run is over.
CATCH_UP_MAX = 300_000
# What compares with the reading before.
INCREMENTAL = frozenset({"balances_equal_entries", "entries_never_change", "market_versions_are_dense"})

_ACCOUNTS = "SELECT account_id, kind, market_id, balance_micro, version, floor_micro FROM books.accounts"
_MARKETS = "SELECT market_id, b_micro, version, pool_micro, quantities, closed_version FROM books.markets"
_POSITIONS = """
SELECT market_id, outcome, sum(shares_micro)::bigint AS shares_micro
FROM books.positions GROUP BY market_id, outcome
"""
# LATERAL with OFFSET 0 keeps the planner to one index probe a market or account, however long the history.
_NEW_TRADES = """
SELECT s.market_id, t.trades
FROM unnest(%(ids)s::bigint[], %(versions)s::bigint[]) AS s (market_id, version)
CROSS JOIN LATERAL (
    SELECT count(DISTINCT f.market_version) AS trades
    FROM (
        SELECT market_version FROM books.trades AS d
        WHERE d.market_id = s.market_id AND d.market_version > s.version OFFSET 0
    ) AS f
) AS t
"""
_NEW_ENTRIES = """
WITH new AS MATERIALIZED (
    SELECT e.*, s.version AS seen_version, s.balance_micro AS seen_micro
    FROM unnest(%(ids)s::bigint[], %(versions)s::bigint[], %(balances)s::bigint[])
        AS s (account_id, version, balance_micro)
    CROSS JOIN LATERAL (
        SELECT entry_id, transaction_id, account_id, account_version, debit_micro, credit_micro,
            balance_after_micro
        FROM books.entries AS f
        WHERE f.account_id = s.account_id AND f.account_version > s.version
        OFFSET 0
    ) AS e
),
steps AS (
    SELECT account_id, account_version, credit_micro - debit_micro AS change_micro, balance_after_micro,
        coalesce(lag(account_version) OVER by_version, seen_version) AS version_before,
        coalesce(lag(balance_after_micro) OVER by_version, seen_micro) AS before_micro
    FROM new
    WINDOW by_version AS (PARTITION BY account_id ORDER BY account_version)
),
accounts AS (
    SELECT account_id, count(*) AS entries, sum(change_micro) AS change_micro,
        min(balance_after_micro) AS lowest_micro,
        min(account_version) FILTER (WHERE account_version <> version_before + 1
            OR balance_after_micro <> before_micro + change_micro) AS broken_at_version
    FROM steps GROUP BY account_id
),
sums AS (
    SELECT transaction_id, sum(credit_micro - debit_micro) AS difference_micro
    FROM new GROUP BY transaction_id
)
SELECT
    (SELECT coalesce(json_agg(a), '[]') FROM accounts AS a) AS accounts,
    (SELECT count(*) FROM sums) AS transactions,
    (SELECT count(*) FROM sums WHERE difference_micro <> 0) AS unbalanced,
    (SELECT coalesce(json_agg(w), '[]') FROM (
        SELECT * FROM sums WHERE difference_micro <> 0 ORDER BY transaction_id LIMIT %(witness_max)s
    ) AS w) AS witness,
    (SELECT coalesce(json_agg(json_build_array(entry_id, md5(concat_ws('|', entry_id, transaction_id,
        account_id, account_version, debit_micro, credit_micro, balance_after_micro)))), '[]')
    FROM (SELECT * FROM new ORDER BY md5(entry_id::text) LIMIT %(sample_max)s) AS c) AS sample
"""


class Seen(NamedTuple):
    """What the last reading saw: version and balance of every account, version of every market."""

    accounts: dict[int, tuple[int, int]]
    markets: dict[int, int]


class Reading(NamedTuple):
    """One snapshot; `entries` is a sample of the new ones, [entry id, digest]."""

    snapshot: str
    results: dict[str, ProbeResult]
    entries: list[tuple[int, str]]
    seen: Seen


def read_books(connection: Connection, seen: Seen) -> Reading:
    """Read and check the books in one transaction of the connection, which is REPEATABLE READ."""
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        first = cursor.execute("SELECT pg_current_snapshot()::text AS snapshot").fetchone()
        assert first is not None
        accounts = cursor.execute(_ACCOUNTS).fetchall()
        markets = cursor.execute(_MARKETS).fetchall()
        held = cursor.execute(_POSITIONS).fetchall()
        now = _seen(accounts, markets)
        behind = sum(row["version"] - seen.accounts.get(row["account_id"], (0, 0))[0] for row in accounts)
        skipped = behind > CATCH_UP_MAX
        if skipped:
            seen = now
        where = {
            "ids": [row["market_id"] for row in markets],
            "versions": [seen.markets.get(row["market_id"], 0) for row in markets],
        }
        trades = cursor.execute(_NEW_TRADES, where).fetchall()
        new = cursor.execute(_NEW_ENTRIES, _where_to_go_on(accounts, seen)).fetchone()
        assert new is not None
    by_account = {row["account_id"]: row for row in new["accounts"]}
    results = {
        "every_transaction_balances": ProbeResult(
            examined=new["transactions"], violations=new["unbalanced"], witness=new["witness"]
        ),
        "running_balances_are_continuous": _result(
            sum(row["entries"] for row in by_account.values()),
            [
                {"account_id": row["account_id"], "account_version": row["broken_at_version"]}
                for row in by_account.values()
                if row["broken_at_version"] is not None
            ],
        ),
        **_account_results(accounts, by_account, seen),
        **_market_results(accounts, markets, held),
        "market_versions_are_dense": _dense(
            markets, {row["market_id"]: row["trades"] for row in trades}, seen
        ),
    }
    return Reading(
        snapshot=first["snapshot"],
        results={
            name: result
            for name, result in results.items()
            if result.examined and not (skipped and name in INCREMENTAL)
        },
        entries=[(entry_id, digest) for entry_id, digest in new["sample"]],
        seen=now,
    )


def _seen(accounts: list[Row], markets: list[Row]) -> Seen:
    return Seen(
        {row["account_id"]: (row["version"], row["balance_micro"]) for row in accounts},
        {row["market_id"]: row["version"] for row in markets},
    )


def _where_to_go_on(accounts: list[Row], seen: Seen) -> dict[str, Any]:
    last = [seen.accounts.get(row["account_id"], (0, 0)) for row in accounts]
    return {
        "ids": [row["account_id"] for row in accounts],
        "versions": [version for version, _ in last],
        "balances": [balance_micro for _, balance_micro in last],
        "witness_max": WITNESS_MAX,
        "sample_max": SAMPLE_MAX,
    }


def _account_results(accounts: list[Row], new: dict[int, Row], seen: Seen) -> dict[str, ProbeResult]:
    unequal, below, gone = [], [], []
    for row in accounts:
        account_id, floor = row["account_id"], row["floor_micro"]
        version, balance_micro = seen.accounts.get(account_id, (0, 0))
        gained = new.get(account_id, {"entries": 0, "change_micro": 0, "lowest_micro": row["balance_micro"]})
        expected = {
            "balance_micro": balance_micro + gained["change_micro"],
            "version": version + gained["entries"],
        }
        if row["version"] < version:
            gone.append({"account_id": account_id, "version": row["version"], "seen_version": version})
        elif any(row[name] != value for name, value in expected.items()):
            shown = {name: row[name] for name in expected}
            unequal.append({"account_id": account_id} | shown | {"by_entries": expected})
        lowest = min(row["balance_micro"], gained["lowest_micro"])
        if floor is not None and lowest < floor:
            below.append({"account_id": account_id, "balance_micro": lowest, "floor_micro": floor})
    total = sum(row["balance_micro"] for row in accounts)
    return {
        "money_is_conserved": _result(len(accounts), [{"sum_micro": total}] if total else []),
        "balances_equal_entries": _result(len(accounts), unequal),
        "no_account_goes_below_its_floor": _result(len(accounts), below),
        # An account whose version went back has lost entries that were committed and seen.
        "entries_never_change": _result(len(seen.accounts), gone),
    }


def _market_results(accounts: list[Row], markets: list[Row], held: list[Row]) -> dict[str, ProbeResult]:
    pools = {row["market_id"]: row["balance_micro"] for row in accounts if row["kind"] == "market_pool"}
    shares = {(row["market_id"], row["outcome"]): row["shares_micro"] for row in held}
    priced, uncovered, unequal = [], [], []
    for row in markets:
        market_id, pool = row["market_id"], row["pool_micro"]
        witness = {"market_id": market_id, "version": row["version"], "pool_micro": pool}
        cost = _lmsr_cost(row["quantities"], row["b_micro"])
        # Two roundings of a double on either side; the judge does it exactly.
        if pool != pools.get(market_id) or abs(pool - cost) > 2 + 1e-12 * (row["b_micro"] + cost):
            priced.append(witness | {"account_micro": pools.get(market_id), "cost_micro": round(cost)})
        if pool < max(row["quantities"]):
            uncovered.append(witness | {"payout_micro": max(row["quantities"])})
        for outcome, quantity in enumerate(row["quantities"]):
            if shares.get((market_id, outcome), 0) != quantity:
                have = shares.get((market_id, outcome), 0)
                unequal.append(
                    {"market_id": market_id, "outcome": outcome, "positions": have, "quantity": quantity}
                )
    return {
        "pools_equal_lmsr_cost": _result(len(markets), priced),
        "pools_cover_every_payout": _result(len(markets), uncovered),
        "positions_equal_outstanding_shares": _result(
            sum(len(row["quantities"]) for row in markets), unequal
        ),
    }


def _dense(markets: list[Row], new_trades: dict[int, int], seen: Seen) -> ProbeResult:
    """Every step of a market's version is a trade, or its closing."""
    gaps = []
    for row in markets:
        since = seen.markets.get(row["market_id"], 0)
        closed = row["closed_version"] is not None and row["closed_version"] > since
        trades = new_trades.get(row["market_id"], 0)
        if row["version"] != since + trades + closed:
            gaps.append(
                {"market_id": row["market_id"], "version": row["version"], "since": since, "trades": trades}
            )
    return _result(len(markets), gaps)


def _lmsr_cost(quantities: list[int], b_micro: int) -> float:
    """max(q) + ceil(b ln sum exp((q_i - max(q)) / b)), in doubles."""
    most = max(quantities)
    total = sum(math.exp(max((quantity - most) / b_micro, -700.0)) for quantity in quantities)
    return most + math.ceil(b_micro * math.log(total))


def _result(examined: int, violations: list[Row]) -> ProbeResult:
    return ProbeResult(examined=examined, violations=len(violations), witness=violations[:WITNESS_MAX])
