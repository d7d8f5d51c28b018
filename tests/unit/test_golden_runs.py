"""The golden runs are whole run directories in which every invariant holds; so is a synthetic one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest

from reports.evidence import Evidence, open_evidence
from reports.invariants.registry import Invariant, load_registry
from reports.judge import CHAIN_GROUPS, examine, judge
from reports.synthetic import write_run
from scenarios.history import Completion, End, FaultRow, Header, Invoke, Probe, Sample, read_rows
from scenarios.plan import read_run_plan
from tests import golden
from tests.golden.market import Books, exact_cost, exact_prices

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.run(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def evidence(run: Path) -> Iterator[Evidence]:
    opened = open_evidence(run)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def money_evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    opened = open_evidence(golden.money_run(tmp_path_factory.mktemp("golden")))
    yield opened
    opened.close()


@pytest.mark.parametrize("known", load_registry(), ids=lambda known: known.name)
def test_an_invariant_examines_the_golden_runs_and_holds(
    evidence: Evidence, money_evidence: Evidence, known: Invariant
) -> None:
    runs = (money_evidence,) if known.group in CHAIN_GROUPS else (evidence, money_evidence)
    for one in (examine(run, known) for run in runs):
        assert (one.result, one.detail, one.witness) == ("held", one.detail, [])
        assert one.examined > 0


@pytest.mark.parametrize("known", load_registry(), ids=lambda known: known.name)
def test_an_invariant_has_a_golden_run_that_breaks_it(known: Invariant) -> None:
    texts = [path.read_text(encoding="utf-8") for path in TESTS.glob("test_invariants_*.py")]

    assert any(f'"{known.name}"' in text or f"{known.name}(" in text for text in texts)


@pytest.mark.parametrize(("write", "faults"), [(golden.run, 4), (golden.money_run, 28)])
def test_every_row_of_a_golden_run_is_one_that_a_writer_writes(
    write: Callable[[Path], Path], faults: int, tmp_path: Path
) -> None:
    run = write(tmp_path)
    kinds: dict[str, type[msgspec.Struct]] = {"header": Header, "invoke": Invoke, "end": End}
    for line in (run / "history" / "load-0.jsonl").read_text().splitlines():
        kind = line.split('"type":"')[1].split('"')[0]
        single = run / "single.jsonl"
        single.write_text(line + "\n")
        assert len(list(read_rows(single, kinds.get(kind, Completion)))) == 1
    single.unlink()
    assert len(list(read_rows(run / "faults.jsonl", FaultRow))) == faults
    assert len(list(read_rows(run / "samples.jsonl", Sample))) > 5
    assert len(list(read_rows(run / "probes.jsonl", Probe))) > 5
    assert read_run_plan(run).run == "golden"


@pytest.mark.parametrize("write", [golden.run, golden.money_run])
def test_a_golden_run_is_the_same_every_time(write: Callable[[Path], Path], tmp_path: Path) -> None:
    once, again = write(tmp_path / "once"), write(tmp_path / "again")
    for path in sorted(once.rglob("*.json*")):
        assert (again / path.relative_to(once)).read_bytes() == path.read_bytes()
    with duckdb.connect() as db:
        for path in sorted((once / "state").glob("*.parquet")):
            other = again / "state" / path.name
            different = db.execute(
                f"SELECT count(*) FROM (FROM '{path}' EXCEPT ALL FROM '{other}')"
            ).fetchone()
            assert different == (0,)


@pytest.mark.parametrize("make", [golden.golden_run, golden.golden_money_run])
def test_money_in_a_golden_market_only_moves(make: Callable[[], golden.GoldenRun]) -> None:
    books = make().books

    assert sum(row["balance_micro"] for row in books.views["accounts"]) == 0
    assert all(
        market["pool_micro"] == exact_cost(market["quantities"], market["b_micro"])
        for market in books.views["markets"]
    )


def test_the_vault_of_the_golden_run_holds_what_its_books_say() -> None:
    run = golden.golden_money_run()
    outside = run.books.account("external_onchain")["balance_micro"]

    assert run.chain.custody_micro(run.chain.head.number) == -outside
    assert run.books.outbox.next_event() is None
    assert {row["status"] for row in run.rows("outbox_events")} == {"delivered"}
    assert run.rows("reconciliations")[-1]["verdict"] == "clean"


def test_the_golden_story_of_money_has_every_chapter() -> None:
    run = golden.golden_money_run()
    kinds = {row["kind"] for row in run.rows("transactions")}

    assert kinds >= {"deposit", "reverse_deposit", "settle_receivable", "withdraw", "withdraw_final"}
    assert kinds >= {"undo_withdraw", "return_withdraw"}
    assert [row["status"] for row in run.rows("withdrawals")] == ["final", "returned", *["final"] * 4]
    assert {row["status"] for row in run.rows("deposits")} == {"credited", "suspended", "reversed"}
    assert [row["owed_micro"] for row in run.rows("receivables")] == [0]
    assert {row["status"] for row in run.receiver.deliveries} == {200, 503, 0}
    assert [row["paused"] for row in run.rows("platform_changes")] == [True, False, True, False]
    dead = run.event_row("notice.deposit_credited", "u4")
    assert (dead["status"], dead["attempts"], dead["lease_token"]) == ("delivered", 1, 5)


def test_the_most_shares_for_an_amount_are_the_most() -> None:
    books = Books()
    market = books.create_market("admin", "k", 2, 100_000_000, 100)
    for amount in (1, 999, 1_000_000, 7_654_321):
        shares = books.shares_for(1, 0, amount)
        for more, fits in ((0, True), (1, False)):
            cost = exact_cost([shares + more, 0], market["b_micro"]) - market["pool_micro"]
            assert (cost - (-cost * market["fee_bps"] // 10_000) <= amount) is fits


@pytest.mark.parametrize("quantities", [[0, 0, 0], [5_000_000, 1], [10**9, 0], [3, 2, 1, 0, 7, 7, 7, 7]])
def test_golden_prices_sum_to_one(quantities: list[int]) -> None:
    assert sum(exact_prices(quantities, 100_000_000)) == 1_000_000


def test_a_synthetic_run_passes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", operations=20_000)
    verdict = judge(tmp_path / "run")

    assert verdict.verdict == "pass", verdict.reasons
    assert verdict.totals["operations"] == 20_000
    assert all(one.examined > 0 for one in verdict.invariants)
