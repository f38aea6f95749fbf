"""What is free on the nodes of one pool: slots, and counts of nodes while claims come and go.

What belongs here: units and slots of a node, and where claims are charged and given back when nobody
knows which nodes they are on.  What does not: which claims a report contains, and what is held
(core/snapshot.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from broker.core.model import Claim, FreeNodes, NodeShape, Pool, Reservation
from broker.core.resources import PART_UNITS, card_units, part_permille, unit_count


def units(shape: NodeShape, free: FreeNodes) -> int:
    """Slot units left on one node of `shape` of which `free` is free.

    The least of free cards and of what free cores and memory allow; cores stand for cards in a pool
    without cards.
    """
    return min(host_units(shape, free), slots_on_cards(shape, free, 1))


def host_units(shape: NodeShape, free: FreeNodes) -> int:
    """Slot units that free cores and memory of one node allow."""
    total = left = unit_count(shape)
    if not shape.accelerators:
        left = free.cores
    elif shape.cores:
        left = free.cores * total // shape.cores
    if shape.memory_gib:
        left = min(left, free.memory_gib * total // shape.memory_gib)
    return max(0, min(left, total))


def slots_on_cards(shape: NodeShape, free: FreeNodes, size: int) -> int:
    """Slots of `size` units that the free cards of one node hold, each on one card or on whole ones."""
    if not shape.accelerators:
        return unit_count(shape) // size
    whole = min(free.accelerators, shape.accelerators)
    if not shape.split_permille:
        return whole // size
    if size > PART_UNITS:
        return whole * PART_UNITS // size
    return whole * (PART_UNITS // size) + sum(part * PART_UNITS // 1000 // size for part in free.parts)


def slots(shape: NodeShape, free: FreeNodes, size: int) -> int:
    """Slots of `size` units on one node.

    Taking a slot of t units takes t / size of them for every smaller size (sizes divide each other),
    wherever it is put.  So slots of several sizes pack, the largest first, exactly when for every size
    those at least as large, each counted as floor(t / size), are at most the sum over nodes.
    """
    return min(host_units(shape, free) // size, slots_on_cards(shape, free, size))


def supply(shape: NodeShape, free: Sequence[FreeNodes], size: int) -> int:
    """Slots of `size` units in a pool: the sum over its nodes."""
    return sum(group.nodes * slots(shape, group, size) for group in free)


def _size(shape: NodeShape) -> tuple[int, int, int, int]:
    return (shape.accelerators, shape.card_permille, shape.cores, shape.memory_gib)


_Kind = tuple[int, int, int, int, int]
"""What tells apart shapes that claims of one pool have; sorts by size."""


def kind_of(shape: NodeShape) -> _Kind:
    return (*_size(shape), shape.accelerator_memory_gib)


def _slot_shape(node: NodeShape, slot: int) -> NodeShape:
    """The share of a node that `slot` units own, rounded up."""
    total = max(1, unit_count(node))
    part = bool(node.split_permille) and slot < PART_UNITS
    return replace(
        node,
        cores=-(-node.cores * slot // total),
        memory_gib=-(-node.memory_gib * slot // total),
        accelerators=min(-(-slot // card_units(node)), node.accelerators),
        accelerator_memory_gib=0 if part else node.accelerator_memory_gib,
        card_permille=-(-slot * 1000 // PART_UNITS) if part else node.card_permille,
    )


NodeState = tuple[int, int, int, int, tuple[int, ...]]
"""(units, accelerators, cores, memory_gib, parts) free: sorts from the fullest node to the emptiest."""


def put(cards: int, parts: tuple[int, ...], permille: int) -> tuple[int, tuple[int, ...]] | None:
    """What is left of free cards when a part is put on the fullest card that holds it; None: none does.

    `parts` are ascending, as in FreeNodes.
    """
    at = bisect_left(parts, permille)
    if at < len(parts):
        rest = parts[at] - permille
        return cards, _sorted_parts((*parts[:at], *parts[at + 1 :]), rest)
    return (cards - 1, _sorted_parts(parts, 1000 - permille)) if cards > 0 else None


def _sorted_parts(parts: tuple[int, ...], further: int) -> tuple[int, ...]:
    return tuple(sorted((*parts, further))) if further else parts


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """Of one node shape: nodes by what is free, nodes without a claim of a kind, and the shapes of slots."""

    nodes: dict[tuple[int, int, int, tuple[int, ...]], NodeState] = field(default_factory=dict)
    back: dict[_Kind, dict[NodeState, NodeState | None]] = field(default_factory=dict)
    slots: dict[int, NodeShape] = field(default_factory=dict)


_KNOWN: dict[NodeShape, _Known] = {}
"""The same few are asked for again and again."""


def in_order(claims: Iterable[Claim]) -> list[Claim]:
    """In the order in which they are charged: large ones first, which have the fewest nodes to be on.
    Ties end with the id."""
    return sorted(claims, key=lambda c: (_size(c.shape), c.run), reverse=True)


class Histogram:
    """Counts of nodes by what is free, while claims are given back and charged to it."""

    def __init__(self, pool: Pool, free: Sequence[FreeNodes] | None = None) -> None:
        """`free`: what is free in the pool, where that is not what it reports."""
        free = pool.free if free is None else free
        self.shape = pool.shape
        known = _KNOWN.get(pool.shape)
        if known is None:
            known = _KNOWN[pool.shape] = _Known()
        self._nodes, self._back, self._slots = known.nodes, known.back, known.slots
        self.count: dict[NodeState, int] = {}
        for group in free:
            self._add(self._node(group.accelerators, group.cores, group.memory_gib, group.parts), group.nodes)
        # Full nodes need not be reported, but runs that end are given back to them.
        full = pool.nodes - sum([group.nodes for group in free])
        if full > 0:
            self._add((0, 0, 0, 0, ()), full)

    def _node(self, accelerators: int, cores: int, memory_gib: int, parts: tuple[int, ...] = ()) -> NodeState:
        key = (accelerators, cores, memory_gib, parts)
        node = self._nodes.get(key)
        if node is None:
            node = (units(self.shape, FreeNodes(cores, memory_gib, accelerators, 1, parts)), *key)
            self._nodes[key] = node
        return node

    def copy(self) -> Histogram:
        made = Histogram.__new__(Histogram)
        made.shape, made._nodes, made._back = self.shape, self._nodes, self._back
        made._slots, made.count = self._slots, self.count.copy()
        return made

    def _add(self, node: NodeState, nodes: int) -> None:
        count = self.count.get(node, 0) + nodes
        if count > 0:
            self.count[node] = count
        else:
            self.count.pop(node, None)

    def _take(self, node: NodeState, shape: NodeShape, nodes: int) -> None:
        """Moves `nodes` nodes to what remains after `shape`, never below zero."""
        _, cards, cores, memory, parts = node
        if part := part_permille(self.shape, shape):
            # Where nothing holds the part, the card with the most left of it is taken to be full.
            cards, parts = put(cards, parts, part) or (cards, parts[:-1])
        else:
            cards = max(0, cards - shape.accelerators)
        after = self._node(cards, max(0, cores - shape.cores), max(0, memory - shape.memory_gib), parts)
        self._add(node, -nodes)
        self._add(after, nodes)

    def charge_all(self, claims: Iterable[Claim], reservations: Iterable[Reservation]) -> None:
        """Charges claims, then what is held."""
        for claim in in_order(claims):
            self.charge(claim.shape, claim.nodes)
        self.hold_all(reservations)

    def hold_all(self, reservations: Iterable[Reservation]) -> None:
        """Charges what is held."""
        for hold in sorted(reservations, key=lambda r: (-r.slot, r.job)):
            shape = self._slots.get(hold.slot)
            if shape is None:
                shape = self._slots[hold.slot] = _slot_shape(self.shape, hold.slot)
            self.charge(shape, hold.nodes)

    def release_all(self, claims: Iterable[Claim], slot: int | None) -> None:
        """Gives claims back, large ones first for the same reason; which of equal ones, is the same."""
        shapes: dict[_Kind, NodeShape] = {}
        nodes: dict[_Kind, int] = {}
        for claim in claims:
            kind = kind_of(claim.shape)
            shapes[kind] = claim.shape
            nodes[kind] = nodes.get(kind, 0) + claim.nodes
        for kind in sorted(nodes, reverse=True):
            self.release(shapes[kind], nodes[kind], slot)

    def slots(self, size: int) -> int:
        """Slots of `size` units."""
        if not self.shape.split_permille:
            return sum(nodes * (node[0] // size) for node, nodes in self.count.items())
        return sum(slots(self.shape, _group(node, 1), size) * nodes for node, nodes in self.count.items())

    def charge(self, shape: NodeShape, nodes: int) -> None:
        """Charges one claim: the fullest nodes that still fit, a node for each of its nodes.

        Where there are too few, its nodes share one; where none fits, the emptiest is charged, so
        that the error is on the safe side.  A part of a card goes to a card that is partly used before
        a whole one is broken, and there to the fullest that holds it.
        """
        left = self.place(shape, nodes)
        while left > 0:
            full: NodeState = (0, 0, 0, 0, ())
            node = max(self.count, default=full)
            if node[1:] == full[1:]:
                return
            taken = min(left, self.count[node])
            self._take(node, shape, taken)
            left -= taken

    def place(self, shape: NodeShape, nodes: int) -> int:
        """Charges as many nodes of a claim as there is room for; returns how many are left over."""
        part, left = part_permille(self.shape, shape), nodes
        if part:
            fitting = [n for n in self.count if self._fits(n, shape, part)]
            fitting.sort(key=lambda n: (_breaks(n, part), n))
        else:
            cards, cores, memory = shape.accelerators, shape.cores, shape.memory_gib
            fitting = [n for n in self.count if n[1] >= cards and n[2] >= cores and n[3] >= memory]
            fitting.sort()
        counts = [self.count[node] for node in fitting]
        for node, count in zip(fitting, counts, strict=True):
            taken = min(left, count)
            self._take(node, shape, taken)
            left -= taken
            if not left:
                return 0
        while left > 0 and (picked := self.pick(shape)) is not None:
            taken = min(left, self.count[picked])
            self._take(picked, shape, taken)
            left -= taken
        return left

    def pick(self, shape: NodeShape) -> NodeState | None:
        """The node that the next node of a claim is charged to; None: none has room."""
        part = part_permille(self.shape, shape)
        fitting = [n for n in self.count if self._fits(n, shape, part)]
        return min(fitting, key=lambda n: (_breaks(n, part), n), default=None)

    def _fits(self, node: NodeState, shape: NodeShape, part: int) -> bool:
        _, cards, cores, memory, parts = node
        held = put(cards, parts, part) is not None if part else cards >= shape.accelerators
        return held and cores >= shape.cores and memory >= shape.memory_gib

    def release(self, shape: NodeShape, nodes: int, slot: int | None = None) -> None:
        """Gives a claim back to the fullest nodes that can have held it, or with `slot` to those where
        it makes the fewest slots of that many units."""
        known = self._back.setdefault(kind_of(shape), {})
        left = nodes
        while left > 0:
            for node in self.count:
                if node not in known:
                    known[node] = self._given_back(node, shape)
            back = ((node, known[node]) for node in self.count)
            held = [(self._gain(n, after, slot), n, after) for n, after in back if after is not None]
            if not held:
                return
            _, node, after = min(held)
            taken = min(left, self.count[node])
            self._add(node, -taken)
            self._add(after, taken)
            left -= taken

    def _given_back(self, node: NodeState, shape: NodeShape) -> NodeState | None:
        """The node without a claim of `shape`; None when it cannot have held it.

        A part is given back to a card that is fully used, where there is one: nobody knows which card
        it was on, and so it makes the fewest whole cards.
        """
        _, cards, cores, memory, parts = node
        whole = self.shape
        cores, memory = cores + shape.cores, memory + shape.memory_gib
        if part := part_permille(whole, shape):
            if cards + len(parts) < whole.accelerators:
                parts = _sorted_parts(parts, part)
            elif parts and parts[0] + part < 1000:
                parts = _sorted_parts(parts[1:], parts[0] + part)
            elif parts and parts[0] + part == 1000:
                cards, parts = cards + 1, parts[1:]
            else:
                return None
        elif cards + len(parts) + shape.accelerators <= whole.accelerators:
            cards += shape.accelerators
        else:
            return None
        fits = cores <= whole.cores and memory <= whole.memory_gib
        return self._node(cards, cores, memory, parts) if fits else None

    def _gain(self, node: NodeState, after: NodeState, slot: int | None) -> tuple[int, int]:
        """Slots that a node gains by a release, and what it is away from one without it."""
        if slot is None:
            return (0, 0)
        if not self.shape.split_permille:
            return (after[0] // slot - node[0] // slot, node[0] % slot)
        had, has = (slots(self.shape, _group(n, 1), slot) for n in (node, after))
        return (has - had, node[0] % slot)

    def groups(self) -> tuple[FreeNodes, ...]:
        """The histogram without nodes that have nothing free, fullest first."""
        return tuple(
            _group(node, nodes) for node, nodes in sorted(self.count.items()) if node[1:] != (0, 0, 0, ())
        )


def _breaks(node: NodeState, part: int) -> bool:
    """Whether a part of a card would break a whole one."""
    return part > 0 and (not node[4] or node[4][-1] < part)


def _group(node: NodeState, nodes: int) -> FreeNodes:
    _, cards, cores, memory, parts = node
    return FreeNodes(cores=cores, memory_gib=memory, accelerators=cards, nodes=nodes, parts=parts)
