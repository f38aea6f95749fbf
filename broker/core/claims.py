"""Claims, and what rounds ask of every one of them as columns.

What belongs here: an immutable sequence of claims that changes by making another one, at the cost of
what changed and one copy.  What does not: which claims there are (broker/mirror.py), and what they
mean for a pool (core/snapshot.py) or for a job that would have them stopped (core/victims.py).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from broker.core.model import Claim, PoolId, RunId, RunState, TenantId, Tier

IntArray = npt.NDArray[np.int64]

NOT_STARTED = 1 << 62
"""The start of a run that has not started: after everything."""
SPARE_KEYS = 1000
"""Class keys that keep their numbers besides three for every claim: many come back."""

_run = attrgetter("run")


@dataclass(frozen=True, slots=True, eq=False)
class ClaimColumns:
    """One row per claim, in their order.

    `able`: 1 where the run may be stopped for another, as far as its own facts say.  `stopping`: 1 where
    it was asked to end.  `started_ms` is NOT_STARTED before the start, `checkpoint_ms` 0 where none was
    seen, `interval_s` how often it is believed to write one then, 0: never.  Of each node's share:
    `cards`, `permille` of each card, `cores`, `memory_gib`.  `pool`, `tenant`, `accelerator` and
    `class_key` are indices of Claims.pools, .tenants, .accelerators and .class_keys.
    """

    able: IntArray
    stopping: IntArray
    started_ms: IntArray
    checkpoint_ms: IntArray
    interval_s: IntArray
    queued_ms: IntArray
    preempted: IntArray
    rate_micro_per_hour: IntArray
    nodes: IntArray
    cards: IntArray
    permille: IntArray
    cores: IntArray
    memory_gib: IntArray
    pool: IntArray
    tenant: IntArray
    accelerator: IntArray
    class_key: IntArray

    def at(self, rows: IntArray) -> ClaimColumns:
        """Some rows, in this order."""
        return ClaimColumns(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Of names, shared by claims that are made from each other: they only ever get more."""

    pool: dict[PoolId, int] = field(default_factory=dict)
    tenant: dict[TenantId, int] = field(default_factory=dict)
    accelerator: dict[str, int] = field(default_factory=dict)
    class_key: dict[str, int] = field(default_factory=dict)


class Claims(tuple[Claim, ...]):
    """Claims in order of run ids, each run once, with their columns and the names that these refer to."""

    columns: ClaimColumns
    pools: tuple[PoolId, ...]
    tenants: tuple[TenantId, ...]
    accelerators: tuple[str, ...]
    class_keys: tuple[str, ...]
    _table: IntArray  # the columns, one row each
    _numbers: _Numbers

    def pool_rows(self, pools: Mapping[PoolId, int]) -> IntArray:
        """Of each claim what its pool is mapped to, -1 where it is not."""
        at = [pools.get(pool, -1) for pool in self.pools]
        return np.array(at, dtype=np.int64)[self.columns.pool]

    def held_millicards(self) -> dict[tuple[TenantId, str], int]:
        """Thousandths of cards held, by tenant and product; those of runs asked to end included."""
        columns, width = self.columns, len(self.accelerators)
        held = np.zeros(len(self.tenants) * width, dtype=np.int64)
        taken = columns.cards * columns.permille * columns.nodes
        np.add.at(held, columns.tenant * width + columns.accelerator, taken)
        pairs = itertools.product(self.tenants, self.accelerators)
        return dict(zip(pairs, held.tolist(), strict=True))

    @staticmethod
    def of(claims: Iterable[Claim]) -> Claims:
        """Any claims; those that have columns are given back as they are."""
        if isinstance(claims, Claims):
            return claims
        ordered, numbers = sorted(claims, key=_run), _Numbers()
        return _made(ordered, _table(ordered, numbers), numbers)

    def changed(self, gone: Collection[RunId], come: Iterable[Claim]) -> Claims:
        """Without the runs `gone`, where they are here, and with those of `come`, new or in their place."""
        new = sorted(come, key=_run)
        leave = {*gone, *map(_run, new)}
        # Made anew where that is as fast, and to forget classes that are long gone.
        if 8 * len(leave) > len(self) or len(self._numbers.class_key) > 3 * len(self) + SPARE_KEYS:
            return Claims.of([*(c for c in self if c.run not in leave), *new])
        rows = list(self)
        found = ((bisect_left(rows, run, key=_run), run) for run in leave)
        at = sorted(i for i, run in found if i < len(rows) and rows[i].run == run)
        for i in reversed(at):
            del rows[i]
        to = [bisect_left(rows, claim.run, key=_run) for claim in new]
        table = np.insert(np.delete(self._table, at, axis=1), to, _table(new, self._numbers), axis=1)
        for i, claim in zip(reversed(to), reversed(new), strict=True):
            rows.insert(i, claim)
        return _made(rows, table, self._numbers)


class Some(Sequence[Claim]):
    """Some of many claims, each looked up when it is asked for."""

    __slots__ = ("_of", "_rows")

    def __init__(self, of: Sequence[Claim], rows: Sequence[int]) -> None:
        self._of, self._rows = of, rows

    @overload
    def __getitem__(self, index: int) -> Claim: ...
    @overload
    def __getitem__(self, index: slice) -> Some: ...
    def __getitem__(self, index: int | slice) -> Claim | Some:
        if isinstance(index, slice):
            return Some(self._of, self._rows[index])
        return self._of[self._rows[index]]

    def __len__(self) -> int:
        return len(self._rows)


def _made(rows: Sequence[Claim], table: IntArray, numbers: _Numbers) -> Claims:
    made = Claims(rows)
    made._table, made._numbers, made.columns = table, numbers, ClaimColumns(*table)
    made.pools, made.tenants = tuple(numbers.pool), tuple(numbers.tenant)
    made.accelerators, made.class_keys = tuple(numbers.accelerator), tuple(numbers.class_key)
    return made


def _table(claims: Sequence[Claim], numbers: _Numbers) -> IntArray:
    """The columns in the order of ClaimColumns' fields; what has no number yet gets one."""

    def of(name: str) -> Iterable[Any]:
        return map(attrgetter(name), claims)

    def numbered(name: str, known: dict[Any, int]) -> Iterable[int]:
        return (known.setdefault(value, len(known)) for value in of(name))

    columns: tuple[Iterable[int], ...] = (
        map(_able, claims),
        of("stopping"),
        (NOT_STARTED if c.started_ms is None else c.started_ms for c in claims),
        (c.checkpoint_ms or 0 for c in claims),
        map(_believed_interval_s, claims),
        of("queued_ms"),
        of("preempted"),
        of("rate_micro_per_hour"),
        of("nodes"),
        of("shape.accelerators"),
        of("shape.card_permille"),
        of("shape.cores"),
        of("shape.memory_gib"),
        numbered("pool", numbers.pool),
        numbered("tenant", numbers.tenant),
        numbered("shape.accelerator", numbers.accelerator),
        numbered("class_key", numbers.class_key),
    )
    return np.stack([np.fromiter(column, dtype=np.int64, count=len(claims)) for column in columns])


def _able(claim: Claim) -> bool:
    request = claim.request
    return (
        claim.state is RunState.RUNNING
        and not claim.stopping
        and claim.tier < Tier.VIP
        and request is not None
        and request.preemptible
    )


def _believed_interval_s(claim: Claim) -> int:
    request = claim.request
    if request is None or not request.resumable or claim.checkpoint_ms is not None:
        return 0
    return request.checkpoint_interval_s or 0
