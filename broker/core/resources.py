"""The unified measure: catalogue of accelerators, slices and spec ids, effective power, totals, prices.

What belongs here: arithmetic over shapes of nodes that needs nothing but its arguments.  What does
not: reading files (the catalogue's text is passed in), histograms of free nodes (core/snapshot.py)
and what may run where (policies/fit.py).

A node is divided into *units*: its cards, or its cores where it has no cards; where cards are split,
each is PART_UNITS units.  A job's node takes a *slot*: a power of two of units, or the whole node.  A
slot that is no larger than a card is on one card, a larger one takes whole cards.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

from broker.core.amounts import product
from broker.core.model import Accelerator, NodeShape, Pool, Price, Spec, SpecId

DAY_MIN = 24 * 60
CORE_MILLICARDS = 50
"""A core of a CPU node counts as 50 thousandths of a card wherever one figure must rank both."""
PART_UNITS = 1024
"""Units of a card that the platform splits: a power of two, so that slots of parts pack exactly, and
finer than the thousandths in which parts are counted."""


# ---------------------------------------------------------------- the catalogue


class Products(Protocol):
    """What can be asked for a product by its canonical name: a Catalogue or a plain mapping."""

    def get(self, name: str, /) -> Accelerator | None: ...


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The known products.  `names` maps every name and alias, case-folded, to the canonical name."""

    products: Mapping[str, Accelerator] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, text: str) -> str | None:
        """The canonical name of an exact name or alias, letter case ignored; None when unknown."""
        return self.names.get(_folded(text))

    def get(self, name: str, /) -> Accelerator | None:
        """The product of a canonical name."""
        return self.products.get(name)


_KEYS = frozenset({"name", "memory_gib", "fp16_tflops", "factor", "aliases", "source", "note"})
_NAME = re.compile(r"[^/\s][^/]*/[^/\s][^/]*/[^/\s][^/]*")


def load_catalogue(text: str) -> Catalogue:
    """The catalogue of a TOML document with one `[[accelerators]]` table per product.

    Raises ValueError that names the entry and the field.
    """
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"accelerators: not TOML: {error}") from error
    entries = document.pop("accelerators", [])
    if document:
        raise ValueError(f"accelerators: unknown key {min(document)!r}; only [[accelerators]] belongs here")
    if not isinstance(entries, list):
        raise ValueError("accelerators: must be written as [[accelerators]] tables")
    products: dict[str, Accelerator] = {}
    names: dict[str, str] = {}
    for number, entry in enumerate(entries):
        product = _product(entry, number)
        for said in (product.name, *product.aliases):
            taken = names.setdefault(_folded(said), product.name)
            if taken != product.name or product.name in products:
                raise ValueError(f"accelerators[{number}] {product.name}: {said!r} already means {taken}")
        products[product.name] = product
    return Catalogue(products=products, names=names)


def _folded(text: str) -> str:
    return text.strip().casefold()


def _product(entry: Any, number: int) -> Accelerator:
    if not isinstance(entry, dict):
        raise ValueError(f"accelerators[{number}]: must be a table, not {entry!r}")
    name = entry.get("name")
    where = f"accelerators[{number}] {name}" if isinstance(name, str) else f"accelerators[{number}]"
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{where}: unknown field {key!r}; known are {', '.join(sorted(_KEYS))}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name must be Vendor/Kind/Model, not {name!r}")
    memory = entry.get("memory_gib")
    if not isinstance(memory, list) or not memory or not all(_positive_int(m) for m in memory):
        raise ValueError(f"{where}: memory_gib must be a list of GiB per card, not {memory!r}")
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(a, str) and a.strip() for a in aliases):
        raise ValueError(f"{where}: aliases must be a list of texts, not {aliases!r}")
    source = entry.get("source", "")
    if not isinstance(source, str):
        raise ValueError(f"{where}: source must be a text, not {source!r}")
    return Accelerator(
        name=name,
        memory_gib=tuple(memory),
        fp16_gflops=_thousandths(entry.get("fp16_tflops"), where=where, key="fp16_tflops"),
        factor_permille=_thousandths(entry.get("factor", 1), where=where, key="factor"),
        aliases=tuple(aliases),
        source=source,
    )


