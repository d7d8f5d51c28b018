"""The pictures of a report: what happened on one time axis, with the faults drawn in.

Every figure reads without colour: outcomes differ by marker, percentiles by line weight, response and
service time by solid and dotted lines, fault windows by hatching. Drawn with matplotlib's object interface,
never pyplot, so that drawing has no global state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports.series import OUTCOMES, PERCENTILES, PHASES, Series, Window

WIDTH_IN = 11.0
DPI = 110
OUTCOME_STYLE: dict[str, dict[str, Any]] = {
    "ok": {"marker": ".", "s": 12, "color": "#2f6296", "alpha": 0.5, "linewidths": 0},
    "fail": {"marker": "^", "s": 13, "facecolors": "none", "edgecolors": "#b8860b", "linewidths": 0.6},
    "info": {"marker": "x", "s": 30, "color": "#b01030", "linewidths": 1.1},
}
PERCENTILE_STYLE: dict[str, dict[str, Any]] = {
    "p50": {"color": "#1b6ca8", "linewidth": 1.1},
    "p95": {"color": "#3f8f5f", "linewidth": 1.5},
    "p99": {"color": "#c05a1c", "linewidth": 2.0},
    "max": {"color": "#444444", "linewidth": 0.8, "marker": "o", "markersize": 2.2},
}
PHASE_STYLE: dict[str, dict[str, Any]] = {
    "steady": {"color": "#1b6ca8", "linestyle": "-", "marker": "o"},
    "fault": {"color": "#b01030", "linestyle": "--", "marker": "s"},
    "recovery": {"color": "#b8860b", "linestyle": "-.", "marker": "^"},
}
LABEL_ROWS = 6
OUTCOME_MEANING = {"ok": "done", "fail": "refused, no effect", "info": "outcome unknown to the client"}


def draw_figures(series: Series, folder: Path) -> list[Path]:
    """Write every figure of a run as PNG into its directory and return the paths in report order."""
    drawn = []
    for name, figure in (
        ("latency", latency_figure(series)),
        ("timeline", timeline_figure(series)),
        ("spectrum", spectrum_figure(series)),
        ("machine", machine_figure(series)),
    ):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        drawn.append(path)
    return drawn


def latency_figure(series: Series) -> Figure:
    """Every operation as one mark: when it was due, how long until its answer, how it ended."""
    figure = Figure(figsize=(WIDTH_IN, 4.8), layout="constrained")
    axes = figure.subplots()
    shade(axes, series.windows, labels=True)
    for outcome in ("fail", "ok", "info"):  # what is rare lies on top
        points = series.points[outcome]
        if len(points.at_s):
            label = f"{outcome}: {OUTCOME_MEANING[outcome]} ({points.total:,})"
            axes.scatter(
                points.at_s, points.latency_ms, label=label, rasterized=True, **OUTCOME_STYLE[outcome]
            )
    axes.set_title("Response time of each operation, from its intended start to its answer", loc="left")
    log_milliseconds(axes)
    time_axis(axes, series)
    if any(len(points.at_s) for points in series.points.values()):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, markerscale=1.8)
    return figure


def timeline_figure(series: Series) -> Figure:
    """Percentiles a second, rate by outcome, users and requests in flight, on one time axis."""
    figure = Figure(figsize=(WIDTH_IN, 9.0), layout="constrained")
    latency, rate, users = figure.subplots(3, 1, sharex=True, height_ratios=[5, 3, 2.4])
    shade(latency, series.windows, labels=True)
    for name in PERCENTILES:
        response, service = series.response_ms[name], series.service_ms[name]
        latency.plot(series.second_s, response, label=f"{name} response", **PERCENTILE_STYLE[name])
        plain = {key: value for key, value in PERCENTILE_STYLE[name].items() if not key.startswith("marker")}
        latency.plot(series.second_s, service, linestyle=":", label=f"{name} service", **plain)
    log_milliseconds(latency)
    latency.set_title("Latency a second, from the intended start and on the wire", loc="left")
    legend_above(latency, columns=4)

    shade(rate, series.windows)
    bottom = np.zeros(len(series.second_s))
    hatches = {"ok": "", "fail": "////", "info": "xxxx"}
    colours = {"ok": "#9dbbd8", "fail": "#ecd9a0", "info": "#e09aa8"}
    for outcome in OUTCOMES:
        rate.bar(
            series.second_s,
            series.rate[outcome],
            bottom=bottom,
            width=1.0,
            align="edge",
            color=colours[outcome],
            hatch=hatches[outcome],
            edgecolor="#555555" if hatches[outcome] else colours[outcome],
            linewidth=0,
            label=outcome,
        )
        bottom = bottom + series.rate[outcome]
    rate.set_ylabel("attempts a second")
    rate.set_title("Rate of attempts by outcome", loc="left")
    legend_above(rate, columns=3)

    shade(users, series.windows)
    users.step(series.sample_s, series.users, where="post", color="#222222", label="users")
    users.plot(series.sample_s, series.in_flight, color="#b8860b", linestyle="--", label="requests in flight")
    users.set_ylabel("count")
    users.set_title("Users and requests in flight", loc="left")
    legend_above(users, columns=2)
    users.set_ylim(bottom=0, top=1.1 * max([1, *series.users, *series.in_flight]))
    rate.set_ylim(top=1.1 * max(1.0, float(bottom.max(initial=0))))
    time_axis(users, series)
    return figure


def spectrum_figure(series: Series) -> Figure:
    """Latency over the percentile, on the HDR axis where each step is one more nine, for each phase."""
    figure = Figure(figsize=(WIDTH_IN, 4.8), layout="constrained")
    axes = figure.subplots()
    longest = 1
    for phase in PHASES:
        curve = series.spectra.get(phase)
        if curve is None or not curve.count:
            continue
        longest = max(longest, curve.count)
        nines = -np.log10(1 - np.asarray(curve.quantiles))
        style = {**PHASE_STYLE[phase], "markersize": 3.5, "markevery": max(1, len(nines) // 12)}
        axes.plot(nines, curve.response_ms, label=f"{phase} response ({curve.count:,})", **style)
        axes.plot(nines, curve.service_ms, color=style["color"], linestyle=":", label=f"{phase} service")
    ticks = [0, -np.log10(0.5), *range(1, 2 + int(np.log10(longest)))]
    axes.set_xticks(ticks, ["0", "50"] + [f"{100 * (1 - 10.0**-tick):.6g}" for tick in ticks[2:]])
    axes.set_xlabel("percentile (%)")
    log_milliseconds(axes)
    axes.set_title("Percentile spectrum by phase", loc="left")
    legend_above(axes, columns=3)
    return figure


def machine_figure(series: Series) -> Figure:
    """CPU of every process and the commits and lock waits of PostgreSQL: what was the bottleneck."""
    figure = Figure(figsize=(WIDTH_IN, 5.6), layout="constrained")
    cpu, database = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    shade(cpu, series.windows, labels=True)
    for index, (name, percent) in enumerate(sorted(series.cpu_percent.items())):
        linestyle = ("-", "--", "-.", ":")[index % 4]
        cpu.plot(series.sample_s, percent, linestyle=linestyle, linewidth=1.4, label=name)
    cpu.set_ylabel("CPU (% of one core)")
    cpu.set_ylim(bottom=0)
    cpu.set_title("CPU by process", loc="left")
    if series.cpu_percent:
        legend_above(cpu, columns=6)
    shade(database, series.windows)
    database.plot(series.sample_s, series.commits_per_s, color="#222222", label="commits a second")
    database.plot(
        series.sample_s, series.lock_waits, color="#b01030", linestyle="--", label="waiting for a lock"
    )
    database.set_ylabel("count")
    database.set_ylim(bottom=0)
    database.set_title("PostgreSQL (a gap is a second in which it did not answer)", loc="left")
    legend_above(database, columns=2)
    time_axis(database, series)
    return figure


def shade(axes: Axes, windows: list[Window], *, labels: bool = False) -> None:
    """Hatch each fault window; name each run of the same fault once, staggered so that names do not meet."""
    ends = [-1e9] * LABEL_ROWS
    for window in windows:
        axes.axvspan(
            window.from_s,
            window.to_s,
            facecolor="#f3d9d9",
            edgecolor="#c99a9a",
            hatch="//",
            alpha=0.45,
            zorder=0,
        )
        if not labels:
            continue
        row = next((row for row, end in enumerate(ends) if window.from_s >= end), None)
        if row is None:
            continue
        ends[row] = window.from_s + window.name_width_s
        axes.annotate(
            window.fault,
            (window.from_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -9 - 10 * row),
            textcoords="offset points",
            fontsize=7,
            color="#7a1020",
        )


def legend_above(axes: Axes, *, columns: int) -> None:
    """The legend beside the title, where no curve and no fault's name can meet it."""
    axes.legend(
        ncols=columns,
        fontsize=8,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.1,
        columnspacing=1.4,
    )


def log_milliseconds(axes: Axes) -> None:
    """A log axis in milliseconds with plain numbers."""
    axes.set_yscale("log")
    axes.set_ylabel("latency (ms, log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)


def time_axis(axes: Axes, series: Series) -> None:
    """Seconds since the load began."""
    axes.set_xlim(0, series.end_s)
    axes.set_xlabel("time since the load began (s)")
