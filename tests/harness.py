"""The broker's loops on a real store and scripted centers, stepped by hand; the scenario language.

A scenario reads as a story: centers, what people submit, time that passes, what is expected.

    async with harness(tmp_path, center("a", cards=8)) as broker:
        job = await broker.submit("train", cards=4)
        await broker.round()
        await broker.expect(job, "RUNNING", at="a")
        await broker.pass_time(60)
        await broker.expect(job, "SUCCEEDED")

What belongs here: driving; every wait is a step of the harness's own clock, nothing sleeps.  What
does not: any rule of the broker.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest.mock import patch
from zoneinfo import ZoneInfo

from sqlalchemy import inspect
from sqlmodel import Session, SQLModel, select

from adapters.fake import TRAITS, Fake
from broker.adapter import Adapter, AdapterFactory, Connection, StatedPool, Traits
from broker.collect import Collect
from broker.config import CenterSettings, SchedulerSettings, StatedPrice
from broker.connections import Connections
from broker.core.events import Resolved
from broker.core.identity import job_id
from broker.core.model import (
    CenterId,
    CenterState,
    JobId,
    JobRequest,
    Kind,
    Price,
    Role,
    RunId,
    Snapshot,
    Spec,
    StopReason,
    TenantId,
    Tier,
)
from broker.core.problem import class_key
from broker.core.resources import Catalogue
from broker.cycle import Cycle
from broker.dispatch import Dispatch
from broker.files import DataDirectory
from broker.inventory import Poll
from broker.leader import Lease
from broker.mirror import Mirror
from broker.reconcile import Reconcile
from broker.stage import Stage
from broker.store import Store, accounts, centers, creates, feed, jobs, outbox, runs
from broker.store.accounts import Caller
from broker.store.centers import CenterEntry
from broker.store.creates import Asked, NewJob
from broker.store.jobs import JobSummary, JobView
from broker.track import Track
from tests.builders import ACCELERATORS, NOW_MS, node, policy_set, spec
from tests.databases import database

Row = TypeVar("Row", bound=SQLModel)
CATALOGUE = Catalogue(products=ACCELERATORS, names={name.casefold(): name for name in ACCELERATORS})
ANYBODY = {"name": "alice", "tenant": "lab", "role": Role.OPERATOR, "password_hash": "x"}


def center(
    id: str,
    *,
    cards: int = 8,
    nodes: int = 2,
    price: str = "10",
    traits: Traits = TRAITS,
    **changes: Any,
) -> tuple[CenterSettings, Traits]:
    """A scripted center with one pool of `nodes` nodes and a price in CNY per card-hour."""
    pool = StatedPool("a", node(cards), nodes)
    prices = (StatedPrice(pool.shape.accelerator, "", Price(int(float(price) * 1_000_000))),)
    values: dict[str, Any] = {"pools": (pool,), "prices": prices, "name": id.upper(), **changes}
    return CenterSettings(id=CenterId(id), adapter="fake", **values), traits


@dataclass(slots=True)
class Clock:
    """Milliseconds since the epoch, moved by hand."""

    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def asked_for(new: NewJob, *, key: str = "", body_hash: str = "") -> Asked:
    """A create request that is judged to be this job."""
    caller = Caller(new.account, "", new.tenant, Role.USER, vip=False)
    return Asked(caller, new.name, lambda _facts: new, key=key, body_hash=body_hash)


class Harness:
    """All parts of one leader.  `fakes` are the centers' ground truth."""

    def __init__(self, folder: Path, settings: Sequence[tuple[CenterSettings, Traits]]) -> None:
        self.clock = Clock()
        self.folder = folder
        self.settings = {s.id: s for s, _ in settings}
        self.fakes = {s.id: Fake(s.id, self.clock, pools=s.pools, traits=traits) for s, traits in settings}
        self.scheduler = SchedulerSettings()
        self.files = DataDirectory(folder / "data")
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        """Start as a leader does: store, lease, doubts of the last one, centers."""
        self.files.create()
        self.store = Store(database(self.folder), clock=self.clock)
        await self.store.open()
        self.lease = Lease(self.store, holder=f"test-{next(self._numbers)}", ttl_s=15, clock=self.clock)
        await self.store.write(runs.fix_prefix, "bk")
        assert await self.lease.acquire(alone=True)
        await self.store.write(outbox.doubt_unfinished, epoch=self.lease.epoch)
        await self.store.write(centers.configure, [_entry(s) for s in self.settings.values()])
        self.connections = Connections(self._factories(), prefix="bk")
        await self.connections.configure(self.settings.values())
        parts: dict[str, Any] = {"store": self.store, "lease": self.lease, "connections": self.connections}
        self.mirror = Mirror()
        self.cycle = Cycle(
            store=self.store,
            lease=self.lease,
            mirror=self.mirror,
            policies=policy_set(),
            catalogue=CATALOGUE,
            zone=ZoneInfo("Asia/Shanghai"),
            solve_limit_s=5,
        )
        self.dispatch = Dispatch(**parts, concurrency=8)
        self.collect = Collect(**parts, files=self.files)
        self.stage = Stage(**parts, files=self.files)
        self.reconcile = Reconcile(**parts)
        self.polls = {
            id: Poll(id, **parts, catalogue=CATALOGUE, settings=self.scheduler) for id in self.settings
        }
        self.tracks = {
            id: Track(id, **parts, files=self.files, settings=self.scheduler) for id in self.settings
        }

    def _factories(self) -> dict[str, AdapterFactory]:
        async def connect(connection: Connection) -> Adapter:
            return self.fakes[connection.center]

        return {"fake": connect}

    async def close(self) -> None:
        await self.dispatch.drain()
        await self.collect.drain()
        await self.connections.aclose()
        await self.store.close()

    async def restart(self) -> None:
        """The daemon dies between two steps and another one starts on the same store."""
        await self.close()
        await self.open()

    async def crash(self, before: Literal["call", "record"]) -> None:
        """The daemon dies after it has claimed what is due: before the calls, or when they have been
        made and before their outcomes are written.  Another one starts on the same store."""

        async def dies(*_what: object) -> None:
            raise asyncio.CancelledError

        with patch.object(self.dispatch, f"_{before}", dies):
            await self.send()
        await self.restart()

    # ------------------------------------------------------------ people

    async def caller(self, name: str = "alice", **changes: Any) -> Caller:
        """The account of that name, made when it is new: an operator of tenant `lab`."""
        login = await self.store.read(accounts.find_login, name)
        if login is not None:
            return login.caller
        return await self.store.write(accounts.add_account, **{**ANYBODY, "name": name, **changes})

    async def submit(
        self, name: str = "", *, by: str = "alice", spec_: Spec | None = None, cards: int = 1, **request: Any
    ) -> JobId:
        """A job of `cards` cards per node; further arguments are fields of JobRequest."""
        caller = await self.caller(by)
        number = next(self._numbers)
        wanted = JobRequest(
            **{"spec": spec_ or spec(cards), "image_url": "image", "command": "true", **request}
        )
        new = NewJob(
            id=job_id(self.clock() + number, number.to_bytes(4, "big")),
            name=name or f"job-{number}",
            desc="",
            account=caller.id,
            tenant=caller.tenant,
            request=wanted,
            class_key=class_key(wanted, TenantId(caller.tenant)),
            processor="GPU",
        )
        return (await self.create(new)).id

    async def create(self, new: NewJob, *, key: str = "", body_hash: str = "") -> JobSummary:
        return await self.store.write_together(
            creates.create_jobs, asked_for(new, key=key, body_hash=body_hash)
        )

    async def stop(self, job: JobId, *, by: str = "alice") -> None:
        await self.store.write(jobs.stop_job, await self.caller(by), job, None)

    async def delete(self, job: JobId, *, by: str = "alice") -> None:
        await self.store.write(jobs.delete_job, await self.caller(by), job, None)

    async def preempt(self, job: JobId) -> None:
        """The broker asks the job's live run to make room."""
        run = (await self.show(job)).runs[-1].id
        await self.store.write(runs.request_stop, run, StopReason.PREEMPT, epoch=self.lease.epoch)

    async def drain_center(self, center: str, state: CenterState | None = CenterState.DRAIN) -> None:
        """An operator drains a center, or resumes it (None)."""
        id = CenterId(center)
        await self.store.write(centers.set_operator_state, id, state, actor="alice")

    async def resolve(self, job: JobId, **verdict: Any) -> None:
        event = Resolved(self.clock(), **verdict)
        await self.store.write(jobs.resolve_job, await self.caller(), job, event)

    async def show(self, job: JobId) -> JobView:
        return await self.store.read(jobs.show_job, await self.caller(), job, None, self.clock())

    async def reasons(self, job: JobId) -> dict[str, dict[str, Any]]:
        """Why a job waits, by center."""
        view = await self.show(job)
        found = await self.store.read(jobs.deferral, view, self.clock())
        return {reason["centerId"]: reason for reason in found}

    # ------------------------------------------------------------ steps

    async def poll(self) -> None:
        for poll in self.polls.values():
            await poll.once()

    async def plan(self) -> None:
        await self.cycle.once()

    async def send(self) -> None:
        """Submissions, stops and deletions that are due, to their answers."""
        await self.dispatch.once()
        await self.dispatch.drain()

    async def look(self) -> None:
        for track in self.tracks.values():
            await track.once()

    async def gather(self) -> None:
        """Logs and results that are due."""
        await self.collect.once()
        while self.collect.busy:
            await self.collect.settled()

    async def round(self) -> None:
        """Every loop once, in the order of a job's way."""
        await self.lease.renew()
        await self.poll()
        await self.plan()
        await self.send()
        await self.stage.once()
        await self.look()
        await self.gather()
        await self.reconcile.once()

    async def pass_time(self, seconds: float, *, step_s: float = 5) -> None:
        """Time passes, with a round of every loop each `step_s`."""
        end = self.clock.now_ms + int(seconds * 1000)
        while self.clock.now_ms < end:
            self.clock.now_ms = min(end, self.clock.now_ms + int(step_s * 1000))
            await self.round()

    async def rows(self, table: type[Row], **equal: Any) -> list[Row]:
        """Rows of a table, detached, in the order of their keys."""

        def query(session: Session) -> list[Row]:
            wanted = select(table).filter_by(**equal).order_by(*inspect(table).primary_key)
            found = list(session.exec(wanted).all())
            session.expunge_all()
            return found

        return await self.store.read(query)

    # ------------------------------------------------------------ what is expected

    async def expect(
        self, job: JobId, status: str, *, at: str | None = None, attempts: int | None = None
    ) -> None:
        view = await self.show(job)
        assert view.status == status, f"{view.status}, not {status}: {view}"
        if at is not None:
            assert view.runs[-1].center == at, f"at {view.runs[-1].center!r}, not {at!r}"
        if attempts is not None:
            assert len(view.runs) == attempts, [run.state for run in view.runs]

    def executions(self, job: JobId) -> list[tuple[str, RunId]]:
        """Ground truth: where and as what the job was started."""
        return [
            (id, execution.run)
            for id, fake in self.fakes.items()
            for execution in fake.executions
            if execution.job == job
        ]

    def never_twice_at_once(self) -> None:
        """At no moment did two executions of one job overlap, over all centers."""
        spans: dict[JobId, list[tuple[int, int]]] = {}
        for fake in self.fakes.values():
            for run in fake.executions:
                spans.setdefault(run.job, []).append((run.start_ms, run.end_ms or 2**62))
        for job, ordered in spans.items():
            ordered.sort()
            for (_, end), (start, _) in itertools.pairwise(ordered):
                assert end <= start, f"job {job} ran twice at once: {ordered}"


