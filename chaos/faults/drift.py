"""A drift between books and chain, or between two accounts and their entries: put in, and taken out again.

plus    dollars out of nothing into the vault; out again as a payment under a word that nobody asked for
minus   a payment under such a word, to the operator; back again by a plain transfer
pair    two accounts of the books that do not trade, one more and one less than their entries say
"""

from __future__ import annotations

import hashlib
import time
from typing import Literal, NamedTuple, TypeAlias

import psycopg

from chaos.faults.fault import Custody, FaultError, World
from chaos.faults.on_chain import asking, custody_of, patience_s, until
from chaos.faults.owner import owner_connection
from chaos.rpc import RpcError
from chaos.vault import (
    SignedCall,
    address_of,
    balance_of,
    mint_data,
    next_nonce,
    receipt_of,
    sign_call,
    suggested_fees,
    transfer_data,
    withdraw_data,
)

Kind: TypeAlias = Literal["plus", "minus", "pair"]

# A relay may take the same nonce in the same moment: then one of both signs anew.
TRIES = 5
# The reference's own table: the views of the books cannot be written to.
MOVE = """
WITH held AS MATERIALIZED (
    SELECT account_id, kind FROM accounts WHERE kind IN ('house_treasury', 'bond_escrow')
     ORDER BY account_id FOR NO KEY UPDATE)
UPDATE accounts AS a
   SET balance = a.balance + CASE held.kind WHEN 'house_treasury' THEN -%(by)s ELSE %(by)s END
  FROM held WHERE a.account_id = held.account_id
"""


class Change(NamedTuple):
    """One act: the first block with it (none for the books), the clock around it, the words it paid."""

    block: int | None
    from_unix_ns: int
    by_unix_ns: int
    words: list[str]


def plant(world: World, kind: Kind, amount_micro: int) -> Change:
    """Make them differ by this much; raises FaultError, and then they do not."""
    custody = custody_of(world)
    if kind == "pair":
        return _moved(world, amount_micro)
    if kind == "plus":
        return _operated(custody, custody.usdc, mint_data(custody.vault, amount_micro))
    with asking():
        held_micro = balance_of(custody.ask, custody.usdc, custody.vault)
    if held_micro < 2 * amount_micro:
        raise FaultError(f"the vault holds {held_micro} micro: users' withdrawals could not be paid")
    return _paid(custody, amount_micro)


def take_out(world: World, kind: Kind, amount_micro: int) -> Change:
    """Undo `plant`; raises FaultError when it stays."""
    custody = custody_of(world)
    if kind == "pair":
        return _moved(world, -amount_micro)
    if kind == "plus":
        return _paid(custody, amount_micro)
    return _operated(custody, custody.usdc, transfer_data(custody.vault, amount_micro))


def _moved(world: World, by_micro: int) -> Change:
    began_ns = time.time_ns()
    with owner_connection(world) as connection, connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '5s'")
        try:
            changed = connection.execute(MOVE, {"by": by_micro}).rowcount
        except psycopg.errors.CheckViolation:
            raise FaultError(f"the treasury holds less than {by_micro} micro") from None
        if changed != 2:
            raise FaultError(f"the books have {changed} of the accounts house_treasury and bond_escrow")
    return Change(None, began_ns, time.time_ns(), [])


def _paid(custody: Custody, amount_micro: int) -> Change:
    """The vault pays the operator under a word that is nobody's."""
    word = "0x" + hashlib.sha256(f"seatrial drift {time.time_ns()}".encode()).hexdigest()
    data = withdraw_data(word, address_of(custody.operator_key), amount_micro)
    return _operated(custody, custody.vault, data)._replace(words=[word])


def _operated(custody: Custody, to: str, data: str) -> Change:
    """A call by the operator in a block, once; raises FaultError, and then it never will be."""
    began_ns = time.time_ns()
    with asking():
        for _ in range(TRIES):
            call = sign_call(
                custody.operator_key,
                to=to,
                data=data,
                nonce=next_nonce(custody.ask, address_of(custody.operator_key)),
                fees=suggested_fees(custody.ask),
                chain_id=custody.chain_id,
            )
            block = _mined(custody, call)
            if block is not None:
                return Change(block, began_ns, time.time_ns(), [])
    raise FaultError(f"others spent the operator's nonce {TRIES} times")


def _mined(custody: Custody, call: SignedCall) -> int | None:
    """The block of a call; None when it can never have one. Raises FaultError, RpcError."""
    try:
        custody.ask("eth_sendRawTransaction", call.raw)
    except RpcError:
        # a lost answer is no refusal
        if custody.ask("eth_getTransactionByHash", call.hash) is None:
            return None
    operator = address_of(custody.operator_key)

    def spent() -> bool | None:
        return next_nonce(custody.ask, operator, waiting=False) > call.nonce or None

    timeout_s = patience_s(custody, blocks=3)
    in_time = until(spent, timeout_s=timeout_s)
    if in_time is None:
        custody.ask("anvil_dropTransaction", call.hash)
    receipt = receipt_of(custody.ask, call.hash)
    if receipt is not None and int(receipt["status"], 16) != 1:
        raise FaultError(f"the vault or its dollar refused {call.hash}")
    if receipt is None and in_time is None:
        raise FaultError(f"{call.hash} was in no block for {timeout_s:.0f} s")
    return None if receipt is None else int(receipt["blockNumber"], 16)
