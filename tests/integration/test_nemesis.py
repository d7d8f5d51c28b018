"""The nemesis: the life of every injection as rows, what it does when things end early or go wrong."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from chaos.child import Child
from chaos.cluster import Postgres
from chaos.nemesis import Nemesis
from chaos.ports import free_port
from chaos.processes import wait_until
from chaos.proxy_control import ProxyControl
from chaos.supervisor import Supervisor
from scenarios.history import FaultRow, read_rows
from scenarios.plan import FaultPlan, Plan, Stage
from tests.integration.proxied import Proxied, proxied, trade
from tests.integration.recording_server import RecordingServer, ok

WAIT_S = 10.0


@dataclass
class SmallWorld:
    """What a fault may reach, with small servers in place of the whole target."""

    proxy: ProxyControl | None = None
    servers: list[Child] = field(default_factory=list)
    postgres: Postgres | None = None
    custody: None = None
    port: int = 0

    @property
    def admin_dsn(self) -> str:
        raise AssertionError("no fault of these tests goes to PostgreSQL")

    def server_healthy(self, timeout_s: float) -> bool:
        def answers() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{self.port}/", timeout=1, trust_env=False).is_success
            except httpx.HTTPError:
                return False

        return wait_until(answers, timeout_s=timeout_s)


def plan(*faults: FaultPlan) -> Plan:
    return Plan(
        name="t",
        about="",
        scenario="hot_market",
        stages=[Stage(name="all", users=1, hold_s=100)],
        mix={"sell": 1.0},
        faults=list(faults),
    )


def lives(path: Path) -> dict[str, list[FaultRow]]:
    """The rows of each injection, in the order of the file."""
    found: dict[str, list[FaultRow]] = {}
    for row in read_rows(path, FaultRow):
        found.setdefault(row.fault_id, []).append(row)
    return found


def states(path: Path) -> dict[str, list[str]]:
    return {fault_id: [row.state for row in rows] for fault_id, rows in lives(path).items()}


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(lambda _: ok(b"fine")) as recording:
        yield recording


@pytest.fixture
def proxy(server: RecordingServer, tmp_path: Path) -> Iterator[Proxied]:
    with proxied(tmp_path / "proxy", server) as started:
        yield started


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[SmallWorld]:
    """A world with one server process and nothing else."""
    port = free_port()
    with Supervisor(tmp_path / "server") as supervisor:
        command = [sys.executable, "-m", "tests.integration.recording_server", str(port)]
        child = supervisor.spawn("server-0", command, critical=False)
        world = SmallWorld(servers=[child], port=port)
        assert world.server_healthy(WAIT_S)
        yield world


def trades_until(proxy: Proxied, enough: threading.Event) -> list[str]:
    """Trade, each time on a connection of its own, until it is enough; the keys that got no reply."""
    unanswered = []
    number = 0
    while not enough.is_set():
        number += 1
        try:
            with proxy.client() as client:
                client.sendall(trade(f"k{number}"))
                assert client.recv(65536) == ok(b"fine")
        except ConnectionResetError:
            unanswered.append(f"k{number}")
    return unanswered


def test_every_injection_is_planned_armed_landed_and_healed_on_evidence(
    proxy: Proxied, server: RecordingServer, tmp_path: Path
) -> None:
    chosen = plan(
        FaultPlan(fault="drop_reply", at_s=0.1, during_s=0.5, count=6),
        FaultPlan(fault="drop_request", at_s=0.1, during_s=0.5, count=6),
        FaultPlan(fault="duplicate_late", at_s=0.1, during_s=0.5, count=3, options={"delay_s": 0.2}),
    )
    path = tmp_path / "faults.jsonl"
    nemesis = Nemesis(chosen, 5, SmallWorld(proxy=proxy.control), path)
    assert (nemesis.planned, nemesis.landed, nemesis.current) == (15, 0, [])
    enough = threading.Event()

    def watch() -> None:
        wait_until(lambda: nemesis.landed == 15, timeout_s=WAIT_S)
        enough.set()

    watcher = threading.Thread(target=watch)
    nemesis.start(time.monotonic_ns())
    watcher.start()
    unanswered = trades_until(proxy, enough)
    watcher.join()
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert nemesis.error is None
    assert nemesis.current == []
    assert set(map(tuple, states(path).values())) == {("planned", "armed", "landed", "healed")}
    landed = [row for rows in lives(path).values() for row in rows if row.state == "landed"]
    dropped = [row.evidence["key"] for row in landed if row.fault.startswith("drop")]
    assert sorted(dropped) == sorted(unanswered)
    arrivals = [arrival.key for arrival in server.arrivals]
    for row in landed:
        expected = {"drop_reply": 1, "drop_request": 0, "duplicate_late": 2}[row.fault]
        assert arrivals.count(row.evidence["key"]) == expected
        assert row.target == "proxy"


def test_rows_are_in_order_of_time(proxy: Proxied, tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    chosen = plan(FaultPlan(fault="drop_reply", at_s=0, during_s=0.2, count=20))
    nemesis = Nemesis(chosen, 5, SmallWorld(proxy=proxy.control), path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: proxy.control.status()["waiting"] == 20, timeout_s=WAIT_S)
    assert nemesis.current == ["drop_reply"]
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    times = [row.time_ns for row in read_rows(path, FaultRow)]
    assert times == sorted(times)


def test_a_fault_whose_request_never_comes_is_failed_and_no_error(proxy: Proxied, tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    nemesis = Nemesis(plan(FaultPlan(fault="drop_reply", at_s=0)), 1, SmallWorld(proxy=proxy.control), path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: proxy.control.status()["waiting"] == 1, timeout_s=WAIT_S)
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert states(path) == {"f001": ["planned", "armed", "failed"]}
    assert "never came" in lives(path)["f001"][-1].evidence["why"]
    assert (nemesis.landed, nemesis.error) == (0, None)


def test_what_the_load_did_not_wait_for_is_failed_and_healing_twice_changes_nothing(
    proxy: Proxied, tmp_path: Path
) -> None:
    path = tmp_path / "faults.jsonl"
    chosen = plan(FaultPlan(fault="drop_reply", at_s=50), FaultPlan(fault="kill_server", at_s=60))
    nemesis = Nemesis(chosen, 1, SmallWorld(proxy=proxy.control), path)
    nemesis.start(time.monotonic_ns())
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    before = path.read_bytes()
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert path.read_bytes() == before
    assert states(path) == {"f001": ["planned", "failed"], "f002": ["planned", "failed"]}
    assert nemesis.error is None


def test_a_nemesis_that_never_started_stops(tmp_path: Path) -> None:
    nemesis = Nemesis(plan(FaultPlan(fault="drop_reply", at_s=1)), 1, SmallWorld(), tmp_path / "faults.jsonl")
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert nemesis.error is None


def test_the_death_of_the_proxy_is_an_error_and_its_faults_are_failed(proxy: Proxied, tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    nemesis = Nemesis(plan(FaultPlan(fault="drop_reply", at_s=0)), 1, SmallWorld(proxy=proxy.control), path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: proxy.control.status()["waiting"] == 1, timeout_s=WAIT_S)
    proxy.child.kill()
    assert wait_until(lambda: nemesis.error is not None, timeout_s=WAIT_S)
    assert "proxy has gone" in str(nemesis.error)
    assert nemesis.current == []
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert states(path) == {"f001": ["planned", "armed", "failed"]}


def test_faults_of_processes_never_overlap(server_process: SmallWorld, tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    chosen = plan(
        FaultPlan(fault="kill_server", at_s=0, during_s=0.02, count=2),
        FaultPlan(fault="kill_server", at_s=0.01, during_s=0.01, count=1),
    )
    nemesis = Nemesis(chosen, 2, server_process, path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: not nemesis.current and nemesis.landed == 3, timeout_s=20)
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert nemesis.error is None
    assert [row.state for row in read_rows(path, FaultRow)][3:] == ["armed", "landed", "healed"] * 3
    healed = [rows[-1].evidence for rows in lives(path).values()]
    landed = [rows[2].evidence for rows in lives(path).values()]
    assert {evidence["returncode"] for evidence in landed} == {-9}
    assert [evidence["pid_before"] for evidence in healed] == [evidence["pid"] for evidence in landed]
    assert len({evidence["pid"] for evidence in healed}) == 3


def test_a_stop_in_the_middle_of_a_fault_waits_until_it_is_healed(
    server_process: SmallWorld, tmp_path: Path
) -> None:
    path = tmp_path / "faults.jsonl"
    chosen = plan(FaultPlan(fault="kill_server", at_s=0, count=1), FaultPlan(fault="kill_server", at_s=0.1))
    nemesis = Nemesis(chosen, 1, server_process, path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: nemesis.landed == 1, timeout_s=WAIT_S)
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert states(path) == {"f001": ["planned", "armed", "landed", "healed"], "f002": ["planned", "failed"]}
    assert server_process.servers[0].alive


def test_a_server_that_had_died_before_is_not_counted_as_killed(
    server_process: SmallWorld, tmp_path: Path
) -> None:
    path = tmp_path / "faults.jsonl"
    server_process.servers[0].terminate()
    nemesis = Nemesis(plan(FaultPlan(fault="kill_server", at_s=0)), 1, server_process, path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: states(path)["f001"][-1] == "failed", timeout_s=WAIT_S)
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert "had ended before" in lives(path)["f001"][-1].evidence["why"]
    assert (nemesis.landed, nemesis.error) == (0, None)
    assert server_process.servers[0].alive  # healed all the same


def test_a_server_that_does_not_come_back_is_an_error(server_process: SmallWorld, tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    server_process.servers[0].command[-1] = "no port"
    nemesis = Nemesis(plan(FaultPlan(fault="kill_server", at_s=0)), 1, server_process, path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: nemesis.error is not None, timeout_s=WAIT_S)
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert states(path) == {"f001": ["planned", "armed", "landed", "failed"]}
    assert "server-0 exited" in str(nemesis.error)


@pytest.mark.parametrize(
    ("fault", "options", "why"),
    [
        ("kill_server", {"server": 3}, "no server 3"),
        ("kill_postgres", {}, "needs a PostgreSQL that Seatrial starts"),
        ("drop_reply", {}, "no proxy"),
    ],
)
def test_a_fault_that_this_world_cannot_have_is_failed_with_the_reason(
    fault: str, options: dict[str, int], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "faults.jsonl"
    nemesis = Nemesis(plan(FaultPlan(fault=fault, at_s=0, options=options)), 1, SmallWorld(), path)
    nemesis.start(time.monotonic_ns())
    assert wait_until(lambda: states(path)["f001"][-1] == "failed", timeout_s=WAIT_S)
    nemesis.stop_and_heal(timeout_s=WAIT_S)
    assert why in lives(path)["f001"][-1].evidence["why"]
    assert (nemesis.landed, nemesis.error) == (0, None)
