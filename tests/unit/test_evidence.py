"""A run directory is read as tables, or refused with the file, the line and the rule."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.books import VIEWS
from reports.evidence import Evidence, RunError, open_evidence
from scenarios.history import Completion, Header, HistoryError, HistoryWriter, Invoke, close_cut_history
from tests import golden
from tests.golden.market import START_NS, Row

Edit = Callable[[list[Row]], object]


AGAIN = 54  # the line of the golden history where an operation is attempted a second time


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.run(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def run(correct: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(correct, tmp_path / "run"))


def history(run: Path) -> Path:
    return run / "history" / "load-0.jsonl"


def rewrite(path: Path, edit: Edit) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused(run: Path) -> HistoryError:
    with pytest.raises(HistoryError) as caught:
        open_evidence(run).close()
    return caught.value


def opened(run: Path) -> Evidence:
    return open_evidence(run)


def test_a_correct_run_is_complete(run: Path) -> None:
    evidence = opened(run)

    assert evidence.incomplete == []
    assert evidence.has_state
    assert evidence.load_started_ns > START_NS
    assert evidence.load_ended_ns - evidence.load_started_ns == pytest.approx(20e9, rel=0.01)


def test_every_attempt_meets_its_completion(run: Path) -> None:
    rows = golden.golden_run().history
    evidence = opened(run)

    assert evidence.scalar("SELECT count(*) FROM attempts") == sum(row["type"] == "invoke" for row in rows)
    lost = evidence.rows("SELECT * FROM attempts WHERE operation = 'g-u3-25' ORDER BY attempt")
    assert [(row["attempt"], row["type"], row["error"], row["replayed"]) for row in lost] == [
        (1, "info", "timeout", False),
        (2, "ok", None, True),
    ]
    assert lost[1]["shares_micro"] == lost[1]["r_shares_micro"] == 3_000_000
    assert sum(lost[1]["prices_micro"]) == 1_000_000


def test_a_line_number_leads_back_to_the_invoke_row(run: Path) -> None:
    evidence = opened(run)
    lines = history(run).read_text().splitlines()

    for row in evidence.rows("SELECT operation, attempt, line FROM attempts"):
        found = json.loads(lines[row["line"] - 1])
        assert (found["type"], found["operation"], found["attempt"]) == (
            "invoke",
            row["operation"],
            row["attempt"],
        )


def test_an_operation_ends_with_its_earliest_ok(run: Path) -> None:
    evidence = opened(run)

    row = evidence.rows("SELECT * FROM operations WHERE operation = 'g-u3-25'")[0]
    ok = evidence.rows("SELECT * FROM attempts WHERE operation = 'g-u3-25' AND type = 'ok'")[0]
    assert (row["type"], row["attempts"], row["infos"]) == ("ok", 2, 1)
    assert row["end_ns"] == row["answer_ns"] == ok["complete_ns"]
    assert row["trade_id"] == ok["trade_id"]
    assert row["first_invoke_ns"] < ok["invoke_ns"]


def test_an_operation_without_an_ok_never_ends(run: Path) -> None:
    evidence = opened(run)

    rows = evidence.rows("SELECT DISTINCT type, end_ns FROM operations WHERE type <> 'ok' ORDER BY type")
    assert rows == [{"type": "fail", "end_ns": None}, {"type": "info", "end_ns": None}]


def test_a_refusal_repeated_later_was_answered_the_first_time(tmp_path: Path) -> None:
    rows = golden.golden_run()
    refusal = next(row for row in rows.history if row.get("code") == "insufficient_funds")
    invoke = next(row for row in rows.history if row.get("operation") == refusal["operation"])
    later = rows.now_ns + 10_000_000
    rows.history.append(invoke | {"attempt": 2, "time_ns": later, "intended_ns": later})
    rows.history.append(refusal | {"attempt": 2, "time_ns": later + 5, "replayed": True})
    rows.tick(1_000_000_000)
    evidence = opened(rows.write(tmp_path / "run"))

    found = evidence.rows("SELECT * FROM operations WHERE operation = ?", refusal["operation"])[0]
    assert (found["type"], found["attempts"], found["answer_ns"]) == ("fail", 2, refusal["time_ns"])


def test_an_attempt_without_completion_is_unknown(run: Path) -> None:
    def forget(rows: list[Row]) -> None:
        rows.pop(-2)
        rows[-1]["rows"] -= 1

    rewrite(history(run), forget)
    evidence = opened(run)

    assert evidence.rows("SELECT type, complete_ns FROM attempts ORDER BY line DESC LIMIT 1") == [
        {"type": "info", "complete_ns": None}
    ]


def test_the_writers_write_what_the_reader_reads(run: Path) -> None:
    writer = HistoryWriter(run, "load-1")
    writer.invoke(
        Invoke(
            time_ns=2**62,
            intended_ns=5,
            process="p",
            operation="o",
            attempt=1,
            action="read_market",
            user="u",
        )
    )
    writer.complete(
        Completion(type="ok", time_ns=2**62 + 1, process="p", operation="o", attempt=1, latency_ns=1)
    )
    close_cut_history(writer.path, reason="killed")
    path = writer.path
    rewrite(path, lambda rows: rows[-1].update(time_ns=2**62 + 2))
    evidence = opened(run)

    assert evidence.rows("SELECT writer, rows, cut FROM histories ORDER BY writer") == [
        {"writer": "load-0", "rows": evidence.scalar("SELECT max(rows) FROM histories"), "cut": None},
        {"writer": "load-1", "rows": 3, "cut": "killed"},
    ]
    assert evidence.incomplete == ["history/load-1.jsonl was cut short: killed"]


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_a_view_becomes_a_table(run: Path, view: str) -> None:
    rows = golden.golden_run().rows(view)
    evidence = opened(run)

    assert evidence.scalar(f"SELECT count(*) FROM {view}") == len(rows) > 0
    names = [row["column_name"] for row in evidence.rows(f"DESCRIBE {view}")]
    assert names == list(VIEWS[view])


def test_without_books_the_record_says_so(run: Path) -> None:
    (run / "state" / "manifest.json").unlink()
    evidence = opened(run)

    assert not evidence.has_state
    assert evidence.incomplete == ["the export of the books is incomplete: no manifest.json"]
    assert evidence.scalar("SELECT count(*) FROM entries") == 0


def test_an_export_that_disagrees_with_its_manifest_is_incomplete(run: Path) -> None:
    path = run / "state" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["rows"]["entries"] += 1
    path.write_text(json.dumps(manifest | {"active": 2}))

    reasons = opened(run).incomplete
    assert len(reasons) == 2
    assert re.match(r"state/entries.parquet has \d+ rows, its manifest says \d+", reasons[0])
    assert reasons[1].startswith("the system was not quiet when the books were exported: 2 active")


def test_books_with_another_shape_are_refused(run: Path) -> None:
    (run / "state" / "trades.parquet").write_bytes((run / "state" / "prices.parquet").read_bytes())

    with pytest.raises(RunError, match=r"trades\.parquet: not the view books\.trades"):
        opened(run)


def test_how_a_trial_ended_early_is_kept(run: Path) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time_ns":1,"event":"child_died","why":"load exited -9"}\n')

    assert opened(run).incomplete == ["child_died: load exited -9"]


def test_a_load_that_never_began_is_said(run: Path) -> None:
    (run / "events.jsonl").unlink()

    assert opened(run).incomplete == ["the load never began", "the system was never brought to rest"]


def test_samples_probes_and_faults_are_tables(run: Path) -> None:
    evidence = opened(run)

    assert evidence.rows("SELECT processes ->> '$.load.cpu_percent' AS cpu FROM samples LIMIT 1") == [
        {"cpu": "12.0"}
    ]
    probed = evidence.rows("SELECT * FROM probe_results ORDER BY time_ns, name LIMIT 1")[0]
    assert (probed["name"], probed["violations"], probed["witness"]) == ("balances_equal_entries", 0, "[]")
    assert evidence.scalar("SELECT min(length(digest)) FROM probe_entries") == 32
    landed = evidence.rows("SELECT evidence ->> 'status' AS status FROM faults WHERE state = 'landed'")
    assert landed == [{"status": "200"}]
    assert evidence.scalar("SELECT to_ns > from_ns FROM fault_windows")


# -- what is refused --------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        opened(tmp_path / "nothing")


def test_a_folder_without_a_plan_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: .*plan\.json"):
        opened(tmp_path)


def test_a_run_without_history_leaves_nothing_to_judge(run: Path) -> None:
    history(run).unlink()

    with pytest.raises(RunError, match="has no history"):
        opened(run)


def test_a_line_that_is_not_json_is_named(run: Path) -> None:
    lines = history(run).read_text().splitlines()
    lines[6] = lines[6][:40]
    history(run).write_text("\n".join(lines) + "\n")

    error = refused(run)
    assert (error.path, error.line) == (history(run), 7)


def test_a_truncated_last_line_is_named(run: Path) -> None:
    data = history(run).read_bytes()
    history(run).write_bytes(data[:-20])

    error = refused(run)
    assert error.line == len(data.splitlines())
    assert error.rule == "the line has no end; the file is truncated"


def test_a_file_cut_between_lines_is_named(run: Path) -> None:
    lines = history(run).read_text().splitlines()
    history(run).write_text("\n".join(lines[:30]) + "\n")

    error = refused(run)
    assert (error.line, error.rule) == (30, "the history is truncated: it has no end row")


def test_an_empty_file_is_refused(run: Path) -> None:
    history(run).write_text("")

    assert refused(run).rule == "the file is empty; it begins with a header row"


def change(line: int, **fields: object) -> Edit:
    return lambda rows: rows[line - 1].update(fields)


BROKEN: dict[str, tuple[Edit, int, str]] = {
    "no header": (lambda rows: rows.pop(0), 1, "begins with its header row"),
    "another format": (change(1, format=9), 1, "format 9, this reader knows 1"),
    "another writer's name": (change(1, writer="load-9"), 1, "named after its writer"),
    "a second header": (lambda rows: rows.insert(4, rows[0]), 5, "a second header row"),
    "rows after the end": (lambda rows: rows.insert(9, rows[-1]), 10, "rows after the end row"),
    "a wrong count": (lambda rows: rows[-1].update(rows=7), 90, "the end row counts 7 rows before it"),
    "an unknown type": (change(5, type="maybe"), 5, "a row's type is"),
    "no time": (lambda rows: rows[4].pop("time_ns"), 5, "the row has no time_ns"),
    "time that decreases": (change(5, time_ns=START_NS), 5, "the time decreases"),
    "an unknown action": (change(4, action="give_away"), 4, "unknown action give_away"),
    "no action": (lambda rows: rows[3].pop("action"), 4, "an invoke row has action"),
    "attempt zero": (change(4, attempt=0), 4, "a number from 1"),
    "no operation": (lambda rows: rows[3].pop("operation"), 4, "an attempt has process, operation"),
    "a negative latency": (change(5, latency_ns=-1), 5, "a completion has a latency_ns"),
    "an attempt invoked twice": (
        lambda rows: rows[5].update(rows[3] | {"time_ns": rows[5]["time_ns"]}),
        6,
        "attempt 1 of g-admin-2 is invoked twice",
    ),
    "an attempt completed twice": (
        lambda rows: rows[6].update(rows[4] | {"time_ns": rows[6]["time_ns"]}),
        7,
        "attempt 1 of g-admin-2 is completed twice",
    ),
    "a completion of nothing": (change(5, operation="nobody"), 5, "attempt 1 of nobody was never invoked"),
    "attempts that skip one": (
        change(AGAIN, attempt=3),
        AGAIN,
        "attempts of g-u3-25 count 1, 2, 3; this is 3",
    ),
    "another key": (
        change(AGAIN, key="other"),
        AGAIN,
        "g-u3-25 changes its action, user, key, market or request",
    ),
    "another user": (change(AGAIN, user="u9"), AGAIN, "g-u3-25 changes its action"),
    "no key any more": (lambda rows: rows[AGAIN - 1].pop("key"), AGAIN, "g-u3-25 changes its action"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_malformed_history_is_refused_with_its_line(run: Path, name: str) -> None:
    edit, line, rule = BROKEN[name]
    if name == "attempts that skip one":
        rewrite(history(run), change(AGAIN + 1, attempt=3))
    rewrite(history(run), edit)

    error = refused(run)
    assert error.path == history(run)
    assert (error.line, rule in error.rule) == (line, True), error


def test_a_completion_before_its_invoke_is_refused(run: Path) -> None:
    def swap(rows: list[Row]) -> None:
        rows[3]["time_ns"], rows[4]["time_ns"] = rows[4]["time_ns"], rows[3]["time_ns"]
        rows[3], rows[4] = rows[4], rows[3]

    rewrite(history(run), swap)
    error = refused(run)
    assert (error.line, "completed before its invoke" in error.rule) == (4, True)


def test_a_completion_in_another_file_is_refused(run: Path) -> None:
    rows = [json.loads(line) for line in history(run).read_text().splitlines()]
    moved = rows.pop(4)
    rows[-1]["rows"] -= 1
    history(run).write_text("".join(json.dumps(row) + "\n" for row in rows))
    end = {"type": "end", "time_ns": moved["time_ns"], "rows": 2}
    other = [rows[0] | {"writer": "load-1"}, moved, end]
    path = run / "history" / "load-1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in other))

    error = refused(run)
    assert (error.path, error.line) == (path, 2)
    assert "in another file" in error.rule


@pytest.mark.parametrize("name", ["faults", "samples", "probes", "events"])
def test_a_torn_row_beside_the_history_is_named(run: Path, name: str) -> None:
    path = run / f"{name}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], '{"time_ns": "soon"', *lines[1:]]) + "\n")

    error = refused(run)
    assert (error.path, error.line) == (path, 2)


def test_a_header_is_what_the_writer_writes(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path, "w")
    writer.close()

    assert json.loads(writer.path.read_text().splitlines()[0]).keys() == {
        "type",
        *Header.__struct_fields__,
    }
