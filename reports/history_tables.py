"""history/*.jsonl as the tables `histories`, `attempts` and `operations`, after every rule has been checked.

1. DuckDB reads each file into `history_rows`, whose rowid keeps the order of lines.
2. Rules of single rows and their neighbours are one scan; the first row that breaks one is named.
3. Invokes meet their completions in `attempts`; rules about pairs compare counts, and only when a count is
   wrong look for the line.
4. `operations` has one row an operation: most have one attempt and are copied, the others are aggregated.

Why not one message a rule from msgspec, as the writers use it: decoding a million operations row by row
takes longer than all checkers together. Only a line that DuckDB cannot read is looked for that way.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import msgspec

from reports.json_lines import read_lines
from scenarios.history import ACTIONS, FORMAT, ONCHAIN_ACTIONS, Completion, End, Header, HistoryError, Invoke

REQUEST = {
    "outcome": "BIGINT",
    "side": "VARCHAR",
    "shares_micro": "BIGINT",
    "amount_micro": "BIGINT",
    "limit_micro": "BIGINT",
    "to_user": "VARCHAR",
}
FACTS = {
    "trade_id": "BIGINT",
    "market_id": "BIGINT",
    "market_version": "BIGINT",
    "cost_micro": "BIGINT",
    "fee_micro": "BIGINT",
    "shares_micro": "BIGINT",
    "prices_micro": "BIGINT[]",
    "transaction_id": "BIGINT",
    "account_version": "BIGINT",
    "balance_micro": "BIGINT",
    "user_id": "VARCHAR",
}
# Told only where there is a chain, and only read there: a field costs as much as a column of its own.
MONEY_FACTS = {"tx_hash": "VARCHAR", "withdrawal_id": "VARCHAR", "withdrawal_status": "VARCHAR"}
RENAMED = {"shares_micro": "r_shares_micro", "user_id": "r_user_id"}  # what the reply says, not the request
COLUMNS = {
    "type": "VARCHAR",
    "time_ns": "BIGINT",
    "format": "BIGINT",
    "writer": "VARCHAR",
    "rows": "BIGINT",
    "cut": "VARCHAR",
    "intended_ns": "BIGINT",
    "process": "VARCHAR",
    "operation": "VARCHAR",
    "attempt": "BIGINT",
    "action": "VARCHAR",
    "user": "VARCHAR",
    "key": "VARCHAR",
    "market": "BIGINT",
    "request_hash": "VARCHAR",
    "latency_ns": "BIGINT",
    "status": "BIGINT",
    "code": "VARCHAR",
    "error": "VARCHAR",
    "reply_hash": "VARCHAR",
    "replayed": "BOOLEAN",
    "request": "STRUCT(" + ", ".join(f"{name} {kind}" for name, kind in REQUEST.items()) + ")",
}
# What the chain's node is asked instead of the system: it says nothing of how the system served its clients.
OF_THE_NODE = "action IN (" + ", ".join(f"'{action}'" for action in sorted(ONCHAIN_ACTIONS)) + ")"
KINDS: dict[str, type[msgspec.Struct]] = {
    "header": Header,
    "invoke": Invoke,
    "ok": Completion,
    "fail": Completion,
    "info": Completion,
    "end": End,
}


class Typed(msgspec.Struct):
    """What every row of a history has."""

    type: str


def read_history(db: duckdb.DuckDBPyConnection, files: list[Path], *, has_chain: bool) -> None:
    """Make the tables of the history; raises HistoryError naming file and line."""
    facts = FACTS | MONEY_FACTS if has_chain else FACTS
    columns = COLUMNS | {"facts": f"STRUCT({', '.join(f'{name} {kind}' for name, kind in facts.items())})"}
    db.execute(
        "CREATE TABLE history_rows (file INTEGER, "
        + ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
        + ")"
    )
    db.execute("CREATE TABLE history_files (file INTEGER, stem VARCHAR, first_row BIGINT, last_row BIGINT)")
    before = 0
    for number, path in enumerate(files):
        read_lines(db, path, f"INSERT INTO history_rows SELECT {number}, * FROM", columns, history_kind)
        total = count(db, "SELECT count(*) FROM history_rows")
        db.execute("INSERT INTO history_files VALUES (?, ?, ?, ?)", [number, path.stem, before, total - 1])
        if total == before:
            raise HistoryError(path, 1, "the file is empty; it begins with a header row")
        before = total
    refuse(db, files, ROW_RULES)
    db.execute(HISTORIES)
    told = [
        f"{f'c.facts.{name}' if name in facts else f'NULL::{kind}'} AS {RENAMED.get(name, name)}"
        for name, kind in (FACTS | MONEY_FACTS).items()
    ]
    db.execute(ATTEMPTS.format(told=", ".join(told)))
    check_pairs(db, files)
    db.execute("DROP TABLE history_rows")
    db.execute(OPERATIONS)
    db.execute("DROP TABLE repeated")
    db.execute("DROP TABLE history_files")


def history_kind(line: bytes) -> type[msgspec.Struct]:
    """What a line of a history should be."""
    return KINDS.get(msgspec.json.decode(line, type=Typed).type, Typed)


def count(db: duckdb.DuckDBPyConnection, sql: str) -> int:
    """The number that a query returns."""
    row = db.execute(sql).fetchone()
    return int(row[0]) if row else 0


def refuse(db: duckdb.DuckDBPyConnection, files: list[Path], sql: str) -> None:
    """Raise HistoryError when the query finds a (row, rule); the earliest is named."""
    found = db.execute(
        f"SELECT f.file, b.bad_row - f.first_row + 1, b.rule FROM ({sql}) b"
        " JOIN history_files f ON b.bad_row BETWEEN f.first_row AND f.last_row ORDER BY b.bad_row LIMIT 1"
    ).fetchone()
    if found is not None:
        raise HistoryError(files[found[0]], found[1], found[2])


ROW_RULES = f"""
WITH placed AS (
    SELECT h.*, h.rowid AS bad_row, lag(time_ns) OVER () AS time_before_ns FROM history_rows h
)
SELECT bad_row, CASE
    WHEN type IS NULL OR type NOT IN ('header', 'invoke', 'ok', 'fail', 'info', 'end')
        THEN 'a row''s type is header, invoke, ok, fail, info or end'
    WHEN time_ns IS NULL THEN 'the row has no time_ns'
    WHEN bad_row = first_row AND type <> 'header' THEN 'a history file begins with its header row'
    WHEN bad_row > first_row AND type = 'header' THEN 'a second header row'
    WHEN bad_row < last_row AND type = 'end' THEN 'rows after the end row'
    WHEN bad_row > first_row AND time_ns < time_before_ns THEN 'the time decreases'
    WHEN type = 'header' AND format IS DISTINCT FROM {FORMAT}
        THEN 'format ' || coalesce(format::VARCHAR, 'absent') || ', this reader knows {FORMAT}'
    WHEN type = 'header' AND writer IS DISTINCT FROM stem THEN 'the file is named after its writer'
    WHEN type IN ('invoke', 'ok', 'fail', 'info') AND (operation IS NULL OR process IS NULL
        OR attempt IS NULL OR attempt < 1) THEN 'an attempt has process, operation, and a number from 1'
    WHEN type = 'invoke' AND (action IS NULL OR "user" IS NULL OR intended_ns IS NULL)
        THEN 'an invoke row has action, user and intended_ns'
    WHEN type = 'invoke' AND action NOT IN ({", ".join(f"'{action}'" for action in sorted(ACTIONS))})
        THEN 'unknown action ' || action
    WHEN type IN ('ok', 'fail', 'info') AND (latency_ns IS NULL OR latency_ns < 0)
        THEN 'a completion has a latency_ns from 0'
    WHEN bad_row = last_row AND type <> 'end' THEN 'the history is truncated: it has no end row'
    WHEN type = 'end' AND "rows" IS DISTINCT FROM bad_row - first_row
        THEN 'the end row counts ' || coalesce("rows"::VARCHAR, 'no') || ' rows before it, there are '
             || (bad_row - first_row)
    END AS rule
