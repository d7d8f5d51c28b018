"""money_in_out: the crowd of hot_market, whose money comes from wallets on a chain and goes back to them.

    python -m scenarios.load RUN --host http://127.0.0.1:8080       as a plan says, without a page

A deposit is a transaction of the user's wallet, sent straight to the chain's node; a withdrawal is asked of
the target, which has its relay pay it. SEATRIAL_CHAIN says where the chain is (scenarios/node.py).
"""

import time

from locust import events

from scenarios.engine import Engine
from scenarios.shapes import PlanShape
from scenarios.users import MarketUser

engine = Engine("money_in_out")
engine.attach(events)


class MoneyInOutUser(MarketUser):
    """Trades as in hot_market, and moves money in and out."""

    engine = engine

    def deposit(self, due_ns: int) -> None:
        account, client, trader, wallet = self.member
        assert wallet is not None
        began_ns = time.monotonic_ns()
        nonce = client.next_nonce(wallet.address)
        self.do(wallet.deposit(account.user, trader.deposit_micro(), nonce=nonce), due_ns)
        # Or a node that is down would be booked as latency of the trades after it.
        self.schedule.stand_still(time.monotonic_ns() - began_ns)

    def withdraw(self, due_ns: int) -> None:
        self.do(self.trader.withdraw(), due_ns)

    def read_withdrawal(self, due_ns: int) -> None:
        self.do(self.trader.read_withdrawal(), due_ns)


if engine.shaped:

    class MoneyInOutShape(PlanShape):
        """The plan's stages; by hand, users come and go as the page says."""

        engine = engine
