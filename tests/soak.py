"""Many jobs through the real daemon with one faulty emulated platform as its only center.

What belongs here: the jobs, the people who submit and stop them over HTTP, waiting, and what must be
true at the end, judged by the emulator's ground truth.  What does not: a platform; each brings a
Truth and the TOML of its center (test_soak_<platform>.py).

40 jobs in the test suite; BROKER_SOAK_JOBS says how many (`make soak`: 300).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from broker.client import Client, RequestFailed
from broker.core.model import LIVE_RUN_STATES
from tests.daemon_process import DaemonProcess, daemon, eventually

T = TypeVar("T")

JOBS = int(os.environ.get("BROKER_SOAK_JOBS", "40"))
FAULTY = 0.05
"""Share of the platform's calls that go wrong."""
SPEED = 20.0
"""Emulated seconds in a real one."""
SEED = int(os.environ.get("BROKER_SOAK_SEED", "8"))
PATIENCE_S = 60 + JOBS
"""Bound of every wait; reached only when something is broken."""
DOUBT_S = 5.0
"""How long an operator waits for the looks to find a run in doubt."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


# ---------------------------------------------------------------- what a platform must tell


class Executed(Protocol):
    """One start of a command at the platform, on all of its nodes."""

    @property
    def name(self) -> str: ...  # the remote name: the run's id
    @property
    def started_ms(self) -> int: ...
    @property
    def ended_ms(self) -> int | None: ...
    @property
    def exit_codes(self) -> tuple[int, ...]: ...
    @property
    def ended_by(self) -> str: ...  # "itself", or what else ended it


class Truth(Protocol):
    """What the platform knows better than the broker.  Read from another thread."""

    def executions(self) -> Sequence[Executed]:
        """Every start so far."""
        ...

    def alive(self) -> Sequence[str]:
        """Names that hold or wait for capacity."""
        ...

    def remote(self, name: str) -> str | None:
        """The broker's remote id of what was created under this name, None if nothing was."""
        ...

    def repeated(self) -> Sequence[str]:
        """Requests with an effect that arrived twice though they must not."""
        ...

    def complaints(self) -> Sequence[str]:
        """What was wrong with requests: missing fields, wrong types."""
        ...

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        ...


# ---------------------------------------------------------------- the jobs


@dataclass(frozen=True, slots=True)
class Work:
    """One job: what it does, and whether somebody stops it."""

    name: str
    nodes: int
    size: int  # index into the specs by size
    run_s: int  # emulated
    exit_code: int
    retries: int
    priority: str
    vip: bool
    stopped: str  # "", "waiting": soon after its submission, "running": once it runs

    @property
    def command(self) -> str:
        return f'echo "attempt $BROKER_ATTEMPT"; sleep {self.run_s}; exit {self.exit_code}'


def works(count: int, *, sizes: int, gangs: bool, vips: bool, seed: int = SEED) -> list[Work]:
    """Jobs drawn from a seed: most succeed, some fail, some are stopped, some are gangs, some VIP."""
    draw = random.Random(seed)
    return [
        Work(
            name=f"soak-{number}",
            nodes=2 if gangs and draw.random() < 0.15 else 1,
            size=draw.randrange(sizes),
            run_s=draw.randint(5, 60),
            exit_code=draw.choice([0, 0, 0, 0, 0, 0, 3]),
            retries=draw.choice([0, 1]),
            priority=draw.choice(["low", "normal", "high"]),
            vip=vips and draw.random() < 0.1,
            stopped=draw.choice(["", "", "", "", "", "waiting", "running"]),
        )
        for number in range(count)
    ]


# ---------------------------------------------------------------- the people


