"""The verdict as a terminal shows it."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
from rich.console import Console

from reports.judge import judge
from reports.verdict import Verdict
from reports.verdict_table import VALUE_LENGTH_MAX, verdict_table
from tests import golden


def shown(verdict: Verdict) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(verdict_table(verdict))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pass_says_so_and_how_much_was_examined(tmp_path: Path) -> None:
    verdict = judge(golden.run(tmp_path))

    text = shown(verdict)

    assert "PASS" in text
    assert f"{len(verdict.invariants)} of {len(verdict.invariants)} invariants held" in text
    for one in verdict.invariants:
        assert f"{one.name} " in text
        assert f"{one.examined:,} {one.unit}" in text


def test_a_breach_is_told_with_its_statement_and_its_first_witness(tmp_path: Path) -> None:
    rows = golden.golden_run()
    rows.entry(3)["credit_micro"] += 1

    text = shown(judge(rows.write(tmp_path / "run")))

    after = text[text.index(" FAIL ") :]
    assert "✗ every_transaction_balances  The entries of every transaction sum to zero" in after
    assert "difference_micro 1" in after


def test_a_long_witness_is_cut(tmp_path: Path) -> None:
    verdict = judge(golden.run(tmp_path))
    (first, *others) = verdict.invariants
    broken = msgspec.structs.replace(first, result="broken", violations=1, witness=[{"row": "x" * 5_000}])

    text = shown(msgspec.structs.replace(verdict, verdict="fail", invariants=[broken, *others]))

    assert text.count("x") < VALUE_LENGTH_MAX + 100
    assert "…" in text
