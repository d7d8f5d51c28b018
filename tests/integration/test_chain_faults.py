"""The faults of the chain in a real world: proof that they landed, and that money comes out right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from chaos.faults import FaultError
from chaos.processes import identify, is_alive, wait_until
from chaos.rpc import RpcError
from chaos.vault import payment_logs, receipt_of, word_of
from tests.integration.custody_world import USDC, WAIT_S, CustodyWorld, custody_world, process_fault

__all__ = ["custody_world"]

WATCHED = "SELECT EXISTS (SELECT FROM watched_chain)"
CHAIN_FAULTS = (
    "drop_transaction",
    "duplicate_transaction",
    "kill_chain",
    "lag_chain",
    "reorganise",
    "replace_transaction",
)


def forget_lost(world: CustodyWorld) -> None:
    """Deposits that the node does not know have gone with its pool, or with their block.

    And one that was sent under the nonce of a lost one, by the same user and as much, is that one.
    """
    world.bank.deposits[:] = [one for one in dict.fromkeys(world.bank.deposits) if is_known(world, one)]


def is_known(world: CustodyWorld, tx_hash: str) -> bool:
    return world.custody.ask("eth_getTransactionByHash", tx_hash) is not None


_amounts = itertools.count(USDC)


@pytest.fixture
def world(custody_world: CustodyWorld) -> Iterator[CustodyWorld]:
    """The module's world, at rest before a test."""
    assert wait_until(lambda: custody_world.ask(WATCHED), timeout_s=WAIT_S)
    custody_world.settle()
    yield custody_world
    # whatever a test that failed has left
    custody_world.custody.rpc.thaw()
    custody_world.custody.mining(True)


def height(world: CustodyWorld) -> int:
    return int(world.custody.ask("eth_blockNumber"), 16)


def await_blocks(world: CustodyWorld, count: int = 1) -> None:
    """Wait until so many blocks more are there."""
    wanted = height(world) + count
    assert wait_until(lambda: height(world) >= wanted, timeout_s=WAIT_S)


def queued(world: CustodyWorld) -> int:
    """How many transactions wait behind a nonce that nobody has used."""
    return int(world.custody.ask("txpool_status")["queued"], 16)


def a_withdrawal(world: CustodyWorld) -> UUID:
    found = world.bank.withdraw(world.bank.users[0])
    assert found is not None
    return found


def a_deposit(world: CustodyWorld) -> str:
    """Of another amount each time, so that none is the same transaction as one that was lost."""
    found = world.bank.deposit(world.bank.users[0], next(_amounts))
    assert found is not None
    return found


def deposit_statuses(world: CustodyWorld, tx_hash: str) -> list[str]:
    """Of the rows of a deposit, oldest first."""
    rows = world.admin.execute(
        "SELECT status FROM deposits WHERE tx_hash = %s ORDER BY deposit_id", [tx_hash]
    ).fetchall()
    return [status for (status,) in rows]


def await_credited(world: CustodyWorld, tx_hash: str) -> None:
    assert wait_until(lambda: "credited" in deposit_statuses(world, tx_hash), timeout_s=WAIT_S)


def payments_of(world: CustodyWorld, withdrawal_id: str) -> int:
    custody = world.custody
    logs = payment_logs(custody.ask, custody.vault, custody.first_block, height(world))
    return sum(log.word == word_of(withdrawal_id) for log in logs)


# --- the node


def test_a_killed_node_is_dead_by_sigkill_and_comes_back_with_its_blocks(world: CustodyWorld) -> None:
    fault = process_fault("kill_chain", down_s=0.5)
    child = world.custody.node.child
    assert child is not None
    before = identify(child.pid)
    assert before is not None
    with world.traffic():
        await_blocks(world, 3)
        landed = fault.inject(world)
        assert not is_alive(before)
        with pytest.raises(RpcError):
            height(world)
        healed = fault.heal(world, landed)
        await_blocks(world, 3)
    assert (landed["pid"], landed["returncode"]) == (before.pid, -9)
    assert landed["down_s"] >= 0.5
    assert healed["pid"] == child.pid != landed["pid"] == healed["pid_before"]
    assert healed["head"] > landed["head"]
    assert healed["head_hash_before"] == landed["head_hash"]
    forget_lost(world)
    world.settle()
    world.assert_sound()


