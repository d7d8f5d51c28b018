"""When a drift is an alert and when it stops trading, who is told, and how trading is resumed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import errors

from reference_server.custody import Custody
from reference_server.reconcile import Reading, reconcile, reconcile_on
from tests.conftest import MarketDatabase
from tests.integration.chain_figures import Chain
from tests.integration.desk import FUNDS, Desk, Order, await_lock_wait

RESUME: LiteralString = "SELECT resume_trading(%s, %s)"
DEAD = "the node: connection refused"


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        desk.user("ann")
        yield desk


@pytest.fixture
def chain(desk: Desk) -> Chain:
    """An alert from 10, a pause from 100 in the third finding, at once from 1,000."""
    chain = Chain(desk)
    chain.settings(alert=10, pause=100, critical=1000, after=3)
    return chain


def verdicts(chain: Chain, *drifts: int | str) -> list[str]:
    """The verdicts on a series of drifts; a text is why the custody was not known."""
    found = []
    for drift in drifts:
        chain.drift_micro = drift if isinstance(drift, int) else 0
        found.append(chain.reconcile(trouble=drift if isinstance(drift, str) else None)["verdict"])
    return found


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("drifts", "expected"),
    [
        ([0, 9, 10, 99], ["clean", "clean", "alert", "alert"]),
        ([99, 99, 99, 99], ["alert", "alert", "alert", "alert"]),
        ([100, 100, 100], ["alert", "alert", "pause"]),
        ([100, 999, 500], ["alert", "alert", "pause"]),
        ([1000], ["pause"]),
        ([100, 100, 0, 100, 100], ["alert", "alert", "clean", "alert", "alert"]),
        ([100, 100, 99, 100, 100], ["alert"] * 5),
    ],
)
def test_a_drift_is_judged_by_its_size_and_its_repetition(
    chain: Chain, drifts: list[int], expected: list[str], sign: int
) -> None:
    assert verdicts(chain, *(sign * drift for drift in drifts)) == expected
    assert chain.is_paused() == ("pause" in expected)


def test_a_node_that_is_dead_is_neither_a_pass_nor_a_finding(chain: Chain) -> None:
    assert verdicts(chain, 100, DEAD, 100, DEAD, DEAD) == [
        *("alert", "inconclusive", "alert", "inconclusive", "inconclusive")
    ]
    assert not chain.is_paused()
    assert verdicts(chain, *([DEAD] * 5)) == ["inconclusive"] * 5
    assert not chain.is_paused()
    # neither did it break the series
    assert verdicts(chain, 100) == ["pause"]


def test_the_books_are_held_against_themselves_also_without_a_node(chain: Chain) -> None:
    chain.plant("ann", 1000)
    report = chain.reconcile(trouble=DEAD)
    assert (report["verdict"], report["difference_micro"], report["trouble"]) == ("pause", None, DEAD)
    assert chain.is_paused()


def test_a_node_that_lags_is_inconclusive_until_it_has_caught_up(chain: Chain) -> None:
    chain.block = 10
    assert verdicts(chain, 0) == ["clean"]
    chain.block = 4
    assert verdicts(chain, 1000) == ["inconclusive"]
    assert not chain.is_paused()
    chain.block = 10
    assert verdicts(chain, 0) == ["clean"]  # the same block again is no lag
    custody = Custody(chain.custody_micro(), 3)
    assert reconcile_on(chain.desk.admin, custody)["verdict"] == "inconclusive"
    assert reconcile_on(chain.desk.admin, custody, Reading(lower_block=True))["verdict"] == "clean"


def test_a_pause_says_how_long_trading_went_on(chain: Chain) -> None:
    clean = chain.reconcile()
    chain.drift_micro = -500
    first, _, last = chain.reconcile(), chain.reconcile(), chain.reconcile()
    assert (last["consecutive"], last["trading_paused"]) == (3, True)
    assert last["last_clean_at"] == clean["cutoff_at"]
    assert last["first_found_at"] == first["cutoff_at"]
    assert first["cutoff_at"] < last["cutoff_at"] < last["paused_at"]
    assert 0 < last["found_to_pause_s"] < last["drift_to_pause_at_most_s"]
    again = chain.reconcile()
    assert (again["verdict"], again["paused_at"], again["trading_paused"]) == ("pause", None, True)


def test_a_platform_that_is_paused_already_is_not_paused_again(chain: Chain) -> None:
    chain.desk.row("SELECT pause_trading('drill')")
    state = chain.desk.row("SELECT reason, changed_at FROM platform_state")
    chain.drift_micro = 1000
    report = chain.reconcile()
    assert (report["verdict"], report["paused_at"]) == ("pause", None)
    assert chain.desk.row("SELECT reason, changed_at FROM platform_state") == state


def test_a_run_whose_platform_changes_meanwhile_is_run_again(desk: Desk, chain: Chain) -> None:
    chain.drift_micro = 1000
    custody = Custody(chain.custody_micro(), 1)
    reports: list[dict[str, Any]] = []
    with psycopg.connect(desk.database.admin_dsn) as other:
        other.execute("SELECT pause_trading('drill')")
        running = threading.Thread(target=lambda: reports.append(reconcile(desk.database.admin_dsn, custody)))
        running.start()
        await_lock_wait(desk.admin, "SELECT reconcile(")
        other.commit()
        running.join(timeout=30)
        assert not running.is_alive()
    (report,) = reports
    assert (report["verdict"], report["paused_at"]) == ("pause", None)
    assert desk.row("SELECT reason FROM platform_state") == ("drill",)
    assert desk.row("SELECT count(*) FROM reconciliation_runs") == (1,)


def events(desk: Desk) -> list[tuple[Any, ...]]:
    return desk.admin.execute(
        """SELECT payload->>'verdict', (payload->>'drift_micro')::bigint, payload->>'title'
             FROM outbox_events WHERE event_type = 'alert.reconciliation' ORDER BY event_id"""
    ).fetchall()


def test_people_are_told_when_the_verdict_or_the_drift_changes(desk: Desk, chain: Chain) -> None:
    verdicts(chain, 0, 0, 50, 50, 60, DEAD, DEAD, 1000, 1000, 0, 0)
    assert events(desk) == [
        ("alert", 50, "The books differ from the chain"),
        ("alert", 60, "The books differ from the chain"),
        ("inconclusive", 0, "The books could not be held against the chain"),
        ("pause", 1000, "Trading is paused: the books differ from the chain"),
        ("clean", 0, "The books agree with the chain again"),
    ]


def refused(desk: Desk, admin: str | None, reason: str | None) -> None:
    with pytest.raises(psycopg.Error) as error:
        desk.row(RESUME, admin, reason)
    assert error.value.sqlstate == "ST006"
    assert desk.row("SELECT paused FROM platform_state") == (True,)


def test_only_an_administrator_resumes_with_a_reason_after_a_clean_run(desk: Desk, chain: Chain) -> None:
    verdicts(chain, 0, 1000)
    refused(desk, "admin", "it looks fine")  # the last run found something
    verdicts(chain, DEAD)
    refused(desk, "admin", "the node is down anyway")
    verdicts(chain, 0)
    for admin, reason in (("ann", "me too"), ("nobody", "me"), (None, "me"), ("admin", ""), ("admin", None)):
        refused(desk, admin, reason)
    verdicts(chain, 500)
    refused(desk, "admin", "it was clean a minute ago")
    verdicts(chain, 0, DEAD)
    assert desk.row(RESUME, "admin", "the deposit was booked twice, and is corrected") == (True,)
    assert not chain.is_paused()
    assert desk.row(RESUME, "admin", "again") == (False,)
    assert desk.trade(desk.market(), Order("ann", "k", shares=1_000_000)).status == 200
    assert desk.admin.execute(
        "SELECT paused, reason, changed_by FROM platform_changes ORDER BY change_id"
    ).fetchall() == [
        (True, "reconciliation 2 found a drift of 1000", None),
        (False, "the deposit was booked twice, and is corrected", "admin"),
    ]


def test_a_clean_run_from_before_the_pause_earns_no_resumption(desk: Desk, chain: Chain) -> None:
    verdicts(chain, 0)
    desk.row("SELECT pause_trading('drill')")
    refused(desk, "admin", "it was clean")


def test_who_resumes_while_a_run_is_under_way_is_not_overlooked(desk: Desk, chain: Chain) -> None:
    """The run sees trading paused, and finds a drift; by then somebody has resumed: it begins anew."""
    verdicts(chain, 1000, 0)
    with psycopg.connect(desk.database.admin_dsn) as running:
        running.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        running.execute("SELECT paused FROM platform_state")
        assert desk.row(RESUME, "admin", "it agrees again") == (True,)
        with pytest.raises(errors.SerializationFailure):
            running.execute("SELECT reconcile(%s, %s)", [chain.custody_micro() + 1000, chain.block + 1])
    assert verdicts(chain, 1000) == ["pause"]
    assert chain.is_paused()


def test_the_row_is_not_changed_back_by_hand_either(desk: Desk, chain: Chain) -> None:
    verdicts(chain, 1000)
    with pytest.raises(psycopg.Error) as error:
        desk.admin.execute("UPDATE platform_state SET paused = false")
    assert error.value.sqlstate == "ST006"
    with desk.admin.transaction(force_rollback=True):
        desk.admin.execute("SET LOCAL session_replication_role = replica")
        with pytest.raises(psycopg.Error) as error, desk.admin.transaction():
            desk.admin.execute("UPDATE platform_state SET paused = false")
        assert error.value.sqlstate == "ST006"
    desk.admin.execute("DELETE FROM platform_state")  # no row, no money
    desk.server.execute("SELECT 1")
    with pytest.raises(psycopg.Error) as error:
        desk.row("SELECT record_ledger_entry(1, 2, 5, 'gift')")
    assert error.value.sqlstate == "ST004"


def test_the_server_can_neither_reconcile_nor_resume(desk: Desk) -> None:
    for call in ("reconcile(0, 1)", "resume_trading('admin', 'please')", "pause_trading('why')"):
        with pytest.raises(errors.InsufficientPrivilege):
            desk.server.execute(f"SELECT {call}".encode())


def test_while_paused_sells_pass_when_the_setting_lets_them(desk: Desk, chain: Chain) -> None:
    market = desk.market()
    assert desk.trade(market, Order("ann", "buy", shares=3_000_000)).status == 200
    verdicts(chain, 1000)
    sell = Order("ann", "sell", side="sell", shares=1_000_000)
    with desk.nothing_moves():
        assert desk.trade(market, sell).code == "trading_paused"
    desk.admin.execute("UPDATE platform_state SET sells_while_paused = true")
    batch = [
        Order("ann", "one", shares=1),
        sell,
        Order("ann", "two", amount=5_000_000),
        Order("ann", "too many", side="sell", shares=3_000_000),
        Order("ann", "buy", shares=3_000_000),
        sell,
    ]
    answers = desk.batch(market, batch)
    assert [answer.status for answer in answers] == [503, 200, 503, 422, 503, 200]
    assert {answer.code for answer in answers if answer.status == 503} == {"trading_paused"}
    assert [answer.replayed for answer in answers] == [False] * 5 + [True]
    assert desk.row("SELECT count(*) FROM idempotency_keys WHERE idempotency_key IN ('one', 'two')") == (0,)
    assert desk.row("SELECT shares FROM positions WHERE user_id = 'ann'") == (2_000_000,)
    with desk.nothing_moves():
        optimistic: LiteralString = (
            "SELECT * FROM execute_trade_optimistic(%s, %s, 'x', 'h', 0, %s, 9, null, null)"
        )
        assert desk.call(optimistic, "ann", market, "buy").code == "trading_paused"
        for call in (
            "api_fund('admin', 'k1', 'h', 'ann', null, 5)",
            "api_create_market('admin', 'k2', 'h', 'Q?', ARRAY['a', 'b'], 1000000, 0)",
        ):
            assert desk.server.execute(f"SELECT status FROM {call}".encode()).fetchall() == [(503,)]
    desk.assert_books_agree()
    desk.admin.execute("UPDATE platform_state SET sells_while_paused = false")
    with desk.nothing_moves():
        assert desk.trade(market, sell._replace(key="later")).code == "trading_paused"


def test_sells_alone_are_no_wider_than_sells(desk: Desk) -> None:
    """The setting by itself pauses nothing."""
    desk.admin.execute("UPDATE platform_state SET sells_while_paused = true, reads_while_paused = false")
    assert desk.trade(desk.market(), Order("ann", "k", shares=1_000_000)).status == 200
    assert desk.available("ann") < FUNDS


READS = (
    "api_markets()",
    "api_market(1)",
    "api_market(404)",
    "api_account('ann')",
    "api_account_ledger('ann', 5)",
    "api_account_reconciliation('ann')",
)


def test_while_paused_the_books_are_shown_unless_the_setting_hides_them(desk: Desk, chain: Chain) -> None:
    desk.market()
    shown = [desk.server.execute(f"SELECT {call}".encode()).fetchall() for call in READS]
    verdicts(chain, 1000)
    assert [desk.server.execute(f"SELECT {call}".encode()).fetchall() for call in READS] == shown
    desk.admin.execute("UPDATE platform_state SET reads_while_paused = false")
    for call in READS:
        with pytest.raises(psycopg.Error) as error:
            desk.server.execute(f"SELECT {call}".encode())
        assert error.value.sqlstate == "ST004"
    desk.resume()
    assert [desk.server.execute(f"SELECT {call}".encode()).fetchall() for call in READS] == shown
