"""The bench's client over HTTP: Locust users in a closed loop, each buying one share as fast as it is served.

A locustfile for `locust --headless`; it measures capacity, so it neither paces nor records. Its figures go
to the file named by SEATRIAL_BENCH_OUT as one JSON line, with exact percentiles where Locust's are rounded.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from locust import FastHttpUser, constant, events, task

ACCESS: dict[str, Any] = json.loads(Path(os.environ["SEATRIAL_BENCH_ACCESS"]).read_text())
SHARES_MICRO = 1_000_000
latencies_s: list[float] = []
counts = {"ok": 0, "refused": 0}
began = itertools.count()


class Buyer(FastHttpUser):  # type: ignore[misc]  # Locust ships no types
    """One user with one token; the outcomes alternate so that the price stays where it is."""

    wait_time = constant(0)
    connection_timeout = network_timeout = 30.0

    def on_start(self) -> None:
        self.number = next(began)
        self.headers = {
            "Authorization": f"Bearer {ACCESS['tokens'][self.number % len(ACCESS['tokens'])]}",
            "Content-Type": "application/json",
        }
        self.bodies = [
            json.dumps(
                {"marketId": ACCESS["market"], "outcome": outcome, "side": "buy", "shares": SHARES_MICRO}
            )
            for outcome in (0, 1)
        ]
        self.sent = 0

    @task  # type: ignore[untyped-decorator]
    def buy(self) -> None:
        self.sent += 1
        self.headers["Idempotency-Key"] = f"bench-{ACCESS['run']}-{self.number}-{self.sent}"
        started = time.perf_counter()
        reply = self.client.post("/api/trade", data=self.bodies[self.sent % 2], headers=self.headers)
        if reply.status_code == 200:
            counts["ok"] += 1
            latencies_s.append(time.perf_counter() - started)
        else:
            counts["refused"] += 1


@events.quit.add_listener  # type: ignore[untyped-decorator]
def write_figures(**_: Any) -> None:
    levels = np.quantile(latencies_s, [0.5, 0.99, 1.0]) * 1000 if latencies_s else np.zeros(3)
    Path(os.environ["SEATRIAL_BENCH_OUT"]).write_text(
        json.dumps(
            {
                "replied_ok": counts["ok"],
                "refused": counts["refused"],
                "p50_ms": float(levels[0]),
                "p99_ms": float(levels[1]),
                "max_ms": float(levels[2]),
            }
        )
    )