def _positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _thousandths(value: Any, *, where: str, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not Decimal(value).is_finite():
        raise ValueError(f"{where}: {key} must be a number, not {value!r}")
    thousandths = int((Decimal(value) * 1000).to_integral_value())
    if thousandths <= 0:
        raise ValueError(f"{where}: {key} must be at least 0.001, not {value}")
    return thousandths


def effective_gflops(shape: NodeShape, products: Products) -> int:
    """Effective FP16 GFLOPS of one node of this shape; 0 without cards or for an unknown product."""
    product = products.get(shape.accelerator) if shape.accelerators else None
    return 0 if product is None else millicards(shape) * product.effective_gflops // 1000


# ---------------------------------------------------------------- units, slots, slices, ids


def unit_count(shape: NodeShape) -> int:
    """Units a node is divided into: its cards (each PART_UNITS where they are split), else its cores."""
    return shape.accelerators * card_units(shape) or shape.cores


def card_units(shape: NodeShape) -> int:
    """Units of one card of a node."""
    return PART_UNITS if shape.split_permille else 1


def millicards(shape: NodeShape) -> int:
    """One node of this shape in thousandths of a card; see CORE_MILLICARDS for a node without cards."""
    return shape.accelerators * shape.card_permille if shape.accelerators else shape.cores * CORE_MILLICARDS


def is_part(node: NodeShape, wanted: NodeShape) -> bool:
    """Whether `wanted` is a part of one card of a node whose cards are split."""
    return bool(node.split_permille and wanted.accelerators) and wanted.card_permille < node.card_permille


def part_permille(node: NodeShape, wanted: NodeShape) -> int:
    """Thousandths of one card of `node` that a part takes: the larger of its shares of computing power
    and of the card's memory; 0 where `wanted` takes whole devices or none."""
    if not is_part(node, wanted):
        return 0
    memory = 0
    if node.accelerator_memory_gib:
        memory = -(-wanted.accelerator_memory_gib * 1000 // node.accelerator_memory_gib)
    return max(wanted.card_permille, memory)


def same_devices(node: NodeShape, wanted: NodeShape) -> bool:
    """Whether a node has devices as large as `wanted` asks for, or gives away such parts of them."""
    if not wanted.accelerators or wanted.card_permille == node.card_permille:
        return True
    return (
        is_part(node, wanted) and wanted.accelerators == 1 and wanted.card_permille % node.split_permille == 0
    )


def same_card_memory(node: NodeShape, wanted: NodeShape) -> bool:
    """Whether memory per device is exactly what `wanted` asks for; a part has at most the card's."""
    there, asked = node.accelerator_memory_gib, wanted.accelerator_memory_gib
    return not wanted.accelerators or there == asked or (is_part(node, wanted) and asked <= there)


def slot_size(node: NodeShape, wanted: NodeShape) -> int:
    """Units of `node` that one node of a job takes: a power of two, or all of them; 0: does not fit.

    A slot of t of G units owns t/G of the node's cores and memory, so its size is the largest of the
    three shares, rounded up to a power of two; what then exceeds G takes the whole node.  The units of
    a part of a card are its share of PART_UNITS.
    """
    total = unit_count(node)
    fits = (
        wanted.accelerators <= node.accelerators
        and wanted.cores <= node.cores
        and wanted.memory_gib <= node.memory_gib
        and same_devices(node, wanted)
    )
    if total == 0 or not fits:
        return 0
    part = part_permille(node, wanted)
    own = part_units(part) if part else wanted.accelerators * card_units(node)
    shares = [1, own]
    if node.cores:
        shares.append(-(-wanted.cores * total // node.cores))
    if node.memory_gib:
        shares.append(-(-wanted.memory_gib * total // node.memory_gib))
    return min(1 << (max(shares) - 1).bit_length(), total)


def part_units(permille: int) -> int:
    """Units of a split card that a part of it takes, rounded up."""
    return -(-permille * PART_UNITS // 1000)


PARTS_PERMILLE = (125, 250, 500)
"""Parts of a card that are offered where cards are split and the platform lists no specs."""


def slices(shape: NodeShape) -> tuple[Spec, ...]:
    """The specs of a pool whose platform lists none: 1, 2, 4 … cards (cores) and the whole node, and
    those of PARTS_PERMILLE that the platform's steps allow.

    Cores and GiB are the slice's share, rounded down, at least one each.
    """
    total = shape.accelerators or shape.cores
    sizes = [1 << bit for bit in range(total.bit_length()) if 1 << bit < total]
    split = shape.split_permille if shape.accelerators else 0
    parts = [_part(shape, p) for p in PARTS_PERMILLE if split and p % split == 0]
    return (*parts, *(_slice(shape, size, total) for size in (*sizes, total) if size))


def _part(shape: NodeShape, permille: int) -> Spec:
    cards = shape.accelerators * 1000
    return make_spec(
        replace(
            shape,
            cores=max(1, shape.cores * permille // cards),
            memory_gib=max(1, shape.memory_gib * permille // cards),
            accelerators=1,
            accelerator_memory_gib=shape.accelerator_memory_gib * permille // 1000,
            card_permille=permille,
            split_permille=0,
        )
    )


def _slice(shape: NodeShape, size: int, total: int) -> Spec:
    return make_spec(
        NodeShape(
            arch=shape.arch,
            cores=max(1, shape.cores * size // total),
            memory_gib=max(1, shape.memory_gib * size // total),
            accelerator=shape.accelerator,
            accelerators=size if shape.accelerators else 0,
            accelerator_memory_gib=shape.accelerator_memory_gib,
            card_permille=shape.card_permille,
        )
    )


def make_spec(shape: NodeShape) -> Spec:
    """The spec of a shape, with its derived id and name."""
    return Spec(id=spec_id(shape), name=spec_name(shape), shape=shape)


def spec_id(shape: NodeShape) -> SpecId:
    """A readable, URL-safe id: ``nvidia-gpu-a800-80g-x8-128c-1024g-x86`` or ``cpu-16c-64g-x86``; a
    quarter of a card is ``…-x1p250-…``, a node whose cards are split in hundredths ``…-x8s10-…``.

    Equal for equal shapes anywhere and different for different ones, letter case of names aside:
    a character that is not a letter a-z, a digit or a dot becomes ``_`` and two hexadecimal digits
    per UTF-8 byte, so that no part can hold the separator.
    """
    tail = [f"{shape.cores}c", f"{shape.memory_gib}g", _escaped(shape.arch)]
    part = f"p{shape.card_permille}" if shape.card_permille != 1000 else ""
    split = f"s{shape.split_permille}" if shape.split_permille else ""
    plain = not (part or split)
    if plain and not shape.accelerator and not shape.accelerators and not shape.accelerator_memory_gib:
        return SpecId("-".join(["cpu", *tail]))
    product = [_escaped(part) for part in shape.accelerator.split("/")]
    cards = [f"{shape.accelerator_memory_gib}g", f"x{shape.accelerators}{part}{split}"]
    return SpecId("-".join([*product, *cards, *tail]))


def _escaped(text: str) -> str:
    kept = "abcdefghijklmnopqrstuvwxyz0123456789."
    return "".join(c if c in kept else "".join(f"_{b:02x}" for b in c.encode()) for c in text.lower())


def spec_name(shape: NodeShape) -> str:
    """The name for people: ``8×A800 80GB · 128C · 1024GiB``, ``1×25% A800 20GB · 4C · 32GiB``."""
    host = f"{shape.cores}C · {shape.memory_gib}GiB"
    if not shape.accelerators:
        return host
    model = shape.accelerator.split("/")[-1]
    if shape.card_permille != 1000:
        model = f"{shape.card_permille / 10:g}% {model}"
    return f"{shape.accelerators}×{model} {shape.accelerator_memory_gib}GB · {host}"


# ---------------------------------------------------------------- totals


@dataclass(frozen=True, slots=True)
class Totals:
    """Nodes summed into one shape, as the standard's `totalResource` and `idleResource` want it.

    Cores, GiB and devices are plain sums; `millicards` are thousandths of whole cards.  `arch`, `kind`
    and `accelerator` are joined by "," in order of descending card count where several occur;
    `accelerator_memory_gib` is the least per card.
    `entries` are exact: one sum per (arch, product, memory per device, part of a card it is).
    """

    arch: str
    cores: int
    memory_gib: int
    kind: str
    accelerator: str
    accelerators: int
    accelerator_memory_gib: int
    nodes: int
    entries: tuple[NodeShape, ...]
    millicards: int = 0


def totals(rows: Iterable[tuple[NodeShape, int]]) -> Totals:
    """Sums `(shape, nodes)` rows; the order of rows does not matter."""
    sums: dict[tuple[str, str, int, int], tuple[int, int, int]] = {}
    count = 0
    for shape, nodes in rows:
        count += nodes
        carded = shape.accelerators > 0
        key = (
            shape.arch,
            shape.accelerator if carded else "",
            shape.accelerator_memory_gib if carded else 0,
            shape.card_permille if carded else 1000,
        )
        cores, memory, cards = sums.get(key, (0, 0, 0))
        sums[key] = (
            cores + shape.cores * nodes,
            memory + shape.memory_gib * nodes,
            cards + shape.accelerators * nodes,
        )
    entries = sorted(
        (
            NodeShape(arch, cores, memory, product, cards, card_memory, permille)
            for (arch, product, card_memory, permille), (cores, memory, cards) in sums.items()
        ),
        key=lambda e: (-e.accelerators, -e.cores, e),
    )
    carded_entries = [e for e in entries if e.accelerators]
    return Totals(
        arch=_joined([(e.arch, e.accelerators, e.cores) for e in entries]),
        cores=sum(e.cores for e in entries),
        memory_gib=sum(e.memory_gib for e in entries),
        kind=_joined([(_kind(e.accelerator), e.accelerators, e.cores) for e in carded_entries]),
        accelerator=_joined([(e.accelerator, e.accelerators, e.cores) for e in carded_entries]),
        accelerators=sum(e.accelerators for e in entries),
        accelerator_memory_gib=min((e.accelerator_memory_gib for e in carded_entries), default=0),
        nodes=count,
        entries=tuple(entries),
        millicards=sum(e.accelerators * e.card_permille for e in entries),
    )


def _kind(product: str) -> str:
    parts = product.split("/")
    return parts[1] if len(parts) > 1 else ""


def _joined(named: Sequence[tuple[str, int, int]]) -> str:
    weight: dict[str, tuple[int, int]] = {}
    for name, cards, cores in named:
        had = weight.get(name, (0, 0))
        weight[name] = (had[0] + cards, had[1] + cores)
    return ",".join(sorted((n for n in weight if n), key=lambda n: (-weight[n][0], -weight[n][1], n)))


# ---------------------------------------------------------------- prices


def price_at(prices: Sequence[Price], minute_of_week: int) -> int | None:
    """Micro-CNY per accelerator-hour (core-hour of a CPU pool) at a local minute of the week.

    The last window that holds the minute wins over any price without a window; None: no price.
    A window that wraps midnight belongs to the day it starts.
    """
    windowed: int | None = None
    always: int | None = None
    for price in prices:
        if len(price.days) == 7 and price.start_min == 0 and price.end_min == DAY_MIN:
            always = price.micro_per_hour
        elif _holds(price, minute_of_week):
            windowed = price.micro_per_hour
    return always if windowed is None else windowed


def _holds(price: Price, minute_of_week: int) -> bool:
    day, minute = divmod(minute_of_week % (7 * DAY_MIN), DAY_MIN)
    if price.start_min < price.end_min:
        return day in price.days and price.start_min <= minute < price.end_min
    if minute >= price.start_min:
        return day in price.days
    return minute < price.end_min and (day - 1) % 7 in price.days


def rate_micro_per_hour(pool: Pool, shape: NodeShape, nodes: int, minute_of_week: int) -> int:
    """What `nodes` nodes of `shape` cost in this pool per hour; a pool without a price costs 0.

    A part of a card costs that part of the price, rounded down to a micro-CNY.
    """
    return _rate(price_at(pool.prices, minute_of_week) or 0, pool.shape, shape, nodes)


def tariff(prices: Iterable[Price], node: NodeShape, shape: NodeShape, nodes: int) -> tuple[Price, ...]:
    """A pool's prices as those of `nodes` nodes of `shape` on its nodes, each with its window."""
    return tuple(
        replace(price, micro_per_hour=_rate(price.micro_per_hour, node, shape, nodes)) for price in prices
    )


def _rate(price: int, node: NodeShape, shape: NodeShape, nodes: int) -> int:
    if node.accelerators:
        one = price * shape.accelerators * shape.card_permille // 1000
    else:
        one = price * shape.cores
    return product(one, nodes)
