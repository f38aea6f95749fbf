"""Which nodes of a pool are taken, exactly: what an adapter needs that is its own platform.

Here: packing shares of one shape onto nodes, and the histogram of what is left.  Not here: beliefs
about somebody else's nodes (broker/core).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.core.model import FreeNodes, NodeShape


@dataclass(frozen=True, slots=True)
class Held:
    """One share of `shape` on each node listed in `on` (a node may be listed more than once)."""

    shape: NodeShape
    on: tuple[int, ...]


Room = tuple[int, int, int]
"""Accelerators, cores and GiB free on a node; ordered as best fit compares nodes."""


def misfit(want: NodeShape, node: NodeShape) -> str:
    """Why one share of `want` can never be on a node of shape `node`, or ""."""
    if want.arch != node.arch:
        return f"arch is {want.arch!r}, the pool has {node.arch!r}"
    if want.accelerators and want.accelerator != node.accelerator:
        return f"accelerator is {want.accelerator!r}, the pool has {node.accelerator!r}"
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
    free = [(shape.accelerators, shape.cores, shape.memory_gib)] * nodes
    for share in held:
        for i in share.on:
            if i < nodes:
                free[i] = _less(free[i], share.shape)
    return free


def pack(free: Sequence[Room], want: NodeShape, nodes: int) -> tuple[int, ...] | None:
    """Nodes for `nodes` shares of `want`, best fit: each on the node that it leaves fullest.

    None when there is no room for all of them.
    """
    left = list(free)
    chosen: list[int] = []
    for _ in range(nodes):
        fitting = [
            (room, i)
            for i, room in enumerate(left)
            if room[0] >= want.accelerators and room[1] >= want.cores and room[2] >= want.memory_gib
        ]
        if not fitting:
            return None
        _, best = min(fitting)
        left[best] = _less(left[best], want)
        chosen.append(best)
    return tuple(chosen)


def histogram(free: Sequence[Room]) -> tuple[FreeNodes, ...]:
    """Nodes by what is free on them, fullest first; nothing below zero."""
    counts = Counter((max(0, cores), max(0, memory), max(0, cards)) for cards, cores, memory in free)
    return tuple(sorted(FreeNodes(*room, nodes=count) for room, count in counts.items()))


def _less(room: Room, shape: NodeShape) -> Room:
    return (room[0] - shape.accelerators, room[1] - shape.cores, room[2] - shape.memory_gib)
