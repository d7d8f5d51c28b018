"""The books against the chain: nothing is found where nothing is wrong, and exactly the drift where it is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors, sql

from tests.conftest import MarketDatabase
from tests.integration.chain_figures import USDC, Chain
from tests.integration.desk import FUNDS, Desk, Order

KEPT = ("reconciliation_runs", "reconciliation_items", "balance_snapshots", "platform_changes")


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    """Two users with a trade each on one market."""
    with Desk(market_database) as desk:
        for name in ("ann", "bob"):
            desk.user(name)
        desk.batch(desk.market(), [Order(name, "k", amount=5 * USDC) for name in ("ann", "bob")])
        yield desk


@pytest.fixture
def chain(desk: Desk) -> Chain:
    return Chain(desk)


def test_the_books_are_the_custody_after_trades_of_every_kind(desk: Desk, chain: Chain) -> None:
    desk.trade(1, Order("ann", "s", side="sell", shares=USDC))
    desk.row(
        "SELECT record_ledger_entry(user_account('ann'), user_account('ann', 'user_reserved'), 9, 'hold')"
    )
    desk.row("SELECT record_ledger_entry(user_account('bob'), 5, 11, 'odd')")
    desk.close(1)
    report = chain.reconcile()
    assert (report["verdict"], report["difference_micro"], report["items"]) == ("clean", 0, [])
    assert report["custody_micro"] == report["books_micro"] == 10**15 + 2 * FUNDS
    assert (
        -report["totals"].pop("external_onchain") == sum(report["totals"].values()) == report["books_micro"]
    )
    assert {"user_available", "user_reserved", "market_pool", "house_fees", "suspense"} <= {
        kind for kind, total in report["totals"].items() if total > 0
    }


def test_the_obvious_formula_forgets_the_pools_and_alarms_after_the_first_trade(
    market_database: MarketDatabase,
) -> None:
    with Desk(market_database) as desk:
        chain = Chain(desk)
        desk.user("ann")
        market = desk.market()

        def obvious_micro() -> int:
            kinds = ["user_available", "user_reserved", "house_fees"]
            return int(desk.row("SELECT sum(balance) FROM accounts WHERE kind = ANY(%s)", kinds)[0])

        # what the formula would call the users' custody: it agrees as long as nobody trades
        house = chain.custody_micro() - FUNDS
        assert chain.custody_micro() - house - obvious_micro() == 0
        bought = desk.trade(market, Order("ann", "k", amount=5 * USDC)).facts
        assert chain.custody_micro() - house - obvious_micro() == bought["cost"] > 0
        report = chain.reconcile()
        assert (report["verdict"], report["difference_micro"]) == ("clean", 0)


@pytest.mark.parametrize("drift", [7, -7])
def test_a_drift_on_the_chain_is_found_with_its_sign(chain: Chain, drift: int) -> None:
    chain.reconcile()
    chain.drift_micro = drift
    report = chain.reconcile()
    assert (report["verdict"], report["difference_micro"], report["drift_micro"]) == ("alert", drift, 7)
    assert (report["accounts_wrong"], report["items"]) == (0, [])


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("drift", [7, -7])
def test_a_drift_in_the_books_is_found_with_its_sign_and_account(
    chain: Chain, drift: int, full: bool
) -> None:
    chain.reconcile()
    chain.plant("ann", drift)
    report = chain.reconcile(full=full)
    assert (report["verdict"], report["difference_micro"], report["imbalance_micro"]) == (
        "alert",
        -drift,
        drift,
    )
    assert (report["account_drift_micro"], report["accounts_wrong"], report["drift_micro"]) == (7, 1, 7)
    (item,) = report["items"]
    assert (item["item_kind"], item["amount_micro"], item["explains"]) == ("account", drift, False)
    assert "user_available of ann" in item["explanation"]


@pytest.mark.parametrize("full", [True, False])
def test_a_pair_that_cancels_out_is_found_account_by_account(chain: Chain, full: bool) -> None:
    chain.reconcile()
    chain.plant("ann", 40)
    chain.plant("bob", -40)
    report = chain.reconcile(full=full)
    assert (report["difference_micro"], report["imbalance_micro"]) == (0, 0)
    assert (report["verdict"], report["drift_micro"], report["accounts_wrong"]) == ("alert", 80, 2)
    assert sorted(item["amount_micro"] for item in report["items"]) == [-40, 40]


def test_a_chain_and_books_that_drift_alike_are_found_account_by_account(chain: Chain) -> None:
    chain.reconcile()
    chain.plant("ann", 40)
    chain.drift_micro = 40
    report = chain.reconcile()
    assert (report["difference_micro"], report["imbalance_micro"]) == (0, 40)
    assert (report["verdict"], report["accounts_wrong"]) == ("alert", 1)


@pytest.mark.parametrize("full", [True, False])
def test_a_version_that_is_not_the_number_of_entries_is_found(desk: Desk, chain: Chain, full: bool) -> None:
    chain.reconcile()
    desk.admin.execute("UPDATE accounts SET version = version + 1 WHERE kind = 'house_fees'")
    report = chain.reconcile(full=full)
    assert (report["verdict"], report["drift_micro"], report["accounts_wrong"]) == ("alert", 0, 1)


@pytest.mark.parametrize("full", [True, False])
def test_an_account_that_is_gone_is_found(desk: Desk, chain: Chain, full: bool) -> None:
    chain.reconcile()
    balance = desk.available("ann")
    desk.admin.execute("DELETE FROM accounts WHERE user_id = 'ann' AND kind = 'user_available'")
    report = chain.reconcile(full=full)
    assert (report["difference_micro"], report["accounts_wrong"]) == (balance, 1)
    assert [item["amount_micro"] for item in report["items"]] == [-balance]


def test_a_run_goes_on_from_the_last_good_snapshot(desk: Desk, chain: Chain) -> None:
    entries = desk.row("SELECT count(*) FROM ledger_entries")[0]
    accounts = desk.row("SELECT count(*) FROM accounts")[0]
    first = chain.reconcile()
    assert (first["base_run_id"], first["snapshot"]) == (None, True)
    assert (first["accounts"], first["entries_read"]) == (accounts, entries)

    second = chain.reconcile()
    assert (second["base_run_id"], second["snapshot"]) == (first["run_id"], False)
    assert (second["accounts"], second["entries_read"]) == (0, 0)

    desk.trade(1, Order("ann", "more", amount=USDC))
    third = chain.reconcile(snapshot=True)
    assert (third["accounts"], third["entries_read"]) == (3, 3)
    assert chain.reconcile()["base_run_id"] == third["run_id"]
    assert chain.reconcile(full=True)["base_run_id"] is None
    assert chain.reconcile()["base_run_id"] == third["run_id"]


def test_a_snapshot_with_a_wrong_account_is_kept_and_not_built_on(desk: Desk, chain: Chain) -> None:
    good = chain.reconcile()["run_id"]
    chain.plant("ann", 7)
    wrong = chain.reconcile(snapshot=True)
    assert desk.row("SELECT count(*) FROM balance_snapshots WHERE run_id = %s", wrong["run_id"])[0] > 0
    again = chain.reconcile()
    assert (again["base_run_id"], again["account_drift_micro"]) == (good, 7)
    chain.plant("ann", -7)
    assert chain.reconcile()["verdict"] == "clean"


def test_a_snapshot_is_every_account_at_the_cut_off(desk: Desk, chain: Chain) -> None:
    run = chain.reconcile()["run_id"]
    assert desk.row(
        """SELECT count(*) FROM (
               SELECT account_id, kind, user_id, market_id, balance, version FROM accounts
               EXCEPT
               SELECT account_id, kind, user_id, market_id, balance, version
                 FROM balance_snapshots WHERE run_id = %s) AS other""",
        run,
    ) == (0,)


def test_the_first_run_of_a_day_reads_everything_and_keeps_a_snapshot(desk: Desk, chain: Chain) -> None:
    first = chain.reconcile()["run_id"]
    desk.admin.execute("ALTER TABLE reconciliation_runs DISABLE TRIGGER rows_never_change")
    desk.admin.execute("UPDATE reconciliation_runs SET cutoff_at = cutoff_at - interval '1 day'")
    desk.admin.execute("ALTER TABLE reconciliation_runs ENABLE ALWAYS TRIGGER rows_never_change")
    for base, snapshot in ((None, True), (first + 1, False)):
        report = chain.reconcile()
        assert (report["base_run_id"], report["snapshot"]) == (base, snapshot)


def test_a_run_beside_trades_finds_nothing(desk: Desk, chain: Chain) -> None:
    def trade(user: str) -> int:
        with psycopg.connect(desk.database.app_dsn, autocommit=True) as own:
            answers = [
                desk.batch(1, [Order(user, f"{user}-{n}", outcome=n % 2, shares=1000)], on=own)[0].status
                for n in range(150)
            ]
        return answers.count(200)

    chain.reconcile()
    with ThreadPoolExecutor(2) as pool:
        traders = [pool.submit(trade, user) for user in ("ann", "bob")]
        found, examined = set(), 0
        while not all(trader.done() for trader in traders) and examined < 1_000:
            found.add(chain.reconcile(full=examined % 2 == 0)["verdict"])
            examined += 1
        assert [trader.result(timeout=60) for trader in traders] == [150, 150]
    assert (found, examined > 3) == ({"clean"}, True)


def test_the_books_are_read_in_one_snapshot_or_not_at_all(desk: Desk) -> None:
    with pytest.raises(errors.ActiveSqlTransaction):
        desk.row("SELECT reconcile(0, 1)")


def test_what_was_found_stays(desk: Desk, chain: Chain) -> None:
    chain.plant("ann", 7)
    chain.reconcile()
    desk.row("SELECT pause_trading('drill')")
    for table in KEPT:
        for statement in ("DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.Error) as error:
                desk.admin.execute(sql.SQL(statement).format(sql.Identifier(table)))
            assert error.value.sqlstate in ("ST002", "42501")


def test_an_overflowing_sum_is_a_drift_and_no_error(desk: Desk, chain: Chain) -> None:
    for user in ("ann", "bob"):
        desk.admin.execute("UPDATE accounts SET balance = 9223372036854775807 WHERE user_id = %s", [user])
    report = chain.reconcile()
    assert (report["verdict"], report["books_micro"]) == ("pause", 2**63 - 1)