FROM placed JOIN history_files USING (file) WHERE rule IS NOT NULL
"""

HISTORIES = """
CREATE TABLE histories AS
SELECT stem AS writer, stem || '.jsonl' AS file, e.rows, h.time_ns AS started_ns, e.time_ns AS ended_ns, e.cut
FROM history_files f JOIN history_rows h ON h.rowid = f.first_row JOIN history_rows e ON e.rowid = f.last_row
ORDER BY writer
"""

ATTEMPTS = f"""
CREATE TABLE attempts AS
SELECT f.stem AS writer, i.process, i.operation, i.attempt, i.action, i."user" AS user_id, i.key, i.market,
       i.request_hash, {", ".join(f"i.request.{name} AS {name}" for name in REQUEST)},
       i.time_ns AS invoke_ns, i.intended_ns, c.time_ns AS complete_ns, coalesce(c.type, 'info') AS type,
       c.status, c.code, c.error, c.reply_hash, coalesce(c.replayed, false) AS replayed, c.latency_ns,
       {{told}},
       i.rowid - f.first_row + 1 AS line, i.rowid AS invoke_row, c.row AS complete_row
FROM (SELECT *, rowid FROM history_rows WHERE type = 'invoke') i
JOIN history_files f USING (file)
LEFT JOIN (SELECT *, rowid AS row FROM history_rows WHERE type IN ('ok', 'fail', 'info')) c
       ON c.operation = i.operation AND c.attempt = i.attempt
