"""Pools from /resource/idle: of a broker of this kind exactly, of another service as far as it tells.

Here: the standard's resource objects as shapes, whole nodes, what is free on them, specs and prices.
Not here: calls, and which runs go where.

The standard lists what is *available* on nodes and sums up what there is.  A broker of this kind tells
its pools beside that.  Elsewhere a whole node is what the operator states, else the largest that was
seen available or is offered as a spec, and their number follows from the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from adapters.values import number, whole
from broker.adapter import PoolReport, StatedPool, Unavailable
from broker.core.hops import MAX_HOPS, native_behind, path_behind
from broker.core.model import MICRO, Accuracy, FreeNodes, NodeShape, Price, Spec
from broker.core.resources import make_spec, same_card_memory, slot_size

_GIB: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "GIB": Decimal(1),
    "GB": Decimal(1),  # as platforms write it, and mean GiB
    "G": Decimal(1),
    "MIB": Decimal(1) / 1024,
    "MB": Decimal(1) / 1024,
    "TIB": Decimal(1024),
    "TB": Decimal(1024),
}
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ORDER: Final = (Accuracy.EXACT, Accuracy.ESTIMATED, Accuracy.UNKNOWN)
Key = tuple[str, str, int, int]
"""Architecture, product, memory of a card, what part of a card a device is."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A spec as the other side calls it, and as its shape is called everywhere."""

    native: str
    spec: Spec


@dataclass(slots=True)
class Found:
    """What a report becomes."""

    pools: list[PoolReport] = field(default_factory=list)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    as_of_ms: int | None = None


# ---------------------------------------------------------------- objects of the standard


def _part(found: Any, name: str, where: str) -> Mapping[str, Any]:
    part = found.get(name) if isinstance(found, dict) else None
    if not isinstance(part, dict):
        raise Unavailable(f"{where}.{name} is {part!r}, expected an object")
    return part


def shape_of(found: Any, where: str) -> NodeShape:
    """A resourceSpec: cpu, memory and processor.  Raises Unavailable for what is none."""
    cpu, memory, cards = (_part(found, name, where) for name in ("cpu", "memory", "processor"))
    unit = str(memory.get("unit") or "").upper()
    if unit not in _GIB:
        raise Unavailable(f"{where}.memory.unit is {memory.get('unit')!r}, expected GiB")
    size = number(memory.get("size"), f"{where}.memory.size") or Decimal(0)
    count = whole(cards.get("count"), f"{where}.processor.count") or 0
    product = str(cards.get("name") or "") if count else ""
    return NodeShape(
        arch=str(cpu.get("arch") or ""),
        cores=whole(cpu.get("cores"), f"{where}.cpu.cores") or 0,
        memory_gib=int(size * _GIB[unit]),
        accelerator=product,
        accelerators=count,
        accelerator_memory_gib=(whole(cards.get("memory"), f"{where}.processor.memory") or 0) if count else 0,
        card_permille=whole(cards.get("cardPermille"), f"{where}.processor.cardPermille") or 1000,
    )


def offer_of(row: Mapping[str, Any]) -> Offer:
    """A spec.  Its id among us follows from its shape; its name stays."""
    native = str(row.get("resourceSpecId") or "")
    made = make_spec(shape_of(row, f"spec {native}"))
    name = str(row.get("resourceSpecName") or "")
    return Offer(native, replace(made, name=name or made.name))


def wanted(offers: Iterable[Offer], shape: NodeShape) -> Offer | None:
    """The other side's spec of a shape; products and card memory may be known by our words only."""
    known = list(offers)
    for offer in known:
        if offer.spec.shape == shape:
            return offer
    alike = [offer for offer in known if _alike(offer.spec.shape, shape)]
    return alike[0] if len({offer.spec.shape for offer in alike}) == 1 else None


def _alike(there: NodeShape, asked: NodeShape) -> bool:
    memory = there.accelerator_memory_gib or asked.accelerator_memory_gib
    model = asked.accelerator.rsplit("/", 1)[-1].casefold()
    told = replace(there, accelerator=asked.accelerator, accelerator_memory_gib=memory)
    return told == asked and model in there.accelerator.casefold()


# ---------------------------------------------------------------- a broker of this kind


