"""Small run directories made by hand: a correct one, and one broken copy for every invariant.

from tests import golden

folder = golden.run(tmp_path)                    # a correct run, written

rows = golden.golden_run()                       # the same as rows, to be broken first
rows.entry(3)["credit_micro"] += 1
folder = rows.write(tmp_path / "run")
"""

from __future__ import annotations

from pathlib import Path

from tests.golden.build import golden_run
from tests.golden.recorder import GoldenRun

__all__ = ["GoldenRun", "golden_run", "run"]


def run(tmp_path: Path) -> Path:
    """The correct run, written below a folder."""
    return golden_run().write(tmp_path / "run")
