"""A correct run directory with a chain, made by hand: the story of the golden run, and money in and out.

    run = golden_money_run()                       # rows of every file, to be broken first
    run.withdrawal(1)["amount_micro"] += 1
    run.write(tmp_path / "run")

What is told between the golden run's chapters, a block each half a second, everything three blocks deep:

- deposits: of u1 and u2, credited; of nobody known, in suspense with an alert; a notice that arrives twice;
- withdrawals: 1 is paid; 2 reverts and is returned; 3 is handed to a relay twice; 4 loses its reply, then its
  nonce to another transaction, and is paid by a second attempt; reads and a refusal;
- a reorganisation that takes a deposit which was only seen;
- a deep one: u2's deposit is gone and spent (withdrawal 6), u1's and the payment of withdrawal 5 are in other
  blocks; a later deposit of u2 pays the debt off;
- a notice to u4 that is refused until it is dead, and replayed, while another waits behind it;
- a drift of the vault, found and paused for, taken out again under a made-up word, trading resumed;
- two accounts of users who never trade that are wrong and cancel out, likewise.
"""

from __future__ import annotations

from typing import Any

from tests.golden.actions import ADMIN
from tests.golden.build import (
    HOT,
    HOUSE_FUNDS,
    USER_FUNDS,
    USERS,
    close_a_market,
    finish,
    leave_unknowns,
    lose_a_reply,
    set_up,
    trade_at_once,
    trade_quietly,
)
from tests.golden.chain import CONFIRMATIONS, OPERATOR, Transaction, address_of, hash_of, payment_of
from tests.golden.market import START_NS
from tests.golden.money_recorder import BLOCK_NS, REFUSED, UNMARKED, WITHHELD, GoldenMoneyRun
from tests.golden.reconciliation import CRITICAL_MICRO, change_platform
from tests.golden.recorder import MS, S

DORMANT = ("u5", "u6")
USDC = 1_000_000
DEEP = CONFIRMATIONS + 1
PLUS_MICRO = 150 * USDC
PAIR_MICRO = 60 * USDC


def golden_money_run() -> GoldenMoneyRun:
    """The correct run with a chain."""
    run = GoldenMoneyRun()
    _prepare(run)
    run.wait_until(START_NS + 4 * S)
    run.event("load_started")
    run.look()
    trade_quietly(run)
    lose_a_reply(run)
    leave_unknowns(run)
    _deposit(run)
    _withdraw(run)
    _replace(run)
    _reorganise_what_was_seen(run)
    _reorganise_what_was_booked(run)
    _poison_a_notice(run)
    _plant_a_drift(run)
    _plant_a_pair(run)
    run.pass_blocks(1)
    run.do(run.buy("u4", HOT, 1, 500_000))
    run.tick(3 * S)
    run.pass_blocks(1)
    trade_at_once(run)
    close_a_market(run)
    _finish(run)
    return run


