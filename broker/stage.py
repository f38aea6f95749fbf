"""Moves data sets to centers and removes them there.

What belongs here: each copy's idempotent step, repeated until it is READY or FAILED, patience with
centers, and the order to remove what a center's cache has no room for.  What does not: what is moved
where and what may go (broker.store.copies), and bytes (adapters).

Where a copy is lies in the store and at the center, so a daemon that starts again goes on from there.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import groupby

from broker.adapter import (
    AdapterError,
    CopySighting,
    CopyState,
    Denied,
    Refused,
    Throttled,
    Unsupported,
    unstage_of,
)
from broker.connections import Connections, timed
from broker.core.model import CenterId
from broker.files import DataDirectory
from broker.leader import Lease
from broker.store import Store, copies
from broker.store.copies import CopyWork
from broker.telemetry import log

STEP_TIMEOUT_S = 600
TRIES = 8
"""Steps in a row without an outcome after which a copy has failed."""
FIRST_WAIT_S = 2
LONGEST_WAIT_S = 300
GIB = 1 << 30


class Stage:
    """`once()` makes one step of every copy that is due."""

    def __init__(self, *, store: Store, lease: Lease, connections: Connections, files: DataDirectory) -> None:
        self._store = store
        self._lease = lease
        self._connections = connections
        self._files = files

    async def once(self) -> float | None:
        """A step each, center by center; soon again while something moves."""
        await self._make_room()
        work = await self._store.read(copies.due, self._store.clock())
        by_center = sorted(work, key=lambda each: each.ref.center)  # stable: the longest waiting first
        at = [list(group) for _, group in groupby(by_center, key=lambda each: each.ref.center)]
        moved = await asyncio.gather(*(self._at_center(each) for each in at))
        return 0.5 if any(moved) else None

    async def _at_center(self, work: list[CopyWork]) -> bool:
        """One step after the other: a center is not asked for several at once.  Whether one goes on."""
        moved = [await (self._remove(each) if each.evicting else self._bring(each)) for each in work]
        return any(moved)

    async def _bring(self, work: CopyWork) -> bool:
        copy = work.ref
        source = replace(copy, source=str(self._files.dataset(copy.source)))
        try:
            adapter = await self._connections.adapter(copy.center)
            seen = await timed(copy.center, "stage", lambda: adapter.stage(source), STEP_TIMEOUT_S)
        except (Denied, Refused, Unsupported) as error:
            seen = CopySighting(CopyState.FAILED, copy.remote, message=str(error))
        except Exception as error:
            if await self._again(work, "stage", error):
                return False
            seen = CopySighting(CopyState.FAILED, copy.remote, message=_told(error))
        if seen.state is CopyState.FAILED:
            log.warning("stage_failed", dataset=copy.dataset, center=copy.center, error=seen.message)
        await self._store.write(copies.record_copy, copy, seen, epoch=self._lease.epoch)
        return seen.state is CopyState.MOVING

    async def _remove(self, work: CopyWork) -> bool:
        """Until the center has done it: it is owed (law 11)."""
        copy, message = work.ref, ""
        source = replace(copy, source=str(self._files.dataset(copy.source)))
        try:
            adapter = await self._connections.adapter(copy.center)
            if (unstage := unstage_of(adapter)) is None:
                message = "this kind of center cannot remove data sets; the copy stays there"
            else:
                await timed(copy.center, "unstage", lambda: unstage(source), STEP_TIMEOUT_S)
        except Unsupported as error:
            message = f"{error}; the copy stays there"
        except Exception as error:
            await self._again(work, "unstage", error)
            return False
        if message:
            log.warning("copy_left_behind", dataset=copy.dataset, center=copy.center, reason=message)
        await self._store.write(copies.record_removed, copy, message=message, epoch=self._lease.epoch)
        return False

    async def _again(self, work: CopyWork, call: str, error: Exception) -> bool:
        """Plan the next try; False when a copy to be brought has had its tries."""
        copy, tries = work.ref, work.tries + 1
        if not isinstance(error, AdapterError | TimeoutError):
            log.exception("stage_defect", dataset=copy.dataset, center=copy.center, call=call)
        if tries >= TRIES and not work.evicting:
            return False
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 10))
        if isinstance(error, Throttled):
            wait_s = max(wait_s, error.retry_after_s)
        log.warning(
            f"{call}_postponed", dataset=copy.dataset, center=copy.center, tries=tries, error=_told(error)
        )
        next_ms = self._store.clock() + round(wait_s * 1000)
        await self._store.write(
            copies.record_failed_step, copy, _told(error), next_ms=next_ms, epoch=self._lease.epoch
        )
        return True

    async def _make_room(self) -> None:
        """Where copies take more than the center's cache may hold: order the removal of unused ones."""
        for center, size in (await self._store.read(copies.filled)).items():
            limit = self._limit_bytes(center)
            if limit is None or size <= limit or not await self._removes(center):
                continue
            evicted = await self._store.write(
                copies.evict, center, limit_bytes=limit, epoch=self._lease.epoch
            )
            if evicted:
                log.info("copies_evicted", center=center, datasets=evicted, bytes=size, limit_bytes=limit)

    def _limit_bytes(self, center: CenterId) -> int | None:
        if center not in self._connections.known():
            return None  # the file does not name it any more
        return self._connections.settings(center).dataset_cache_gib * GIB or None

    async def _removes(self, center: CenterId) -> bool:
        try:
            return unstage_of(await self._connections.adapter(center)) is not None
        except AdapterError:
            return False


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the center did not answer in time"
    return str(error) or type(error).__name__
