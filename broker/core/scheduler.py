"""One round: a snapshot and its policies become a plan.

What belongs here: the order of the steps.  What does not: any step (problem, greedy, solver,
explain, plan), threads and deadlines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace
from functools import cache, cached_property
from typing import TypeVar

import numpy as np

from broker.core.bound import lower_bound
from broker.core.check import violations
from broker.core.explain import (
    Alternative,
    Code,
    Reason,
    alternatives,
    explain_counts,
    held_reasons,
    reason,
)
from broker.core.forecast import Outlook
from broker.core.greedy import greedy
from broker.core.holds import hold
from broker.core.improve import improve
from broker.core.memory import Memory
from broker.core.model import CenterId, Snapshot
from broker.core.plan import Alike, Placements, Plan, Source
from broker.core.policy import PolicySet, Window
from broker.core.problem import IntArray, Problem, build
from broker.core.queue import Span, as_queue
from broker.core.rounding import whole_plan
from broker.core.sequence import in_sequence, plain_bound
from broker.core.snapshot import Free, in_force
from broker.core.solver import LP, WHOLE, SolverStatus, solve

T = TypeVar("T")

CLOSE = 0.02
"""Proven distance from the optimum, as a share of the objective, below which greedy is not tried."""


class InfeasiblePlan(Exception):
    """Neither candidate can be carried out: a defect, told with its story."""


def schedule(snapshot: Snapshot, policies: PolicySet, lp: LP | None = None) -> Plan:
    """The plan of one round.

    `lp` carries limits and whatever speeds up the next round; it changes neither validity nor what
    is optimal.  The greedy plan is a candidate wherever it could be better: in every small round, and
    where the relaxation did not come to its end or its plan is not proven within `CLOSE` of the
    optimum.  Raises InfeasiblePlan when the check finds fault with all candidates.
    """
    if not any(len(job_class.jobs) for job_class in snapshot.classes):
        return Plan(based_on=snapshot.version, bound=0, solver_status=SolverStatus.UNUSED)
    lp = LP() if lp is None else lp
    # 1 what is really free
    free = lp.memory.free(snapshot)
    if policies.sequential and not in_force(snapshot):
        return _one_after_the_other(snapshot, policies, free, lp)
    # 2 classes, options, rows
    problem = build(snapshot, policies, free, lp.memory)
    # 3 the relaxation
    relaxation = solve(problem, lp=lp)
    candidates: list[tuple[int, Source, IntArray]] = []
    if relaxation.status in (SolverStatus.OPTIMAL, SolverStatus.LIMIT, SolverStatus.PRICED):
        # 4 whole jobs: rounded down, filled, improved
        by_lp = whole_plan(problem, relaxation)
        by_lp = improve(problem, by_lp, -relaxation.duals, relaxation.reduced)
        candidates.append((problem.objective(by_lp), Source.LP, by_lp))
    # 5 the certificate, by the prices at hand
    if relaxation.status is SolverStatus.UNUSED:
        optimum = whole_plan(problem, relaxation)
        bound = problem.objective(optimum)
        candidates.append((bound, Source.GREEDY, optimum))
    else:
        bound = lower_bound(problem, -relaxation.duals, relaxation.reduced)
    if relaxation.status in (SolverStatus.LIMIT, SolverStatus.FAILED):
        bound = max(bound, lower_bound(problem, lp.last_prices(problem)))
    # 6 the baseline
    close = candidates and candidates[0][0] - bound <= CLOSE * abs(candidates[0][0])
    # A greedy plan already: the optimum, or one at better prices.
    greedily = relaxation.status in (SolverStatus.UNUSED, SolverStatus.PRICED)
    if not greedily and (len(problem.option_class) <= WHOLE or not close):
        by_greedy = greedy(problem)
        candidates.append((problem.objective(by_greedy), Source.GREEDY, by_greedy))
    # the better one first; the baseline where they are equal
    candidates.sort(key=lambda c: (c[0], c[1] is not Source.GREEDY))
    story = []
    for objective, source, y in candidates:
        # 7 jobs by name
        plan = Plan(
            based_on=snapshot.version,
            placements=placements(problem, y, lp.memory),
            objective=objective,
            bound=min(bound, candidates[0][0]),
            solver_status=relaxation.status,
            source=source,
        )
        # 8 what is held for whom, and which runs are stopped for it
        plan = hold(problem, plan, y, lp.memory)
        # 9 the independent check
        faults = violations(plan, snapshot, free, lp.checked)
        if not faults:
            # 10 reasons of what waits, and when it is expected to start
            told = Deferrals(problem, plan, y), Considered(problem, y)
            outlook = Outlook(lambda: problem, plan, y)
            return replace(plan, deferrals=told[0], considered=told[1], outlook=outlook)
        story.append(f"{source}: {'; '.join(faults[:5])} ({len(faults)} in all)")
    raise InfeasiblePlan(f"no plan for snapshot {snapshot.version}: {' | '.join(story)}")


def _one_after_the_other(snapshot: Snapshot, policies: PolicySet, free: Free, lp: LP) -> Plan:
    """The plan of a round whose jobs are placed one after the other (core/sequence.py).

    Its objective has what the policies' costs and worths say, as in other rounds; waste only decides
    where a job goes.  The bound is that of jobs which do not get in each other's way.
    """
    whole = policies.limited or policies.holds or bool(snapshot.funds)
    problem = build(snapshot, policies, free, lp.memory, rows=whole)
    started, held = in_sequence(problem, lp.places)
    width = len(problem.pools)
    asked = np.array([one.k * width + one.at for one in started], dtype=np.int64)
    options = np.searchsorted(problem.option_class * width + problem.option_pool, asked)
    y = np.bincount(options, minlength=len(problem.option_class))
    alike: list[Alike] = []
    for option, group in itertools.groupby(
        zip(options.tolist(), started, strict=True), key=lambda pair: pair[0]
    ):
        alike.append(Alike(problem.placement(option, exact=True), [one.job for _, one in group]))
    plan = Plan(
        based_on=snapshot.version,
        placements=Placements(alike),
        objective=problem.objective(y),
        bound=plain_bound(problem),
        solver_status=SolverStatus.UNUSED,
        source=Source.SEQUENCE,
    )
    if whole:
        plan = hold(problem, plan, y)
    faults = violations(plan, snapshot, free)
    if faults:
        raise InfeasiblePlan(f"no plan for snapshot {snapshot.version}: sequence: {'; '.join(faults[:5])}")

    @cache
    def full() -> Problem:
        return problem if whole else build(snapshot, policies, free)

    return replace(
        plan,
        deferrals=Late(lambda: _held_back(Deferrals(full(), plan, y), held, policies.window)),
        considered=Late(lambda: Considered(full(), y)),
        outlook=Outlook(full, plan, y),
    )


def _held_back(
    told: Mapping[str, tuple[Reason, ...]], held: Set[tuple[str, CenterId]], window: Window | None
) -> Mapping[str, tuple[Reason, ...]]:
    """Reasons where jobs are held back: those of jobs that could start are that they are."""
    if window is None:
        return told

    def of(key: str, one: Reason) -> Reason:
        if (key, one.center) not in held:
            return one
        return reason(one.center, Code.HELD_BACK, need=1, have=window.jobs)

    return {key: tuple(of(key, one) for one in reasons) for key, reasons in told.items()}


def placements(problem: Problem, y: IntArray, memory: Memory | None = None) -> Placements:
    """Jobs per option as jobs by name: of a class the oldest first, to its cheapest options first.

    With a `memory`, kinds of placements that are as they were in an earlier round are the same objects.
    """
    memory = Memory() if memory is None else memory
    made: list[Alike] = []
    taken = np.flatnonzero(y)
    taken = taken[np.lexsort((problem.cost[taken], problem.option_class[taken]))]
    first, last_class, fresh = 0, -1, 0
    for option, k, at, count in zip(
        taken.tolist(),
        problem.option_class[taken].tolist(),
        problem.option_pool[taken].tolist(),
        y[taken].tolist(),
        strict=True,
    ):
        if k != last_class:
            job_class, first, last_class = problem.classes[k], 0, k
            ids = as_queue(job_class.jobs).ids
            kinds, before = memory.kinds(job_class.key)
        kind = kinds.get(at)
        if kind is None:
            kind, then = problem.placement(option), before.get(at)
            kind = kinds[at] = then if then == kind else kind
            fresh += 1
        made.append(Alike(kind, Span(ids, first, first + count), first))
        first += count
    memory.kept_kinds(fresh, len(taken))
    return Placements(made)


class Late(Mapping[str, T]):
    """A mapping that is made when it is first looked at."""

    def __init__(self, make: Callable[[], Mapping[str, T]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, T]:
        return self._make()

    def __getitem__(self, key: str) -> T:
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class Considered(Mapping[str, tuple[Alternative, ...]]):
    """What every center was for the classes of which jobs start, by key; worked out when asked."""

    def __init__(self, problem: Problem, y: IntArray) -> None:
        self._problem, self._y = problem, y
        started = np.flatnonzero(problem.started(y)).tolist()
        self._classes = {problem.classes[k].key: k for k in started}

    @cached_property
    def _left(self) -> IntArray:
        left: IntArray = np.maximum(self._problem.left(self._y), 0)  # exact room may exceed slots
        return left

    def __getitem__(self, key: str) -> tuple[Alternative, ...]:
        return alternatives(self._problem, self._y, self._classes[key], self._left)

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


class Deferrals(Mapping[str, tuple[Reason, ...]]):
    """Why every class that waits does, by key; worked out when asked."""

    def __init__(self, problem: Problem, plan: Plan, y: IntArray) -> None:
        self._problem, self._plan, self._y = problem, plan, y
        self._told: dict[str, tuple[Reason, ...]] = {}

    @cached_property
    def _left(self) -> IntArray:
        left: IntArray = np.maximum(self._problem.left(self._y), 0)
        return left

    @cached_property
    def _held(self) -> Mapping[str, Callable[[], tuple[Reason, ...]]]:
        return held_reasons(self._problem, self._plan, self._y, self._left)

    @cached_property
    def _classes(self) -> Mapping[str, int]:
        waits = self._problem.waiting.sum(axis=1) > self._problem.started(self._y)
        return {self._problem.classes[k].key: k for k in np.flatnonzero(waits).tolist()}

    @cached_property
    def _keys(self) -> Mapping[str, None]:
        return dict.fromkeys((*self._classes, *self._held))

    def __getitem__(self, key: str) -> tuple[Reason, ...]:
        if key not in self._told:
            held = self._held.get(key)
            self._told[key] = (
                explain_counts(self._problem, self._y, self._classes[key], self._left)
                if held is None
                else held()
            )
        return self._told[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"Deferrals({dict(self)!r})"
