"""A planted drift in a real world: the system's own loop finds it to the micro, then trading goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chaos.faults import FaultError
from chaos.faults.drift import plant, take_out
from chaos.processes import wait_until
from chaos.vault import balance_of, next_nonce, payment_logs
from tests.integration.custody_world import USDC, WAIT_S, CustodyWorld, custody_world, process_fault

__all__ = ["custody_world"]

WATCHED = "SELECT EXISTS (SELECT FROM watched_chain)"
TREASURY = 500 * USDC
BALANCE = "SELECT balance FROM accounts WHERE kind = %s"
WRONG = "SELECT count(*) FROM reconcile_all_balances() WHERE NOT reconciled"
RUNS = """
SELECT block_number, difference_micro, account_drift_micro, extract(EPOCH FROM cutoff_at)::float8
  FROM reconciliation_runs WHERE trouble IS NULL ORDER BY run_id
"""


@pytest.fixture
def world(custody_world: CustodyWorld) -> Iterator[CustodyWorld]:
    """The module's world at rest, with money in the treasury, which comes from a user's account."""
    if custody_world.ask(BALANCE, "house_treasury") == 0:
        user = custody_world.bank.users[0]
        custody_world.ask("SELECT record_ledger_entry(user_account(%s), 2, %s, 'fund')", user, TREASURY)
    assert wait_until(lambda: custody_world.ask(WATCHED), timeout_s=WAIT_S)
    custody_world.settle()
    yield custody_world
    assert not is_paused(custody_world)
    custody_world.settle()
    assert custody_world.ask(BALANCE, "external_onchain") == -custody_micro(custody_world)
    assert custody_world.ask(WRONG) == 0


def is_paused(world: CustodyWorld) -> bool:
    return bool(world.ask("SELECT paused FROM platform_state"))


def custody_micro(world: CustodyWorld) -> int:
    custody = world.custody
    return balance_of(custody.ask, custody.usdc, custody.vault)


def runs(world: CustodyWorld) -> list[tuple[int, int, int, float]]:
    """Block, difference, account drift and cut-off of every reconciliation that came to an answer."""
    return [(row[0], row[1], row[2], row[3]) for row in world.admin.execute(RUNS).fetchall()]


def await_runs(world: CustodyWorld, count: int) -> None:
    wanted = len(runs(world)) + count
    assert wait_until(lambda: len(runs(world)) >= wanted, timeout_s=WAIT_S)


@pytest.mark.parametrize(("kind", "sign"), [("plus", 1), ("minus", -1)])
def test_a_drift_of_the_chain_is_found_to_the_micro_and_stops_trading(
    world: CustodyWorld, kind: str, sign: int
) -> None:
    amount = 123_456_789
    fault = process_fault("plant_drift", kind=kind, amount_micro=amount)
    fault.check(world)
    with world.traffic():
        landed = fault.inject(world)
        assert is_paused(world)
        refused = world.bank.refused
        assert wait_until(lambda: world.bank.refused > refused, timeout_s=WAIT_S)
        healed = fault.heal(world, landed)
        moved = len(world.bank.withdrawals)
        assert wait_until(lambda: len(world.bank.withdrawals) > moved, timeout_s=WAIT_S)
        await_runs(world, 2)
    assert landed["drift_micro"] == landed["found_micro"] == sign * amount
    assert (landed["account_drift_micro"], landed["found_account_micro"]) == (0, 0)
    assert (landed["paused"], landed["verdict"]) == (True, "pause")
    assert landed["critical_micro"] <= amount
    assert landed["disturbs"] == []
    assert landed["from_unix_ns"] < landed["by_unix_ns"] < healed["removed_from_unix_ns"]
    assert landed["found_after_s"] >= 0
    assert healed["resumed"] is True
    assert healed["clean_run_id"] > landed["run_id"]
    held = [
        difference for block, difference, _, _ in runs(world)
        if landed["from_block"] <= block < healed["to_block"]
    ]  # fmt: skip
    assert held
    assert set(held) == {sign * amount}
    assert {difference for block, difference, _, _ in runs(world) if block >= healed["to_block"]} == {0}
    words = [*landed["words"], *healed["words"]]
    assert len(words) == 1
    custody = world.custody
    (paid,) = [
        log for log in payment_logs(custody.ask, custody.vault, custody.first_block, healed["to_block"])
        if log.word == words[0]
    ]  # fmt: skip
    assert (paid.withdrawal_id, paid.amount_micro) == (None, amount)


def test_a_pair_that_cancels_out_is_found_in_the_accounts(world: CustodyWorld) -> None:
    amount = 200 * USDC
    fault = process_fault("plant_drift", kind="pair", amount_micro=amount)
    with world.traffic():
        landed = fault.inject(world)
        assert world.ask(BALANCE, "house_treasury") == TREASURY - amount
        assert world.ask(BALANCE, "bond_escrow") == amount
        healed = fault.heal(world, landed)
    assert (landed["drift_micro"], landed["found_micro"]) == (0, 0)
    assert landed["account_drift_micro"] == landed["found_account_micro"] == 2 * amount
    assert (landed["from_block"], healed["to_block"]) == (None, None)
    assert landed["paused"] is healed["resumed"] is True
    assert landed["disturbs"] == ["balances_equal_entries"]
    assert (world.ask(BALANCE, "house_treasury"), world.ask(BALANCE, "bond_escrow")) == (TREASURY, 0)
    after_s = healed["removed_by_unix_ns"] / 1e9
    assert {drift for _, _, drift, cutoff_s in runs(world) if cutoff_s > after_s} == {0}


def test_a_small_drift_is_found_and_trading_goes_on(world: CustodyWorld) -> None:
    fault = process_fault("plant_drift", kind="plus", amount_micro=1)
    landed = fault.inject(world)
    assert (landed["verdict"], landed["found_micro"], landed["paused"]) == ("alert", 1, False)
    assert fault.heal(world, landed)["resumed"] is False


def test_a_drift_that_nobody_looks_for_is_there_and_not_found(world: CustodyWorld) -> None:
    fault = process_fault("plant_drift", kind="plus", found_s=1)
    reconciler = reconciler_of(world)
    waited = wait_until(lambda: bool(runs(world)), timeout_s=WAIT_S)
    assert waited
    before = custody_micro(world)
    reconciler.signal(signal.SIGSTOP)
    try:
        landed = fault.inject(world)
    finally:
        reconciler.signal(signal.SIGCONT)
    assert custody_micro(world) == before + 150 * USDC
    assert [landed[name] for name in ("run_id", "verdict", "found_micro", "found_after_s")] == [None] * 4
    assert landed["paused"] is False
    fault.heal(world, landed)
    assert custody_micro(world) == before


def test_trading_that_may_not_be_resumed_is_not_healed(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = process_fault("plant_drift", kind="plus")
    landed = fault.inject(world)
    access = world.custody._access
    assert access is not None
    monkeypatch.setattr(world.custody, "_access", msgspec_replaced(access, admin_token="nobody's"))
    monkeypatch.setattr("chaos.faults.on_chain.REACTION_S", 3.0)
    with pytest.raises(FaultError, match="trading was not resumed"):
        fault.heal(world, landed)
    assert is_paused(world)
    monkeypatch.undo()
    # what is out is out: only the rest is left to do
    assert fault.heal(world, {})["resumed"] is True


def test_a_treasury_that_holds_too_little_keeps_what_it_has(world: CustodyWorld) -> None:
    fault = process_fault("plant_drift", kind="pair", amount_micro=TREASURY + 1)
    with pytest.raises(FaultError, match="the treasury holds less than"):
        fault.inject(world)
    assert world.ask(BALANCE, "house_treasury") == TREASURY
    assert fault.heal(world, {})["resumed"] is False


def test_a_vault_that_could_not_pay_its_users_is_left_alone(world: CustodyWorld) -> None:
    before = custody_micro(world)
    with pytest.raises(FaultError, match="users' withdrawals could not be paid"):
        plant(world, "minus", before // 2 + 1)
    assert custody_micro(world) == before


def test_what_the_chain_refuses_is_no_drift(world: CustodyWorld) -> None:
    """The operator has no dollars to give back."""
    operator_micro = 10**15
    with pytest.raises(FaultError, match="the vault or its dollar refused"):
        take_out(world, "minus", operator_micro)


def test_a_nonce_that_others_spend_is_not_waited_for(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def spent_first(ask: Any, address: str, *, waiting: bool = True) -> int:
        found = next_nonce(ask, address, waiting=waiting)
        if waiting:
            asked.append(found)
            return found - 1 if len(asked) == 1 else found
        return found

    monkeypatch.setattr("chaos.faults.drift.next_nonce", spent_first)
    before = custody_micro(world)
    change = plant(world, "plus", 1)
    assert len(asked) == 2
    assert custody_micro(world) == before + 1
    assert change.block is not None
    take_out(world, "plus", 1)
    await_runs(world, 2)
    assert custody_micro(world) == before


def test_books_of_others_and_runs_without_a_chain_are_refused(world: CustodyWorld) -> None:
    fault = process_fault("plant_drift")
    nowhere: Any = SimpleNamespace(custody=None, postgres=world.postgres)
    with pytest.raises(FaultError, match="needs a chain"):
        fault.check(nowhere)
    elsewhere: Any = SimpleNamespace(custody=world.custody, postgres=None)
    with pytest.raises(FaultError, match="needs books that Seatrial starts"):
        fault.check(elsewhere)


@pytest.mark.parametrize("options", [{"kind": "both"}, {"amount_micro": 0}, {"found_s": 31}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FaultError, match="its options are"):
        process_fault("plant_drift", **options)


def reconciler_of(world: CustodyWorld) -> Any:
    """The system's own loop."""
    return world.custody._reconciler


def msgspec_replaced(value: Any, **changes: Any) -> Any:
    """A struct with other fields."""
    return msgspec.structs.replace(value, **changes)
