"""What a center's report may say: a pool whose report cannot be true is kept out, with the reason.

What belongs here: pure tests of a report's values, types included, since they come from others'
JSON.  What does not: products by their names and prices in force (broker.inventory) and capacity
that is wrong but possible, which no test can tell.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from broker.adapter import Asset, Image, Inventory, PoolReport, Sighting, Unavailable
from broker.core.model import Accuracy, FreeNodes, NodeShape, Price, RemoteId, Spec

Entry = TypeVar("Entry", bound=Image | Asset)

MOST: Mapping[str, int] = {
    "cores": 65_536,
    "memory_gib": 1 << 20,
    "accelerators": 1024,
    "accelerator_memory_gib": 65_536,
    "card_permille": 1000,
    "split_permille": 500,
    "nodes": 1_000_000,
}
"""Largest whole numbers of a report, those of `[[centers.pools]]`: per node, and nodes of a pool."""
MOST_OTHER = 1 << 31
"""Of a field without an entry of its own."""
MOST_PRICE_MICRO = 1_000_000_000_000
"""Micro-CNY per accelerator-hour or core-hour: 1 000 000 CNY, as in `[[centers.prices]]`."""
MOST_PARTS = 100_000
"""Groups of free nodes, specs, prices and names of one pool."""
MOST_TEXT = 255
"""Characters of a name."""
MOST_MESSAGE = 2000
"""Characters that are kept of what a center says of a run."""
MOST_ADDRESS = 2048
"""Characters of the address of a service."""
MOST_REMOTE = 1024
"""Characters of a center's name for a run."""
_SHOWN = 80
_REASON = 500
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_DAY_MIN = 24 * 60
_DAY_MS = _DAY_MIN * 60_000


def checked(report: Inventory, now_ms: int) -> Inventory:
    """The report without pools that cannot be true, which `quarantined` names with field and value.

    Raises Unavailable when nothing of the report can be used.
    """
    if fault := next(_whole_faults(report, now_ms), ""):
        raise Unavailable(f"the report cannot be read: {fault}")
    told = [(_named(name), _named(reason, _REASON)) for name, reason in report.quarantined]
    length = report.queue_length
    if length is not None and (fault := _whole("queue_length", length, MOST_OTHER)):
        told.append(("queue_length", fault))
        length = None
    kept = []
    for pool in report.pools:
        if fault := pool_fault(pool):
            told.append((_named(getattr(pool, "native", "")), fault))
        else:
            kept.append(pool)
    once = tuple(dict.fromkeys(told))
    return replace(report, pools=tuple(kept), queue_length=length, quarantined=once)


def readable(seen: Sighting, now_ms: int) -> Sighting:
    """A look at a run without what cannot be kept: texts are cut, times of the future and codes that are
    none are left out.  A center's clock may be fast, but not by a day."""
    message = seen.message if len(seen.message) <= MOST_MESSAGE else f"{seen.message[:MOST_MESSAGE]}…"
    fit = len(seen.address) <= MOST_ADDRESS and not _NO_TEXT.search(seen.address)
    return replace(
        seen,
        message=storable(message),
        address=seen.address if fit else "",
        evicted_by=storable(seen.evicted_by[:MOST_TEXT]),
        started_ms=_moment(seen.started_ms, now_ms),
        ended_ms=_moment(seen.ended_ms, now_ms),
        checkpoint_ms=_moment(seen.checkpoint_ms, now_ms),
        exit_code=seen.exit_code if seen.exit_code is not None and abs(seen.exit_code) < MOST_OTHER else None,
    )


def storable(text: str) -> str:
    """The text with ? for NUL and halves of surrogate pairs, which no database takes: one of them would
    undo all that is written with it."""
    return _NO_TEXT.sub("?", text)


def remote_name(remote: str) -> RemoteId:
    """A center's name for a run, which is asked for by it.  Raises Unavailable for what cannot be kept."""
    if len(remote) > MOST_REMOTE:
        raise Unavailable(f"the center's name for the run has {len(remote)} characters")
    if _NO_TEXT.search(remote):
        raise Unavailable(f"the center's name for the run is {_shown(remote)}, which is no text")
    return RemoteId(remote)


