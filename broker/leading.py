"""One term of this daemon as the leader: the parts that only a leader has, from the lease to its end.

What belongs here: building them, which loops turn, in which order they start and end.  What does not:
how the lease is won (leader.py), and what goes on while another daemon leads (daemon.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from broker import service
from broker.adapter import MAY_CALL, AdapterFactory
from broker.chores import Chores
from broker.clock import ClockWatch
from broker.collect import Collect
from broker.config import CenterSettings, Settings
from broker.connections import Connections
from broker.core.policy import PolicySet
from broker.core.resources import Catalogue
from broker.cycle import Cycle
from broker.desk import MemoryDesk
from broker.dispatch import Dispatch
from broker.files import DataDirectory
from broker.leader import Lease
from broker.loops import CLOCK_PERIOD_S, COLLECT_PERIOD_S, DISPATCH_PERIOD_S, Loops
from broker.mirror import Mirror
from broker.reconcile import Reconcile
from broker.stage import Stage
from broker.store import LostLease, Store, StoreUnavailable, centers, outbox, purses
from broker.store.centers import CenterEntry
from broker.store.purses import Billing
from broker.supervise import loop
from broker.telemetry import log

IDENTITY = (
    *("work_dir", "base_url", "endpoint", "user_url", "url", "kubeconfig", "context", "namespace"),
    *("region", "project_id", "user", "username", "access_key"),
)
"""Connection and credential keys that say whose account at which platform a center is."""

ROUNDS_REST = 9.0
"""A round follows another no sooner than after so many times what that one took: while jobs come by the
thousand, each round takes many, and those who ask have the interpreter for nine tenths of the time."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a daemon has whether or not it leads.  `own` is what this broker is called among brokers."""

    store: Store
    lease: Lease
    files: DataDirectory
    catalogue: Catalogue
    own: str


