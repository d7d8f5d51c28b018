"""The nemesis: injects the faults of a plan on its seeded schedule, and writes faults.jsonl.

1. schedule: the plan's faults as single injections, each with its own id, second and logical trigger.
2. Two lanes run side by side: faults of requests are armed in the proxy when their time has come, and land
   when their request does; faults of processes are injected and healed one after the other, so that no two
   of them are ever in effect at once.
3. Each injection is a row planned, then armed (from here on it may be in effect), landed with evidence,
   healed with evidence; or failed with the reason. A fault's window is from armed to healed or failed.

A fault that does not land is a fact for the judge, not an error. An error of the nemesis is a fault that
stays unhealed, or a nemesis that can no longer work; it is kept in `error` and ends the load.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.faults import Fault, FaultError, ProcessFault, RequestFault, World, make_fault
from chaos.http_messages import Evidence
from chaos.proxy_control import Happened, ProxyError
from scenarios.history import FaultRow, FaultState, JsonLines
from scenarios.plan import Plan

NTH_MAX = 10


@dataclass(frozen=True)
class Injection:
    """One fault of the schedule, `at_s` after load start; `nth` counts matching requests from then."""

    fault_id: str
    fault: str
    at_s: float
    nth: int
    options: dict[str, Any]

    def made(self) -> Fault:
        return make_fault(self.fault, self.options)


def schedule(plan: Plan, seed: int) -> list[Injection]:
    """All injections of a plan in order of time: a pure function of plan and seed; raises FaultError.

    `count` injections divide their stretch of time into equal slices, and each comes at random in the middle
    half of its own: never two of them closer than half a slice.
    """
    drawn: list[tuple[float, int, str, int, dict[str, Any]]] = []
    for index, planned in enumerate(plan.faults):
        make_fault(planned.fault, planned.options)
        draw = random.Random(f"{seed}/{index}/{planned.fault}")
        slice_s = planned.during_s / planned.count
        for turn in range(planned.count):
            at_s = planned.at_s + slice_s * (turn + draw.uniform(0.25, 0.75))
            drawn.append((at_s, index, planned.fault, draw.randint(1, NTH_MAX), planned.options))
    drawn.sort(key=lambda one: one[:2])
    return [
        Injection(fault_id=f"f{number:03}", fault=fault, at_s=round(at_s, 6), nth=nth, options=options)
        for number, (at_s, _, fault, nth, options) in enumerate(drawn, start=1)
    ]


class Nemesis:
    """Runs one schedule against one world; `stop_and_heal` must be called whatever happens."""

    def __init__(self, plan: Plan, seed: int, world: World, faults_file: Path) -> None:
        self.landed = 0
        self.error: Exception | None = None
        self._schedule = schedule(plan, seed)
        self._world = world
        self._file = JsonLines(faults_file)
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._open: dict[str, Injection] = {}  # planned, and neither healed nor failed yet
        self._in_effect: dict[str, Injection] = {}  # armed, and neither healed nor failed yet
        self._stop = threading.Event()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    @property
    def planned(self) -> int:
        return len(self._schedule)

    @property
    def current(self) -> list[str]:
        """Names of the faults in effect now, each once."""
        with self._lock:
            return sorted({injection.fault for injection in self._in_effect.values()})

    def start(self, load_started_ns: int) -> None:
        """Begin; the schedule's seconds count from `load_started_ns` (CLOCK_MONOTONIC)."""
        requests: list[Injection] = []
        processes: list[Injection] = []
        for injection in self._schedule:
            self._open[injection.fault_id] = injection
            self._row(injection, "planned", {"at_s": injection.at_s})
            (requests if isinstance(injection.made(), RequestFault) else processes).append(injection)
        if self._world.proxy is not None:
            self._world.proxy.listener = self._happened
            self._world.proxy.lost = self._proxy_lost
        for name, lane, act in (
            ("requests", requests, self._arm),
            ("processes", processes, self._break),
        ):
            arguments = (lane, act, load_started_ns)
            thread = threading.Thread(target=self._run, args=arguments, name=f"nemesis {name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop_and_heal(self, *, timeout_s: float) -> None:
        """Inject no more, heal what is in effect, and settle every injection; bounded and idempotent."""
        self._stop.set()
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        try:
            if self._world.proxy is not None and self._threads:
                self._world.proxy.heal()
        except ProxyError as error:
            self._keep(error)
        with self._lock:
            self._settled.wait_for(lambda: not self._in_effect, max(0.0, deadline - time.monotonic()))
            for injection in list(self._in_effect.values()):
                self._keep(
                    FaultError(f"{injection.fault_id} {injection.fault} was not healed in {timeout_s:.0f} s")
                )
                self._settle(injection, "failed", {"why": f"not healed within {timeout_s:.0f} s"})
            for injection in list(self._open.values()):
                self._settle(injection, "failed", {"why": "the load ended before its time"})
            self._file.close()

    # --- the lanes

    def _run(self, lane: list[Injection], act: Callable[[Injection], None], load_started_ns: int) -> None:
        try:
            for injection in lane:
                due_s = load_started_ns / 1e9 + injection.at_s - time.monotonic()
                if self._stop.wait(max(0.0, due_s)):
                    return
                try:
                    act(injection)
                except Exception as error:
                    self._settle(injection, "failed", {"why": repr(error)})
                    raise
        except Exception as error:  # noqa: BLE001  a thread has nobody above it: the trial reads `error`
            self._keep(error)

    def _arm(self, injection: Injection) -> None:
        """Hand a fault of a request to the proxy."""
        proxy = self._world.proxy
        if proxy is None:
            self._settle(injection, "failed", {"why": "this run has no proxy"})
            return
        # Before the proxy knows of it: it may land before the answer is here.
        self._row(injection, "armed", {"nth": injection.nth})
        with self._lock:
            self._in_effect[injection.fault_id] = injection
        try:
            proxy.arm(injection.fault_id, injection.fault, nth=injection.nth, options=injection.options)
        except ProxyError as error:
            self._settle(injection, "failed", {"why": str(error)})

    def _break(self, injection: Injection) -> None:
        """Inject a fault of a process and heal it."""
        fault = injection.made()
        assert isinstance(fault, ProcessFault)
        try:
            fault.check(self._world)
        except FaultError as error:
            self._settle(injection, "failed", {"why": str(error)})
            return
        self._row(injection, "armed", {})
        with self._lock:
            self._in_effect[injection.fault_id] = injection
        landed: Evidence = {}
        troubles: list[str] = []
        try:
            landed = fault.inject(self._world)
            self._land(injection, landed)
        except FaultError as error:
            troubles.append(str(error))
        finally:
            try:
                healed = fault.heal(self._world, landed)
            except FaultError as error:
                healed = {}
                troubles.append(f"not healed: {error}")
                self._keep(FaultError(f"{injection.fault_id} {injection.fault} was not healed: {error}"))
        if troubles:
            self._settle(injection, "failed", {"why": "; ".join(troubles), **healed})
        else:
            self._settle(injection, "healed", healed)

    # --- what the proxy tells

    def _happened(self, happened: Happened) -> None:
        with self._lock:
            injection = self._in_effect.get(happened.fault_id)
            if injection is None:
                return
            if happened.event == "landed":
                self._land(injection, happened.evidence)
                self._settle(injection, "healed", {"over_ns": happened.time_ns})
            else:
                self._settle(injection, "failed", happened.evidence)

    def _proxy_lost(self) -> None:
        if self._stop.is_set():
            return
        self._keep(ProxyError("the proxy has gone"))
        with self._lock:
            for injection in list(self._in_effect.values()):
                if isinstance(injection.made(), RequestFault):
                    self._settle(injection, "failed", {"why": "the proxy has gone"})

    # --- rows

    def _land(self, injection: Injection, evidence: Evidence) -> None:
        with self._lock:
            self.landed += 1
            self._row(injection, "landed", evidence)

    def _settle(self, injection: Injection, state: FaultState, evidence: Evidence) -> None:
        with self._lock:
            if self._open.pop(injection.fault_id, None) is None:
                return
            self._in_effect.pop(injection.fault_id, None)
            self._row(injection, state, evidence)
            self._settled.notify_all()

    def _row(self, injection: Injection, state: FaultState, evidence: Evidence) -> None:
        with self._lock:
            row = FaultRow(
                time_ns=time.monotonic_ns(),
                fault_id=injection.fault_id,
                fault=injection.fault,
                state=state,
                target=injection.made().target,
                evidence=evidence,
            )
            self._file.append(row)

    def _keep(self, error: Exception) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
