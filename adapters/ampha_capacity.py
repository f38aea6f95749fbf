"""Capacity of an Ampha center: resource groups and their nodes, quotas (3.1, 3.4).

Here: what the platform says turned into pools.  Not here: the calls themselves (ampha_wire), preset specs
(ampha_specs) and what runs there (ampha_tasks).

A resource group is the native unit; its nodes of one shape are a pool.  The figures of nodes are used
and never sums of groups, because an instance must fit one node (3.1).  A node or group that is not
normal keeps its place in the pool with nothing free.

Where a group's cards are split.  MIG: the instances of each profile are a pool, with that part of
their nodes' cores and memory; how many of a profile are free is not told, only how many of all (T14),
so the smaller of both counts.  vGPU: cards are split on demand in steps of a hundredth; of cards that
are partly used only their sum is told, so no more than its mean is taken for free, on one of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapters.ampha_specs import Devices, Preset, offered, preset_of, preset_specs
from adapters.ampha_wire import Api, PlatformRefused, maybe_json, rows_of
from adapters.nodes import Room, histogram
from adapters.values import now_ms, number, whole
from broker.adapter import Denied, Inventory, PoolReport, StatedPool, Unavailable
from broker.core.model import Accuracy, NodeShape

GROUPS = "/api/system/aiResourceGroup/findResourceGroupBySysGroupId"
REMAINS = "/api/system/config/getRemainResource"
NORMAL = 1
MIG_PARTS = 7
"""Compute slices of a card that MIG profiles are counted in."""
VGPU_STEP = 10
"""Thousandths: the platform takes whole percents (1.7)."""
NOTHING: Room = (0, 0, 0, ())
_PROFILE = re.compile(r"(\d)g\.(\d+)gb(?:\+.*)?")


@dataclass(frozen=True, slots=True)
class GroupNode:
    """One node as the platform tells it, or its instances of one MIG profile.

    `product` is the platform's word for its cards; `profile` is "" for whole cards.
    """

    name: str
    product: str
    ip: str
    status: int
    shape: NodeShape
    room: Room
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A resource group.  A task is created with its id, name and key together (3.1)."""

    id: str
    name: str
    key: str
    share: str  # none, mig, vgpu
    status: int
    queue: int
    rdma: str  # name of the RDMA resource, "" without
    nodes: tuple[GroupNode, ...]
    odd: tuple[tuple[str, str], ...]  # nodes that cannot be read, each with the reason

    @property
    def usable(self) -> bool:
        return self.status == NORMAL


def read_groups(found: Any, stated: Sequence[StatedPool]) -> list[Group]:
    """The groups of findResourceGroupBySysGroupId.  Raises Unavailable for an answer without sense.

    `stated` pools name the product of a group where the operator knows better than the platform's word.
    """
    names = {pool.native: pool.shape for pool in stated}
    return [_group(row, names) for row in rows_of(found, "resource groups")]


def _group(row: Mapping[str, Any], stated: Mapping[str, NodeShape]) -> Group:
    id, name = str(row.get("id") or ""), str(row.get("name") or "")
    if not id:
        raise Unavailable("resource groups: one has no id")
    known = stated.get(id) or stated.get(name)
    arch = {"x86": "X86", "arm": "ARM"}.get(str(row.get("osArch") or "X86").strip().lower())
    share = str(row.get("gpuShare") or "none").strip().lower()
    nodes: list[GroupNode] = []
    odd: list[tuple[str, str]] = []
    for each in row.get("nodeList") or []:
        label = f"{name}/{each.get('nodeName')}"
        try:
            nodes += _devices(each, arch or str(row.get("osArch")), known, share)
        except Unavailable as error:
            odd.append((label, str(error)))
    return Group(
        id=id,
        name=name,
        key=str(row.get("resourceGroupKey") or ""),
        share=share,
        status=whole(row.get("status"), "group.status") or 0,
        queue=whole(row.get("queuePodNum"), "group.queuePodNum") or 0,
        rdma=str(row.get("resourceName") or ""),
        nodes=tuple(nodes),
        odd=tuple(odd),
    )


