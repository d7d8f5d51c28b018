"""Idempotency keys in SQL: the truth table, one key in two transactions, and users in two batches at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import LiteralString, TypeVar

import psycopg
import pytest

from tests.conftest import MarketDatabase
from tests.integration.desk import Answer, Connection, Desk, Order, await_lock_wait, execute_batch, one

SHARE = 1_000_000
TIMEOUT_S = 30.0
OPTIMISTIC: LiteralString = """
SELECT status, replayed, body FROM execute_trade_optimistic('ann', %s, %s, %s, 0, 'buy', %s, null, null)
"""

Value = TypeVar("Value")


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        for name in ("ann", "bob"):
            desk.user(name)
        yield desk


@pytest.fixture
def others(market_database: MarketDatabase) -> Iterator[tuple[Connection, Connection]]:
    """Two more connections of the server."""
    with (
        psycopg.connect(market_database.app_dsn) as first,
        psycopg.connect(market_database.app_dsn, autocommit=True) as second,
    ):
        yield first, second


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def at_once(threads: ThreadPoolExecutor, *calls: Callable[[], Value]) -> list[Value]:
    """Both calls released by one barrier; what they return."""
    barrier = threading.Barrier(len(calls))

    def released(call: Callable[[], Value]) -> Value:
        barrier.wait(TIMEOUT_S)
        return call()

    futures: list[Future[Value]] = [threads.submit(released, call) for call in calls]
    return [future.result(TIMEOUT_S) for future in futures]


BUY = Order("ann", "k", shares=SHARE)


def test_the_first_use_of_a_key_is_executed_and_kept_with_its_effect(desk: Desk) -> None:
    market = desk.market()
    answer = desk.trade(market, BUY)
    assert (answer.status, answer.replayed) == (200, False)
    assert desk.row(
        """SELECT endpoint, request_hash, status, body, transaction_id FROM idempotency_keys
            WHERE user_id = 'ann' AND idempotency_key = 'k'"""
    ) == ("POST /api/trade", BUY.hash, 200, answer.body, answer.facts["transactionId"])
    assert desk.row("SELECT user_id, idempotency_key FROM transactions WHERE kind = 'trade'") == ("ann", "k")


def test_a_replay_after_a_trade_is_byte_identical_and_moves_nothing(desk: Desk) -> None:
    market = desk.market()
    answer = desk.trade(market, BUY)
    desk.trade(market, Order("bob", "k", 1, shares=SHARE))  # the market moves on
    with desk.nothing_moves():
        assert [desk.trade(market, BUY) for _ in range(3)] == [answer._replace(replayed=True)] * 3


def test_a_replay_after_a_refusal_is_refused_though_it_could_be_done_now(desk: Desk) -> None:
    market = desk.market(fee_bps=0)
    dear = Order("ann", "k", shares=SHARE, limit=499_999)
    answer = desk.trade(market, dear)
    assert answer.code == "limit_exceeded"
    desk.trade(market, Order("bob", "cheaper", 1, shares=50 * SHARE))
    with desk.nothing_moves():
        assert desk.trade(market, dear) == answer._replace(replayed=True)
    assert desk.trade(market, dear._replace(key="another")).status == 200


def test_a_replay_after_closing_is_the_trade_that_was_done(desk: Desk) -> None:
    market = desk.market()
    answer = desk.trade(market, BUY)
    desk.close(market)
    with desk.nothing_moves():
        assert desk.trade(market, BUY) == answer._replace(replayed=True)


def test_a_crash_before_the_commit_leaves_the_key_unused(
    desk: Desk, others: tuple[Connection, Connection]
) -> None:
    market = desk.market()
    first, _ = others
    with desk.nothing_moves():
        (lost,) = execute_batch(first, market, [BUY])
        assert lost.status == 200
        first.close()  # the backend ends with its transaction open
    answer = desk.trade(market, BUY)
    assert (answer.status, answer.replayed) == (200, False)
    desk.assert_books_agree()


@pytest.mark.parametrize("used", [BUY, Order("ann", "k", shares=SHARE, limit=1)], ids=["traded", "refused"])
def test_another_request_with_a_used_key_is_refused_and_moves_nothing(desk: Desk, used: Order) -> None:
    market, another = desk.market(), desk.market()
    first = desk.trade(market, used)
    other = used._replace(shares=SHARE + 1)
    for where in (market, another, 404_404):
        with desk.nothing_moves():
            answer = desk.trade(where, other)
        assert (answer.status, answer.replayed, answer.code) == (422, False, "idempotency_key_reused")
    assert desk.trade(market, used) == first._replace(replayed=True)


@pytest.mark.parametrize(
    "unkept",
    [Order("ann", "k", 5, shares=SHARE), Order("ann", "k", shares=-1), Order("ann", "k", side="give")],
)
def test_a_key_of_a_malformed_request_is_free_for_the_right_one(desk: Desk, unkept: Order) -> None:
    market = desk.market()
    assert desk.trade(market, unkept).status == 400
    assert desk.trade(market, BUY).status == 200


def test_a_key_met_while_paused_is_free_afterwards(desk: Desk) -> None:
    market = desk.market()
    desk.row("SELECT pause_trading('drill')")
    assert desk.trade(market, BUY).status == 503
    desk.resume()
    answer = desk.trade(market, BUY)
    assert (answer.status, answer.replayed) == (200, False)


def test_a_key_is_the_users_own(desk: Desk) -> None:
    market = desk.market()
    mine, his = desk.trade(market, BUY), desk.trade(market, BUY._replace(user="bob"))
    assert (mine.replayed, his.replayed) == (False, False)
    assert mine.facts["tradeId"] != his.facts["tradeId"]
    assert desk.trade(market, BUY._replace(user="bob")) == his._replace(replayed=True)


def test_a_key_is_one_key_at_every_endpoint(desk: Desk) -> None:
    fund: LiteralString = "SELECT * FROM api_fund('admin', 'k', 'fund ann', 'ann', null, 5)"
    first = desk.call(fund)
    assert first.status == 201
    for query in (
        "SELECT * FROM api_create_market('admin', 'k', 'a market', 'Q?', ARRAY['a', 'b'], 1000000, 0)",
        "SELECT * FROM api_close_market('admin', 'k', 'a closing', 1)",
        "SELECT * FROM api_fund('admin', 'k', 'fund bob', 'bob', null, 5)",
    ):
        with desk.nothing_moves():
            assert desk.call(query).code == "idempotency_key_reused"
    with desk.nothing_moves():
        assert desk.call(fund) == first._replace(replayed=True)


def test_creating_and_closing_a_market_are_replayed(desk: Desk) -> None:
    create: LiteralString = (
        "SELECT * FROM api_create_market('admin', 'k', 'h', 'Q?', ARRAY['a', 'b'], 1000000, 0)"
    )
    close: LiteralString = "SELECT * FROM api_close_market('admin', 'c', 'h', %s)"
    created = desk.call(create)
    market = created.facts["marketId"]
    closed = desk.call(close, market)
    with desk.nothing_moves():
        assert desk.call(create) == created._replace(replayed=True)
        assert desk.call(close, market) == closed._replace(replayed=True)
    again = desk.call("SELECT * FROM api_close_market('admin', 'c2', 'h', %s)", market)
    assert (again.status, again.code) == (422, "market_closed")
    with desk.nothing_moves():
        assert desk.call("SELECT * FROM api_close_market('admin', 'c2', 'h', %s)", market).replayed


def test_a_key_twice_in_one_batch_is_one_trade(desk: Desk) -> None:
    market = desk.market()
    answers = desk.batch(market, [BUY, BUY, BUY._replace(user="bob"), BUY._replace(shares=SHARE + 1), BUY])
    assert [answer.status for answer in answers] == [200, 200, 200, 422, 200]
    assert [answer.replayed for answer in answers] == [False, True, False, False, True]
    assert answers[0].body == answers[1].body == answers[4].body
    assert answers[3].code == "idempotency_key_reused"
    assert desk.row("SELECT count(*) FROM trades") == (2,)
    desk.assert_books_agree()


def test_a_refused_key_twice_in_one_batch_is_one_refusal(desk: Desk) -> None:
    market = desk.market(fee_bps=0)
    dear = Order("ann", "k", shares=SHARE, limit=499_999)
    answers = desk.batch(market, [dear, Order("bob", "cheaper", 1, shares=50 * SHARE), dear])
    assert [answer.status for answer in answers] == [422, 200, 422]
    assert answers[2] == answers[0]._replace(replayed=True)
    assert desk.trade(market, dear) == answers[2]


def test_a_malformed_use_in_a_batch_leaves_the_key_to_the_next(desk: Desk) -> None:
    market = desk.market()
    answers = desk.batch(market, [BUY._replace(outcome=9), BUY, BUY])
    assert [(answer.status, answer.replayed) for answer in answers] == [
        (400, False),
        (200, False),
        (200, True),
    ]


def test_old_and_new_keys_share_a_batch(desk: Desk) -> None:
    market = desk.market()
    old = desk.trade(market, BUY)
    answers = desk.batch(
        market, [Order("bob", "new", 1, shares=SHARE), BUY, Order("ann", "new", shares=SHARE)]
    )
    assert [answer.replayed for answer in answers] == [False, True, False]
    assert answers[1].body == old.body
    assert [answers[0].facts["marketVersion"], answers[2].facts["marketVersion"]] == [2, 3]


def test_a_key_in_flight_is_waited_for_and_then_replayed(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    market = desk.market()
    first, second = others
    (traded,) = execute_batch(first, market, [BUY])
    waiting = threads.submit(execute_batch, second, market, [Order("bob", "x", shares=SHARE), BUY])
    await_lock_wait(desk.admin, "execute_trade_batch")
    assert not waiting.done()
    first.commit()
    others_trade, replay = waiting.result(TIMEOUT_S)
    assert (others_trade.status, others_trade.replayed) == (200, False)
    assert replay == traded._replace(replayed=True)
    assert desk.row("SELECT count(*) FROM trades WHERE user_id = 'ann'") == (1,)
    desk.assert_books_agree()


def test_a_refusal_in_flight_is_waited_for_and_then_replayed(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    market, another = desk.market(), desk.market()
    first, second = others
    (refused,) = execute_batch(first, market, [BUY._replace(limit=1)])
    # on another market: it is not the market's row that makes the second wait
    waiting = threads.submit(execute_batch, second, another, [BUY._replace(limit=1)])
    await_lock_wait(desk.admin, "execute_trade_batch")
    first.commit()
    assert waiting.result(TIMEOUT_S) == [refused._replace(replayed=True)]
    assert desk.row("SELECT count(*) FROM trades") == (0,)


def test_a_key_in_flight_that_is_rolled_back_was_never_used(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    market = desk.market()
    first, second = others
    execute_batch(first, market, [BUY])
    waiting = threads.submit(execute_batch, second, market, [BUY])
    await_lock_wait(desk.admin, "execute_trade_batch")
    first.rollback()
    (answer,) = waiting.result(TIMEOUT_S)
    assert (answer.status, answer.replayed, answer.facts["marketVersion"]) == (200, False, 1)
    assert desk.row("SELECT count(*) FROM trades") == (1,)
    desk.assert_books_agree()


def test_one_key_in_two_transactions_at_once_is_one_trade(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    market = desk.market()
    others[0].autocommit = True
    for number in range(30):
        order = BUY._replace(key=f"k{number}")
        (first,), (second,) = at_once(
            threads,
            partial(execute_batch, others[0], market, [order]),
            partial(execute_batch, others[1], market, [order]),
        )
        assert {first.replayed, second.replayed} == {False, True}
        assert first.body == second.body
    assert desk.row("SELECT count(*) FROM trades") == (30,)
    desk.assert_books_agree()


def test_batches_of_different_users_on_one_market_follow_each_other(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    market = desk.market()
    others[0].autocommit = True
    for number in range(40):
        answers = at_once(
            threads,
            partial(execute_batch, others[0], market, [Order("ann", f"{number}", shares=SHARE)] * 2),
            partial(execute_batch, others[1], market, [Order("bob", f"{number}", 1, shares=SHARE)] * 2),
        )
        assert [answer.status for batch in answers for answer in batch] == [200] * 4
    assert desk.row("SELECT count(*), max(market_version) FROM trades") == (80, 80)
    desk.assert_books_agree()


@pytest.mark.parametrize("markets", [1, 2])
def test_batches_with_common_users_in_opposite_order_do_not_deadlock(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor, markets: int
) -> None:
    chance = random.Random(markets)
    users = [desk.user(f"user-{number}") for number in range(12)]
    where = [desk.market() for _ in range(markets)]
    others[0].autocommit = True
    for number in range(40):
        chance.shuffle(users)
        forward = [Order(user, f"f{number}", shares=SHARE) for user in users]
        backward = [Order(user, f"b{number}", 1, shares=SHARE) for user in reversed(users)]
        answers = at_once(
            threads,
            partial(execute_batch, others[0], where[0], forward),
            partial(execute_batch, others[1], where[-1], backward),
        )
        assert [answer.status for batch in answers for answer in batch] == [200] * 24
    assert desk.row("SELECT count(*) FROM trades") == (960,)
    desk.assert_books_agree()


def test_an_administrators_key_in_two_transactions_at_once_is_used_once(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    close: LiteralString = "SELECT * FROM api_close_market('admin', %s, 'h', %s)"
    others[0].autocommit = True
    for number in range(20):
        market = desk.market()
        first, second = at_once(
            threads, *[partial(one, other, close, f"k{number}", market) for other in others]
        )
        assert {first[1], second[1]} == {False, True}
        assert first[0] == 200
        assert first[2] == second[2]
    assert desk.row("SELECT max(closed_version), count(*) FROM markets WHERE status = 'closed'") == (1, 20)
    desk.assert_books_agree()


def test_trading_funding_creating_and_closing_at_once_do_not_deadlock(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    trading = desk.market()
    others[0].autocommit = True

    def administer() -> set[int]:
        statuses = set()
        for number in range(25):
            fund = "SELECT * FROM api_fund('admin', %s, 'h', 'ann', null, 5)"
            create = "SELECT * FROM api_create_market('admin', %s, 'h', 'Q?', ARRAY['a','b'], 1000000, 0)"
            close = "SELECT * FROM api_close_market('admin', %s, 'h', %s)"
            statuses.add(one(others[0], fund, f"f{number}")[0])
            created = Answer(*one(others[0], create, f"m{number}"))
            statuses.add(one(others[0], close, f"c{number}", created.facts["marketId"])[0])
        return statuses

    def trade() -> set[int]:
        batches = [
            [Order("bob", f"{number}", shares=SHARE), Order("ann", f"{number}", 1, shares=SHARE)]
            for number in range(50)
        ]
        return {answer.status for batch in batches for answer in execute_batch(others[1], trading, batch)}

    assert at_once(threads, administer, trade) == [{200, 201}, {200}]
    desk.assert_books_agree()


def test_an_optimistic_trade_is_the_same_trade(desk: Desk) -> None:
    market = desk.market()
    traded = desk.call(OPTIMISTIC, market, "k", BUY.hash, SHARE)
    assert (traded.status, traded.replayed) == (200, False)
    with desk.nothing_moves():
        assert desk.call(OPTIMISTIC, market, "k", BUY.hash, SHARE) == traded._replace(replayed=True)
        assert desk.trade(market, BUY) == traded._replace(replayed=True)
    desk.assert_books_agree()


def test_an_optimistic_trade_on_a_market_that_moved_does_nothing(
    desk: Desk, others: tuple[Connection, Connection], threads: ThreadPoolExecutor
) -> None:
    market = desk.market()
    first, second = others
    execute_batch(first, market, [Order("bob", "b", shares=SHARE)])
    trying = threads.submit(one, second, OPTIMISTIC, market, "k", "h", SHARE)
    await_lock_wait(desk.admin, "execute_trade_optimistic")
    first.commit()
    assert trying.result(TIMEOUT_S) == (0, False, None)
    assert desk.row("SELECT count(*) FROM trades") == (1,)
    assert desk.row("SELECT count(*) FROM idempotency_keys WHERE user_id = 'ann'") == (0,)
    assert desk.call(OPTIMISTIC, market, "k", "h", SHARE).status == 200
    desk.assert_books_agree()
