"""hot_market: a crowd trades on one market; some look, some ask twice, some come when a market has closed.

    python -m scenarios.load RUN --host http://127.0.0.1:8080       as a plan says, without a page
    locust -f scenarios/hot_market.py --host http://127.0.0.1:8080  by hand, with Locust's own page

A user does each thing of the plan's `mix` as often as its weight says, at the plan's `rate_per_user_s`.
"""

from locust import events

from scenarios.engine import Engine
from scenarios.shapes import PlanShape
from scenarios.users import MarketUser

engine = Engine("hot_market")
engine.attach(events)


class HotMarketUser(MarketUser):
    """What one user does; `replay` and `reuse_key` come with every user."""

    engine = engine

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


if engine.shaped:

    class HotMarketShape(PlanShape):
        """The plan's stages; by hand, users come and go as the page says."""

        engine = engine
