"""What building problems keeps from round to round, so that a round costs what changed.

What belongs here: finding out what changed, and keeping answers of policies, options, rows and free
capacity that did not.  What does not: what any of them means (core/problem.py, core/snapshot.py).

Nothing kept here can change an answer: it is used where its inputs are equal, and a problem built
with a memory has the same options, costs and bounds as one built without; a row of a slot size that
no waiting class uses any more may stay.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from broker.core.claims import Claims
from broker.core.explain import Code
from broker.core.fitting import (
    CenterColumns,
    Chooser,
    Fitting,
    IntArray,
    PoolColumns,
    center_columns,
    ints,
    pool_columns,
    repriced,
)
from broker.core.model import (
    Accelerator,
    CenterFacts,
    Claim,
    FreeNodes,
    JobClass,
    Pool,
    PoolId,
    Snapshot,
)
from broker.core.policy import Limit, PolicySet
from broker.core.resources import price_at
from broker.core.snapshot import Free, by_pool, effective_free, supply

if TYPE_CHECKING:
    from broker.core.plan import Placement
    from broker.core.problem import Problem

ROW_KEY = 1 << 24  # more than any node has units
SPARE = 1000
"""Classes away that are remembered besides one for every class that waits: many come back."""
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What policies may look at besides the class they are asked for."""

    centers: tuple[CenterFacts, ...]
    pools: tuple[Pool, ...]
    policies: PolicySet
    asked: tuple[Hashable, ...]
    products: Mapping[str, Accelerator]
    minute: int
    free: Free


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The options of one class, and what the policies say of them."""

    job_class: JobClass
    codes: npt.NDArray[np.int8]  # [P]
    pools: IntArray
    tau: IntArray
    cost: IntArray
    rate: IntArray
    by_cost: IntArray  # numbers of its options, cheapest first, then by pool
    least_millicards: int
    worth: IntArray | None = None  # asked for when all options are there


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows and entries of one set of options and limits; the first rows are the slots'."""

    names: tuple[str, ...]
    codes: IntArray
    row_pool: IntArray  # of the slot rows
    row_size: IntArray
    entry_first: IntArray
    entry_row: IntArray
    entry_coef: IntArray
    of: IntArray  # the problem's option_pool when they were made
    limits: tuple[Limit, ...]


