"""Every invariant catches the bug that was planted for it, in a short run on real parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reports.invariants.registry import load_registry
from tests.planted.conftest import Judged

# What else a bug must break, where the books cannot be wrong in one respect alone.
ALSO = {
    # The second effect of a key comes after its first was answered, which no order of operations explains.
    "a_key_applies_once": {"trades_are_strictly_serializable"},
    # A pool that is Cint covers every payout by arithmetic, so one that does not is not Cint; and nobody
    # asked for what swept it.
    "pools_cover_every_payout": {"pools_equal_lmsr_cost", "every_effect_has_a_cause"},
    # The vault pays an id once, so who pays twice does it under another id, which nobody has signed or asked
    # for; and the money is gone, which the system's own reconciliation finds.
    "chain_effects_happen_once": {
        "nothing_leaves_an_aborted_transaction",
        "withdrawals_are_paid_once",
        "custody_equals_the_chain",
        "reconciliation_finds_exactly_the_drift",
    },
    # What is in the vault and in no books is a drift, which the system finds too; the trial planted none.
    "custody_equals_the_chain": {"reconciliation_finds_exactly_the_drift"},
}


OF_THE_SYSTEM = [known.name for known in load_registry() if known.group != "trial"]


@pytest.mark.parametrize("name", OF_THE_SYSTEM)
def test_a_planted_bug_is_caught_by_its_invariant(name: str, planted_runs: Callable[[str], Judged]) -> None:
    judged = planted_runs(name)

    assert judged.exit_code == 1, judged.output
    assert judged.broken == {name, *ALSO.get(name, set())}, judged.output
    assert judged.invariant(name)["witness"], judged.output