def catalogued(entries: Iterable[Entry]) -> list[Entry]:
    """Entries of a catalogue without those whose ids cannot be kept; what else they say is `storable`."""
    kept = []
    for entry in entries:
        if not _NO_TEXT.search(f"{entry.id}{entry.native}"):
            said = {each.name: getattr(entry, each.name) for each in fields(entry)}
            told: dict[str, Any] = {n: storable(text) for n, text in said.items() if isinstance(text, str)}
            kept.append(replace(entry, **told))
    return kept


def _moment(at_ms: int | None, now_ms: int) -> int | None:
    # Whatever its type says: an adapter may hand on what a platform wrote there.
    return at_ms if type(at_ms) is int and 0 <= at_ms <= now_ms + _DAY_MS else None


def distinct(pools: Sequence[PoolReport]) -> tuple[tuple[PoolReport, ...], tuple[tuple[str, str], ...]]:
    """Pools that a report has once, and the others with the reason: which of two is true, nobody knows.

    One native unit may have nodes of several shapes.
    """
    times = Counter((pool.native, pool.shape) for pool in pools)
    text = "native is {0} {1} times with nodes of one shape, expected once"
    twice = {key: text.format(_shown(key[0]), n) for key, n in times.items() if n > 1}
    kept = tuple(pool for pool in pools if (pool.native, pool.shape) not in twice)
    return kept, tuple((_named(native), reason) for (native, _), reason in twice.items())


def _whole_faults(report: Inventory, now_ms: int) -> Iterator[str]:
    """What makes a report unusable as a whole.  A center's clock may be fast, but not by a day."""
    yield from filter(None, (_whole("as_of_ms", report.as_of_ms, now_ms + _DAY_MS),))
    accuracy: Any = report.accuracy
    if not isinstance(accuracy, Accuracy):
        yield f"accuracy is {_shown(accuracy)}, expected one of {', '.join(Accuracy)}"
    yield from filter(None, (_items("pools", report.pools), _items("quarantined", report.quarantined)))
    pairs: tuple[Any, ...] = report.quarantined
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            yield f"quarantined[{i}] is {_shown(pair)}, expected a name and a reason"


def pool_fault(pool: Any) -> str:
    """The first field of a pool's report that cannot be true, its value and what would be right; ""
    when there is none."""
    return next(_faults(pool), "") if isinstance(pool, PoolReport) else f"a pool is {_shown(pool)}"


def _faults(pool: PoolReport) -> Iterator[str]:
    yield from filter(None, (_text("native", pool.native), _whole("nodes", pool.nodes, MOST["nodes"])))
    accuracy: Any = pool.accuracy
    if accuracy is not None and not isinstance(accuracy, Accuracy):
        yield f"accuracy is {_shown(accuracy)}, expected one of {', '.join(Accuracy)}"
    yield from _shape_faults("shape", pool.shape)
    shape = pool.shape
    if not (shape.cores or shape.accelerators):
        yield "shape.cores is 0, expected at least 1 where a node has no accelerators"
    yield from _each("free", pool.free, FreeNodes)
    for i, group in enumerate(pool.free):
        for name in ("cores", "memory_gib", "accelerators", "nodes"):
            most = pool.nodes if name == "nodes" else getattr(shape, name)
            if fault := _whole(f"free[{i}].{name}", getattr(group, name), most):
                yield fault
        yield from _part_faults(f"free[{i}].parts", group, shape)
    if (free := sum(group.nodes for group in pool.free)) > pool.nodes:
        yield f"free has {free} nodes, expected at most {pool.nodes}"
    yield from _each("specs", pool.specs, Spec)
    for i, spec in enumerate(pool.specs):
        yield from filter(
            None, (_text(f"specs[{i}].id", spec.id, least=1), _text(f"specs[{i}].name", spec.name))
        )
        yield from _shape_faults(f"specs[{i}].shape", spec.shape)
    yield from _each("prices", pool.prices, Price)
    for i, price in enumerate(pool.prices):
        yield from _price_faults(f"prices[{i}]", price)
    if fault := _items("node_names", pool.node_names):
        yield fault
    for i, name in enumerate(pool.node_names):
        if fault := _text(f"node_names[{i}]", name):
            yield fault


