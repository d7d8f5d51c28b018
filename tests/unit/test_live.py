"""The live view and what it reads."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
from rich.console import Console

from reports.live import LiveView, Now, ProbesSoFar
from scenarios.history import Probe, ProbeResult

NOW = Now(
    phase="steady",
    elapsed_s=12.4,
    planned_s=60,
    users=100,
    in_flight=3,
    trades_per_s=412.6,
    ok=900,
    fail=40,
    info=2,
    p50_ms=4.2,
    p99_ms=31.0,
    faults=("kill_server",),
    landed=4,
    planned=9,
    probes=11,
)


def shown(now: Now, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=110, color_system=None)
    with LiveView(console, "quick on hot_market, seed 7") as view:
        view.show(now)
        view.show(now)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_one_line_that_says_it_all() -> None:
    assert shown(NOW, terminal=False).splitlines() == [
        "    12/60 s steady: 100 users 413 trades/s p50 4.2 p99 31.0 ms ok 900 fail 40 info 2"
        " landed 4/9 fault kill_server"
    ]


def test_a_terminal_shows_the_current_fault_and_gets_its_cursor_back() -> None:
    screen = shown(NOW, terminal=True)

    assert "kill_server   (4 of 9 landed)" in screen
    assert "11 readings, every invariant held so far" in screen
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") == 1


def test_a_broken_invariant_is_shown_while_the_load_goes_on() -> None:
    broken = msgspec.structs.replace(NOW, probe_violations=("money_is_conserved",))

    assert "BROKEN: money_is_conserved" in shown(broken, terminal=True)
    assert "BROKEN money_is_conserved" in shown(broken, terminal=False)


def test_probes_are_followed_as_their_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    probes = ProbesSoFar(path)
    probes.read()
    assert probes.readings == 0

    held = Probe(time_ns=1, results={"money_is_conserved": ProbeResult(examined=5, violations=0)})
    broken = Probe(time_ns=2, results={"balances_equal_entries": ProbeResult(examined=5, violations=1)})
    failed = Probe(time_ns=3, error="the database is starting up")
    lines = [msgspec.json.encode(probe) + b"\n" for probe in (held, broken, failed)]
    path.write_bytes(lines[0] + lines[1][:20])
    probes.read()
    assert (probes.readings, probes.broken) == (1, ())

    path.write_bytes(b"".join(lines))
    probes.read()
    assert (probes.readings, probes.broken) == (2, ("balances_equal_entries",))
