"""The Locust user: takes its operations when they are due and does them one after another.

Its methods named like actions are the ones that a plan's mix may ask for.
"""

from __future__ import annotations

import time
from collections import deque
from typing import ClassVar

from locust import User, task
from locust.exception import StopUser
from locust.user.task import LOCUST_STATE_RUNNING, LOCUST_STATE_STOPPING

from scenarios.client import Operation
from scenarios.crew import Crew
from scenarios.engine import Engine
from scenarios.intents import Intent
from scenarios.pacing import Alarm, Schedule
from scenarios.replies import Seen

REMEMBERED_OPERATIONS = 20
REFUSALS_REPEATED_SHARE = 0.05


class MarketUser(User):  # type: ignore[misc]
    """A trader with an account, a schedule and a memory. A scenario names its `engine`."""

    abstract = True
    engine: ClassVar[Engine]
    enlisted = False
    _state: str | None  # Locust's own

    def stop(self, force: bool = False) -> bool:
        """End this user: at once if it waits for its next operation, else when it has done this one.

        Why not as Locust does, which kills a user that it finds waiting: the user may wake before it is
        killed, and then its request is cut short, an unknown outcome for nothing.
        """
        if force or self._state != LOCUST_STATE_RUNNING:
            killed: bool = super().stop(force)
            return killed
        self._state = LOCUST_STATE_STOPPING
        self.alarm.ring()
        return False

    def on_start(self) -> None:
        """Take an account and a schedule that begins now."""
        self.alarm = Alarm()
        crew = self.engine.crew
        assert crew is not None
        self.crew: Crew = crew
        self.member = crew.enlist()
        self.enlisted = True
        self.trader = self.member.trader
        self.answered: deque[Operation] = deque(maxlen=REMEMBERED_OPERATIONS)
        self.schedule = Schedule(
            rate_per_s=crew.plan.load.rate_per_user_s,
            from_ns=time.monotonic_ns(),
            seed=crew.seed(self.member.account.number, "schedule"),
        )

    def on_stop(self) -> None:
        """Give the account back."""
        self.alarm.close()
        if self.enlisted:
            self.crew.dismiss(self.member)

    @task  # type: ignore[untyped-decorator]
    def trade(self) -> None:
        """Do operations when they are due, until Locust wants this user to stop.

        Why not Locust's own waiting: its sleeps begin when a task ends, so the schedule would slip by
        every delay of the system, which is the very thing to be measured.
        """
        while True:
            due_ns = self.schedule.take()
            self.alarm.sleep_until(due_ns)
            if self._state == LOCUST_STATE_STOPPING or self.crew.live.abandoned:
                raise StopUser
            getattr(self, self.trader.choose())(due_ns)

    def do(self, intent: Intent, due_ns: int) -> Seen:
        """Do one new operation and remember what came of it."""
        client = self.member.client
        operation = client.operation(intent)
        seen = client.pursue(operation, intended_ns=due_ns)
        if seen.type == "ok":
            self.trader.learn(intent, seen.facts, seen.content)
            if intent.keyed:
                self.answered.append(operation)
        elif seen.code == "market_closed":
            self.crew.side_closed = True
        if seen.type == "fail" and seen.stored and self.trader.chance(REFUSALS_REPEATED_SHARE):
            # A refusal is repeated at once or never: asked later, it would look like a late answer.
            client.pursue(operation, intended_ns=time.monotonic_ns())
        if client.process != operation.process:
            self.answered.clear()  # a process that ended unknown does nothing more
        return seen

    def buy_amount(self, due_ns: int) -> None:
        self.do(self.trader.buy_amount(), due_ns)

    def buy_shares(self, due_ns: int) -> None:
        self.do(self.trader.buy_shares(), due_ns)

    def sell(self, due_ns: int) -> None:
        self.do(self.trader.sell(), due_ns)

    def buy_closed(self, due_ns: int) -> None:
        self.do(self.trader.buy_on_side(closed=self.crew.side_closed), due_ns)

    def read_market(self, due_ns: int) -> None:
        self.do(self.trader.read_market(), due_ns)

    def read_account(self, due_ns: int) -> None:
        self.do(self.trader.read_account(), due_ns)

    def read_ledger(self, due_ns: int) -> None:
        self.do(self.trader.read_ledger(), due_ns)

    def replay(self, due_ns: int) -> None:
        """Send an answered operation once more: the answer must be the first one, to the byte."""
        operation = self._remembered()
        if operation is None:
            self.do(self.trader.read_account(), due_ns)
        else:
            self.member.client.pursue(operation, intended_ns=due_ns)

    def reuse_key(self, due_ns: int) -> None:
        """Send another request under an answered key: it must be refused and move nothing."""
        operation = self._remembered()
        if operation is None:
            self.do(self.trader.read_account(), due_ns)
        else:
            client = self.member.client
            other = client.operation(self.trader.reuse(operation.intent), key=operation.key)
            client.pursue(other, intended_ns=due_ns)

    def _remembered(self) -> Operation | None:
        answered = self.answered
        return answered[self.trader.pick(len(answered))] if answered else None
