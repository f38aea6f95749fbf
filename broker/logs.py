"""Copies a node's output from a center to the data directory, from where the copy ended.

Each chunk is written at its own offset: tracking and collecting may copy the same log at once, and
then they write the same bytes to the same place.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from broker.adapter import Adapter, RunRef
from broker.telemetry import log


async def append_log(adapter: Adapter, run: RunRef, node: int, file: Path, *, most: int) -> int:
    """Append what is new, until the file has `most` bytes; returns the bytes added.

    Raises AdapterError, OSError.
    """
    offset = await asyncio.to_thread(_length, file)
    added = 0
    if offset >= most:
        return 0
    async for chunk in adapter.logs(run, node, offset):
        kept = chunk[: most - offset - added]
        await asyncio.to_thread(_write, file, offset + added, kept)
        added += len(kept)
        if offset + added >= most:
            log.warning("log_cut", run=run.id, node=node, bytes=most)
            break
    return added


def _length(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return file.stat().st_size if file.exists() else 0


def _write(file: Path, offset: int, chunk: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
        out.seek(offset)
        out.write(chunk)
