"""Every invariant catches the bug that was planted for it, in a short run on real parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.planted.conftest import Judged
from tests.planted.launch import planted_bugs

# What else a bug must break, where the books cannot be wrong in one respect alone.
ALSO: dict[str, set[str]] = {}


@pytest.mark.parametrize("name", planted_bugs())
def test_a_planted_bug_is_caught_by_its_invariant(name: str, planted_runs: Callable[[str], Judged]) -> None:
    judged = planted_runs(name)

    assert judged.exit_code == 1, judged.output
    assert judged.broken == {name, *ALSO.get(name, set())}, judged.output
    assert judged.invariant(name)["witness"], judged.output
