"""Moves data sets to centers: repeats each copy's idempotent step until it is READY or FAILED."""

from __future__ import annotations

from dataclasses import replace

from broker.adapter import AdapterError, CopyRef, CopySighting, CopyState
from broker.connections import Connections, timed
from broker.files import DataDirectory
from broker.leader import Lease
from broker.store import Store, datasets
from broker.telemetry import log

STEP_TIMEOUT_S = 600


class Stage:
    """`once()` makes one step of every copy that is under way."""

    def __init__(self, *, store: Store, lease: Lease, connections: Connections, files: DataDirectory) -> None:
        self._store = store
        self._lease = lease
        self._connections = connections
        self._files = files

    async def once(self) -> float | None:
        """A step each; soon again while something moves."""
        moving = await self._store.read(datasets.moving)
        for copy in moving:
            seen = await self._step(copy)
            await self._store.write(datasets.record_copy, copy, seen, epoch=self._lease.epoch)
        return 0.5 if moving else None

    async def _step(self, copy: CopyRef) -> CopySighting:
        source = replace(copy, source=str(self._files.dataset(copy.source)))
        try:
            adapter = await self._connections.adapter(copy.center)
            return await timed(copy.center, "stage", lambda: adapter.stage(source), STEP_TIMEOUT_S)
        except (AdapterError, TimeoutError) as error:
            log.warning("stage_failed", dataset=copy.dataset, center=copy.center, error=str(error))
            return CopySighting(CopyState.FAILED, copy.remote, message=str(error))