def test_a_node_that_came_back_with_other_blocks_is_not_healed(world: CustodyWorld) -> None:
    fault = process_fault("kill_chain", down_s=0)
    landed = fault.inject(world)
    with pytest.raises(FaultError, match="before the kill"):
        fault.heal(world, {**landed, "head_hash": "0x" + "00" * 32})
    await_blocks(world)


def test_a_node_that_cannot_come_back_is_not_killed(world: CustodyWorld) -> None:
    node = SimpleNamespace(can_kill=False, child=world.custody.node.child)
    elsewhere: Any = SimpleNamespace(custody=SimpleNamespace(node=node))
    fault = process_fault("kill_chain")
    for call in (fault.check, fault.inject):
        with pytest.raises(FaultError, match="--chain embedded"):
            call(elsewhere)
    fault.check(world)
    assert height(world) > 0


def test_a_node_that_lags_shows_its_old_head_while_the_chain_goes_on(world: CustodyWorld) -> None:
    fault = process_fault("lag_chain", lag_s=1.5)
    with world.traffic():
        await_blocks(world)
        landed = fault.inject(world)
        assert world.custody.rpc.status()["frozen_at"] == landed["frozen_at"]
        # what the system knows of the chain is that old too
        known = world.ask("SELECT head_number FROM watched_chain")
        assert known <= landed["frozen_at"] < landed["head"] <= height(world)
        healed = fault.heal(world, landed)
        assert world.custody.rpc.status()["frozen_at"] is None
        assert wait_until(
            lambda: world.ask("SELECT head_number FROM watched_chain") >= healed["head"], timeout_s=WAIT_S
        )
    assert landed["clamped"] > 0
    assert landed["lagged_s"] >= 1.5
    world.settle()
    world.assert_sound()


