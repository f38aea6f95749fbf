"""Jobs that pass from broker to broker: which brokers have had one, and where it began.

What belongs here: the labels that travel with such a job, and the path to capacity that is behind
other brokers.  What does not: sending (adapters) and refusing (broker.api.admission).

A broker is known by its *installation*, ten characters drawn once and kept in its store; its name is
for people.  A *hop* is both: ``bk.7kq2m0x4vz``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

ORIGIN_LABEL: Final = "broker.origin"
"""The id of the job where it began."""
HOPS_LABEL: Final = "broker.hops"
"""The brokers that have passed it on, the first one first, between commas."""
MAX_HOPS: Final = 8
MAX_LABELS: Final = 64
"""Labels that a create may have; the two above take their room from the job's own."""

_HOP = re.compile(r"[a-z][a-z0-9]{0,7}\.[0-9a-z]{10}", re.ASCII)
_BEHIND = "@"


def hop(name: str, installation: str) -> str:
    return f"{name}.{installation}"


def hops_of(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The brokers that have passed a job on; none where it began here."""
    return tuple(filter(None, labels.get(HOPS_LABEL, "").split(",")))


def why_not(labels: Mapping[str, str], own: str) -> str:
    """Why the broker `own` must not take a job with these labels; "" when it may."""
    passed = hops_of(labels)
    if bad := next((one for one in passed if not _HOP.fullmatch(one)), ""):
        return f"{HOPS_LABEL} has {bad[:64]!r}, expected brokers such as {own!r} between commas"
    if own.rpartition(".")[2] in (one.rpartition(".")[2] for one in passed):
        return f"{HOPS_LABEL}: a loop between brokers: {' -> '.join((*passed, own))}"
    if len(passed) > MAX_HOPS:
        return f"{HOPS_LABEL}: {len(passed)} brokers have passed the job on, at most {MAX_HOPS} may"
    return ""


def passed_on(labels: Iterable[tuple[str, str]], job: str, own: str) -> dict[str, str]:
    """The labels that a job of the broker `own` is sent on with."""
    known = dict(labels)
    origin, passed = known.pop(ORIGIN_LABEL, job), hops_of(known)
    known.pop(HOPS_LABEL, None)
    kept = list(known.items())[: MAX_LABELS - 2]
    return {**dict(kept), ORIGIN_LABEL: origin, HOPS_LABEL: ",".join((*passed, own))}


# ---------------------------------------------------------------- capacity behind other brokers


def native_behind(center: str, path: Iterable[str]) -> str:
    """The native unit that a center of another broker is: its id there and the installations on the
    way to its nodes, the nearest first."""
    return f"{center}{_BEHIND}{'.'.join(path)}"


def center_behind(native: str) -> str:
    """The id that another broker's center has there."""
    return native.partition(_BEHIND)[0]


def path_behind(native: str) -> tuple[str, ...]:
    """The installations on the way to a native unit; none where it is not behind another broker."""
    return tuple(filter(None, native.partition(_BEHIND)[2].split(".")))
