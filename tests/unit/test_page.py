"""The report: its numbers are those of the history, and its page stands alone."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reports.evidence import open_evidence
from reports.judge import abandoned, judge_evidence
from reports.page import write_report, write_report_without_evidence
from reports.series import PERCENTILES, read_series
from reports.verdict import Verdict
from scenarios.history import HistoryError
from tests import golden


def reported(run: Path) -> tuple[Verdict, str]:
    """The verdict on a run, and its page."""
    with contextlib.closing(open_evidence(run)) as evidence:
        verdict = judge_evidence(evidence)
        return verdict, write_report(run, verdict, evidence).read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return golden.run(tmp_path)


def test_the_page_stands_alone_and_says_everything(run: Path) -> None:
    verdict, page = reported(run)

    assert page.count("data:image/png;base64,") == 4
    assert not any(outside in page for outside in ('src="http', "<link", "<script", "@import", "url("))
    for one in verdict.invariants:
        assert one.name in page
        assert one.statement.replace("'", "&#39;") in page
    assert "drop_reply" in page


def test_the_pictures_show_something(run: Path) -> None:
    reported(run)

    for name in ("latency", "timeline", "spectrum", "machine"):
        with Image.open(run / f"{name}.png") as picture:
            shades = np.asarray(picture.convert("L"))
        assert picture.width > 1000
        # Marks, lines and letters: neither an empty frame nor a black one.
        assert 0.01 < float((shades < 200).mean()) < 0.6, name


def test_what_users_named_is_shown_as_text_not_as_markup(tmp_path: Path) -> None:
    rows = golden.golden_run()
    rows.plan["plan"]["about"] = "<script>alert(1)</script>"
    run = rows.write(tmp_path / "run")

    _, page = reported(run)

    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_run_that_cannot_be_judged_still_has_a_page(run: Path) -> None:
    (history, *_) = (run / "history").glob("*.jsonl")
    history.write_bytes(history.read_bytes()[:500])

    with pytest.raises(HistoryError) as refused:
        open_evidence(run)
    verdict = abandoned(run, "interrupted before the load began")
    page = write_report_without_evidence(run, verdict, str(refused.value)).read_text()

    assert "interrupted before the load began" in page
    assert history.name in page


def test_percentiles_of_a_second_are_exact(run: Path) -> None:
    with_evidence = open_evidence(run)
    try:
        series = read_series(with_evidence)
        answered = with_evidence.rows("SELECT floor(at_s) AS second, response_ms, service_ms FROM answered")
    finally:
        with_evidence.close()

    seconds = {int(row["second"]) for row in answered}
    assert len(seconds) > 5
    for second in seconds:
        waits = sorted(row["response_ms"] for row in answered if int(row["second"]) == second)
        for name, level in PERCENTILES.items():
            rank = max(1, math.ceil(level * len(waits)))
            assert series.response_ms[name][second] == pytest.approx(waits[rank - 1]), (second, name)


def test_nobody_answers_before_he_was_asked(run: Path) -> None:
    """The response time holds the service time: it begins no later and ends at the same moment."""
    evidence = open_evidence(run)
    try:
        read_series(evidence)
        count = evidence.scalar("SELECT count(*) FROM answered")
        impossible = evidence.rows("SELECT * FROM answered WHERE response_ms < service_ms OR service_ms < 0")
    finally:
        evidence.close()

    assert count > 20
    assert impossible == []


def test_the_tables_are_the_numbers_behind_the_pictures(run: Path) -> None:
    reported(run)

    with (run / "per_second.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (run / "spectrum.csv").open() as file:
        spectrum = list(csv.DictReader(file))
    verdict = json.loads((run / "plan.json").read_bytes())

    assert len(rows) > 5
    assert sum(float(row["ok_per_s"]) for row in rows) > 20
    assert {row["phase"] for row in spectrum} == {"steady", "fault", "recovery"}
    assert verdict["plan"]["scenario"] == "hot_market"
