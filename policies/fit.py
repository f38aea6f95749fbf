"""Every hard test of whether a class of jobs may use a pool, each with its code and numbers.

What belongs here: facts that no weight can outbid.  What does not: room (rows of the problem) and
preferences (cost, wait).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from broker.core.explain import Code
from broker.core.model import EVERY_CENTER, DataFacts, Kind, Snapshot
from broker.core.policy import IntArray, Verdict
from broker.core.problem import BoolArray, Problem

Test = tuple[Code, BoolArray, IntArray | int, IntArray | int]
"""(code, fails, need, have), over the pools asked for."""


_ALLOWED = int(Code.ALLOWED)


@dataclass(frozen=True, slots=True)
class Fit:
    """The hard tests.  It has no keys: an operator cannot switch single tests off."""

    def depends(self, snapshot: Snapshot) -> Hashable:
        """How it stands with the data of waiting jobs."""
        return tuple(sorted(snapshot.ready_data.items(), key=lambda item: item[0]))

    def allow(self, p: Problem, k: int, pools: IntArray) -> Verdict:
        """The first failing test per pool, in the order of explain.Code."""
        return self._verdict(p, k, pools, data=True)

    def _verdict(self, p: Problem, k: int, pools: IntArray, *, data: bool) -> Verdict:
        found = _first(len(pools), self._center_tests(p, k, pools))
        _go_on(found, self._by_node(p, k), pools)
        tests = [*self._job_tests(p, k, pools)]
        if data and p.classes[k].request.datasets:
            tests += self._data_tests(p, k, pools)
        return _first(len(pools), tests, found)

    def _by_node(self, p: Problem, k: int) -> Verdict:
        """What a node of every pool fails for the request of a class, worked out once for all like it."""
        notes = p.fittings[k].notes
        if Fit not in notes:
            everywhere = np.arange(len(p.pools), dtype=np.int64)
            notes[Fit] = _first(len(everywhere), self._node_tests(p, k, everywhere))
        known: Verdict = notes[Fit]
        return known

    def _center_tests(self, p: Problem, k: int, pools: IntArray) -> Iterator[Test]:
        request = p.classes[k].request
        at = p.pool.center[pools]
        if request.centers:
            named = np.array([c.id in request.centers for c in p.centers], dtype=np.bool_)
            yield Code.CENTER_NOT_LISTED, ~named[at], 1, 0
        closed = p.center.closed[at]
        for code in np.unique(closed[closed != Code.ALLOWED]).tolist():
            yield Code(code), closed == code, 1, 0
        if request.kind is Kind.ONLINE:
            yield Code.SERVICE_UNSUPPORTED, ~p.center.services[at], 1, 0
        if request.image_id or request.image_url:
            usable = [
                request.image_id in c.images if request.image_id else c.any_image_url for c in p.centers
            ]
            yield Code.IMAGE_UNAVAILABLE, ~np.array(usable, dtype=np.bool_)[at], 1, 0
        # Only the stated limit counts: an estimate is shared by a class within a factor of two.
        if request.max_run_time_s is not None:
            longest = p.center.max_run_time_s[at]
            too_long = (longest >= 0) & (request.max_run_time_s > longest)
            yield Code.MAX_RUN_TIME, too_long, request.max_run_time_s, longest
        if request.nodes > 1:
            yield Code.GANG_UNSUPPORTED, ~p.center.gang[at], request.nodes, 1

    def _node_tests(self, p: Problem, k: int, pools: IntArray) -> Iterator[Test]:
        request, fitting, node = p.classes[k].request, p.fittings[k], p.pool
        if request.spec is not None:
            shape = request.spec.shape
            yield Code.NO_PRODUCT, node.product[pools] != shape.accelerator, max(1, shape.accelerators), 0
            yield Code.ARCH_MISMATCH, node.arch[pools] != shape.arch, 1, 0
            if shape.accelerators:
                memory, whole = node.card_memory_gib[pools], node.card_permille[pools]
                step = node.split_permille[pools]
                part = (step > 0) & (shape.card_permille < whole)
                wanted = shape.accelerator_memory_gib
                other = np.where(part, memory < wanted, memory != wanted)
                yield Code.CARD_MEMORY_MISMATCH, other, wanted, memory
                given = part & (shape.accelerators == 1) & (shape.card_permille % np.maximum(step, 1) == 0)
                yield Code.CARD_PART, (shape.card_permille != whole) & ~given, shape.card_permille, whole
        for code, wanted_of, there_of in (
            (Code.CARDS_PER_NODE, fitting.cards, node.cards),
            (Code.CORES_PER_NODE, fitting.cores, node.cores),
            (Code.MEMORY_PER_NODE, fitting.memory_gib, node.memory_gib),
        ):
            wants, there = wanted_of[pools], there_of[pools]
            yield code, wants > there, wants, there
        yield Code.SPEC_NOT_OFFERED, ~fitting.offered[pools], 1, node.offers[pools]
        if request.spec is None:
            power = fitting.gflops[pools]
            yield (
                Code.POWER,
                (power < request.min_gflops) | (fitting.spec[pools] < 0),
                request.min_gflops,
                power,
            )

    def _job_tests(self, p: Problem, k: int, pools: IntArray) -> Iterator[Test]:
        job_class = p.classes[k]
        request = job_class.request
        nodes = p.pool.nodes[pools]
        # A pool that cannot be counted (no nodes stated, idle unknown) is not tested by its nodes.
        counted = ~(p.pool.unknown[pools] & (nodes == 0))
        yield Code.GANG_NODES, counted & (request.nodes > nodes), request.nodes, nodes
        ceiling = request.max_rate_micro
        if ceiling is not None:
            rate = p.job_rate(k, pools)
            yield Code.PRICE_CEILING, rate > ceiling, ceiling, rate
        if job_class.avoid:
            avoided = np.array([c.id in job_class.avoid for c in p.centers], dtype=np.bool_)
            yield Code.AVOIDED, avoided[p.pool.center[pools]], 1, 0
            yield Code.RESTART_PAUSE, np.full(len(pools), EVERY_CENTER in job_class.avoid), 1, 0

    def _data_tests(self, p: Problem, k: int, pools: IntArray) -> Iterator[Test]:
        """Nothing is held where data is on its way, and it is brought to one place at a time.

        A class whose data moves to a center that it could use waits for it there; meanwhile it may start
        where all of it is ready.
        """
        wanted = [p.snapshot.ready_data.get(d, _NOT_HERE) for d in p.classes[k].request.datasets]
        there = np.array([sum(c.id in f.ready for f in wanted) for c in p.centers], dtype=np.int64)
        fixed = [sum(c.id in f.ready or not f.fixed for f in wanted) for c in p.centers]
        usable = np.array(fixed, dtype=np.int64)
        coming = np.array([any(c.id in f.moving for f in wanted) for c in p.centers], dtype=np.bool_)
        failed = np.array([any(c.id in f.failed for f in wanted) for c in p.centers], dtype=np.bool_)
        at = p.pool.center[pools]
        yield Code.DATA_UNAVAILABLE, (usable < len(wanted))[at], len(wanted), usable[at]
        waits = coming | failed
        if coming.any():
            everywhere = np.arange(len(p.pools), dtype=np.int64)
            fits = self._verdict(p, k, everywhere, data=False).codes == Code.ALLOWED
            awaited = (coming & (usable == len(wanted)))[p.pool.center] & fits
            waits = waits | bool(awaited.any())
        yield Code.STAGING, (waits & (there < len(wanted)))[at], len(wanted), there[at]


def _first(count: int, tests: Iterable[Test], found: Verdict | None = None) -> Verdict:
    """The first test that each of so many pools fails; those that `found` has come before."""
    if found is None:
        found = Verdict(*(np.zeros(count, dtype=np.int64) for _ in range(3)))
    for code, fails, wanted, there in tests:
        first = fails & (found.codes == _ALLOWED)
        if first.any():
            found.codes[first] = code
            found.need[first] = np.broadcast_to(wanted, first.shape)[first]
            found.have[first] = np.broadcast_to(there, first.shape)[first]
    return found


def _go_on(found: Verdict, known: Verdict, pools: IntArray) -> None:
    """Adds what is `known` of all pools where nothing was found before."""
    first = np.flatnonzero((found.codes == _ALLOWED) & (known.codes[pools] != _ALLOWED))
    if len(first):
        at = pools[first]
        found.codes[first], found.need[first] = known.codes[at], known.need[at]
        found.have[first] = known.have[at]


_NOT_HERE = DataFacts(bytes=0, ready=frozenset())
"""Of a snapshot that does not tell: it can be brought anywhere."""
