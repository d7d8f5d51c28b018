"""A verdict as junit.xml, so that a CI shows each invariant as one test.

A broken invariant or a crossed threshold is a failure; what could not be decided is an error.
"""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from reports.verdict import InvariantResult, Threshold, Verdict

# XML 1.0 has no way to write these, not even escaped; a witness may hold any bytes a reply did.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(verdict: Verdict) -> bytes:
    """The document; suites are the groups of invariants, then `thresholds`, then `record`."""
    root = ElementTree.Element("testsuites", name=f"seatrial {verdict.plan} {verdict.run}")
    groups: dict[str, list[InvariantResult]] = {}
    for one in verdict.invariants:
        groups.setdefault(one.group, []).append(one)
    for group, members in groups.items():
        suite = ElementTree.SubElement(root, "testsuite", name=group)
        for one in members:
            add_invariant(suite, one)
    if verdict.thresholds:
        suite = ElementTree.SubElement(root, "testsuite", name="thresholds")
        for limit in verdict.thresholds:
            add_threshold(suite, limit)
    add_verdict(ElementTree.SubElement(root, "testsuite", name="verdict"), verdict)
    for element in [*root, root]:
        cases = list(element.iter("testcase"))
        element.set("tests", str(len(cases)))
        element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
        element.set("errors", str(sum(case.find("error") is not None for case in cases)))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def add_invariant(suite: ElementTree.Element, one: InvariantResult) -> None:
    """One invariant as a test case."""
    case = new_case(suite, one.name)
    if one.result == "broken":
        message = f"{one.violations} violations in {one.examined} {one.unit}: {one.statement}"
        lines = [json.dumps(row, ensure_ascii=False) for row in one.witness]
        add_outcome(case, "failure", message, "\n".join([one.detail, *lines] if one.detail else lines))
    elif one.result == "inconclusive":
        lines = [json.dumps(row, ensure_ascii=False) for row in one.witness]
        add_outcome(case, "error", one.detail or "inconclusive", "\n".join([one.statement, *lines]))
    else:
        out = ElementTree.SubElement(case, "system-out")
        out.text = f"examined {one.examined} {one.unit}"


def add_threshold(suite: ElementTree.Element, one: Threshold) -> None:
    """One threshold as a test case."""
    case = new_case(suite, one.name)
    if one.value is None:
        add_outcome(case, "error", "nothing was measured", "")
    elif not one.kept:
        add_outcome(case, "failure", f"{one.value:g}, the limit is {one.limit:g}", "")
    else:
        out = ElementTree.SubElement(case, "system-out")
        out.text = f"{one.value:g}, the limit is {one.limit:g}"


def add_verdict(suite: ElementTree.Element, verdict: Verdict) -> None:
    """The verdict as a test case of its own, for the doubts that belong to no invariant."""
    case = new_case(suite, "verdict")
    reasons = "\n".join(verdict.reasons)
    if verdict.verdict == "inconclusive":
        add_outcome(case, "error", "inconclusive", reasons)
    elif verdict.verdict != "pass":
        add_outcome(case, "failure", verdict.verdict, reasons)


def new_case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=f"seatrial.{suite.get('name')}", name=name, time="0"
    )


def add_outcome(case: ElementTree.Element, kind: str, message: str, text: str) -> None:
    outcome = ElementTree.SubElement(case, kind, message=writable(message))
    outcome.text = writable(text)


def writable(text: str) -> str:
    """The text with what XML cannot hold replaced."""
    return UNWRITABLE.sub("\ufffd", text)
