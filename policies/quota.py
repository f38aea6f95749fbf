"""Shares of tenants in accelerators: what is guaranteed, deserved, and the most they may hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

import numpy as np

from broker.core.explain import Code
from broker.core.model import Claim, Snapshot, TenantId
from broker.core.policy import Limit
from broker.core.problem import Problem


class Stands(Enum):
    """Where what a tenant holds lies in a share of its."""

    BELOW_GUARANTEE = 0
    BETWEEN = 1
    ABOVE_DESERVED = 2


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

    def stands(self, held: int) -> Stands:
        """Where a tenant stands that holds so many thousandths of cards."""
        if held < self.guarantee * 1000:
            return Stands.BELOW_GUARANTEE
        if self.deserved is not None and held >= self.deserved * 1000:
            return Stands.ABOVE_DESERVED
        return Stands.BETWEEN


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

    def depends(self, snapshot: Snapshot) -> Hashable:
        """Which tenants hold so much that a share weighs otherwise than for one that holds nothing."""
        found = []
        for number, share in enumerate(self.shares):
            held: dict[TenantId, int] = {}
            for claim in snapshot.claims:
                if share.tenant in ("*", claim.tenant) and share.covers(claim.shape.accelerator):
                    held[claim.tenant] = held.get(claim.tenant, 0) + _cards(claim)
            stands = {tenant: share.stands(cards) for tenant, cards in held.items()}
            found += [(number, *item) for item in sorted(stands.items()) if item[1] is not share.stands(0)]
        return tuple(found)

    def share(self, p: Problem, k: int) -> int:
        """Thousandths of the worth of class `k`."""
        tenant = p.classes[k].tenant
        products = {p.pools[at].shape.accelerator for at in p.option_pool[p.options(k)].tolist()}
        permille = 1000
        for share in self._of(tenant):
            if any(share.covers(product) for product in products):
                stands = share.stands(self._held(p, share, tenant))
                if stands is Stands.BELOW_GUARANTEE:
                    permille = max(permille, int(self.below_guarantee * 1000))
                elif stands is Stands.ABOVE_DESERVED:
                    permille = min(permille, int(self.above_deserved * 1000))
        return permille

    def limits(self, p: Problem) -> tuple[Limit, ...]:
        """A row for every ceiling of every tenant that has jobs waiting."""
        if not self.shares:
            return ()
        tenants = sorted({c.tenant for c in p.classes})
        return tuple(limit for tenant in tenants for limit in self._limits(p, tenant))

    def _limits(self, p: Problem, tenant: TenantId) -> Iterator[Limit]:
        own = [k for k, c in enumerate(p.classes) if c.tenant == tenant]
        options = np.flatnonzero(np.isin(p.option_class, own))
        for share in self._of(tenant):
            if share.ceiling is None:
                continue
            taken = np.array([self._millicards(p, share, j) for j in options.tolist()], dtype=np.int64)
            left = max(0, share.ceiling * 1000 - self._held(p, share, tenant))
            # In cards where nobody has a part of one: then the numbers told are cards.
            unit = 1000 if not (taken % 1000).any() and left % 1000 == 0 else 1
            name = f"quota:{tenant}:{share.accelerator or '*'}"
            yield Limit(name, Code.QUOTA, options[taken > 0], taken[taken > 0] // unit, left // unit)

    def _of(self, tenant: TenantId) -> list[Share]:
        own = [s for s in self.shares if s.tenant == tenant]
        named = {s.accelerator for s in own}
        return own + [s for s in self.shares if s.tenant == "*" and s.accelerator not in named]

    def _held(self, p: Problem, share: Share, tenant: TenantId) -> int:
        """Thousandths of cards that live runs of a tenant hold, those that are asked to end included."""
        return sum(
            _cards(c) for c in p.snapshot.claims if c.tenant == tenant and share.covers(c.shape.accelerator)
        )

    def _millicards(self, p: Problem, share: Share, option: int) -> int:
        """Thousandths of cards that one job takes by an option, 0 where they do not count."""
        at, k = int(p.option_pool[option]), int(p.option_class[option])
        if not share.covers(p.pools[at].shape.accelerator):
            return 0
        fitting = p.fittings[k]
        return int(fitting.cards[at] * fitting.permille[at]) * p.classes[k].request.nodes


def _cards(claim: Claim) -> int:
    """Thousandths of cards that a run holds."""
    return claim.shape.accelerators * claim.shape.card_permille * claim.nodes
