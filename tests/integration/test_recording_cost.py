"""The command that measures what recording costs: it runs, and its arithmetic is right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.recording_cost import VARIANTS, Measured, costs, table

PROJECT = Path(__file__).resolve().parents[2]

ROUNDS = [
    {
        "recorded": Measured(rate, 50.0),
        "unrecorded": Measured(1_000.0, 40.0),
        "fast_http_user": Measured(500.0, 100.0),
    }
    for rate in (900.0, 800.0, 700.0)
]


def test_the_cost_is_a_share_of_the_rate_of_the_same_round() -> None:
    assert costs(ROUNDS) == pytest.approx([0.1, 0.2, 0.3])


def test_the_table_has_medians_and_their_spread() -> None:
    said = table(ROUNDS)
    assert re.search(r"^recorded +800 +50\.0$", said, re.MULTILINE)
    assert "recording costs 20.0% (10.0% to 30.0%) of the same client's rate" in said
    assert "1.60 times as fast as FastHttpUser (1.40 to 1.80)" in said


def test_the_command_measures_every_variant() -> None:
    command = [sys.executable, "-m", "scenarios.recording_cost"]
    command += ["--rounds", "1", "--seconds", "0.3", "--users", "5"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    for variant in VARIANTS:
        assert re.search(rf"^{variant} +[\d,]+ +[\d.]+$", done.stdout, re.MULTILINE), done.stdout
