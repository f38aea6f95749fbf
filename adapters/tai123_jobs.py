"""Jobs of a T/AI 123.8 service as runs, and what it lists besides.

Here: what its objects mean.  Not here: capacity (tai123_capacity.py) and when calls are made.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from adapters.tai123_wire import JOBS, SERVICES, NotThere, Wire
from adapters.values import whole
from broker.adapter import Asset, Image, RemoteState, Sighting
from broker.core.model import RemoteId

_STATES: Final[Mapping[str, RemoteState]] = {
    "PENDING": RemoteState.PENDING,
    "RUNNING": RemoteState.RUNNING,
    "SUCCEEDED": RemoteState.SUCCEEDED,
    "FAILED": RemoteState.FAILED,
    "STOPPED": RemoteState.STOPPED,
}
PATHS: Final[Mapping[str, str]] = {"job": JOBS, "svc": SERVICES}
"""By the kind of a remote id."""


def parted(remote: RemoteId) -> tuple[str, str]:
    """Path and id of a job there; "" for what is none."""
    kind, _, id = remote.partition(":")
    return (PATHS[kind], id) if kind in PATHS and id else ("", "")


def sighting(status: str, found: Mapping[str, Any]) -> Sighting:
    """A job as a sighting.  What the standard does not tell is in the last of a broker's `runs`."""
    state = _STATES.get(status, RemoteState.UNKNOWN)
    runs = found.get("runs")
    run = runs[-1] if isinstance(runs, list) and runs and isinstance(runs[-1], dict) else {}
    failure = str(run.get("failure") or "") if state is RemoteState.FAILED else ""
    message = str(run.get("message") or found.get("message") or "")
    if state is RemoteState.FAILED and not message:
        message = "the other side says FAILED and no more"
    ended = state in (RemoteState.SUCCEEDED, RemoteState.FAILED, RemoteState.STOPPED)
    return Sighting(
        state,
        started_ms=None if state is RemoteState.PENDING else whole(run.get("startTimeMs"), "startTimeMs"),
        ended_ms=whole(run.get("finishTimeMs"), "finishTimeMs") if ended else None,
        exit_code=whole(run.get("exitCode"), "exitCode") if ended else None,
        evicted_by="the other side" if failure == "evicted" else "",
        host_lost=failure == "host",
        cannot_start=failure == "command",
        message=message,
        raw=status,
    )


def last_task(found: Mapping[str, Any]) -> str:
    tasks = found.get("tasks")
    if not isinstance(tasks, list) or not tasks or not isinstance(tasks[-1], dict):
        return ""
    return str(tasks[-1].get("taskId") or "")


def with_data(command: str, datasets: Sequence[tuple[str, str]]) -> str:
    """A command that finds its data sets by our ids; the other side has given them its own."""
    if not datasets:
        return command
    place = '"${TMPDIR:-/tmp}/broker-datasets-$BROKER_TASK_ID"'
    links = [
        f'ln -sfn "$BROKER_DATASETS_DIR"/{shlex.quote(there)} {place}/{shlex.quote(ours)}'
        for ours, there in datasets
    ]
    head = " && ".join([f"mkdir -p {place}", *links, f"export BROKER_DATASETS_DIR={place}"])
    return f"{head} || exit 74\n{command}"


# ---------------------------------------------------------------- what else is listed


async def images_of(wire: Wire) -> tuple[Image, ...]:
    images: dict[str, Image] = {}
    with suppress(NotThere):
        async for row in wire.rows("images", "/resource/images", "images"):
            if id := str(row.get("imageId") or ""):
                libraries = row.get("installedLib")
                images[id] = Image(
                    id=id,
                    native=id,
                    name=str(row.get("imageName") or ""),
                    desc=str(row.get("imageDesc") or ""),
                    arch=str(row.get("arch") or ""),
                    processor=str(row.get("processor") or ""),
                    os=str(row.get("operationSystem") or ""),
                    framework=str(row.get("framework") or ""),
                    installed_lib=tuple(map(str, libraries)) if isinstance(libraries, list) else (),
                )
    return tuple(images.values())


async def datasets_of(wire: Wire, brokers: frozenset[str]) -> tuple[Asset, ...]:
    """§7.3.5: the public ones.  Jobs can be given them where the other side is a broker.

    What the other side has only from `brokers` behind it is left out: two that list each other's would
    list them for ever.
    """
    found: dict[str, Asset] = {}
    with suppress(NotThere):
        async for row in wire.rows("datasets", "/datasets", "datasets"):
            at = row.get("centerIds")
            passed_on = isinstance(at, list) and bool(at) and brokers.issuperset(map(str, at))
            if (id := str(row.get("id") or "")) and not passed_on:
                found[id] = Asset(
                    native=id,
                    title=str(row.get("title") or id),
                    desc=str(row.get("desc") or ""),
                    labels=str(row.get("labels") or ""),
                    owner=str(row.get("owner") or ""),
                    bytes=whole(row.get("size"), f"data set {id}: size") or 0,
                    remote=id if wire.other is not None else "",
                )
    return tuple(found.values())
