"""The crew of one load process: its history file, markets, accounts and clock, shared by all its users.

A load is one process or several. The first makes the markets and closes the side market; each makes the
accounts of its own users, and where there is a chain their wallets. User numbers are dealt like cards, so
that no two processes have the same one.
"""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gevent
from gevent.lock import RLock

from scenarios.client import Client, Notify, Patience, Recorder
from scenarios.history import HistoryWriter
from scenarios.intents import Trader, Venue
from scenarios.live import Live
from scenarios.node import ChainAccess
from scenarios.plan import RunPlan
from scenarios.venue import (
    Account,
    close_intent,
    learn_admin,
    link_wallets,
    open_accounts,
    open_venue,
    treasury_micro,
)
from scenarios.wire import Address, resolve

if TYPE_CHECKING:
    from scenarios.chain_setup import ChainSetup
    from scenarios.wallet import Wallet

SIDE_CLOSES_BETWEEN = (0.3, 0.5)


class Place(NamedTuple):
    """Where a process stands: its writer's name, and which user numbers are its own."""

    writer: str
    first_number: int = 0
    step: int = 1


class Member(NamedTuple):
    """One user of this process: the account, the client that speaks for it, the trader's mind, a wallet."""

    account: Account
    client: Client
    trader: Trader
    wallet: Wallet | None = None


class Crew:
    """What the users of one load process share."""

    def __init__(
        self,
        run: Path,
        asked: RunPlan,
        address: Address,
        admin_token: str,
        place: Place,
        chain: ChainAccess | None = None,
    ) -> None:
        self.asked = asked
        self.plan = asked.plan
        self.live = Live()
        self.venue: Venue | None = None
        self.side_closed = False
        self.load_started_ns = 0
        self._place = place
        self._tag = hashlib.sha256(asked.run.encode()).hexdigest()[:10]
        self._admin_token = admin_token
        self._admin_user = "admin"
        self._admins: dict[str, Client] = {}
        self._opening = RLock()
        self._opened = 0
        self._idle: list[Member] = []
        self._closed = False
        node = None if chain is None else resolve(chain.rpc)
        self._chain = None if chain is None or node is None else self._chain_setup(run, chain, node)
        self._recorder = Recorder(
            HistoryWriter(run, place.writer),
            self.live,
            address,
            Patience(self.plan.load.patience_s, self.plan.load.answer_budget_s),
            self._tag,
            node=node,
        )

    @property
    def writer(self) -> str:
        """The name of this process's history file."""
        return self._place.writer

    def watch(self, notify: Notify) -> None:
        """Have each attempt told to `notify` as well, for Locust's own statistics."""
        self._recorder = self._recorder._replace(notify=notify)

    # --- set-up

    def open_venue(self) -> Venue:
        """Make the markets; raises SetupError."""
        admin = self._admin("admin")
        learn_admin(admin)
        self._admin_user = admin.user
        if self._chain is not None:
            self._chain.back(treasury_micro(self.plan.market))
        self.venue = open_venue(admin, self.plan.market)
        return self.venue

    def open_accounts(self, count: int) -> None:
        """See that this process has accounts for so many users; raises SetupError."""
        with self._opening:
            lacking = count - self._opened
            if lacking <= 0:
                return
            first, step = self._place.first_number, self._place.step
            numbers = [first + step * (self._opened + n) for n in range(lacking)]
            funds_micro = self.plan.market.user_funds_micro
            wallets: list[Wallet] = []
            if self._chain is not None:
                wallets = self._chain.equip(numbers, backing_micro=funds_micro * lacking)
            accounts = open_accounts(
                numbers,
                admin_client=self._admin,
                funds_micro=funds_micro,
                tag=self._tag,
                seed=self.asked.seed,
            )
            members = [self._member(account) for account in accounts]
            if wallets:
                members = [
                    member._replace(wallet=wallet) for member, wallet in zip(members, wallets, strict=True)
                ]
                link_wallets([(member.client, member.wallet) for member in members if member.wallet])
            self._opened += lacking
            # Users are taken from the end, so the lowest number goes first.
            self._idle[:0] = reversed(members)

    # --- users

    def enlist(self) -> Member:
        """A user that nobody plays now; made on the spot when there is none left."""
        with self._opening:
            if not self._idle:
                self.open_accounts(self._opened + 1)
            return self._idle.pop()

    def dismiss(self, member: Member) -> None:
        """Let somebody else play this user."""
        member.client.close()
        self._idle.append(member)

    def seed(self, who: object, purpose: str) -> str:
        """The seed of one user's choices of one kind: a user chooses alike whatever the others do."""
        return f"{self.asked.seed}/{who}/{purpose}"

    # --- the load

    def begin_load(self) -> None:
        """The load starts now; its clock is what stages and the closing of the side market go by."""
        if self.load_started_ns == 0:
            self.live.restart()
            self.load_started_ns = time.monotonic_ns()

    @property
    def elapsed_s(self) -> float:
        """Seconds of load so far."""
        return (time.monotonic_ns() - self.load_started_ns) / 1e9 if self.load_started_ns else 0.0

    @property
    def phase(self) -> str:
        """The stage of the plan, `setup` before the first and `drain` after the last."""
        return self.plan.stage_at(self.elapsed_s) if self.load_started_ns else "setup"

    def close_side_market(self) -> None:
        """Close the side market at a moment given by the seed, in the first half of the load."""
        moment = random.Random(self.seed("admin", "closing")).uniform(*SIDE_CLOSES_BETWEEN)
        gevent.sleep(moment * self.plan.load_s)  # bounded by the load
        assert self.venue is not None
        admin = self._admin("closer")
        seen = admin.perform(close_intent(self.venue.side), intended_ns=time.monotonic_ns())
        admin.close()
        if seen.type == "ok":
            self.side_closed = True

    def abandon(self) -> None:
        """Begin no operation and no further attempt from now on; what is in flight ends by its patience."""
        self.live.abandoned = True

    def close(self) -> None:
        """Write the end row; nothing may be attempted after it."""
        if not self._closed:
            self._closed = True
            self._recorder.history.close()

    def _chain_setup(self, run: Path, chain: ChainAccess, node: Address) -> ChainSetup:
        # Here and not above: it brings eth_account, half a second and 30 MB, which most loads do without.
        from scenarios.chain_setup import ChainSetup

        assert self.plan.chain is not None
        return ChainSetup(chain, node, self.plan.chain, run=run, seed=self.asked.seed)

    def _member(self, account: Account) -> Member:
        assert self.venue is not None
        client = Client(
            self._recorder,
            process=f"{self.writer}-{account.number}",
            user=account.user,
            token=account.token,
            seed=self.seed(account.number, "backoff"),
        )
        trader = Trader(
            self.venue,
            funds_micro=self.plan.market.user_funds_micro,
            mix=self.plan.mix,
            seed=self.seed(account.number, "trades"),
        )
        return Member(account, client, trader)

    def _admin(self, role: str) -> Client:
        """The admin's client of this role; one for each thing the admin does at a time."""
        if role not in self._admins:
            self._admins[role] = Client(
                self._recorder,
                process=f"{self.writer}-{role}",
                user=self._admin_user,
                token=self._admin_token,
                seed=self.seed(role, "backoff"),
            )
        return self._admins[role]