def _prepare(run: GoldenMoneyRun) -> None:
    """The vault holds what will be booked; then the set-up, and a wallet for everybody who trades."""
    users = USERS + DORMANT
    funds = {"amount_micro": HOUSE_FUNDS + len(users) * USER_FUNDS}
    run.chain.send(Transaction(hash_of("what the vault begins with"), "mint", funds))
    for _ in range(1 + DEEP):
        run.tick(BLOCK_NS)
        run.chain.mine(run.unix_ns // S)
    set_up(run, users)
    for user in USERS:
        run.do(run.wallet_nonce(user))
        run.do(run.link_wallet(user))


def _deposit(run: GoldenMoneyRun) -> None:
    """Deposits are credited when they are deep; one is nobody's."""
    run.answers["notice.deposit_credited u1"] = [WITHHELD]
    run.answers["alert.deposit_suspended 3"] = [REFUSED, WITHHELD]
    run.do(run.deposit("u1", 50 * USDC))
    run.do(run.deposit("u2", 30 * USDC))
    run.pass_blocks(1)
    run.do(run.read_account("u1"))
    run.do(run.deposit("u4", 7 * USDC, names="nobody", sender=address_of("a stranger's wallet")))
    run.pass_blocks(DEEP)
    run.do(run.read_account("u1"))
    run.do(run.buy("u2", HOT, 0, 700_000))


def _withdraw(run: GoldenMoneyRun) -> None:
    """Withdrawals: one is paid, one reverts, one is handed to a relay twice; one is refused."""
    run.answers["notice.withdrawal_paid u1"] = [UNMARKED]
    run.do(run.withdraw("u1", 25 * USDC))
    run.do(run.withdraw("u3", 15 * USDC))
    run.do(run.refused_withdrawal("u2", 900 * USDC))
    run.do(run.read_withdrawal("u1", 1))
    run.relay()
    failing = run.withdrawal(2)["tx_hash"]
    run.in_pool(failing, Transaction(failing, "reverted"))
    run.do(run.withdraw("u1", 5 * USDC))
    run.answers[f"withdrawal.requested {run.withdrawal(3)['withdrawal_id']}"] = [UNMARKED]
    run.relay()
    run.pass_blocks(1)
    run.do(run.read_withdrawal("u1", 1))
    run.pass_blocks(DEEP)
    run.do(run.read_withdrawal("u3", 2))


def _replace(run: GoldenMoneyRun) -> None:
    """A withdrawal whose reply is lost; then its nonce is spent by another transaction."""
    fault = run.begin_fault("replace_transaction")
    op = run.withdraw("u4", 10 * USDC)
    run.invoke(op)
    run.execute(op)
    run.relay()
    replaced = run.withdrawal(4)["tx_hash"]
    other = Transaction(hash_of("instead of a payment"), "other", {"instead_of": replaced})
    run.in_pool(replaced, other)
    facts: dict[str, Any] = {"withdrawal_id": run.withdrawal(4)["withdrawal_id"], "tx_hash": replaced}
    facts |= {"known": False, "replaced_by": other.hash, "block_number": run.chain.head.number + 1}
    run.pass_blocks(1)
    run.fault("landed", fault_id=fault, fault="replace_transaction", **facts)
    run.lose(op)
    run.tick(50 * MS)
    run.invoke(op)
    run.execute(op)
    run.complete(op, replayed=True)
    run.pass_blocks(DEEP + 1 + DEEP)
    row = run.withdrawal(4)
    facts = {"status": row["status"], "tx_hash": row["tx_hash"], "attempts": row["attempts"]}
    run.fault("healed", fault_id=fault, fault="replace_transaction", **facts)


def _reorganise_what_was_seen(run: GoldenMoneyRun) -> None:
    """A deposit that is not deep leaves the chain, and never comes back: no money had moved."""
    op = run.do(run.deposit("u3", 20 * USDC))
    run.pass_blocks(2)
    _reorganise(run, depth=2, dropped=[op.known["tx_hash"]], credited=[])


def _reorganise_what_was_booked(run: GoldenMoneyRun) -> None:
    """Deposits that were credited, and a payment that was final, lose their blocks; the spent is owed."""
    gone = run.do(run.deposit("u2", 40 * USDC))
    run.do(run.deposit("u1", 12 * USDC))
    run.do(run.withdraw("u1", 3 * USDC))
    run.relay()
    run.pass_blocks(DEEP)
    balance = run.books.account("user_available", user_id="u2")["balance_micro"]
    run.do(run.withdraw("u2", balance - 10 * USDC))
    run.relay()
    run.pass_blocks(1)
    hashes = [gone.known["tx_hash"]]
    _reorganise(run, depth=DEEP + 1, dropped=hashes, credited=hashes)
    run.do(run.refused_withdrawal("u2", 1 * USDC))
    run.do(run.deposit("u2", 45 * USDC))
    run.pass_blocks(DEEP)
    run.do(run.read_account("u2"))


def _reorganise(run: GoldenMoneyRun, *, depth: int, dropped: list[str], credited: list[str]) -> None:
    fault = run.begin_fault("reorganise")
    head = run.chain.head.number
    old, new = run.chain.reorganise(depth, dropped)
    facts: dict[str, Any] = {"depth": depth, "confirmations": CONFIRMATIONS, "first_block": head - depth + 1}
    facts |= {"head": head, "old_hashes": old, "new_hashes": new, "dropped": dropped, "credited": credited}
    run.fault("landed", fault_id=fault, fault="reorganise", **facts)
    run.look()
    run.pass_blocks(1)
    run.fault("healed", fault_id=fault, fault="reorganise", reversed=len(credited))


def _poison_a_notice(run: GoldenMoneyRun) -> None:
    """A notice to u4 dies; the one behind it waits for its replay, and others do not."""
    fault = run.begin_fault("poison_event")
    run.refused_event = "notice.deposit_credited u4"
    run.do(run.deposit("u4", 9 * USDC))
    run.pass_blocks(1)
    run.do(run.deposit("u4", 8 * USDC))
    run.do(run.deposit("u3", 6 * USDC))
    run.pass_blocks(DEEP)
    dead = run.event_row("notice.deposit_credited", "u4")
    facts = {"event_id": dead["event_id"], "key": dead["dedup_key"], "attempts": dead["attempts"]}
    run.fault("landed", fault_id=fault, fault="poison_event", **facts)
    run.refused_event = ""
    run.books.outbox.replay(dead)
    run.relay()
    facts = {"event_id": dead["event_id"], "status": dead["status"], "attempts": dead["attempts"]}
    run.fault("healed", fault_id=fault, fault="poison_event", **facts)


def _plant_a_drift(run: GoldenMoneyRun) -> None:
    """The vault holds more than the books explain, until it is paid out under a made-up word."""
    fault = run.begin_fault("plant_drift")
    facts: dict[str, Any] = {"kind": "plus", "drift_micro": PLUS_MICRO, "account_drift_micro": 0}
    facts |= {"from_block": run.chain.head.number + 1, "from_unix_ns": run.unix_ns, "by_unix_ns": run.unix_ns}
    run.chain.send(Transaction(hash_of("too much"), "mint", {"amount_micro": PLUS_MICRO}))
    facts |= _find(run) | {"words": [], "disturbs": []}
    run.fault("landed", fault_id=fault, fault="plant_drift", **facts)
    run.do(run.refused("u1", HOT, "trading_paused", status=503))
    run.pass_blocks(1)
    word = hash_of("a made-up word")
    facts = {"to_block": run.chain.head.number + 1, "removed_from_unix_ns": run.unix_ns}
    run.chain.send(payment_of("take out what was too much", word, OPERATOR, PLUS_MICRO))
    facts |= {"removed_by_unix_ns": run.unix_ns, "words": [word]}
    _resume(run)
    run.fault("healed", fault_id=fault, fault="plant_drift", **facts, resumed=True)


def _plant_a_pair(run: GoldenMoneyRun) -> None:
    """Two accounts that are wrong by as much, up and down: the total cannot see it."""
    fault = run.begin_fault("plant_drift")
    facts: dict[str, Any] = {"kind": "pair", "drift_micro": 0, "account_drift_micro": 2 * PAIR_MICRO}
    facts |= {"from_block": None, "from_unix_ns": run.unix_ns, "by_unix_ns": run.unix_ns}
    up, down = (run.books.account("user_available", user_id=user) for user in DORMANT)
    up["balance_micro"] += PAIR_MICRO
    down["balance_micro"] -= PAIR_MICRO
    facts |= _find(run) | {"words": [], "disturbs": ["balances_equal_entries"]}
    run.fault("landed", fault_id=fault, fault="plant_drift", **facts)
    up["balance_micro"] -= PAIR_MICRO
    down["balance_micro"] += PAIR_MICRO
    facts = {"to_block": None, "removed_from_unix_ns": run.unix_ns, "removed_by_unix_ns": run.unix_ns}
    facts |= {"words": []}
    _resume(run)
    run.fault("healed", fault_id=fault, fault="plant_drift", **facts, resumed=True)


def _find(run: GoldenMoneyRun) -> dict[str, Any]:
    """The next block's reconciliation finds what was planted."""
    run.pass_blocks(1)
    found = run.rows("reconciliations")[-1]
    return {
        "run_id": found["run_id"],
        "verdict": found["verdict"],
        "found_micro": found["difference_micro"],
        "found_account_micro": found["account_drift_micro"],
        "found_after_s": 0.5,
        "critical_micro": CRITICAL_MICRO,
        "paused": found["paused_at"] is not None,
    }


def _resume(run: GoldenMoneyRun) -> None:
    """An administrator lets money move again, after a clean reconciliation."""
    run.pass_blocks(1)
    run.tick()
    change_platform(run.books, paused=False, reason="the drift is gone", changed_by=ADMIN)


def _finish(run: GoldenMoneyRun) -> None:
    run.event("load_stopped")
    run.event("healed")
    run.pass_blocks(DEEP)
    run.event("drained", drained=True, replayed=0, took_s=2.0)
    run.event("quiescent", active=0, prepared=0)
    finish(run)
