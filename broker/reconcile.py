"""Asks centers for their own record of ended runs and lets bills be compared with it.

What belongs here: when a center is asked, and for how long.  What does not: what a difference means
(broker.store.meters).  Records come late, so a center is asked again, each time later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from broker.adapter import AdapterError, RunRef, Spans, meters_of
from broker.connections import Connections, timed
from broker.core.model import RunId
from broker.leader import Lease
from broker.store import Store, meters
from broker.store.meters import Unmatched
from broker.telemetry import log

AT_ONCE = 500
"""Runs in one pass."""
TIMEOUT_S = 60
FIRST_PAUSE_S = 15
LONGEST_PAUSE_S = 6 * 3600
TRIES = 20
"""After so many, about three days, the broker's own measure stands."""


def pause_s(tries: int) -> int:
    """Seconds until a center is asked again: 15, 30, 60 … six hours."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S << min(tries, 20))


class Reconcile:
    """`once()` asks every center that is due."""

    def __init__(self, *, store: Store, lease: Lease, connections: Connections) -> None:
        self._store = store
        self._lease = lease
        self._connections = connections

    async def once(self) -> None:
        due = await self._store.read(meters.unmatched, self._store.clock(), AT_ONCE)
        for center in sorted({each.center for each in due}):
            await self._ask([each for each in due if each.center == center])

    async def _ask(self, due: Sequence[Unmatched]) -> None:
        """One center; a run that it has no whole record of is asked for again later."""
        center = due[0].center
        refs = [RunRef(each.run, each.job, each.remote, each.nodes) for each in due]
        found: Mapping[RunId, Spans] = {}
        try:
            source = meters_of(await self._connections.adapter(center))
            if source is not None:  # else the platform was changed, and nobody keeps a record any more
                found = await timed(center, "metered", partial(source.metered, refs), TIMEOUT_S)
        except (AdapterError, TimeoutError) as error:
            log.warning("records_not_read", center=center, error=str(error))
        for each in due:
            spans = found.get(each.run, ())
            if await self._store.write(meters.match, each.run, spans, epoch=self._lease.epoch):
                continue
            given_up = each.tries + 1 >= TRIES
            if given_up:
                log.warning("record_given_up", center=center, run=each.run)
            next_ms = None if given_up else self._store.clock() + pause_s(each.tries) * 1000
            await self._store.write(meters.ask_again, each.run, next_ms, epoch=self._lease.epoch)
