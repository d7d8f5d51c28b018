"""The rows of a history: how they are written, closed after a death, and refused when they are not rows."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from scenarios.history import (
    ACTIONS,
    MONEY_ACTIONS,
    ONCHAIN_ACTIONS,
    READ_ACTIONS,
    SETUP_ACTIONS,
    Completion,
    End,
    Facts,
    FaultRow,
    Header,
    HistoryError,
    HistoryWriter,
    Invoke,
    JsonLines,
    Request,
    Sample,
    close_cut_history,
    digest,
    read_rows,
)
from scenarios.plan import SCENARIOS

Row = Header | Invoke | Completion | End

INVOKE = Invoke(
    time_ns=10,
    intended_ns=9,
    process="w0-1",
    operation="t-w0-1-1",
    attempt=1,
    action="buy_shares",
    user="u1",
    key="t-w0-1-1",
    market=3,
    request_hash="ab",
    request=Request(outcome=0, side="buy", shares_micro=1_000_000, limit_micro=7),
)
COMPLETION = Completion(
    type="ok",
    time_ns=20,
    process="w0-1",
    operation="t-w0-1-1",
    attempt=1,
    latency_ns=10,
    status=200,
    reply_hash="cd",
    facts=Facts(trade_id=1, market_id=3, market_version=1, prices_micro=[500_000, 500_000]),
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A history of one attempt, closed by its writer."""
    writer = HistoryWriter(tmp_path, "w0")
    writer.invoke(INVOKE)
    writer.complete(COMPLETION)
    writer.close()
    return writer.path


def rows_of(path: Path) -> list[msgspec.Struct]:
    decoder: msgspec.json.Decoder[Header | Invoke | End] = msgspec.json.Decoder(Header | Invoke | End)
    rows: list[msgspec.Struct] = []
    for line in path.read_bytes().splitlines():
        kind = msgspec.json.decode(line)["type"]
        own = kind in ("header", "invoke", "end")
        rows.append(decoder.decode(line) if own else msgspec.json.decode(line, type=Completion))
    return rows


def test_what_is_written_is_what_is_read(written: Path) -> None:
    header, invoke, completion, end = rows_of(written)
    assert isinstance(header, Header)
    assert header.writer == "w0"
    assert invoke == INVOKE
    assert completion == COMPLETION
    assert isinstance(end, End)
    assert (end.rows, end.cut) == (3, None)


def test_an_invoke_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path, "w0")
    writer.invoke(INVOKE)
    assert rows_of(writer.path)[-1] == INVOKE


def test_what_a_row_does_not_say_is_absent(written: Path) -> None:
    invoke, completion = written.read_bytes().splitlines()[1:3]
    assert b"amount_micro" not in invoke
    assert b"null" not in invoke + completion
    assert b"error" not in completion
    assert b"replayed" not in completion


def test_a_file_has_one_writer_and_one_life(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(FileExistsError, match="one writer and one life"):
        HistoryWriter(written.parent.parent, "w0")
    assert written.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_not_a_lost_row(tmp_path: Path) -> None:
    path = tmp_path / "w0.jsonl"
    path.symlink_to("/dev/full")
    with JsonLines(path) as lines, pytest.raises(OSError, match="No space"):
        lines.append(INVOKE)
    assert lines.rows == 0


def test_a_closed_history_is_left_alone(written: Path) -> None:
    before = written.read_bytes()
    close_cut_history(written, reason="killed")
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    "cut_at", ["after the header", "after the invoke", "inside the completion", "inside the end"]
)
def test_a_cut_history_is_closed_as_cut(written: Path, cut_at: str) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    whole, torn = {
        "after the header": (lines[:1], b""),
        "after the invoke": (lines[:2], b""),
        "inside the completion": (lines[:2], lines[2][:40]),
        "inside the end": (lines[:3], lines[3][:-1]),
    }[cut_at]
    written.write_bytes(b"".join(whole) + torn)
    close_cut_history(written, reason="exit -9")
    assert written.read_bytes().splitlines(keepends=True)[:-1] == whole
    end = rows_of(written)[-1]
    assert isinstance(end, End)
    assert (end.rows, end.cut) == (len(whole), "exit -9")


def test_a_cut_history_is_closed_once(written: Path) -> None:
    written.write_bytes(b"".join(written.read_bytes().splitlines(keepends=True)[:-1]))
    close_cut_history(written, reason="first")
    before = written.read_bytes()
    close_cut_history(written, reason="second")
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"time_ns":1,"phase":"steady"}', "truncated"),
        ("garbage\n", "not a Sample row"),
        ("\n", "not a Sample row"),
        ('{"phase":"steady"}\n', "time_ns"),
        ('{"time_ns":"1","phase":"steady"}\n', "Expected `int`"),
        ('{"time_ns":1.5,"phase":"steady"}\n', "Expected `int`"),
        ('{"time_ns":1,"phase":"steady","surprise":1}\n', "surprise"),
    ],
)
def test_a_malformed_row_is_refused_with_its_file_and_line(tmp_path: Path, line: str, rule: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"time_ns":1,"phase":"setup"}\n' + line)
    with pytest.raises(HistoryError, match=rule) as caught:
        list(read_rows(path, Sample))
    assert (caught.value.path, caught.value.line) == (path, 2)
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_rows_before_a_malformed_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    with JsonLines(path) as lines:
        lines.append(FaultRow(time_ns=1, fault_id="f001", fault="kill_server", state="planned"))
    with path.open("a") as file:
        file.write('{"time_ns":1,"fault_id":"f001","fault":"kill_server","state":"lost"}\n')
    reader = read_rows(path, FaultRow)
    assert next(reader).state == "planned"
    with pytest.raises(HistoryError, match="line 2"):
        next(reader)


def test_rows_are_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "faults.jsonl"
    for number in (1, 2):
        with JsonLines(path) as lines:
            lines.append(FaultRow(time_ns=number, fault_id="f001", fault="kill_server", state="planned"))
    assert [row.time_ns for row in read_rows(path, FaultRow)] == [1, 2]


def test_a_closed_file_gives_its_descriptor_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.close()
    lines.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_digest_is_128_bits_of_sha_256() -> None:
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb924"


def test_an_action_is_of_one_kind() -> None:
    kinds = (MONEY_ACTIONS, ONCHAIN_ACTIONS, READ_ACTIONS, SETUP_ACTIONS)
    assert sum(len(kind) for kind in kinds) == len(ACTIONS)
    assert frozenset().union(*kinds) == ACTIONS


def test_every_action_of_a_scenario_can_be_recorded() -> None:
    # A replay is recorded as the action that it repeats.
    assert frozenset().union(*SCENARIOS.values()) - {"replay"} <= ACTIONS
