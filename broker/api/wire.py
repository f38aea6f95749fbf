"""Domain values as the objects of the wire.

What belongs here: names and shapes of the standard and of the broker's own answers.  What does not:
reading the store and deciding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web

from broker.api.times import written
from broker.core.charges import cny
from broker.core.hops import ORIGIN_LABEL, hops_of
from broker.core.model import (
    MICRO,
    Accuracy,
    CenterState,
    FreeNodes,
    Health,
    JobRequest,
    Kind,
    NodeShape,
    PublicStatus,
    Spec,
    SpecId,
    Tier,
)
from broker.core.resources import Catalogue, Totals, millicards, totals
from broker.store.centers import CenterView
from broker.store.jobs import JobSummary, JobView, RunView
from broker.store.rounds import RoundFacts

FLOPS_PER_GFLOPS = 10**9
_ENCODER = json.JSONEncoder(ensure_ascii=False)
NO_SPEC = Spec(SpecId(""), "", NodeShape("", 0, 0))
"""Shown for a job that asks for power and has no spec yet."""


def answer(data: Any, *, status: int = 200) -> web.Response:
    """A JSON answer in UTF-8, Chinese text as it is."""
    return web.json_response(text=_ENCODER.encode(data), status=status)


# ---------------------------------------------------------------- resources


def _kind(product: str) -> str:
    parts = product.split("/")
    return parts[1] if len(parts) > 1 else ""


def _resources(
    *, arch: str, cores: int, memory_gib: int, kind: str, product: str, cards: int, card_gib: int
) -> dict[str, Any]:
    """The standard's cpu, memory and processor; without cards the processor is empty, not absent."""
    return {
        "cpu": {"arch": arch, "cores": cores},
        "memory": {"size": memory_gib, "unit": "GiB"},
        "processor": {"type": kind, "count": cards, "name": product, "memory": card_gib},
    }


def shape(node: NodeShape) -> dict[str, Any]:
    """One node.  `count` is of devices; `cardPermille` says what part of a card each is, where it is one."""
    carded = node.accelerators > 0
    part = {"cardPermille": node.card_permille} if carded and node.card_permille != 1000 else {}
    whole = _resources(
        arch=node.arch,
        cores=node.cores,
        memory_gib=node.memory_gib,
        kind=_kind(node.accelerator) if carded else "",
        product=node.accelerator if carded else "",
        cards=node.accelerators,
        card_gib=node.accelerator_memory_gib if carded else 0,
    )
    return {**whole, "processor": {**whole["processor"], **part}}


def summed(sums: Totals) -> dict[str, Any]:
    return _resources(
        arch=sums.arch,
        cores=sums.cores,
        memory_gib=sums.memory_gib,
        kind=sums.kind,
        product=sums.accelerator,
        cards=sums.accelerators,
        card_gib=sums.accelerator_memory_gib,
    )


def spec(one: Spec) -> dict[str, Any]:
    return {"resourceSpecId": one.id, "resourceSpecName": one.name, **shape(one.shape)}


# ---------------------------------------------------------------- centers


def connected(center: CenterView) -> bool:
    """Answers its polls, and is polled at all."""
    return center.connected and center.state is not CenterState.INACTIVE


def capacity(center: CenterView) -> Totals:
    """All nodes of a center."""
    return totals((pool.shape, pool.nodes) for pool in center.pools)


def datasheet_flops(center: CenterView, catalogue: Catalogue) -> int:
    """FP16 FLOPS of all cards by their datasheets, exact; unknown products count nothing."""
    gflops = 0
    for pool in center.pools:
        product = catalogue.get(pool.shape.accelerator)
        if product is not None:
            gflops += product.fp16_gflops * millicards(pool.shape) * pool.nodes // 1000
    return gflops * FLOPS_PER_GFLOPS


def _observed_ms(center: CenterView) -> int | None:
    return min((pool.as_of_ms for pool in center.pools), default=None)


