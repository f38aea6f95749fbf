"""Whether slots fit on nodes whose cards are split, card by card: a part of the check of a plan.

What belongs here: putting slots on real cards.  What does not: the arrays of the problem and counts of
slots; a defect there must not hide itself here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from broker.core.model import FreeNodes, NodeShape, Spec
from broker.core.resources import PART_UNITS, part_permille
from broker.core.snapshot import host_units, units


@dataclass(frozen=True, slots=True, order=True)
class _Split:
    """What is left of a node whose cards are split; of every card its (units, thousandths), ascending."""

    units: int  # that cores and memory allow
    cores: int
    memory_gib: int
    cards: tuple[tuple[int, int], ...]

    def take(self, slot: int, shape: NodeShape, part: int) -> _Split | None:
        """The node with a slot taken on the fullest card that holds it, or on whole cards; None: no room."""
        if self.units < slot or self.cores < shape.cores or self.memory_gib < shape.memory_gib:
            return None
        need = (min(slot, PART_UNITS), part or (1000 if shape.accelerators else 0))
        holding = [i for i, card in enumerate(self.cards) if card[0] >= need[0] and card[1] >= need[1]]
        count = max(1, slot // PART_UNITS)
        if len(holding) < count:
            return None
        cards = list(self.cards)
        for number, i in enumerate(holding[:count]):
            taken = need[1] if number < max(1, shape.accelerators) else 0
            cards[i] = (cards[i][0] - need[0], cards[i][1] - taken)
        return _Split(
            self.units - slot,
            self.cores - shape.cores,
            self.memory_gib - shape.memory_gib,
            tuple(sorted(cards)),
        )


def pack_on_cards(
    node: NodeShape, free: Sequence[FreeNodes], wanted: Mapping[tuple[int, Spec], int]
) -> dict[tuple[int, Spec], int]:
    """Puts (slot, spec) → count on real nodes, largest slots first, the fullest node that holds one.

    A slot up to a card is on one card, a larger one on whole cards.  Returns what does not fit.
    """
    nodes: Counter[_Split] = Counter()
    for group in free:
        cards = [(part * PART_UNITS // 1000, part) for part in group.parts]
        cards += [(PART_UNITS, 1000)] * group.accelerators
        state = _Split(host_units(node, group), group.cores, group.memory_gib, tuple(sorted(cards)))
        nodes[state] += group.nodes
    unpacked: dict[tuple[int, Spec], int] = {}
    for (slot, spec), count in sorted(wanted.items(), key=lambda w: (-w[0][0], w[0][1].id)):
        part, left = part_permille(node, spec.shape), count
        while left:
            after = {s: s.take(slot, spec.shape, part) for s, n in nodes.items() if n}
            fitting = [s for s, then in after.items() if then is not None]
            if not fitting:
                unpacked[slot, spec] = left
                break
            state = min(fitting)
            then = after[state]
            assert then is not None
            taken = min(left, nodes[state])
            nodes[state] -= taken
            nodes[then] += taken
            left -= taken
    return unpacked


def unpacked_in_order(
    node: NodeShape, free: Sequence[FreeNodes], wanted: Sequence[tuple[Spec, int, int]]
) -> list[Spec]:
    """Puts jobs on real nodes one after the other, as claims are charged; returns what finds no room.

    `wanted` are (spec, nodes of one job, jobs).  Nodes of one job go to several nodes while they can.
    """
    nodes: dict[FreeNodes, int] = {}
    for group in free:
        state = group if group.nodes == 1 else replace(group, nodes=1)
        nodes[state] = nodes.get(state, 0) + group.nodes
    missing: list[Spec] = []
    for spec, count, jobs in wanted:
        part = part_permille(node, spec.shape)
        for _ in range(jobs):
            made: dict[FreeNodes, int] = {}
            for _ in range(count):
                # Those that the job is not on yet first.
                on = nodes
                found = _fullest(node, nodes, spec.shape, part)
                if found is None:
                    on, found = made, _fullest(node, made, spec.shape, part)
                if found is None:
                    missing.append(spec)
                    break
                state, then = found
                on[state] -= 1
                if not on[state]:
                    del on[state]
                made[then] = made.get(then, 0) + 1
            for state, some in made.items():
                nodes[state] = nodes.get(state, 0) + some
    return missing


def _fullest(
    node: NodeShape, nodes: Iterable[FreeNodes], shape: NodeShape, part: int
) -> tuple[FreeNodes, FreeNodes] | None:
    """The node that is charged first, and what is left of it; None: none has room."""
    able = [(state, _less(state, shape, part)) for state in nodes]
    holding = [(state, then) for state, then in able if then is not None]
    if len(holding) < 2:
        return holding[0] if holding else None
    return min(holding, key=lambda held: _rank(node, held[0], part))


def _rank(node: NodeShape, state: FreeNodes, part: int) -> tuple[bool, int, int, int, int, tuple[int, ...]]:
    """Charged first: where no whole card is broken, then the fullest node."""
    breaks = part > 0 and not (state.parts and state.parts[-1] >= part)
    return breaks, units(node, state), state.accelerators, state.cores, state.memory_gib, state.parts


def _less(state: FreeNodes, shape: NodeShape, part: int) -> FreeNodes | None:
    """What is left of one node under one node of a job, a part on the fullest card; None: no room."""
    cards, parts = state.accelerators, list(state.parts)
    if part:
        held = min((p for p in parts if p >= part), default=1000 if cards else 0)
        if held < part:
            return None
        if held in parts:
            parts.remove(held)
        else:
            cards -= 1
        parts += [held - part] if held > part else []
    else:
        cards -= shape.accelerators
    cores, memory = state.cores - shape.cores, state.memory_gib - shape.memory_gib
    if min(cards, cores, memory) < 0:
        return None
    return FreeNodes(cores, memory, cards, 1, tuple(sorted(parts)))
