"""The commands beside `run`: the server alone, the bench, the lists and helps."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from chaos.ports import free_port
from scenarios.plan import load_plan, plan_names
from tests.e2e.command_line import CommandLine, await_condition


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_alone_serves_until_it_is_asked_to_end(
    command_line: CommandLine, number: signal.Signals
) -> None:
    port = free_port()
    process = command_line.start(
        *("serve", "--port", str(port), "--postgres", "embedded"), SEATRIAL_ADMIN_TOKEN="chosen-by-the-user"
    )
    url = f"http://127.0.0.1:{port}"

    with httpx.Client(base_url=url, trust_env=False, timeout=5) as client:

        def healthy() -> bool:
            assert process.poll() is None, process.communicate()
            try:
                return client.get("/api/health").status_code == 200
            except httpx.ConnectError:
                return False

        await_condition(healthy, "the server never became healthy", timeout_s=30)
        markets = client.get("/api/markets", headers={"Authorization": "Bearer chosen-by-the-user"})
        document = client.get("/schema/openapi.json")

    process.send_signal(number)
    out, err = process.communicate(timeout=30)

    assert markets.json() == {"markets": []}
    assert "/api/trade" in document.json()["paths"]
    assert process.returncode == 0, f"{out}\n{err}"
    assert f"serving on {url}" in out
    assert "locust -f scenarios/hot_market.py" in out


def test_the_bench_compares_the_strategies_in_one_run(command_line: CommandLine) -> None:
    done = command_line.run(
        *("bench", "--users", "2", "--seconds", "1", "--tools", "locust", "--postgres", "embedded"),
        *("--runs", str(command_line.runs)),
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    folder = command_line.only_run()
    cells = json.loads((folder / "bench.json").read_bytes())
    assert {(cell["row"]["level"], cell["row"]["strategy"]) for cell in cells} == {
        (level, strategy) for level in ("sql", "http") for strategy in ("batch", "row_lock", "optimistic")
    }
    for cell in cells:
        assert cell["row"]["booked"] > 0
        assert cell["throughput_ratio"] > 0
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"books: [\d,]+ accounts reconcile", done.stdout)


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["serve"], ["bench"], ["plans"]])
def test_every_command_explains_itself(command_line: CommandLine, command: list[str]) -> None:
    done = command_line.run(*command, "--help")

    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert len(done.stdout.splitlines()) > 5


def test_the_plans_are_listed_with_their_length(command_line: CommandLine) -> None:
    done = command_line.run("plans")

    lengths = dict(re.findall(r"^(\w+) +(\d+) s", done.stdout, flags=re.MULTILINE))
    assert lengths == {name: f"{load_plan(name).load_s:.0f}" for name in plan_names()}


def test_nothing_is_written_where_nothing_was_asked(command_line: CommandLine, tmp_path: Path) -> None:
    command_line.run("plans")

    assert not command_line.runs.exists()
    assert list(tmp_path.iterdir()) == []
