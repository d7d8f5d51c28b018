"""How fast the judge is: synthetic runs of a quarter, a half and the whole size, each judged in a child.

    python -m reports.judge_speed [--operations 1000000] [--checks]

The target is a million operations with all checkers in less than 15 s and 4 GiB, growing no worse than
n log n. Exit 1 when a verdict is not pass, or when the target is missed at its own size or above.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reports.evidence import Evidence, open_evidence
from reports.invariants.registry import load_registry
from reports.judge import examine, judge
from reports.latency import make_answered
from reports.synthetic import write_run

TARGET_OPERATIONS = 1_000_000
TARGET_S = 15.0
TARGET_BYTES = 4 << 30
CHILD_TIMEOUT_S = 600
OPERATIONS_MIN = 40_000


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m reports.judge_speed", description=__doc__)
    parser.add_argument("--operations", type=int, default=TARGET_OPERATIONS, help="size of the largest run")
    parser.add_argument("--checks", action="store_true", help="also the seconds of each check, at full size")
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--time-checks", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.judge or asked.time_checks:
        print(json.dumps(time_judge(asked.judge) if asked.judge else time_checks(asked.time_checks)))
        return 0
    if asked.operations < OPERATIONS_MIN:
        parser.error(f"--operations: at least {OPERATIONS_MIN}; a smaller run does not exercise every check")
    print(f"{'operations':>12} {'seconds':>8} {'CPU s':>8} {'growth':>7} {'peak MB':>8}  verdict")
    before_cpu_s, kept = 0.0, True
    for operations in (asked.operations // 4, asked.operations // 2, asked.operations):
        with tempfile.TemporaryDirectory(
            prefix="seatrial-judge-", dir=os.environ.get("SEATRIAL_DATA_DIR", "/var/tmp")
        ) as folder:
            run = Path(folder) / "run"
            write_run(run, operations=operations)
            before_cpu_s, fine = measure(run, operations, before_cpu_s)
            kept = kept and fine
            if asked.checks and operations == asked.operations:
                for name, (check_s, cpu_s) in in_child("--time-checks", run).items():
                    print(f"{'':12} {check_s:8.2f} {cpu_s:8.2f} {'':16}  {name}")
    print(f"target: {TARGET_OPERATIONS:,} operations in < {TARGET_S:.0f} s and < {TARGET_BYTES >> 30} GiB")
    return 0 if kept else 1


def measure(run: Path, operations: int, before_cpu_s: float) -> tuple[float, bool]:
    """Judge a run and print its line; its CPU seconds, and whether verdict and target are as they should be.

    Growth is that of the CPU time, which other work on the machine blurs least.
    """
    started_s = time.monotonic()
    found = in_child("--judge", run)
    took_s = time.monotonic() - started_s
    cpu_s, peak_bytes, verdict = found["cpu_s"], found["peak_bytes"], found["verdict"]
    growth = f"{cpu_s / before_cpu_s:.2f}x" if before_cpu_s else "-"
    print(
        f"{operations:12,} {took_s:8.1f} {cpu_s:8.1f} {growth:>7} {peak_bytes / 1e6:8,.0f}  {verdict}",
        flush=True,
    )
    if verdict != "pass":
        print("\n".join(f"    {reason}" for reason in found["reasons"]))
    on_target = operations < TARGET_OPERATIONS or (took_s < TARGET_S and peak_bytes < TARGET_BYTES)
    return cpu_s, on_target and verdict == "pass"


def in_child(option: str, run: Path) -> dict[str, Any]:
    """What this module, as a process of its own, says of a run."""
    done = subprocess.run(
        [sys.executable, "-m", "reports.judge_speed", option, str(run)],
        stdout=subprocess.PIPE,
        timeout=CHILD_TIMEOUT_S,
        check=True,
    )
    return dict(json.loads(done.stdout))


def time_judge(run: Path) -> dict[str, Any]:
    """Judge; the verdict and the peak of this process's memory."""
    verdict = judge(run)
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Linux counts kilobytes, macOS bytes.
    peak_bytes = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu_s = used.ru_utime + used.ru_stime
    return {"verdict": verdict.verdict, "reasons": verdict.reasons, "peak_bytes": peak_bytes, "cpu_s": cpu_s}


def time_checks(run: Path) -> dict[str, list[float]]:
    """Seconds, and CPU seconds of all threads, of opening the evidence and of each check."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        started_s, cpu_s = time.monotonic(), time.process_time()
        work()
        seconds[name] = [time.monotonic() - started_s, time.process_time() - cpu_s]

    opened: list[Evidence] = []
    timed("(reading the run)", lambda: opened.append(open_evidence(run)))
    evidence = opened[0]
    for known in load_registry():
        timed(known.name, functools.partial(examine, evidence, known))
    timed("(latencies)", functools.partial(make_answered, evidence))
    evidence.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