def _entry(center: CenterSettings) -> CenterEntry:
    return CenterEntry(
        id=center.id,
        name=center.name,
        province="",
        city="",
        desc="",
        adapter=center.adapter,
        account="fake",
        state=center.state,
        max_in_flight=center.max_in_flight,
    )


@asynccontextmanager
async def harness(folder: Path, *settings: tuple[CenterSettings, Traits]) -> AsyncIterator[Harness]:
    """A running broker whose centers have been polled once."""
    broker = Harness(folder, settings)
    await broker.open()
    try:
        await broker.poll()
        yield broker
    finally:
        await broker.close()


def picture(mirror: Mirror, world: feed.World, now_ms: int) -> Snapshot:
    """A mirror's snapshot.  Any job's request may stand for its class, so requests are left out."""
    taken = mirror.snapshot(world, now_ms=now_ms, minute_of_week=0, accelerators=ACCELERATORS)
    return replace(taken, classes=tuple(replace(c, request=JobRequest()) for c in taken.classes))


def inactive(settings: tuple[CenterSettings, Traits], state: CenterState) -> tuple[CenterSettings, Traits]:
    """The same center in another state of the file."""
    return replace(settings[0], state=state), settings[1]


__all__ = ["CATALOGUE", "Harness", "Kind", "Tier", "center", "harness", "inactive", "picture"]
