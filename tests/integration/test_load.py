"""The load child against the reference server: what it records, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from scenarios.history import MONEY_ACTIONS, Status, close_cut_history
from scenarios.plan import Load, Market, Plan, Stage, load_plan
from tests.integration.load_child import (
    END_TIMEOUT_S,
    PROJECT,
    await_users,
    by_users,
    finish,
    hold,
    judged,
    load,
    new_run,
)
from tests.integration.market_server import MarketServer
from tests.integration.recorded import Recorded, read_history, read_run

MIX = load_plan("hot").mix
FREEZE_S = 1.0


def plan_of(
    *stages: Stage,
    rate_per_user_s: float = 20.0,
    patience_s: float = 2.0,
    budget_s: float = 5.0,
    processes: int = 1,
) -> Plan:
    return Plan(
        name="test",
        about="small",
        scenario="hot_market",
        stages=list(stages),
        mix=MIX,
        market=Market(outcomes=3, b_micro=1_000_000_000, user_funds_micro=100_000_000),
        load=Load(
            rate_per_user_s=rate_per_user_s,
            patience_s=patience_s,
            answer_budget_s=budget_s,
            processes=processes,
        ),
    )


def test_a_load_does_what_the_plan_says_and_records_all_of_it(
    tmp_path: Path, market_server: MarketServer
) -> None:
    less = Stage(name="less", users=2, hold_s=2.0)
    run = new_run(
        tmp_path, plan_of(Stage(name="ramp", users=4, ramp_s=1.0), hold(4, 2.0), less, rate_per_user_s=40.0)
    )
    with load(run, market_server) as child:
        rows = finish(child)
    (recorded,) = read_run(run)
    assert recorded.end.cut is None
    assert set(recorded.types()) == {"ok", "fail"}
    check_actions(recorded)
    check_status(rows, recorded)
    check_books(recorded, market_server)
    judged(run).close()


def check_actions(recorded: Recorded) -> None:
    """The set-up happened once, and users did everything of the mix."""
    actions = Counter(attempt.invoke.action for attempt in recorded.attempts)
    once = {"create_user": 4, "fund": 5, "create_market": 2, "close_market": 1}
    assert {action: actions[action] for action in once} == once
    assert set(actions) - set(once) >= set(MIX) - {"replay"}
    assert any(attempt.completion and attempt.completion.replayed for attempt in recorded.attempts)
    for attempt in recorded.attempts:
        assert (attempt.invoke.key is not None) == (attempt.invoke.action in MONEY_ACTIONS)


def check_status(rows: list[Status], recorded: Recorded) -> None:
    """Users follow the stages, and the last row has counted every attempt."""
    seen = [(row.phase, row.users) for row in rows]
    assert seen[:2] == [("setup", 0), ("ramp", 0)]
    assert ("hold", 4) in seen
    assert ("less", 2) in seen
    assert (seen[-1], rows[-1].in_flight) == (("drain", 0), 0)
    load = [
        attempt.completion.type
        for attempt in recorded.attempts
        if attempt.completion and attempt.completion.time_ns > rows[1].time_ns
    ]
    counted = Counter(load)
    assert (rows[-1].ok, rows[-1].fail, rows[-1].info) == (counted["ok"], counted["fail"], 0)


def check_books(recorded: Recorded, server: MarketServer) -> None:
    """Every trade that the books have was told to a client, once but for replays."""
    told = sorted(
        attempt.completion.facts.trade_id
        for attempt in recorded.attempts
        if attempt.completion is not None
        and attempt.completion.facts is not None
        and attempt.completion.facts.trade_id is not None
        and not attempt.completion.replayed
    )
    with psycopg.connect(server.database.admin_dsn) as connection:
        booked = [row[0] for row in connection.execute("SELECT trade_id FROM books.trades ORDER BY trade_id")]
    assert told == booked
    assert booked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_load_at_once_and_in_order(
    tmp_path: Path, shared_server: MarketServer, number: signal.Signals
) -> None:
    run = new_run(tmp_path, plan_of(hold(4, 60.0)))
    with load(run, shared_server) as child:
        await_users(child, 4)
        child.send_signal(number)
        finish(child)
    (recorded,) = read_run(run)
    assert recorded.end.cut is None
    assert "none" not in recorded.types()


def test_a_signal_ends_the_load_although_the_server_hangs(
    tmp_path: Path, market_server: MarketServer
) -> None:
    run = new_run(tmp_path, plan_of(hold(4, 60.0), patience_s=1.0))
    with load(run, market_server) as child:
        await_users(child, 4)
        with frozen(market_server):
            child.send_signal(signal.SIGTERM)
            child.wait(END_TIMEOUT_S)  # no answer can come meanwhile
        finish(child)
    (recorded,) = read_run(run)
    assert recorded.end.cut is None
    assert "none" not in recorded.types()


def test_a_killed_load_leaves_a_history_that_can_be_closed(
    tmp_path: Path, shared_server: MarketServer
) -> None:
    run = new_run(tmp_path, plan_of(hold(4, 60.0)))
    with load(run, shared_server) as child:
        await_users(child, 4)
        child.kill()
        assert child.wait(END_TIMEOUT_S) == -signal.SIGKILL
    path = run / "history" / "w0.jsonl"
    close_cut_history(path, reason="killed")
    recorded = read_history(path)
    assert recorded.end.cut == "killed"
    evidence = judged(run)
    assert any("killed" in why for why in evidence.incomplete)
    evidence.close()
    assert len(recorded.attempts) > 10


def test_processes_have_a_history_and_users_each(tmp_path: Path, shared_server: MarketServer) -> None:
    run = new_run(tmp_path, plan_of(hold(6, 2.0), processes=2))
    with load(run, shared_server) as child:
        rows = finish(child)
    master, *workers = read_run(run)
    assert [one.end.cut for one in (master, *workers)] == [None] * 3
    assert {attempt.invoke.action for attempt in master.attempts} >= {"create_market", "close_market"}
    users = [{attempt.invoke.user for attempt in by_users(worker)} for worker in workers]
    assert [len(one) for one in users] == [3, 3]
    assert not users[0] & users[1]
    for worker in workers:
        assert set(worker.types()) == {"ok", "fail"}
    assert max(row.users for row in rows) == 6
    assert rows[-1].trades > 0


@contextmanager
def frozen(server: MarketServer) -> Iterator[None]:
    """The server process is stopped for the length of the block."""
    process = psutil.Process(server.child.pid)
    process.suspend()
    try:
        deadline_s = time.monotonic() + 5
        while process.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)  # bounded by the deadline
        yield
    finally:
        process.resume()


def test_a_freeze_shows_in_every_operation_that_was_due_in_it(
    tmp_path: Path, market_server: MarketServer
) -> None:
    users, rate_per_s = 4, 20.0
    run = new_run(tmp_path, plan_of(hold(users, 3.0), rate_per_user_s=rate_per_s))
    with load(run, market_server) as child:
        await_users(child, users)
        with frozen(market_server):
            from_ns = time.monotonic_ns()
            time.sleep(FREEZE_S)  # the freeze itself, bounded
            to_ns = time.monotonic_ns()
        finish(child)
    (recorded,) = read_run(run)
    due = [one for one in by_users(recorded) if from_ns < one.invoke.intended_ns < to_ns]
    # Intervals are at most one and a half of the mean.
    assert len({one.invoke.operation for one in due}) >= users * int(FREEZE_S * rate_per_s / 1.5)
    for one in due:
        assert one.completion is not None
        assert one.completion.time_ns > to_ns
    # Service time shows it only once a user: whoever waits for a reply sends nothing else.
    asked = [one for one in due if one.invoke.time_ns < to_ns]
    assert len(asked) <= users


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("token", "SEATRIAL_ADMIN_TOKEN is not set"),
        ("wrong token", "the target does not know the admin token"),
        ("scenario", "plan.json: scenario: no scenario"),
        ("plan", "plan.json: cannot be read"),
        ("history", "a run has one load"),
        ("host", "not a http:// URL"),
        ("nobody there", "no answer (refused)"),
    ],
)
def test_what_cannot_work_is_refused_with_a_message(
    tmp_path: Path, shared_server: MarketServer, spoil: str, said: str
) -> None:
    run = new_run(tmp_path, plan_of(hold(1, 1.0), patience_s=0.2, budget_s=0.2))
    host, token = shared_server.url, shared_server.admin_token
    plan_json = run / "plan.json"
    if spoil in ("token", "wrong token"):
        token = "" if spoil == "token" else "wrong"
    elif spoil == "scenario":
        plan_json.write_bytes(plan_json.read_bytes().replace(b'"hot_market"', b'"cold_market"'))
    elif spoil == "plan":
        plan_json.unlink()
    elif spoil == "history":
        (run / "history").mkdir()
        (run / "history" / "w0.jsonl").touch()
    elif spoil == "host":
        host = "127.0.0.1:8080"
    elif spoil == "nobody there":
        host = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "scenarios.load", str(run), "--host", host],
        cwd=PROJECT,
        env={**os.environ, "SEATRIAL_ADMIN_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1]
