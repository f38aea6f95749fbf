"""Why a job waits: the closed vocabulary of reasons, and the reasons of a class of jobs.

What belongs here: codes with their group, meaning and unit, and the choice of what to tell per
center.  What does not: deciding.  Every number comes from the tests of the policies and from the
rows of the problem that decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum, StrEnum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from broker.core.identity import holder_key
from broker.core.model import MICRO, CenterId, JobId, Reservation, Why
from broker.core.queue import as_queue
from broker.core.snapshot import may_hold, supply

if TYPE_CHECKING:
    from broker.core.plan import Plan
    from broker.core.problem import Problem


class Group(StrEnum):
    """What kind of "no" a reason is, and so who can do something about it."""

    MISCONFIGURED = "misconfigured"  # the operator
    NEVER_FITS = "never_fits"  # nobody: the request is wrong for this center
    WAITING = "waiting"  # time
    POLICY = "policy"  # whoever set the rule, the job's owner included


class Unit(StrEnum):
    """What `need` and `have` of a reason count."""

    CENTERS = "centers"
    POOLS = "pools"
    CARDS = "cards"
    MILLICARDS = "thousandths of a card"
    CORES = "cores"
    GIB = "GiB"
    NODES = "nodes"
    SLOTS = "slots"
    SPECS = "specs"
    IMAGES = "images"
    SERVICES = "services"
    SECONDS = "s"
    GFLOPS = "GFLOPS"
    RUNS = "runs"
    DATASETS = "datasets"
    QUOTA = "quota units"
    RATE = "micro-CNY/h"
    MONEY = "micro-CNY"


class Code(IntEnum):
    """Every reason there is.  The order is the order of the tests: the higher, the closer it came."""

    ALLOWED = 0
    NO_POOLS = 1
    CENTER_NOT_LISTED = 2
    CENTER_INACTIVE = 3
    CENTER_DRAINING = 4
    CENTER_UNPOLLED = 5
    CENTER_DOWN = 6
    CENTER_SUSPECT = 7
    SERVICE_UNSUPPORTED = 8
    IMAGE_UNAVAILABLE = 9
    MAX_RUN_TIME = 10
    GANG_UNSUPPORTED = 11
    NO_PRODUCT = 12
    ARCH_MISMATCH = 13
    CARD_MEMORY_MISMATCH = 14
    CARD_PART = 15
    CARDS_PER_NODE = 16
    CORES_PER_NODE = 17
    MEMORY_PER_NODE = 18
    SPEC_NOT_OFFERED = 19
    POWER = 20
    GANG_NODES = 21
    PRICE_CEILING = 22
    AVOIDED = 23
    STAGING = 24
    CAPACITY = 25
    CAPACITY_OUTRANKED = 26
    RESERVED = 27
    UNKNOWN_IDLE = 28
    IN_FLIGHT = 29
    QUOTA = 30
    COST_ABOVE_WORTH = 31
    NODES_NOT_HELD = 32
    GANG_WAITING = 33
    VIP_WAITING = 34
    PREEMPTING = 35
    HELD_BACK = 36
    DATA_UNAVAILABLE = 37  # told like a test of the center: no code above it is found there
    BUDGET = 38
    RESTART_PAUSE = 39

    @property
    def word(self) -> str:
        """The code as users see it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Meaning:
    """`message` is a template of `{need}` and `{have}`, numbers of `unit`, or of `{need_cny}` and so on,
    and of `{job}`, the job that a policy prefers."""

    group: Group
    unit: Unit
    message: str


_N, _W, _P, _M = Group.NEVER_FITS, Group.WAITING, Group.POLICY, Group.MISCONFIGURED

