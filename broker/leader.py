"""The lease as its holder knows it: the epoch that fences writes, and the end after which no call
may leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from broker import service
from broker.store import LostLease, Store, StoreUnavailable
from broker.store import lease as rows
from broker.store.lease import Held
from broker.telemetry import LEADS, log

RENEW_AGAIN_S = 0.5
"""After a renewal that the store did not take."""

LOOK_S = 1.0
"""A standby looks that often, and at the moment when the lease runs out."""


def elapsed_ms() -> int:
    """Milliseconds that no change of the clock moves, and that pass while a machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Lease:
    """Use: `await lease.acquire()` or `stand_by(…)`, then `renew` well before `ttl_s` has passed.

    What its holder knows of the end is counted from before each renewal was asked for, by a clock that
    cannot be set: it ends no later here than in the database.
    """

    def __init__(
        self, store: Store, *, holder: str, ttl_s: float, clock: Callable[[], int] = elapsed_ms
    ) -> None:
        self._store = store
        self._clock = clock
        self._ends_ms = 0
        self.holder = holder
        self.ttl_s = ttl_s
        self.epoch = 0

    async def acquire(self, *, alone: bool) -> bool:
        """Take the lease; False while another holds it."""
        asked_ms = self._clock()
        got = await self._store.write(rows.acquire, self.holder, self.ttl_s, alone=alone)
        if got is None:
            return False
        self.epoch, self._ends_ms = got, asked_ms + int(self.ttl_s * 1000)
        LEADS.set(1)
        log.info("lease_acquired", holder=self.holder, epoch=self.epoch)
        return True

    async def stand_by(self, stopping: asyncio.Event, *, alone: bool, told: Callable[[str], None]) -> bool:
        """Wait until this daemon leads; False when it is to stop before.

        `told` is called with each other daemon that leads meanwhile.
        """
        wake = self._store.wakeup(rows.WOKEN)
        leader = None
        while not stopping.is_set():
            wake.clear()
            wait_s = LOOK_S
            try:
                held = await self.now()
                if (held.left_ms <= 0 or alone) and await self.acquire(alone=alone):
                    return True
                if held.left_ms > 0:
                    wait_s = min(LOOK_S, held.left_ms / 1000)
                    if held.holder != leader:
                        leader = held.holder
                        told(leader)
            except StoreUnavailable as error:
                log.warning("store.unavailable", error=str(error))
            service.alive()
            await _first(stopping, wake, within_s=wait_s)
        return False

    async def keep(self) -> float | None:
        """Renew it; the seconds after which to try again where the store did not answer.

        Raises LostLease.
        """
        try:
            await self.renew()
        except StoreUnavailable as error:
            log.warning("lease_not_renewed", error=str(error), left_s=round(self.left_s(), 1))
            return RENEW_AGAIN_S
        return None

    async def renew(self) -> None:
        """Hold it longer.  Raises LostLease."""
        asked_ms = self._clock()
        await self._store.write(rows.renew, self.holder, self.epoch, self.ttl_s)
        self._ends_ms = asked_ms + int(self.ttl_s * 1000)

    async def now(self) -> Held:
        """Who leads, as the store has it."""
        return await self._store.read(rows.held, self._store.clock())

    def left_s(self) -> float:
        """Seconds in which calls may leave; negative once it has run out."""
        return (self._ends_ms - self._clock()) / 1000

    def check(self) -> None:
        """Right before a call.  Raises LostLease once the lease may have run out."""
        if self.left_s() <= 0:
            raise LostLease(f"the lease of epoch {self.epoch} has run out")

    def lost(self) -> None:
        """Another daemon leads: nothing may leave any more."""
        self._ends_ms = 0
        LEADS.set(0)

    async def release(self) -> None:
        self.lost()
        await self._store.write(rows.release, self.holder, self.epoch)


async def _first(*events: asyncio.Event, within_s: float) -> None:
    """Wait until one of them is set, or the time is up."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
