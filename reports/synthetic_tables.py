"""The files of a synthetic run, derived by SQL from the columns of its crowd.

Every operation commits 4 ms after it was invoked, so the books are in the order of invocation while the
operations overlap: answers take 5 to 60 ms, and a user's next operation comes after 100 ms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
from numpy.typing import NDArray

from reports.books import VIEWS
from reports.synthetic_setup import (
    B_MICRO,
    FEE_BPS,
    SIDE_COST_MICRO,
    SIDE_SHARES_MICRO,
    SUBSIDY_MICRO,
    USERS,
    Setup,
)
from scenarios.history import FORMAT

STEP_NS = 1_000_000
LOAD_NS = 20_000_000_000
LOST_EVERY = 4_999  # operations; of the trades among them every tenth never gets an answer

NULLABLE = ("outcome", "shares", "amount", "bound", "cost", "fee", "reused")  # absent: -1 in the crowd

OPERATIONS = f"""
CREATE TABLE ops AS
SELECT *, cost IS NOT NULL AS is_trade,
       place % {LOST_EVERY} = {LOST_EVERY // 2} AND cost IS NOT NULL AS is_lost,
       is_lost AND (place // {LOST_EVERY}) % 10 = 9 AS is_unknown,
       CASE WHEN cost IS NOT NULL THEN sum((cost IS NOT NULL)::BIGINT) OVER (ORDER BY place) END AS trade,
       sum(coalesce(fee, 0)) OVER (ORDER BY place)::BIGINT AS fees,
       'trader-' || (place % {USERS}) AS user_id, 's-' || (place % {USERS}) || '-' || place AS operation,
       CASE WHEN action LIKE 'read_%' THEN NULL
            ELSE 's-' || (place % {USERS}) || '-' || coalesce(reused, place) END AS key,
       {LOAD_NS} + place * {STEP_NS} AS invoke_ns,
       invoke_ns + 5000000 + (hash(place) % 55000000)::BIGINT AS complete_ns,
       floor(price)::BIGINT AS low_price, floor(1000000 - price)::BIGINT AS high_price,
       low_price + CASE WHEN low_price + high_price < 1000000
           AND price - low_price >= 1000000 - price - high_price THEN 1 ELSE 0 END AS price_micro
FROM crowd
"""
PROCESSES = """
CREATE TABLE lives AS
SELECT place, user_id || '.' || (1 + coalesce(sum(is_unknown::BIGINT) OVER (
    PARTITION BY user_id ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)) AS process
FROM ops
"""
LOST = "CREATE TABLE lost AS SELECT *, row_number() OVER (ORDER BY place) AS number FROM ops WHERE is_lost"

INVOKE = """
'{"type":"invoke","time_ns":' || at_ns || ',"intended_ns":' || invoke_ns || ',"process":"' || process
|| '","operation":"' || operation || '","attempt":' || attempt || ',"action":"'
|| CASE action WHEN 'refused' THEN 'buy_shares' ELSE action END || '","user":"' || user_id || '"'
|| coalesce(',"key":"' || key || '"', '') || CASE WHEN action LIKE 'read_a%' OR action = 'read_ledger' THEN ''
   ELSE ',"market":1' END
|| coalesce(',"request_hash":"' || CASE WHEN key IS NOT NULL THEN md5(operation || 'asks') END || '"', '')
|| CASE WHEN is_trade THEN ',"request":{"outcome":' || outcome || ',"side":"'
   || CASE action WHEN 'sell' THEN 'sell' ELSE 'buy' END || '"'
   || CASE WHEN amount IS NULL THEN ',"shares_micro":' || shares ELSE ',"amount_micro":' || amount END
   || coalesce(',"limit_micro":' || bound, '') || '}'
   WHEN key IS NOT NULL THEN ',"request":{"outcome":0,"side":"buy","shares_micro":100000000000000}'
   ELSE '' END || '}'
"""
ANSWER = """
'{"type":"' || CASE WHEN key IS NULL OR is_trade THEN 'ok' ELSE 'fail' END || '","time_ns":' || at_ns
|| ',"process":"' || process || '","operation":"' || operation || '","attempt":' || attempt
|| ',"latency_ns":' || latency_ns || ',"status":' || CASE WHEN key IS NULL OR is_trade THEN 200 ELSE 422 END
|| CASE action WHEN 'refused' THEN ',"code":"insufficient_funds"'
   WHEN 'reuse_key' THEN ',"code":"idempotency_key_reused"' ELSE '' END
|| ',"reply_hash":"' || md5(operation || 'answers') || '"' || CASE WHEN attempt > 1 THEN ',"replayed":true'
   ELSE '' END
|| CASE WHEN is_trade THEN ',"facts":{"trade_id":' || trade + 1 || ',"market_id":1,"market_version":'
   || version || ',"cost_micro":' || cost || ',"fee_micro":' || fee || ',"shares_micro":' || shares
   || ',"prices_micro":[' || price_micro || ',' || 1000000 - price_micro || ']'
   || ',"transaction_id":' || trade + 104
   || ',"account_version":' || account_version || ',"balance_micro":' || balance || '}'
   WHEN action = 'read_market' THEN ',"facts":{"market_id":1,"market_version":' || version
   || ',"prices_micro":[' || price_micro || ',' || 1000000 - price_micro || ']}'
   WHEN key IS NULL
   THEN ',"facts":{"account_version":' || account_version || ',"balance_micro":' || balance || '}'
   ELSE '' END || '}'
"""
TIMEOUT = """
'{"type":"info","time_ns":' || at_ns || ',"process":"' || process || '","operation":"' || operation
|| '","attempt":1,"latency_ns":30000000,"error":"timeout"}'
"""
LINES = f"""
CREATE TABLE lines AS
WITH ops AS (SELECT * FROM main.ops JOIN lives USING (place))
SELECT place % 2 AS writer, at_ns, {INVOKE} AS line FROM (SELECT *, invoke_ns AS at_ns, 1 AS attempt FROM ops)
UNION ALL
SELECT place % 2, at_ns, {INVOKE}
FROM (SELECT *, invoke_ns + 40000000 AS at_ns, 2 AS attempt FROM ops WHERE is_lost AND NOT is_unknown)
UNION ALL
SELECT place % 2, at_ns, {ANSWER}
FROM (SELECT *, complete_ns AS at_ns, 1 AS attempt, complete_ns - invoke_ns AS latency_ns
      FROM ops WHERE NOT is_lost)
UNION ALL
SELECT place % 2, at_ns, {ANSWER}
FROM (SELECT *, invoke_ns + 70000000 AS at_ns, 2 AS attempt, 30000000 AS latency_ns
      FROM ops WHERE is_lost AND NOT is_unknown)
UNION ALL
SELECT place % 2, at_ns, {TIMEOUT} FROM (SELECT *, invoke_ns + 30000000 AS at_ns FROM ops WHERE is_lost)
"""
FAULTS = """
SELECT at_ns, '{"time_ns":' || at_ns || ',"fault_id":"f' || lpad(number::VARCHAR, 5, '0')
       || '","fault":"drop_reply","state":"' || state || '"' || CASE state WHEN 'landed'
       THEN ',"evidence":{"key":"' || key || '","request":"POST /api/trade","status":200}' ELSE '' END
       || '}' AS line
FROM (SELECT number, key, unnest(['planned', 'armed', 'landed', 'healed']) AS state,
             invoke_ns + unnest([-2000000, -1000000, 4000000, 75000000]) AS at_ns
      FROM lost)
"""

BOOKS = {
    "transactions": """
SELECT trade + 104, 'trade', user_id, key, 1, created_at FROM booked""",
    "entries": """
SELECT 207 + 3 * trade + unnest([0, 1, 2]), trade + 104, unnest([7 + 2 * (place % 100), 3, 4]),
       unnest([account_version, 1 + trade, trade]), unnest([user_id, NULL, NULL]), 'trade',
       unnest([greatest(paid, 0), greatest(-taken, 0), 0]),
       unnest([greatest(-paid, 0), greatest(taken, 0), fee]),
       unnest([balance, pool, fees]), created_at
FROM (SELECT *, CASE action WHEN 'sell' THEN fee - cost ELSE cost + fee END AS paid,
             CASE action WHEN 'sell' THEN -cost ELSE cost END AS taken FROM booked)""",
    "trades": """
SELECT trade + 1, trade + 104, 1, version, user_id, key, outcome,
       CASE action WHEN 'sell' THEN 'sell' ELSE 'buy' END, shares, amount, bound, cost, fee, pool, created_at
FROM booked""",
    "prices": "SELECT 1, version, [price_micro, 1000000 - price_micro] FROM booked",
    "positions": """
SELECT 1, user_id, outcome, sum(CASE action WHEN 'sell' THEN -shares ELSE shares END) FROM booked
GROUP BY user_id, outcome""",
    "idempotency_keys": """
SELECT user_id, key, 'POST /api/trade', md5(operation || 'asks'), CASE WHEN is_trade THEN 200 ELSE 422 END,
       md5(operation || 'answers'), CASE WHEN is_trade THEN trade + 104 END,
       to_timestamp((invoke_ns + 4000000) / 1e9)
FROM ops WHERE is_trade OR action = 'refused'""",
}
BOOKS["markets"] = f"""
SELECT 1, 'open', 2, {B_MICRO}, {FEE_BPS}, max(version), coalesce(arg_max(pool, version), {SUBSIDY_MICRO}),
       {SUBSIDY_MICRO}, [coalesce(sum(moved) FILTER (outcome = 0), 0),
                         coalesce(sum(moved) FILTER (outcome = 1), 0)], NULL, to_timestamp(10)
FROM (SELECT *, CASE action WHEN 'sell' THEN -shares ELSE shares END AS moved FROM booked)
UNION ALL
SELECT 2, 'closed', 2, {B_MICRO}, {FEE_BPS}, 2, {SUBSIDY_MICRO + SIDE_COST_MICRO}, {SUBSIDY_MICRO},
       [{SIDE_SHARES_MICRO}, 0], 2, to_timestamp(10)
"""
BOOKS["accounts"] = f"""
SELECT a.*, coalesce(e.balance, 0), coalesce(e.version, 0), CASE WHEN account_id > 1 THEN 0 END
FROM (
    SELECT unnest([1, 2, 3, 4, 5, 6]) AS account_id,
           unnest(['external_onchain', 'house_treasury', 'market_pool', 'house_fees', 'market_pool',
                   'house_fees']), NULL, unnest([NULL, NULL, 1, 1, 2, 2])
    UNION ALL
    SELECT 7 + number, CASE number % 2 WHEN 0 THEN 'user_available' ELSE 'user_reserved' END,
           'trader-' || number // 2, NULL
    FROM range({2 * USERS}) t(number)
) a LEFT JOIN (SELECT account_id, sum(credit_micro - debit_micro) AS balance, max(account_version) AS version
               FROM entries GROUP BY account_id) e USING (account_id)
"""


SECONDS = """
FROM (SELECT unnest(range({from_ns}, {to_ns}, 1000000000)) AS at_ns)
"""
SAMPLES = """
SELECT '{"time_ns":' || at_ns || ',"phase":"hold","users":100,"in_flight":30,"processes":{"load":'
       || '{"cpu_percent":25.0,"rss_bytes":90000000},"server":{"cpu_percent":60.0,"rss_bytes":80000000}},'
       || '"commits":1,"lock_waits":0,"health_ms":2.5}'
"""
PROBE = """
SELECT '{"time_ns":' || at_ns || ',"snapshot":"1:1:","took_ms":3.5,"results":{"every_transaction_balances":'
       || '{"examined":700,"violations":0},"money_is_conserved":{"examined":206,"violations":0}},"entries":['
       || string_agg('[' || entry_id || ',"' || digest || '"]', ',' ORDER BY entry_id) || ']}'
FROM (
    SELECT at_ns, entry_id, md5(concat_ws('|', entry_id, transaction_id, account_id, account_version,
                                          debit_micro, credit_micro, balance_after_micro)) AS digest
    FROM entries ASOF JOIN (SELECT at_ns {seconds}) ON at_ns >= epoch_ns(created_at) AND entry_id % 20 = 0
) GROUP BY at_ns ORDER BY at_ns
"""


def write_tables(db: duckdb.DuckDBPyConnection, run: Path, crowd: dict[str, NDArray[Any]]) -> None:
    """Write every file of the run but its plan; leaves the table `lost` behind."""
    setup = Setup()
    db.execute("SET TimeZone = 'UTC'")
    db.register("told", crowd)
    named = ", ".join(f"nullif({name}, -1) AS {name}" for name in NULLABLE)
    db.execute(f"CREATE TABLE crowd AS SELECT * REPLACE ({named}) FROM told")
    db.unregister("told")
    for statement in (OPERATIONS, PROCESSES, LOST, LINES):
        db.execute(statement)
    insert_rows(db, "lines", [{"writer": 0, "at_ns": at, "line": line} for at, line in setup.lines])
    for writer in (0, 1):
        write_history(db, run / "history" / f"w{writer}.jsonl", writer)
    db.execute("DROP TABLE lines")
    write_books(db, run / "state", setup.views)
    ended_ns = (db.execute("SELECT max(complete_ns) FROM ops").fetchone() or (0,))[0] + 1_000_000_000
    write_beside(db, run, ended_ns)


def write_history(db: duckdb.DuckDBPyConnection, path: Path, writer: int) -> None:
    """One history file, with its header and end."""
    first, last, rows = db.execute(
        "SELECT min(at_ns), max(at_ns), count(*) FROM lines WHERE writer = ?", [writer]
    ).fetchone() or (0, 0, 0)
    header = {"type": "header", "format": FORMAT, "writer": path.stem, "time_ns": first}
    end = {"type": "end", "time_ns": last, "rows": rows + 1}
    write_lines(
        db,
        path,
        f"""
        SELECT line FROM (
            SELECT 0 AS part, 0 AS at_ns, '{json.dumps(header)}' AS line
            UNION ALL SELECT 1, at_ns, line FROM lines WHERE writer = {writer}
            UNION ALL SELECT 2, 0, '{json.dumps(end)}'
        ) ORDER BY part, at_ns
        """,
    )


def write_lines(db: duckdb.DuckDBPyConnection, path: Path, query: str) -> None:
    """Lines of text that hold no delimiter, as they are."""
    db.execute(
        f"COPY ({query}) TO '{path}' (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01')"
    )


def insert_rows(db: duckdb.DuckDBPyConnection, table: str, rows: list[dict[str, Any]]) -> None:
    """Append a few rows to a table; a column that a row does not name is null."""
    described = db.execute(f"DESCRIBE {table}").fetchall()
    shape = json.dumps([{name: kind for name, kind, *_ in described}])
    db.execute(
        f"INSERT INTO {table} SELECT row.* FROM (SELECT unnest(from_json(?, ?)) AS row)",
        [json.dumps(rows), shape],
    )


def write_books(db: duckdb.DuckDBPyConnection, state: Path, set_up: dict[str, list[dict[str, Any]]]) -> None:
    """Every view as parquet, and the manifest."""
    db.execute(
        "CREATE VIEW booked AS SELECT *, to_timestamp((invoke_ns + 4000000) / 1e9) AS created_at"
        " FROM ops WHERE is_trade"
    )
    rows = {}
    for view in (
        "transactions",
        "entries",
        "trades",
        "prices",
        "positions",
        "idempotency_keys",
        "markets",
        "accounts",
    ):  # accounts last: they sum the entries up
        columns = VIEWS[view]
        db.execute(f"CREATE TABLE {view} ({', '.join(f'{name} {of}' for name, of in columns.items())})")
        insert_rows(db, view, set_up[view])
        db.execute(f"INSERT INTO {view} {BOOKS[view]}")
        db.execute(f"COPY {view} TO '{state / view}.parquet' (FORMAT parquet)")
        rows[view] = (db.execute(f"SELECT count(*) FROM {view}").fetchone() or (0,))[0]
    manifest = {"format": FORMAT, "snapshot": "1:1:", "time_ns": 0, "active": 0, "prepared": 0, "rows": rows}
    (state / "manifest.json").write_text(json.dumps(manifest) + "\n")


def write_beside(db: duckdb.DuckDBPyConnection, run: Path, ended_ns: int) -> None:
    """What a trial writes beside the history."""
    write_lines(db, run / "faults.jsonl", f"SELECT line FROM ({FAULTS}) ORDER BY at_ns, line")
    seconds = SECONDS.format(from_ns=LOAD_NS, to_ns=ended_ns)
    write_lines(db, run / "samples.jsonl", SAMPLES + seconds)
    write_lines(db, run / "probes.jsonl", PROBE.replace("{seconds}", seconds))
    events = [
        {"time_ns": LOAD_NS, "event": "load_started"},
        {"time_ns": ended_ns, "event": "load_stopped"},
        {"time_ns": ended_ns, "event": "healed"},
        {"time_ns": ended_ns, "event": "quiescent", "active": 0, "prepared": 0},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
