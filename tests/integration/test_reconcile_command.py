"""`reconcile`, `pause` and `resume` as cron and an administrator run them: processes, exit codes, JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from chaos.ports import free_port
from chaos.target import REFERENCE_COMMAND
from reference_server import reconcile_speed
from reference_server.__main__ import main
from tests.conftest import MarketDatabase
from tests.integration.chain_figures import USDC, Chain
from tests.integration.desk import Desk

TIMEOUT_S = 60


class Ran(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    output: str
    error: str

    @property
    def report(self) -> Any:
        """Its standard output, one JSON value."""
        return json.loads(self.output)


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


@pytest.fixture
def chain(desk: Desk) -> Chain:
    return Chain(desk)


def call(desk: Desk, command: str, *words: str, token: str | None = None, dsn: str | None = None) -> Ran:
    """One of the server's commands in a process of its own."""
    environment = os.environ | {"SEATRIAL_DSN": dsn or desk.database.admin_dsn}
    environment["SEATRIAL_ADMIN_TOKEN"] = token or ""
    ran = subprocess.run(
        [*REFERENCE_COMMAND, command, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def given(micro: int, block: int) -> tuple[str, ...]:
    return ("--custody-micro", str(micro), "--block", str(block))


def asked() -> tuple[str, ...]:
    """A node that nobody asks."""
    return ("--rpc", "http://127.0.0.1:1", "--vault", "0x" + "1" * 40, "--usdc", "0x" + "2" * 40)


def test_the_exit_code_is_the_verdict_and_the_output_the_run(desk: Desk, chain: Chain) -> None:
    custody = chain.custody_micro()
    expected = [
        (custody, 0, "clean"),
        (custody - 1, 1, "alert"),
        (custody + 100 * USDC, 3, "pause"),
        (custody, 0, "clean"),
    ]
    for block, (micro, code, verdict) in enumerate(expected):
        ran = call(desk, "reconcile", *given(micro, block))
        assert (ran.code, ran.report["verdict"], ran.error) == (code, verdict, "")
        assert ran.report["difference_micro"] == micro - custody
        assert ran.report["block_number"] == block
    assert ran.report["trading_paused"] is True
    lagging = call(desk, "reconcile", *given(custody, 0))
    assert (lagging.code, lagging.report["verdict"]) == (4, "inconclusive")
    assert call(desk, "reconcile", *given(custody, 0), "--lower-block", "--full", "--snapshot").code == 0


def test_books_that_do_not_answer_are_inconclusive(desk: Desk) -> None:
    nowhere = f"host=127.0.0.1 port={free_port()} user=x dbname=x"
    ran = call(desk, "reconcile", *given(0, 1), dsn=nowhere)
    assert (ran.code, ran.report["verdict"]) == (4, "inconclusive")
    assert ran.report["trouble"].startswith("the books: ")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--custody-micro", "5"],
        ["--block", "5"],
        ["--custody-micro", "-5", "--block", "5"],
        ["--custody-micro", "5.0", "--block", "5"],
        ["--rpc", "http://127.0.0.1:1"],
        [*given(0, 1), "--rpc", "http://127.0.0.1:1", "--vault", "0x0", "--usdc", "0x0"],
        [*given(0, 1), "--dsn", "not a dsn"],
        [*given(0, 1), "--every", "1"],
        *([*asked(), "--every", seconds] for seconds in ("0.09", "86401", "nan", "-1", "often")),
    ],
)
def test_a_command_that_says_nothing_or_too_much_is_usage(
    desk: Desk, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEATRIAL_DSN", desk.database.admin_dsn)
    try:
        code: object = main(["reconcile", *words])
    except SystemExit as refused:  # the parser's own
        code = refused.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert "reconcile" in shown.err
    assert desk.row("SELECT count(*) FROM reconciliation_runs") == (0,)


def test_without_a_database_a_command_is_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEATRIAL_DSN", raising=False)
    assert main(["reconcile", *given(0, 1)]) == 2
    assert main(["pause", "--reason", "drill"]) == 2
    assert main(["resume", "--reason", "over"]) == 2


def test_an_administrator_pauses_and_after_a_clean_run_resumes(desk: Desk, chain: Chain) -> None:
    admin = desk.database.admin_token
    paused = call(desk, "pause", "--reason", "drill")
    assert (paused.code, paused.report["paused"], paused.report["reason"]) == (0, True, "drill")
    assert call(desk, "resume", "--reason", "over").code == 2  # nobody's token
    for token in ("not a token", admin):
        refused = call(desk, "resume", "--reason", "over", token=token)
        assert (refused.code, refused.output) == (1, "")
    assert "clean reconciliation" in refused.error
    assert call(desk, "reconcile", *given(chain.custody_micro(), 1)).code == 0
    assert call(desk, "resume", "--reason", "over", token="not a token").code == 1
    resumed = call(desk, "resume", "--reason", "over", token=admin)
    assert (resumed.code, resumed.report["paused"], resumed.report["changed_by"]) == (0, False, "admin")


def test_the_speed_command_fills_a_database_that_reconciles(
    market_database: MarketDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dsn", market_database.admin_dsn, "--entries", "2000", "--users", "30"]
    monkeypatch.setattr("sys.argv", ["reconcile_speed", *words])
    assert reconcile_speed.main() in (0, 1)
    shown = capsys.readouterr().out
    assert "2,000" in shown
    assert "nothing changed" in shown
    assert reconcile_speed.main() == 2  # money has moved
