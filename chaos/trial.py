"""The trial: one run of a plan against a target, from nothing to quiet books.

1. prepare: watchdog, PostgreSQL, schema, server, proxy: each step waits for the one before to answer. Where
   the plan has a chain, that is made meanwhile (chaos.custody).
2. load: the load child runs; nemesis, probe and sampler work beside it until it ends, a child dies, the
   deadline passes or somebody interrupts.
3. quiesce: load stopped, every fault healed, relay and chain drained, no backend of the application active,
   no prepared transaction (chaos.quiescence).
4. close: every child ended and reaped, scratch data removed.

Each step that happened is a row in events.jsonl. The trial judges nothing: whatever ended the load, the
books are brought to rest so that the judge has something to read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from chaos.chain_export import export_chain
from chaos.custody import Custody
from chaos.data_folder import make_scratch
from chaos.nemesis import Nemesis
from chaos.ports import free_port
from chaos.postgres import Postgres, choose_postgres
from chaos.proxy_control import ProxyControl
from chaos.quiescence import Rest, await_rest, drain
from chaos.sampler import Sampler
from chaos.supervisor import Child, Supervisor
from chaos.target import (
    Access,
    TargetChoice,
    TargetError,
    await_healthy,
    create_database,
    install,
    spawn_server,
)
from scenarios.history import Status, close_cut_history
from scenarios.plan import Plan

TICK_S = 0.25
LOAD_STOP_GRACE_S = 15.0
HEAL_DEADLINE_S = 30.0


class Trial:
    """One run; its attributes servers, postgres, proxy and custody are what the faults act on."""

    def __init__(
        self,
        run: Path,
        plan: Plan,
        seed: int,
        choice: TargetChoice,
        *,
        probe_command: Callable[[str], list[str]],
        step: Callable[[str], None],
    ) -> None:
        self.run = run
        self.plan = plan
        self.seed = seed
        self.choice = choice
        self.step = step
        self.interrupted = threading.Event()
        self.status: Status | None = None
        self.endings: list[str] = []
        self.access: Access | None = None
        self.nemesis: Nemesis | None = None
        self.sampler: Sampler | None = None
        self.servers: list[Child] = []
        self.postgres: Postgres | None = None
        self.proxy: ProxyControl | None = None
        self.custody: Custody | None = None
        self.load_started_ns = 0
        self.trades_per_s = 0.0
        self._probe_command = probe_command
        self._events_lock = threading.Lock()
        self._supervisor = Supervisor(run)
        self._scratch: Path | None = None
        self._load: Child | None = None
        self._probe: Child | None = None
        self._server_url = ""

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- step 1

    def prepare(self) -> None:
        """Start everything the load needs; raises TargetError, PostgresError or SupervisorError."""
        self.event("preparing")
        if self.choice.url is None:
            self._start_target()
        else:
            self._server_url = self.choice.url.rstrip("/")
            self.access = self.choice.access
            took_s = await_healthy(self._server_url, given_up=self.interrupted.is_set)
            self.step(f"target {self._server_url} is healthy ({took_s:.1f} s)")
        self._start_proxy()

    def _start_target(self) -> None:
        self._scratch = make_scratch()
        self._supervisor.undo_remove(self._scratch)
        with ThreadPoolExecutor(1, thread_name_prefix="custody") as beside:
            custody = self._make_custody(self._scratch)
            node = beside.submit(custody.start_node) if custody is not None else None
            postgres = choose_postgres(
                self.choice.postgres, supervisor=self._supervisor, data_dir=self._scratch / "pgdata"
            )
            self.postgres = postgres
            postgres.start()
            self.step(f"PostgreSQL {postgres.version}, {postgres.kind}: {postgres.why}")
            name = f"seatrial_{os.getpid()}_{time.time_ns() // 1_000_000}"
            admin_dsn = create_database(postgres.dsn, name)
            self.access = install(self.choice.command, admin_dsn, self.run / "logs" / "install.log")
            deployed: Future[None] | None = None
            if custody is not None and node is not None:
                node.result()
                self.custody = custody
                self.step(f"chain {custody.chain_id}, {custody.node.kind}: {custody.node.why}")
                deployed = beside.submit(custody.deploy)
            self._start_server(self.access)
            if custody is not None and deployed is not None:
                deployed.result()
                custody.admit(self.access)
                self.step(f"vault {custody.vault}")
        self.event("target_healthy", kind=postgres.kind, version=postgres.version, why=postgres.why)

    def _make_custody(self, scratch: Path) -> Custody | None:
        if self.plan.chain is None:
            return None
        return Custody(
            self.choice.chain,
            self.plan.chain,
            supervisor=self._supervisor,
            scratch=scratch,
            run=self.run,
            command=self.choice.command,
            seed=self.seed,
        )

    def _start_server(self, access: Access) -> None:
        port = free_port()
        self._server_url = f"http://127.0.0.1:{port}"
        server = spawn_server(
            self._supervisor,
            self.choice.command,
            access,
            name="server-0",
            port=port,
            strategy=self.choice.strategy,
            chain_id=None if self.custody is None else self.custody.chain_id,
        )
        self.servers = [server]
        took_s = await_healthy(self._server_url, child=server, given_up=self.interrupted.is_set)
        self.step(f"server on {self._server_url}, {self.choice.strategy} strategy, healthy in {took_s:.1f} s")

    def _start_proxy(self) -> None:
        listen, control = free_port(), free_port()
        upstream = int(self._server_url.rsplit(":", 1)[1])
        self._supervisor.spawn(
            "proxy",
            [
                *(sys.executable, "-m", "chaos.http_proxy", "--listen", str(listen)),
                *("--upstream", str(upstream), "--control", str(control)),
            ],
        )
        self.proxy = ProxyControl(control)
        self.proxy.connect(timeout_s=10)
        self.proxy_url = f"http://127.0.0.1:{listen}"
        await_healthy(self.proxy_url, timeout_s=10, given_up=self.interrupted.is_set)

    # --- step 2

    def load(self, tick: Callable[[], None]) -> None:
        """Run the load to its end, calling `tick` a few times a second; `endings` says what cut it short."""
        assert self.access is not None
        child = self._supervisor.spawn(
            "load",
            [sys.executable, "-m", "scenarios.load", str(self.run), "--host", self.proxy_url],
            env={
                "SEATRIAL_ADMIN_TOKEN": self.access.admin_token,
                **(self.custody.load_environment if self.custody is not None else {}),
            },
            stdout="pipe",
        )
        self._load = child
        threading.Thread(target=self._read_status, args=(child,), name="load status", daemon=True).start()
        self._probe = self._supervisor.spawn("probe", self._probe_command(self.access.judge_dsn))
        self.sampler = Sampler(
            self.run,
            pids=self.pids,
            status=lambda: self.status,
            dsn=self.access.admin_dsn,
            health_url=f"{self._server_url}/api/health",
        )
        self.sampler.start()
        self.step(f"load: {self.plan.load_s:.0f} s of {self.plan.scenario}, seed {self.seed}")
        deadline_s = self.plan.load_s + self.plan.load.answer_budget_s + 60
        started_s = time.monotonic()
        while self._load_goes_on(child, time.monotonic() - started_s, deadline_s):
            tick()
            self.interrupted.wait(TICK_S)

    def _load_goes_on(self, child: Child, elapsed_s: float, deadline_s: float) -> bool:
        if self.interrupted.is_set():
            self._ending("interrupted", "stopped by a signal")
            return False
        if not child.alive:
            if child.returncode != 0:
                self._ending("child_died", f"load exited {child.returncode}")
            return False
        for dead in self._supervisor.dead():
            self._ending("child_died", f"{dead.name} exited {dead.returncode}")
            return False
        if self.nemesis is not None and self.nemesis.error is not None:
            self._ending("nemesis_failed", str(self.nemesis.error))
            return False
        if elapsed_s > deadline_s:
            self._ending("deadline", f"the load did not end within {deadline_s:.0f} s")
            return False
        if self.status is not None and self.custody is not None and not self.custody.relays:
            # Not before: they and the load would load their libraries at the same time, and it is waited for.
            assert self.access is not None
            self.custody.start_processes(self.access)
            self.step("a watcher and a relay; the others come with the load")
        if self.nemesis is None and self.status is not None and self.status.phase != "setup":
            self._start_nemesis()
        return True

    def _start_nemesis(self) -> None:
        assert self.status is not None
        self.load_started_ns = self.status.time_ns
        self.event("load_started", at_ns=self.load_started_ns)
        if self.custody is not None:
            self.custody.begin_load()
        self.nemesis = Nemesis(self.plan, self.seed, self, self.run / "faults.jsonl")
        self.nemesis.start(self.load_started_ns)

    def _read_status(self, child: Child) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            try:
                status = msgspec.json.decode(line, type=Status)
            except msgspec.DecodeError:
                self.step(f"load: {line.decode(errors='replace').strip()}")
                continue
            before, self.status = self.status, status
            if before is not None and status.time_ns > before.time_ns:
                self.trades_per_s = (status.trades - before.trades) / (status.time_ns - before.time_ns) * 1e9

    # --- step 3

    def quiesce(self) -> Rest:
        """Bring the system to rest, in the order of the contract; the numbers say whether it came to rest."""
        self.step("quiescence: load stopped, faults healed, backends idle")
        if self._load is not None:
            self._load.terminate(grace_s=self.plan.load.patience_s + LOAD_STOP_GRACE_S)
            for path in sorted((self.run / "history").glob("*.jsonl")):
                close_cut_history(path, reason=f"the load child exited {self._load.returncode}")
        self.event("load_stopped")
        if self.nemesis is not None:
            self.nemesis.stop_and_heal(timeout_s=HEAL_DEADLINE_S)
            self.event("healed")
        if self.custody is not None:
            self._drain(self.custody)
        if self._probe is not None:
            self._probe.terminate(grace_s=5)
        if self.sampler is not None:
            self.sampler.stop()
        assert self.access is not None
        rest = await_rest(self.access)
        self.event("quiescent", active=rest.active, prepared=rest.prepared)
        return rest

    def _drain(self, custody: Custody) -> None:
        """Let relay and chain come to their end, and keep what the chain says then."""
        began_s = time.monotonic()
        done = drain(custody, self.judge_dsn)
        custody.stop_processes()
        took_s = round(time.monotonic() - began_s, 3)
        self.event("drained", drained=done.drained, replayed=done.replayed, took_s=took_s, why=done.why)
        state = "drained" if done.drained else f"not drained: {done.why}"
        self.step(f"relay and chain {state} ({took_s:.1f} s)")
        if trouble := export_chain(custody, self.run, done):
            self.step(f"the chain could not be read: {trouble}")

    # --- step 4

    def close(self) -> None:
        """End and reap every child and remove scratch data; safe to call at any point, and twice.

        What one part cannot clean up keeps none of the others from it; the first error is raised at the end.
        """
        with contextlib.ExitStack() as last_to_first:
            if self._scratch is not None:
                last_to_first.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            last_to_first.callback(self._supervisor.close)
            if self.postgres is not None:
                last_to_first.callback(self.postgres.stop)
            if self.custody is not None:
                last_to_first.callback(self.custody.close)
            if self.proxy is not None:
                last_to_first.callback(self.proxy.close)
            if self.sampler is not None:
                last_to_first.callback(self.sampler.stop)
            if self.nemesis is not None:
                last_to_first.callback(self.nemesis.stop_and_heal, timeout_s=HEAL_DEADLINE_S)

    # --- what others ask

    def pids(self) -> dict[str, list[int]]:
        """Pids by role, for the sampler."""
        found = {
            name: [child.pid]
            for name, child in list(self._supervisor.children.items())
            if child.alive and not name.startswith(("postgres", "watchdog"))
        }
        if self.postgres is not None:
            found["postgres"] = self.postgres.pids()
        return found

    @property
    def judge_dsn(self) -> str:
        """The DSN that reads the books."""
        assert self.access is not None
        return self.access.judge_dsn

    @property
    def load_elapsed_s(self) -> float:
        """Seconds since the load left its set-up; 0 before."""
        return (time.monotonic_ns() - self.load_started_ns) / 1e9 if self.load_started_ns else 0.0

    @property
    def admin_dsn(self) -> str:
        """The owner's DSN of the target's database; raises TargetError where there is none."""
        if self.access is None or self.access.admin_dsn is None:
            raise TargetError("this fault needs --admin-dsn, the owner's DSN of the target's database")
        return self.access.admin_dsn

    def server_healthy(self, timeout_s: float) -> bool:
        """Whether the server answers its health check within `timeout_s`."""
        try:
            await_healthy(self._server_url, timeout_s=timeout_s)
        except TargetError:
            return False
        return True

    def event(self, name: str, **fields: Any) -> None:
        """Append one row to events.jsonl."""
        row = {"time_ns": time.monotonic_ns(), "event": name, **fields}
        with self._events_lock, (self.run / "events.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")

    def _ending(self, event: str, why: str) -> None:
        self.endings.append(why)
        self.event(event, why=why)
        self.step(why)
