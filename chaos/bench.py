"""The bench: the trade strategies against each other on one hot market, in one run on one PostgreSQL.

1. One durable cluster, one database, one server process for each strategy, all up all the time.
2. A cell is (level, tool, strategy, users); each gets a fresh market, and the cells of one number of users
   stand side by side in time, so that a slow minute of the machine hits all strategies alike.
3. Each cell warms up first. trades/s come from the books (trades booked since, over the time they span), not
   from what a client claims; a client that counted more than was booked, or far less, is an error.
4. At the end every balance must reconcile: speed bought with a broken ledger is not speed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg

from chaos.data_folder import make_scratch
from chaos.ports import free_port
from chaos.postgres import choose_postgres
from chaos.supervisor import Supervisor
from chaos.target import (
    REFERENCE_COMMAND,
    Access,
    await_healthy,
    create_database,
    install,
    spawn_server,
)
from scenarios.history import BenchRow, JsonLines

STRATEGIES = ("batch", "row_lock", "optimistic")
LEVELS = ("sql", "http")
TOOLS = ("wrk", "locust")
USERS_MAX = 500
# The pools of three servers stay open while the SQL level has a connection for each user.
CONNECTIONS = USERS_MAX + 200
FUNDS_MICRO = 10**14
B_MICRO = 10**12
# Connections are opened and statements planned before the measuring begins.
WARM_UP_S = 1.0
SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
BOOKED = """
SELECT count(*), extract(epoch FROM max(created_at) - min(created_at))::float8
  FROM books.trades WHERE market_id = %s AND created_at >= to_timestamp(%s)
"""


class BenchError(Exception):
    """A cell that could not be measured or whose figures contradict the books."""


class BenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure; `seconds` is the length of a cell."""

    users: list[int]
    strategies: list[str]
    levels: list[str]
    tools: list[str]
    seconds: float
    rounds: int

    def cells(self) -> Iterator[tuple[int, int, str, str, str]]:
        """Round, users, level, tool, strategy, in the order of measuring."""
        for number in range(1, self.rounds + 1):
            for users in self.users:
                for level in self.levels:
                    for tool in self.tools if level == "http" else ["psycopg"]:
                        for strategy in self.strategies:
                            yield number, users, level, tool, strategy


def bench_plan(
    *, users: str, strategies: str, levels: str, tools: str, seconds: float, rounds: int
) -> BenchPlan:
    """The plan that the command line names; raises BenchError naming the option and the rule.

    `auto` means wrk where it is installed, since it leaves the cores to the server, and Locust always.
    """
    if tools == "auto":
        tools = "wrk,locust" if shutil.which("wrk") else "locust"
    try:
        counts = [int(count) for count in users.split(",")]
    except ValueError:
        raise BenchError(f"--users: {users!r} is not a list of whole numbers") from None
    if not all(1 <= count <= USERS_MAX for count in counts):
        raise BenchError(f"--users: each number is from 1 to {USERS_MAX}")
    chosen = {}
    for option, text, known in (
        ("strategies", strategies, STRATEGIES),
        ("levels", levels, LEVELS),
        ("tools", tools, TOOLS),
    ):
        chosen[option] = text.split(",")
        if unknown := sorted(set(chosen[option]) - set(known)):
            raise BenchError(f"--{option}: {', '.join(unknown)} is none of {', '.join(known)}")
    if "wrk" in chosen["tools"] and not shutil.which("wrk"):
        raise BenchError("--tools: wrk is not installed (Debian: apt-get install wrk)")
    return BenchPlan(users=counts, seconds=seconds, rounds=rounds, **chosen)


