"""A desk at books and chain together: users, deposits, withdrawals, a watcher and a relay, step by step."""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_typing import HexStr

from chaos.chain import Chain, ChainOptions, choose_chain
from chaos.supervisor import Supervisor
from reference_server.chain.client import CustodyClient
from reference_server.chain.connection import (
    Fees,
    SignedTransaction,
    account_of,
    connect,
    mined,
    next_nonce,
    send,
    sign,
    succeed,
    suggested_fees,
)
from reference_server.chain.contracts import load_contract
from reference_server.chain.deploy import deploy, mint
from reference_server.payouts import Payouts
from reference_server.relay.event import Event, Outcome, error_text
from reference_server.relay.outbox import Outbox
from reference_server.watch_books import WatchBooks
from reference_server.watcher import Watcher
from tests.conftest import MarketDatabase
from tests.integration.chain_desk import RpcRefusal
from tests.integration.desk import Connection, one
from tests.integration.relay_process import relay_dsn

USDC = 1_000_000
CONFIRMATIONS = 2
STEPS_MAX = 100

_numbers = itertools.count(1)


class CustodyDesk:
    """A fresh vault on a shared chain and fresh books; the operator is the chain's first account."""

    def __init__(self, chain: Chain, database: MarketDatabase) -> None:
        self.chain = chain
        self.database = database
        self.dsn = relay_dsn(database)
        self.web3 = connect(chain.url)
        self.operator_key, self.sender_key, self.other_key = (
            account.private_key for account in chain.accounts[:3]
        )
        self.addresses = deploy(self.web3, self.operator_key)
        self.first_block = self.height()
        self.client = CustodyClient(self.web3, self.addresses, operator_key=self.operator_key)
        self.admin: Connection = psycopg.connect(database.admin_dsn, autocommit=True)
        self.books = WatchBooks(self.dsn)
        self.watcher = self.new_watcher()
        self.outbox = Outbox(self.dsn)
        self.payouts = self.new_payouts()

    def close(self) -> None:
        self.rpc("evm_setAutomine", True)
        self.rpc("anvil_dropAllTransactions")
        self.admin.close()
        self.books.disconnect()
        self.outbox.disconnect()

    # the chain

    def rpc(self, method: str, *parameters: Any) -> Any:
        """The result of a method; raises RpcRefusal."""
        reply = self.web3.provider.make_request(method, list(parameters))  # type: ignore[arg-type]
        if "error" in reply:
            raise RpcRefusal(reply["error"])
        return reply["result"]

    def height(self) -> int:
        return int(self.rpc("eth_blockNumber"), 16)

    def mine(self, blocks: int = 1) -> None:
        self.rpc("anvil_mine", hex(blocks))

    def bury(self) -> None:
        """Make what has been mined deep enough."""
        self.mine(CONFIRMATIONS)

    def reorganise(self, depth: int, *replacements: tuple[SignedTransaction, int]) -> None:
        """Other blocks in place of the newest; the transactions given are in them, by block index."""
        self.rpc("anvil_reorg", depth, [["0x" + one.raw.hex(), index] for one, index in replacements])

    def deposit(
        self, named: str | bytes, amount: int = 100 * USDC, *, key: str | None = None, buried: bool = False
    ) -> SignedTransaction:
        """Mint, approve and deposit, a block each, for a name that need not be text."""
        key, name = key or self.sender_key, named.encode() if isinstance(named, str) else named
        sender = account_of(key).address
        mint(self.web3, self.addresses, self.operator_key, to=sender, amount_micro=amount)
        usdc = self.web3.eth.contract(abi=load_contract("USDC").abi)
        self.call(key, self.addresses.usdc, usdc.encode_abi("approve", [self.addresses.vault, amount]))
        data = self.web3.keccak(text="deposit(string,uint256)")[:4] + encode(
            ["bytes", "uint256"], [name, amount]
        )
        transaction = self.signed(key, self.addresses.vault, "0x" + data.hex())
        succeed(self.web3, transaction)
        if buried:
            self.bury()
        return transaction

    def call(self, key: str, to: str, data: str) -> None:
        """Any call, mined and successful."""
        succeed(self.web3, self.signed(key, to, data))

    def signed(
        self, key: str, to: str, data: str, *, nonce: int | None = None, gwei: int = 50
    ) -> SignedTransaction:
        account = account_of(key)
        return sign(
            account,
            {"to": to, "data": HexStr(data), "gas": 200_000},
            chain_id=self.chain.chain_id,
            nonce=next_nonce(self.web3, account.address) if nonce is None else nonce,
            fees=Fees(max_fee_wei=gwei * 10**9, max_priority_fee_wei=gwei * 10**9),
        )

    def custody(self) -> int:
        return self.client.custody_balance()

    # the books

    def user(self, *, funds: int = 0, wallet: bool = True) -> str:
        """A user, with a wallet whose key nobody needs; funds are in the books and not on the chain."""
        user_id = f"user-{next(_numbers)}"
        token_hash = hashlib.sha256(user_id.encode()).digest()
        self.ask("SELECT * FROM api_create_user(%s, %s, %s)", user_id, user_id, token_hash)
        if wallet:
            self.link(user_id, Account.from_key(token_hash).address)
        if funds:
            self.ask("SELECT record_ledger_entry(1, user_account(%s), %s, 'fund')", user_id, funds)
        return user_id

    def link(self, user_id: str, address: str) -> None:
        self.admin.execute(
            "INSERT INTO wallets (address, user_id) VALUES (%s, %s)", [address.lower(), user_id]
        )

    def ask(self, query: LiteralString, *parameters: object) -> Any:
        """The first value of the only row, as the owner of the books."""
        return one(self.admin, query, *parameters)[0]

    def available(self, user_id: str) -> int:
        return int(self.ask("SELECT balance FROM accounts WHERE account_id = user_account(%s)", user_id))

    def balance(self, kind: str) -> int:
        return int(self.ask("SELECT balance FROM accounts WHERE kind = %s", kind))

    def deposits(self) -> list[str]:
        """The statuses of all deposits, in the order of the books."""
        rows = self.admin.execute("SELECT status FROM deposits ORDER BY deposit_id").fetchall()
        return [status for (status,) in rows]

    def alerts(self) -> list[str]:
        rows = self.admin.execute(
            "SELECT event_type FROM outbox_events WHERE event_type LIKE 'alert.%' ORDER BY event_id"
        ).fetchall()
        return [event_type for (event_type,) in rows]

    def transactions(self, kind: str) -> int:
        return int(self.ask("SELECT count(*) FROM transactions WHERE kind = %s", kind))

    def withdraw(self, user_id: str, amount: int = 10 * USDC) -> UUID:
        """A withdrawal to the user's wallet."""
        key = f"key-{next(_numbers)}"
        status, _, body = one(
            self.admin, "SELECT * FROM api_withdraw(%s, %s, %s, %s, null)", user_id, key, key, amount
        )
        assert status == 202, body
        return UUID(self.ask("SELECT %s::json ->> 'withdrawalId'", body))

    def withdrawal(self, withdrawal_id: UUID, column: LiteralString = "status") -> Any:
        found = self.ask("SELECT to_jsonb(w) FROM withdrawals AS w WHERE withdrawal_id = %s", withdrawal_id)
        return found[column]

    def attempts(self, withdrawal_id: UUID) -> list[tuple[int, str]]:
        """Nonce and hash of everything that was signed, oldest first."""
        rows = self.admin.execute(
            "SELECT nonce, tx_hash FROM withdrawal_attempts WHERE withdrawal_id = %s ORDER BY attempt",
            [withdrawal_id],
        ).fetchall()
        return [(nonce, tx_hash) for nonce, tx_hash in rows]

    def payments(self) -> int:
        """How many withdrawals the vault has paid."""
        return len(self.client.withdrawal_events(self.first_block, "latest"))

    def pause(self) -> None:
        self.ask("SELECT pause_trading('a test')")

    def resume(self) -> None:
        """As an administrator, after a clean reconciliation against what the books expect."""
        with self.admin.transaction():
            self.admin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            block = self.ask("SELECT head_number FROM watched_chain")
            expected = self.ask("SELECT coalesce(sum(amount_micro), 0) FROM in_flight_at(%s)", block)
            self.ask("SELECT reconcile(%s, %s)", expected - self.balance("external_onchain"), block)
        self.ask("SELECT resume_trading('admin', 'a test is over')")

    def assert_books_agree(self, *, unbacked: int = 0) -> None:
        """Accounts equal entries, receivables what is owed, and books and items in flight the custody."""
        assert self.ask("SELECT count(*) FROM reconcile_all_balances() WHERE NOT reconciled") == 0
        assert self.ask("SELECT sum(balance) FROM accounts") == 0
        assert self.balance("suspense_receivable") == -self.ask(
            "SELECT coalesce(sum(owed), 0) FROM receivables"
        )
        head = self.ask("SELECT head_number FROM watched_chain")
        assert head == self.height()
        in_flight = self.ask("SELECT coalesce(sum(amount_micro), 0) FROM in_flight_at(%s)", head)
        assert -self.balance("external_onchain") + in_flight - unbacked == self.custody()

    # watcher and relay, a step at a time

    def new_watcher(self, books: WatchBooks | None = None, **changes: float) -> Watcher:
        settings = {"resend_s": 0.0, "stuck_s": 1e9} | changes
        watcher = Watcher(books or self.books, self.client, confirmations=CONFIRMATIONS, **settings)
        assert watcher.begin(self.first_block)
        return watcher

    def watch(self, watcher: Watcher | None = None) -> None:
        """Look until there is nothing more to read."""
        for _ in range(STEPS_MAX):
            if not (watcher or self.watcher).step():
                return
        raise AssertionError("the watcher does not come to an end")

    def new_payouts(self, *, rpc: str | None = None, max_fee_gwei: int = 500) -> Payouts:
        options = argparse.Namespace(
            dsn=self.dsn,
            rpc=rpc or self.chain.url,
            vault=self.addresses.vault,
            usdc=self.addresses.usdc,
            vault_from_block=self.first_block,
            max_fee_gwei=max_fee_gwei,
        )
        return Payouts(options, self.operator_key)

    def claim(self) -> list[Event]:
        """The withdrawal events that are due."""
        return self.outbox.claim(limit=100, lease_s=30.0, event_types=["withdrawal.*"])

    def relay(self, payouts: Payouts | None = None) -> list[str]:
        """Deliver every due event once; the errors."""
        errors: list[str] = []
        while not errors and (events := self.claim()):
            for event in events:
                outcome = self.delivered(event, payouts)
                errors += [outcome.error] if outcome.error else []
                self.outbox.mark([outcome])
        return errors

    def delivered(self, event: Event, payouts: Payouts | None = None) -> Outcome:
        """What a relay would mark when it has delivered this event."""
        try:
            (payouts or self.payouts).deliver(event)
        except Exception as caught:  # noqa: BLE001  as the relay does
            return Outcome(event, error=error_text(caught))
        return Outcome(event)

    def sent(self, withdrawal_id: UUID) -> str:
        """Relay once; the hash of what was sent for this withdrawal."""
        assert self.relay() == []
        assert self.withdrawal(withdrawal_id) == "sent"
        return str(self.withdrawal(withdrawal_id, "tx_hash"))

    def is_mined(self, tx_hash: str) -> bool:
        return mined(self.web3, tx_hash) is not None

    def spend_nonce(self, nonce: int) -> None:
        """A transaction of the operator's that is no withdrawal takes the place of the one that waits."""
        mint_data = self.web3.eth.contract(abi=load_contract("USDC").abi).encode_abi(
            "mint", [account_of(self.other_key).address, 1]
        )
        send(self.web3, self.signed(self.operator_key, self.addresses.usdc, mint_data, nonce=nonce, gwei=100))
        self.mine()

    def pay_by_hand(self, word: bytes, to: str, amount: int) -> str:
        """The operator pays something without the relay."""
        fees = suggested_fees(self.web3)
        return self.client.send_withdrawal(word, to, amount, nonce=self.client.next_nonce(), fees=fees)


@pytest.fixture(scope="module")
def custody_chain(scratch: Path) -> Iterator[Chain]:
    """An embedded chain that lives as long as the module; blocks come with their transactions."""
    folder = scratch / f"custody_{next(_numbers)}"
    with Supervisor(folder) as supervisor:
        chain = choose_chain(
            "embedded", supervisor=supervisor, data_dir=folder / "data", options=ChainOptions(seed=11)
        )
        chain.start()
        yield chain
        chain.stop()


@pytest.fixture
def custody(custody_chain: Chain, market_database: MarketDatabase) -> Iterator[CustodyDesk]:
    """A fresh vault and fresh books."""
    desk = CustodyDesk(custody_chain, market_database)
    yield desk
    desk.close()
