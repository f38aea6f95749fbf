"""Tenants that have used much lately come after those that have used little."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from broker.core.claims import Claims
from broker.core.model import TenantId
from broker.core.policy import IntArray
from broker.core.problem import Problem

STEP = 50
"""Thousandths."""


@dataclass(frozen=True, slots=True)
class Fairshare:
    """Multiplies the worth of a tenant's jobs by how its usage compares with an equal share.

    Usage is accelerator-seconds of ended runs, halved for every half-life since they ended, plus those
    of live runs so far.  Only tenants that have jobs waiting or usage are compared.
    """

    half_life_h: int = 24
    """Hours after which usage counts half."""
    least: Decimal = Decimal("0.25")
    """Factor of a tenant that has used everything there was."""
    most: Decimal = Decimal(2)
    """Factor of a tenant that has used nothing while others have."""

    def __post_init__(self) -> None:
        if self.half_life_h < 1 or not Decimal(0) < self.least <= 1 <= self.most <= 1000:
            raise ValueError(
                "half_life_h must be at least 1 and 0 < least <= 1 <= most <= 1000 hold, not"
                f" {self.half_life_h}, {self.least} and {self.most}"
            )

    @property
    def usage_half_life_s(self) -> int:
        """What the snapshot's usage is decayed by."""
        return self.half_life_h * 3600

    def factors(self, p: Problem) -> IntArray | None:
        """Thousandths, the same for all classes of a tenant."""
        used = self._used(p)
        total, tenants = sum(used.values()), len(used)
        if total == 0 or tenants < 2:
            return None
        factor = {tenant: self._factor(mine, total, tenants) for tenant, mine in used.items()}
        return np.array([factor[c.tenant] for c in p.classes], dtype=np.int64)

    def _factor(self, mine: int, total: int, tenants: int) -> int:
        least, most = int(self.least * 1000), int(self.most * 1000)
        if mine * tenants <= total:  # from `most` at nothing to 1000 at an equal share
            permille = most - (most - 1000) * mine * tenants // total
        else:  # and on to `least` at everything
            permille = 1000 - (1000 - least) * (mine * tenants - total) // (total * (tenants - 1))
        # In steps, so that the worth of jobs does not change with every round.
        return max(1, round(permille / STEP) * STEP)

    def _used(self, p: Problem) -> dict[TenantId, int]:
        """Accelerator-seconds per tenant."""
        used = dict.fromkeys((c.tenant for c in p.classes), 0) | dict(p.snapshot.usage)
        claims = Claims.of(p.snapshot.claims)
        columns = claims.columns
        ran_s = np.maximum(0, p.snapshot.now_ms - columns.started_ms) // 1000
        live = np.zeros(len(claims.tenants), dtype=np.int64)
        np.add.at(live, columns.tenant, ran_s * columns.cards * columns.nodes)
        for tenant, seconds in zip(claims.tenants, live.tolist(), strict=True):
            if seconds:
                used[tenant] = used.get(tenant, 0) + seconds
        return used
