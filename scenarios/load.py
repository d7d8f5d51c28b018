"""The load child: `python -m scenarios.load RUN --host URL` runs a run's scenario to the end of its stages.

It checks what can be checked and then becomes Locust, in the same process, so that signals reach it. Status
rows come out on standard output, one a second: `setup` first, then the names of the stages, then `drain`.

SIGTERM and SIGINT stop the load at once: nothing begins any more, requests in flight have up to two seconds
(less if the plan's patience is less) and are then recorded as `info`, and every file gets its end row.
Exit 0: the load did its job, whatever came back. 2: it cannot work (message on standard error). 1: it broke.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from scenarios.node import CHAIN_VARIABLE, chain_access
from scenarios.plan import SCENARIOS, Plan, PlanError, read_run_plan
from scenarios.wire import resolve

FOLDER = Path(__file__).resolve().parent


def check_scenario(plan: Plan) -> None:
    """Raise PlanError when the plan's scenario does not exist."""
    if plan.scenario not in SCENARIOS or not scenario_file(plan).is_file():
        raise PlanError(f"no scenario {plan.scenario!r}; the scenarios are {', '.join(sorted(SCENARIOS))}")


def scenario_file(plan: Plan) -> Path:
    """The locustfile of a plan's scenario."""
    return FOLDER / f"{plan.scenario}.py"


def locust_command(plan: Plan, host: str) -> list[str]:
    """The command that Locust is started with."""
    load = plan.load
    stop_timeout_s = math.ceil(load.patience_s + load.answer_budget_s) + 1  # Locust takes whole seconds
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(scenario_file(plan))),
        # The shape drains the users itself; this is only how long Locust waits for those it stops.
        *("--headless", "--host", host, "--stop-timeout", str(stop_timeout_s)),
        *("--only-summary", "--loglevel", "WARNING"),
    ]
    if load.processes > 1:
        port = str(free_port())
        command += [
            *("--processes", str(load.processes), "--master-bind-host", "127.0.0.1"),
            *("--master-bind-port", port, "--master-host", "127.0.0.1", "--master-port", port),
        ]
    return command


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: list[str] | None = None) -> int:
    """Check and become Locust; returns only when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m scenarios.load", description="Run a run's load.")
    parser.add_argument("run", type=Path, help="a run directory with plan.json")
    parser.add_argument("--host", required=True, help="where clients talk to, http://host:port")
    asked = parser.parse_args(arguments)
    run: Path = asked.run.resolve()
    try:
        plan = read_run_plan(run).plan
        check_scenario(plan)
    except PlanError as error:
        return refuse(str(error))
    if urlsplit(asked.host).scheme != "http" or not urlsplit(asked.host).hostname:
        return refuse(f"--host {asked.host}: not a http:// URL")
    if not os.environ.get("SEATRIAL_ADMIN_TOKEN"):
        return refuse("SEATRIAL_ADMIN_TOKEN is not set; the set-up needs the target's admin token")
    if plan.chain is not None:
        try:
            resolve(chain_access(os.environ.get(CHAIN_VARIABLE, "")).rpc)
        except ValueError as error:
            return refuse(str(error))
    if (run / "history").exists() and any((run / "history").iterdir()):
        return refuse(f"{run / 'history'}: has files already; a run has one load")
    return become(locust_command(plan, asked.host), run)


def become(command: list[str], run: Path) -> NoReturn:
    """Replace this program by Locust, which finds the run directory in its environment."""
    above = os.environ.get("PYTHONPATH")
    path = str(FOLDER.parent) + (os.pathsep + above if above else "")
    os.execve(command[0], command, {**os.environ, "SEATRIAL_RUN": str(run), "PYTHONPATH": path})


def refuse(message: str) -> int:
    """Say why nothing was started."""
    print(f"seatrial: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
