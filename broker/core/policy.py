"""What a placement policy is, and a set of them as the policy file puts them together.

What belongs here: the protocol, rows across classes (`Limit`), the order and weights of policies.
What does not: any policy (they are in `policies/`) and reading the policy file's text
(core/policy_file.py).

A policy is a frozen dataclass whose fields are its keys in the policy file.  It has any of the
methods of `Policy`; the others do nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from broker.core.amounts import added, weighed
from broker.core.claims import ClaimColumns
from broker.core.explain import Code
from broker.core.model import Claim, JobId, TenantId, Why

if TYPE_CHECKING:
    from broker.core.model import Snapshot
    from broker.core.problem import Problem

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Per pool: 0 or the code of the first failing test, with its two numbers (see explain.MEANINGS)."""

    codes: IntArray
    need: IntArray
    have: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """A row across classes: the sum of coefficient times jobs started over `options` is at most `bound`.

    `options` are indices of the problem's options, each once; coefficients are positive.
    """

    name: str
    code: Code
    options: IntArray
    coefficients: IntArray
    bound: int

    def __post_init__(self) -> None:
        if self.options.shape != self.coefficients.shape:
            raise ValueError(f"limit {self.name}: {self.options.size} options for {self.coefficients.size}")
        if self.options.size and int(self.coefficients.min()) <= 0:
            raise ValueError(f"limit {self.name}: coefficient {int(self.coefficients.min())} is not positive")
        rising = self.options.size < 2 or bool((np.diff(self.options) > 0).all())
        if not rising and np.unique(self.options).size != self.options.size:
            raise ValueError(f"limit {self.name}: an option occurs twice")
        if self.bound < 0:
            raise ValueError(f"limit {self.name}: bound {self.bound} is negative; 0 stops everything")


@dataclass(frozen=True, slots=True)
class Hold:
    """A waiting job that is older than `after_s` gets a reservation for `expires_s`.

    At most `depth` of the kind hold at a time.
    """

    why: Why
    after_s: int
    expires_s: int
    depth: int


@dataclass(frozen=True, slots=True)
class Window:
    """While less than `scarce_permille` thousandths of all cards are free, so many `jobs` are held back
    that use less than others of the cards that they need; none of them longer than `longest_s`.
    """

    jobs: int
    scarce_permille: int
    longest_s: int


SPARED = -1
"""The price of a run that must not be stopped for another."""


@dataclass(frozen=True, slots=True, eq=False)
class Victims:
    """Runs that could be stopped, as columns of one row each.

    `ran_s`: seconds since the start, -1 before it.  `lost_s`: seconds of work that are lost when the
    run is stopped now.  `millicards` are thousandths of cards of all its nodes.  `worth` is what its
    job is weighed at once it waits again, micro-CNY.
    """

    claims: Sequence[Claim]
    ran_s: IntArray
    lost_s: IntArray
    millicards: IntArray
    rate_micro_per_hour: IntArray
    preempted: IntArray
    worth: IntArray


def victims(claims: Sequence[Claim], columns: ClaimColumns, worth: IntArray, now_ms: int) -> Victims:
    """The columns of these runs, whose own these are.

    Work is lost since the newest checkpoint that was seen of it; where none was ever seen, a resumable
    job that states an interval is believed to write one that often, and any other has none.  So nobody
    is spared or stopped for a word that what is seen speaks against.
    """
    c = columns
    started_ms = np.minimum(c.started_ms, now_ms + 1)
    lost_s = np.maximum(0, now_ms - np.maximum(started_ms, c.checkpoint_ms)) // 1000
    return Victims(
        claims=claims,
        ran_s=(now_ms - started_ms) // 1000,
        lost_s=np.where(c.interval_s > 0, np.minimum(lost_s, c.interval_s), lost_s),
        millicards=c.cards * c.permille * c.nodes,
        rate_micro_per_hour=c.rate_micro_per_hour,
        preempted=c.preempted,
        worth=worth,
    )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Mix:
    """What nodes of one kind are asked for, a row per distinct request of one node, the commonest first.

    `cards` are thousandths: less than 1000 of one card, else whole ones; `count` is how often.
    """

    cards: IntArray
    cores: IntArray
    memory_gib: IntArray
    count: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """What is free on some nodes of one kind; `cards` in thousandths of each card.

    Many nodes have the same cards free: node i has those of row of[i].
    """

    cards: IntArray  # [C, cards of the largest node]
    of: IntArray  # [N]
    host: FloatArray  # [2, N] cores and GiB


