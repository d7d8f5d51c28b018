"""Small run directories made by hand: a correct one, and one broken copy for every invariant.

from tests import golden

folder = golden.run(tmp_path)                    # a correct run, written

rows = golden.golden_run()                       # the same as rows, to be broken first
rows.entry(3)["credit_micro"] += 1
folder = rows.write(tmp_path / "run")

`money_run` and `golden_money_run` are the same with a chain: money in and out, relay, reconciliation.
"""

from __future__ import annotations

from pathlib import Path

from tests.golden.build import golden_run
from tests.golden.money import golden_money_run
from tests.golden.money_recorder import GoldenMoneyRun
from tests.golden.recorder import GoldenRun

__all__ = ["GoldenMoneyRun", "GoldenRun", "golden_money_run", "golden_run", "money_run", "run"]


def run(tmp_path: Path) -> Path:
    """The correct run, written below a folder."""
    return golden_run().write(tmp_path / "run")


def money_run(tmp_path: Path) -> Path:
    """The correct run with a chain, written below a folder."""
    return golden_money_run().write(tmp_path / "run")
