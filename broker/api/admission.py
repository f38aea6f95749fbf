"""Whether a create request can be taken: what its body alone does not tell.

What belongs here: rights, data sets, image, centers and spec against what the centers offer, and the
domain's JobRequest made from the body.  What does not: capacity.  A spec that is offered but taken
is no error; the job waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from broker.api import wire
from broker.api.context import Context
from broker.api.errors import ApiError, shown
from broker.api.models import Config
from broker.core import resources
from broker.core.charges import micro
from broker.core.hops import why_not
from broker.core.model import (
    SERVICE_RETRIES,
    CenterId,
    CenterState,
    JobRequest,
    Kind,
    OnLost,
    Pool,
    Spec,
    Tier,
)
from broker.core.resources import effective_gflops, same_card_memory, slot_size
from broker.store.accounts import Caller
from broker.store.centers import CenterView
from broker.store.creates import Admission

slices = lru_cache(maxsize=4096)(resources.slices)


def admit(config: Config, kind: Kind, caller: Caller, facts: Admission, context: Context) -> JobRequest:
    """The request as the scheduler knows it.  Raises ApiError 0202, 0220, 0210, 0211, 0221."""
    if config.is_vip and not caller.may_use_vip:
        raise ApiError("0202", f"config.isVip: account {caller.name!r} has not the right to VIP jobs")
    if fault := why_not(config.labels, context.hop):
        raise ApiError("0202", f"config.labels: {fault}")
    if facts.unusable_datasets:
        name = shown(facts.unusable_datasets[0])
        raise ApiError("0202", f"config.datasetIds: there is no data set {name} that you may read")
    if not config.image_id and not config.image_url:
        raise ApiError("0220", "config.imageId or config.imageUrl: exactly one must be given")
    centers = _candidates(config.center_id or [], facts.centers)
    spec = _spec(config, centers, context)
    if config.image_id and not any(center.id in facts.image_centers for center in centers):
        where = "the centers named" if config.center_id else "any center"
        raise ApiError("0221", f"config.imageId: {shown(config.image_id)} is not offered by {where}")
    return request_of(config, kind, spec)


def _candidates(listed: Sequence[str], centers: Sequence[CenterView]) -> list[CenterView]:
    """The centers a job may be judged by: those listed that can take runs now, or all."""
    known: dict[str, CenterView] = {center.id: center for center in centers}
    for index, name in enumerate(listed):
        if name not in known:
            raise ApiError("0210", f"config.centerId[{index}]: there is no center {shown(name)}")
    if not listed:
        return list(centers)
    usable = [
        known[name]
        for name in dict.fromkeys(listed)
        if wire.connected(known[name]) and known[name].state is CenterState.ACTIVE
    ]
    if not usable:
        states = ", ".join(f"{name} is {known[name].state}, {known[name].health}" for name in listed)
        raise ApiError("0210", f"config.centerId: none of these takes jobs now: {states}")
    return usable


def pool_specs(pool: Pool, extra: Sequence[Spec]) -> Iterator[Spec]:
    """What a pool offers: the platform's own list, or slices of a node and the operator's specs that
    fit one."""
    if pool.specs:
        yield from pool.specs
        return
    for spec in extra:
        wanted, node = spec.shape, pool.shape
        same_kind = (wanted.arch, wanted.accelerator) == (node.arch, node.accelerator)
        if same_kind and same_card_memory(node, wanted) and slot_size(pool.shape, spec.shape):
            yield spec
    yield from slices(pool.shape)


def offered_specs(centers: Sequence[CenterView], extra: Sequence[Spec]) -> dict[str, Spec]:
    """Specs of some centers by id, each once; the operator's own name for one wins."""
    found: dict[str, Spec] = {}
    for spec in _offers(centers, extra):
        found.setdefault(spec.id, spec)
    return found


def _offers(centers: Sequence[CenterView], extra: Sequence[Spec]) -> Iterator[Spec]:
    for center in centers:
        for pool in center.pools:
            yield from pool_specs(pool, extra)


def _spec(config: Config, centers: Sequence[CenterView], context: Context) -> Spec | None:
    """The spec asked for, or None where power is asked for and some spec has it."""
    where = "by the centers named" if config.center_id else "by any center"
    if config.min_computing_power is None:
        own = [spec for spec in context.extra_specs if spec.id == config.spec_id]
        spec = next((spec for spec in _offers(centers, own) if spec.id == config.spec_id), None)
        if spec is None:
            raise ApiError("0211", f"config.specId: {shown(config.spec_id)} is not offered {where}")
        return spec
    offered = _offers(centers, context.extra_specs)
    strongest = max((effective_gflops(spec.shape, context.catalogue) for spec in offered), default=0)
    if strongest < _gflops(config.min_computing_power):
        flops = strongest * wire.FLOPS_PER_GFLOPS
        raise ApiError(
            "0211",
            f"config.minComputingPower: {config.min_computing_power} FLOPS per node are not offered"
            f" {where}; the strongest spec has {flops}",
        )
    return None


def _gflops(flops: int) -> int:
    return -(-flops // wire.FLOPS_PER_GFLOPS)


def request_of(config: Config, kind: Kind, spec: Spec | None) -> JobRequest:
    """A body's config as the domain has it.

    All listed centers stay candidates: one that is silent now may be back when the job
    starts.
    """
    tier = Tier.VIP if config.is_vip else Tier[config.priority.upper()]
    online = kind is Kind.ONLINE
    lower = tier <= Tier.NORMAL and not online
    preemptible = lower if config.preemptible is None else config.preemptible
    retries = SERVICE_RETRIES if online else 0
    return JobRequest(
        kind=kind,
        centers=tuple(CenterId(name) for name in dict.fromkeys(config.center_id or [])),
        spec=spec,
        min_gflops=0 if config.min_computing_power is None else _gflops(config.min_computing_power),
        nodes=config.node_count,
        image_id=config.image_id,
        image_url=config.image_url,
        command=config.command,
        tier=tier,
        preempt_policy=config.preempt_policy or 1,
        vip_nodes=tuple(dict.fromkeys(config.vip_node_names or [])),
        preemptible=preemptible,
        estimated_run_time_s=config.estimated_run_time,
        max_run_time_s=config.max_run_time,
        max_price_micro=None if config.max_price is None else micro(config.max_price),
        max_retries=retries if config.max_retries is None else config.max_retries,
        on_lost=OnLost(config.on_lost),
        resumable=config.resumable,
        checkpoint_interval_s=config.checkpoint_interval,
        stop_grace_s=config.stop_grace,
        env=tuple((entry.key, entry.value) for entry in config.env),
        datasets=tuple(dict.fromkeys(config.dataset_ids)),
        port=config.port,
        public=bool(config.public),
        labels=tuple(sorted(config.labels.items())),
    )