def _devices(row: Mapping[str, Any], arch: str, known: NodeShape | None, share: str) -> list[GroupNode]:
    """A node, by what its cards are given away as."""
    node = _node(row, arch, known)
    if not node.shape.accelerators or share == "none":
        return [node]
    if share == "mig":
        return _instances(row, node)
    if share == "vgpu":
        return [_splittable(row, node)]
    raise Unavailable(f"gpuShare of the group is {share!r}, expected none, mig or vgpu")


def _instances(row: Mapping[str, Any], node: GroupNode) -> list[GroupNode]:
    """A node's instances by profile, and its unsplit cards."""
    cards = layout(row.get("gpuShare"))
    if not cards:
        raise Unavailable("gpuShare does not tell how the cards are split")
    counts: Counter[str] = Counter()
    for card in cards:
        counts.update(card or {"": 1})
    free, whole_ = node.room[0], _down(row.get("gpuSurplus"), "gpuSurplus")
    found = []
    for profile, count in sorted(counts.items()):
        part, gib = _profile(profile, node.shape.accelerator_memory_gib)
        taken = (count * part, len(cards) * 1000)  # of the node
        left = min(count, whole_ if profile else free) if node.status == NORMAL else 0
        cores, memory = _share(node.room[1], taken), _share(node.room[2], taken)
        shape = replace(
            node.shape,
            cores=_share(node.shape.cores, taken),
            memory_gib=_share(node.shape.memory_gib, taken),
            accelerators=count,
            accelerator_memory_gib=gib,
            card_permille=part,
        )
        found.append(replace(node, shape=shape, room=(left, cores, memory, ()), profile=profile))
    return found


