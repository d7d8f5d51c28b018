"""The live view: one screen that a run keeps up to date while it goes on, or plain lines where there is none.

On a terminal it redraws in place; elsewhere (a CI log) it prints a line every few seconds. It shows what
was seen so far and judges nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scenarios.history import Probe

PLAIN_EVERY_S = 5.0
READ_BYTES_MAX = 4 << 20


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run at one moment. Latencies in milliseconds from the intended start."""

    phase: str
    elapsed_s: float
    planned_s: float
    users: int = 0
    in_flight: int = 0
    trades_per_s: float = 0.0
    ok: int = 0
    fail: int = 0
    info: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    faults: tuple[str, ...] = ()
    landed: int = 0
    planned: int = 0
    probes: int = 0
    probe_violations: tuple[str, ...] = ()


class LiveView:
    """Shows `Now` rows; a context manager, so that the terminal is always given back."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._printed_s = 0.0

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, text: str) -> None:
        """One line that stays: a phase of the run has begun or ended."""
        self._console.print(Text("• ", style="cyan").append(text, style="none"), highlight=False)

    def show(self, now: Now) -> None:
        if self._live is not None:
            self._live.update(self._screen(now))
            return
        if time.monotonic() - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = time.monotonic()
            self._console.print(plain_line(now), highlight=False, soft_wrap=True)

    def _screen(self, now: Now) -> Table:
        table = Table.grid(padding=(0, 3))
        table.add_column(style="dim", justify="right")
        table.add_column()
        done = min(1.0, now.elapsed_s / now.planned_s) if now.planned_s else 0.0
        bar = "█" * round(done * 30) + "░" * (30 - round(done * 30))
        table.add_row("", Text(self._title, style="bold"))
        table.add_row("phase", f"{now.phase}  {bar}  {now.elapsed_s:.0f} of {now.planned_s:.0f} s")
        table.add_row("users", f"{now.users}, {now.in_flight} requests in flight")
        table.add_row("trades", f"{now.trades_per_s:.0f}/s")
        table.add_row(
            "latency", f"p50 {now.p50_ms:.1f} ms   p99 {now.p99_ms:.1f} ms   (from the intended start)"
        )
        outcomes = Text(f"ok {now.ok}", style="green")
        outcomes.append(f"   fail {now.fail}", style="yellow").append(f"   info {now.info}", style="magenta")
        table.add_row("outcomes", outcomes)
        current = ", ".join(now.faults) or "none"
        table.add_row(
            "fault",
            Text(f"{current}   ({now.landed} of {now.planned} landed)", style="red" if now.faults else ""),
        )
        table.add_row("books", probe_text(now))
        return table


def probe_text(now: Now) -> Text:
    """What the probes of the books have seen so far."""
    if now.probe_violations:
        return Text(f"{now.probes} readings; BROKEN: {', '.join(now.probe_violations)}", style="bold red")
    return Text(f"{now.probes} readings, every invariant held so far" if now.probes else "not read yet")


def plain_line(now: Now) -> str:
    """The same as one line, for a log."""
    fault = f" fault {'+'.join(now.faults)}" if now.faults else ""
    broken = f" BROKEN {','.join(now.probe_violations)}" if now.probe_violations else ""
    return (
        f"  {now.elapsed_s:4.0f}/{now.planned_s:.0f} s {now.phase}: {now.users} users"
        f" {now.trades_per_s:.0f} trades/s"
        f" p50 {now.p50_ms:.1f} p99 {now.p99_ms:.1f} ms ok {now.ok} fail {now.fail} info {now.info}"
        f" landed {now.landed}/{now.planned}{fault}{broken}"
    )


class ProbesSoFar:
    """Follows probes.jsonl as it grows: how many readings there were and which invariants they saw broken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.readings = 0
        self.broken: tuple[str, ...] = ()

    def read(self) -> None:
        """Take in the whole lines that were added since the last call."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(READ_BYTES_MAX)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            probe = msgspec.json.decode(line, type=Probe)
            self.readings += probe.error is None
            broken = {name for name, result in probe.results.items() if result.violations}
            self.broken = tuple(sorted({*self.broken, *broken}))
