"""The rows of what is held: a reservation as limits of a problem.

What belongs here: who may use held capacity, as rows.  What does not: what is held in a pool and for
how long (core/snapshot.py) and making reservations (core/holds.py).

The slot rows of a problem have a pool's full supply, so every plan packs.  Where something is held,
further rows bind those that must leave it alone: with the first i reservations taken off, one row
for each slot size, over the options that leave at least i alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from broker.core.explain import Code
from broker.core.fitting import IntArray, ints
from broker.core.model import JobId
from broker.core.policy import Limit
from broker.core.snapshot import Holding, in_flight_room, longest_estimate_s, supply

if TYPE_CHECKING:
    from broker.core.problem import Problem


def held_limits(p: Problem) -> tuple[Limit, ...]:
    """Rows for the pools in which something is held, and for the in-flight room of who may start."""
    if not p.holdings:
        return ()
    facts = _Classes(
        first=[c.jobs[0].id if c.jobs else None for c in p.classes],
        nodes=ints(c.request.nodes for c in p.classes),
        ends_ms=ints(p.snapshot.now_ms + longest_estimate_s(c.request) * 1000 for c in p.classes),
    )
    limits = [
        limit
        for at, pool in enumerate(p.pools)
        if pool.id in p.holdings
        for limit in _slot_limits(p, at, p.holdings[pool.id], facts)
    ]
    return (*limits, *_in_flight_limits(p))


@dataclass(frozen=True, slots=True, eq=False)
class _Classes:
    """Of every class the first job, the nodes of a job, and when one that starts now ends at the latest."""

    first: list[JobId | None]
    nodes: IntArray
    ends_ms: IntArray


def _depths(holding: Holding, ks: IntArray, facts: _Classes) -> IntArray:
    """Holding.depth of many classes at once."""
    place = {r.job: i for i, r in enumerate(holding.reservations)}
    none = len(holding.reservations)
    depth = ints(none if (job := facts.first[k]) is None else place.get(job, none) for k in ks.tolist())
    # The first start among those left alone; a class that leaves none alone is bound by none.
    earliest = np.minimum.accumulate([np.iinfo(np.int64).max, *holding.starts_ms])
    return np.where(facts.ends_ms[ks] <= earliest[depth], 0, depth)


def _slot_limits(p: Problem, at: int, holding: Holding, facts: _Classes) -> list[Limit]:
    options = np.flatnonzero(p.option_pool == at)
    ks = p.option_class[options]
    depth, nodes = _depths(holding, ks, facts), facts.nodes[ks]
    tau, pool = p.tau[options], p.pools[at]
    limits = []
    for level in range(1, len(holding.reservations) + 1):
        bound = depth >= level
        for size in np.unique(tau[bound]).tolist():
            mine = bound & (tau >= size)
            limits.append(
                Limit(
                    name=f"held:{pool.id}:{size}:{level}",
                    code=Code.RESERVED,
                    options=options[mine],
                    coefficients=nodes[mine] * (tau[mine] // size),
                    bound=supply(pool.shape, holding.free[level], size),
                )
            )
    return limits


def _in_flight_limits(p: Problem) -> list[Limit]:
    """A job that may start now must find room at its center, too."""
    now_ms = p.snapshot.now_ms
    ready: dict[str, set[str]] = {}
    for pool in p.pools:
        if (holding := p.holdings.get(pool.id)) is not None:
            for hold, start_ms in zip(holding.reservations, holding.starts_ms, strict=True):
                if start_ms <= now_ms:
                    ready.setdefault(pool.center, set()).add(hold.job)
    limits = []
    for at, center in enumerate(p.centers):
        jobs = ready.get(center.id)
        if jobs is None:
            continue
        holders = [k for k, c in enumerate(p.classes) if c.jobs and c.jobs[0].id in jobs]
        here = p.pool.center[p.option_pool] == at
        others = np.flatnonzero(here & ~np.isin(p.option_class, holders))
        room = max(0, in_flight_room(center) - len(holders))
        limits.append(Limit(f"held-in-flight:{center.id}", Code.RESERVED, others, np.ones_like(others), room))
    return limits
