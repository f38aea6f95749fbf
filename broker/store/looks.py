"""Short reads that come at the same time, taken together: the reader's side of a group commit.

What belongs here: one thread's hop and one transaction for all that wait.  What does not: reads that
take long (Store.read has threads for them); they would keep the others waiting.

A hop to a thread and a transaction cost more than looking up one job.  The transaction begins after
the last of its reads was asked for, so each sees every write that had been answered by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from broker.store.writer import StoreUnavailable

T = TypeVar("T")
Query = Callable[[Session], Any]
Found = tuple[Any, Exception | None]


class Looks:
    """Used from one event loop.  One batch is on its way at a time; what comes meanwhile is the next."""

    def __init__(self, threads: Executor, session: Callable[[], Session]) -> None:
        self._threads = threads
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Query, asyncio.Future[Any]]] = []
        self._busy = False

    async def look(self, query: Callable[[Session], T]) -> T:
        """Raises what the query raises, and StoreUnavailable."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((query, answer))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._start)  # after those that are ready to ask in this turn, too
        return await answer

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        queries = [query for query, _ in batch]
        try:
            working = self._loop.run_in_executor(self._threads, self._together, queries)
        except RuntimeError as error:  # the threads have ended: the store is closed
            self._busy = False
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(StoreUnavailable(f"the store is closed: {error}"))
            return
        working.add_done_callback(lambda done: self._told(batch, done.result()))

    def _told(self, batch: Sequence[tuple[Query, asyncio.Future[Any]]], found: Sequence[Found]) -> None:
        for (_, answer), (value, error) in zip(batch, found, strict=True):
            if answer.done():
                continue  # whoever asked has left
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)
        if self._waiting:
            self._start()
        else:
            self._busy = False

    def _together(self, queries: Sequence[Query]) -> list[Found]:
        """Each query's value or error; in a thread."""
        found: list[Found] = []
        try:
            with self._session() as session:
                for query in queries:
                    try:
                        found.append((query(session), None))
                    except DBAPIError:
                        raise
                    except Exception as error:
                        found.append((None, error))
        except DBAPIError as error:
            refused = StoreUnavailable(f"the database refused a read: {error.orig}")
            found += [(None, refused)] * (len(queries) - len(found))
        return found
