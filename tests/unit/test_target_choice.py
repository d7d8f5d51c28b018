"""Which targets can be chosen, and how the others are refused."""

from __future__ import annotations

import pytest

from chaos.target import TargetError, target_choice

NOTHING = {"command": "", "postgres": "auto", "strategy": "batch", "url": "", "dsn": "", "admin_dsn": ""}
RUNNING = {**NOTHING, "url": "http://127.0.0.1:8080", "dsn": "host=127.0.0.1 dbname=books"}


def test_the_reference_server_is_the_default() -> None:
    choice = target_choice(**NOTHING)

    assert choice.command[-2:] == ["-m", "reference_server"]
    assert choice.described()["strategy"] == "batch"


def test_a_command_is_split_as_a_shell_would() -> None:
    choice = target_choice(**{**NOTHING, "command": "python3 -m 'my server' --flag"})

    assert choice.command == ["python3", "-m", "my server", "--flag"]


def test_what_the_run_keeps_of_a_dsn_has_no_password() -> None:
    choice = target_choice(**{**NOTHING, "postgres": "postgresql://owner:secret@127.0.0.1/x"})

    assert choice.described()["postgres"] == "dsn"
    assert "secret" not in str(choice.described())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"url": "http://example.org"}, "load and faults stay on this machine"),
        ({"url": "https://127.0.0.1"}, "is not http on loopback"),
        ({"dsn": ""}, "--url: needs --dsn"),
        ({"url": ""}, "--dsn and --admin-dsn belong to --url"),
    ],
)
def test_a_running_target_is_refused_by_option(
    changed: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_ADMIN_TOKEN", "token")

    with pytest.raises(TargetError, match=message):
        target_choice(**{**RUNNING, **changed})


def test_a_running_target_needs_its_admin_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEATRIAL_ADMIN_TOKEN", raising=False)

    with pytest.raises(TargetError, match="set SEATRIAL_ADMIN_TOKEN"):
        target_choice(**RUNNING)


def test_faults_out_of_reach_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEATRIAL_ADMIN_TOKEN", "token")
    choice = target_choice(**RUNNING)

    choice.check_faults({"drop_reply"})
    with pytest.raises(TargetError, match="injects kill_server"):
        choice.check_faults({"drop_reply", "kill_server"})
    with pytest.raises(TargetError, match="terminate_backend, which needs --admin-dsn"):
        choice.check_faults({"terminate_backend"})