def _share(amount: int, part: tuple[int, int]) -> int:
    return min(amount, amount * part[0] // part[1])


def _profile(name: str, card_gib: int) -> tuple[int, int]:
    """Thousandths of a card and GiB of a MIG profile, such as 3g.40gb: three of seven parts."""
    if not name:
        return 1000, card_gib
    found = _PROFILE.fullmatch(name)
    if found is None or not 1 <= int(found[1]) <= MIG_PARTS:
        raise Unavailable(f"MIG profile is {name!r}, expected such as 1g.10gb")
    return int(found[1]) * 1000 // MIG_PARTS, int(found[2])


def _splittable(row: Mapping[str, Any], node: GroupNode) -> GroupNode:
    """A node whose cards are split on demand."""
    cards, cores, memory, _ = node.room
    card_mib = node.shape.accelerator_memory_gib * 1024
    left_mib = number(row.get("gpuMemSurplus"), "gpuMemSurplus") or 0
    used_cards = node.shape.accelerators - cards
    parts: tuple[int, ...] = ()
    if used_cards and node.status == NORMAL:
        mean = int((left_mib - cards * card_mib) * 1000 // (card_mib * used_cards))
        mean = min(max(0, mean), 999) // VGPU_STEP * VGPU_STEP
        parts = (mean,) if mean else ()
    return replace(
        node,
        shape=replace(node.shape, split_permille=VGPU_STEP),
        room=(cards, cores, memory, parts),
    )


def _node(row: Mapping[str, Any], arch: str, known: NodeShape | None) -> GroupNode:
    """A node of whole cards.  Numbers come as text and with fractions (T4): rounded down."""
    cards = _down(row.get("gpuTotalOne", row.get("gpu")), "gpuTotalOne")
    product, card_gib = _product(row) if cards else ("", 0)
    model = product
    if cards and known is not None and known.accelerators:
        model, card_gib = known.accelerator, known.accelerator_memory_gib
    shape = NodeShape(
        arch=arch,
        cores=_down(row.get("cpuTotal", row.get("cpu")), "cpuTotal"),
        memory_gib=_down(row.get("memTotal", row.get("memory")), "memTotal"),
        accelerator=model,
        accelerators=cards,
        accelerator_memory_gib=card_gib,
    )
    # The smaller of two counts of free cards: they disagree (3.1, T14).
    surplus = [_down(row[k], k) for k in ("gpuSurplus", "gpuAvailNum") if row.get(k) is not None]
    free = min([cards, *surplus])
    status = whole(row.get("nodeStatus"), "nodeStatus") or 0
    cores, memory = _down(row.get("cpuSurplus"), "cpuSurplus"), _down(row.get("memSurplus"), "memSurplus")
    room: Room = (free, cores, memory, ()) if status == NORMAL else NOTHING
    name, ip = str(row.get("nodeName") or ""), str(row.get("nodeIp") or "")
    return GroupNode(name, product, ip, status, shape, room)


def _down(value: Any, field: str) -> int:
    found = number(value, field)
    if found is None:
        raise Unavailable(f"{field} is {value!r}, expected a number")
    return max(0, int(found))


def _product(row: Mapping[str, Any]) -> tuple[str, int]:
    """Product and GiB of a node's cards; the model is at the node, the group has the vendor (T14)."""
    cards = [info for info in row.get("gpuInfo") or [] if isinstance(info, dict)]
    products = {str(info.get("gpuProduct") or "") for info in cards} or {str(row.get("gpuType") or "")}
    if len(products) != 1 or "" in products:
        raise Unavailable(f"gpuInfo names the products {sorted(products)}, expected one")
    memory = whole(cards[0].get("gpuMemory"), "gpuMemory") if cards else None
    if not memory:
        raise Unavailable("gpuInfo does not tell the memory of a card")
    return products.pop(), memory // 1024  # M: 81920 is a card of 80 GiB (1.7)


def native_of(group: Group, node: GroupNode) -> str:
    """The native name of a node's pool: the group, its profile where cards are split into instances, and
    the shape where there are several."""
    shape, name = node.shape, group.id
    if group.share == "mig":
        name += f"/{node.profile or 'card'}"
    if len({each.shape for each in group.nodes if each.profile == node.profile}) < 2:
        return name
    cards = f"-{shape.accelerators}x{shape.accelerator}" if shape.accelerators else ""
    return f"{name}/{shape.cores}c-{shape.memory_gib}g{cards}"


def devices_of(group: Group, node: GroupNode) -> Devices:
    return Devices(node.product, group.share, node.profile)


def group_id(native: str) -> str:
    """The group of a pool's native name."""
    return native.partition("/")[0]


def pools_of(
    groups: Iterable[Group], specs: Sequence[Preset] | None
) -> tuple[list[PoolReport], list[tuple[str, str]]]:
    """Pools, and what cannot be used with the reason.  `specs`: the platform's own, where it wants them."""
    pools: list[PoolReport] = []
    odd: list[tuple[str, str]] = []
    for group in groups:
        odd += group.odd
        if not group.usable:
            odd.append((group.name, f"the platform says that its status is {group.status}, 1 is normal"))
        by_native: dict[str, list[GroupNode]] = {}
        for node in group.nodes:
            by_native.setdefault(native_of(group, node), []).append(node)
        for native, nodes in sorted(by_native.items()):
            listed = () if specs is None else offered(specs, nodes[0].shape, devices_of(group, nodes[0]))
            if specs is not None and not listed:
                odd.append((native, "no preset spec of the platform fits its nodes"))
                continue
            free = histogram([node.room if group.usable else NOTHING for node in nodes])
            names = tuple(node.name for node in nodes)
            pools.append(PoolReport(native, nodes[0].shape, len(nodes), free, listed, node_names=names))
    return pools, odd


# ---------------------------------------------------------------- quotas


@dataclass(frozen=True, slots=True)
class Quota:
    """What the user may still take (3.4); None is no limit."""

    cores: int | None = None
    memory_gib: int | None = None
    cards: int | None = None
    jobs: int | None = None
    instances: int | None = None  # MIG
    parts: int | None = None  # vGPU

    def devices(self, shape: NodeShape) -> int | None:
        """Of what the nodes of a pool have."""
        if shape.split_permille:
            return self.parts
        return self.instances if shape.card_permille < 1000 else self.cards


def read_quota(found: Any) -> Quota:
    """The remains of getRemainResource; no limit while no quota is set up (`isInitConfig` false)."""
    if not isinstance(found, Mapping) or str(found.get("isInitConfig")).lower() != "true":
        return Quota()
    names = ("remainCpu", "remainMemory", "remainGpu", "remainJobNum", "remainMig", "remainVgpu")
    amounts = [number(found.get(name), name) for name in names]
    return Quota(*(None if amount is None else max(0, int(amount)) for amount in amounts))


def within(pool: PoolReport, quota: Quota) -> PoolReport:
    """A pool with no more free than the user may take.  Nothing is free when no job may be added."""
    left = [quota.devices(pool.shape), quota.cores, quota.memory_gib]
    if left == [None] * 3 and quota.jobs is None:
        return pool
    rooms: list[Room] = []
    for free in sorted(pool.free, key=lambda f: f.accelerators, reverse=True):
        for _ in range(free.nodes):
            wanted = (free.accelerators, free.cores, free.memory_gib)
            got = [w if has is None else min(w, has) for w, has in zip(wanted, left, strict=True)]
            parts = free.parts if left[0] is None or left[0] > got[0] else ()
            if quota.jobs == 0:
                got, parts = [0, 0, 0], ()
            left = [has if has is None else has - g for has, g in zip(left, got, strict=True)]
            rooms.append((got[0], got[1], got[2], parts))
    return replace(pool, free=histogram(rooms))


def layout(text: Any) -> list[dict[str, int]]:
    """Instances by profile for each card of a split node (3.1): JSON in a text; an unsplit card is {}."""
    cards = maybe_json(text)
    if not isinstance(cards, list):
        return []
    return [
        {profile: whole(count, profile) or 0 for profile, count in (card.get("config") or {}).items()}
        for card in cards
    ]


# ---------------------------------------------------------------- asking


class Capacity:
    """What a center has, and the last that was read of its groups."""

    def __init__(self, api: Api, stated: Sequence[StatedPool]) -> None:
        self._api = api
        self._stated = stated
        self._specs: list[Preset] = []
        self.groups: dict[str, Group] = {}

    async def probe(self) -> Inventory:
        as_of_ms = now_ms()
        groups = await self._read()
        specs = await self._read_specs() if self._api.settings.preset else None
        quota = await self._quota()
        pools, odd = pools_of(groups, specs)
        return Inventory(
            as_of_ms,
            Accuracy.EXACT,
            tuple(within(pool, quota) for pool in pools),
            queue_length=sum(group.queue for group in groups),
            quarantined=tuple(odd),
        )

    async def _read(self) -> list[Group]:
        """The groups of the user group; the login's own unless configured (T38)."""
        department = self._api.settings.group or (await self._api.account()).department
        groups = read_groups(await self._api.ask("groups", GROUPS, {"sysGroupId": department}), self._stated)
        self.groups = {group.id: group for group in groups}
        return groups

    async def _read_specs(self) -> list[Preset]:
        self._specs = await preset_specs(self._api)
        return self._specs

    async def _quota(self) -> Quota:
        account = await self._api.account()
        try:
            return read_quota(await self._api.ask("quota", REMAINS, {"userId": account.id}))
        except (PlatformRefused, Denied):  # an installation without quotas
            return Quota()

    async def group(self, id: str) -> Group | None:
        """A group as it was read last; read now if it was not."""
        if id not in self.groups:
            await self._read()
        return self.groups.get(id)

    async def preset(self, shape: NodeShape, group: Group, node: GroupNode) -> Preset | None:
        """The platform's spec with this shape, on such a node of a group."""
        specs = self._specs or await self._read_specs()
        return preset_of(specs, shape, node.shape, devices_of(group, node))

    async def bad_nodes(self) -> frozenset[str]:
        """Addresses of the nodes that are not normal now."""
        nodes = (node for group in await self._read() for node in group.nodes)
        return frozenset(node.ip for node in nodes if node.status != NORMAL)