@dataclass(slots=True)
class Soak:
    """A run of the whole.  `jobs` by name; `held`: those that only an operator could settle."""

    broker: DaemonProcess
    truth: Truth
    works: Sequence[Work]
    image: str
    doubts_end: bool = True
    patience_s: float = PATIENCE_S
    jobs: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Submit, stop, settle; then the daemon ends and everything is checked."""
        alice, root = self.broker.client("alice"), self.broker.client("root")
        root.change_account("alice", "grant", {"right": "vip"})
        self._submit(alice)
        self._until_settled(alice, root)
        self.truth.calm()
        self._resolve(alice, root)
        eventually("the platform is empty", lambda: not self.truth.alive(), within_s=self.patience_s)
        eventually("nothing is owed", lambda: not self._owed(), within_s=self.patience_s)
        final = {name: dict(alice.job(job)) for name, job in self.jobs.items()}
        assert self.broker.stop() == 0
        self._check(final)

    def _submit(self, client: Client) -> None:
        specs = self._specs(client)
        for work in self.works:
            config = {
                "specId": specs[work.size],
                "imageId": self.image,
                "command": work.command,
                "nodeCount": work.nodes,
                "maxRetries": work.retries,
                "stopGrace": 1,
                **({"isVip": True} if work.vip else {"priority": work.priority}),
            }
            body = {"jobName": work.name, "config": config}
            self.jobs[work.name] = str(client.create_job(body, key=work.name)["metadata"]["id"])

    def _specs(self, client: Client) -> list[str]:
        """Specs, the smallest first."""
        rows = eventually("specs are known", lambda: client.specs()["resourceSpecs"])
        return [r["resourceSpecId"] for r in sorted(rows, key=lambda r: r["cpu"]["cores"])]

    def _until_settled(self, client: Client, root: Client) -> None:
        """Stop those that are to be stopped, until the others have ended or cannot go on by themselves.

        Where looking cannot end a doubt, an operator does after DOUBT_S: it holds capacity meanwhile.
        """
        to_stop = {w.name: w.stopped for w in self.works if w.stopped}
        doubtful: dict[str, float] = {}
        deadline = time.monotonic() + self.patience_s
        while True:
            status = self._statuses(client)
            for name, when in list(to_stop.items()):
                seen = status[name]
                if seen in ENDED or ((when == "waiting" or seen == "RUNNING") and self._stop(client, name)):
                    del to_stop[name]
            left = [name for name, seen in status.items() if seen not in ENDED]
            if all(self._stuck(name) for name in left):
                return
            for name in left if not self.doubts_end else ():
                if self._state(name) != "DOUBT":
                    doubtful.pop(name, None)
                elif time.monotonic() - doubtful.setdefault(name, time.monotonic()) > DOUBT_S:
                    self._settle(client, root, name)
            assert time.monotonic() < deadline, f"not settled: {left}"
            time.sleep(0.3)

    def _statuses(self, client: Client) -> dict[str, str]:
        """By name, as the queue API tells them."""
        return {item["metadata"]["name"]: item["status"] for item in client.all_jobs({"pageSize": 1000})}

    def _stuck(self, name: str) -> bool:
        """Whether a job that has not ended waits for an operator, or keeps away from its center.

        Where looking ends a doubt, the next look is waited for.
        """
        for_operator = ("LOST",) if self.doubts_end else ("DOUBT", "LOST")
        return self._state(name) in for_operator or self._waits_long(name)

    def _state(self, name: str) -> str:
        """Of the job's last run."""
        (row,) = self._rows(
            "SELECT state FROM run WHERE job_id = ? ORDER BY attempt DESC LIMIT 1", self.jobs[name]
        )
        return str(row["state"])

    def _settle(self, client: Client, root: Client, name: str) -> None:
        """The operator looks at the platform's own console and says what is there."""
        remote = self.truth.remote(client.job(self.jobs[name])["runs"][-1]["taskId"])
        verdict = {"neverRan": True} if remote is None else {"remote": remote}
        try:
            root.resolve_job(self.jobs[name], verdict)
        except RequestFailed:
            return  # a look was quicker
        self.held.add(name)

    def _stop(self, client: Client, name: str) -> bool:
        """Ask a job to stop; False when it cannot be asked now: its state is unknown, or it has ended."""
        try:
            client.stop_job(self.jobs[name])
        except RequestFailed:
            return False
        return True

    def _waits_long(self, name: str) -> bool:
        """Whether the job keeps away from its only center: after what was proven not to have arrived."""
        (row,) = self._rows("SELECT state, avoid FROM job WHERE id = ?", self.jobs[name])
        return bool(row["state"] == "QUEUED" and row["avoid"] not in ("[]", None))

    def _resolve(self, client: Client, root: Client) -> None:
        """The operator settles what is in doubt still, or has vanished at the platform, before it started
        or after.

        A job that would have to keep away from its only center for a while is stopped by its owner.
        """
        alive = set(self.truth.alive())
        started = {execution.name for execution in self.truth.executions()}
        for name, job in self.jobs.items():
            found = client.job(job)
            if found["status"] in ENDED:
                continue
            if self._waits_long(name):
                self.waiting.add(name)
            elif found["runs"][-1]["state"] == "DOUBT" and not self.doubts_end:
                self._settle(client, root, name)
            elif found["runs"][-1]["state"] == "LOST" and found["runs"][-1]["taskId"] not in alive:
                ran = found["runs"][-1]["taskId"] in started
                root.resolve_job(job, {"ended": "FAILED"} if ran else {"neverRan": True})
        deadline = time.monotonic() + self.patience_s
        while True:
            left = [name for name, seen in self._statuses(client).items() if seen not in ENDED]
            if not left:
                return
            for name in left:
                if self._waits_long(name):
                    self.waiting.add(name)
                    self._stop(client, name)
            assert time.monotonic() < deadline, f"not ended: {left}"
            time.sleep(0.2)

    # ------------------------------------------------------------ the store, read only

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        connection = sqlite3.connect(f"file:{self.broker.folder}/broker.db?mode=ro", uri=True, timeout=10)
        try:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def _owed(self) -> list[sqlite3.Row]:
        live = ", ".join(f"'{state.value}'" for state in LIVE_RUN_STATES)
        return self._rows(f"SELECT id FROM run WHERE owed_next_ms IS NOT NULL OR state IN ({live})")

    # ------------------------------------------------------------ what must be true

    def _check(self, final: dict[str, dict[str, Any]]) -> None:
        assert list(self.truth.complaints()) == []
        assert list(self.truth.repeated()) == []
        runs = {row["id"]: row for row in self._rows("SELECT * FROM run")}
        starts: dict[str, list[Executed]] = {}
        for execution in self.truth.executions():
            assert execution.name in runs, f"an orphan was started: {execution}"
            starts.setdefault(runs[execution.name]["job_id"], []).append(execution)
        self._explained(runs)
        for work in self.works:
            job = self.jobs[work.name]
            mine = sorted(starts.get(job, []), key=lambda e: e.started_ms)
            _one_at_a_time(work, mine)
            self._right_state(work, final[work.name], mine, runs)

    def _explained(self, runs: dict[str, sqlite3.Row]) -> None:
        """Each run starts at most once, and only after an event that says it was sent there."""
        sent = {
            row["run_id"]
            for row in self._rows("SELECT run_id, data FROM event WHERE kind = 'run.changed'")
            if '"Placed"' in row["data"]
        }
        counts = Counter(execution.name for execution in self.truth.executions())
        for name, count in counts.items():
            assert name in sent, f"run {name} started without having been sent"
            assert count == 1, f"run {name} started {count} times"

    def _right_state(
        self,
        work: Work,
        final: dict[str, Any],
        executions: Sequence[Executed],
        runs: dict[str, sqlite3.Row],
    ) -> None:
        status = final["status"]
        story = f"{work} {final['message']!r} {executions}"
        assert all(e.ended_ms is not None for e in executions), f"still alive: {story}"
        succeeded = [e for e in executions if e.ended_by == "itself" and not any(e.exit_codes)]
        own_failures = [e for e in executions if e.ended_by == "itself" and any(e.exit_codes)]
        others = [e for e in executions if e.ended_by != "itself"]
        asked = work.stopped or work.name in self.waiting
        match status:
            case "SUCCEEDED":
                assert len(succeeded) == 1, story
                last = [run for run in runs.values() if run["id"] == succeeded[0].name]
                assert last[0]["state"] == "SUCCEEDED", story
            case "FAILED":
                assert not succeeded, story
                assert len(own_failures) + len(others) >= 1, story
                assert work.exit_code or others, f"nothing failed: {story}"
            case "STOPPED":
                assert asked, f"nobody stopped it: {story}"
                assert len(succeeded) <= 1, story
            case other:
                raise AssertionError(f"{other}: {story}")
        if not (asked or work.exit_code or others):
            assert status == "SUCCEEDED", story
        assert len(own_failures) <= work.retries + 1, story