def test_a_chain_that_stands_still_itself_is_no_lag(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.faults.on_chain.REACTION_S", 0.1)
    fault = process_fault("lag_chain", lag_s=0.2)
    world.custody.mining(False)
    with pytest.raises(FaultError, match="the chain itself stood still"):
        fault.inject(world)
    world.custody.mining(True)
    assert fault.heal(world, {})["frozen_at"] is None


def test_a_lag_that_nobody_saw_is_none(world: CustodyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.faults.on_chain.REACTION_S", 0.1)
    custody = world.custody
    line: Any = SimpleNamespace(
        freeze=lambda: 0, thaw=custody.rpc.thaw, status=lambda: {"clamped": 7, "frozen_at": 3}
    )
    blind: Any = SimpleNamespace(rpc=line, ask=custody.ask, plan=custody.plan)
    fault = process_fault("lag_chain", lag_s=0.2)
    with pytest.raises(FaultError, match="nobody asked the node while it was behind"):
        fault.inject(replace(world, custody=blind))
    with pytest.raises(FaultError, match="the line still shows block 3"):
        fault.heal(replace(world, custody=blind), {})


# --- withdrawals in the pool


def test_a_dropped_withdrawal_is_not_known_and_paid_all_the_same(world: CustodyWorld) -> None:
    fault = process_fault("drop_transaction")
    withdrawal_id = a_withdrawal(world)
    landed = fault.inject(world)
    stopped_at = height(world)
    assert landed["withdrawal_id"] == str(withdrawal_id)
    assert landed["known"] is False
    healed = fault.heal(world, landed)
    assert healed["head"] > stopped_at
    assert healed["same_bytes"] is True
    assert healed["tx_hash"] == landed["tx_hash"]
    assert healed["block_number"] > stopped_at
    assert healed["sends"] >= 2
    assert receipt_of(world.custody.ask, landed["tx_hash"]) is not None
    world.settle()
    assert payments_of(world, str(withdrawal_id)) == 1
    world.assert_sound()


def test_a_replaced_withdrawal_is_paid_under_its_id_with_another_nonce(world: CustodyWorld) -> None:
    fault = process_fault("replace_transaction")
    withdrawal_id = a_withdrawal(world)
    landed = fault.inject(world)
    replacing = world.custody.ask("eth_getTransactionByHash", landed["replaced_by"])
    assert int(replacing["nonce"], 16) == landed["nonce"]
    assert int(replacing["blockNumber"], 16) == landed["block_number"]
    assert world.custody.ask("eth_getTransactionByHash", landed["tx_hash"]) is None
    healed = fault.heal(world, landed)
    assert healed["tx_hash"] not in (landed["tx_hash"], landed["replaced_by"])
    assert healed["nonce"] > landed["nonce"]
    assert healed["attempts"] == 2
    world.settle()
    assert payments_of(world, str(withdrawal_id)) == 1
    world.assert_sound()


def test_a_withdrawal_that_is_sent_again_is_paid_once(world: CustodyWorld) -> None:
    fault = process_fault("duplicate_transaction")
    withdrawal_id = a_withdrawal(world)
    landed = fault.inject(world)
    healed = fault.heal(world, landed)
    assert landed["withdrawal_id"] == str(withdrawal_id)
    assert "already known" in landed["while_waiting"]
    assert "nonce too low" in landed["when_mined"]
    assert landed["payments"] == 1
    assert healed["head"] > landed["block_number"]
    world.settle()
    assert payments_of(world, str(withdrawal_id)) == 1
    world.assert_sound()


@pytest.mark.parametrize("name", ["drop_transaction", "replace_transaction", "duplicate_transaction"])
def test_without_a_withdrawal_none_can_be_hit(world: CustodyWorld, name: str) -> None:
    fault = process_fault(name, wait_s=0.3)
    with pytest.raises(FaultError, match="no withdrawal was sent to the node within 0 s"):
        fault.inject(world)
    stopped_at = height(world)
    assert fault.heal(world, {})["head"] > stopped_at


@pytest.mark.parametrize("name", ["drop_transaction", "replace_transaction"])
def test_a_withdrawal_that_is_not_paid_is_not_healed(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("chaos.faults.on_chain.REACTION_S", 0.5)
    landed = {"withdrawal_id": "00000000-0000-0000-0000-000000000000", "tx_hash": "0x00"}
    with pytest.raises(FaultError, match="was not paid within"):
        process_fault(name).heal(world, landed)


def test_blocks_that_do_not_come_again_are_not_healed(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.faults.on_chain.REACTION_S", 0.1)
    world.custody.mining(False)
    monkeypatch.setattr(world.custody, "mining", lambda _: None)
    with pytest.raises(FaultError, match="no block followed"):
        process_fault("drop_transaction").heal(world, {})
    monkeypatch.undo()
    world.custody.mining(True)
    await_blocks(world)


# --- reorganisations


def test_a_shallow_reorganisation_loses_a_deposit_that_nobody_had_credited(world: CustodyWorld) -> None:
    fault = process_fault("reorganise", depth=2, drop=1)
    a_withdrawal(world)
    before, tx_hash = height(world), a_deposit(world)
    landed = fault.inject(world)
    healed = fault.heal(world, landed)
    assert landed["dropped"] == [tx_hash] == [one["tx_hash"] for one in landed["gone"]]
    assert (landed["depth"], landed["confirmations"], landed["credited"]) == (2, 2, [])
    assert before <= landed["first_block"] == landed["head"] - 1
    assert len(landed["old_hashes"]) == len(landed["new_hashes"]) == 2
    assert not set(landed["old_hashes"]) & set(landed["new_hashes"])
    first = world.custody.ask("eth_getBlockByNumber", hex(landed["first_block"]), False)
    assert first["hash"] == landed["new_hashes"][0]
    assert healed["reversed"] == 0
    assert receipt_of(world.custody.ask, tx_hash) is None
    forget_lost(world)
    world.settle()
    assert "credited" not in deposit_statuses(world, tx_hash)
    world.assert_sound()


def test_a_deep_reorganisation_has_a_credited_deposit_reversed(world: CustodyWorld) -> None:
    fault = process_fault("reorganise", depth=16, drop=1)
    tx_hash = a_deposit(world)
    await_credited(world, tx_hash)
    withdrawal_id = a_withdrawal(world)
    await_blocks(world, 2)
    landed = fault.inject(world)
    assert landed["dropped"] == landed["credited"] == [tx_hash]
    # the withdrawal kept its place
    assert landed["put_back"] >= 1
    healed = fault.heal(world, landed)
    assert healed["reversed"] == 1
    assert deposit_statuses(world, tx_hash) == ["reversed"]
    forget_lost(world)
    world.settle()
    assert payments_of(world, str(withdrawal_id)) == 1
    world.assert_sound()


def test_what_is_sent_again_after_a_reorganisation_is_credited_again(world: CustodyWorld) -> None:
    fault = process_fault("reorganise", depth=16, drop=1, send_again=True)
    tx_hash = a_deposit(world)
    await_credited(world, tx_hash)
    landed = fault.inject(world)
    assert receipt_of(world.custody.ask, tx_hash) is None
    healed = fault.heal(world, landed)
    assert healed["refused"] == {}
    assert list(healed["mined_again"]) == [tx_hash]
    assert healed["mined_again"][tx_hash] > landed["head"]
    world.settle()
    assert deposit_statuses(world, tx_hash) == ["reversed", "credited"]
    world.assert_sound()


def test_a_reorganisation_in_traffic_leaves_everything_in_its_place(world: CustodyWorld) -> None:
    fault = process_fault("reorganise", depth=6, drop=20)
    with world.traffic():
        await_blocks(world, 10)
        landed = fault.inject(world)
        healed = fault.heal(world, landed)
        # new deposits fill the nonces that are free now, or those behind them would wait for ever
        assert wait_until(lambda: queued(world) == 0, timeout_s=WAIT_S)
    assert landed["credited"]
    assert set(landed["credited"]) <= set(landed["dropped"])
    assert healed["reversed"] >= len(landed["credited"])
    assert landed["put_back"] >= 1
    forget_lost(world)
    world.settle()
    world.assert_sound()


def test_where_there_is_no_deposit_none_is_lost(world: CustodyWorld) -> None:
    await_blocks(world, 3)
    for depth, what in ((1, "no deposit"), (3, "no credited deposit")):
        fault = process_fault("reorganise", depth=depth, drop=1, wait_s=0.3)
        with pytest.raises(FaultError, match=f"{what} in the newest {depth} blocks"):
            fault.inject(world)
        assert fault.heal(world, {})["head"] > 0


def test_books_that_rest_on_blocks_that_are_gone_are_not_healed(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same heal, told that blocks are gone which are not."""
    tx_hash = a_deposit(world)
    await_credited(world, tx_hash)
    monkeypatch.setattr("chaos.faults.on_chain.REACTION_S", 0.5)
    block_hash = world.ask("SELECT block_hash FROM deposits WHERE tx_hash = %s", tx_hash)
    landed = {"old_hashes": [block_hash], "dropped": [tx_hash], "confirmations": 2, "gone": []}
    with pytest.raises(FaultError, match="still rest on blocks that are gone"):
        process_fault("reorganise").heal(world, landed)


def test_the_vault_itself_is_never_reorganised_away(world: CustodyWorld) -> None:
    custody = world.custody
    custody.mining(False)
    fault = process_fault("reorganise", depth=64, drop=0)
    ask: Any = lambda method, *params: (  # noqa: E731
        "0x" if method == "eth_getCode" else custody.ask(method, *params)
    )
    early: Any = SimpleNamespace(
        ask=ask, mining=custody.mining, plan=custody.plan, vault=custody.vault, node=custody.node
    )
    assert wait_until(lambda: height(world) > 0, timeout_s=WAIT_S)
    custody.ask("anvil_mine", 70)
    head = custody.ask("eth_getBlockByNumber", "latest", False)["hash"]
    with pytest.raises(FaultError, match="is from before the vault"):
        fault.inject(replace(world, custody=early))
    assert custody.ask("eth_getBlockByNumber", "latest", False)["hash"] == head


# --- all of them


@pytest.mark.parametrize("name", CHAIN_FAULTS)
def test_a_run_without_a_chain_cannot_have_them(name: str) -> None:
    nowhere: Any = SimpleNamespace(custody=None)
    with pytest.raises(FaultError, match="needs a chain"):
        process_fault(name).check(nowhere)
