"""The command `simulate`: its options, the progress on stderr, and what comes out.

What belongs here: reading what the simulation needs and writing what it gives.  What does not: the
simulation (broker.simulate), which is imported only when the command runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.app import OPERATORS, Command, WrongUsage, app, notice, print_json

if TYPE_CHECKING:
    from broker.core.policy import PolicySet
    from broker.simulate import Progress

PROGRESS_S = 5.0
"""Seconds between two lines of progress."""


@app.command("simulate", cls=Command, rich_help_panel=OPERATORS)
def simulate(
    trace: Annotated[Path, typer.Option(metavar="FILE", help="The jobs, as CSV or gzipped CSV.")],
    centers: Annotated[Path, typer.Option(metavar="FILE", help="The centers' nodes, as CSV.")],
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The policies; default: those the broker comes with.")
    ] = None,
    order: Annotated[
        str, typer.Option(metavar="fifo|sjf|policy", help="policy: the broker's own way; others: baselines.")
    ] = "policy",
    home: Annotated[bool, typer.Option("--home", help="Every job stays at its own center.")] = False,
    oracle: Annotated[bool, typer.Option("--oracle", help="The scheduler knows true run times.")] = False,
    learn: Annotated[
        bool, typer.Option("--learn", help="Jobs state no run times; the scheduler learns them.")
    ] = False,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Forecast when waiting jobs start, and measure how well.")
    ] = False,
    nodes_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column of the centers file to count nodes by.")
    ] = "node_count",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the noise of estimates.")] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Replay a trace through the scheduler in simulated time."""
    from broker.config import find_config_file
    from broker.core.resources import load_catalogue
    from broker.simulate import Order, Settings
    from broker.simulate import simulate as replay
    from broker.simulate.html import page
    from broker.simulate.report import report, table
    from broker.simulate.trace import TraceError, read_centers, read_jobs

    if order not in tuple(Order):
        raise WrongUsage(f"--order must be fifo, sjf or policy, not {order!r}")
    if learn and (oracle or order != Order.POLICY):
        raise WrongUsage("--learn goes with --order policy and without --oracle")
    settings = Settings(
        order=Order(order), stays_home=home, oracle=oracle, seed=seed, learn=learn, forecast=forecast
    )
    policies = _policies(policy or find_config_file("policy.toml"))
    try:
        jobs, rows = read_jobs(trace), read_centers(centers, nodes_column)
    except TraceError as error:
        raise WrongUsage(str(error)) from error
    except OSError as error:
        raise WrongUsage(f"{error.filename} cannot be read: {error.strerror}") from error
    outcome = replay(
        jobs,
        rows,
        policies=policies,
        catalogue=load_catalogue(find_config_file("accelerators.toml").read_text(encoding="utf-8")),
        settings=settings,
        progress=_progress(),
    )
    told = report(outcome)
    if html is not None:
        try:
            html.write_text(page(outcome, told), encoding="utf-8")
        except OSError as error:
            raise WrongUsage(f"{html} cannot be written: {error.strerror}") from error
    if json:
        # The document has no place for how the figures came about, so this is said beside it.
        notice("\n".join([told.label, *(f"note: {note}" for note in told.notes)]))
        print_json(told.document())
    else:
        print(table(told))


def _policies(file: Path) -> PolicySet:
    from broker.companions import read_policies
    from broker.config import ConfigError, render_errors

    try:
        return read_policies(file)
    except ConfigError as error:
        raise WrongUsage(render_errors(error, file)) from error


def _progress() -> Progress:
    """Tells on stderr, every few seconds, how far the simulation is."""
    began = told = time.monotonic()
    rounds_told = 0

    def tell(done: int, jobs: int, now_s: int, rounds: int) -> None:
        nonlocal told, rounds_told
        now = time.monotonic()
        if now - told < PROGRESS_S:
            return
        speed = (rounds - rounds_told) / (now - told)
        told, rounds_told = now, rounds
        day = now_s / 86_400
        notice(f"{done:,} of {jobs:,} jobs, day {day:.1f}, {speed:,.0f} rounds/s, {now - began:,.0f} s")

    return tell
