"""What stopping a run for a VIP job costs, which runs are spared, and how often it may happen."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from broker.core.amounts import (
    LARGEST_CARDS,
    LARGEST_HOURS,
    LARGEST_RATE_MICRO,
    added,
    priced,
    times,
    weighed,
)
from broker.core.model import MICRO, JobId, Kills, TenantId
from broker.core.policy import SPARED, IntArray, Victims
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Preemption:
    """Prices victims and limits kills.  Without this policy nothing is ever stopped for another job.

    The price is the work since the newest checkpoint plus the restart, at the run's own price or the
    reference price, and `requeue_weight` of what the job is worth once it waits again.  A resumable job is
    believed to write a checkpoint every `checkpointInterval`, unless the claim says when it last did.
    """

    min_run_time_s: int = 600
    """Seconds that a run is safe after its start."""
    restart_overhead_s: int = 300
    """Seconds of all its cards that a stopped run loses by starting again."""
    reference_price: int = 20 * MICRO
    """Least micro-CNY per accelerator-hour that lost work counts, where a center is cheaper or free."""
    requeue_weight: Decimal = Decimal(1)
    """Share, 0 to 1, that the worth of a victim's job, once it waits again, counts.  1: a kill pays only
    where it serves more than it makes wait.  0: least work is lost, whoever waits for it."""
    kills_per_job: int = 2
    """How often one job may be stopped for others."""
    kills_per_tenant_h: int = 20
    """Runs of one tenant that may be stopped within an hour."""
    sets_per_placement: int = 1
    """Victim sets that may be stopped for one VIP job until it runs; a lost race spends one."""
    cool_down_s: int = 600
    """Seconds between two victim sets for one VIP job."""

    def __post_init__(self) -> None:
        for name in Preemption.__dataclass_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.requeue_weight > 1:
            raise ValueError(f"requeue_weight must be at most 1, not {self.requeue_weight}")

    def may_preempt(self, p: Problem, job: JobId) -> bool:
        """A job that was itself stopped for another preempts no one."""
        record = p.snapshot.kill_records.get(job, Kills())
        if record.suffered or record.sets >= self.sets_per_placement:
            return False
        return record.last_ms is None or p.snapshot.now_ms - record.last_ms >= self.cool_down_s * 1000

    def price(self, p: Problem, victims: Victims) -> IntArray:
        """Micro-CNY, or SPARED: for its first minutes, and after it was stopped so many times."""
        spared = (victims.ran_s < self.min_run_time_s) | (victims.preempted >= self.kills_per_job)
        reference = times(victims.millicards, self.reference_price) // 1000
        rate = np.maximum(victims.rate_micro_per_hour, reference)
        lost = priced(rate, victims.lost_s + self.restart_overhead_s)
        price = added(lost, weighed(victims.worth, int(self.requeue_weight * 1000)))
        return np.where(spared, SPARED, price)

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        lost_s = LARGEST_HOURS * 3600 + self.restart_overhead_s
        return max(self.reference_price, LARGEST_RATE_MICRO) * LARGEST_CARDS * lost_s // 3600

    def kill_room(self, p: Problem, tenant: TenantId) -> int:
        """Runs of the tenant that may still be stopped within this hour."""
        return max(0, self.kills_per_tenant_h - p.snapshot.kills.get(tenant, 0))