def center(view: CenterView, catalogue: Catalogue, zone: ZoneInfo) -> dict[str, Any]:
    """The standard's center; storage is not reported by centers, so it is 0."""
    return {
        "centerId": view.id,
        "centerName": view.name,
        "province": view.province,
        "city": view.city,
        "desc": view.desc,
        "connected": connected(view),
        "processorType": capacity(view).kind,
        "totalStorage": 0,
        "maxComputingPower": datasheet_flops(view, catalogue),
        "state": view.state.value,
        "health": view.health.value,
        "error": view.error,
        "adapter": view.adapter,
        "queueLength": view.queue_length,
        "inFlight": view.in_flight,
        "running": view.running,
        "observedAt": written(_observed_ms(view), zone),
        "createTime": written(view.created_ms, zone),
    }


def center_report(view: CenterView, zone: ZoneInfo) -> dict[str, Any]:
    """What an operator needs of a center's reports; `reason` names the field and its value."""
    return {
        "centerId": view.id,
        "state": view.state.value,
        "health": view.health.value,
        "error": view.error,
        "lastReportAt": written(view.ok_ms, zone),
        "inFlight": view.in_flight,
        "maxInFlight": view.max_in_flight,
        "running": view.running,
        "pools": [
            {
                "pool": pool.id,
                "native": pool.native,
                "nodeCount": pool.nodes,
                "node": shape(pool.shape),
                "accuracy": pool.accuracy.value,
                "observedAt": written(pool.as_of_ms, zone),
            }
            for pool in view.pools
        ],
        "quarantined": [{"name": name, "reason": reason} for name, reason in view.quarantined],
    }


def available(node: NodeShape, group: FreeNodes) -> NodeShape:
    """What is free on one node of a group."""
    carded = group.accelerators > 0
    return NodeShape(
        arch=node.arch,
        cores=group.cores,
        memory_gib=group.memory_gib,
        accelerator=node.accelerator if carded else "",
        accelerators=group.accelerators,
        accelerator_memory_gib=node.accelerator_memory_gib if carded else 0,
        card_permille=node.card_permille if carded else 1000,
    )


_ACCURACY_ORDER = (Accuracy.EXACT, Accuracy.ESTIMATED, Accuracy.UNKNOWN)


def idle(view: CenterView, zone: ZoneInfo) -> dict[str, Any]:
    """The standard's centerResource: what the last report of the center said is idle.

    Nothing is idle where nobody knows: at a silent center, and in pools without an idle figure.
    `resources` are the exact totals per architecture, product, memory and part of a card.  Of cards
    that are partly used `freeParts` tells what is free, in thousandths; counts are of whole devices.
    """
    known = [p for p in view.pools if connected(view) and p.accuracy is not Accuracy.UNKNOWN]
    free: dict[tuple[NodeShape, tuple[int, ...]], int] = {}
    for pool in known:
        for group in pool.free:
            if group.nodes and (group.cores or group.memory_gib or group.accelerators or group.parts):
                row = (available(pool.shape, group), group.parts)
                free[row] = free.get(row, 0) + group.nodes
    rows = sorted(free.items(), reverse=True)
    accuracy = max((p.accuracy for p in view.pools), key=_ACCURACY_ORDER.index, default=Accuracy.UNKNOWN)
    all_nodes = capacity(view)
    return {
        "centerId": view.id,
        "totalResource": summed(all_nodes),
        "idleResource": summed(totals((node, count) for (node, _), count in rows)),
        "nodeResources": [
            {
                "resourceSpec": shape(node),
                "nodeCount": str(count),
                **({"freeParts": list(parts)} if parts else {}),
            }
            for (node, parts), count in rows
        ],
        "accuracy": accuracy.value if connected(view) else Accuracy.UNKNOWN.value,
        "observedAt": written(_observed_ms(view), zone),
        "resources": [shape(entry) for entry in all_nodes.entries],
    }


