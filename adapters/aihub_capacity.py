"""What an AIHub can hold: virtual clusters, what others use there, and the pools that the operator states.

Here: discovery (获取用户虚拟集群列表), the evidence of node_tasks, and the estimate made of both.  Not
here: calls (aihub.py).

No call tells how many SKUs a cluster has or how many are free.  The operator's stated pools are the
total; node_tasks, which only quota tasks' details have, prove what others occupy and never what is
free.  Our own runs are not subtracted: the broker charges them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapters.aihub_tasks import Sku
from adapters.values import whole
from broker.adapter import Inventory, PoolReport, StatedPool, Unavailable
from broker.core.model import Accuracy, FreeNodes

GPU_TYPES: Mapping[int, str] = {1: "A800", 2: "4090", 3: "3090", 4: "2080"}
"""gpu_type of a cluster; 5 is 未知, unknown.  Names contradict it in the document's own sample: they
are never read."""
INFINIBAND = 2
NETWORKS: Mapping[int, str] = {0: "other", 1: "RoCE", INFINIBAND: "InfiniBand"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A virtual cluster as the list has it: no cards per SKU, no number of SKUs."""

    id: int
    name: str
    cores: int  # of one SKU
    memory_gib: int
    gpu_type: int
    gpu_memory_gib: int
    network: int

    @property
    def told(self) -> str:
        """For people."""
        product = GPU_TYPES.get(self.gpu_type, f"unknown cards (gpu_type {self.gpu_type})")
        network = NETWORKS.get(self.network, f"network {self.network}")
        return (
            f"{self.id} {self.name!r}: a SKU has {self.cores} cores, {self.memory_gib} GiB,"
            f" {product} of {self.gpu_memory_gib} GiB; {network}"
        )


@dataclass(frozen=True, slots=True)
class NodeTask:
    """A task on a node, as node_tasks tell it; `id` may be a training's or a quota task's."""

    node: str
    id: str
    name: str
    skus: int
    user: str


def clusters_of(data: Any) -> dict[int, Cluster]:
    """data of select-clusters.  Raises Unavailable, naming the field, for a list that cannot be read."""
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise Unavailable("the virtual clusters came without a list")
    found = {}
    for row in rows:
        sku = row.get("sku") if isinstance(row, dict) else None
        if not isinstance(sku, dict):
            raise Unavailable(f"a virtual cluster has no sku: {row!r:.200}")
        number = _count(row.get("id"), "id")
        found[number] = Cluster(
            number,
            str(row.get("name") or ""),
            _count(sku.get("cpu"), "sku.cpu"),
            _count(sku.get("memory"), "sku.memory"),
            _count(sku.get("gpu_type"), "sku.gpu_type"),
            _count(sku.get("gpu_memory"), "sku.gpu_memory"),
            _count(sku.get("network"), "sku.network"),
        )
    return found


def _count(value: Any, field: str) -> int:
    return whole(value, field) or 0


def node_tasks_of(detail: Mapping[str, Any]) -> list[NodeTask] | None:
    """node_tasks of a quota task's detail; None where it has none."""
    rows = (detail.get("virtual_cluster") or {}).get("node_tasks")
    if not isinstance(rows, list):
        return None
    return [
        NodeTask(
            str(row.get("node_name") or ""),
            str(task.get("id") or ""),
            str(task.get("name") or ""),
            _count(task.get("sku_cnt"), "node_tasks.sku_cnt"),
            str(task.get("username") or ""),
        )
        for row in rows
        if isinstance(row, dict)
        for task in row.get("tasks") or ()
        if isinstance(task, dict)
    ]


def sku_of(detail: Mapping[str, Any]) -> Sku | None:
    """The SKU as a detail has it: the only place that tells its cards."""
    sku = (detail.get("virtual_cluster") or {}).get("sku")
    if not isinstance(sku, dict) or sku.get("gpu") is None:
        return None
    return Sku(
        _count(sku.get("cpu"), "sku.cpu"), _count(sku.get("memory"), "sku.memory"), _count(sku["gpu"], "gpu")
    )


def cluster_of(detail: Mapping[str, Any]) -> int:
    return _count((detail.get("virtual_cluster") or {}).get("id"), "virtual_cluster.id")


class Ours:
    """Which names are runs of this broker: its prefix and ten base32 characters."""

    def __init__(self, prefix: str) -> None:
        self._form = re.compile(rf"{re.escape(prefix)}-?[0-9a-z]{{10}}")

    def __call__(self, name: str) -> bool:
        return self._form.fullmatch(name) is not None


def free_of(
    pool: StatedPool, tasks: Iterable[NodeTask], *, sku: Sku, ours: Ours
) -> tuple[tuple[str, ...], tuple[FreeNodes, ...]]:
    """The nodes whose names are known, and what the others leave of a stated pool.

    Where more nodes are seen than are stated, those that others use most are the ones that count.
    """
    taken: dict[str, int] = {}
    for task in tasks:
        taken.setdefault(task.node, 0)
        if not ours(task.name):
            taken[task.node] += task.skus
    shape = pool.shape
    worst = sorted(taken.values(), reverse=True)[: pool.nodes]
    left = Counter(
        (
            max(0, shape.cores - skus * sku.cores),
            max(0, shape.memory_gib - skus * sku.memory_gib),
            max(0, shape.accelerators - skus * sku.cards),
        )
        for skus in worst + [0] * (pool.nodes - len(worst))
    )
    groups = [
        FreeNodes(cores=cores, memory_gib=memory_gib, accelerators=cards, nodes=nodes)
        for (cores, memory_gib, cards), nodes in sorted(left.items())
    ]
    return tuple(sorted(name for name in taken if name)), tuple(groups)


def pools_of(
    stated: Mapping[str, StatedPool], clusters: Mapping[int, Cluster] | None
) -> dict[int, StatedPool]:
    """The stated pools by virtual cluster; one without an id is the only cluster that there is."""
    found = {int(native): pool for native, pool in stated.items() if native}
    if "" in stated and clusters is not None and len(clusters) == 1:
        (only,) = clusters
        found[only] = replace(stated[""], native=str(only))
    return found


def inventory(
    pools: Mapping[int, StatedPool],
    clusters: Mapping[int, Cluster] | None,
    *,
    as_of_ms: int,
    evidence: Mapping[int, list[NodeTask]],
    skus: Mapping[int, Sku],
    ours: Ours,
) -> Inventory:
    """The estimate.  `clusters` is None where the tag service is not configured: then all that is
    stated is believed."""
    reports, quarantined = [], []
    for number, pool in pools.items():
        if clusters is not None and number not in clusters:
            text = f"the account sees no virtual cluster {number}, it sees {sorted(clusters)}"
            quarantined.append((pool.native, text))
            continue
        names, free = free_of(pool, evidence.get(number, ()), sku=skus[number], ours=ours)
        known = names if len(names) == pool.nodes else ()
        reports.append(PoolReport(pool.native, pool.shape, pool.nodes, free, node_names=known))
    for number, cluster in (clusters or {}).items():
        if number not in pools:
            wanted = f'add [[centers.pools]] with native = "{number}"'
            quarantined.append((str(number), f"its capacity is not stated: {wanted} ({cluster.told})"))
    return Inventory(as_of_ms, Accuracy.ESTIMATED, tuple(reports), quarantined=tuple(quarantined))
