"""Resource packages of a CECSTACK (§4.3): what each is worth as a pool, what is left of it, its price.

Here: reading packages, and why one cannot be used.  Not here: calls (cecstack_wire.py) and what runs
on a package (cecstack_tasks.py).

A run takes a whole node of its package: no call asks for cards, cores or memory.  The platform tells
the shape of one node (spec*) and what is left (rest*), and neither how many nodes a package has nor the
memory of a card, nor the architecture: the operator states them where they are not the obvious ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from adapters.values import BLANKS, number, utc_ms, whole
from broker.adapter import PoolReport, StatedPool, Unavailable
from broker.core.model import Accuracy, FreeNodes, NodeShape, Price
from broker.core.resources import make_spec

NORMAL: Final = 1
"""resourceState 正常; the document names no other."""
CYCLE_HOURS: Final[Mapping[str, int]] = {"Month": 720}
"""Hours of a billing cycle; the document names no other cycle."""
MICRO_PER_FEN: Final = 10_000

_GPUS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:[(（]\s*([^)）]*?)\s*[)）])?\s*")
_GIB = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:G|GB|Gi|GiB)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Project:
    """A project as §9.5 lists it; its packages by their names."""

    id: int
    name: str
    packages: frozenset[str]

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Project:
        id = whole(row.get("id"), "id of a project")
        if id is None:
            raise Unavailable(f"a project has no id: {str(row)[:200]}")
        named = str(row.get("completeResource") or "")
        packages = frozenset(part.strip() for part in re.split(r"[,，;]", named) if part.strip())
        return cls(id, str(row.get("name") or ""), packages)


@dataclass(frozen=True, slots=True)
class Package:
    """A package.  `trouble`: why nothing is placed on it, or ""; `free` is None where nobody knows.

    `hint` is for the operator and hinders nothing.
    """

    native: str
    name: str
    shape: NodeShape
    nodes: int
    free: int | None
    accuracy: Accuracy
    ends_ms: int | None
    prices: tuple[Price, ...] = ()
    trouble: str = ""
    hint: str = ""

    def pool(self) -> PoolReport:
        free = self.nodes if self.free is None else self.free
        groups = [(self.shape.cores, self.shape.memory_gib, self.shape.accelerators, free)]
        if full := self.nodes - free:
            groups.append((0, 0, 0, full))
        return PoolReport(
            self.native,
            self.shape,
            self.nodes,
            tuple(FreeNodes(*group) for group in groups if group[3]),
            specs=(make_spec(self.shape),),  # never a part of a node
            prices=self.prices,
            accuracy=self.accuracy,
        )


def gpus(text: Any, field: str) -> tuple[int, str]:
    """ "2(H800)": cards and product; "0" and a blank are none.  Raises Unavailable."""
    if text is None or str(text).strip() in BLANKS:
        return 0, ""
    if (found := _GPUS.fullmatch(str(text))) is None:
        raise Unavailable(f'{field} is {text!r}, expected cards such as "2(H800)"')
    return int(Decimal(found[1])), found[2] or ""


def gib(text: Any, field: str) -> int | None:
    """ "200G" or "200", which are GB by the document; None for a blank.  Raises Unavailable."""
    if text is None or str(text).strip() in BLANKS:
        return None
    if (found := _GIB.fullmatch(str(text))) is None:
        raise Unavailable(f'{field} is {text!r}, expected memory such as "200G"')
    return int(Decimal(found[1]))


def cores(text: Any, field: str) -> int | None:
    found = number(text, field)
    return None if found is None else int(found)


@dataclass(frozen=True, slots=True)
class PackageRules:
    """What the configuration says of packages.  `wanted` empty: all of the project."""

    wanted: Collection[str]
    stated: Mapping[str, StatedPool]
    arch: str
    zone: ZoneInfo

    def read(self, rows: Iterable[Mapping[str, Any]], project: Project | None, now_ms: int) -> list[Package]:
        """The packages that concern us, unusable ones with the reason."""
        packages = []
        for row in rows:
            native = str(row.get("resourceId") or "")
            if not native:
                native = f"(row {row.get('id')})"
                trouble = "the list does not tell its resourceId, without which it cannot be used"
                packages.append(_unreadable(native, str(row.get("name") or ""), trouble))
            elif not self.wanted or native in self.wanted:
                packages.append(self._package(native, row, project, now_ms))
        missing = sorted(set(self.wanted) - {package.native for package in packages})
        unlisted = "the platform lists no package of this resourceId"
        return packages + [_unreadable(native, "", unlisted) for native in missing]

    def _package(self, native: str, row: Mapping[str, Any], project: Project | None, now_ms: int) -> Package:
        name = str(row.get("name") or "")
        try:
            ends_ms = utc_ms(row.get("endTime"), "endTime", self.zone)
            shape, nodes = self._node(native, row)
            package = replace(
                _left(native, name, shape, nodes, row), ends_ms=ends_ms, prices=_prices(row, shape, nodes)
            )
        except Unavailable as error:
            return _unreadable(native, name, str(error))
        return replace(package, trouble=self._trouble(package, row, project, now_ms))

    def _node(self, native: str, row: Mapping[str, Any]) -> tuple[NodeShape, int]:
        """The shape of a node and their number.  Raises Unavailable for what cannot be meant."""
        stated = self.stated.get(native)
        cards, product = gpus(row.get("specGpu"), "specGpu")
        told = (cores(row.get("specCPU"), "specCPU"), gib(row.get("specMemory"), "specMemory"), cards)
        if stated is None:
            if not self.arch:
                raise Unavailable(
                    "its architecture is not known: set cpu_arch, or state it in [[centers.pools]]"
                )
            if told[0] is None or told[1] is None:
                raise Unavailable("no specCPU or specMemory is told: state the pool in [[centers.pools]]")
            if cards and not product:
                raise Unavailable(f"specGpu is {row.get('specGpu')!r} without a product: state the pool")
            return NodeShape(self.arch, told[0], told[1], product, cards), 1
        shape = stated.shape
        for field, have, said in (
            ("cores", told[0], shape.cores),
            ("memory_gib", told[1], shape.memory_gib),
            ("accelerators", told[2], shape.accelerators),
        ):
            if have is not None and have != said:
                raise Unavailable(f"{field} is stated as {said}, the platform says {have}")
        return shape, stated.nodes

    def _trouble(self, package: Package, row: Mapping[str, Any], project: Project | None, now_ms: int) -> str:
        state = whole(row.get("resourceState"), "resourceState")
        if state not in (None, NORMAL):
            return f"resourceState is {state} ({row.get('resourceStateName') or 'no name'}), not {NORMAL}"
        if row.get("delete") not in (None, 0, "0", False):
            return "it is deleted"
        if package.ends_ms is not None and package.ends_ms <= now_ms:
            return f"it ended at {row.get('endTime')}"
        if project is None:
            return "no project to use it with: set project_id"
        names = {part.strip() for part in str(row.get("projectName") or row.get("project") or "").split(",")}
        if project.name not in names and package.name not in project.packages:
            return f"it is not associated with project {project.id} ({project.name})"
        return ""


def _left(native: str, name: str, shape: NodeShape, nodes: int, row: Mapping[str, Any]) -> Package:
    """What rest* says of a package.  A blank is neither nought nor full."""
    package = Package(native, name, shape, nodes, None, Accuracy.EXACT, None)
    rest_cards, _ = gpus(row.get("restGpu"), "restGpu")
    rest = (cores(row.get("restCPU"), "restCPU"), gib(row.get("restMemory"), "restMemory"))
    if rest[0] is None or rest[1] is None:
        hint = "rest* are blank: what is free is counted by our own runs"
        if whole(row.get("restAmount"), "restAmount") == 0:
            return replace(package, free=0, accuracy=Accuracy.ESTIMATED, hint=hint)
        if whole(row.get("usedAmount"), "usedAmount") == 0:
            return replace(package, free=nodes, accuracy=Accuracy.ESTIMATED, hint=hint)
        hint = "rest* are blank and part of it is in use: nobody knows what is free"
        return replace(package, accuracy=Accuracy.UNKNOWN, hint=hint)
    shares = [rest[0] // shape.cores, rest[1] // max(1, shape.memory_gib)]
    if shape.accelerators:
        shares.append(rest_cards // shape.accelerators)
    room = min(shares)
    hint = (
        f"there is room for {room} nodes: state nodes = {room} in [[centers.pools]]" if room > nodes else ""
    )
    return replace(package, free=min(room, nodes), hint=hint)


def _prices(row: Mapping[str, Any], shape: NodeShape, nodes: int) -> tuple[Price, ...]:
    """perPrice is fen for the whole package and cycle (never per unit of totalAmount)."""
    fen, hours = number(row.get("perPrice"), "perPrice"), CYCLE_HOURS.get(str(row.get("cycleType")))
    units = nodes * (shape.accelerators or shape.cores)
    if fen is None or hours is None or not units:
        return ()
    per_hour = (fen * MICRO_PER_FEN / (hours * units)).to_integral_value(ROUND_HALF_EVEN)
    return (Price(int(per_hour)),)


def _unreadable(native: str, name: str, trouble: str) -> Package:
    nothing = NodeShape("", 0, 0)
    return Package(native, name, nothing, 0, 0, Accuracy.UNKNOWN, None, trouble=trouble)
