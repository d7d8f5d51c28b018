"""The machine: pyrevm with what it leaves to the node, so that whatever happens in it can be taken back.

pyrevm executes calls and nothing more: it raises no nonce of a sender, charges no fee, and never finalises
its journal. That journal is used here as the undo of the whole chain:

1. A checkpoint is a snapshot that is committed at once. The depth stays 0 (a machine 1,024 deep executes
   nothing), no commit is without its snapshot, and the checkpoint can still be reverted to from a later
   snapshot.
2. Every change goes through a call, which is journaled: fees and given balances are transfers too, from
   and to accounts that nobody holds the key of. `set_balance` is not journaled and serves the genesis
   only.
3. Reading loads what it reads as "warm", which makes later gas cheaper; so every reading is taken back,
   and the same transactions cost the same gas when the log is replayed.

Since nothing is finalised, an account or a slot once touched stays warm and a slot's original value is its
first: transactions use less gas here than on a public chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from eth_hash.auto import keccak

from reference_server.chain.transactions import Transaction

try:
    import pyrevm
except ImportError:  # no wheel for this Python or platform
    pyrevm = None  # type: ignore[assignment]

SPEC = "CANCUN"
# Fees go to the zero address, as anvil's do: nobody gets them.
FEES = "0x" + "00" * 20
# Gives and takes what anvil_setBalance asks for; an address without a key.
BANK = "0x" + keccak(b"seatrial bank")[12:].hex()
BANK_WEI = 2**250
TRANSFER_GAS = 21_000
OUTPUT = re.compile(r"output: 0x([0-9a-f]*)")


class MachineError(Exception):
    """A call that the machine refuses to begin; says why."""


class Checkpoint(Protocol):
    """A state to come back to; pyrevm's own object."""

    @property
    def journal_i(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Event:
    """What a contract logged."""

    address: str
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one call: its gas, what it returned or why it reverted, and what it logged."""

    succeeded: bool
    gas_used: int
    gas_refunded: int
    output: bytes
    reason: str
    events: tuple[Event, ...]
    created: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a contract can see of the block that it is executed in."""

    number: int
    timestamp: int
    gas_limit: int
    prevrandao: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """A message: a transaction's, or one that is only tried."""

    sender: str
    to: str | None
    data: bytes
    value_wei: int
    gas: int


class Machine:
    """One state and the calls on it; raises MachineError when pyrevm is not installed."""

    def __init__(self, *, chain_id: int) -> None:
        if pyrevm is None:
            raise MachineError(
                "pyrevm is not installed: it has wheels for Python 3.11 and 3.12 on Linux x86_64 and macOS;"
                " elsewhere use --chain anvil"
            )
        self._evm = pyrevm.EVM(env=pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=chain_id)), spec_id=SPEC)
        self._evm.set_balance(BANK, BANK_WEI)

    def endow(self, address: str, balance_wei: int) -> None:
        """Give an account its balance at genesis; cannot be taken back."""
        self._evm.set_balance(address, balance_wei)

    def checkpoint(self) -> Checkpoint:
        """The state as it is now."""
        checkpoint = self._evm.snapshot()
        self._evm.commit()
        return checkpoint

    def rewind(self, checkpoint: Checkpoint) -> Checkpoint:
        """Go back to that state, which spends the checkpoint; the returned one is in its place."""
        self._evm.snapshot()
        self._evm.revert(checkpoint)  # type: ignore[arg-type]
        return self.checkpoint()

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Take back whatever is done or read within."""
        checkpoint = self._evm.snapshot()
        try:
            yield
        finally:
            self._evm.revert(checkpoint)

    def enter(self, surroundings: Surroundings) -> None:
        """Be in this block from now on."""
        self._evm.set_block_env(
            pyrevm.BlockEnv(
                number=surroundings.number,
                timestamp=surroundings.timestamp,
                gas_limit=surroundings.gas_limit,
                prevrandao=surroundings.prevrandao,
                coinbase=FEES,
                basefee=0,
            )
        )

    def execute(self, transaction: Transaction, *, price_wei: int) -> Outcome:
        """Execute a transaction that its sender can pay for, and charge its gas."""
        if transaction.to is None:
            self._number_sender(transaction.sender, transaction.nonce)
        call = Call(
            sender=transaction.sender,
            to=transaction.to,
            data=transaction.data,
            value_wei=transaction.value_wei,
            gas=transaction.gas,
        )
        outcome = self.call(call)
        if fee_wei := outcome.gas_used * price_wei:
            self._transfer(transaction.sender, FEES, fee_wei)
        return outcome

    def call(self, call: Call) -> Outcome:
        """Execute a message; raises MachineError when the value or the intrinsic gas is not there."""
        self._evm.reset_transient_storage()
        output, created, failure = b"", None, ""
        try:
            if call.to is None:
                created = self._evm.deploy(call.sender, call.data, value=call.value_wei, gas=call.gas)
            else:
                output = self._evm.message_call(
                    call.sender, call.to, calldata=call.data, value=call.value_wei, gas=call.gas
                )
        except RuntimeError as error:
            failure = str(error)
        result = self._evm.result
        if result is None:
            raise MachineError(failure)
        if failure and (found := OUTPUT.search(failure)):
            output = bytes.fromhex(found[1])
        return Outcome(
            succeeded=result.is_success,
            gas_used=result.gas_used,
            gas_refunded=result.gas_refunded,
            output=output,
            reason=result.reason,
            events=tuple(map(_event, result.logs)) if result.is_success else (),
            created=created,
        )

    def give(self, address: str, balance_wei: int) -> None:
        """Bring a balance to this amount, out of nothing or into it; raises MachineError for a contract's."""
        with self.trial():
            if self._evm.get_code(address):
                raise MachineError(f"{address} is a contract; only the balance of an account can be set")
            difference = balance_wei - self._evm.get_balance(address)
        if difference > 0:
            self._transfer(BANK, address, difference)
        elif difference < 0:
            self._transfer(address, BANK, -difference)

    def balance_wei(self, address: str) -> int:
        with self.trial():
            return self._evm.get_balance(address)

    def code(self, address: str) -> bytes:
        with self.trial():
            return self._evm.get_code(address) or b""

    def nonce_of_contract(self, address: str) -> int:
        with self.trial():
            return self._evm.basic(address).nonce

    def storage(self, address: str, slot: int) -> int:
        with self.trial():
            return self._evm.storage(address, slot)

    def _transfer(self, sender: str, receiver: str, amount_wei: int) -> None:
        self._evm.message_call(sender, receiver, value=amount_wei, gas=TRANSFER_GAS)

    def _number_sender(self, sender: str, nonce: int) -> None:
        # A creation takes the nonce from the state, where nobody has raised it. Not journaled, and needs not
        # be: nothing else reads it, and the next creation writes it again.
        info = self._evm.basic(sender)
        numbered = pyrevm.AccountInfo(balance=info.balance, nonce=nonce)  # type: ignore[call-arg]
        self._evm.insert_account_info(sender, numbered)


def _event(log: pyrevm.Log) -> Event:
    topics, data = log.data
    return Event(address=log.address.lower(), topics=tuple(map(bytes, topics)), data=data)