MEANINGS: dict[Code, Meaning] = {
    Code.NO_POOLS: Meaning(_M, Unit.POOLS, "the center shows no pool of nodes"),
    Code.CENTER_NOT_LISTED: Meaning(_P, Unit.CENTERS, "the job names other centers"),
    Code.CENTER_INACTIVE: Meaning(_M, Unit.CENTERS, "the center is switched off by its operator"),
    Code.CENTER_DRAINING: Meaning(_W, Unit.CENTERS, "the center drains: it takes no new runs"),
    Code.CENTER_UNPOLLED: Meaning(_W, Unit.CENTERS, "the center has not reported yet"),
    Code.CENTER_DOWN: Meaning(_W, Unit.CENTERS, "the center is silent"),
    Code.CENTER_SUSPECT: Meaning(_W, Unit.CENTERS, "the center missed its last report"),
    Code.SERVICE_UNSUPPORTED: Meaning(_N, Unit.SERVICES, "the center runs no online services"),
    Code.IMAGE_UNAVAILABLE: Meaning(_N, Unit.IMAGES, "the center cannot use the job's image"),
    Code.MAX_RUN_TIME: Meaning(_N, Unit.SECONDS, "asks for {need} s, the center allows {have} s"),
    Code.GANG_UNSUPPORTED: Meaning(_N, Unit.NODES, "asks for {need} nodes, the center starts one at a time"),
    Code.NO_PRODUCT: Meaning(_N, Unit.CARDS, "no pool has nodes of the product asked for"),
    Code.ARCH_MISMATCH: Meaning(_N, Unit.POOLS, "the nodes have another architecture"),
    Code.CARD_MEMORY_MISMATCH: Meaning(_N, Unit.GIB, "asks for {need} GiB per card, cards have {have} GiB"),
    Code.CARD_PART: Meaning(
        _N, Unit.MILLICARDS, "asks for {need} thousandths of a card per device, the pool gives {have}"
    ),
    Code.CARDS_PER_NODE: Meaning(_N, Unit.CARDS, "asks for {need} cards per node, nodes have {have}"),
    Code.CORES_PER_NODE: Meaning(_N, Unit.CORES, "asks for {need} cores per node, nodes have {have}"),
    Code.MEMORY_PER_NODE: Meaning(_N, Unit.GIB, "asks for {need} GiB per node, nodes have {have} GiB"),
    Code.SPEC_NOT_OFFERED: Meaning(_N, Unit.SPECS, "the spec is none of the {have} that the pool offers"),
    Code.POWER: Meaning(_N, Unit.GFLOPS, "asks for {need} GFLOPS per node, the strongest spec has {have}"),
    Code.GANG_NODES: Meaning(_N, Unit.NODES, "asks for {need} nodes, the pool has {have}"),
    Code.PRICE_CEILING: Meaning(_P, Unit.RATE, "the ceiling is {need_cny} CNY/h, the price {have_cny}"),
    Code.AVOIDED: Meaning(_W, Unit.CENTERS, "the center refused this job a moment ago"),
    Code.STAGING: Meaning(_W, Unit.DATASETS, "{need} data sets are wanted there, {have} are ready"),
    Code.DATA_UNAVAILABLE: Meaning(
        _N, Unit.DATASETS, "reads {need} data sets; only {have} of them are there or can be brought there"
    ),
    Code.CAPACITY: Meaning(_W, Unit.SLOTS, "needs {need} slots of its size in one pool, {have} are free"),
    Code.CAPACITY_OUTRANKED: Meaning(
        _W,
        Unit.SLOTS,
        "needs {need} slots of its size; what is free goes to older or higher work, {have} stay",
    ),
    Code.RESERVED: Meaning(
        _P, Unit.SLOTS, "needs {need} slots; what is free is held for job {job}, {have} stay for others"
    ),
    Code.UNKNOWN_IDLE: Meaning(
        _W, Unit.RUNS, "the center does not tell what is idle and has as many waiting runs as it may"
    ),
    Code.IN_FLIGHT: Meaning(_W, Unit.RUNS, "the center has as many waiting runs as it may"),
    Code.QUOTA: Meaning(_P, Unit.QUOTA, "takes {need} of a quota of which {have} are left"),
    Code.COST_ABOVE_WORTH: Meaning(
        _P, Unit.MONEY, "costs {need_cny} CNY there, waiting is weighed at {have_cny} CNY"
    ),
    Code.NODES_NOT_HELD: Meaning(
        _P, Unit.NODES, "names {need} nodes; the center holds capacity, but cannot hold nodes by name"
    ),
    Code.GANG_WAITING: Meaning(
        _W, Unit.SLOTS, "capacity is held here for this job: needs {need} slots, {have} are free"
    ),
    Code.VIP_WAITING: Meaning(
        _W, Unit.SLOTS, "holds what lower jobs here leave: needs {need} slots, {have} are free"
    ),
    Code.PREEMPTING: Meaning(
        _W, Unit.SLOTS, "runs here were asked to end for this job: needs {need} slots, {have} are free"
    ),
    Code.HELD_BACK: Meaning(
        _P,
        Unit.RUNS,
        "waits while cards are scarce, since others make more of those that it needs; up to {have} jobs do",
    ),
    Code.BUDGET: Meaning(
        _P, Unit.MONEY, "is expected to cost {need_cny} CNY there, the tenant may spend {have_cny} CNY more"
    ),
    Code.RESTART_PAUSE: Meaning(
        _W, Unit.SERVICES, "the service has just ended by itself and pauses before it is started again"
    ),
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job does not start at one center; `need` and `have` are numbers of `unit`."""

    center: CenterId
    code: Code
    message: str
    need: int
    have: int
    unit: Unit


def reason(center: CenterId, code: Code, *, need: int, have: int, job: str = "") -> Reason:
    """A reason with the message of its code; `job` is the one that capacity is held for."""
    meaning = MEANINGS[code]
    need_cny, have_cny = (f"{Decimal(micro) / MICRO:f}" for micro in (need, have))
    message = meaning.message.format(need=need, have=have, need_cny=need_cny, have_cny=have_cny, job=job)
    return Reason(center=center, code=code, message=message, need=need, have=have, unit=meaning.unit)


def vocabulary() -> tuple[tuple[str, str, str, str], ...]:
    """Rows of (code, group, unit, meaning) for the documentation, in the order of the tests."""
    return tuple((c.word, m.group.value, m.unit.value, m.message) for c, m in sorted(MEANINGS.items()))


# ---------------------------------------------------------------- the reasons of a class

IntArray = npt.NDArray[np.int64]


def explain(problem: Problem, plan: Plan, k: int) -> tuple[Reason, ...]:
    """Why jobs of class `k` that the plan leaves wait: one reason per center, in order of centers.

    Of a center's pools the one that came closest speaks: the last failing test wins, then the
    smallest gap between `need` and `have`, then the first pool.
    """
    return explain_counts(problem, problem.counts(plan.placements), k)


def explain_counts(problem: Problem, y: IntArray, k: int, left: IntArray | None = None) -> tuple[Reason, ...]:
    """As `explain`, from jobs started per option; `left`: what the rows then have left, if at hand."""
    left = problem.left(y) if left is None else left
    pools = np.arange(len(problem.pools), dtype=np.int64)
    verdict = problem.policies.allow(problem, k, pools)
    codes, need, have = verdict.codes.copy(), verdict.need.copy(), verdict.have.copy()
    for option in range(problem.first[k], problem.first[k + 1]):
        at = problem.option_pool[option]
        codes[at], need[at], have[at] = _binding(problem, left, k, option)
    at_center = problem.pool.center
    order = np.lexsort((pools, np.abs(need - have), -codes, at_center))
    leads = np.ones(len(order), dtype=bool)
    leads[1:] = at_center[order][1:] != at_center[order][:-1]
    best = {int(at_center[i]): int(i) for i in order[leads]}
    reasons = []
    for c, facts in enumerate(problem.centers):
        if c not in best:
            # Pools carry the tests, so a center without any is told by what is known of it alone.
            named = problem.classes[k].request.centers
            listed = not named or facts.id in named
            closed = Code(int(problem.center.closed[c])) or Code.NO_POOLS
            reasons.append(reason(facts.id, closed if listed else Code.CENTER_NOT_LISTED, need=1, have=0))
        else:
            i = best[c]
            code = Code(int(codes[i]))
            held = _holder(problem, k, i) if code is Code.RESERVED else ""
            reasons.append(reason(facts.id, code, need=int(need[i]), have=int(have[i]), job=held))
    return tuple(reasons)


def _holder(problem: Problem, k: int, at: int) -> str:
    """The first other job that something is held for in a pool, or else at its center."""
    own = {job.id for job in problem.classes[k].jobs[:1]}
    near = sorted(range(len(problem.pools)), key=lambda i: i != at)
    jobs = (
        hold.job
        for i in near
        if problem.pools[i].center == problem.pools[at].center and problem.pools[i].id in problem.holdings
        for hold in problem.holdings[problem.pools[i].id].reservations
    )
    return next((job for job in jobs if job not in own), "")


@dataclass(frozen=True, slots=True)
class Alternative:
    """One center as a round saw it for a job that it placed.

    `rate_micro_per_hour` and `weighed_micro` (the sum of the policies' costs) are those of its
    cheapest pool that may take the job; None: no pool may.  `reason`: why it could not start there;
    None: it could, and the plan as a whole was better this way.
    """

    center: CenterId
    rate_micro_per_hour: int | None
    weighed_micro: int | None
    reason: Reason | None


def alternatives(problem: Problem, y: IntArray, k: int, left: IntArray) -> tuple[Alternative, ...]:
    """Every center, in order, as it was for the jobs of class `k` that start."""
    options = problem.options(k)
    cheapest: dict[CenterId, int] = {}
    for j in (options.start + np.argsort(problem.cost[options], kind="stable")).tolist():
        cheapest.setdefault(problem.pools[int(problem.option_pool[j])].center, j)
    found = []
    for why in explain_counts(problem, y, k, left):
        option = cheapest.get(why.center)
        if option is None:
            found.append(Alternative(why.center, None, None, why))
            continue
        open_ = why.code is Code.COST_ABOVE_WORTH  # no row is full: nothing but the plan speaks against it
        rate, weighed = int(problem.rate[option]), int(problem.cost[option])
        found.append(Alternative(why.center, rate, weighed, None if open_ else why))
    return tuple(found)


def _binding(problem: Problem, left: IntArray, k: int, option: int) -> tuple[int, int, int]:
    """(code, need, have) of an allowed option that is not taken: the row that binds it."""
    rows, coefs = problem.takes(option)
    full = left[rows] < coefs
    codes = problem.row_code[rows]
    nodes = problem.classes[k].request.nodes
    slots = codes == Code.CAPACITY
    if (full & (codes == Code.BUDGET)).any():  # then no room would help
        at = int(np.flatnonzero(full & (codes == Code.BUDGET))[0])
        return Code.BUDGET, int(coefs[at]), int(left[rows[at]])
    if (full & slots).any():
        # What was free at first, in slots of this option's own size: its slot row is the largest.
        free = int(problem.row_bound[rows[slots][-1]])
        if free < nodes:
            return Code.CAPACITY, nodes, free
        return Code.CAPACITY_OUTRANKED, nodes, int((left[rows[slots]] * nodes // coefs[slots]).min())
    if full.any():
        at = int(np.flatnonzero(full)[0])
        code = int(codes[at])
        if code == Code.IN_FLIGHT and problem.pool.unknown[problem.option_pool[option]]:
            code = int(Code.UNKNOWN_IDLE)
        return code, int(coefs[at]), int(left[rows[at]])
    # Jobs start oldest first, so the youngest waits if any does.
    worth = int(problem.worth[k][problem.waiting[k] > 0].min())
    return Code.COST_ABOVE_WORTH, int(problem.cost[option]), worth


# ---------------------------------------------------------------- of jobs that hold


_HELD = {Why.GANG: Code.GANG_WAITING, Why.VIP: Code.VIP_WAITING, Why.PREEMPTING: Code.PREEMPTING}


def held_reasons(
    p: Problem, plan: Plan, y: IntArray, left: IntArray
) -> dict[str, Callable[[], tuple[Reason, ...]]]:
    """Why each job that capacity is held for still waits, by the key of its own class; worked out when
    called.

    At the center that holds for it the reason is what it waits for there.
    """
    by_nodes: dict[int, dict[JobId, Reservation]] = {}
    for r in plan.reservations:
        by_nodes.setdefault(r.nodes, {})[r.job] = r
    pools = {pool.id for pool in p.pools}
    common: dict[int, tuple[Reason, ...]] = {}
    told: dict[str, Callable[[], tuple[Reason, ...]]] = {}
    for k, job_class in enumerate(p.classes):
        held = by_nodes.get(job_class.request.nodes, {})
        if not any(may_hold(job_class.request, r) for r in held.values()):
            continue
        for job in as_queue(job_class.jobs).ids:
            hold = held.get(job)
            if hold is not None and hold.pool in pools:
                own = job_class.key.endswith(holder_key("", job))
                key = job_class.key if own else holder_key(job_class.key, job)
                ask = partial(explain_counts, p, y, k, left)
                told[key] = partial(_held_reasons, p, k, hold, ask=ask, common=common)
    return told


def _held_reasons(
    p: Problem,
    k: int,
    r: Reservation,
    *,
    ask: Callable[[], tuple[Reason, ...]],
    common: dict[int, tuple[Reason, ...]],
) -> tuple[Reason, ...]:
    """Why a job of class `k` with this reservation waits; `common` keeps what `ask` says of a class."""
    if k not in common:
        common[k] = ask()
    pool = next(pool for pool in p.pools if pool.id == r.pool)
    free = supply(pool.shape, p.free.get(pool.id, ()), r.slot)
    waits = reason(pool.center, _HELD[Why(r.why)], need=r.nodes, have=free)
    reasons = [waits if x.center == pool.center else x for x in common[k]]
    if r.node_names and not any(c.node_hold for c in p.centers if c.id == pool.center):
        reasons.append(reason(pool.center, Code.NODES_NOT_HELD, need=len(r.node_names), have=0))
    return tuple(reasons)
