"""The rows of what is held: a reservation as limits of a problem.

What belongs here: who may use held capacity, as rows.  What does not: what is held in a pool and for
how long (core/snapshot.py) and making reservations (core/holds.py).

The slot rows of a problem have a pool's full supply, so every plan packs.  Where something is held,
further rows bind those that must leave it alone: with the first i reservations taken off, one row
for each slot size, over the options that leave at least i alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from broker.core.explain import Code
from broker.core.policy import Limit
from broker.core.snapshot import Holding, in_flight_room, supply

if TYPE_CHECKING:
    from broker.core.problem import Problem


def held_limits(p: Problem) -> tuple[Limit, ...]:
    """Rows for the pools in which something is held, and for the in-flight room of who may start."""
    if not p.holdings:
        return ()
    limits = [
        limit
        for at, pool in enumerate(p.pools)
        if pool.id in p.holdings
        for limit in _slot_limits(p, at, p.holdings[pool.id])
    ]
    return (*limits, *_in_flight_limits(p))


def _slot_limits(p: Problem, at: int, holding: Holding) -> list[Limit]:
    options = np.flatnonzero(p.option_pool == at)
    classes = [p.classes[k] for k in p.option_class[options].tolist()]
    depth = np.array([holding.depth(c, p.snapshot.now_ms) for c in classes], dtype=np.int64)
    nodes = np.array([c.request.nodes for c in classes], dtype=np.int64)
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
