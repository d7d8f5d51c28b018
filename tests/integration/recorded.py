"""A recorded history as a test reads it: row by row, asserting every rule of docs/run-directory.md."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from scenarios.history import Completion, End, Header, Invoke


class Attempt(NamedTuple):
    """One attempt and what became of it; None for nothing recorded."""

    invoke: Invoke
    completion: Completion | None


class Recorded(NamedTuple):
    """One history file: its attempts in the order they were made, and its end row."""

    attempts: list[Attempt]
    end: End

    def types(self) -> list[str]:
        """The outcome of each attempt, in order."""
        return ["none" if one.completion is None else one.completion.type for one in self.attempts]


def read_run(run: Path) -> list[Recorded]:
    """All history files of a run, by name."""
    return [read_history(path) for path in sorted((run / "history").glob("*.jsonl"))]


def read_history(path: Path) -> Recorded:
    """One well-formed history file."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    lines = data.splitlines()
    header = msgspec.json.decode(lines[0], type=Header)
    end = msgspec.json.decode(lines[-1], type=End)
    assert header.writer == path.stem
    assert end.rows == len(lines) - 1
    invokes: dict[tuple[str, int], Invoke] = {}
    completions: dict[tuple[str, int], Completion] = {}
    last_ns = header.time_ns
    for line in lines[1:-1]:
        row: Invoke | Completion = (
            msgspec.json.decode(line, type=Invoke)
            if b'"type":"invoke"' in line[:20]
            else msgspec.json.decode(line, type=Completion)
        )
        assert row.time_ns >= last_ns
        last_ns = row.time_ns
        place = (row.operation, row.attempt)
        if isinstance(row, Invoke):
            assert place not in invokes
            check_first(invokes, row)
            invokes[place] = row
        else:
            assert place in invokes
            assert place not in completions
            assert row.process == invokes[place].process
            assert row.latency_ns == row.time_ns - invokes[place].time_ns
            completions[place] = row
    assert end.time_ns >= last_ns
    return Recorded([Attempt(invoke, completions.get(place)) for place, invoke in invokes.items()], end)


def check_first(invokes: dict[tuple[str, int], Invoke], row: Invoke) -> None:
    """Attempts count 1, 2, 3, and an operation keeps what it is."""
    if row.attempt == 1:
        return
    before = invokes[row.operation, row.attempt - 1]
    changing = {"time_ns": 0, "intended_ns": 0, "attempt": 0}
    assert msgspec.structs.replace(row, **changing) == msgspec.structs.replace(before, **changing)
