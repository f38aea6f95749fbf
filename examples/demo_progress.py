"""Where the jobs of the demonstration are, while they are awaited: a live table, or a line per change.

What belongs here: what is drawn.  What does not: asking the broker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.client.answers import JobDetail


class Progress(Protocol):
    """Shows where the jobs are."""

    def show(self, jobs: Sequence[JobDetail], waits: Mapping[str, str]) -> None: ...
    def say(self, text: str) -> None: ...


class Lines:
    """A line per change."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, str]] = {}

    def show(self, jobs: Sequence[JobDetail], waits: Mapping[str, str]) -> None:
        for job in jobs:
            state = (job["status"], job["runs"][-1].get("centerId") or "")
            if self._told.get(job["id"]) != state:
                self._told[job["id"]] = state
                self.say(
                    " ".join(filter(None, (f"{job['name']}: {state[0]}", state[1] and f"at {state[1]}")))
                )

    def say(self, text: str) -> None:
        print(text, flush=True)


class Screen:
    """A table that is drawn anew."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, jobs: Sequence[JobDetail], waits: Mapping[str, str]) -> None:
        drawn = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("job", "status", "center", "nodes", "waited", "runs"):
            drawn.add_column(heading, style="dim" if heading in ("waited", "runs") else None)
        colors = {"PENDING": "yellow", "RUNNING": "cyan", "SUCCEEDED": "green"}
        for job in jobs:
            run, now = job["runs"][-1], time.time_ns() // 1_000_000
            started, ended = run.get("startTimeMs"), run.get("finishTimeMs")
            drawn.add_row(
                job["name"],
                Text(job["status"], style=colors.get(job["status"], "red")),
                Text(run.get("centerId") or waits.get(job["id"], "")),
                str(run["nodeCount"]),
                seconds((started or now) - job["createTimeMs"]),
                seconds((ended or now) - started) if started else "",
            )
        self._live.update(drawn, refresh=True)

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)


@contextmanager
def progress(*, plain: bool) -> Iterator[Progress]:
    """A live table on a terminal, lines elsewhere."""
    if plain or not sys.stdout.isatty():
        yield Lines()
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield Screen(live)


def seconds(ms: int) -> str:
    return f"{max(0, ms) / 1000:.1f} s"
