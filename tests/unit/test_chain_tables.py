"""What chain and world saw is read as tables, or refused with the file, the line and the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.books import MONEY_VIEWS
from reports.chain_tables import FILES
from reports.evidence import Evidence, open_evidence
from scenarios.history import HistoryError
from tests import golden
from tests.golden.files import write_lines, write_views

Row = dict[str, Any]
Edit = Callable[[list[Row]], object]

VAULT, WALLET = "0x" + "aa" * 20, "0x" + "bb" * 20
IDENTITY = "0b8e4c1e-5a3f-4f6b-9c2d-1e2f3a4b5c6d"


def digits(number: int) -> str:
    """A hash that is easy to tell from others."""
    return f"0x{number:064x}"


def place(block: int, log_index: int) -> Row:
    return {
        "block_number": block,
        "block_hash": digits(block),
        "tx_hash": digits(1_000 + log_index),
        "log_index": log_index,
    }


def head() -> Row:
    return {
        "format": 1,
        "chain_id": 31337,
        "vault": VAULT,
        "usdc": VAULT,
        "operator": WALLET,
        "from_block": 4,
        "number": 6,
        "hash": digits(6),
        "custody_micro": 70,
        "confirmations": 3,
        "time_ns": 5,
        "drained": True,
        "why": None,
    }


def files() -> dict[str, list[Row]]:
    """A chain of three blocks, and two arrivals."""
    paid = {"receiver": WALLET, "amount_micro": 30}
    word = "0x" + IDENTITY.replace("-", "") + "00" * 16
    arrival = {"title": "paid", "status": 200}
    return {
        "chain/blocks.jsonl": [
            {"number": number, "hash": digits(number), "timestamp_s": 100} for number in (4, 5, 6)
        ],
        "chain/deposits.jsonl": [
            place(5, 0) | {"sender": WALLET, "user_id": "u1", "amount_micro": 100},
            place(5, 1) | {"sender": WALLET, "user_id": None, "amount_micro": 0},
        ],
        "chain/payments.jsonl": [
            place(6, 0) | paid | {"word": word, "withdrawal_id": IDENTITY},
            place(6, 1) | paid | {"word": "0x" + "12" * 32, "withdrawal_id": None},
        ],
        "deliveries.jsonl": [
            {"time_ns": 1, "number": 1, "key": "k", "status": 503, "applied": False, "title": "paid"},
            {"time_ns": 2, "number": 2, "key": "k", "applied": True} | arrival,
            {"time_ns": 3, "number": 3, "key": "k", "applied": False} | arrival,
            {"time_ns": 4, "number": 4, "key": None, "applied": True} | arrival,
            {"time_ns": 5, "number": 5, "key": None, "applied": True} | arrival,
        ],
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The golden run as if it had had a chain."""
    rows = golden.golden_run()
    rows.plan["plan"] |= {"scenario": "money_in_out", "chain": {}}
    rows.events.insert(-1, {"time_ns": rows.events[-1]["time_ns"], "event": "drained", "drained": True})
    folder = rows.write(tmp_path / "run")
    write_views(folder / "state", {view: [] for view in MONEY_VIEWS})
    path = folder / "state" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["rows"] |= dict.fromkeys(MONEY_VIEWS, 0)
    path.write_text(json.dumps(manifest))
    (folder / "chain").mkdir()
    (folder / "chain" / "head.json").write_text(json.dumps(head()))
    for name, lines in files().items():
        write_lines(folder / name, lines)
    return folder


def opened(run: Path) -> Evidence:
    return open_evidence(run)


def refused(run: Path) -> HistoryError:
    with pytest.raises(HistoryError) as caught:
        opened(run).close()
    return caught.value


def rewrite(path: Path, edit: Edit) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    write_lines(path, rows)


def rewrite_head(run: Path, **fields: object) -> None:
    (run / "chain" / "head.json").write_text(json.dumps(head() | fields))


def test_a_run_with_a_chain_is_complete(run: Path) -> None:
    evidence = opened(run)

    assert evidence.incomplete == []
    assert (evidence.has_chain, evidence.has_state, evidence.has_chain_state) == (True, True, True)


@pytest.mark.parametrize("name", FILES)
def test_a_file_becomes_a_table(run: Path, name: str) -> None:
    file, columns, _ = FILES[name]
    evidence = opened(run)

    assert evidence.rows(f"SELECT * FROM {name}") == [
        {column: row.get(column) for column in columns} for row in files()[file]
    ]


def test_the_head_is_one_row(run: Path) -> None:
    wanted = {name: value for name, value in head().items() if name != "format"}
    assert opened(run).rows("SELECT * FROM chain_head") == [wanted]


def test_without_a_chain_the_tables_are_there_and_empty(tmp_path: Path) -> None:
    evidence = opened(golden.run(tmp_path))

    assert (evidence.has_chain, evidence.has_chain_state, evidence.incomplete) == (False, False, [])
    for name in ("chain_head", *FILES, *MONEY_VIEWS):
        assert evidence.scalar(f"SELECT count(*) FROM {name}") == 0


