"""A store without a daemon, and writes of it that are sure to be in one batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.store import Store, Tx
from tests.databases import database


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(database(tmp_path))
    await store.open()
    yield store
    await store.close()


class Gate:
    """Holds the writer so that what is queued meanwhile becomes one batch."""

    def __init__(self, store: Store) -> None:
        self._open = threading.Event()
        self._entered = threading.Event()
        self._held = asyncio.ensure_future(store.write(self._wait))

    def _wait(self, tx: Tx) -> None:
        self._entered.set()
        assert self._open.wait(30)

    async def shut(self) -> None:
        await asyncio.to_thread(self._entered.wait, 30)

    async def open(self) -> None:
        self._open.set()
        await self._held


async def one_batch(store: Store, *ops: Any) -> list[Any]:
    """The outcomes of writes that are in one batch, in order."""
    gate = Gate(store)
    await gate.shut()
    tasks = [asyncio.ensure_future(store.write(op)) for op in ops]
    await asyncio.sleep(0)  # each task queues its write in its first step
    assert store.backlog == len(ops)
    await gate.open()
    return await asyncio.gather(*tasks, return_exceptions=True)