class Leading:
    """`prepare()` once the lease is won, then `run()`."""

    def __init__(
        self,
        shared: Shared,
        settings: Settings,
        policies: PolicySet,
        *,
        factories: Mapping[str, AdapterFactory],
        stopping: asyncio.Event,
    ) -> None:
        self._shared = shared
        self._settings = settings
        self._stopping = stopping
        self._loops: Loops | None = None
        store, lease, files, catalogue = shared.store, shared.lease, shared.files, shared.catalogue
        zone = settings.server.zone
        self._desk = MemoryDesk(store=store, catalogue=catalogue, zone=zone)
        self.connections = connections = Connections(
            factories, prefix=settings.server.name, desk=self._desk, broker=shared.own
        )
        self._cycle = Cycle(
            store=store,
            lease=lease,
            mirror=Mirror(),
            policies=policies,
            catalogue=catalogue,
            zone=zone,
            solve_limit_s=settings.scheduler.solve_limit_s,
            learn=settings.scheduler.learn_run_times,
        )
        self._dispatch = Dispatch(
            store=store,
            lease=lease,
            connections=connections,
            concurrency=settings.scheduler.dispatch_concurrency,
        )
        self._collect = Collect(store=store, lease=lease, connections=connections, files=files)
        self._stage = Stage(store=store, lease=lease, connections=connections, files=files)
        self._reconcile = Reconcile(store=store, lease=lease, connections=connections)
        self._chores = Chores(store=store, lease=lease, files=files, settings=settings.store)

    def may_call(self) -> bool:
        """Whether the lease has not run out."""
        return self._shared.lease.left_s() > 0

    async def prepare(self) -> None:
        """Put in doubt what an earlier leader left open, and tell the store the configuration.

        Raises LostLease, Rejected, StoreUnavailable.
        """
        store = self._shared.store
        doubtful = await store.write(outbox.doubt_unfinished, epoch=self._shared.lease.epoch)
        if doubtful:
            log.warning("submissions_in_doubt", runs=doubtful)
        await self._configure(self._settings)

    async def _configure(self, settings: Settings) -> None:
        store = self._shared.store
        await store.write(centers.configure, [_entry(center) for center in settings.centers])
        billing, zone = settings.billing, settings.server.zone
        await store.write(purses.set_billing, Billing(zone, billing.interrupted, billing.record == "center"))
        await self.connections.configure(settings.centers)

    async def run(self, closing: Callable[[], Awaitable[None]]) -> None:
        """Turn the loops until the daemon stops; then `closing()`, what is in flight ends, and the lease is
        given back.

        Raises LostLease, StoreUnavailable, and what no loop may raise.
        """
        lease, ended = self._shared.lease, asyncio.Event()
        leads = MAY_CALL.set(self.may_call)  # for every task begun below
        try:
            async with asyncio.TaskGroup() as term:  # outlasts the loops: outcomes are still recorded
                wake = asyncio.Event()
                kept = loop("lease", lease.keep, period_s=lease.ttl_s / 3, wake=wake, stopping=ended)
                term.create_task(kept, name="lease")
                async with asyncio.TaskGroup() as group:
                    loops = self._loops = self._start_loops(group)
                    await loops.mind_removed(self._settings.scheduler)
                    self._chores.start()
                    await self._stopping.wait()
                    log.info("stopping")
                    service.stopping()
                    await closing()
                await self._finish()
                ended.set()
            await self._release()
        except BaseExceptionGroup as failed:
            known, others = failed.split((LostLease, StoreUnavailable))
            if known is None or others is not None:
                raise
            raise _first(known) from None
        finally:
            MAY_CALL.reset(leads)
            self._loops = None

    def _start_loops(self, group: asyncio.TaskGroup) -> Loops:
        shared = self._shared
        loops = Loops(
            group,
            self._stopping,
            store=shared.store,
            lease=shared.lease,
            connections=self.connections,
            files=shared.files,
            catalogue=shared.catalogue,
        )
        scheduler = self._settings.scheduler
        cycle = service.watched(self._cycle.once)
        loops.start("cycle", cycle, scheduler.interval_s, rest=ROUNDS_REST)
        for name, once, period_s in (
            ("dispatch", self._dispatch.once, DISPATCH_PERIOD_S),
            ("collect", self._collect.once, COLLECT_PERIOD_S),
            ("stage", self._stage.once, COLLECT_PERIOD_S),
            ("reconcile", self._reconcile.once, COLLECT_PERIOD_S),
            ("desk", self._desk.once, COLLECT_PERIOD_S),
            ("clock", ClockWatch(shared.store.clock).once, CLOCK_PERIOD_S),
        ):
            loops.start(name, once, period_s)
        loops.turn(self._settings.centers, scheduler)
        return loops

    async def reload(self, settings: Settings, policies: PolicySet) -> None:
        """Apply a configuration read anew.  Raises Rejected, with nothing of the centers changed."""
        before = self._settings.centers
        self._settings = settings
        self._cycle.policies = policies
        self._cycle.learn = settings.scheduler.learn_run_times
        self._chores.settings = settings.store
        await self._configure(settings)
        if self._loops is not None:
            self._loops.turn(settings.centers, settings.scheduler, unchanged=before)

    async def _finish(self) -> None:
        """What is in flight ends, within `shutdown_s`; what is left is in the store."""
        within_s = self._settings.server.shutdown_s
        try:
            async with asyncio.timeout(within_s):
                await self._chores.stop()
                await self._dispatch.drain()
        except TimeoutError:
            log.warning("shutdown_cut_short", after_s=within_s)
        await self._collect.drain()

    async def _release(self) -> None:
        try:
            await self._shared.lease.release()
        except StoreUnavailable as error:
            log.warning("lease_not_released", error=str(error))

    async def step_down(self) -> None:
        """Another daemon leads: what is under way is given up, for it is that one's now."""
        self._shared.lease.lost()
        await self._chores.stop()
        await self._dispatch.abandon()
        await self._collect.drain()

    async def aclose(self) -> None:
        await self.connections.aclose()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _entry(center: CenterSettings) -> CenterEntry:
    """A center as the store keeps it.  The account is what must not change under live runs."""
    known = {**center.connection, **center.credentials}
    account = [center.adapter, *(str(known[key]) for key in IDENTITY if key in known)]
    return CenterEntry(
        id=center.id,
        name=center.name,
        province=center.province,
        city=center.city,
        desc=center.desc,
        adapter=center.adapter,
        account=" ".join(account),
        state=center.state,
        max_in_flight=center.max_in_flight,
    )
