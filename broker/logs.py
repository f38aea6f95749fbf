"""Copies a node's output from a center to the data directory, from where the copy ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.adapter import Adapter, RunRef


async def append_log(adapter: Adapter, run: RunRef, node: int, file: Path) -> int:
    """Append what is new; returns the bytes added.  Raises AdapterError, OSError."""
    offset = await asyncio.to_thread(_length, file)
    added = 0
    async for chunk in adapter.logs(run, node, offset):
        await asyncio.to_thread(_append, file, chunk)
        added += len(chunk)
    return added


def _length(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return file.stat().st_size if file.exists() else 0


def _append(file: Path, chunk: bytes) -> None:
    with file.open("ab") as out:
        out.write(chunk)