class Bench:
    """One bench run; a context manager that ends every child."""

    def __init__(self, folder: Path, plan: BenchPlan, *, postgres: str, step: Callable[[str], None]) -> None:
        self.folder = folder
        self.plan = plan
        self._postgres_spec = postgres
        self._step = step
        self._scratch = make_scratch("bench-")
        self._supervisor = Supervisor(folder)
        self._stop_postgres: Callable[[], None] = lambda: None
        self._urls: dict[str, str] = {}
        self._tokens: list[str] = []
        self._user_ids: list[str] = []
        self._runs = itertools.count(1)  # in every key: no run of a client repeats another's
        self._access: Access

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            last_to_first.callback(self._supervisor.close)
            last_to_first.callback(self._stop_postgres)

    def prepare(self) -> None:
        """Start PostgreSQL and a server for each strategy, and make users with money enough."""
        self._supervisor.undo_remove(self._scratch)
        postgres = choose_postgres(
            self._postgres_spec,
            supervisor=self._supervisor,
            data_dir=self._scratch / "pgdata",
            settings={"max_connections": str(CONNECTIONS)},
        )
        self._stop_postgres = postgres.stop
        postgres.start()
        self._step(f"PostgreSQL {postgres.version}, {postgres.kind}: {postgres.why}")
        admin_dsn = create_database(postgres.dsn, f"seatrial_bench_{os.getpid()}")
        self._access = install(REFERENCE_COMMAND, admin_dsn, self.folder / "logs" / "install.log")
        for strategy in self.plan.strategies:
            port = free_port()
            child = spawn_server(
                self._supervisor,
                REFERENCE_COMMAND,
                self._access,
                name=f"server-{strategy}",
                port=port,
                strategy=strategy,
            )
            self._urls[strategy] = f"http://127.0.0.1:{port}"
            await_healthy(self._urls[strategy], child=child)
        with self._admin() as admin:
            self._post(
                admin, "/api/fundings", {"account": "house_treasury", "amount": FUNDS_MICRO}, "treasury"
            )
            for number in range(max(self.plan.users)):
                made = self._post(admin, "/api/users", {"name": f"bench {number}"}, None)
                self._user_ids.append(made["userId"])
                self._tokens.append(made["token"])
                funding = {"userId": made["userId"], "amount": FUNDS_MICRO}
                self._post(admin, "/api/fundings", funding, f"fund-{number}")
        self._step(f"{len(self._tokens)} users, strategies {', '.join(self.plan.strategies)}")

    def measure(self, interrupted: Callable[[], bool]) -> list[BenchRow]:
        """Measure every cell, writing bench.jsonl as it goes; stops early when interrupted."""
        rows: list[BenchRow] = []
        with JsonLines(self.folder / "bench.jsonl") as file:
            for number, users, level, tool, strategy in self.plan.cells():
                if interrupted():
                    self._step("interrupted: what was measured so far stands")
                    break
                row = self._cell(number, users, level, tool, strategy)
                file.append(row)
                rows.append(row)
                self._step(
                    f"round {number}  {level:4} {tool:7} {strategy:10} {users:4} users"
                    f"  {row.trades_per_s:8,.0f} trades/s  p50 {row.p50_ms:8.2f}  p99 {row.p99_ms:8.2f} ms"
                )
        return rows

    def reconciled(self) -> int:
        """How many accounts reconcile; raises BenchError when one does not."""
        assert self._access.admin_dsn is not None
        with psycopg.connect(self._access.admin_dsn) as connection:
            wrong = connection.execute(
                "SELECT count(*) FROM reconcile_all_balances() WHERE NOT reconciled"
            ).fetchone()
            accounts = connection.execute("SELECT count(*) FROM books.accounts").fetchone()
        if wrong is None or accounts is None or wrong[0]:
            raise BenchError(f"after the bench {wrong[0] if wrong else '?'} balances do not reconcile")
        return int(accounts[0])

    def _cell(self, number: int, users: int, level: str, tool: str, strategy: str) -> BenchRow:
        market = self._market(f"{level} {tool} {strategy} {users} {number}")
        tokens = self._tokens[:users]
        if level == "sql":
            said = self._run_sql(market, strategy, users)
        else:
            run_tool = self._run_wrk if tool == "wrk" else self._run_locust
            run_tool(market, self._urls[strategy], tokens, WARM_UP_S)
            since = time.time()
            said = {**run_tool(market, self._urls[strategy], tokens, self.plan.seconds), "since": since}
        with psycopg.connect(self._access.judge_dsn) as connection:
            booked, span_s = connection.execute(BOOKED, [market, said["since"]]).fetchone() or (0, None)
        cell = f"{level} {tool} {strategy} {users} users"
        if not booked or not span_s:
            raise BenchError(f"{cell}: nothing was booked; see {self.folder / 'logs'}")
        if not said["replied_ok"] <= booked <= said["replied_ok"] + 2 * users:
            raise BenchError(f"{cell}: the client counted {said['replied_ok']} trades, the books {booked}")
        return BenchRow(
            level="sql" if level == "sql" else "http",
            tool=tool,
            strategy=strategy,
            users=users,
            round=number,
            seconds=round(span_s, 3),
            replied_ok=said["replied_ok"],
            refused=said["refused"],
            booked=booked,
            trades_per_s=round(booked / span_s, 1),
            p50_ms=round(said["p50_ms"], 3),
            p99_ms=round(said["p99_ms"], 3),
            max_ms=round(said["max_ms"], 3),
        )

    def _run_sql(self, market: int, strategy: str, users: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "scenarios.bench_sql", "--dsn", self._access.server_dsn]
        command += ["--market", str(market), "--strategy", strategy, "--seconds", str(self.plan.seconds)]
        command += ["--users", ",".join(self._user_ids[:users])]
        return _last_json(self._client(command, {}))

    def _run_wrk(self, market: int, url: str, tokens: list[str], seconds: float) -> dict[str, Any]:
        command = ["wrk", "-t1", f"-c{len(tokens)}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", "60s", "-s", str(SCENARIOS / "bench_http.lua"), url]
        env = {
            "SEATRIAL_BENCH_MARKET": str(market),
            "SEATRIAL_BENCH_RUN": str(next(self._runs)),
            "SEATRIAL_BENCH_TOKENS": ",".join(tokens),
        }
        return _last_json(self._client(command, env))

    def _run_locust(self, market: int, url: str, tokens: list[str], seconds: float) -> dict[str, Any]:
        access, figures = self._scratch / "access.json", self._scratch / "figures.json"
        access.write_text(json.dumps({"market": market, "run": next(self._runs), "tokens": tokens}))
        figures.unlink(missing_ok=True)
        command = [sys.executable, "-m", "locust", "-f", str(SCENARIOS / "bench_http.py"), "--headless"]
        command += ["--users", str(len(tokens)), "--spawn-rate", str(len(tokens)), "--only-summary"]
        command += ["--run-time", f"{max(1, round(seconds))}s", "--stop-timeout", "30", "--host", url]
        command += ["--exit-code-on-error", "0"]
        env = {"SEATRIAL_BENCH_ACCESS": str(access), "SEATRIAL_BENCH_OUT": str(figures)}
        self._client(command, env)
        found: dict[str, Any] = json.loads(figures.read_text())
        return found

    def _client(self, command: list[str], env: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.plan.seconds + 120,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"{command[0]} exited {done.returncode}: {done.stderr.strip()[-1500:]}")
        return done.stdout

    def _market(self, question: str) -> int:
        with self._admin() as admin:
            body = {"question": question, "outcomes": ["Yes", "No"], "b": B_MICRO, "feeBps": 100}
            return int(
                self._post(admin, "/api/markets", body, f"market {question}".replace(" ", "-"))["marketId"]
            )

    def _admin(self) -> httpx.Client:
        url = next(iter(self._urls.values()))
        headers = {"Authorization": f"Bearer {self._access.admin_token}"}
        return httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)

    @staticmethod
    def _post(admin: httpx.Client, path: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        reply = admin.post(path, json=body, headers={"Idempotency-Key": f"bench-{key}"} if key else {})
        if reply.status_code not in (200, 201):
            raise BenchError(f"POST {path}: {reply.status_code} {reply.text[:500]}")
        made: dict[str, Any] = reply.json()
        return made


def _last_json(output: str) -> dict[str, Any]:
    """The JSON object in the last line of a client that has one."""
    for line in reversed(output.splitlines()):
        if (start := line.find("{")) >= 0:
            found: dict[str, Any] = json.loads(line[start:])
            return found
    raise BenchError(f"the client printed no figures: {output[-500:]}")
