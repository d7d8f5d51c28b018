"""A verdict as junit.xml and as Markdown: what failed is a failure, what is unknown an error."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec

from reports.junit import junit_xml
from reports.summary import summary_markdown
from reports.verdict import Verdict

HOSTILE = 'a|b <script> \x00\x1b & "c"\n## d'


def verdict(word: str = "fail") -> Verdict:
    def invariant(name: str, group: str, result: str, **more: object) -> dict[str, object]:
        told = {"name": name, "group": group, "statement": f"{name} holds.", "result": result, "unit": "rows"}
        return told | {"examined": 12_345, "violations": 0, "witness": [], "detail": None} | more

    document = {
        "verdict": word,
        "exit_code": 1,
        "reasons": ["balances: 2 violations in 12,345 rows"],
        "run": "20260102-hot",
        "plan": "quick",
        "seed": 7,
        "invariants": [
            invariant("held_one", "ledger", "held"),
            invariant("broken_one", "ledger", "broken", violations=2, witness=[{"key": HOSTILE}]),
            invariant("unknown_one", "trades", "inconclusive", detail="examined nothing"),
        ],
        "thresholds": [
            {"name": "steady_p99_ms", "limit": 5.0, "value": 9.0, "kept": False},
            {"name": "steady_p50_ms", "limit": 5.0, "value": 1.0, "kept": True},
            {"name": "health_p99_ms", "limit": 5.0, "value": None, "kept": False},
        ],
        "latency": {
            "all": {
                "response": {
                    "count": 1000,
                    "p50_ms": 1.0,
                    "p95_ms": 2.0,
                    "p99_ms": 3.0,
                    "p999_ms": 4.0,
                    "max_ms": 5.0,
                }
            }
        },
        "totals": {"operations": 1000},
        "faults": [{"fault": "kill_server", "planned": 2, "landed": 1, "healed": 1}],
    }
    return msgspec.convert(document, Verdict)


def cases(document: bytes) -> dict[str, ElementTree.Element]:
    found = ElementTree.fromstring(document).iter("testcase")
    return {case.get("name", ""): case for case in found}


def test_each_invariant_is_one_test() -> None:
    found = cases(junit_xml(verdict()))

    assert [name for name in found if name.endswith("_one")] == ["held_one", "broken_one", "unknown_one"]
    assert found["held_one"].get("classname") == "seatrial.ledger"
    assert found["held_one"].findtext("system-out") == "examined 12345 rows"


def test_a_broken_invariant_is_a_failure_with_its_witness() -> None:
    failure = cases(junit_xml(verdict()))["broken_one"].find("failure")

    assert failure is not None
    assert failure.get("message") == "2 violations in 12345 rows: broken_one holds."
    assert "<script>" in (failure.text or "")


def test_an_inconclusive_invariant_is_an_error() -> None:
    error = cases(junit_xml(verdict()))["unknown_one"].find("error")

    assert error is not None
    assert error.get("message") == "examined nothing"


def test_a_crossed_threshold_is_a_failure_and_an_unmeasured_one_an_error() -> None:
    found = cases(junit_xml(verdict()))

    assert found["steady_p99_ms"].find("failure") is not None
    assert found["steady_p50_ms"].find("failure") is None
    assert found["health_p99_ms"].find("error") is not None


def test_the_suites_count_what_is_in_them() -> None:
    root = ElementTree.fromstring(junit_xml(verdict()))

    assert [suite.get("name") for suite in root] == ["ledger", "trades", "thresholds", "verdict"]
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("7", "3", "2")


def test_a_pass_has_neither_failure_nor_error() -> None:
    clean = msgspec.structs.replace(verdict("pass"), invariants=verdict().invariants[:1], thresholds=[])
    root = ElementTree.fromstring(junit_xml(clean))

    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "0", "0")


def test_an_inconclusive_run_is_an_error_even_without_an_inconclusive_invariant() -> None:
    doubtful = msgspec.structs.replace(verdict("inconclusive"), invariants=[], thresholds=[])

    assert cases(junit_xml(doubtful))["verdict"].find("error") is not None


def test_the_summary_begins_with_the_word() -> None:
    for word in ("pass", "fail", "inconclusive", "slow"):
        assert word in summary_markdown(verdict(word)).splitlines()[0]


def test_the_summary_shows_invariants_latencies_thresholds_and_faults() -> None:
    page = summary_markdown(verdict())

    assert "| ✅ | `held_one` | 12,345 rows | 0 |  |" in page
    assert "| all | response | 1,000 | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 |" in page
    assert "| ❌ | steady_p99_ms | 5 | 9 |" in page
    assert "| kill_server | 2 | 1 | 1 |" in page


def test_a_hostile_witness_stays_inside_its_cell() -> None:
    line = next(line for line in summary_markdown(verdict()).splitlines() if "broken_one" in line)

    assert line.replace("\\|", "").count("|") == 6
    assert "<script>" not in line
