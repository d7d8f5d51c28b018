"""The load child of money_in_out against the reference server and a chain: what it does and records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.processes import wait_until
from chaos.supervisor import Supervisor
from scenarios.history import MONEY_ACTIONS
from scenarios.node import chain_access
from scenarios.plan import ChainPlan, Load, Market, Plan, Stage, load_plan
from scenarios.wallet import Wallet
from tests.integration.conftest import running
from tests.integration.custody_desk import CONFIRMATIONS, CustodyDesk, custody, custody_chain
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
from tests.integration.recorded import Attempt, Recorded, read_run

__all__ = ["custody", "custody_chain"]

SEED = 7
MIX = load_plan("quick").mix | {"deposit": 15.0, "withdraw": 15.0, "read_withdrawal": 8.0, "replay": 20.0}
ROUNDS_MAX = 20
BLOCK_TIME_S = 0.2
PAUSED_TIMEOUT_S = 10.0


def plan_of(*stages: Stage, processes: int = 1, mix: dict[str, float] | None = None) -> Plan:
    return Plan(
        name="test",
        about="small",
        scenario="money_in_out",
        stages=list(stages),
        mix=mix or MIX,
        market=Market(b_micro=1_000_000_000, user_funds_micro=100_000_000),
        chain=ChainPlan(confirmations=CONFIRMATIONS, block_time_s=BLOCK_TIME_S),
        load=Load(rate_per_user_s=20.0, patience_s=2.0, answer_budget_s=8.0, processes=processes),
    )


@pytest.fixture
def server(supervisor: Supervisor, custody: CustodyDesk) -> Iterator[MarketServer]:
    """A server on the desk's books, for wallets of its chain."""
    options = ("--chain-id", str(custody.chain.chain_id))
    with running(supervisor, custody.database, options=options) as server:
        yield server


def chain_of(custody: CustodyDesk, **changes: object) -> str:
    """What the load child is told of the chain."""
    told = {
        "rpc": custody.chain.url,
        "chain_id": custody.chain.chain_id,
        "usdc": custody.addresses.usdc,
        "vault": custody.addresses.vault,
        "minter_key": custody.operator_key,
        "confirmations": CONFIRMATIONS,
        "wallet_domain": "localhost",
    }
    return json.dumps(told | changes)


def loaded(run: Path, server: MarketServer, custody: CustodyDesk) -> list[Recorded]:
    """The histories of a load that ended well."""
    with load(run, server, SEATRIAL_CHAIN=chain_of(custody)) as child:
        finish(child)
    return read_run(run)


def done(recorded: Recorded, action: str) -> list[Attempt]:
    """The attempts of an action that were ok and no replay."""
    return [
        one
        for one in recorded.attempts
        if one.invoke.action == action
        and one.completion is not None
        and one.completion.type == "ok"
        and not one.completion.replayed
    ]


def fact(attempt: Attempt, name: str) -> object:
    assert attempt.completion is not None
    assert attempt.completion.facts is not None
    return getattr(attempt.completion.facts, name)


def drain(custody: CustodyDesk) -> None:
    """Let watcher and relay finish what the load has begun."""
    custody.rpc("evm_setAutomine", True)
    for _ in range(ROUNDS_MAX):
        custody.bury()
        custody.watch()
        custody.relay()
        if custody.ask("SELECT count(*) FROM withdrawals WHERE status NOT IN ('final', 'returned')") == 0:
            break
    assert set(custody.deposits()) == {"credited"}


def test_a_load_moves_money_in_and_out(tmp_path: Path, custody: CustodyDesk, server: MarketServer) -> None:
    run = new_run(tmp_path, plan_of(hold(4, 3.0)), seed=SEED)
    (recorded,) = loaded(run, server, custody)
    assert recorded.end.cut is None
    assert set(recorded.types()) == {"ok", "fail"}
    check_actions(recorded)
    check_deposits(recorded, custody)
    check_withdrawals(recorded, custody)
    judged(run).close()
    drain(custody)
    # Nothing unbacked: what was booked for the users and the treasury is in the vault, to the micro-dollar.
    custody.assert_books_agree()


def check_actions(recorded: Recorded) -> None:
    """The set-up happened once, users did everything of the mix, and only the target is given keys."""
    actions = Counter(attempt.invoke.action for attempt in recorded.attempts)
    once = {"create_user": 4, "fund": 5, "create_market": 2, "wallet_nonce": 4, "link_wallet": 4}
    assert {action: actions[action] for action in once} == once
    assert set(actions) >= set(MIX) - {"replay"}
    for attempt in recorded.attempts:
        assert (attempt.invoke.key is not None) == (attempt.invoke.action in MONEY_ACTIONS)


def check_deposits(recorded: Recorded, custody: CustodyDesk) -> None:
    """Each deposit that was ok is on the chain, for its user, from the user's wallet, and no other is."""
    access = chain_access(chain_of(custody))
    events = custody.client.deposit_events(custody.first_block, "latest")
    on_chain = {event.place.transaction_hash: (event.user_id, event.amount_micro) for event in events}
    told = {}
    for one in done(recorded, "deposit"):
        assert one.invoke.request is not None
        told[fact(one, "tx_hash")] = (one.invoke.user, one.invoke.request.amount_micro)
        assert 1_000_000 <= (one.invoke.request.amount_micro or 0) <= 50_000_000
    assert told == on_chain
    assert len(told) > 5
    wallets = {Wallet(access, seed=SEED, number=number).address for number in range(4)}
    assert {event.sender for event in events} <= wallets


