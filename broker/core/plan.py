"""What a round decides.

What belongs here: the plan's types, and what plans mean for a snapshot.  What does not: whether a plan
can be carried out (check.py).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, overload

from broker.core.explain import Alternative, Reason
from broker.core.model import (
    DEFAULT_ESTIMATE_S,
    CenterId,
    Claim,
    JobId,
    PoolId,
    Reservation,
    RunId,
    Snapshot,
    Spec,
)

if TYPE_CHECKING:
    from broker.core.forecast import Outlook


NOBODY = JobId("")
"""The job of what is said of all placements of a kind."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One job that starts: `nodes` slots of `slot` units of a pool.

    `rate_micro_per_hour` is the price of the whole job at the snapshot's minute, `cost_micro` that
    price over the estimate of the job's class.  `platform_kills`: the platform makes room for it by
    itself, as its operator allows, so nothing has to be free.  `exact`: room was tested by what the job
    takes, in the order of the plan, and not by slots.
    """

    job: JobId
    class_key: str
    center: CenterId
    pool: PoolId
    spec: Spec
    slot: int
    nodes: int
    cost_micro: int
    rate_micro_per_hour: int
    platform_kills: bool = False
    exact: bool = False


class Alike(NamedTuple):
    """Placements that differ by job alone; `kind` has no job.

    `first` is where the jobs stand, one after the other, in their class's queue; -1: anywhere.
    """

    kind: Placement
    jobs: Sequence[JobId]
    first: int = -1


class Placements(Sequence[Placement]):
    """Placements by kind: a round places many jobs in few kinds, and each is made when looked at."""

    __slots__ = ("_ends", "alike")

    def __init__(self, alike: Iterable[Alike] = ()) -> None:
        self.alike = tuple(alike)
        self._ends = list(itertools.accumulate(len(a.jobs) for a in self.alike))

    @overload
    def __getitem__(self, index: int) -> Placement: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Placement, ...]: ...
    def __getitem__(self, index: int | slice) -> Placement | tuple[Placement, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        at = range(len(self))[index]
        group = bisect_right(self._ends, at)
        one = self.alike[group]
        return replace(one.kind, job=one.jobs[at - self._ends[group] + len(one.jobs)])

    def __iter__(self) -> Iterator[Placement]:
        return (replace(one.kind, job=job) for one in self.alike for job in one.jobs)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __add__(self, further: Iterable[Placement]) -> Placements:
        return Placements((*self.alike, *grouped(further)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Placements) and self.alike == other.alike:
            return True
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Placements({list(self)!r})"


def grouped(placements: Iterable[Placement]) -> tuple[Alike, ...]:
    """Any placements by kind."""
    if isinstance(placements, Placements):
        return placements.alike
    kinds: dict[Placement, list[JobId]] = {}
    for placement in placements:
        kinds.setdefault(replace(placement, job=NOBODY), []).append(placement.job)
    return tuple(Alike(kind, jobs) for kind, jobs in kinds.items())


@dataclass(frozen=True, slots=True)
class Preemption:
    """The runs that are stopped so that one job can start in `pool`.

    `price_micro` is what they lose: work since their last checkpoints, restarts, and their worth as
    waiting jobs.  `lost_card_s` is the work alone, in accelerator-seconds.  `placement`: the job is
    sent first, to wait in the platform's own queue, and the runs are stopped once it was taken; None:
    it is placed when they have ended.
    """

    job: JobId
    pool: PoolId
    victims: tuple[RunId, ...]
    price_micro: int
    lost_card_s: int
    placement: Placement | None = None


def after(snapshot: Snapshot, placements: Iterable[Placement]) -> Snapshot:
    """The snapshot with these placements as runs that have not started."""
    return replace(snapshot, claims=(*snapshot.claims, *claims_of(snapshot, placements)))


def claims_of(snapshot: Snapshot, placements: Iterable[Placement]) -> Iterator[Claim]:
    """What these placements hold once they are runs that have not started."""
    classes = {c.key: c for c in snapshot.classes}
    for one in grouped(placements):
        kind, job_class = one.kind, classes.get(one.kind.class_key)
        estimate_s = DEFAULT_ESTIMATE_S if job_class is None else job_class.estimate_s
        for job in one.jobs:
            yield Claim(
                run=RunId(f"+{job}"),
                center=kind.center,
                pool=kind.pool,
                shape=kind.spec.shape,
                nodes=kind.nodes,
                estimate_s=estimate_s,
                learned=None if job_class is None else job_class.learned,
            )


class Source(StrEnum):
    """Which of the candidates a plan is, or that its jobs were placed one after the other."""

    GREEDY = "greedy"
    LP = "lp"
    SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision of one round on the snapshot of version `based_on`.

    `objective` is micro-CNY: cost of what starts plus worth of what waits.  No plan is below `bound`.
    `reservations` are all that hold after this round,
    at most one for a job; those with id 0 are new.  `deferrals` has the reasons of every class, by
    key, of which jobs still wait.

    `considered` has, by key, what every center was for the classes of which jobs start; `outlook`
    tells when those that wait are expected to, None where nobody waits.
    """

    based_on: int
    placements: Sequence[Placement] = ()
    preemptions: tuple[Preemption, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    deferrals: Mapping[str, tuple[Reason, ...]] = field(default_factory=dict)
    considered: Mapping[str, tuple[Alternative, ...]] = field(default_factory=dict)
    objective: int = 0
    bound: int = 0
    solver_status: str = ""
    source: Source = Source.GREEDY
    outlook: Outlook | None = field(default=None, compare=False, repr=False)

    @property
    def starts(self) -> set[JobId]:
        """The jobs that are placed."""
        return {job for one in grouped(self.placements) for job in one.jobs}

    @property
    def stops(self) -> tuple[RunId, ...]:
        """The runs to preempt."""
        return tuple(run for preemption in self.preemptions for run in preemption.victims)