class Policy(Protocol):
    """What a policy may have; every method is optional.

    A problem is built in this order, and a method sees of it what is built so far: codes of all
    classes, options and their costs, worth, limits.
    """

    def allow(self, p: Problem, k: int, pools: IntArray) -> Verdict:
        """May class `k` use these pools?"""
        ...

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY per job of class `k` started in each of these pools."""
        ...

    def worth(self, p: Problem, k: int) -> IntArray:
        """Micro-CNY per age bucket: what leaving a job of class `k` waiting is weighed at."""
        ...

    def factors(self, p: Problem) -> IntArray | None:
        """Thousandths, at least 1, per class that its worth is multiplied by, None for 1000 of all;
        asked in every round."""
        ...

    def limits(self, p: Problem) -> tuple[Limit, ...]:
        """Rows across classes; asked in every round."""
        ...

    def depends(self, snapshot: Snapshot) -> Hashable:
        """What the policy's codes, costs and worths rest on besides the class and facts of pools and
        centers: they are asked for again when it changes, and otherwise only for what changed.

        A policy that looks at what is free in a pool says so by a class variable `reads_free = True`
        and is asked for the pools where that changes.
        """
        ...

    def waste(self, mix: Mix, nodes: Nodes) -> FloatArray:
        """Micro-CNY per node that what is free there is expected not to serve.

        A policy that has it says that the cost of a start depends on what every start before it left
        free: jobs are then placed one after the other (core/sequence.py), each where its costs and
        the growth of waste are least.  Of a field `window` see PolicySet.window.
        """
        ...

    def efficiency(self, mix: Mix, millicards: int) -> float:
        """What a request of one node for so many thousandths of cards is, as a share of what others
        would make of the cards that it needs.  Of those below 1 the least are held back in a window."""
        ...

    def largest(self) -> int:
        """Micro-CNY that a cost, worth or price comes to for the largest job (core/amounts.py), before
        the policy's weight: keys and weights that make it too much are refused."""
        ...

    def hold(self, p: Problem, k: int) -> Hold | None:
        """Whether jobs of class `k` that wait get a reservation; the first policy that says so counts."""
        ...

    def may_preempt(self, p: Problem, job: JobId) -> bool:
        """May runs be stopped for this VIP job now?  Every policy with a word on it must agree."""
        ...

    def price(self, p: Problem, victims: Victims) -> IntArray:
        """Micro-CNY that stopping each of these runs costs; SPARED: it must not be stopped."""
        ...

    def kill_room(self, p: Problem, tenant: TenantId) -> int:
        """Runs of a tenant that may still be stopped for others now."""
        ...