def polled(view: CenterView) -> bool:
    """A first poll has been tried, or cannot be."""
    return view.state is not CenterState.ACTIVE or view.health is not Health.UNKNOWN or bool(view.error)


# ---------------------------------------------------------------- jobs


def metadata(job: JobSummary | JobView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "desc": job.desc,
        "createTime": written(job.created_ms, zone),
        "createTimeMs": job.created_ms,
        "userId": job.account,
    }


def service_url(job: str, public_url: str) -> str:
    """Where a service is reached from its creation on: whoever comes too early is told to wait."""
    return f"{public_url}/services/{job}/"


def created(job: JobSummary, zone: ZoneInfo) -> dict[str, Any]:
    return {"metadata": metadata(job, zone), "status": job.status.value}


def listed(job: JobSummary, zone: ZoneInfo) -> dict[str, Any]:
    return {
        **created(job, zone),
        "centerId": job.center,
        "priority": Tier(job.tier).name.lower(),
        "finishTime": written(job.ended_ms, zone),
    }


def shown_job(job: JobView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "metadata": metadata(job, zone),
        "status": job.status.value,
        "tasks": [_task(job, run, zone) for run in job.runs],
    }


def run_spec(job: JobView, run: RunView) -> Spec:
    return run.spec or job.request.spec or NO_SPEC


def _task(job: JobView, run: RunView, zone: ZoneInfo) -> dict[str, Any]:
    one, request = run_spec(job, run), job.request
    image = {"imageId": request.image_id} if request.image_id else {"imageUrl": request.image_url}
    return {
        "centerId": run.center,
        "centerName": run.center_name,
        **image,
        "taskId": run.id,
        "command": request.command,
        "specId": one.id,
        "specName": one.name,
        "specInfo": shape(one.shape),
        "status": run.status.value,
        "startTime": written(run.started_ms, zone),
        "finishTime": written(run.ended_ms, zone),
        "message": run.message,
        "nodeCount": request.nodes,
    }


def stopped(job: JobSummary, zone: ZoneInfo) -> dict[str, Any]:
    """The real status; a time only once it has stopped."""
    ended = job.ended_ms if job.status is PublicStatus.STOPPED else None
    return {"id": job.id, "status": job.status.value, "stoppedTime": written(ended, zone)}


def money(micro: int) -> str:
    """CNY with two places."""
    return f"{cny(micro):.2f}"


def price(micro: int) -> str:
    """CNY with two to six places, exact."""
    text = f"{Decimal(micro).scaleb(-6):.6f}"
    return text[:-4] + text[-4:].rstrip("0")


def job_detail(job: JobView, zone: ZoneInfo, public_url: str) -> dict[str, Any]:
    """Everything the broker knows of a job; `hops` are the brokers that have passed it on, `url` only
    of a service."""
    labels = dict(job.request.labels)
    return {
        "id": job.id,
        "kind": job.kind.value,
        **({"url": service_url(job.id, public_url)} if job.kind is Kind.ONLINE else {}),
        "name": job.name,
        "desc": job.desc,
        "owner": job.account_name,
        "tenant": job.tenant,
        "state": job.state.value,
        "status": job.status.value,
        "message": job.message,
        "createTime": written(job.created_ms, zone),
        "createTimeMs": job.created_ms,
        "finishTime": written(job.ended_ms, zone),
        "retriesUsed": job.retries_used,
        "stopReason": job.stop.value if job.stop else "",
        "originId": labels.get(ORIGIN_LABEL, job.id),
        "hops": list(hops_of(labels)),
        "config": config(job.request),
        "runs": [_run(job, run, zone) for run in job.runs],
        "cost": money(sum(run.cost_micro for run in job.runs)),
        "currency": "CNY",
    }