def behind_broker(
    resources: Sequence[Mapping[str, Any]],
    offers: Mapping[str, Sequence[Offer]],
    *,
    other: str,
    own: str,
    open_centers: Iterable[str],
) -> Found:
    """Its pools: by center and shape, those that lead back here left out."""
    found, usable = Found(), frozenset(open_centers)
    merged: dict[tuple[str, NodeShape], PoolReport] = {}
    for resource in resources:
        center = str(resource.get("centerId") or "")
        for row in resource.get("pools") or ():
            path = (other, *path_behind(str(row.get("native") or "")))
            native = native_behind(center, path)
            if own in path or len(path) > MAX_HOPS:
                reason = "it leads back to this broker" if own in path else "too many brokers are between"
                found.quarantined.append((native, f"{reason}: its nodes are not counted"))
                continue
            try:
                pool = _told_pool(row, native, open=center in usable)
                observed_ms = whole(row.get("observedAtMs"), f"{native}.observedAtMs")
            except Unavailable as error:
                found.quarantined.append((native, str(error)))
                continue
            if pool.accuracy is not None and center in usable and observed_ms is not None:
                found.as_of_ms = min(found.as_of_ms or observed_ms, observed_ms)
            key = (native, pool.shape)
            merged[key] = _both(merged[key], pool) if key in merged else pool
    for pool in merged.values():
        _offered(found, pool, offers.get(pool.native.partition("@")[0], ()))
    return found


def _told_pool(row: Mapping[str, Any], native: str, *, open: bool) -> PoolReport:
    """A pool as its broker tells it; of one that takes no jobs nothing is free."""
    node = shape_of(row.get("node"), f"{native}.node")
    split = whole(row.get("splitPermille"), f"{native}.splitPermille") or 0
    count = whole(row.get("nodeCount"), f"{native}.nodeCount") or 0
    node = replace(node, split_permille=split)
    told = row.get("accuracy")
    accuracy = Accuracy(told) if told in tuple(Accuracy) else Accuracy.UNKNOWN
    if not open:
        return PoolReport(native, node, count, _rest(count), accuracy=Accuracy.EXACT)
    free = [_free(group, native) for group in row.get("freeNodes") or ()]
    rest = count - sum(group.nodes for group in free)
    return PoolReport(native, node, count, (*free, *_rest(rest)), accuracy=accuracy)


def _free(group: Any, native: str) -> FreeNodes:
    if not isinstance(group, dict):
        raise Unavailable(f"{native}.freeNodes has {group!r}, expected objects")
    shape = shape_of(group.get("resourceSpec"), f"{native}.freeNodes")
    nodes = whole(group.get("nodeCount"), f"{native}.freeNodes.nodeCount") or 0
    parts = tuple(whole(part, f"{native}.freeParts") or 0 for part in group.get("freeParts") or ())
    return FreeNodes(shape.cores, shape.memory_gib, shape.accelerators, nodes, parts)


def _rest(nodes: int) -> tuple[FreeNodes, ...]:
    """Nodes that nothing is free on."""
    return (FreeNodes(0, 0, 0, nodes),) if nodes > 0 else ()


def _both(one: PoolReport, two: PoolReport) -> PoolReport:
    """Two native units there that a job cannot choose between."""
    accuracy = max(one.accuracy or Accuracy.EXACT, two.accuracy or Accuracy.EXACT, key=_ORDER.index)
    return replace(one, nodes=one.nodes + two.nodes, free=(*one.free, *two.free), accuracy=accuracy)


# ---------------------------------------------------------------- another service


