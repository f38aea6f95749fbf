"""Store: engines, threads and wake-ups; how the asyncio side reaches the database.

Database drivers are synchronous and run in threads: one writer (see writer.py) and a few readers.
An asynchronous driver would hop between threads at every statement; here a whole transaction is
one hop.  SQLite runs in WAL mode with synchronous=FULL, and every write transaction begins
IMMEDIATE: otherwise two transactions that read before they write lose updates silently.  On PostgreSQL
every write transaction begins with one advisory lock, for the same reason: writers of several daemons
take turns, and each sees all that was committed before it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from broker.store import schema
from broker.store.gathering import Gathering
from broker.store.job_pages import TOTALS, Totals
from broker.store.looks import Looks
from broker.store.notices import CONNECT_S, KEEPALIVE, Notices
from broker.store.writer import Rejected, StoreUnavailable, Tx, Write, Writer

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

READERS = 4
"""Threads that read; SQLite readers do not wait for the writer."""

BUSY_S = 30
"""How long a write waits for those of another process (a replica, a backup, a command), and a look of a
command at the file for its lock."""

IDLE_S = 3
"""PostgreSQL undoes a write transaction whose process has been silent for so long: a daemon that was
stopped in the middle of one must not keep the others from writing."""

WRITING = 0x62726F6B65720001
"""The advisory lock of whoever writes; of a database, not of a server."""


def now_ms() -> int:
    """Wall clock, UTC, in milliseconds."""
    return time.time_ns() // 1_000_000


class Store:
    """Use: `store = Store(url); await store.open(); await store.write(op, …)`, `read(query, …)`.

    `clock` gives milliseconds UTC.  `wakeup(name)` is the event a loop waits on; it is set after a
    commit whose write called `tx.wake(name)`.
    """

    def __init__(self, url: str, *, clock: Callable[[], int] = now_ms, max_batch: int = 256) -> None:
        self.clock = clock
        self._url = driver_url(url)
        self._max_batch = max_batch
        self._wakeups: dict[str, asyncio.Event] = {}
        self._engines: list[Engine] = []
        self._reads = 0
        self._totals = Totals()

    async def open(self) -> None:
        """Create or upgrade the schema and start the threads.  Raises StoreUnavailable."""
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        try:
            self._write_engine = _engine(self._url, begin="IMMEDIATE")
            self._engines.append(self._write_engine)
            self._read_engine = _engine(self._url, begin="DEFERRED", pool_size=READERS)
            self._engines.append(self._read_engine)
            await self._loop.run_in_executor(
                self._readers, schema.upgrade, self._write_engine, database_file(self._url)
            )
        except BaseException as error:
            self._readers.shutdown(wait=False)
            self._dispose()
            if not isinstance(error, DBAPIError | OSError | ModuleNotFoundError):
                raise
            reason: object = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(error, ModuleNotFoundError):
                reason = f"{error}; PostgreSQL needs the extra of that name: pip install 'psycopg[binary]'"
            shown = make_url(self._url).render_as_string(hide_password=True)
            raise StoreUnavailable(f"cannot open {shown!r}: {reason}") from error
        notices = Notices(self._url) if self._write_engine.dialect.name == "postgresql" else None
        self._writer = Writer(
            self._write_engine,
            clock=self.clock,
            told=self._on_commit,
            max_batch=self._max_batch,
            guard=_same_file(database_file(self._url)),
            notices=notices,
        )
        self._gathering = Gathering(self._writer.submit, self._loop)
        self._writer.start()
        self._looks = Looks(self._readers, self._session)
        self._pages = Looks(self._readers, self._session)
        self._listening = (
            None
            if notices is None
            else asyncio.create_task(notices.listen(self._woken_from_afar), name="store: notices")
        )

    async def close(self) -> None:
        """Finish queued writes and close the files."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        self._gathering.hand_over()
        await asyncio.to_thread(self._writer.close)
        self._readers.shutdown(wait=True)
        self._dispose()

    def _dispose(self) -> None:
        for engine in self._engines:
            engine.dispose()

    async def write(self, op: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a write; returns once it is durable.

        A caller that is cancelled meanwhile does not undo it.  Raises what `op` raises, and
        StoreUnavailable.
        """
        return await self._written(lambda tx, _items: [op(tx, *args, **kwargs)], None)

    async def write_together(
        self, op: Callable[[Tx, Sequence[Item]], Sequence[T | Rejected]], item: Item
    ) -> T:
        """As `write`, for what many ask for at the same time: `op` is given the items of all who wait, and
        answers or refuses each.  Raises the refusal."""
        return await self._written(op, item)

    async def _written(self, op: Callable[[Tx, Sequence[Item]], Sequence[T | Rejected]], item: Item) -> T:
        waiting: asyncio.Future[T] = self._loop.create_future()
        self._gathering.ask(Write(op, item, waiting))
        return await waiting

    async def read(
        self, query: Callable[Concatenate[Session, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a read in its own transaction.  Raises StoreUnavailable."""

        def run() -> T:
            try:
                with self._session() as session:
                    return query(session, *args, **kwargs)
            except DBAPIError as error:
                raise StoreUnavailable(f"the database refused a read: {error.orig}") from error

        self._reads += 1
        try:
            return await self._loop.run_in_executor(self._readers, run)
        finally:
            self._reads -= 1

    async def look(
        self, query: Callable[Concatenate[Session, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `read`, for a query of a few rows: those that come together share a transaction."""
        return await self._share(self._looks, lambda session: query(session, *args, **kwargs))

    async def page(
        self, query: Callable[Concatenate[Session, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `look`, for a page of rows in the order of an index.  Pages come one batch after the other,
        since threads that read rows side by side fight for the interpreter at each, and beside the looks,
        so that nobody who wants one row waits for fifty."""
        return await self._share(self._pages, lambda session: query(session, *args, **kwargs))

    async def _share(self, looks: Looks, query: Callable[[Session], T]) -> T:
        self._reads += 1
        try:
            return await looks.look(query)
        finally:
            self._reads -= 1

    def _session(self) -> Session:
        return Session(self._read_engine, info={TOTALS: self._totals})

    def wakeup(self, name: str) -> asyncio.Event:
        return self._wakeups.setdefault(name, asyncio.Event())

    @property
    def trouble(self) -> str:
        """Why the database takes no writes at the moment, "" while it does."""
        return self._writer.trouble

    @property
    def backlog(self) -> int:
        """Writes that wait for the writer."""
        return self._gathering.waiting + self._writer.backlog

    @property
    def reads_waiting(self) -> int:
        """Reads that run or wait for a thread.  Of the loop's side: one that its caller gave up is
        not counted."""
        return self._reads

    def _woken_from_afar(self, names: Collection[str] | None) -> None:
        """Another daemon, or a command, has committed; None: what happened meanwhile is not known."""
        for name in self._wakeups if names is None else names:
            self.wakeup(name).set()

    def _on_commit(self, writes: Sequence[Write], woken: Iterable[str]) -> None:
        """In the writer's thread: one hop to the loop for all who wait."""

        def tell() -> None:
            self._gathering.answered(len(writes))
            for write in writes:
                if write.waiting.done():
                    continue  # whoever asked has left
                if isinstance(write.answer, BaseException):
                    write.waiting.set_exception(write.answer)
                else:
                    write.waiting.set_result(write.answer)
            for name in woken:
                self.wakeup(name).set()

        self._loop.call_soon_threadsafe(tell)


def driver_url(url: str) -> str:
    """SQLAlchemy's URL with our driver: sqlite3 of the standard library, or psycopg 3."""
    if url.startswith("postgresql://"):
        return "postgresql+psycopg://" + url.removeprefix("postgresql://")
    return url


def _same_file(path: Path | None) -> Callable[[], None]:
    """Raises StoreUnavailable while the file that was opened is not there any more, or another one is:
    SQLite would go on writing into a file that nobody finds again."""
    if path is None:
        return lambda: None
    opened = path.stat()

    def check() -> None:
        try:
            there = path.stat()
        except OSError as error:
            raise StoreUnavailable(
                f"the database file {path} is gone: {error.strerror}; put it back"
            ) from error
        if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise StoreUnavailable(f"the database file {path} was replaced: restart the daemon to use it")

    return check


def database_file(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    assert parsed.database is not None
    return Path(parsed.database)


def _engine(url: str, *, begin: str, pool_size: int = 1) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return _postgresql(url, writes=begin == "IMMEDIATE", pool_size=pool_size)
    if (path := database_file(url)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Whatever the umask is: it has the key that signs links.  SQLite makes its WAL with the same mode.
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        connect_args={"timeout": BUSY_S, "check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-65536",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(f"BEGIN {begin}")

    return engine


def _postgresql(url: str, *, writes: bool, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_S, **KEEPALIVE},
    )
    if not writes:
        return engine

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.autocommit = True  # transactions begin below, by one way to the server
        connection.execute(f"SET lock_timeout = '{BUSY_S}s'")
        connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_S}s'")

    @event.listens_for(engine, "begin")
    def take_turn(connection: Any) -> None:
        begin = f"BEGIN; SELECT pg_advisory_xact_lock({WRITING})"
        errors = connection.dialect.loaded_dbapi.Error
        try:
            connection.connection.driver_connection.execute(begin, prepare=False)  # two cannot be prepared
        except errors as error:  # as SQLAlchemy tells those of what it executes itself
            raise DBAPIError.instance(begin, None, error, errors) from error

    return engine