def _run(job: JobView, run: RunView, zone: ZoneInfo) -> dict[str, Any]:
    one = run_spec(job, run)
    return {
        "taskId": run.id,
        "attempt": run.attempt,
        "state": run.state.value,
        "status": run.status.value,
        "centerId": run.center,
        "centerName": run.center_name,
        "pool": run.native_pool,
        "specId": one.id,
        "specName": one.name,
        "nodeCount": job.request.nodes,
        "remoteId": run.remote,
        "submitTime": written(run.submitted_ms, zone),
        "startTime": written(run.started_ms, zone),
        "finishTime": written(run.ended_ms, zone),
        "startTimeMs": run.started_ms,
        "finishTimeMs": run.ended_ms,
        **checkpoint(run, zone),
        "exitCode": run.exit_code,
        "failure": run.failure,
        "message": run.message,
        "address": run.address,
        "pricePerHour": price(run.rate_micro_per_hour),
        "cost": money(run.cost_micro),
        "placement": run.placement,
    }


def round_made(made: RoundFacts, zone: ZoneInfo) -> dict[str, Any]:
    """One round; `objective` and `bound` are micro-CNY, `gap` a share of the objective."""
    return {
        "startedAt": written(made.started_ms, zone),
        "queued": made.queued,
        "placed": made.placed,
        "preempted": made.preempted,
        "objective": made.objective_micro,
        "bound": made.bound_micro,
        "gap": made.gap,
        "solveMs": made.solve_ms,
        "totalMs": made.total_ms,
    }


def checkpoint(run: RunView, zone: ZoneInfo) -> dict[str, Any]:
    """When the newest checkpoint that was seen of a run was written; nothing where none was seen."""
    return {} if run.checkpoint_ms is None else {"checkpointTime": written(run.checkpoint_ms, zone)}


# ---------------------------------------------------------------- the config object

_CONFIG: tuple[tuple[str, Callable[[JobRequest], Any]], ...] = (
    ("centerId", lambda r: list(r.centers)),
    ("specId", lambda r: r.spec.id if r.spec is not None else None),
    ("minComputingPower", lambda r: None if r.spec is not None else r.min_gflops * FLOPS_PER_GFLOPS),
    ("nodeCount", lambda r: r.nodes),
    ("imageId", lambda r: r.image_id or None),
    ("imageUrl", lambda r: r.image_url or None),
    ("command", lambda r: r.command),
    ("priority", lambda r: Tier(min(r.tier, Tier.HIGH)).name.lower()),
    ("isVip", lambda r: r.tier is Tier.VIP),
    ("preemptPolicy", lambda r: r.preempt_policy if r.tier is Tier.VIP else None),
    ("vipNodeNames", lambda r: list(r.vip_nodes) or None),
    ("preemptible", lambda r: r.preemptible),
    ("estimatedRunTime", lambda r: r.estimated_run_time_s),
    ("maxRunTime", lambda r: r.max_run_time_s),
    ("maxPrice", lambda r: None if r.max_price_micro is None else json_number(r.max_price_micro)),
    ("maxRetries", lambda r: r.max_retries),
    ("onLost", lambda r: r.on_lost.value),
    ("resumable", lambda r: r.resumable),
    ("checkpointInterval", lambda r: r.checkpoint_interval_s),
    ("stopGrace", lambda r: r.stop_grace_s),
    ("env", lambda r: [{"key": key, "value": value} for key, value in r.env]),
    ("datasetIds", lambda r: list(r.datasets)),
    ("port", lambda r: r.port),
    ("public", lambda r: r.public or None),
    ("labels", lambda r: dict(r.labels)),
)


def config(request: JobRequest) -> dict[str, Any]:
    """The create request's `config` as it would be sent again."""
    values = ((name, value(request)) for name, value in _CONFIG)
    return {name: value for name, value in values if value is not None}


def json_number(micro: int) -> int | float:
    """CNY as a JSON number.  A double prints back up to nine digits with six places exactly."""
    return micro // MICRO if micro % MICRO == 0 else micro / MICRO
