"""The daemon's loops: one task for each thing that turns, and two for every center.

What belongs here: starting them, and which ones a changed configuration replaces.  What does not: how a
loop goes round (supervise.py) and what it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

from broker import service
from broker.config import CenterSettings, SchedulerSettings
from broker.connections import Connections
from broker.core.model import CenterId
from broker.core.resources import Catalogue
from broker.files import DataDirectory
from broker.inventory import Poll
from broker.leader import Lease
from broker.store import Store, centers
from broker.supervise import loop
from broker.telemetry import log
from broker.track import Track

DISPATCH_PERIOD_S = 1.0
COLLECT_PERIOD_S = 5.0
CLOCK_PERIOD_S = 1.0
LAPSED_S = 0.2
"""A pass that was due while the lease had run out is made so much later."""


class Loops:
    """The loops of one task group, which ends with the first of them that fails."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        stopping: asyncio.Event,
        *,
        store: Store,
        lease: Lease,
        connections: Connections,
        files: DataDirectory,
        catalogue: Catalogue,
    ) -> None:
        self._group = group
        self._stopping = stopping
        self._store = store
        self._lease = lease
        self._connections = connections
        self._files = files
        self._catalogue = catalogue
        self._of_center: dict[CenterId, list[asyncio.Task[None]]] = {}

    def start(
        self, name: str, once: Callable[[], Awaitable[float | None]], period_s: float, *, rest: float = 0.0
    ) -> asyncio.Task[None]:
        """Turn `once` until the daemon stops; `name` is also the wake-up that it listens to."""
        wake = self._store.wakeup(name)

        async def led() -> float | None:
            if self._lease.left_s() <= 0:  # it may be renewed yet; if another leads, the renewal tells
                service.alive()  # what keeps the store from renewing is not mended by a new process
                return LAPSED_S
            return await once()

        turning = loop(name, led, period_s=period_s, wake=wake, stopping=self._stopping, rest=rest)
        return self._group.create_task(turning, name=name)

    def turn(
        self,
        named: Iterable[CenterSettings],
        scheduler: SchedulerSettings,
        *,
        unchanged: Collection[CenterSettings] = (),
    ) -> None:
        """Poll and track centers; those that are `unchanged` go on as they are."""
        for center in named:
            if center.id in self._of_center and center in unchanged:
                continue
            for task in self._of_center.pop(center.id, []):
                task.cancel()
            poll = Poll(
                center.id,
                store=self._store,
                lease=self._lease,
                connections=self._connections,
                catalogue=self._catalogue,
                settings=scheduler,
            )
            self._of_center[center.id] = [
                self.start(f"inventory:{center.id}", poll.once, center.poll_interval_s),
                self._track(center.id, scheduler, center.poll_interval_s),
            ]

    async def mind_removed(self, scheduler: SchedulerSettings) -> None:
        """Centers that the file no longer names but where runs live: without their options they
        cannot be reached, so their runs become UNKNOWN, and the operator is told."""
        for center in await self._store.read(centers.obliged):
            if center in self._of_center:
                continue
            log.error(
                "center_removed_with_live_runs", center=center, hint='put it back, with state = "drain"'
            )
            self._of_center[center] = [self._track(center, scheduler, DISPATCH_PERIOD_S)]

    def _track(self, center: CenterId, scheduler: SchedulerSettings, period_s: float) -> asyncio.Task[None]:
        track = Track(
            center,
            store=self._store,
            lease=self._lease,
            connections=self._connections,
            files=self._files,
            settings=scheduler,
        )
        return self.start(f"track:{center}", track.once, period_s)
