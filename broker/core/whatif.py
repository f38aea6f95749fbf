"""What change of a waiting job's request would start it now.

What belongs here: which changes are tried, and trying each: a round of the production scheduler on the
snapshot with this one request changed.  What does not: changing anything.

A change is told only when such a round places the job.  That is feasibility at one moment, not a
promise: nothing is held, and what others do meanwhile is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from broker.core.charges import MICRO_PER_FEN
from broker.core.model import JobId, JobRequest, RunTime, Snapshot, Spec, TenantId
from broker.core.plan import Placement, Plan, grouped
from broker.core.policy import PolicySet
from broker.core.queue import as_queue
from broker.core.resources import effective_gflops, millicards, rate_micro_per_hour, slices
from broker.core.scheduler import schedule
from broker.core.solver import LP

ROUNDS = 16
"""What-if rounds for one job at most; what is not found by then is not told."""

SPECS = 6
"""Of these, rounds with another spec."""

PRICES = 4
"""Of these, rounds that look for a lower price."""

KEY = "what-if"


class Field(StrEnum):
    """What is changed, by its name in the queue API's `config`."""

    CENTERS = "centerId"
    PRICE = "maxPrice"
    NODES = "nodeCount"
    SPEC = "specId"


@dataclass(frozen=True, slots=True)
class Change:
    """A request that differs in one field, and where a round of this moment places it."""

    field: Field
    request: JobRequest
    placement: Placement


def placed(plan: Plan, job: JobId) -> Placement | None:
    """Where a plan starts a job, None where it waits."""
    found = (alike.kind for alike in grouped(plan.placements) if job in alike.jobs)
    kind = next(found, None)
    return None if kind is None else replace(kind, job=job)


class Trials:
    """What-if rounds for one waiting job; `left` of them may still be made.

    `learned` gives the run time of a changed request.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        policies: PolicySet,
        job: JobId,
        *,
        lp: LP,
        learned: Callable[[JobRequest, TenantId], RunTime | None] = lambda _request, _tenant: None,
        rounds: int = ROUNDS,
    ) -> None:
        """Raises ValueError when the job does not wait in the snapshot."""
        mine = next((c for c in snapshot.classes if job in as_queue(c.jobs).ids), None)
        if mine is None:
            raise ValueError(f"job {job} does not wait in snapshot {snapshot.version}")
        queue = as_queue(mine.jobs)
        one = queue[list(queue.ids).index(job)]
        others = tuple(c for c in snapshot.classes if c is not mine)
        rest = replace(mine, jobs=queue.changed((one,), ()))
        self._others = replace(snapshot, classes=(*others, rest))
        self._class = replace(mine, key=KEY, jobs=(one,))
        self._policies, self._lp, self._learned = policies, lp, learned
        self.snapshot = snapshot
        self.left = rounds

    def starts(self, request: JobRequest) -> Placement | None:
        """Where the job would start with this request; None: it waits, or no round is left."""
        if self.left <= 0:
            return None
        self.left -= 1
        changed = replace(self._class, request=request, learned=self._learned(request, self._class.tenant))
        world = replace(self._others, classes=(*self._others.classes, changed))
        return placed(schedule(world, self._policies, self._lp), self._class.jobs[0].id)


def what_if(trials: Trials, request: JobRequest) -> tuple[Change, ...]:
    """The changes of one field each that start the job: at other centers, at the least higher price,
    on the most nodes, with the cheapest other spec."""
    found = (
        _elsewhere(trials, request),
        _dearer(trials, request),
        _fewer_nodes(trials, request),
        _another_spec(trials, request),
    )
    return tuple(change for change in found if change is not None)


def _elsewhere(trials: Trials, request: JobRequest) -> Change | None:
    if not request.centers:
        return None
    anywhere = replace(request, centers=())
    at = trials.starts(anywhere)
    return None if at is None else Change(Field.CENTERS, anywhere, at)


def _dearer(trials: Trials, request: JobRequest) -> Change | None:
    """Without a ceiling first, then below the price found, as long as that works."""
    if request.max_price_micro is None:
        return None
    at = trials.starts(replace(request, max_price_micro=None))
    for _ in range(PRICES):
        if at is None or at.rate_micro_per_hour <= 0:
            break
        below = _ceiling(request, at.rate_micro_per_hour - 1, round_up=False)
        if below <= request.max_price_micro:
            break
        cheaper = trials.starts(replace(request, max_price_micro=below))
        if cheaper is None:
            break
        at = cheaper
    if at is None:
        return None
    enough = replace(request, max_price_micro=_ceiling(request, at.rate_micro_per_hour, round_up=True))
    confirmed = trials.starts(enough)
    return None if confirmed is None else Change(Field.PRICE, enough, confirmed)


def _ceiling(request: JobRequest, rate_micro: int, *, round_up: bool) -> int:
    """Least micro-CNY for the whole job that allow this price per hour; with `round_up` in whole fen."""
    needed = -(-rate_micro * request.estimate_s // 3600)
    return -(-needed // MICRO_PER_FEN) * MICRO_PER_FEN if round_up else needed


def _fewer_nodes(trials: Trials, request: JobRequest) -> Change | None:
    """The most nodes that start, by halving."""
    best: Change | None = None
    few, many = 1, request.nodes - 1
    while few <= many:
        nodes = (few + many + 1) // 2
        fewer = replace(request, nodes=nodes)
        at = trials.starts(fewer)
        if at is None:
            many = nodes - 1
        else:
            best, few = Change(Field.NODES, fewer, at), nodes + 1
    return best


def _another_spec(trials: Trials, request: JobRequest) -> Change | None:
    for tried, spec in enumerate(other_specs(trials.snapshot, request)):
        if tried >= SPECS:
            break
        other = replace(request, spec=spec, min_gflops=0)
        if (at := trials.starts(other)) is not None:
            return Change(Field.SPEC, other, at)
    return None


def other_specs(snapshot: Snapshot, request: JobRequest) -> Iterator[Spec]:
    """Specs of the centers' pools that the job could ask for instead.

    Of as many cards (cores where it asks for none) or more the cheapest first, then smaller ones, the
    largest first.  A job that asks for power can have what is strong enough already, so it is offered
    what is weaker, the strongest first.
    """
    prices: dict[Spec, int] = {}
    for pool in snapshot.pools:
        for spec in pool.specs or slices(pool.shape):
            price = rate_micro_per_hour(pool, spec.shape, 1, snapshot.minute_of_week)
            prices[spec] = min(price, prices.get(spec, price))
    if request.spec is None:
        power = {spec: effective_gflops(spec.shape, snapshot.accelerators) for spec in prices}
        weaker = [spec for spec, gflops in power.items() if 0 < gflops < request.min_gflops]
        yield from sorted(weaker, key=lambda spec: (-power[spec], prices[spec], spec.id))
        return
    own = request.spec.shape
    size = {spec: millicards(spec.shape) for spec in prices}
    wanted = millicards(own)
    alike = [
        spec
        for spec in prices
        if spec.id != request.spec.id and bool(spec.shape.accelerators) == bool(own.accelerators)
    ]
    enough = [spec for spec in alike if size[spec] >= wanted]
    fewer = [spec for spec in alike if size[spec] < wanted]
    yield from sorted(enough, key=lambda spec: (prices[spec], size[spec], spec.id))
    yield from sorted(fewer, key=lambda spec: (-size[spec], prices[spec], spec.id))