class Sizes:
    """The largest node of each kind that was ever seen at a center; nothing lists whole nodes."""

    def __init__(self, stated: Iterable[StatedPool]) -> None:
        self._stated = tuple(stated)
        self._seen: dict[tuple[str, Key], tuple[NodeShape, int]] = {}

    def behind_service(
        self, resources: Sequence[Mapping[str, Any]], offers: Mapping[str, Sequence[Offer]]
    ) -> Found:
        found = Found()
        for resource in resources:
            center = str(resource.get("centerId") or "")
            try:
                free = list(_available(resource, center))
                total = shape_of(resource.get("totalResource"), f"{center}.totalResource")
            except Unavailable as error:
                found.quarantined.append((center, str(error)))
                continue
            for pool in self._pools(center, free, total, offers.get(center, ())):
                _offered(found, pool, offers.get(center, ()))
        return found

    def _pools(
        self, center: str, free: list[tuple[NodeShape, int]], total: NodeShape, offers: Sequence[Offer]
    ) -> Iterator[PoolReport]:
        stated = [pool for pool in self._stated if pool.native in (center, "")]
        kinds = dict.fromkeys(
            [_key(pool.shape) for pool in stated]
            + [_key(node) for node, _ in free]
            + [_key(offer.spec.shape) for offer in offers if _in_total(offer.spec.shape, total)]
        )
        for kind in kinds:
            available = [(node, nodes) for node, nodes in free if _key(node) == kind]
            mine = [pool for pool in stated if _key(pool.shape) == kind]
            if mine:
                shape, nodes = mine[0].shape, mine[0].nodes
            else:
                specs = [offer.spec.shape for offer in offers if _key(offer.spec.shape) == kind]
                shape, nodes = self._whole(center, kind, available, total, specs)
            nodes = max(nodes, sum(count for _, count in available))
            groups = tuple(_fitting(node, count, shape) for node, count in available)
            rest = nodes - sum(count for _, count in available)
            yield PoolReport(center, shape, nodes, (*groups, *_rest(rest)))

    def _whole(
        self,
        center: str,
        kind: Key,
        available: Sequence[tuple[NodeShape, int]],
        total: NodeShape,
        specs: Sequence[NodeShape],
    ) -> tuple[NodeShape, int]:
        """The largest node of a kind, and how many there are at least."""
        before = self._seen.get((center, kind))
        shapes = [*(node for node, _ in available), *specs, *([before[0]] if before else [])]
        largest = NodeShape(
            arch=kind[0],
            cores=max(one.cores for one in shapes),
            memory_gib=max(one.memory_gib for one in shapes),
            accelerator=kind[1],
            accelerators=max(one.accelerators for one in shapes),
            accelerator_memory_gib=kind[2],
            card_permille=kind[3],
        )
        nodes = before[1] if before is not None and before[0] == largest else 0
        if (total.arch, total.accelerator) == (kind[0], kind[1]):  # all of one kind: the sum tells
            have, each = (
                (total.accelerators, largest.accelerators)
                if largest.accelerators
                else (total.cores, largest.cores)
            )
            nodes = max(nodes, -(-have // each) if each else 0)
        nodes = max(nodes, sum(count for _, count in available))
        self._seen[center, kind] = largest, nodes
        return largest, nodes


def _available(resource: Mapping[str, Any], center: str) -> Iterator[tuple[NodeShape, int]]:
    rows = resource.get("nodeResources")
    if not isinstance(rows, list):
        raise Unavailable(f"{center}.nodeResources is {rows!r}, expected a list")
    counts: Counter[NodeShape] = Counter()
    for row in rows:
        shape = shape_of(_part(row, "resourceSpec", center), f"{center}.nodeResources")
        counts[shape] += whole(row.get("nodeCount"), f"{center}.nodeCount") or 0
    yield from counts.items()


def _key(shape: NodeShape) -> Key:
    return (shape.arch, shape.accelerator, shape.accelerator_memory_gib, shape.card_permille)


def _in_total(shape: NodeShape, total: NodeShape) -> bool:
    """Whether a center has nodes of such a spec at all, by its sum of products."""
    return shape.accelerator in total.accelerator.split(",") and shape.arch in total.arch.split(",")


def _fitting(node: NodeShape, nodes: int, whole_node: NodeShape) -> FreeNodes:
    """What is free on some nodes, never more than a whole one has."""
    return FreeNodes(
        min(node.cores, whole_node.cores),
        min(node.memory_gib, whole_node.memory_gib),
        min(node.accelerators, whole_node.accelerators),
        nodes,
    )


# ---------------------------------------------------------------- specs and prices


def _offered(found: Found, pool: PoolReport, offers: Sequence[Offer]) -> None:
    """Add a pool with the specs that fit its nodes; without one nothing could be asked for there."""
    specs = {offer.spec.id: offer.spec for offer in offers if _fits(pool.shape, offer.spec.shape)}
    if specs:
        found.pools.append(replace(pool, specs=tuple(specs.values())))
    else:
        found.quarantined.append((pool.native, "no spec is offered there that fits its nodes"))


def _fits(node: NodeShape, asked: NodeShape) -> bool:
    same = (node.arch, node.accelerator) == (asked.arch, asked.accelerator)
    return same and same_card_memory(node, asked) and slot_size(node, asked) > 0


def priced(pool: PoolReport, rows: Mapping[str, Mapping[str, Any]]) -> PoolReport:
    """A pool with the price of its largest spec, per card-hour or core-hour; `rows` are those of its
    center by spec id, per node-hour."""
    for spec in sorted(pool.specs, key=lambda s: (-s.shape.accelerators, -s.shape.cores, s.id)):
        row = rows.get(spec.id)
        if row is None or row.get("stated") is False:
            continue
        units = Decimal(spec.shape.accelerators * spec.shape.card_permille) / 1000 or spec.shape.cores
        windows = [_window(window, units) for window in row.get("windows") or ()]
        return replace(pool, prices=tuple(windows) or (Price(_micro(row.get("unitPrice"), units)),))
    return pool


def _micro(amount: Any, units: Decimal | int) -> int:
    return round((number(amount, "unitPrice") or Decimal(0)) * MICRO / units)


def _window(row: Any, units: Decimal | int) -> Price:
    if not isinstance(row, dict):
        raise Unavailable(f"windows has {row!r}, expected objects")
    days = frozenset(_DAYS.index(day) for day in row.get("days") or _DAYS if day in _DAYS)
    return Price(
        _micro(row.get("unitPrice"), units),
        days,
        _minute(row.get("from") or "00:00"),
        _minute(row.get("to") or "24:00"),
    )


def _minute(text: Any) -> int:
    hours, _, minutes = str(text).partition(":")
    return (whole(hours, "from and to") or 0) * 60 + (whole(minutes, "from and to") or 0)
