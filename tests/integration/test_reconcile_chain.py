"""The custody asked of a real node: at the block that the books have read, or no verdict at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.chain import Chain, ChainOptions, choose_chain
from chaos.ports import free_port
from chaos.supervisor import Supervisor
from reference_server.chain.client import CustodyClient, connect
from reference_server.chain.deploy import deploy, deposit, mint
from reference_server.custody import Vault, ask_custody, view_of_books
from reference_server.reconcile import Reading, reconcile
from tests.conftest import MarketDatabase
from tests.integration.desk import Desk

TREASURY = 10**15


class Bank:
    """A desk, a vault that holds what the desk's treasury has, and the books of both."""

    def __init__(self, desk: Desk, node: Chain) -> None:
        self.desk = desk
        self.node = node
        self.key = node.accounts[0].private_key
        self.web3 = connect(node.url)
        self.addresses = deploy(self.web3, self.key)
        self.client = CustodyClient(self.web3, self.addresses)
        self.vault = Vault(node.url, self.addresses.vault, self.addresses.usdc)
        self.give(self.addresses.vault, TREASURY)

    def give(self, to: str, amount_micro: int) -> None:
        """Dollars out of nothing; into the vault: a drift that no event tells of."""
        mint(self.web3, self.addresses, self.key, to=to, amount_micro=amount_micro)

    def deposit(self, user: str, amount_micro: int) -> None:
        """A user's deposit, mined."""
        account = self.node.accounts[0]
        self.give(account.address, amount_micro)
        deposit(self.web3, self.addresses, account.private_key, user_id=user, amount_micro=amount_micro)

    def events(self, from_block: int) -> str:
        """The deposits from a block on, as the books take them."""
        found = self.client.deposit_events(from_block, "latest")
        return json.dumps(
            [
                {
                    "tx_hash": event.place.transaction_hash,
                    "log_index": event.place.log_index,
                    "block_number": event.place.block_number,
                    "block_hash": event.place.block_hash,
                    "sender": event.sender.lower(),
                    "user_id": event.user_id,
                    "amount": event.amount_micro,
                }
                for event in found
            ]
        )

    def watch(self) -> tuple[int, str]:
        """Begin to watch behind the newest block, and look once; that block."""
        head = self.head()
        self.desk.row(
            "SELECT watch_vault(%s, %s, %s, %s)", self.client.chain_id, self.addresses.vault.lower(), *head
        )
        self.desk.row("SELECT record_seen(%s, %s, '[]')", *head)
        return head

    def look(self, cursor: tuple[int, str]) -> None:
        """Write down what the chain holds above the cursor; no money moves."""
        self.desk.row("SELECT record_seen(%s, %s, %s::jsonb)", *self.head(), self.events(cursor[0] + 1))

    def head(self) -> tuple[int, str]:
        head = self.client.block()
        assert head is not None
        return head.number, head.hash

    def reconcile(self, vault: Vault | None = None) -> dict[str, Any]:
        return reconcile(self.desk.database.admin_dsn, vault or self.vault, Reading())


@pytest.fixture
def bank(market_database: MarketDatabase, tmp_path: Path) -> Iterator[Bank]:
    with Supervisor(tmp_path) as supervisor, Desk(market_database) as desk:
        desk.user("ann", funds=0)
        node = choose_chain(
            "embedded", supervisor=supervisor, data_dir=tmp_path / "chain", options=ChainOptions(seed=7)
        )
        node.start()
        yield Bank(desk, node)
        node.stop()


def test_a_deposit_is_in_flight_from_its_block_to_its_credit(bank: Bank) -> None:
    assert bank.reconcile()["verdict"] == "clean"  # nobody watches yet: the newest block
    cursor = bank.watch()
    bank.deposit("ann", 50)
    # the books have not seen it, and are compared at the block that they have
    before = bank.reconcile()
    assert (before["verdict"], before["block_number"], before["items"]) == ("clean", cursor[0], [])

    bank.look(cursor)
    seen = bank.reconcile()
    assert (seen["verdict"], seen["in_flight_micro"], seen["difference_micro"]) == ("clean", 50, 0)
    assert seen["custody_micro"] == TREASURY + 50
    assert [(item["item_kind"], item["amount_micro"]) for item in seen["items"]] == [("deposit", 50)]

    head = bank.head()
    recorded = bank.desk.row(
        "SELECT record_deposits(%s, %s, %s, '{}', %s, %s, %s::jsonb)",
        *(*cursor, cursor[0], *head, bank.events(cursor[0] + 1)),
    )
    assert recorded == ("recorded",)
    bank.look(head)
    booked = bank.reconcile()
    assert (booked["verdict"], booked["items"], booked["books_micro"]) == ("clean", [], TREASURY + 50)


def test_money_that_came_into_the_vault_past_its_door_is_a_drift(bank: Bank) -> None:
    cursor = bank.watch()
    bank.give(bank.addresses.vault, 7)
    bank.look(cursor)
    report = bank.reconcile()
    assert (report["verdict"], report["difference_micro"]) == ("alert", 7)


def test_a_node_that_is_killed_is_inconclusive_and_back_is_clean(bank: Bank) -> None:
    bank.watch()
    assert bank.reconcile()["verdict"] == "clean"
    bank.node.kill()
    for _ in range(4):
        dead = bank.reconcile()
        assert (dead["verdict"], dead["difference_micro"]) == ("inconclusive", None)
        assert dead["trouble"].startswith("the node: ")
    assert dead["trading_paused"] is False
    bank.node.restart_after_kill()
    assert bank.reconcile()["verdict"] == "clean"


def test_a_node_behind_the_books_or_beside_them_is_inconclusive(bank: Bank) -> None:
    number, block_hash = bank.watch()
    for head, known in (((number + 5, block_hash), "lags"), ((number, "0x" + "1" * 64), "different blocks")):
        bank.desk.row("SELECT record_seen(%s, %s, '[]')", *head)
        report = bank.reconcile()
        assert report["verdict"] == "inconclusive"
        assert known in report["trouble"]


def test_another_vault_is_no_verdict_on_this_one(bank: Bank) -> None:
    bank.watch()
    other = deploy(bank.web3, bank.key)
    report = bank.reconcile(Vault(bank.node.url, other.vault, other.usdc))
    assert report["verdict"] == "inconclusive"
    assert "the books watch vault" in report["trouble"]
    nowhere = bank.reconcile(bank.vault._replace(rpc=f"http://127.0.0.1:{free_port()}"))
    assert nowhere["verdict"] == "inconclusive"


def test_a_view_is_asked_for_as_the_books_have_it(bank: Bank) -> None:
    assert view_of_books(bank.desk.admin) is None
    head = bank.watch()
    view = view_of_books(bank.desk.admin)
    assert view is not None
    assert (view.number, view.hash) == head
    bank.give(bank.addresses.vault, 7)
    assert ask_custody(bank.vault, view)[:2] == (TREASURY, head[0])
