"""A pytest plugin for CI: with CI=true a skipped test fails the session, unless its reason was announced.

A test that needs a container engine or anvil may be skipped where .ci/run could have none: it says so in one
loud line and in SEATRIAL_NO_DOCKER or SEATRIAL_NO_ANVIL, and that very reason has to appear in the skip.
"""

from __future__ import annotations

import os

import pytest

ANNOUNCED = ("SEATRIAL_NO_DOCKER", "SEATRIAL_NO_ANVIL")


class NothingIsSkippedSilently:
    """Collects the skips that nobody announced."""

    def __init__(self) -> None:
        self.silent: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            announced = [told for name in ANNOUNCED if (told := os.environ.get(name))]
            if not any(told in reason for told in announced):
                self.silent.append(f"{report.nodeid}: {reason}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.silent.append(f"{report.nodeid}: a whole module")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.silent and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.silent:
            terminalreporter.section("skipped, which CI=true forbids", red=True)
            for line in self.silent:
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(NothingIsSkippedSilently(), "nothing-is-skipped-silently")
