"""An operation belongs to fault, recovery or steady by what its life overlaps; latencies follow from that."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest

from reports.evidence import Evidence, open_evidence
from reports.latency import make_answered, read_latency, read_thresholds, read_totals
from reports.phases import make_operation_phases
from scenarios.plan import Thresholds
from tests import golden
from tests.golden.recorder import MS

Window = tuple[int, int | None]


def phases(
    lives: list[tuple[int, int]],
    windows: list[Window],
    *,
    recovery_ns: int = 10 * 10**9,
    felt: bool = True,
) -> list[str]:
    """What the table says of each life, an (intended, answer) pair."""
    with duckdb.connect() as db:
        db.execute("CREATE TABLE operations (operation VARCHAR, intended_ns BIGINT, answer_ns BIGINT)")
        db.execute(
            "CREATE TABLE fault_windows (fault_id VARCHAR, felt BOOLEAN, from_ns BIGINT, to_ns BIGINT)"
        )
        db.executemany(
            "INSERT INTO operations VALUES (?, ?, ?)", [(str(n), *life) for n, life in enumerate(lives)]
        )
        if windows:
            db.executemany(
                "INSERT INTO fault_windows VALUES (?, ?, ?, ?)",
                [(str(n), felt, *window) for n, window in enumerate(windows)],
            )
        make_operation_phases(db, recovery_s=recovery_ns / 1e9)
        found = dict(db.execute("SELECT operation, phase FROM operation_phases").fetchall())
    return [found[str(n)] for n in range(len(lives))]


def one_by_one(life: tuple[int, int], windows: list[Window], recovery_ns: int) -> str:
    """The same, slow and obvious."""
    intended, answer = life
    if any(start <= answer and (end is None or end >= intended) for start, end in windows):
        return "fault"
    if any(end is not None and end <= answer and end + recovery_ns >= intended for _, end in windows):
        return "recovery"
    return "steady"


def test_without_faults_everything_is_steady() -> None:
    assert phases([(0, 5), (7, 9)], []) == ["steady", "steady"]


def test_a_fault_that_nobody_feels_excuses_nothing() -> None:
    lives, windows = [(0, 5), (7, 9)], [(4, 8)]
    assert phases(lives, list(windows)) == ["fault", "fault"]
    assert phases(lives, list(windows), felt=False) == ["steady", "steady"]


def test_a_life_that_touches_a_window_met_the_fault() -> None:
    s = 10**9
    lives = [(0, 9 * s), (0, 10 * s), (15 * s, 16 * s), (20 * s, 21 * s), (0, 99 * s)]

    assert phases(lives, [(10 * s, 20 * s)]) == ["steady", "fault", "fault", "fault", "fault"]


def test_after_a_heal_comes_recovery_and_then_steady() -> None:
    s = 10**9
    lives = [(21 * s, 22 * s), (30 * s, 31 * s), (31 * s, 32 * s)]

    assert phases(lives, [(10 * s, 20 * s)]) == ["recovery", "recovery", "steady"]


def test_a_fault_that_was_never_healed_lasts() -> None:
    assert phases([(10**18, 10**18 + 1)], [(5, None)]) == ["fault"]


def test_a_long_window_is_not_forgotten_behind_a_short_one() -> None:
    s = 10**9
    assert phases([(50 * s, 51 * s)], [(0, 100 * s), (20 * s, 21 * s)]) == ["fault"]


@pytest.mark.parametrize("seed", range(20))
def test_phases_equal_those_found_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    windows: list[Window] = []
    for _ in range(draw.randrange(12)):
        start = draw.randrange(1000)
        windows.append((start, None if draw.random() < 0.05 else start + draw.randrange(60)))
    lives = [(start, start + draw.randrange(50)) for start in (draw.randrange(1200) for _ in range(300))]

    assert phases(lives, windows, recovery_ns=40) == [one_by_one(life, windows, 40) for life in lives]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    opened = open_evidence(golden.run(tmp_path_factory.mktemp("golden")))
    make_answered(opened)
    yield opened
    opened.close()


def test_an_operation_with_a_lost_reply_met_the_fault(evidence: Evidence) -> None:
    assert evidence.scalar("SELECT phase FROM operation_phases WHERE operation = 'g-u3-25'") == "fault"
    counted = evidence.scalar("SELECT count(*) FROM operation_phases")
    assert counted == evidence.scalar("SELECT count(*) FROM operations")


def test_response_counts_from_the_intended_start_and_service_is_one_attempt(
    evidence: Evidence,
) -> None:
    latency = read_latency(evidence)

    row = evidence.rows("SELECT * FROM answered WHERE operation = 'g-u3-25'")[0]
    assert (row["response_ms"], row["service_ms"]) == (259.0, 2.0)
    assert latency["fault"]["response"]["max_ms"] == 259.0
    assert latency["all"]["response"]["count"] == evidence.scalar("SELECT count(*) FROM answered")
    assert list(latency) == ["all", "steady", "fault", "recovery"]


def test_percentiles_are_those_of_the_sorted_list(evidence: Evidence) -> None:
    measured = [
        row["response_ms"] for row in evidence.rows("SELECT response_ms FROM answered ORDER BY response_ms")
    ]

    found = read_latency(evidence)["all"]["response"]
    assert found["p50_ms"] == measured[-(-len(measured) // 2) - 1]
    assert found["max_ms"] == measured[-1]


def test_what_came_before_the_load_is_not_measured(evidence: Evidence) -> None:
    setup = "SELECT count(*) FROM answered JOIN operations USING (operation) WHERE action = 'create_user'"
    assert evidence.scalar(setup) == 0


def test_an_operation_without_an_answer_counts_with_its_whole_wait(tmp_path: Path) -> None:
    rows = golden.golden_run()
    lost = next(row for row in rows.history if row.get("error") == "reset")
    lost["latency_ns"] = 10 * MS
    evidence = open_evidence(rows.write(tmp_path / "run"))
    make_answered(evidence)

    row = evidence.rows("SELECT outcome, service_ms FROM answered WHERE operation = ?", lost["operation"])[0]
    assert row == {"outcome": "info", "service_ms": 10.0}


THRESHOLDS = {
    "steady_p99_ms": (9.0, 8.9, 9.0),
    "steady_p50_ms": (2.5, 2.4, 2.5),
    "trades_per_s": (0.9, 0.91, 0.9),
    "info_fraction": (0.064516, 0.06, 0.07),
    "health_p99_ms": (2.5, 2.4, 2.5),
}


@pytest.mark.parametrize("name", sorted(THRESHOLDS))
def test_a_threshold_is_crossed_beyond_its_limit_and_kept_at_it(evidence: Evidence, name: str) -> None:
    value, crossed, kept = THRESHOLDS[name]
    asked = evidence.plan.plan
    for limit in (crossed, kept):
        thresholds = msgspec.convert({name: limit}, Thresholds)
        plan = msgspec.structs.replace(asked, thresholds=thresholds)
        evidence.plan = msgspec.structs.replace(evidence.plan, plan=plan)
        found = read_thresholds(evidence, read_latency(evidence), read_totals(evidence))

        assert [(one.name, one.value, one.kept) for one in found] == [(name, value, limit == kept)]


def test_a_health_check_that_could_not_be_read_counts_as_slow(tmp_path: Path) -> None:
    rows = golden.golden_run()
    rows.plan["plan"]["thresholds"] = {"health_p99_ms": 100.0}
    del rows.samples[0]["health_ms"]
    evidence = open_evidence(rows.write(tmp_path / "run"))
    make_answered(evidence)

    found = read_thresholds(evidence, read_latency(evidence), read_totals(evidence))
    assert [(one.value, one.kept) for one in found] == [(1000.0, False)]


def test_nothing_measured_is_not_a_threshold_kept(tmp_path: Path) -> None:
    rows = golden.golden_run()
    rows.plan["plan"]["thresholds"] = {"health_p99_ms": 100.0}
    rows.samples.clear()
    evidence = open_evidence(rows.write(tmp_path / "run"))
    make_answered(evidence)

    found = read_thresholds(evidence, read_latency(evidence), read_totals(evidence))
    assert [(one.value, one.kept) for one in found] == [(None, False)]
