"""How Locust runs a scenario: set-up before the users, counts each second, a clean end.

Two ways lead here. `python -m scenarios.load RUN` names a run directory in SEATRIAL_RUN: Locust is headless,
goes by the plan's stages, and prints a Status row a second. `locust -f scenarios/hot_market.py` has none:
a fresh directory runs/<time>-<scenario>-adhoc/ is made, a plan gives mix and pace, and users come and go as
Locust's own page or options say.

With `--processes N` Locust forks workers; the master makes the markets, tells each worker of them, and the
load begins when all have accounts for their users. Every process has a history file of its own.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import gevent
import msgspec
from gevent.queue import Empty, Queue
from locust import argument_parser

from scenarios.crew import Crew, Place
from scenarios.intents import Venue
from scenarios.live import Overview, Tally
from scenarios.node import CHAIN_VARIABLE, chain_access
from scenarios.plan import PlanError, RunPlan, load_plan, read_run_plan
from scenarios.replies import Seen
from scenarios.run_directory import RunDirectoryError, create_run
from scenarios.venue import SetupError
from scenarios.wire import resolve

PROJECT = Path(__file__).resolve().parent.parent
ADHOC_PLANS = {"hot_market": "hot", "money_in_out": "money"}
ABANDON_GRACE_S = 2.0
WORKERS_READY_TIMEOUT_S = 120.0
VENUE_MESSAGE = "seatrial_venue"
READY_MESSAGE = "seatrial_ready"
TALLY_MESSAGE = "seatrial_tally"
ABANDON_MESSAGE = "seatrial_abandon"


class Engine:
    """One scenario in one Locust process; `crew` is None until the set-up."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.crew: Crew | None = None
        self.admin_token = os.environ.get("SEATRIAL_ADMIN_TOKEN", "")
        if not self.admin_token:
            give_up("SEATRIAL_ADMIN_TOKEN is not set; `seatrial serve` prints the one to use")
        named = os.environ.get("SEATRIAL_RUN")
        self.shaped = named is not None
        self._run = Path(named) if named else None
        self._environment: Any = None
        self._overview = Overview()
        self._ready: Queue[str] = Queue()

    def attach(self, events: Any) -> None:
        """Listen to Locust's events."""
        events.init.add_listener(self._on_init)
        events.test_start.add_listener(self._on_test_start)
        events.user_error.add_listener(self._on_user_error)
        events.quitting.add_listener(self._on_quitting)

    @property
    def user_count(self) -> int:
        """Users now, in all processes."""
        if self._environment.parsed_options.master:
            return self._overview.users
        count: int = self._environment.runner.user_count
        return count

    def _begin_load(self) -> None:
        """The first user comes now; tells the live view at once, for faults count from here."""
        assert self.crew is not None
        if self.crew.load_started_ns:
            return
        self.crew.begin_load()
        gevent.spawn(self.crew.close_side_market)
        self._print_status()

    # --- Locust's events

    def _on_init(self, environment: Any, runner: Any, **_: Any) -> None:
        self._environment = environment
        options = environment.parsed_options
        if not environment.stop_timeout:
            environment.stop_timeout = ABANDON_GRACE_S
        if self.shaped:
            environment.process_exit_code = 0
            for number in (signal.SIGINT, signal.SIGTERM):
                gevent.signal_handler(number, self._abandon)
        if options.worker:
            runner.register_message(VENUE_MESSAGE, self._on_venue)
            runner.register_message(ABANDON_MESSAGE, self._on_abandon)
            # A worker asks for these a hundred times a message from its master, which would stall it 50 ms.
            argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)
            return
        if options.master:
            runner.register_message(TALLY_MESSAGE, self._on_tally)
            runner.register_message(READY_MESSAGE, self._on_ready)
        self._set_up(options)
        if self.shaped:
            gevent.spawn(self._tell_every_second)

    def _set_up(self, options: Any) -> None:
        """Make the run directory if there is none, the markets, and the accounts known to be needed."""
        try:
            asked = self._asked(options.host)
            assert self._run is not None
            self.crew = self._new_crew(self._run, asked, options.host, Place("w0"))
            if self.shaped:
                self._print_status()
            self.crew.open_venue()
            if self.shaped and not options.master:
                self.crew.open_accounts(max(stage.users for stage in asked.plan.stages))
        except (SetupError, PlanError, RunDirectoryError, ValueError, OSError) as error:
            if self.crew is not None:
                self.crew.close()
                if self.crew.live.abandoned:
                    sys.exit(0)
            give_up(str(error))

    def _on_test_start(self, environment: Any, **_: Any) -> None:
        options, runner = environment.parsed_options, environment.runner
        if options.worker:
            return
        assert self.crew is not None
        try:
            if options.master:
                self._ready_workers(runner, options.host)
            elif not self.shaped:
                self.crew.open_accounts(runner.target_user_count)
        except SetupError as error:
            self._fail(str(error))
        self._begin_load()

    def _ready_workers(self, runner: Any, host: str) -> None:
        """Tell every worker of the markets and wait until all have accounts; raises SetupError."""
        assert self.crew is not None
        processes = max(runner.worker_count, 1)
        users = runner.target_user_count
        if self.shaped:
            users = max(stage.users for stage in self.crew.plan.stages)
        told = {
            "run": str(self._run),
            "host": host,
            "venue": msgspec.to_builtins(self.crew.venue),
            "users": -(-users // processes),
            "processes": processes,
        }
        runner.send_message(VENUE_MESSAGE, told)
        for _ in range(processes):
            try:
                trouble = self._ready.get(timeout=WORKERS_READY_TIMEOUT_S)
            except Empty:
                raise SetupError(f"a worker was not ready within {WORKERS_READY_TIMEOUT_S:.0f} s") from None
            if trouble:
                raise SetupError(trouble)

    def _on_venue(self, environment: Any, msg: Any, **_: Any) -> None:
        """In a worker: the markets are made; make the accounts of this worker's users."""
        told = msg.data
        if self.crew is None:
            self._run = Path(told["run"])
            asked = read_run_plan(self._run)
            index = environment.runner.worker_index
            place = Place(f"w{index + 1}", index, told["processes"])
            self.crew = self._new_crew(self._run, asked, told["host"], place)
            self.crew.venue = msgspec.convert(told["venue"], Venue)
            gevent.spawn(self._tell_every_second)
        trouble = ""
        try:
            self.crew.open_accounts(told["users"])
        except SetupError as error:
            trouble = str(error)
            self._fail(trouble)
        self.crew.begin_load()
        environment.runner.send_message(READY_MESSAGE, trouble)

    def _on_ready(self, msg: Any, **_: Any) -> None:
        self._ready.put(msg.data)

    def _on_tally(self, msg: Any, **_: Any) -> None:
        self._overview.add(msg.node_id, msgspec.convert(msg.data, Tally))

    def _on_abandon(self, **_: Any) -> None:
        self._abandon()

    def _on_user_error(self, exception: BaseException, tb: TracebackType | None, **_: Any) -> None:
        """A defect of ours or a full disk: a load that goes on without its record is worth nothing."""
        self._fail("".join(traceback.format_exception(type(exception), exception, tb)))

    def _on_quitting(self, environment: Any, **_: Any) -> None:
        if self.crew is None:
            return
        self.crew.abandon()
        environment.stop_timeout = self._grace_s
        environment.runner.stop()
        self.crew.close()
        if not self.shaped and not environment.parsed_options.worker:
            print(f"seatrial: the history of this load is in {self._run}", file=sys.stderr)

    # --- the rest

    @property
    def _grace_s(self) -> float:
        """How long requests in flight may take when everything else has been stopped."""
        assert self.crew is not None
        return min(self.crew.plan.load.patience_s, ABANDON_GRACE_S)

    def _asked(self, host: str | None) -> RunPlan:
        if not host:
            raise ValueError("no --host; name the server's address, as in --host http://127.0.0.1:8080")
        if self._run is None:
            plan = msgspec.structs.replace(load_plan(ADHOC_PLANS[self.scenario]), faults=[])
            self._run = create_run(
                plan, seed=0, target={"url": host}, runs=Path("runs"), project=PROJECT, ending="adhoc"
            )
        return read_run_plan(self._run)

    def _new_crew(self, run: Path, asked: RunPlan, host: str, place: Place) -> Crew:
        chain = chain_access(os.environ.get(CHAIN_VARIABLE, "")) if asked.plan.chain is not None else None
        crew = Crew(run, asked, resolve(host), self.admin_token, place, chain)
        if not self.shaped:
            crew.watch(self._notify)
        atexit.register(crew.close)  # however this process ends, short of a kill, the file gets its end row
        return crew

    def _notify(self, method: str, action: str, latency_ms: float, seen: Seen) -> None:
        """Tell Locust's own statistics, which only its page and summary show; latency from intended start.

        A refusal that the scenario provokes is no failure there.
        """
        expected = seen.stored or (action == "reuse_key" and seen.code == "idempotency_key_reused")
        self._environment.events.request.fire(
            request_type=method,
            name=action,
            response_time=latency_ms,
            response_length=0,
            exception=None if expected else seen.code or seen.error or f"status {seen.status}",
            context={},
        )

    def _tell_every_second(self) -> None:
        """Print the counts, or in a worker send them to the master, for as long as this process lives."""
        while True:
            gevent.sleep(1)  # the beat of the live view, bounded by the life of this process
            if self._environment.parsed_options.worker:
                assert self.crew is not None
                runner = self._environment.runner
                tally = self.crew.live.take(runner.user_count)
                runner.send_message(TALLY_MESSAGE, msgspec.to_builtins(tally))
            else:
                self._print_status()

    def _print_status(self) -> None:
        if not self.shaped:
            return
        assert self.crew is not None
        runner = self._environment.runner
        users = 0 if self._environment.parsed_options.master else runner.user_count
        self._overview.add(self.crew.writer, self.crew.live.take(users))
        row = msgspec.json.encode(self._overview.status(self.crew.phase))
        sys.stdout.write(row.decode() + "\n")
        sys.stdout.flush()

    def _abandon(self) -> None:
        """Stop now: no operation and no attempt begins any more; the shape ends at its next tick."""
        if self.crew is None:
            return
        self.crew.abandon()
        self._environment.stop_timeout = self._grace_s
        if self._environment.parsed_options.master:
            self._environment.runner.send_message(ABANDON_MESSAGE, {})

    def _fail(self, message: str) -> None:
        if self._environment.process_exit_code != 1:
            print(f"seatrial: {message}", file=sys.stderr)
        self._environment.process_exit_code = 1
        self._abandon()
        if not self.shaped:
            gevent.spawn(self._environment.runner.quit)


def give_up(message: str) -> NoReturn:
    """End this process with a message: the command or its surroundings are wrong."""
    logging.getLogger("locust").setLevel(logging.ERROR)
    print(f"seatrial: {message}", file=sys.stderr)
    sys.exit(2)