def check_withdrawals(recorded: Recorded, custody: CustodyDesk) -> None:
    """Each withdrawal that was ok is reserved, each other left nothing, and a replay is the first reply."""
    rows = custody.admin.execute("SELECT withdrawal_id::text, user_id, amount FROM withdrawals").fetchall()
    told = set()
    for one in done(recorded, "withdraw"):
        assert one.invoke.request is not None
        assert fact(one, "withdrawal_status") == "reserved"
        assert None not in (fact(one, "account_version"), fact(one, "transaction_id"))
        told.add((fact(one, "withdrawal_id"), one.invoke.user, one.invoke.request.amount_micro))
    assert told == {tuple(row) for row in rows}
    assert len(told) > 5
    looked = {fact(one, "withdrawal_id") for one in done(recorded, "read_withdrawal")}
    assert looked <= {row[0] for row in rows}
    replies: dict[str, set[str | None]] = {}
    replayed = 0
    for one in recorded.attempts:
        if one.invoke.action == "withdraw" and one.completion is not None and one.completion.type == "ok":
            replies.setdefault(one.invoke.operation, set()).add(one.completion.reply_hash)
            replayed += one.completion.replayed
    assert replayed > 0
    assert {len(hashes) for hashes in replies.values()} == {1}


def test_a_reused_key_of_a_withdrawal_is_refused(
    tmp_path: Path, custody: CustodyDesk, server: MarketServer
) -> None:
    mix = {"withdraw": 1.0, "reuse_key": 1.0}
    run = new_run(tmp_path, plan_of(hold(2, 1.5), mix=mix), seed=SEED)
    (recorded,) = loaded(run, server, custody)
    reused = [one for one in recorded.attempts if one.invoke.action == "reuse_key"]
    assert len(reused) > 5
    assert {one.completion and one.completion.code for one in reused} == {"idempotency_key_reused"}
    # Under a withdrawal's key come other withdrawals and trades.
    assert {one.invoke.request.side for one in reused if one.invoke.request} == {None, "buy"}


def test_processes_share_the_minter(tmp_path: Path, custody: CustodyDesk, server: MarketServer) -> None:
    custody.rpc("evm_setIntervalMining", BLOCK_TIME_S)
    run = new_run(tmp_path, plan_of(hold(6, 2.0), processes=2), seed=SEED)
    _, *workers = loaded(run, server, custody)
    users = [{attempt.invoke.user for attempt in by_users(worker)} for worker in workers]
    assert [len(one) for one in users] == [3, 3]
    assert all(done(worker, "deposit") for worker in workers)
    assert custody.ask("SELECT count(DISTINCT address) FROM wallets") == 6
    judged(run).close()
    drain(custody)
    custody.assert_books_agree()


def test_a_pause_is_waited_out(tmp_path: Path, custody: CustodyDesk, server: MarketServer) -> None:
    run = new_run(tmp_path, plan_of(hold(4, 3.0), mix={"withdraw": 1.0, "sell": 1.0}), seed=SEED)
    history = run / "history" / "w0.jsonl"
    with load(run, server, SEATRIAL_CHAIN=chain_of(custody)) as child:
        await_users(child, 4)
        custody.pause()
        assert wait_until(lambda: b"trading_paused" in history.read_bytes(), timeout_s=PAUSED_TIMEOUT_S)
        custody.watch()
        custody.resume()
        finish(child)
    (recorded,) = read_run(run)
    assert set(recorded.types()) == {"ok", "fail"}
    outcomes: dict[str, list[str | None]] = {}
    for one in recorded.attempts:
        assert one.completion is not None
        outcomes.setdefault(one.invoke.operation, []).append(one.completion.code or one.completion.type)
    paused = [codes for codes in outcomes.values() if "trading_paused" in codes]
    assert paused
    assert all(codes[-1] != "trading_paused" for codes in paused)


def test_a_seed_that_the_target_has_seen_is_refused(
    tmp_path: Path, custody: CustodyDesk, server: MarketServer
) -> None:
    loaded(new_run(tmp_path / "first", plan_of(hold(1, 0.2)), seed=SEED), server, custody)
    again = new_run(tmp_path / "again", plan_of(hold(1, 0.2)), seed=SEED)
    assert "take another --seed" in refused(again, server, chain_of(custody))


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("", "SEATRIAL_CHAIN is not set; a plan with [chain] needs to know where the chain is"),
        ("{}", "SEATRIAL_CHAIN: Object missing required field `rpc`"),
        ("localhost", "'127.0.0.1:8545' is not a http:// URL of a host"),
        ("nobody there", "the chain did not answer (refused): the vault's backing"),
        ("not the minter", "of the set-up reverted"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_with_a_message(
    tmp_path: Path, custody: CustodyDesk, server: MarketServer, chain: str, said: str
) -> None:
    told = {
        "localhost": chain_of(custody, rpc="127.0.0.1:8545"),
        "nobody there": chain_of(custody, rpc="http://127.0.0.1:9"),
        "not the minter": chain_of(custody, minter_key=custody.other_key),
    }.get(chain, chain)
    run = new_run(tmp_path, plan_of(hold(1, 1.0)), seed=SEED)
    words = refused(run, server, told)
    assert said in words
    assert custody.operator_key not in words


def refused(run: Path, server: MarketServer, chain: str) -> str:
    """The last words of a load child that must exit 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "scenarios.load", str(run), "--host", server.url],
        cwd=PROJECT,
        env={**os.environ, "SEATRIAL_ADMIN_TOKEN": server.admin_token, "SEATRIAL_CHAIN": chain},
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


def test_a_load_without_a_chain_does_not_pay_for_one() -> None:
    """eth_account takes half a second and 30 MB in every process that imports it."""
    code = (
        "import sys, scenarios.engine, scenarios.shapes, scenarios.users\n"
        "heavy = {'eth_account', 'eth_abi', 'web3', 'coincurve'} & sys.modules.keys()\n"
        "print(sorted(heavy))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr
