"""What `broker doctor` shows of an AIHub: each step of reaching it, and what the document leaves open.

Here: checks without an effect, in words that an operator can act on.  Not here: the calls (aihub.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from adapters.aihub_capacity import GPU_TYPES
from adapters.aihub_services import Service
from broker.adapter import AdapterError, Check, Unavailable

if TYPE_CHECKING:
    from adapters.aihub import Aihub


async def checks_of(hub: Aihub) -> AsyncIterator[Check]:
    """Cheapest first.  Without a login nothing else is tried."""
    try:
        number = await hub.services.user_id()
    except AdapterError as error:
        yield Check("login", False, f"{error}; check user_url, username and password")
        return
    yield Check("login", True, f"the account is user {number}")
    yield _features(hub)
    async for check in _clusters(hub):
        yield check
    async for check in _storages(hub):
        yield check
    yield await _dry_probe(hub)
    for check in _ambiguities(hub):
        yield check


def _features(hub: Aihub) -> Check:
    off = [f"{service}_url" for service in Service if not hub.services.has(service)]
    text = f"off, because not set: {', '.join(off)}" if off else "every service has an address"
    return Check("services", True, text)


async def _clusters(hub: Aihub) -> AsyncIterator[Check]:
    """Stated pools against the clusters that the account sees (获取用户虚拟集群列表)."""
    if not hub.services.has(Service.TAG):
        yield Check("virtual clusters", True, "tag_url is not set: the stated pools are believed unseen")
        return
    try:
        clusters = await hub.list_clusters()
    except AdapterError as error:
        yield Check("virtual clusters", False, f"{error}; check tag_url")
        return
    yield Check("virtual clusters", bool(clusters), f"the account sees {len(clusters)}")
    for number, cluster in clusters.items():
        pool = hub.pools.get(number)
        if pool is None:
            text = f'{cluster.told}; not used: no [[centers.pools]] with native = "{number}"'
            yield Check(f"cluster {number}", True, text)
            continue
        sku = hub.sku(number)
        per_node = max(1, pool.shape.accelerators // sku.cards) if pool.shape.accelerators else 1
        short = pool.shape.accelerators and sku.cores * per_node < pool.shape.cores
        text = cluster.told
        if GPU_TYPES.get(cluster.gpu_type, "") not in pool.shape.accelerator:
            text += f"; the stated pool says {pool.shape.accelerator}, which is what counts"
        if short:
            text += (
                f"; a node of the stated pool has {pool.shape.cores} cores, its {per_node} SKUs only"
                f" {sku.cores * per_node}: state what they really have, or set sku_cards"
            )
        yield Check(f"cluster {number}", not short, text)
    for number in hub.pools:
        if number not in clusters:
            yield Check(f"cluster {number}", False, "stated as a pool, but the account does not see it")
    if "" in hub.settings.pools and len(clusters) != 1:
        yield Check("pools", False, f"native is missing, expected one of {sorted(clusters)}")


async def _storages(hub: Aihub) -> AsyncIterator[Check]:
    """storage_ids and output against the storages of the account (获取存储列表)."""
    if not hub.services.has(Service.TRAINING):
        return
    try:
        rows = storages_of(await hub.services.read(Service.TRAINING, "/storages", "storages"))
    except AdapterError as error:
        yield Check("storages", False, f"{error}; check training_url")
        return
    known = {row.get("id"): row for row in rows}
    wrong = [each for each in hub.settings.fields.storage_ids if each not in known]
    told = "; ".join(
        f"{i} {r.get('name')} at {r.get('path')} ({r.get('permission')})" for i, r in known.items()
    )
    if wrong:
        yield Check("storages", False, f"storage_ids has {wrong}, the account sees: {told or 'none'}")
    else:
        yield Check("storages", True, told or "none")
    if hub.output is None:
        yield Check("output", True, "not set: logs and results are not available at this center")
        return
    yield await hub.output.check()
    mounted = [known[each] for each in hub.settings.fields.storage_ids if each in known]
    inside = [
        row for row in mounted if f"{hub.output.in_job}/".startswith(str(row.get("path")).rstrip("/") + "/")
    ]
    writable = [row for row in inside if row.get("permission") == "rw"]
    yield Check(
        "output in jobs",
        bool(writable),
        f"{hub.output.in_job} is on storage {writable[0].get('id')}"
        if writable
        else f"{hub.output.in_job} is on no storage of storage_ids that jobs may write to",
    )


def storages_of(data: Any) -> list[Mapping[str, Any]]:
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise Unavailable("the storages came without a list")
    return [row for row in rows if isinstance(row, dict)]


async def _dry_probe(hub: Aihub) -> Check:
    try:
        found = await hub.probe()
    except AdapterError as error:
        return Check("probe", False, str(error))
    seen = sorted(hub.evidence)
    what = f"with what others occupy in cluster {seen}" if seen else "without evidence of what others occupy"
    return Check("probe", bool(found.pools), f"{len(found.pools)} pools, estimated {what}")


def _ambiguities(hub: Aihub) -> list[Check]:
    """What the document leaves open, how this center reads it, and the key that changes it."""
    fields = hub.settings.fields
    per = "per instance" if fields.per_instance else "of the whole task"
    kill = "may kill others' tasks for VIP jobs" if fields.allow_preempt_kill else "always waits (policy 1)"
    return [
        Check("reading: sku_cnt", True, f"is {per} (sku_cnt); {_sku_evidence(hub)}"),
        Check("reading: cards per SKU", True, f"{hub.settings.sku_cards} until a detail tells (sku_cards)"),
        Check("reading: preemption", True, f"the platform {kill} (allow_preempt_kill)"),
        Check(
            "reading: lost creates",
            True,
            "a create without an answer is held in doubt: it may be found by its name, and only"
            " `broker resolve` says that it never ran",
        ),
        Check("reading: workflow runs", True, f"details are asked for by {hub.data.run_method}"),
    ]


def _sku_evidence(hub: Aihub) -> str:
    """What node_tasks show of our own gangs: nodes together have sku_cnt, or sku_cnt times instances."""
    for name, (asked, instances) in hub.gangs.items():
        shown = sum(t.skus for tasks in hub.evidence.values() for t in tasks if t.name == name)
        if shown == asked * instances:
            return f"run {name} shows that it is per instance"
        if shown == asked:
            return f"run {name} shows that it is of the whole task"
    return "no run of several nodes has shown yet which it is"
