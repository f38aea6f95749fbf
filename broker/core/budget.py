"""What tenants may still spend, as rows of a problem: an exhausted budget stops placement, never a run.

What belongs here: what live runs are expected to cost, the rows, and their independent check.  What
does not: budgets and balances themselves (core/charges.py).

These rows hold whatever the policy file says.  A tenant without a budget or balance has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from broker.core.amounts import bounded, priced, product
from broker.core.explain import Code
from broker.core.model import Claim, Snapshot, TenantId
from broker.core.policy import Limit

if TYPE_CHECKING:
    from broker.core.plan import Alike
    from broker.core.problem import Problem


def committed_micro(claim: Claim, now_ms: int) -> int:
    """What a live run is expected to cost from its start to its end; nothing of it is billed yet.

    One that runs longer than was expected counts what it has cost so far.
    """
    if not claim.state.live:
        return 0
    planned_s = claim.estimate_s
    stated = claim.request is not None and claim.request.estimated_run_time_s is not None
    if claim.learned is not None and not stated:
        planned_s = claim.learned.p50_s
    ran_s = 0 if claim.started_ms is None else (now_ms - claim.started_ms) // 1000
    return product(claim.rate_micro_per_hour, max(planned_s, ran_s, 0)) // 3600


def spendable(snapshot: Snapshot) -> dict[TenantId, int]:
    """What each tenant with a budget or balance may commit itself to now; 0: nothing."""
    left = dict(snapshot.funds)
    for claim in snapshot.claims if left else ():
        if claim.tenant in left:
            left[claim.tenant] -= committed_micro(claim, snapshot.now_ms)
    return {tenant: max(0, bounded(micro)) for tenant, micro in left.items()}


def budget_limits(p: Problem) -> tuple[Limit, ...]:
    """A row for every tenant with jobs waiting that may not spend what it likes.

    A job takes what it is expected to cost, and a micro-CNY where it costs nothing: with nothing left
    nothing starts.
    """
    if not p.snapshot.funds:
        return ()
    left = spendable(p.snapshot)
    tenants = sorted({c.tenant for c in p.classes} & left.keys())
    return tuple(_limit(p, tenant, left[tenant]) for tenant in tenants)


def _limit(p: Problem, tenant: TenantId, left_micro: int) -> Limit:
    own = [k for k, c in enumerate(p.classes) if c.tenant == tenant]
    options = np.flatnonzero(np.isin(p.option_class, own))
    estimate_s = np.array([c.estimate_s for c in p.classes], dtype=np.int64)[p.option_class[options]]
    cost = np.maximum(priced(p.rate[options], estimate_s), 1)
    return Limit(f"budget:{tenant}", Code.BUDGET, options, cost, left_micro)


def overspent(alike: Sequence[Alike], snapshot: Snapshot) -> list[str]:
    """Tenants that a plan commits to more than they may spend, in words."""
    if not snapshot.funds:
        return []
    left = spendable(snapshot)
    tenant_of = {c.key: c.tenant for c in snapshot.classes}
    taken: dict[TenantId, int] = {}
    for one in alike:
        tenant = tenant_of.get(one.kind.class_key)
        if tenant is not None and tenant in left:
            taken[tenant] = taken.get(tenant, 0) + max(1, one.kind.cost_micro) * len(one.jobs)
    return [
        f"tenant {tenant}: jobs for {micro} micro-CNY start, {left[tenant]} are left"
        for tenant, micro in sorted(taken.items())
        if micro > left[tenant]
    ]
