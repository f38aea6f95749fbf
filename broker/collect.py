"""Copies logs and results of ended runs here, before they can vanish at the center.

What belongs here: the copy and the debt it pays.  A result is written beside its name and renamed
when whole; a copy that was cut off begins again.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

from broker.adapter import Adapter, AdapterError, ResultFile, RunRef
from broker.connections import Connections
from broker.core.retry import debt_pause_s
from broker.files import MAX_RESULT_FILES, DataDirectory, OutsideDirectory, inside
from broker.leader import Lease
from broker.logs import append_log
from broker.store import LostLease, Store, debts
from broker.store.debts import Debt
from broker.telemetry import log

AT_ONCE = 4
TIMEOUT_S = 3600
TRIES = 20
"""After so many failed tries, about an hour and a half, what could not be copied is given up."""


class TooMuch(Exception):
    """A center gives more results than are kept; it would give them again."""


class Collect:
    """`once()` starts copies that are due; they end by themselves."""

    def __init__(self, *, store: Store, lease: Lease, connections: Connections, files: DataDirectory) -> None:
        self._store = store
        self._lease = lease
        self._connections = connections
        self._files = files
        self._copies: dict[str, asyncio.Task[None]] = {}

    async def once(self) -> None:
        """Start what is due."""
        owed = await self._store.read(
            debts.collections_owed, self._store.clock(), AT_ONCE + len(self._copies)
        )
        for debt in owed:
            if debt.run in self._copies or len(self._copies) >= AT_ONCE:
                continue
            task = asyncio.create_task(self._collect(debt), name=f"collect {debt.run}")
            self._copies[debt.run] = task
            task.add_done_callback(partial(self._ended, debt.run))

    @property
    def busy(self) -> bool:
        return bool(self._copies)

    async def settled(self) -> None:
        """Wait until a copy ends."""
        await asyncio.wait(set(self._copies.values()), return_when=asyncio.FIRST_COMPLETED)

    async def drain(self) -> None:
        """Cancel what is under way; the debts stay."""
        for task in list(self._copies.values()):
            task.cancel()
        if self._copies:
            await asyncio.wait(set(self._copies.values()))

    def _ended(self, run: str, _task: asyncio.Task[None]) -> None:
        del self._copies[run]
        self._store.wakeup("collect").set()

    async def _collect(self, debt: Debt) -> None:
        error: Exception | None = None
        try:
            adapter = await self._connections.adapter(debt.center)
            async with asyncio.timeout(TIMEOUT_S):
                await self._copy(adapter, debt)
        except (AdapterError, TimeoutError, OSError, TooMuch) as failure:
            error = failure
        except Exception as failure:
            log.exception("collect_defect", run=debt.run, center=debt.center)
            error = failure
        with suppress(LostLease):  # the debt is a row; the next leader pays it
            await self._record(debt, error)

    async def _record(self, debt: Debt, error: Exception | None) -> None:
        if error is None or debt.tries >= TRIES or isinstance(error, TooMuch):
            if error is not None:
                log.error("collect_given_up", run=debt.run, center=debt.center, error=str(error))
            await self._store.write(debts.settle, debt.run, epoch=self._lease.epoch, collect=True)
            return
        log.warning("collect_failed", run=debt.run, center=debt.center, error=str(error))
        await self._store.write(
            debts.postpone_debt,
            debt.run,
            epoch=self._lease.epoch,
            next_ms=self._store.clock() + debt_pause_s(debt.tries) * 1000,
            message=f"logs and results not copied yet: {error}",
        )

    async def _copy(self, adapter: Adapter, debt: Debt) -> None:
        ref = RunRef(debt.run, debt.job, debt.remote, debt.nodes)
        if adapter.traits.logs:
            for node in range(debt.nodes):
                file = self._files.log(debt.run, node)
                await append_log(adapter, ref, node, file, most=self._files.max_log_bytes)
        if adapter.traits.results:
            fresh = self._files.incoming(f"results-{debt.run}")
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
            try:
                await self._save_all(adapter, ref, fresh)
            except TooMuch:
                await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
                raise
            await asyncio.to_thread(_swap, fresh, self._files.results(debt.run))

    async def _save_all(self, adapter: Adapter, ref: RunRef, folder: Path) -> None:
        left, files = self._files.max_result_bytes, 0
        async for result in adapter.results(ref):
            files += 1
            if files > MAX_RESULT_FILES:
                raise TooMuch(f"more than {MAX_RESULT_FILES} files")
            left -= await _save(folder, result, left)


async def _save(folder: Path, result: ResultFile, most: int) -> int:
    """The bytes that were written.  Raises TooMuch for more than `most`."""
    try:
        path = inside(folder, result.path)
    except OutsideDirectory as error:
        raise OSError(f"a result has a path that leaves its folder: {error}") from error
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    out = await asyncio.to_thread(path.open, "wb")
    written = 0
    try:
        async for chunk in result.chunks:
            written += len(chunk)
            if written > most:
                raise TooMuch("more than max_result_bytes of the configuration")
            await asyncio.to_thread(out.write, chunk)
    finally:
        await asyncio.to_thread(out.close)
    return written


def _swap(fresh: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    if fresh.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        fresh.rename(final)
