"""The load of `scenarios.recording_cost`: one variant of a closed loop of buys against a trivial server.

A locustfile. `recorded` is the client of every run; `unrecorded` is the same client that writes no rows;
`fast_http_user` is Locust's own client, which sends the same request. After a warm-up it counts requests,
time and processor time of this process, writes them to SEATRIAL_COST_OUT as one JSON line, and ends.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, User, constant, events, task

from scenarios.client import Client, Operation, Patience, Recorder
from scenarios.history import HistoryWriter
from scenarios.intents import trade
from scenarios.live import Live
from scenarios.replies import Seen, seen_reply
from scenarios.wire import resolve

VARIANT = os.environ["SEATRIAL_COST_VARIANT"]
SECONDS = float(os.environ["SEATRIAL_COST_SECONDS"])
OUT = Path(os.environ["SEATRIAL_COST_OUT"])
WARM_UP_S = min(1.0, SECONDS)
PATIENCE_S = 10.0
INTENT = trade("buy_shares", 1, 0, "buy", shares_micro=1_000_000)

numbers = itertools.count()
recorder: Recorder
done = 0


class Unrecorded(Client):
    """The same client, whose attempts leave no rows."""

    def _attempt(self, operation: Operation, intended_ns: int) -> Seen:
        live = self._recorder.live
        operation.attempts += 1
        live.in_flight += 1
        reply = self._wire.exchange(operation.request_bytes, patience_s=PATIENCE_S)
        seen_ns = time.monotonic_ns()
        seen = seen_reply(operation.intent.action, reply)
        live.in_flight -= 1
        live.count(operation.intent.action, seen.type, seen_ns - intended_ns)
        return seen


class ClosedLoopUser(User):  # type: ignore[misc]
    """Buys as fast as it is answered, through our client."""

    abstract = VARIANT == "fast_http_user"
    wait_time = constant(0)

    def on_start(self) -> None:
        number = next(numbers)
        kind = Client if VARIANT == "recorded" else Unrecorded
        self.client = kind(
            recorder, process=f"cost-{number}", user=f"u{number}", token="token", seed=str(number)
        )

    @task  # type: ignore[untyped-decorator]
    def buy(self) -> None:
        global done
        if self.client.perform(INTENT, intended_ns=time.monotonic_ns()).type == "ok":
            done += 1


class LocustsOwnUser(FastHttpUser):  # type: ignore[misc]
    """Buys as fast as it is answered, through Locust's fast client."""

    abstract = VARIANT != "fast_http_user"
    wait_time = constant(0)

    def on_start(self) -> None:
        self.number = next(numbers)
        self.sent = 0
        self.headers = {"Authorization": "Bearer token", "Content-Type": "application/json"}

    @task  # type: ignore[untyped-decorator]
    def buy(self) -> None:
        global done
        self.sent += 1
        self.headers["Idempotency-Key"] = f"cost-{self.number}-{self.sent}"
        if self.client.post("/api/trade", data=INTENT.body, headers=self.headers).status_code == 200:
            done += 1


@events.init.add_listener  # type: ignore[untyped-decorator]
def open_history(environment: Any, **_: Any) -> None:
    global recorder
    recorder = Recorder(
        HistoryWriter(OUT.parent, VARIANT),
        Live(),
        resolve(environment.host),
        Patience(reply_s=PATIENCE_S, answer_s=0.0),
        "cost",
    )


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Any, **_: Any) -> None:
    gevent.spawn(measure, environment.runner)


def measure(runner: Any) -> None:
    """Count what happens between two instants, and end."""
    gevent.sleep(WARM_UP_S)  # the length of the warm-up
    first = (time.monotonic(), time.process_time(), done)
    gevent.sleep(SECONDS)  # the length of the measurement
    seconds, cpu_s, requests = (
        now - then for now, then in zip((time.monotonic(), time.process_time(), done), first, strict=True)
    )
    OUT.write_text(json.dumps({"requests": requests, "seconds": seconds, "cpu_s": cpu_s}))
    runner.quit()
