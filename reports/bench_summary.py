"""The bench's figures as a person reads them: a table with ratios, a picture, and JSON."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.table import Table

from scenarios.history import BenchRow

BASELINE = "row_lock"
STYLES = {
    "batch": {"color": "#1b6ca8", "marker": "o", "linestyle": "-"},
    "row_lock": {"color": "#b8860b", "marker": "s", "linestyle": "--"},
    "optimistic": {"color": "#b01030", "marker": "^", "linestyle": "-."},
}


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The median round of a cell; ratios are to row_lock in the same cell and to the strategy's own best."""

    row: BenchRow
    throughput_ratio: float | None
    p99_ratio: float | None
    of_own_best: float


def summarise(rows: list[BenchRow]) -> list[Compared]:
    """Medians over the rounds, with ratios within the run; absolute figures are the machine's."""
    cells: dict[tuple[str, str, str, int], list[BenchRow]] = {}
    for row in rows:
        cells.setdefault((row.level, row.tool, row.strategy, row.users), []).append(row)
    middles = {cell: median_row(same) for cell, same in cells.items()}
    compared = []
    for (level, tool, strategy, users), row in middles.items():
        baseline = middles.get((level, tool, BASELINE, users))
        best = max(
            other.trades_per_s
            for (its_level, its_tool, its_strategy, _), other in middles.items()
            if (its_level, its_tool, its_strategy) == (level, tool, strategy)
        )
        compared.append(
            Compared(
                row=row,
                throughput_ratio=row.trades_per_s / baseline.trades_per_s if baseline else None,
                p99_ratio=row.p99_ms / baseline.p99_ms if baseline and baseline.p99_ms else None,
                of_own_best=row.trades_per_s / best,
            )
        )
    return compared


def median_row(same: list[BenchRow]) -> BenchRow:
    """The round whose trades/s is the median, whole, so that its figures belong together."""
    middle = statistics.median_low(row.trades_per_s for row in same)
    return next(row for row in same if row.trades_per_s == middle)


def bench_table(summary: list[Compared]) -> Table:
    """One line a cell, grouped as measured."""
    table = Table(
        box=None,
        header_style="dim",
        padding=(0, 1, 0, 0),
        caption="ratios are to row_lock in the same cell, of best to its own best",
        caption_justify="left",
    )
    for heading in ("measured by", "users", "strategy"):
        table.add_column(heading, no_wrap=True)
    for heading in ("trades/s", "ratio", "of best", "p50 ms", "p99 ms", "p99 ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for one in summary:
        row = one.row
        here = (row.level, row.tool, row.users)
        if before not in (None, here):
            table.add_row()
        before = here
        table.add_row(
            *(f"{row.level} {row.tool}", str(row.users), row.strategy),
            f"{row.trades_per_s:,.0f}",
            "–" if one.throughput_ratio is None else f"{one.throughput_ratio:.2f}",
            f"{one.of_own_best:.2f}",
            milliseconds(row.p50_ms),
            milliseconds(row.p99_ms),
            "–" if one.p99_ratio is None else f"{one.p99_ratio:.3f}",
        )
    return table


def milliseconds(value: float) -> str:
    """Three significant digits below a second, whole milliseconds above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_summary(folder: Path, summary: list[Compared]) -> None:
    """bench.json and bench.png in the bench's folder."""
    (folder / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    if summary:
        bench_figure(summary).savefig(folder / "bench.png", dpi=110)


def bench_figure(summary: list[Compared]) -> Figure:
    """Throughput above, p99 below, over the number of users; one column a level and tool."""
    columns = list(dict.fromkeys((one.row.level, one.row.tool) for one in summary))
    figure = Figure(figsize=(1.5 + 4.2 * len(columns), 7), layout="constrained")
    grid = figure.subplots(2, len(columns), sharey="row", squeeze=False)
    users = sorted({one.row.users for one in summary})
    for index, (level, tool) in enumerate(columns):
        for axes, field in zip(grid[:, index], ("trades_per_s", "p99_ms"), strict=True):
            for strategy, style in STYLES.items():
                points = sorted(
                    (one.row.users, float(getattr(one.row, field)))
                    for one in summary
                    if (one.row.level, one.row.tool, one.row.strategy) == (level, tool, strategy)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), label=strategy, **style)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(users, [str(count) for count in users])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,g}"))
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        grid[0, index].set_title(f"{level.upper()} level, {tool}")
        grid[1, index].set_xlabel("concurrent users on one market")
    grid[0, 0].set_ylabel("trades a second (log)")
    grid[1, 0].set_ylabel("p99 latency (ms, log)")
    grid[0, 0].legend(frameon=False)
    return figure