@dataclass(frozen=True, slots=True)
class Weighted:
    """A policy in force; its costs and worths count `permille` thousandths."""

    name: str
    policy: object
    permille: int = 1000


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Policies in force, in order: the first verdict other than allowed stands; the rest adds up."""

    policies: tuple[Weighted, ...]
    _by_name: dict[str, list[tuple[int, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )
    """Weights and methods by the method's name: asked for every class."""

    def allow(self, p: Problem, k: int, pools: IntArray) -> Verdict:
        codes, need, have = (np.zeros(len(pools), dtype=np.int64) for _ in range(3))
        for _, method in self._methods("allow"):
            verdict: Verdict = method(p, k, pools)
            first = (codes == Code.ALLOWED) & (verdict.codes != Code.ALLOWED)
            codes[first], need[first] = verdict.codes[first], verdict.need[first]
            have[first] = verdict.have[first]
        return Verdict(codes=codes, need=need, have=have)

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        total = np.zeros(len(pools), dtype=np.int64)
        for permille, method in self._methods("cost"):
            total = added(total, weighed(method(p, k, pools), permille))
        return total

    def worth(self, p: Problem, k: int) -> IntArray:
        """Micro-CNY per age bucket, without factors.  Waiting never lowers it: jobs of a class start
        oldest first."""
        total = np.zeros(len(p.age_s), dtype=np.int64)
        for permille, method in self._methods("worth"):
            total = added(total, weighed(method(p, k), permille))
        return np.maximum.accumulate(total)

    def factors(self, p: Problem) -> list[IntArray]:
        """What each policy multiplies the worth of every class by, of those that do."""
        told = (method(p) for _, method in self._methods("factors"))
        return [factors for factors in told if factors is not None]

    def multiplied(self, p: Problem, worth: IntArray) -> IntArray:
        """[K,B] worth with factors, from that of every class without.

        Factors count on what a job is worth beyond its dearest option: they change who goes first, but
        nothing stands idle that nobody else wants.
        """
        factors = self.factors(p)
        if not factors:
            return worth
        dearest = np.zeros((len(p.classes), 1), dtype=np.int64)
        some = np.flatnonzero(np.diff(p.first))
        dearest[some, 0] = p.cost[p.by_cost[p.first[some + 1] - 1]]
        gain = np.maximum(worth - dearest, 0)
        for permille in factors:
            gain = np.maximum(weighed(gain, permille[:, None]), np.minimum(gain, 1))
        return np.where(worth > dearest, added(gain, dearest), worth)

    def depends(self, snapshot: Snapshot) -> tuple[Hashable, ...]:
        """What answers rest on besides classes, pools and centers; see Policy."""
        return tuple(method(snapshot) for _, method in self._methods("depends"))

    @property
    def reads_free(self) -> bool:
        """Whether codes, costs or worths rest on what is free in a pool; see Policy.depends."""
        return any(getattr(w.policy, "reads_free", False) for w in self.policies)

    @property
    def sequential(self) -> bool:
        """Whether jobs are placed one after the other; see Policy.waste."""
        return bool(self._methods("waste"))

    def waste(self, mix: Mix, nodes: Nodes) -> FloatArray:
        methods = self._methods("waste")
        total: FloatArray = methods[0][1](mix, nodes) * (methods[0][0] / 1000)
        for permille, method in methods[1:]:
            total = total + method(mix, nodes) * (permille / 1000)
        return total

    def efficiency(self, mix: Mix, millicards: int) -> float:
        """The least that any policy says."""
        return min((method(mix, millicards) for _, method in self._methods("efficiency")), default=1.0)

    @property
    def window(self) -> Window | None:
        """Which jobs wait where they are placed one after the other; None: all go in order of arrival."""
        wanted = (getattr(w.policy, "window", None) for w in self.policies)
        return next((window for window in wanted if isinstance(window, Window)), None)

    @property
    def limited(self) -> bool:
        """Whether any policy may have rows across classes."""
        return bool(self._methods("limits"))

    def limits(self, p: Problem) -> tuple[Limit, ...]:
        return tuple(limit for _, method in self._methods("limits") for limit in method(p))

    def hold(self, p: Problem, k: int) -> Hold | None:
        for _, method in self._methods("hold"):
            hold: Hold | None = method(p, k)
            if hold is not None:
                return hold
        return None

    @property
    def holds(self) -> bool:
        """Whether any policy gives reservations."""
        return bool(self._methods("hold"))

    def may_preempt(self, p: Problem, job: JobId) -> bool:
        """Without a policy that prices victims nothing is ever stopped."""
        priced = bool(self._methods("price"))
        return priced and all(method(p, job) for _, method in self._methods("may_preempt"))

    def price(self, p: Problem, victims: Victims) -> IntArray:
        """The sum of all prices; SPARED where any policy spares the run."""
        total = np.zeros(len(victims.claims), dtype=np.int64)
        for permille, method in self._methods("price"):
            price = method(p, victims)
            total = np.where((total < 0) | (price < 0), SPARED, added(total, weighed(price, permille)))
        return total

    def kill_room(self, p: Problem, tenant: TenantId) -> int:
        return min((method(p, tenant) for _, method in self._methods("kill_room")), default=0)

    @property
    def usage_half_life_s(self) -> int | None:
        """Half-life of the usage that a policy wants in the snapshot; None: none does."""
        wanted = (getattr(w.policy, "usage_half_life_s", None) for w in self.policies)
        return next((seconds for seconds in wanted if seconds is not None), None)

    def _methods(self, name: str) -> list[tuple[int, Any]]:
        found = self._by_name.get(name)
        if found is None:
            # By the type: a key of a policy may have the name of a method.
            found = self._by_name[name] = [
                (w.permille, getattr(w.policy, name))
                for w in self.policies
                if callable(getattr(type(w.policy), name, None))
            ]
        return found
