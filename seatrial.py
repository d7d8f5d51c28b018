"""The command line of Seatrial: it composes scenarios, chaos and reports, and adds nothing of its own."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from chaos.trial import Trial
    from reports.judge import Verdict
    from reports.live import Now, ProbesSoFar

PROJECT = Path(__file__).resolve().parent
EXIT_USAGE = 2
STRATEGIES = ("batch", "row_lock", "optimistic")

app = typer.Typer(
    name="seatrial",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Takes a system that moves money out in a storm: ramps users onto it, breaks things while they "
        "trade, then proves from the books whether anything was lost, doubled, mispriced or left out of "
        "balance.\n\n"
        "Exit codes: 0 pass, 1 an invariant is broken, 2 usage, 3 inconclusive, 99 slow."
    ),
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

PlanName = Annotated[
    str, typer.Option("--plan", help="A plan's name (`seatrial plans`) or a .toml file; `quick` if absent.")
]
PostgresSpec = Annotated[
    str, typer.Option("--postgres", help="`auto`, `docker`, `embedded`, or a DSN to create a database in.")
]
Strategy = Annotated[
    str,
    typer.Option("--trade-strategy", help="How the reference server trades: " + ", ".join(STRATEGIES) + "."),
]


def stop(message: str) -> typer.Exit:
    """Print an error that says what to do, and make the exit for a usage error."""
    err.print(Text("seatrial: ", style="bold red").append(message, style="none"), soft_wrap=True)
    return typer.Exit(EXIT_USAGE)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn every error that means «the command, plan or target is wrong» into a message and exit code 2."""
    from chaos.bench import BenchError
    from chaos.chain import ChainError
    from chaos.control_line import ControlError
    from chaos.faults import FaultError
    from chaos.postgres import PostgresError
    from chaos.supervisor import SupervisorError
    from chaos.target import TargetError
    from reports.evidence import RunError
    from reports.export import ExportError
    from scenarios.history import HistoryError
    from scenarios.plan import PlanError
    from scenarios.run_directory import RunDirectoryError

    try:
        yield
    except (
        PlanError,
        RunDirectoryError,
        TargetError,
        BenchError,
        PostgresError,
        ChainError,
        ControlError,
        SupervisorError,
        FaultError,
        RunError,
        ExportError,
        HistoryError,
    ) as error:
        raise stop(str(error)) from None


def check_strategy(strategy: str) -> None:
    """Refuse a strategy that does not exist before anything is started."""
    if strategy not in STRATEGIES:
        raise stop(f"--trade-strategy: {strategy!r} is none of {', '.join(STRATEGIES)}")


@app.command()
def run(
    plan: PlanName = "",
    seed: Annotated[
        int | None, typer.Option(help="Seed of every random choice; drawn and printed if absent.")
    ] = None,
    postgres: PostgresSpec = "auto",
    trade_strategy: Strategy = "batch",
    server_command: Annotated[
        str,
        typer.Option(help="Another target to start: a command with `install` and `serve` (docs/targets.md)."),
    ] = "",
    chain: Annotated[
        str, typer.Option(help="`auto`, `embedded`, `anvil` or a development node's URL.")
    ] = "auto",
    url: Annotated[str, typer.Option(help="A target that already runs on 127.0.0.1; needs --dsn.")] = "",
    dsn: Annotated[str, typer.Option(help="With --url: DSN of a role that may read `books`.")] = "",
    admin_dsn: Annotated[str, typer.Option(help="With --url: the owner's DSN, for faults.")] = "",
    runs: Annotated[Path, typer.Option(help="The folder that run directories go into.")] = Path("runs"),
) -> None:
    """Run a plan against a target, judge it, and write the report."""
    from chaos.nemesis import schedule
    from chaos.target import target_choice
    from chaos.trial import Trial
    from reports.probe import probe_command
    from scenarios.load import check_scenario
    from scenarios.plan import load_plan
    from scenarios.run_directory import create_run

    check_strategy(trade_strategy)
    with usage_errors():
        chosen = load_plan(plan or default_plan(chain))
        check_scenario(chosen)
        seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
        choice = target_choice(
            command=server_command,
            postgres=postgres,
            strategy=trade_strategy,
            chain=chain,
            url=url,
            dsn=dsn,
            admin_dsn=admin_dsn,
        )
        choice.check_faults({planned.fault for planned in schedule(chosen, seed)})
        choice.check_chain(needed=chosen.chain is not None)
        folder = create_run(chosen, seed=seed, target=choice.described(), runs=runs, project=PROJECT)
    out.print(f"[bold]Seatrial[/] {chosen.name}: {chosen.about}\n  seed {seed}, {folder}", soft_wrap=True)
    trial = Trial(
        folder,
        chosen,
        seed,
        choice,
        probe_command=lambda judge_dsn: probe_command(judge_dsn, folder),
        step=announce,
    )
    with set_by_signals(trial.interrupted):
        with trial:
            cut = conduct(trial)
        verdict = judged(folder, cut)
    raise typer.Exit(present(folder, verdict))


