"""hot_market: a crowd trades on one market; some look, some ask twice, some come when a market has closed.

    python -m scenarios.load RUN --host http://127.0.0.1:8080       as a plan says, without a page
    locust -f scenarios/hot_market.py --host http://127.0.0.1:8080  by hand, with Locust's own page

A user does each thing of the plan's `mix` as often as its weight says, at the plan's `rate_per_user_s`. What
there is to do is in scenarios/users.py; all of it is on the hot market, but for `buy_closed`.
"""

from locust import events

from scenarios.engine import Engine
from scenarios.shapes import PlanShape
from scenarios.users import MarketUser

engine = Engine("hot_market")
engine.attach(events)


class HotMarketUser(MarketUser):
    """Does what every user of a market can."""

    engine = engine


if engine.shaped:

    class HotMarketShape(PlanShape):
        """The plan's stages; by hand, users come and go as the page says."""

        engine = engine
