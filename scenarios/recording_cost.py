"""What recording costs: `python -m scenarios.recording_cost` measures it and prints a table.

1. a trivial HTTP server of its own answers every request with the same trade, on the other core;
2. round after round Locust runs the same closed loop with recording, without it, and with Locust's own
   FastHttpUser, one after another, so that whatever else the machine does meets all three;
3. each round gives one ratio of rates; what is reported is their median and their spread.

Processor time is reported beside the rates: it is the steadier figure where others use the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parent.parent
VARIANTS = ("recorded", "unrecorded", "fast_http_user")
TARGET = 0.20
START_AND_STOP_S = 60.0
TRADE = msgspec.json.encode(
    {
        "tradeId": 1_000_001,
        "transactionId": 2_000_001,
        "marketId": 1,
        "marketVersion": 1_000_001,
        "outcome": 0,
        "side": "buy",
        "shares": 1_000_000,
        "cost": 500_123,
        "fee": 5_002,
        "total": 505_125,
        "balance": 994_494_875,
        "accountVersion": 17,
        "prices": [500_250, 499_750],
    }
)
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(TRADE),
    TRADE,
)


class Measured(NamedTuple):
    """One variant in one round."""

    rate_per_s: float
    cpu_us: float


class TrivialServer(asyncio.Protocol):
    """Answers each request with REPLY; knows as much HTTP as its client uses."""

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its looks only

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            begin = head.find(b"content-length:")
            size = int(head[begin + 15 :].split(b"\r\n", 1)[0]) if begin >= 0 else 0
            if len(self._data) < end + 4 + size:
                return
            self._data = self._data[end + 4 + size :]
            self._transport.write(REPLY)


async def serve() -> None:
    """Serve on a free port, print it, and go on until killed."""
    server = await asyncio.get_running_loop().create_server(TrivialServer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def trivial_server() -> Iterator[str]:
    """The URL of a trivial server in a process of its own."""
    command = [sys.executable, "-m", "scenarios.recording_cost", "--serve"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def measure(variant: str, url: str, *, users: int, seconds: float) -> Measured:
    """Run Locust once; raises RuntimeError with its log when it has no figures."""
    with tempfile.TemporaryDirectory(
        prefix="seatrial-cost-", dir=os.environ.get("SEATRIAL_DATA_DIR", "/var/tmp")
    ) as folder:
        out = Path(folder) / "figures.json"
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "locust",
                    "--locustfile",
                    str(PROJECT / "scenarios/recording_load.py"),
                ),
                *("--headless", "--only-summary", "--loglevel", "WARNING", "--host", url),
                *("--users", str(users), "--spawn-rate", str(users)),
            ],
            cwd=PROJECT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))),
                "SEATRIAL_COST_VARIANT": variant,
                "SEATRIAL_COST_SECONDS": str(seconds),
                "SEATRIAL_COST_OUT": str(out),
            },
            capture_output=True,
            text=True,
            timeout=seconds + START_AND_STOP_S,
            check=False,
        )
        if not out.exists():
            raise RuntimeError(f"the {variant} load exited {done.returncode}:\n{done.stderr[-2000:]}")
        figures = json.loads(out.read_text())
    if figures["requests"] == 0:
        raise RuntimeError(f"the {variant} load had no request answered:\n{done.stderr[-2000:]}")
    return Measured(figures["requests"] / figures["seconds"], figures["cpu_s"] / figures["requests"] * 1e6)


def table(rounds: list[dict[str, Measured]]) -> str:
    """The figures of all rounds, for a person."""
    lines = [f"{'client':<16}{'requests/s':>12}{'CPU us/request':>16}"]
    for variant in VARIANTS:
        rate = statistics.median(measured[variant].rate_per_s for measured in rounds)
        cpu_us = statistics.median(measured[variant].cpu_us for measured in rounds)
        lines.append(f"{variant:<16}{rate:>12,.0f}{cpu_us:>16.1f}")
    ratios = [one["recorded"].rate_per_s / one["fast_http_user"].rate_per_s for one in rounds]
    lines += [
        "",
        f"recording costs {spread(costs(rounds))} of the same client's rate; target: at most {TARGET:.0%}",
        f"the recording client is {statistics.median(ratios):.2f} times as fast as FastHttpUser"
        f" ({min(ratios):.2f} to {max(ratios):.2f})",
    ]
    return "\n".join(lines)


def costs(rounds: list[dict[str, Measured]]) -> list[float]:
    """The share of the rate that recording took in each round."""
    return [1 - one["recorded"].rate_per_s / one["unrecorded"].rate_per_s for one in rounds]


def spread(shares: list[float]) -> str:
    """Median, least and most of some shares."""
    return f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit 1 when the median share of the rate is above the target."""
    parser = argparse.ArgumentParser(
        prog="python -m scenarios.recording_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--users", type=int, default=50, help="users in a closed loop (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all three loads (default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve:
        uvloop.run(serve())
        return 0
    rounds = []
    with trivial_server() as url:
        for number in range(asked.rounds):
            # The order turns with each round, so that no variant is always the one after another.
            order = VARIANTS[number % 3 :] + VARIANTS[: number % 3]
            rounds.append({v: measure(v, url, users=asked.users, seconds=asked.seconds) for v in order})
            rates = ", ".join(f"{v} {rounds[-1][v].rate_per_s:,.0f}/s" for v in VARIANTS)
            print(f"round {number + 1} of {asked.rounds}: {rates}", flush=True)
    print("\n" + table(rounds))
    return 0 if statistics.median(costs(rounds)) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