def default_plan(chain: str) -> str:
    """The plan of who names none: `quick`, or without a chain on this machine the trading in it."""
    from chaos.chain import chain_trouble

    if (trouble := chain_trouble(chain)) is None:
        return "quick"
    announce(f"NO MONEY IN AND OUT, plan `hot` instead of `quick`: {trouble}")
    return "hot"


def announce(text: str) -> None:
    """A line of progress that stays on the screen."""
    out.print(Text("• ", style="cyan").append(text, style="none"), soft_wrap=True)


@contextlib.contextmanager
def set_by_signals(interrupted: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the work early; what there is by then is still read and reported."""

    def on_signal(number: int, _frame: object) -> None:
        if not interrupted.is_set():
            announce(f"{signal.Signals(number).name}: stopping, then reporting what there is")
        interrupted.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def conduct(trial: Trial) -> str | None:
    """Take a trial from nothing to exported books; the reason why it was cut short, if it was."""
    from chaos.target import TargetError
    from reports.export import ExportError, export_state
    from reports.live import LiveView, ProbesSoFar

    with usage_errors():
        try:
            trial.prepare()
        except TargetError:
            if not trial.interrupted.is_set():
                raise
            return "interrupted before the load began"
    with LiveView(out, f"{trial.plan.name} on {trial.plan.scenario}, seed {trial.seed}") as view:
        probes = ProbesSoFar(trial.run / "probes.jsonl")
        trial.load(lambda: view.show(now(trial, probes)))
    rest = trial.quiesce()
    try:
        export_state(trial.judge_dsn, trial.run, active=rest.active, prepared=rest.prepared)
    except ExportError as error:
        return f"the books could not be exported: {error}"
    return "; ".join(trial.endings) or None


def now(trial: Trial, probes: ProbesSoFar) -> Now:
    """What the live view shows of a trial."""
    from reports.live import Now

    status, nemesis = trial.status, trial.nemesis
    probes.read()
    return Now(
        phase=status.phase if status else "setup",
        elapsed_s=trial.load_elapsed_s,
        planned_s=trial.plan.load_s,
        users=status.users if status else 0,
        in_flight=status.in_flight if status else 0,
        trades_per_s=trial.trades_per_s,
        ok=status.ok if status else 0,
        fail=status.fail if status else 0,
        info=status.info if status else 0,
        p50_ms=status.p50_ms if status else 0.0,
        p99_ms=status.p99_ms if status else 0.0,
        faults=tuple(nemesis.current) if nemesis else (),
        landed=nemesis.landed if nemesis else 0,
        planned=nemesis.planned if nemesis else 0,
        probes=probes.readings,
        probe_violations=probes.broken,
    )


def judged(folder: Path, cut: str | None) -> Verdict:
    """The verdict on a run directory and everything derived from it."""
    from reports.evidence import RunError, open_evidence
    from reports.judge import abandoned, judge_evidence, write_verdict
    from reports.page import write_report, write_report_without_evidence
    from scenarios.history import HistoryError

    announce("judging")
    try:
        opened = open_evidence(folder)
    except (RunError, HistoryError) as error:
        if cut is None:
            raise stop(str(error)) from None
        verdict = abandoned(folder, f"{cut}; {error}")
        write_verdict(folder, verdict)
        write_report_without_evidence(folder, verdict, str(error))
        return verdict
    with contextlib.closing(opened) as evidence:
        verdict = judge_evidence(evidence)
        write_verdict(folder, verdict)
        write_report(folder, verdict, evidence)
    return verdict


def present(folder: Path, verdict: Verdict) -> int:
    """Print the verdict as a person reads it; its exit code."""
    from reports.verdict_table import verdict_table

    out.print(verdict_table(verdict))
    out.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return verdict.exit_code


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
) -> None:
    """Judge a run directory again, offline, and remake its report."""
    with usage_errors():
        verdict = judged(folder, None)
    raise typer.Exit(present(folder, verdict))


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 8080,
    postgres: PostgresSpec = "auto",
    trade_strategy: Strategy = "batch",
    admin_token: Annotated[
        str,
        typer.Option(envvar="SEATRIAL_ADMIN_TOKEN", help="The admin's bearer token; generated if absent."),
    ] = "",
) -> None:
    """Run the reference server alone on a throwaway database, to curl it or to point Locust at it."""
    from chaos.serving import serve_alone

    check_strategy(trade_strategy)
    with usage_errors():
        serve_alone(
            port=port, postgres=postgres, strategy=trade_strategy, admin_token=admin_token, step=announce
        )


@app.command()
def bench(
    users: Annotated[str, typer.Option(help="Numbers of concurrent users, comma separated.")] = "1,8,50,100",
    strategies: Annotated[str, typer.Option(help="Trade strategies to compare.")] = ",".join(STRATEGIES),
    levels: Annotated[
        str, typer.Option(help="`sql` calls the functions, `http` goes through the server.")
    ] = "sql,http",
    tools: Annotated[
        str, typer.Option(help="HTTP clients: `wrk`, `locust`, or `auto` for Locust and, if installed, wrk.")
    ] = "auto",
    seconds: Annotated[float, typer.Option(help="Length of one cell.", min=0.5, max=600)] = 4.0,
    rounds: Annotated[
        int, typer.Option(help="How often each cell is measured; the median counts.", min=1, max=99)
    ] = 1,
    postgres: PostgresSpec = "auto",
    runs: Annotated[Path, typer.Option(help="The folder that the bench's own folder goes into.")] = Path(
        "runs"
    ),
) -> None:
    """Compare the trade strategies on one hot market: a table with ratios, a picture, and JSON."""
    from chaos.bench import Bench, BenchError, bench_plan
    from reports.bench_summary import bench_table, summarise, write_summary
    from scenarios.run_directory import create_folder

    with usage_errors():
        plan = bench_plan(
            users=users, strategies=strategies, levels=levels, tools=tools, seconds=seconds, rounds=rounds
        )
        folder = create_folder(runs, "bench")
        interrupted = threading.Event()
        with Bench(folder, plan, postgres=postgres, step=announce) as measuring, set_by_signals(interrupted):
            try:
                measuring.prepare()
                rows = measuring.measure(interrupted.is_set)
                announce(f"books: {measuring.reconciled():,} accounts reconcile")
            except BenchError as error:
                err.print(Text(f"seatrial bench: {error}", style="red"), soft_wrap=True)
                raise typer.Exit(1) from None
    summary = summarise(rows)
    write_summary(folder, summary)
    out.print(bench_table(summary))
    out.print(f"{folder / 'bench.json'}, {folder / 'bench.png'}", soft_wrap=True)


@app.command()
def plans() -> None:
    """List the plans that come with Seatrial."""
    from scenarios.plan import load_plan, plan_names

    table = Table.grid(padding=(0, 2))
    with usage_errors():
        for name in plan_names():
            plan = load_plan(name)
            table.add_row(Text(name, style="bold"), f"{plan.load_s:.0f} s", plan.about)
    out.print(table)


def main() -> None:
    """Entry point of the `seatrial` script."""
    sys.path.insert(0, str(PROJECT))
    app()


if __name__ == "__main__":
    main()
