"""Which nodes of a pool are taken, exactly: what an adapter needs that is its own platform.

Here: packing shares of one shape onto nodes, and the histogram of what is left.  Not here: beliefs
about somebody else's nodes (broker/core).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.core.model import FreeNodes, NodeShape
from broker.core.resources import part_permille, same_devices
from broker.core.snapshot import put


@dataclass(frozen=True, slots=True)
class Held:
    """One share of `shape` on each node listed in `on` (a node may be listed more than once)."""

    shape: NodeShape
    on: tuple[int, ...]


Room = tuple[int, int, int, tuple[int, ...]]
"""Whole accelerators, cores, GiB and parts of accelerators (thousandths, ascending) free on a node;
ordered as best fit compares nodes."""


def misfit(want: NodeShape, node: NodeShape) -> str:
    """Why one share of `want` can never be on a node of shape `node`, or ""."""
    if want.arch != node.arch:
        return f"arch is {want.arch!r}, the pool has {node.arch!r}"
    if want.accelerators and want.accelerator != node.accelerator:
        return f"accelerator is {want.accelerator!r}, the pool has {node.accelerator!r}"
    if not same_devices(node, want):
        steps = f"parts of {node.split_permille}, 1 at a time" if node.split_permille else "no parts"
        return (
            f"accelerators are {want.accelerators} of {want.card_permille} thousandths of a card,"
            f" the pool has {node.card_permille} and gives {steps}"
        )
    if want.accelerators and want.accelerator_memory_gib > node.accelerator_memory_gib:
        return (
            f"accelerator memory is {want.accelerator_memory_gib} GiB per card,"
            f" the pool has {node.accelerator_memory_gib}"
        )
    for name, need, have in (
        ("cores", want.cores, node.cores),
        ("memory_gib", want.memory_gib, node.memory_gib),
        ("accelerators", want.accelerators, node.accelerators),
    ):
        if need > have:
            return f"{name} is {need}, a node of the pool has {have}"
    return ""


def rooms(shape: NodeShape, nodes: int, held: Iterable[Held]) -> list[Room]:
    """What is free on each node.  A share on a node that is no longer stated counts nowhere."""
    free: list[Room] = [(shape.accelerators, shape.cores, shape.memory_gib, ())] * nodes
    for share in held:
        for i in share.on:
            if i < nodes:
                free[i] = _less(shape, free[i], share.shape)
    return free


def pack(node: NodeShape, free: Sequence[Room], want: NodeShape, nodes: int) -> tuple[int, ...] | None:
    """Nodes of shape `node` for `nodes` shares of `want`, best fit: each on the node that it leaves
    fullest.

    None when there is no room for all of them.
    """
    left = list(free)
    chosen: list[int] = []
    for _ in range(nodes):
        fitting = [
            (room, i)
            for i, room in enumerate(left)
            if _holds(node, room, want) and room[1] >= want.cores and room[2] >= want.memory_gib
        ]
        if not fitting:
            return None
        _, best = min(fitting)
        left[best] = _less(node, left[best], want)
        chosen.append(best)
    return tuple(chosen)


def histogram(free: Sequence[Room]) -> tuple[FreeNodes, ...]:
    """Nodes by what is free on them, fullest first; nothing below zero."""
    counts = Counter(
        (max(0, cores), max(0, memory), max(0, cards), parts) for cards, cores, memory, parts in free
    )
    groups = (FreeNodes(*room[:3], nodes, room[3]) for room, nodes in counts.items())
    return tuple(sorted(groups))


def _holds(node: NodeShape, room: Room, want: NodeShape) -> bool:
    part = part_permille(node, want)
    return put(room[0], room[3], part) is not None if part else room[0] >= want.accelerators


def _less(node: NodeShape, room: Room, shape: NodeShape) -> Room:
    cards, cores, memory, parts = room
    if part := part_permille(node, shape):
        # Without room (a node got smaller under its runs) a whole card is owed.
        cards, parts = put(cards, parts, part) or (cards - 1, parts)
    else:
        cards -= shape.accelerators
    return (cards, cores - shape.cores, memory - shape.memory_gib, parts)