"""

INVOKED_TWICE = """
SELECT max(rowid) AS bad_row, 'attempt ' || attempt || ' of ' || operation || ' is invoked twice' AS rule
FROM history_rows WHERE type = 'invoke' GROUP BY operation, attempt HAVING count(*) > 1
"""
COMPLETED_TWICE = """
SELECT max(rowid) AS bad_row, 'attempt ' || attempt || ' of ' || operation || ' is completed twice' AS rule
FROM history_rows WHERE type IN ('ok', 'fail', 'info') GROUP BY operation, attempt HAVING count(*) > 1
"""
NEVER_INVOKED = """
SELECT c.rowid AS bad_row, 'attempt ' || attempt || ' of ' || operation || ' was never invoked' AS rule
FROM history_rows c ANTI JOIN (SELECT operation, attempt FROM history_rows WHERE type = 'invoke') i
     USING (operation, attempt)
WHERE c.type IN ('ok', 'fail', 'info')
"""
COMPLETED_ELSEWHERE = """
SELECT complete_row AS bad_row, 'attempt ' || attempt || ' of ' || operation
       || ' is completed before its invoke, or in another file' AS rule
FROM attempts a JOIN history_files f ON f.stem = a.writer
WHERE complete_row < invoke_row OR complete_row > f.last_row
"""
MISCOUNTED = """
SELECT invoke_row AS bad_row, 'attempts of ' || operation || ' count 1, 2, 3; this is ' || attempt AS rule
FROM (SELECT operation, attempt, invoke_row, row_number() OVER (PARTITION BY operation ORDER BY invoke_row)
             AS place FROM attempts SEMI JOIN repeated USING (operation))
