"""The bench's ratios, on figures made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.bench import BenchError, bench_plan
from reports.bench_summary import summarise, write_summary
from scenarios.history import BenchRow


def cell(strategy: str, users: int, trades_per_s: float, p99_ms: float, *, number: int = 1) -> BenchRow:
    return BenchRow(
        level="http",
        tool="wrk",
        strategy=strategy,
        users=users,
        round=number,
        seconds=4.0,
        replied_ok=100,
        refused=0,
        booked=100,
        trades_per_s=trades_per_s,
        p50_ms=1.0,
        p99_ms=p99_ms,
        max_ms=p99_ms,
    )


def test_ratios_are_to_row_lock_in_the_same_cell_and_to_the_own_best() -> None:
    rows = [
        cell("batch", 1, 2000, 1),
        cell("row_lock", 1, 1000, 2),
        cell("batch", 100, 8000, 20),
        cell("row_lock", 100, 800, 200),
    ]

    found = {(one.row.strategy, one.row.users): one for one in summarise(rows)}

    assert found["batch", 100].throughput_ratio == pytest.approx(10)
    assert found["batch", 100].p99_ratio == pytest.approx(0.1)
    assert found["batch", 1].of_own_best == pytest.approx(0.25)
    assert found["row_lock", 100].of_own_best == pytest.approx(0.8)
    assert found["row_lock", 1].throughput_ratio == pytest.approx(1)


def test_the_median_round_counts() -> None:
    rows = [cell("batch", 1, speed, 1, number=number) for number, speed in enumerate((10, 9000, 500))]

    (only,) = summarise(rows)

    assert only.row.trades_per_s == 500
    assert only.throughput_ratio is None


def test_the_summary_is_a_picture_and_json(tmp_path: Path) -> None:
    write_summary(tmp_path, summarise([cell("batch", 1, 10, 1), cell("row_lock", 1, 5, 2)]))

    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert '"throughput_ratio": 2.0' in (tmp_path / "bench.json").read_text()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("users", "1,many", "--users: '1,many' is not a list of whole numbers"),
        ("users", "0", "--users: each number is from 1 to 500"),
        ("strategies", "batch,hope", "--strategies: hope is none of batch, row_lock, optimistic"),
        ("levels", "tcp", "--levels: tcp is none of sql, http"),
        ("tools", "k6", "--tools: k6 is none of wrk, locust"),
    ],
)
def test_a_bench_that_makes_no_sense_is_refused_by_option(option: str, value: str, message: str) -> None:
    sound = {"users": "1", "strategies": "batch", "levels": "sql", "tools": "auto"}

    with pytest.raises(BenchError) as refused:
        bench_plan(**{**sound, option: value}, seconds=1, rounds=1)

    assert str(refused.value) == message
