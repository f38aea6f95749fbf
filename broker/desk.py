"""What platforms ask the broker, answered from memory: prices, and how their users stand.

What belongs here: a picture of links, purses and prices that is at most some seconds old.  What does
not: any platform's questions (adapters).  Answers never wait for the store or for a center.
"""

from __future__ import annotations

from dataclasses import replace
from zoneinfo import ZoneInfo

from broker.adapter import Standing
from broker.core.localtime import minute_of_week
from broker.core.model import CenterId, NodeShape, Pool
from broker.core.resources import Catalogue, rate_micro_per_hour, same_card_memory
from broker.store import Store, views
from broker.store.views import DeskFacts


class MemoryDesk:
    """broker.adapter.Desk; `once()` looks at the store."""

    def __init__(self, *, store: Store, catalogue: Catalogue, zone: ZoneInfo) -> None:
        self._store = store
        self._catalogue = catalogue
        self._zone = zone
        self._facts: DeskFacts | None = None

    async def once(self) -> None:
        """Take a new picture; a write that changes it wakes this loop."""
        self._facts = await self._store.read(views.desk_facts, self._store.clock())

    async def look(self) -> None:
        await self.once()

    def standing(self, center: CenterId, user: str) -> Standing | None:
        if self._facts is None or (linked := self._facts.users.get((center, user))) is None:
            return None
        tenant, frozen = linked
        left = self._facts.left.get(tenant)
        return Standing(not frozen and (left is None or left > 0), left)

    def rate_micro(self, center: CenterId, shape: NodeShape) -> int | None:
        if self._facts is None:
            return None
        minute = minute_of_week(self._store.clock(), self._zone)
        product = self._catalogue.canonical(shape.accelerator) or shape.accelerator
        wanted = replace(shape, accelerator=product)
        rates = [
            rate_micro_per_hour(pool, replace(wanted, card_permille=pool.shape.card_permille), 1, minute)
            for pool in self._facts.pools.get(center, ())
            if _holds(pool, wanted)
        ]
        return min(rates, default=None)


def _holds(pool: Pool, wanted: NodeShape) -> bool:
    """Whether nodes of the pool can be cut so."""
    node = pool.shape
    return (
        wanted.accelerator == node.accelerator
        and wanted.arch == node.arch
        and (not wanted.accelerator_memory_gib or same_card_memory(node, wanted))
        and wanted.accelerators <= node.accelerators
        and wanted.cores <= node.cores
        and wanted.memory_gib <= node.memory_gib
    )