def _shape_faults(where: str, shape: Any) -> Iterator[str]:
    if not isinstance(shape, NodeShape):
        yield f"{where} is {_shown(shape)}, expected a node"
    for one in fields(NodeShape):
        value, name = getattr(shape, one.name), f"{where}.{one.name}"
        text = isinstance(one.default, str) or one.name == "arch"
        if fault := _text(name, value) if text else _whole(name, value, MOST.get(one.name, MOST_OTHER)):
            yield fault
    if not shape.card_permille:
        yield f"{where}.card_permille is 0, expected 1 to 1000"
    if shape.accelerators and not shape.accelerator:
        yield f"{where}.accelerator is '', expected the product of {shape.accelerators} accelerators"


def _part_faults(where: str, group: FreeNodes, shape: NodeShape) -> Iterator[str]:
    """What is free of cards that are partly used: thousandths, ascending, no more cards than there are."""
    if fault := _items(where, group.parts):
        yield fault
    for part in group.parts:
        if type(part) is not int or not 0 < part < 1000:
            yield f"{where} has {_shown(part)}, expected whole numbers from 1 to 999"
    if list(group.parts) != sorted(group.parts):
        yield f"{where} is {_shown(group.parts)}, expected it ascending"
    if group.parts and not shape.split_permille:
        yield f"{where} is {_shown(group.parts)}, expected none where cards are not split"
    if group.accelerators + len(group.parts) > shape.accelerators:
        yield f"{where} has {len(group.parts)} cards, with those free more than {shape.accelerators}"


def _price_faults(where: str, price: Price) -> Iterator[str]:
    for name, most in (("micro_per_hour", MOST_PRICE_MICRO), ("start_min", _DAY_MIN), ("end_min", _DAY_MIN)):
        if fault := _whole(f"{where}.{name}", getattr(price, name), most):
            yield fault
    if not isinstance(price.days, frozenset) or not all(type(d) is int and 0 <= d < 7 for d in price.days):
        yield f"{where}.days is {_shown(price.days)}, expected weekdays from 0 to 6"


def _each(where: str, values: Any, kind: type) -> Iterator[str]:
    if fault := _items(where, values):
        yield fault
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            yield f"{where}[{i}] is {_shown(value)}, expected {kind.__name__}"


def _items(where: str, values: Any) -> str:
    if not isinstance(values, tuple | list):
        return f"{where} is {_shown(values)}, expected a sequence"
    return f"{where} has {len(values)} entries, expected at most {MOST_PARTS}" * (len(values) > MOST_PARTS)


def _whole(where: str, value: Any, most: int) -> str:
    """A bool is no number here, and neither is 8.0: what is not whole would spread through all sums."""
    if type(value) is int and 0 <= value <= most:
        return ""
    return f"{where} is {_shown(value)}, expected a whole number from 0 to {most}"


def _text(where: str, value: Any, *, least: int = 0) -> str:
    if isinstance(value, str) and least <= len(value) <= MOST_TEXT and not any(map(_control, value)):
        return ""
    return f"{where} is {_shown(value)}, expected {least} to {MOST_TEXT} characters, none of them control"


def _control(char: str) -> bool:
    """Control characters and halves of surrogate pairs, which no store takes."""
    return unicodedata.category(char) in ("Cc", "Cs")


def _shown(value: Any) -> str:
    """A value in a message: as Python writes it, cut where it is long."""
    try:
        return _cut(repr(value), _SHOWN)
    except ValueError:  # thousands of digits
        return "a number that is too long to show"


def _named(value: Any, most: int = MOST_TEXT) -> str:
    """A text as it is, for people and the store; anything else as Python writes it."""
    return _cut(value, most) if isinstance(value, str) else _shown(value)


def _cut(text: str, most: int) -> str:
    text = "".join("?" if _control(c) else c for c in text)
    return text if len(text) <= most else f"{text[:most]}…"
