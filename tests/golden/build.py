"""A minimal correct run directory, made by hand, and the means to break it.

    run = golden_run()          # rows of every file, as plain lists of dictionaries
    run.entry(3)["credit_micro"] += 1
    run.write(tmp_path / "run")

The story of the run, about 30 seconds: an admin funds the treasury, opens a market of two outcomes, one of
three and one that will be closed, and four users with money; the users trade, sell, are refused, retry
after a lost reply, leave one trade unanswered that landed and one that did not, reuse a key, and read;
one market closes under them; one reply is dropped by a fault, which is healed.
"""

from __future__ import annotations

from scenarios.history import FORMAT
from tests.golden.market import START_NS
from tests.golden.recorder import MS, GoldenRun, S

USERS = ("u1", "u2", "u3", "u4")
HOT, WIDE, SHORT = 1, 2, 3
HOUSE_FUNDS, USER_FUNDS = 1_000_000_000, 200_000_000


def golden_run() -> GoldenRun:
    """The correct run."""
    run = GoldenRun()
    set_up(run, USERS)
    run.wait_until(START_NS + 4 * S)
    run.event("load_started")
    trade_quietly(run)
    lose_a_reply(run)
    leave_unknowns(run)
    trade_at_once(run)
    close_a_market(run)
    run.wait_until(START_NS + 24 * S)
    run.observe()
    run.event("load_stopped")
    run.event("healed")
    run.event("quiescent", active=0, prepared=0)
    finish(run)
    return run


def set_up(run: GoldenRun, users: tuple[str, ...]) -> None:
    """The house's money, the markets, and users with theirs."""
    run.do(run.fund(None, HOUSE_FUNDS))
    for outcomes in (2, 3, 2):
        run.do(run.create_market(outcomes))
    for user in users:
        run.do(run.create_user(user))
        run.do(run.fund(user, USER_FUNDS))


def trade_quietly(run: GoldenRun) -> None:
    """Seconds 0 to 4 of the load: buys, sells, limits, reads, a refusal, a reused key."""
    run.observe()
    first = run.do(run.buy("u1", HOT, 0, 5_000_000))
    run.do(run.buy("u2", HOT, 1, amount=7_000_000))
    run.do(run.buy("u3", HOT, 0, 2_500_000, limit=2_000_000))
    run.do(run.read_market("u4", HOT))
    run.tick(S)
    run.observe()
    run.do(run.sell("u1", HOT, 0, 2_000_000, limit=900_000))
    run.do(run.read_account("u1"))
    run.do(run.buy("u4", WIDE, 2, amount=3_000_000, limit=3_000_000))
    run.do(run.buy("u1", WIDE, 0, 4_000_000))
    run.tick(S)
    run.observe()
    run.do(run.refused("u2", HOT, "insufficient_funds"))
    run.do(
        run.refused("u1", HOT, "idempotency_key_reused", action="reuse_key", key=first.row["key"], shares=9)
    )
    run.do(run.buy("u2", SHORT, 0, 1_500_000))
    run.do(run.read_ledger("u2"))


def lose_a_reply(run: GoldenRun) -> None:
    """Seconds 5 to 6: a fault drops a reply; the client retries and gets the first answer again."""
    run.wait_until(START_NS + 9 * S)
    run.observe()
    run.fault("planned", at_s=5.0)
    run.fault("armed")
    hit = run.buy("u3", HOT, 1, 3_000_000)
    run.invoke(hit)
    run.execute(hit)
    run.fault("landed", key=hit.row["key"], request="POST /api/trade", status=200)
    run.do(run.buy("u4", HOT, 0, 1_000_000))
    run.tick(200 * MS)
    run.lose(hit)
    run.tick(50 * MS)
    run.invoke(hit)
    run.execute(hit)
    run.complete(hit, replayed=True)
    run.fault("healed", dropped=1)
    run.tick(100 * MS)
    run.do(run.buy("u1", HOT, 1, 1_200_000))


def leave_unknowns(run: GoldenRun) -> None:
    """While the service recovers, two operations never get an answer: one has its effect, one has none."""
    run.tick(S)
    run.observe()
    landed, lost = run.buy("u3", HOT, 0, 1_100_000), run.buy("u4", HOT, 1, 700_000)
    run.invoke(landed)
    run.invoke(lost)
    run.execute(landed)
    run.do(run.buy("u1", HOT, 1, 600_000))
    run.lose(landed)
    run.lose(lost, "reset")


def trade_at_once(run: GoldenRun) -> None:
    """After the recovery: operations that overlap, and commit in another order than they began."""
    run.wait_until(START_NS + 14 * S)
    run.observe()
    first, second = run.buy("u1", HOT, 0, 900_000), run.buy("u2", HOT, 1, 800_000)
    third, look = run.sell("u3", HOT, 0, 500_000), run.read_market("u4", HOT)
    for op in (first, second, third, look):
        run.invoke(op)
    for op in (third, look, first, second):
        run.execute(op)
    for op in (second, first, look, third):
        run.complete(op)
    run.do(run.sell("u4", WIDE, 2, 1_000_000))
    run.do(run.buy("u2", WIDE, 1, amount=1_000_000))
    run.do(run.read_market("u1", WIDE))
    run.do(run.read_account("u2"))


def close_a_market(run: GoldenRun) -> None:
    """A market closes; who comes later is refused."""
    run.tick(S)
    run.observe()
    run.do(run.sell("u2", SHORT, 0, 500_000))
    run.do(run.close_market(SHORT))
    run.do(run.refused("u1", SHORT, "market_closed", action="buy_closed", shares=1_000_000))
    run.do(run.read_market("u2", SHORT))
    run.do(run.buy("u2", HOT, 0, 400_000))


def finish(run: GoldenRun) -> None:
    """The books are exported."""
    run.manifest = {
        "format": FORMAT,
        "snapshot": "00000003-0000001B-1",
        "time_ns": run.tick(),
        "active": 0,
        "prepared": 0,
    }