def _one_at_a_time(work: Work, executions: Sequence[Executed]) -> None:
    """At no moment two executions of one job; at most one that was completed."""
    for before, after in itertools.pairwise(executions):
        assert before.ended_ms is not None, f"{work}: {executions}"
        assert before.ended_ms <= after.started_ms, f"{work} ran twice at once: {executions}"
    completed = [e for e in executions if e.ended_by == "itself" and not any(e.exit_codes)]
    assert len(completed) <= 1, f"{work} was completed twice: {executions}"


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Site:
    """The one center: its TOML, the sizes of its specs, an image, and whether it takes gangs and VIP."""

    center: str
    sizes: int
    image: str
    gangs: bool = True
    vips: bool = True
    doubts_end: bool = True  # by looking: False where only an operator can say that a run never arrived


def soak(folder: Path, site: Site, truth: Truth, *, count: int = JOBS) -> Soak:
    """The whole story."""
    with daemon(folder, site.center) as broker:
        drawn = works(count, sizes=site.sizes, gangs=site.gangs, vips=site.vips)
        story = Soak(broker, truth, drawn, site.image, site.doubts_end)
        story.run()
        return story


@contextmanager
def in_background(serve: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """An emulator in an event loop of its own thread: the test talks to the daemon meanwhile."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="emulator")
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE_S)

    manager = serve()
    try:
        emulator: T = run(manager.__aenter__())
        try:
            yield emulator
        finally:
            run(manager.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
