"""Set-up on the chain, not recorded: the vault's backing, and wallets with gas, dollars and an allowance.

1. gas for each wallet, by anvil_setBalance;
2. dollars for each wallet, and into the vault the very sum that will be booked by POST /api/fundings, so that
   books and vault agree from the first funding on; each wallet allows the vault to take its dollars;
3. all of it mined, and as many blocks on top as the target waits for before it believes a deposit.

Several load processes share the minter's key: its nonces are taken under a lock on the run's plan.json.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent

from scenarios.node import ChainAccess, Node, NodeRefused
from scenarios.plan import ChainPlan
from scenarios.venue import SetupError
from scenarios.wallet import Signer, Transaction, Wallet, mint
from scenarios.wire import Address, WireError

# A million ether, of which a deposit takes 0.02 at the very most.
GAS_WEI = 10**24
# More than a user could deposit in a day of doing nothing else at the highest rate that a plan may have.
DOLLARS_MICRO = 10**17
PATIENCE_S = 30.0
POLL_S = 0.05
MINED_TIMEOUT_S = 30.0
BLOCKS_WAITED = 5
LOCK_TIMEOUT_S = 120.0


class ChainSetup:
    """What one load process prepares on the chain before it talks to the target."""

    def __init__(
        self, access: ChainAccess, address: Address, plan: ChainPlan, *, run: Path, seed: int
    ) -> None:
        self._access = access
        self._node = Node(address)
        self._plan = plan
        self._run = run
        self._seed = seed
        self._minter = Signer(access.minter_key, access.chain_id)

    def back(self, amount_micro: int) -> None:
        """Bring into the vault what will be booked; returns when it is deep. Raises SetupError."""
        with self._talking("the vault's backing"):
            self._settle(self._mint([(self._access.vault, amount_micro)]))

    def equip(self, numbers: list[int], *, backing_micro: int) -> list[Wallet]:
        """Wallets ready to deposit, for users with these numbers; raises SetupError.

        `backing_micro` is what will be booked for all of them together; it is in the vault on return.
        """
        wallets = [Wallet(self._access, seed=self._seed, number=number) for number in numbers]
        with self._talking("the users' gas"):
            self._give_gas(wallets)
        with self._talking("the users' dollars"):
            sums = [(self._access.vault, backing_micro)]
            sums += [(wallet.address, DOLLARS_MICRO) for wallet in wallets]
            sent = self._mint(sums)
        with self._talking("the users' allowances"):
            allowances = [
                wallet.allow(nonce) for wallet, nonce in zip(wallets, self._nonces(wallets), strict=True)
            ]
            self._settle(sent + self._send(allowances))
        return wallets

    def close(self) -> None:
        """Drop the connection."""
        self._node.close()

    def _give_gas(self, wallets: list[Wallet]) -> None:
        calls = [("anvil_setBalance", wallet.address, hex(GAS_WEI)) for wallet in wallets]
        try:
            self._node.ask_all(calls, patience_s=PATIENCE_S)
        except NodeRefused as error:
            raise SetupError(
                f"the chain's node gives wallets no gas ({error}): users who deposit need a development node,"
                " which has anvil_setBalance, as the embedded chain and anvil do"
            ) from None

    def _mint(self, sums: list[tuple[str, int]]) -> list[Transaction]:
        with self._minting():
            nonce = self._nonce(self._minter.address)
            return self._send(
                [
                    mint(self._minter, self._access.usdc, to, amount_micro, nonce=nonce + place)
                    for place, (to, amount_micro) in enumerate(sums)
                ]
            )

    def _send(self, transactions: list[Transaction]) -> list[Transaction]:
        calls = [("eth_sendRawTransaction", "0x" + each.raw.hex()) for each in transactions]
        self._node.ask_all(calls, patience_s=PATIENCE_S)
        return transactions

    def _nonce(self, address: str) -> int:
        return int(self._node.ask("eth_getTransactionCount", address, "pending", patience_s=PATIENCE_S), 16)

    def _nonces(self, wallets: list[Wallet]) -> list[int]:
        calls = [("eth_getTransactionCount", wallet.address, "pending") for wallet in wallets]
        return [int(nonce, 16) for nonce in self._node.ask_all(calls, patience_s=PATIENCE_S)]

    def _settle(self, sent: list[Transaction]) -> None:
        """Wait until all are mined and `confirmations` deep; raises SetupError when one reverted."""
        waiting = [each.hash for each in sent]
        newest = 0

        def mined() -> bool:
            nonlocal newest, waiting
            calls = [("eth_getTransactionReceipt", tx_hash) for tx_hash in waiting]
            receipts = self._node.ask_all(calls, patience_s=PATIENCE_S)
            for tx_hash, receipt in zip(waiting, receipts, strict=True):
                if receipt is not None:
                    newest = max(newest, int(receipt["blockNumber"], 16))
                    if int(receipt["status"], 16) != 1:
                        raise SetupError(f"the chain: transaction {tx_hash} of the set-up reverted")
            waiting = [tx for tx, receipt in zip(waiting, receipts, strict=True) if receipt is None]
            return not waiting

        self._await(mined, "its transactions to be mined")
        depth = newest + self._access.confirmations
        # A node that makes blocks for transactions only would never get there by itself.
        self._node.ask("anvil_mine", hex(self._access.confirmations), patience_s=PATIENCE_S)
        self._await(lambda: self._height() >= depth, "them to be deep enough")

    def _height(self) -> int:
        return int(self._node.ask("eth_blockNumber", patience_s=PATIENCE_S), 16)

    def _await(self, reached: Callable[[], bool], what: str) -> None:
        blocks = BLOCKS_WAITED + self._access.confirmations
        timeout_s = MINED_TIMEOUT_S + blocks * self._plan.block_time_s
        deadline_s = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline_s:
                raise SetupError(f"the chain: the set-up waited {timeout_s:.0f} s for {what}")
            gevent.sleep(POLL_S)  # bounded by the deadline

    @contextmanager
    def _minting(self) -> Iterator[None]:
        """Alone with the minter's nonces, among the load's processes; raises SetupError."""
        plan = os.open(self._run / "plan.json", os.O_RDONLY)
        try:
            deadline_s = time.monotonic() + LOCK_TIMEOUT_S
            while not _locked(plan):
                if time.monotonic() > deadline_s:
                    raise SetupError("another load process has been minting all the time")
                gevent.sleep(POLL_S)  # bounded by the deadline
            yield
        finally:
            os.close(plan)

    @contextmanager
    def _talking(self, step: str) -> Iterator[None]:
        try:
            yield
        except NodeRefused as error:
            raise SetupError(f"the chain refused {step}: {error}") from None
        except WireError as error:
            raise SetupError(f"the chain did not answer ({error.kind}): {step}") from None


def _locked(fd: Any) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