WHERE attempt <> place
"""
CHANGED = """
SELECT a.invoke_row AS bad_row, a.operation || ' changes its action, user, key, market or request' AS rule
FROM (SELECT * FROM attempts SEMI JOIN repeated USING (operation)) a
JOIN attempts f ON f.operation = a.operation AND f.attempt = 1 AND a.attempt > 1
WHERE (a.action, a.user_id, a.key, a.market, a.request_hash, a.outcome, a.side, a.shares_micro,
       a.amount_micro, a.limit_micro, a.to_user)
   IS DISTINCT FROM
      (f.action, f.user_id, f.key, f.market, f.request_hash, f.outcome, f.side, f.shares_micro,
       f.amount_micro, f.limit_micro, f.to_user)
"""


def check_pairs(db: duckdb.DuckDBPyConnection, files: list[Path]) -> None:
    """Refuse a history whose attempts do not pair up; raises HistoryError."""
    invokes, completions = db.execute(
        "SELECT count(*) FILTER (type = 'invoke'), count(*) FILTER (type IN ('ok', 'fail', 'info'))"
        " FROM history_rows"
    ).fetchone() or (0, 0)
    paired, completed = db.execute("SELECT count(*), count(complete_row) FROM attempts").fetchone() or (0, 0)
    db.execute("CREATE TABLE repeated AS SELECT DISTINCT operation FROM attempts WHERE attempt > 1")
    firsts, operations = db.execute(
        "SELECT count(*), count(DISTINCT operation) FROM attempts WHERE attempt = 1"
    ).fetchone() or (0, 0)
    if paired != invokes or completed != completions or firsts != operations:
        for rule in (INVOKED_TWICE, COMPLETED_TWICE, NEVER_INVOKED):
            refuse(db, files, rule)
    for rule in (COMPLETED_ELSEWHERE, MISCOUNTED, CHANGED):
        refuse(db, files, rule)


RETRYABLE = "('rate_limited', 'overloaded', 'trading_paused', 'contention')"
DECIDING = f"""CASE WHEN type = 'ok' THEN 0
    WHEN type = 'fail' AND code IS NOT NULL AND code NOT IN {RETRYABLE} THEN 1 ELSE 2 END"""
FIELDS = ", ".join(
    (
        *("process", "action", "user_id", "key", "market", "request_hash", *REQUEST),
        *("status", "code", "error", "reply_hash", "replayed", "latency_ns"),
        *(RENAMED.get(name, name) for name in (*FACTS, *MONEY_FACTS)),
    )
)

# One row an operation. The attempt that decides it is its earliest ok; without one, its earliest refusal
# that is an answer; without one, its last attempt. `end_ns` is when the earliest ok came, else null: the
# operation may take effect until quiescence. `answer_ns` is when the client had its answer or gave up.
OPERATIONS = f"""
CREATE TABLE operations AS
SELECT operation, {FIELDS}, type, 1::BIGINT AS attempts, (type = 'info')::BIGINT AS infos,
       invoke_ns AS first_invoke_ns, intended_ns, CASE WHEN type = 'ok' THEN complete_ns END AS end_ns,
       coalesce(complete_ns, invoke_ns) AS answer_ns, line
FROM attempts ANTI JOIN repeated USING (operation)
UNION ALL
SELECT operation, {FIELDS}, CASE WHEN type = 'ok' THEN 'ok' WHEN infos > 0 THEN 'info' ELSE 'fail' END,
       attempts, infos, first_invoke_ns, first_intended_ns, CASE WHEN type = 'ok' THEN complete_ns END,
       seen_ns, line
FROM (
    SELECT *, {DECIDING} AS deciding, coalesce(complete_ns, invoke_ns) AS seen_ns,
           count(*) OVER whole AS attempts, count(*) FILTER (type = 'info') OVER whole AS infos,
           min(invoke_ns) OVER whole AS first_invoke_ns, min(intended_ns) OVER whole AS first_intended_ns
    FROM attempts SEMI JOIN repeated USING (operation)
    WINDOW whole AS (PARTITION BY operation)
)
QUALIFY row_number() OVER (
    PARTITION BY operation ORDER BY deciding, CASE WHEN deciding < 2 THEN seen_ns ELSE -attempt END
) = 1
"""
