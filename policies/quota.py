"""Shares of tenants in accelerators: what is guaranteed, deserved, and the most they may hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from broker.core.claims import Claims
from broker.core.explain import Code
from broker.core.fitting import BoolArray
from broker.core.model import TenantId
from broker.core.policy import IntArray, Limit
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Share:
    """One tenant's share, in cards held at a time by live runs."""

    tenant: str
    """The tenant, or "*" for every tenant that no other share of these accelerators names."""
    accelerator: str = ""
    """A product (Nvidia/GPU/A800), a kind (GPU, NPU), or "" for all accelerators."""
    guarantee: int = 0
    """Cards below which the tenant's jobs go before others of their tier."""
    deserved: int | None = None
    """Cards above which its jobs come after those of others: it borrows what nobody else wants.
    Without it: no such limit."""
    ceiling: int | None = None
    """Cards that it never exceeds.  Without it: no such limit."""

    def __post_init__(self) -> None:
        deserved = self.guarantee if self.deserved is None else self.deserved
        ceiling = deserved if self.ceiling is None else self.ceiling
        if not self.tenant or not 0 <= self.guarantee <= deserved <= ceiling:
            raise ValueError(
                "tenant must be named and 0 <= guarantee <= deserved <= ceiling hold, not"
                f" {self.tenant!r}, {self.guarantee}, {self.deserved} and {self.ceiling}"
            )

    def covers(self, product: str) -> bool:
        """Whether cards of a product count."""
        kind = product.split("/")[1] if "/" in product else ""
        return bool(product) and self.accelerator in ("", product, kind)


@dataclass(frozen=True, slots=True)
class Quota:
    """Ceilings bind; between guarantee, deserved share and ceiling the worth of jobs decides.

    A tenant without a share is not limited.  What a share counts is what the tenant's runs hold at
    the start of the round, so a round may pass guarantee and deserved share, but never a ceiling.
    """

    shares: tuple[Share, ...] = ()
    """One [[policies.quota.shares]] table each."""
    below_guarantee: Decimal = Decimal(4)
    """What the worth of a job is multiplied by while its tenant holds less than its guarantee."""
    above_deserved: Decimal = Decimal("0.25")
    """The same while its tenant holds its deserved share or more."""

    def __post_init__(self) -> None:
        if not Decimal(0) < self.above_deserved <= 1 <= self.below_guarantee <= 1000:
            raise ValueError(
                "0 < above_deserved <= 1 <= below_guarantee <= 1000 must hold, not"
                f" {self.above_deserved} and {self.below_guarantee}"
            )
        named = [(share.tenant, share.accelerator) for share in self.shares]
        if len(set(named)) < len(named):
            raise ValueError(f"shares: {max(named, key=named.count)} is there twice")

    def factors(self, p: Problem) -> IntArray | None:
        """Thousandths of the worth of every class."""
        if not self.shares:
            return None
        permille = np.full(len(p.classes), 1000, dtype=np.int64)
        covered = self._covered(p)
        for tenant, own, held in self._tenants(p):
            for share in self._of(tenant):
                some = own[np.bincount(p.option_class, covered[share], len(p.classes))[own] > 0]
                has = _held(held, share)
                if has < share.guarantee * 1000:
                    permille[some] = np.maximum(permille[some], int(self.below_guarantee * 1000))
                elif share.deserved is not None and has >= share.deserved * 1000:
                    permille[some] = np.minimum(permille[some], int(self.above_deserved * 1000))
        return permille

    def limits(self, p: Problem) -> tuple[Limit, ...]:
        """A row for every ceiling of every tenant that has jobs waiting."""
        if not self.shares:
            return ()
        covered = self._covered(p)
        return tuple(
            limit
            for tenant, own, held in self._tenants(p)
            for limit in self._limits(p, tenant, own, held, covered)
        )

    def _tenants(self, p: Problem) -> Iterator[tuple[TenantId, IntArray, Mapping[str, int]]]:
        """Tenants that have jobs waiting, in order: their classes, and what they hold by product."""
        held: defaultdict[TenantId, dict[str, int]] = defaultdict(dict)
        for (tenant, product), millicards in Claims.of(p.snapshot.claims).held_millicards().items():
            held[tenant][product] = millicards
        classes: defaultdict[TenantId, list[int]] = defaultdict(list)
        for k, job_class in enumerate(p.classes):
            classes[job_class.tenant].append(k)
        for tenant in sorted(classes):
            yield tenant, np.array(classes[tenant], dtype=np.int64), held[tenant]

    def _limits(
        self,
        p: Problem,
        tenant: TenantId,
        own: IntArray,
        held: Mapping[str, int],
        covered: Mapping[Share, BoolArray],
    ) -> Iterator[Limit]:
        options = np.concatenate([np.arange(p.first[k], p.first[k + 1]) for k in own.tolist()])
        taken = np.concatenate([p.job_millicards(k, p.option_pool[p.options(k)]) for k in own.tolist()])
        for share in self._of(tenant):
            if share.ceiling is None:
                continue
            mine = np.flatnonzero(covered[share][options] & (taken > 0))
            counted = taken[mine]
            left = max(0, share.ceiling * 1000 - _held(held, share))
            # In cards where nobody has a part of one: then the numbers told are cards.
            unit = 1000 if not (counted % 1000).any() and left % 1000 == 0 else 1
            name = f"quota:{tenant}:{share.accelerator or '*'}"
            yield Limit(name, Code.QUOTA, options[mine], counted // unit, left // unit)

    def _of(self, tenant: TenantId) -> list[Share]:
        own = [s for s in self.shares if s.tenant == tenant]
        named = {s.accelerator for s in own}
        return own + [s for s in self.shares if s.tenant == "*" and s.accelerator not in named]

    def _covered(self, p: Problem) -> dict[Share, BoolArray]:
        """Of every option whether its cards count, by share."""
        products = [pool.shape.accelerator for pool in p.pools]
        return {
            share: np.array([share.covers(product) for product in products], dtype=np.bool_)[p.option_pool]
            for share in self.shares
        }


def _held(held: Mapping[str, int], share: Share) -> int:
    """Thousandths of cards that count, of what a tenant's live runs hold by product, those that are
    asked to end included."""
    return sum(millicards for product, millicards in held.items() if share.covers(product))
