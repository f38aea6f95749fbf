"""Data sets for platforms that share a storage with the broker and have no call to bring them there.

Here: one bounded step of a copy at a time, from where the last one stopped, and its removal.  Not here:
which storage (output.py) and when a step is made (broker/stage.py).

    datasets/<id>.part/    while it is being copied
    datasets/<id>/         whole: runs that name it get a link to it
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Final

from adapters.files import discard
from adapters.output import Output
from broker.adapter import CopyRef, CopySighting, CopyState, Unavailable

STEP_BYTES: Final = 256 << 20
"""Copied in one step, so that other copies get their turn."""
CHUNK_BYTES: Final = 4 << 20
FOLDER: Final = "datasets"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a folder; never "..", never a path


async def step(output: Output, copy: CopyRef, *, most: int = STEP_BYTES) -> CopySighting:
    """Copy on.  Raises Unavailable when the storage or the data set is not there."""
    if not _NAME.fullmatch(copy.dataset) or copy.dataset.endswith(".part"):
        return CopySighting(CopyState.FAILED, message=f"{copy.dataset!r} cannot be the name of a folder")
    return await asyncio.to_thread(_step, output, copy, most)


def _step(output: Output, copy: CopyRef, most: int) -> CopySighting:
    source, final = Path(copy.source), output.mounted() / FOLDER / copy.dataset
    remote = f"{output.in_job}/{FOLDER}/{copy.dataset}"
    if final.is_dir():
        return CopySighting(CopyState.READY, remote, copy.bytes)
    if not source.is_dir():
        raise Unavailable(f"the data set {copy.dataset!r} is not at {source}")
    part = final.with_name(f"{final.name}.part")
    done, left = 0, most
    for path in sorted(source.rglob("*")):
        target = part / path.relative_to(source)
        if not path.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size
        had = target.stat().st_size if target.exists() else 0
        added = _append(path, target, had, min(size - had, left)) if left > 0 or size == 0 else 0
        left -= added
        done += had + added
        if had + added < size:
            return CopySighting(CopyState.MOVING, remote, done)
    part.mkdir(parents=True, exist_ok=True)  # an empty data set is one too
    part.rename(final)
    return CopySighting(CopyState.READY, remote, done)


async def remove(output: Output, dataset: str) -> None:
    """Remove a copy, whole or half; nothing where there is none.

    Raises Unavailable when the storage is not there or the copy cannot be removed.
    """
    if not _NAME.fullmatch(dataset):
        return  # such a copy was never made
    await asyncio.to_thread(_remove, output, dataset)


def _remove(output: Output, dataset: str) -> None:
    folder = output.mounted() / FOLDER
    for name in (dataset, f"{dataset}.part"):
        discard(folder / name)


def _append(source: Path, target: Path, start: int, count: int) -> int:
    """Copy `count` bytes from `start` on; how many there were."""
    copied = 0
    with source.open("rb") as reading, target.open("ab") as writing:
        reading.seek(start)
        while copied < count and (chunk := reading.read(min(CHUNK_BYTES, count - copied))):
            writing.write(chunk)
            copied += len(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return copied
