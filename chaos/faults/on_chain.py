"""What the faults of the chain share: whose chain it is, its errors, its blocks held back and let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
import psycopg

from chaos.control_line import ControlError
from chaos.faults.fault import Custody, FaultError, World
from chaos.faults.owner import owner_connection
from chaos.http_messages import Evidence
from chaos.rpc import RpcError
from chaos.vault import Fees, VaultError, address_of, is_withdrawal, uuid_of, word_in

Found = TypeVar("Found")
Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

# Short enough that a fault which begins as the load ends is healed in time (chaos.trial).
Wait = Annotated[float, msgspec.Meta(ge=0, le=15)]

POLL_S = 0.05
# For whatever has to look, decide and act: a watcher, a relay, a reconciler, each with pauses of its own.
REACTION_S = 15.0
PAID = ("mined", "final")
PAYMENT = """
SELECT status, attempts, sends, tx_hash, block_number FROM books.withdrawals WHERE withdrawal_id = %s
"""


class WaitingPayment(NamedTuple):
    """A withdrawal's transaction that the node has and no block, and that the next block may have."""

    withdrawal_id: str
    tx_hash: str
    nonce: int
    fees: Fees


class Payment(NamedTuple):
    """A withdrawal as the books show it."""

    status: str
    attempts: int
    sends: int
    tx_hash: str | None
    block_number: int | None


def custody_of(world: World) -> Custody:
    """The part of the world with the chain; raises FaultError in a run without one."""
    if world.custody is None:
        raise FaultError("this fault needs a chain: a plan with [chain] and its scenario")
    return world.custody


@contextmanager
def asking() -> Iterator[None]:
    """Whatever node or vault refuse within it is a FaultError."""
    try:
        yield
    except (RpcError, VaultError) as error:
        raise FaultError(f"the chain: {error}") from None


@contextmanager
def on_the_line() -> Iterator[None]:
    """Whatever the line to the node refuses within it is a FaultError."""
    try:
        yield
    except ControlError as error:
        raise FaultError(str(error)) from None


def until(look: Callable[[], Found | None], *, timeout_s: float, poll_s: float = POLL_S) -> Found | None:
    """The first thing that a look finds; None when it finds nothing in time."""
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(poll_s)  # bounded by timeout_s; the condition is what is looked for
    return found


def patience_s(custody: Custody, *, blocks: int) -> float:
    """How long something may take that needs so many blocks and somebody's reaction."""
    return REACTION_S + blocks * custody.plan.block_time_s


def height_of(custody: Custody) -> int:
    """The number of the newest block; raises RpcError."""
    return int(custody.ask("eth_blockNumber"), 16)


def let_go(custody: Custody) -> Evidence:
    """Blocks by the clock again, and a new one to prove it."""
    with asking():
        custody.mining(True)
        before = height_of(custody)
        timeout_s = patience_s(custody, blocks=2)
        head = until(lambda: now if (now := height_of(custody)) > before else None, timeout_s=timeout_s)
    if head is None:
        raise FaultError(f"no block followed block {before} within {timeout_s:.0f} s")
    return {"head": head}


def await_waiting_payment(custody: Custody, *, timeout_s: float) -> WaitingPayment:
    """Hold the blocks back and wait for a withdrawal in the pool; raises FaultError when none comes.

    Whoever calls it lets the blocks go again (`let_go`), whatever happens.
    """
    operator = address_of(custody.operator_key)
    with asking():
        custody.mining(False)
        found = until(lambda: waiting_payment(custody, operator), timeout_s=timeout_s)
    if found is None:
        raise FaultError(f"no withdrawal was sent to the node within {timeout_s:.0f} s")
    return found


def waiting_payment(custody: Custody, operator: str) -> WaitingPayment | None:
    """The first withdrawal among those of the operator's whose turn has come; raises RpcError."""
    pending = custody.ask("txpool_content")["pending"]
    by_nonce = {
        int(nonce): transaction
        for sender, transactions in pending.items()
        if sender.lower() == operator
        for nonce, transaction in transactions.items()
    }
    for nonce, transaction in sorted(by_nonce.items()):
        to_vault = (transaction["to"] or "").lower() == custody.vault.lower()
        if not to_vault or not is_withdrawal(transaction["input"]):
            continue
        withdrawal_id = uuid_of(word_in(transaction["input"]))
        if withdrawal_id is not None:
            return WaitingPayment(withdrawal_id, transaction["hash"].lower(), nonce, _fees(transaction))
    return None


def _fees(transaction: dict[str, Any]) -> Fees:
    max_fee_wei, tip_wei = (
        int(transaction.get(name, transaction["gasPrice"]), 16)
        for name in ("maxFeePerGas", "maxPriorityFeePerGas")
    )
    return Fees(max_fee_wei, tip_wei)


def await_paid(world: World, withdrawal_id: str, *, blocks: int) -> Payment:
    """The withdrawal once the books see a block that pays it; raises FaultError when they do not in time."""
    custody = custody_of(world)
    timeout_s = patience_s(custody, blocks=blocks)
    with owner_connection(world) as connection:

        def paid() -> Payment | None:
            row = connection.execute(PAYMENT, [withdrawal_id]).fetchone()
            return None if row is None or row[0] not in PAID else Payment(*row)

        found = until(paid, timeout_s=timeout_s)
        if found is None:
            row = connection.execute(PAYMENT, [withdrawal_id]).fetchone()
            raise FaultError(f"withdrawal {withdrawal_id} was not paid within {timeout_s:.0f} s: {row}")
    return found
