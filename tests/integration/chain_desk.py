"""A desk at a chain: signs, sends, asks and waits in a few words; and the chains that the tests run on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.currency import to_wei
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import TransactionNotFound
from web3.types import RPCEndpoint, TxReceipt

from chaos.chain import Chain, ChainOptions, choose_chain, find_anvil
from chaos.processes import wait_until
from chaos.supervisor import Supervisor
from reference_server.chain.client import connect

WAIT_S = 10.0
GWEI = 10**9

_names = itertools.count(1)


KINDS = (
    "embedded",
    pytest.param(
        "anvil",
        marks=pytest.mark.skipif(
            find_anvil() is None,
            reason=os.environ.get("SEATRIAL_NO_ANVIL") or "anvil is not here: see .ci/anvil",
        ),
    ),
)


class RpcRefusal(Exception):
    """The error member of a reply."""


class ChainDesk:
    """One chain, and signed transactions from accounts with money."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.web3 = connect(chain.url)
        self.accounts = [
            cast(LocalAccount, Account.from_key(account.private_key)) for account in chain.accounts
        ]

    def rpc(self, method: str, *parameters: Any) -> Any:
        """The result of a method; raises RpcRefusal."""
        reply = self.web3.provider.make_request(RPCEndpoint(method), list(parameters))
        if "error" in reply:
            raise RpcRefusal(reply["error"])
        return reply["result"]

    def stranger(self) -> LocalAccount:
        """An account that nobody has given anything to, another one each time."""
        return cast(LocalAccount, Account.from_key(Web3.keccak(text=f"stranger {next(_names)}")))

    def signed(
        self,
        sender: LocalAccount,
        *,
        to: str | None = None,
        nonce: int | None = None,
        fee_gwei: int = 20,
        tip_gwei: int = 1,
        **fields: Any,
    ) -> HexBytes:
        """A transfer of 1 wei to a stranger, unless something else is said."""
        transaction: dict[str, Any] = {
            "type": 2,
            "chainId": self.chain.chain_id,
            "nonce": self.nonce(sender) if nonce is None else nonce,
            "to": Web3.to_checksum_address(to or self.stranger().address),
            "value": 1,
            "gas": 21_000,
            "maxFeePerGas": fee_gwei * GWEI,
            "maxPriorityFeePerGas": tip_gwei * GWEI,
            "data": b"",
        }
        transaction.update(fields)
        return sender.sign_transaction(transaction).raw_transaction

    def send(self, sender: LocalAccount, **fields: Any) -> HexBytes:
        """Sign and send; the hash."""
        return self.web3.eth.send_raw_transaction(self.signed(sender, **fields))

    def nonce(self, account: LocalAccount, tag: str = "latest") -> int:
        return self.web3.eth.get_transaction_count(account.address, tag)  # type: ignore[arg-type]

    def balance_wei(self, address: str, block: Any = "latest") -> int:
        return self.web3.eth.get_balance(Web3.to_checksum_address(address), block)

    def receipt(self, transaction_hash: HexBytes) -> TxReceipt | None:
        try:
            return self.web3.eth.get_transaction_receipt(transaction_hash)
        except TransactionNotFound:
            return None

    def mined(self, transaction_hash: HexBytes) -> TxReceipt:
        """The receipt, waited for: a node may answer before it has mined."""
        until(lambda: self.receipt(transaction_hash) is not None)
        receipt = self.receipt(transaction_hash)
        assert receipt is not None
        return receipt

    def is_known(self, transaction_hash: HexBytes) -> bool:
        try:
            self.web3.eth.get_transaction(transaction_hash)
        except TransactionNotFound:
            return False
        return True

    def height(self) -> int:
        return self.web3.eth.block_number

    def give(self, account: LocalAccount, ether: int = 10) -> LocalAccount:
        """Set an account's balance; the account."""
        self.rpc("anvil_setBalance", account.address, hex(to_wei(ether, "ether")))
        return account


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail when it does not come."""
    assert wait_until(condition, timeout_s=WAIT_S)


@pytest.fixture(scope="module", params=KINDS)
def running_desk(request: pytest.FixtureRequest, scratch: Path) -> Iterator[ChainDesk]:
    """A desk at a chain of this kind, which lives as long as the module."""
    folder = scratch / f"chain_{request.param}"
    with Supervisor(folder) as supervisor:
        chain = choose_chain(
            request.param,
            supervisor=supervisor,
            data_dir=folder / "data",
            options=ChainOptions(seed=7, slots_in_an_epoch=2),
        )
        chain.start()
        yield ChainDesk(chain)
        chain.stop()


@pytest.fixture
def desk(running_desk: ChainDesk) -> Iterator[ChainDesk]:
    """The chain as it was at its beginning."""
    snapshot = running_desk.rpc("evm_snapshot")
    yield running_desk
    running_desk.rpc("anvil_dropAllTransactions")
    running_desk.rpc("evm_setAutomine", True)
    assert running_desk.rpc("evm_revert", snapshot) is True
