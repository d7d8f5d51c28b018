"""The world of the faults of money in and out: books, a chain with everything on it, and money that moves.

What a run has beside its server: real PostgreSQL, the embedded chain with a block every so often, the line
to it, the receiver, two relays, a watcher, a reconciler. Users withdraw by SQL; one wallet deposits for them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from eth_account import Account
from eth_typing import HexStr
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chaos.child import Child
from chaos.cluster import Postgres
from chaos.custody import Custody
from chaos.faults import ProcessFault, make_fault
from chaos.processes import wait_until
from chaos.proxy_control import ProxyControl
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND, Access
from reference_server.chain.client import Addresses, CustodyClient
from reference_server.chain.connection import (
    ChainError,
    Fees,
    account_of,
    connect,
    next_nonce,
    send,
    sign,
)
from reference_server.chain.contracts import load_contract
from reference_server.chain.deploy import mint
from reference_server.withdrawal_ids import word_of
from scenarios.plan import ChainPlan
from tests.conftest import MarketDatabase
from tests.integration.desk import Connection, one
from tests.integration.relay_process import relay_dsn

USDC = 1_000_000
FUNDS = 10_000 * USDC
WAIT_S = 40.0
GWEI = 10**9
PLAN = ChainPlan(confirmations=2, block_time_s=0.2, relays=2, lease_s=2.0, attempts_max=6)
MOVES_S = 0.1

_numbers = itertools.count(1)


class Bank:
    """Users with wallets and money that books and vault agree on; it moves in and out, by several threads.

    What a broken world refuses is counted in `refused`, and is no error.
    """

    def __init__(self, custody: Custody, admin_dsn: str, *, users: int) -> None:
        self.withdrawals: list[UUID] = []
        self.deposits: list[str] = []
        self.refused = 0
        self._custody = custody
        self._lock = threading.Lock()
        self._dsn = admin_dsn
        self._web3 = connect(custody.node.url)
        self._addresses = Addresses(usdc=custody.usdc, vault=custody.vault)
        self._sender_key = custody.node.accounts[1].private_key
        self.users = [self._user(f"user-{number}") for number in range(users)]
        owner = custody.operator_key
        mint(self._web3, self._addresses, owner, to=custody.vault, amount_micro=FUNDS * users)
        sender = account_of(self._sender_key).address
        mint(self._web3, self._addresses, owner, to=sender, amount_micro=FUNDS * users)
        self._usdc, self._vault = (
            self._web3.eth.contract(abi=load_contract(name).abi) for name in ("USDC", "Vault")
        )
        self._send(custody.usdc, self._usdc.encode_abi("approve", [self._addresses.vault, 2**256 - 1]))

    def withdraw(self, user: str, amount: int = USDC) -> UUID | None:
        """Ask for money on behalf of a user; None when it is refused."""
        key = f"withdraw-{next(_numbers)}"
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            status, _, body = one(
                connection, "SELECT * FROM api_withdraw(%s, %s, %s, %s, null)", user, key, key, amount
            )
            if status != 202:
                self.refused += 1
                return None
            (named,) = one(connection, "SELECT %s::json ->> 'withdrawalId'", body)
        self.withdrawals.append(UUID(named))
        return self.withdrawals[-1]

    def deposit(self, user: str, amount: int = USDC) -> str | None:
        """Send a deposit for a user to the node; its hash, None when the node does not take it."""
        try:
            tx_hash = self._send(self._custody.vault, self._vault.encode_abi("deposit", [user, amount]))
        except ChainError:
            self.refused += 1
            return None
        self.deposits.append(tx_hash)
        return tx_hash

    def _user(self, name: str) -> str:
        digest = hashlib.sha256(name.encode()).digest()
        address = Account.from_key(digest).address.lower()
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            one(connection, "SELECT status FROM api_create_user(%s, %s, %s)", name, name, digest)
            connection.execute("INSERT INTO wallets (address, user_id) VALUES (%s, %s)", [address, name])
            one(connection, "SELECT record_ledger_entry(1, user_account(%s), %s, 'fund')", name, FUNDS)
        return name

    def _send(self, to: str, data: str) -> str:
        """Send a call by the wallet that deposits; its hash. Raises ChainError."""
        sender = account_of(self._sender_key)
        with self._lock:
            transaction = sign(
                sender,
                {"to": self._web3.to_checksum_address(to), "data": HexStr(data), "gas": 200_000},
                chain_id=self._custody.chain_id,
                nonce=next_nonce(self._web3, sender.address),
                fees=Fees(max_fee_wei=50 * GWEI, max_priority_fee_wei=GWEI),
            )
            return send(self._web3, transaction)


@dataclass
class CustodyWorld:
    """What the faults reach, as chaos.faults.World, and what a test asks of it."""

    custody: Custody
    bank: Bank
    admin_dsn: str
    admin: Connection
    run: Path
    postgres: Postgres | None = None
    proxy: ProxyControl | None = None
    servers: list[Child] = field(default_factory=list)

    def server_healthy(self, timeout_s: float) -> bool:
        """There is no server here."""
        del timeout_s
        return False

    @contextmanager
    def traffic(self, *, pause_s: float = MOVES_S) -> Iterator[None]:
        """Withdrawals and deposits, turn about, as long as the block lasts; any error of theirs fails it."""
        enough = threading.Event()
        errors: list[BaseException] = []

        def move() -> None:
            try:
                for turn in itertools.count():
                    user = self.bank.users[turn % len(self.bank.users)]
                    (self.bank.withdraw if turn % 2 else self.bank.deposit)(user)
                    if enough.wait(pause_s):
                        return
            except BaseException as error:  # noqa: BLE001  a thread has nobody above it
                errors.append(error)

        thread = threading.Thread(target=move, name="traffic")
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join(WAIT_S)
        assert errors == []

    def ask(self, query: LiteralString, *parameters: object) -> Any:
        """The first value of the only row, as the owner of the books."""
        return one(self.admin, query, *parameters)[0]

    def event(self, event_id: int) -> dict[str, Any]:
        """A row of the outbox."""
        found: dict[str, Any] = self.ask(
            "SELECT to_jsonb(e) FROM outbox_events AS e WHERE event_id = %s", event_id
        )
        return found

    def settle(self, *, lost_deposits: frozenset[str] = frozenset()) -> None:
        """Wait until nothing is under way; `lost_deposits` (hashes) have left the chain for ever."""
        wanted = [tx_hash for tx_hash in self.bank.deposits if tx_hash not in lost_deposits]

        def still() -> bool:
            return bool(
                self.ask(
                    """SELECT NOT EXISTS (SELECT FROM withdrawals WHERE status NOT IN ('final', 'returned'))
                         AND NOT EXISTS (SELECT FROM outbox_events WHERE status <> 'delivered')
                         AND (SELECT count(DISTINCT tx_hash) = %s FROM deposits
                               WHERE status = 'credited' AND tx_hash = ANY(%s))
                         AND NOT EXISTS (SELECT FROM deposits WHERE status = 'seen')""",
                    len(wanted),
                    wanted,
                )
            )

        assert wait_until(still, timeout_s=WAIT_S), self.state()

    def assert_sound(self) -> None:
        """Every withdrawal is paid once, books equal entries, and custody is what the books say."""
        client = self.client()
        paid = [event.withdrawal_id for event in client.withdrawal_events(self.custody.first_block, "latest")]
        final = self.admin.execute("SELECT withdrawal_id FROM withdrawals WHERE status = 'final'").fetchall()
        assert sorted(paid) == sorted(word_of(withdrawal_id) for (withdrawal_id,) in final)
        assert self.ask("SELECT count(*) FROM reconcile_all_balances() WHERE NOT reconciled") == 0
        books = self.ask("SELECT -balance FROM accounts WHERE kind = 'external_onchain'")
        assert books == client.custody_balance()
        told = self.admin.execute(
            "SELECT dedup_key FROM outbox_events WHERE event_type ~ '^(notice|alert)[.]'"
        ).fetchall()
        applied = [row["key"] for row in self.arrivals() if row["applied"]]
        assert sorted(applied) == sorted(key for (key,) in told)

    def arrivals(self, key: str | None = None) -> list[dict[str, Any]]:
        """What the receiver has written down, of one key or of all."""
        lines = (self.run / "deliveries.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if key in (None, row["key"])]

    def client(self) -> CustodyClient:
        """The vault, asked past the line."""
        addresses = Addresses(usdc=self.custody.usdc, vault=self.custody.vault)
        return CustodyClient(connect(self.custody.node.url), addresses)

    def state(self) -> str:
        """What is open, for an error message."""
        return str(
            self.ask(
                """SELECT jsonb_build_object(
                       'withdrawals', (SELECT jsonb_object_agg(status, n) FROM
                           (SELECT status, count(*) AS n FROM withdrawals GROUP BY 1) AS w),
                       'deposits', (SELECT jsonb_object_agg(status, n) FROM
                           (SELECT status, count(*) AS n FROM deposits GROUP BY 1) AS d),
                       'events', (SELECT jsonb_agg(to_jsonb(e)) FROM
                           (SELECT * FROM outbox_events WHERE status <> 'delivered'
                             ORDER BY event_id LIMIT 5) AS e))"""
            )
        )


@contextmanager
def running_custody(
    postgres: Postgres, template: Access, folder: Path, *, plan: ChainPlan = PLAN, users: int = 6
) -> Iterator[CustodyWorld]:
    """A world on a copy of the installed schema; everything in it ends with the block."""
    run = folder / f"custody_world_{next(_numbers)}"
    access = _copy(postgres, template)
    assert access.admin_dsn is not None
    with Supervisor(run) as supervisor:
        custody = Custody(
            "embedded",
            plan,
            supervisor=supervisor,
            scratch=run,
            run=run,
            command=REFERENCE_COMMAND,
            seed=7,
        )
        try:
            custody.start_node()
            custody.deploy()
            bank = Bank(custody, access.admin_dsn, users=users)
            custody.start_processes(access)
            custody.begin_load()
            with psycopg.connect(access.admin_dsn, autocommit=True) as admin:
                yield CustodyWorld(custody, bank, access.admin_dsn, admin, run, postgres=postgres)
            custody.stop_processes()
        finally:
            custody.close()
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        name = sql.Identifier(str(conninfo_to_dict(access.admin_dsn)["dbname"]))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture(scope="module")
def custody_world(postgres: Postgres, market_template: Access, scratch: Path) -> Iterator[CustodyWorld]:
    """One world for all tests of a module: each leaves it whole."""
    with running_custody(postgres, market_template, scratch) as world:
        yield world


def process_fault(name: str, **options: Any) -> ProcessFault:
    """A fault of a process by its name."""
    fault = make_fault(name, options)
    assert isinstance(fault, ProcessFault)
    return fault


def _copy(postgres: Postgres, template: Access) -> Access:
    """The template's schema in a database of its own."""
    name = f"seatrial_custody_{os.getpid()}_{next(_numbers)}"
    origin = str(conninfo_to_dict(template.server_dsn)["dbname"])
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(origin))
        )
    database = MarketDatabase(
        admin_dsn=make_conninfo(postgres.dsn, dbname=name),
        app_dsn=make_conninfo(template.server_dsn, dbname=name),
        judge_dsn=make_conninfo(template.judge_dsn, dbname=name),
        admin_token=template.admin_token,
    )
    return Access(
        server_dsn=database.app_dsn,
        judge_dsn=database.judge_dsn,
        # Roles belong to the cluster: the password is the one that all tests have agreed on.
        relay_dsn=relay_dsn(database),
        admin_dsn=database.admin_dsn,
        admin_token=database.admin_token,
    )