@pytest.mark.parametrize("name", ["chain/head.json", *files()])
def test_a_record_that_lacks_a_file_says_so(run: Path, name: str) -> None:
    (run / name).unlink()
    evidence = opened(run)

    assert evidence.incomplete == [f"what chain and world saw was not recorded to the end: no {name}"]
    assert (evidence.has_state, evidence.has_chain_state) == (True, False)
    assert evidence.scalar("SELECT count(*) FROM chain_deposits") == 0


def test_money_views_are_missed_only_where_there_is_a_chain(run: Path) -> None:
    (run / "state" / "deposits.parquet").unlink()
    evidence = opened(run)

    assert evidence.incomplete == ["the export of the books is incomplete: no deposits"]
    assert not evidence.has_state


def test_a_trial_that_could_not_drain_says_so(run: Path) -> None:
    why = "2 withdrawals under way"
    rewrite(run / "events.jsonl", lambda rows: rows[-2].update(drained=False, why=why))

    assert opened(run).incomplete == [f"relay and chain were not drained: {why}"]


def test_a_trial_that_never_drained_says_so(run: Path) -> None:
    rewrite(run / "events.jsonl", lambda rows: rows.pop(-2))

    assert opened(run).incomplete == ["relay and chain were never drained"]


# -- what is refused --------------------------------------------------------------------------------------


def change(line: int, **fields: object) -> Edit:
    return lambda rows: rows[line - 1].update(fields)


BLOCKS, DEPOSITS, PAYMENTS, ARRIVALS = files()
BROKEN: dict[str, tuple[str, Edit, int, str]] = {
    "a gap": (BLOCKS, lambda rows: rows.pop(1), 2, "without a gap"),
    "no hash": (BLOCKS, change(2, hash=None), 2, "a block has number, hash"),
    "half a hash": (BLOCKS, change(2, hash="0x12"), 2, "64 hex digits"),
    "another head": (BLOCKS, change(3, hash=digits(99)), 3, "not that of head.json"),
    "too few blocks": (BLOCKS, lambda rows: rows.pop(), 2, "not that of head.json"),
    "too many blocks": (
        BLOCKS,
        lambda rows: rows.append({"number": 7, "hash": digits(7), "timestamp_s": 100}),
        4,
        "above the head",
    ),
    "time that decreases": (BLOCKS, change(2, timestamp_s=99), 2, "the time decreases"),
    "a deposit elsewhere": (DEPOSITS, change(1, block_hash=digits(4)), 1, "not one of blocks.jsonl"),
    "a deposit twice": (DEPOSITS, change(2, log_index=0), 1, "the same log is there twice"),
    "a deposit of nothing known": (DEPOSITS, change(2, amount_micro=None), 2, "index and amount"),
    "a transaction without a hash": (DEPOSITS, change(2, tx_hash="0x"), 2, "64 hex digits"),
    "a loud address": (DEPOSITS, change(1, sender=WALLET.upper()), 1, "40 hex digits"),
    "less than nothing": (DEPOSITS, change(1, amount_micro=-1), 1, "not below 0"),
    "a payment to nobody": (PAYMENTS, change(1, receiver=None), 1, "40 hex digits"),
    "half a word": (PAYMENTS, change(1, word="0x00"), 1, "a word is 0x"),
    "an id that is not the word's": (
        PAYMENTS,
        change(1, withdrawal_id=IDENTITY.replace("0", "1")),
        1,
        "not what the word says",
    ),
    "an id of no withdrawal": (PAYMENTS, change(2, withdrawal_id=IDENTITY), 2, "not what the word says"),
    "a number twice": (ARRIVALS, change(2, number=1), 1, "a number of its own"),
    "an unknown status": (ARRIVALS, change(3, status=404), 3, "200, 503 or 0"),
    "nothing about the effect": (ARRIVALS, change(3, applied=None), 3, "time_ns, status and applied"),
    "an effect of what was refused": (ARRIVALS, change(1, applied=True), 1, "refused is not applied"),
    "one effect twice": (ARRIVALS, change(3, applied=True), 3, "a key is applied once"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_line_that_breaks_a_rule_is_named(run: Path, name: str) -> None:
    file, edit, line, rule = BROKEN[name]
    rewrite(run / file, edit)

    error = refused(run)
    assert (error.path, error.line) == (run / file, line)
    assert rule in error.rule


@pytest.mark.parametrize("name", files())
def test_a_line_that_is_not_a_row_is_named(run: Path, name: str) -> None:
    lines = (run / name).read_text().splitlines()
    (run / name).write_text("\n".join([lines[0], '{"number": "soon"', *lines[1:]]) + "\n")

    error = refused(run)
    assert (error.path, error.line) == (run / name, 2)


@pytest.mark.parametrize(
    ("fields", "rule"), [({"format": 2}, "format 2, this reader knows 1"), ({"vault": 7}, "`$.vault`")]
)
def test_a_head_that_is_none_is_refused(run: Path, fields: dict[str, object], rule: str) -> None:
    rewrite_head(run, **fields)

    error = refused(run)
    assert error.path == run / "chain" / "head.json"
    assert rule in error.rule
