"""Short reads that come at the same time, taken together: the reader's side of a group commit.

What belongs here: one thread's hop and one transaction for all that wait.  What does not: reads that
take long (Store.read has threads for them); they would keep the others waiting.

A hop to a thread and a transaction cost more than looking up one job.  The transaction begins after
the last of its reads was asked for, so each sees every write that had been answered by then.  Looks with
the same query (creates that are to be judged) are given to it together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from broker.store.writer import StoreUnavailable

T = TypeVar("T")
Item = TypeVar("Item")
Query = Callable[[Session, Sequence[Any]], Sequence[Any]]
Found = tuple[Any, Exception | None]


@dataclass(slots=True, eq=False)
class _Look:
    """`query` is given the items of all looks of a batch that have it, and answers each."""

    query: Query
    item: Any
    answer: asyncio.Future[Any]


class Looks:
    """Used from one event loop.  One batch is on its way at a time; what comes meanwhile is the next."""

    def __init__(self, threads: Executor, session: Callable[[], Session]) -> None:
        self._threads = threads
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Look] = []
        self._busy = False

    async def look(self, query: Callable[[Session, Sequence[Item]], Sequence[T]], item: Item) -> T:
        """Raises what the query raises, and StoreUnavailable."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Look(query, item, answer))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._start)  # after those that are ready to ask in this turn, too
        return await answer

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        try:
            working = self._loop.run_in_executor(self._threads, self._together, batch)
        except RuntimeError as error:  # the threads have ended: the store is closed
            self._busy = False
            for look in batch:
                if not look.answer.done():
                    look.answer.set_exception(StoreUnavailable(f"the store is closed: {error}"))
            return
        working.add_done_callback(lambda done: self._told(batch, done.result()))

    def _told(self, batch: Sequence[_Look], found: Mapping[_Look, Found]) -> None:
        for look in batch:
            if look.answer.done():
                continue  # whoever asked has left
            value, error = found[look]
            if error is not None:
                look.answer.set_exception(error)
            else:
                look.answer.set_result(value)
        if self._waiting:
            self._start()
        else:
            self._busy = False

    def _together(self, batch: Sequence[_Look]) -> dict[_Look, Found]:
        """Each look's value or error; in a thread."""
        alike: dict[Query, list[_Look]] = {}
        for look in batch:
            alike.setdefault(look.query, []).append(look)
        found: dict[_Look, Found] = {}
        try:
            with self._session() as session:
                for query, looks in alike.items():
                    try:
                        values = query(session, [look.item for look in looks])
                        found |= {look: (value, None) for look, value in zip(looks, values, strict=True)}
                    except DBAPIError:
                        raise
                    except Exception as error:
                        found |= dict.fromkeys(looks, (None, error))
        except DBAPIError as error:
            refused = StoreUnavailable(f"the database refused a read: {error.orig}")
            found = {**dict.fromkeys(batch, (None, refused)), **found}
        return found