class Memory:
    """Kept by who builds problems in turn; of use to one thread at a time."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        # By key of the class: its block, kinds of placements by number of the pool, and those of before.
        self._kinds: dict[str, tuple[Block | None, dict[int, Placement], dict[int, Placement]]] = {}
        self._kinds_kept = 0
        self._given: tuple[tuple[CenterFacts, ...], tuple[Pool, ...]] = ((), ())
        self._places: tuple[tuple[CenterFacts, ...], tuple[Pool, ...]] = ((), ())
        self._world: World | None = None
        self._standing: tuple[CenterFacts, ...] = ()
        self._centers: tuple[tuple[CenterFacts, ...], CenterColumns] = ((), center_columns(()))
        self._columns: PoolColumns | None = None
        self._chooser: Chooser | None = None
        self._fittings: dict[str, tuple[JobClass, Fitting]] = {}
        self._in_use: tuple[Block, ...] = ()
        self._options: dict[str, Any] = {}
        self._sizes: IntArray = _NONE
        self._rows: Rows | None = None
        self._bounds: IntArray = _NONE
        self._bound_by: list[tuple[FreeNodes, ...] | None] = []
        self._free: dict[PoolId, tuple[Pool, int, tuple[Claim, ...], tuple[FreeNodes, ...]]] = {}
        self._found_by: object = None  # what the last answer rests on, and that answer
        self._found: dict[PoolId, tuple[FreeNodes, ...]] = {}
        self._by_pool: tuple[tuple[Claim, ...], dict[PoolId, list[Claim]]] = ((), {})
        self._claims: tuple[tuple[Claim, ...], Claims] = ((), Claims.of(()))
        self._bound_in: object = None  # what was free where bounds were last counted

    # ------------------------------------------------------------ what changed

    def sorted_places(self, snapshot: Snapshot) -> tuple[tuple[CenterFacts, ...], tuple[Pool, ...]]:
        """Centers and their pools by id; the same tuples while they are of the same objects."""
        given = snapshot.centers, snapshot.pools
        if not all(len(a) == len(b) and all(map(is_, a, b)) for a, b in zip(given, self._given, strict=True)):
            ids = {center.id for center in snapshot.centers}
            self._places = (
                tuple(sorted(snapshot.centers, key=attrgetter("id"))),
                tuple(sorted((p for p in snapshot.pools if p.center in ids), key=attrgetter("id"))),
            )
        self._given = given
        return self._places

    def look(self, world: World) -> tuple[Chooser, PoolColumns, IntArray]:
        """The pools' columns, and the pools whose facts are not those of last time."""
        before, chooser, columns = self._world, self._chooser, self._columns
        standing = self._stand(world.centers)
        if before is None or chooser is None or columns is None or not self._same_shapes(before, world):
            self.blocks.clear()
            self._fittings.clear()
            self._in_use, self._options, self._rows, self._sizes = (), {}, None, _NONE
            columns = pool_columns(world.pools, world.centers, world.minute)
            chooser = Chooser(world.products, world.pools, columns)
            changed = _NONE
        else:
            changed = self._changed(before, world, standing, columns)
            if len(changed):
                columns = repriced(columns, world.pools, world.minute)
                chooser.reprice(columns)
                self._fittings.clear()
                self._keep_in_use()  # blocks of classes that are away would miss the change
        self._world, self._standing, self._columns, self._chooser = world, standing, columns, chooser
        return chooser, columns, changed

    def center_columns(self) -> CenterColumns:
        """The columns of the centers that were looked at last."""
        if self._centers[0] is not self._standing:
            self._centers = (self._standing, center_columns(self._standing))
        return self._centers[1]

    def _stand(self, centers: tuple[CenterFacts, ...]) -> tuple[CenterFacts, ...]:
        """The centers without what is in flight there; the same tuple while it is equal."""
        known = self._world.centers if self._world is not None else ()
        if known is centers:
            return self._standing
        if len(known) != len(centers):
            known = self._standing = ()
        made = tuple(
            self._standing[i] if known and known[i] is c else replace(c, in_flight=0, max_in_flight=0)
            for i, c in enumerate(centers)
        )
        return self._standing if made == self._standing else made

    def _same_shapes(self, before: World, world: World) -> bool:
        """Whether all is as it was that decides on specs, slots and which policies are asked what."""
        return (
            len(before.pools) == len(world.pools)
            and (before.policies is world.policies or before.policies == world.policies)
            and before.asked == world.asked
            and (before.products is world.products or before.products == world.products)
            and [c.id for c in before.centers] == [c.id for c in world.centers]
            and (
                before.pools is world.pools
                or all(
                    a is b
                    or (a.id, a.center, a.shape, a.specs, a.accuracy)
                    == (b.id, b.center, b.shape, b.specs, b.accuracy)
                    for a, b in zip(before.pools, world.pools, strict=True)
                )
            )
        )

    def _changed(
        self, before: World, world: World, standing: tuple[CenterFacts, ...], columns: PoolColumns
    ) -> IntArray:
        changed = np.zeros(len(world.pools), dtype=np.bool_)
        if standing is not self._standing:
            moved = np.array([a != b for a, b in zip(self._standing, standing, strict=True)], dtype=np.bool_)
            changed = moved[columns.center]
        other_minute = before.minute != world.minute
        if world.policies.reads_free:
            changed |= np.array([before.free[p.id] != world.free[p.id] for p in world.pools], dtype=np.bool_)
        same = before.pools is world.pools and not other_minute
        for i, (a, b) in enumerate(() if same else zip(before.pools, world.pools, strict=True)):
            if a is not b or other_minute:
                price = price_at(b.prices, world.minute) or 0
                facts = (a.nodes, a.expected_wait_s, a.native)
                if facts != (b.nodes, b.expected_wait_s, b.native) or price != columns.price[i]:
                    changed[i] = True
        return np.flatnonzero(changed)

    def fittings(self, classes: tuple[JobClass, ...], chooser: Chooser) -> tuple[Fitting, ...]:
        """The fitting of every class."""
        found = []
        for job_class in classes:
            known = self._fittings.get(job_class.key)
            if known is None or known[0].request is not job_class.request:
                known = self._fittings[job_class.key] = (job_class, chooser.fitting(job_class.request))
            found.append(known[1])
        return tuple(found)

    def block(self, job_class: JobClass) -> Block | None:
        """What is known of a class that is still what it was."""
        block = self.blocks.get(job_class.key)
        if block is None:
            return None
        was = block.job_class
        same = was.request is job_class.request or was.request == job_class.request
        same = same and was.learned == job_class.learned
        return block if same and was.tenant == job_class.tenant and was.avoid == job_class.avoid else None

    def forget_old(self) -> None:
        """Drops classes that are away when they are more than those that wait, whose options are known."""
        if len(self.blocks) > 2 * len(self._in_use) + SPARE:
            self._keep_in_use()

    def _keep_in_use(self) -> None:
        used = {block.job_class.key for block in self._in_use}
        self.blocks = {key: block for key, block in self.blocks.items() if key in used}
        self._fittings = {key: known for key, known in self._fittings.items() if key in used}

    # ------------------------------------------------------------ options and rows

    def options(self, blocks: tuple[Block, ...], pools: int) -> dict[str, Any]:
        """The blocks as arrays over all options, by the names of Problem's fields."""
        if (
            not self._options
            or len(blocks) != len(self._in_use)
            or any(a.pools is not b.pools for a, b in zip(blocks, self._in_use, strict=True))
        ):
            sizes = ints([0, *(len(block.pools) for block in blocks)])

            def joined(name: str) -> IntArray:
                return np.concatenate([_NONE, *(getattr(block, name) for block in blocks)])

            codes = [block.codes for block in blocks]
            first = np.cumsum(sizes)
            self._options = {
                "codes": np.array(codes, dtype=np.int8).reshape(len(blocks), pools),
                "first": first,
                "by_cost": joined("by_cost") + np.repeat(first[:-1], sizes[1:]),
                "option_class": np.repeat(np.arange(len(blocks), dtype=np.int64), sizes[1:]),
                **{name: joined(name) for name in ("tau", "cost", "rate")},
                "option_pool": joined("pools"),
                "least_millicards": ints(block.least_millicards for block in blocks),
            }
        self._in_use = blocks
        return self._options

    def rows(self, p: Problem, nodes: IntArray, limits: tuple[Limit, ...]) -> Rows:
        """Rows and entries; those of last time where options and limits are the same."""
        known = self._rows
        if known is not None and known.of is p.option_pool and _same_limits(known.limits, limits):
            return known
        self._rows = made = self._make_rows(p, nodes[p.option_class], limits)
        if known is None or len(known.row_size) != len(made.row_size):  # sizes only come
            self._bounds = np.zeros(len(made.row_pool), dtype=np.int64)
            self._bound_by, self._bound_in = [None] * len(p.pools), None
        return made

    def _make_rows(self, p: Problem, nodes: IntArray, limits: tuple[Limit, ...]) -> Rows:
        options = np.arange(len(p.option_class), dtype=np.int64)
        # 1 slot rows: one per pool and slot size in use there; an option is in those up to its own size
        slotted = ~p.pool.unknown[p.option_pool]
        own_key = (p.option_pool * ROW_KEY + p.tau)[slotted]
        keys = _united(self._sizes, own_key)
        row_pool, row_size = keys // ROW_KEY, keys % ROW_KEY
        smallest = np.searchsorted(row_pool, np.arange(len(p.pools)))[p.option_pool[slotted]]
        spans = np.searchsorted(keys, own_key) - smallest + 1
        slot_option = np.repeat(options[slotted], spans)
        within = np.arange(len(slot_option), dtype=np.int64) - np.repeat(np.cumsum(spans) - spans, spans)
        slot_row = np.repeat(smallest, spans) + within
        slot_coef = nodes[slot_option] * (p.tau[slot_option] // row_size[slot_row])
        # 2 in-flight rows, one per center; 3 limits
        names, codes = self._named(p, keys, limits)
        in_flight_row = len(keys) + p.pool.center[p.option_pool]
        limit_row = len(keys) + len(p.centers)
        self._sizes = keys
        # 4 entries by option: of its slots, of its center, of the limits it is in
        count = np.ones_like(options)
        count[slotted] += spans
        for limit in limits:
            count[limit.options] += 1
        entry_first = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        entry_row = np.empty(int(entry_first[-1]), dtype=np.int64)
        entry_coef = np.ones_like(entry_row)
        at = entry_first[:-1].copy()  # where the next entry of an option goes
        slots = np.repeat(at[slotted], spans) + within
        entry_row[slots], entry_coef[slots] = slot_row, slot_coef
        at[slotted] += spans
        entry_row[at] = in_flight_row
        at += 1
        for row, limit in enumerate(limits, limit_row):
            entry_row[at[limit.options]], entry_coef[at[limit.options]] = row, limit.coefficients
            at[limit.options] += 1
        return Rows(
            names=names,
            codes=codes,
            row_pool=row_pool,
            row_size=row_size,
            entry_first=entry_first,
            entry_row=entry_row,
            entry_coef=entry_coef,
            of=p.option_pool,
            limits=limits,
        )

    def _named(
        self, p: Problem, keys: IntArray, limits: tuple[Limit, ...]
    ) -> tuple[tuple[str, ...], IntArray]:
        """Names and codes of rows; those of last time where slot sizes and limits are named the same."""
        known, slots = self._rows, len(keys)
        if known is not None and keys is self._sizes:
            if [(x.name, x.code) for x in known.limits] == [(x.name, x.code) for x in limits]:
                return known.names, known.codes
            names = list(known.names[:slots])
        else:
            pairs = zip((keys // ROW_KEY).tolist(), (keys % ROW_KEY).tolist(), strict=True)
            names = [f"slots:{p.pools[i].id}:{t}" for i, t in pairs]
        names += [f"in-flight:{center.id}" for center in p.centers]
        names += [f"limit:{limit.name}" for limit in limits]
        codes = [Code.CAPACITY] * slots + [Code.IN_FLIGHT] * len(p.centers) + [x.code for x in limits]
        return tuple(names), np.array(codes, dtype=np.int64)

    def slot_bounds(self, p: Problem, rows: Rows) -> IntArray:
        """Slots of every slot row; counted again for pools where other nodes are free."""
        if p.free is self._bound_in:
            return self._bounds.copy()
        ends = np.searchsorted(rows.row_pool, np.arange(len(p.pools) + 1)).tolist()
        for i, pool in enumerate(p.pools):
            free = p.free[pool.id]
            if free is not self._bound_by[i]:
                for r in range(ends[i], ends[i + 1]):
                    self._bounds[r] = supply(pool.shape, free, int(rows.row_size[r]))
                self._bound_by[i] = free
        self._bound_in = p.free
        return self._bounds.copy()

    # ------------------------------------------------------------ kinds of placements

    def kinds(self, key: str) -> tuple[dict[int, Placement], dict[int, Placement]]:
        """Kinds of placements of a class by number of the pool, to be added to, and those that were
        right before anything about the class changed, which may be so again."""
        block, known = self.blocks.get(key), self._kinds.get(key)
        if known is None or known[0] is not block:
            known = self._kinds[key] = (block, {}, known[1] if known is not None else {})
        return known[1], known[2]

    def kept_kinds(self, fresh: int, in_use: int) -> None:
        """Counts kinds that were added; drops all when most of them are of plans that were."""
        self._kinds_kept += fresh
        if self._kinds_kept > 8 * in_use + 1000:
            self._kinds.clear()
            self._kinds_kept = 0

    # ------------------------------------------------------------ claims, and what is free

    def claims(self, snapshot: Snapshot) -> Claims:
        """The snapshot's claims with their columns, made once where it brings none."""
        if isinstance(snapshot.claims, Claims):
            return snapshot.claims
        if self._claims[0] is not snapshot.claims:
            self._claims = (snapshot.claims, Claims.of(snapshot.claims))
        return self._claims[1]

    def by_pool(self, snapshot: Snapshot) -> Mapping[PoolId, Sequence[Claim]]:
        """The snapshot's claims by pool, in their order."""
        if self._by_pool[0] is not snapshot.claims:
            self._by_pool = (snapshot.claims, by_pool(snapshot.claims))
        return self._by_pool[1]

    def free(self, snapshot: Snapshot) -> dict[PoolId, tuple[FreeNodes, ...]]:
        """effective_free(snapshot, reservations=()), pool by pool where report or claims changed; the
        same object where nothing did."""
        lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
        rests_on = (snapshot.pools, snapshot.claims, lag_s)
        if rests_on == self._found_by:
            return self._found
        claims = self.by_pool(snapshot)
        found: dict[PoolId, tuple[FreeNodes, ...]] = {}
        changed: list[Pool] = []
        held: list[Claim] = []
        for pool in snapshot.pools:
            mine = tuple(claims.get(pool.id, ()))
            known = self._free.get(pool.id)
            # Equal claims mostly are the same objects, which a tuple compares first.
            if known is not None and known[:1] == (pool,) and known[1:3] == (lag_s.get(pool.center, 0), mine):
                found[pool.id] = known[3]
            else:
                changed.append(pool)
                held += mine
        if changed:
            part = replace(snapshot, pools=tuple(changed), claims=tuple(held), reservations=())
            fresh = effective_free(part, reservations=())
            for pool in changed:
                mine = tuple(claims.get(pool.id, ()))
                self._free[pool.id] = (pool, lag_s.get(pool.center, 0), mine, fresh[pool.id])
                found[pool.id] = fresh[pool.id]
        if len(self._free) > 2 * len(snapshot.pools):
            self._free = {pool.id: self._free[pool.id] for pool in snapshot.pools}
        self._found_by, self._found = rests_on, found
        return found


def _united(keys: IntArray, further: IntArray) -> IntArray:
    """Sorted distinct keys with further ones; the same array where it has them all."""
    if len(keys) and (keys.take(keys.searchsorted(further), mode="clip") == further).all():
        return keys
    return np.union1d(keys, further)


def _same_limits(before: tuple[Limit, ...], after: tuple[Limit, ...]) -> bool:
    """Whether only bounds differ."""
    return len(before) == len(after) and all(
        a.name == b.name
        and a.code == b.code
        and np.array_equal(a.options, b.options)
        and np.array_equal(a.coefficients, b.coefficients)
        for a, b in zip(before, after, strict=True)
    )
