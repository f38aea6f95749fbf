"""One writer thread with group commit.

Writes queue to one thread, which takes what is waiting and runs it in one transaction: one fsync
for many writes.  A write is a function of a Tx that may run twice: when one of a batch fails, the
batch is rolled back and each write runs again in a savepoint of its own, so that a conflict stays
with its own row.  What many ask for at the same time (creates) is one write of all their items.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlmodel import Session, select

from broker.store.journal import EVENTS, append
from broker.store.notices import Notices
from broker.store.rows import New
from broker.tables import Lease
from broker.telemetry import COMMITS, STORE_WRITABLE, log

LEADER = "leader"
KEPT_S = 0.1
"""A connection that was not used for so long goes back to the pool, which looks whether it still stands
before it is used again."""


class Rejected(Exception):
    """Root of a write's refusals.  A write raises it only before its first change."""


class LostLease(Rejected):
    """Another daemon leads: this one may neither write results nor call centers."""


class StoreUnavailable(Exception):
    """The database cannot be reached or written; the text says why."""


@dataclass(slots=True)
class Tx:
    """One write's view of the running transaction."""

    session: Session
    now_ms: int
    events: list[dict[str, Any]] = field(default_factory=list)
    woken: set[str] = field(default_factory=set)
    notices: Notices | None = None
    _told: set[str] = field(default_factory=set)
    _epoch: int | None = None

    def event(
        self,
        kind: str,
        *,
        job: str | None = None,
        run: str | None = None,
        center: str | None = None,
        tenant: str | None = None,
        actor: str = "",
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append to the event log; the number is given when it is written, at the commit at latest.

        `actor` is the person, or what a person used, whose change this is; `tenant` is whom an event
        without a job concerns.
        """
        self.events.append(
            {
                "at_ms": self.now_ms,
                "kind": kind,
                "job_id": job,
                "run_id": run,
                "center_id": center,
                "tenant_id": tenant,
                "actor": actor,
                "data": data or {},
            }
        )

    def flush(self, *news: New) -> None:
        """Write what waits in the session, then new rows, as `insert_rows` does, with the events so far and
        the notices of who is woken."""
        self.session.flush()
        if self.events:
            self.wake(EVENTS)
        untold, self._told = self.woken - self._told, set(self.woken)
        notices = self.notices.texts(untold) if self.notices is not None else ()
        events, self.events = self.events, []
        if events or news or notices:
            append(self.session.connection(), events, *news, notices=notices)

    def wake(self, *loops: str) -> None:
        """Wake loops after the commit."""
        self.woken.update(loops)

    def lead(self, epoch: int) -> None:
        """Another epoch leads from here on, in this transaction too."""
        self._epoch = epoch

    def fence(self, epoch: int) -> None:
        """Raise LostLease unless `epoch` still leads.  Read once per transaction."""
        if self._epoch is None:
            query = select(Lease.epoch).where(Lease.name == LEADER).with_for_update(read=True)
            self._epoch = self.session.exec(query).first() or 0
        if self._epoch != epoch:
            raise LostLease(f"epoch {epoch} no longer leads; epoch {self._epoch} does")


@dataclass(slots=True, eq=False)
class Write:
    """`op` is given the items of all writes of a batch that have it, and answers each.  `answer` is the
    result once it is on disk, or the exception that undid or refused it, for who awaits `waiting`, which
    the thread does not touch.
    """

    op: Callable[[Tx, Sequence[Any]], Sequence[Any]]
    item: Any
    waiting: asyncio.Future[Any]
    answer: Any = None


class Writer:
    """The thread.  `told` is called in it after a transaction with its writes, answered, and the names of
    the loops to wake; `guard` before a transaction: it raises StoreUnavailable when what would be written
    is lost.

    `trouble` is why the database refused the last transaction, "" while it takes them.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], int],
        told: Callable[[Sequence[Write], Iterable[str]], None],
        max_batch: int = 256,
        guard: Callable[[], None] = lambda: None,
        notices: Notices | None = None,
    ) -> None:
        self.trouble = ""
        self._guard = guard
        self._engine = engine
        self._notices = notices
        self._clock = clock
        self._told = told
        self._max_batch = max_batch
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._closed = False
        self._connection: Connection | None = None

    def start(self) -> None:
        self._thread.start()

    def submit(self, write: Write) -> None:
        """Queue a write.  Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self._queue.put(write)

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    @property
    def backlog(self) -> int:
        return self._queue.qsize()

    def _run(self) -> None:
        while (first := self._next()) is not None:
            batch = [first]
            closing = False
            while len(batch) < self._max_batch and not closing:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    closing = True
                else:
                    batch.append(more)
            self._commit(batch)
            if closing:
                break
        self._let_go()

    def _next(self) -> Write | None:
        """The next write, None at the end."""
        try:
            return self._queue.get(timeout=None if self._connection is None else KEPT_S)
        except queue.Empty:
            self._let_go()
            return self._queue.get()

    def _session(self) -> Session:
        """On the connection that the last transaction left."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return Session(self._connection, expire_on_commit=False)

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()
        except Exception:  # the thread must live
            log.exception("connection_not_closed")

    def _commit(self, batch: list[Write]) -> None:
        trouble, woken = "", set[str]()
        try:
            self._guard()
            try:
                woken = self._together(batch)
            except OperationalError:
                raise  # the database itself, not one of the writes
            except Exception:
                self._let_go()
                woken = self._apart(batch)
        except DBAPIError as error:
            gone = StoreUnavailable(f"the database refused the transaction: {error.orig}")
            gone.__cause__ = error
            self._fail(batch, gone)
            trouble = str(gone)
        except StoreUnavailable as error:
            self._fail(batch, error)
            trouble = str(error)
        except Exception as error:  # whatever it is, the thread must live and the callers must know
            self._fail(batch, error)
        else:
            COMMITS.inc()
        self._state(trouble)
        self._told(batch, woken)

    def _fail(self, batch: Sequence[Write], error: Exception) -> None:
        """Nothing of the batch is written; what is wrong may be the connection."""
        _answer(batch, [error] * len(batch))
        self._let_go()

    def _state(self, trouble: str) -> None:
        """Whether the database takes writes; a change is told."""
        if trouble and not self.trouble:
            log.error("store_not_writable", error=trouble)
        elif self.trouble and not trouble:
            log.info("store_writable_again")
        self.trouble = trouble
        STORE_WRITABLE.set(not trouble)

    def _together(self, batch: list[Write]) -> set[str]:
        """All in one transaction; any error but Rejected undoes all of them."""
        with self._session() as session, session.begin():
            tx = Tx(session, self._clock(), notices=self._notices)
            for writes in _alike(batch):
                try:
                    _answer(writes, writes[0].op(tx, [write.item for write in writes]))
                except Rejected as refusal:
                    _answer(writes, [refusal] * len(writes))
            tx.flush()
        return tx.woken

    def _apart(self, batch: list[Write]) -> set[str]:
        """One transaction, a savepoint for each: an error undoes its own write only."""
        with self._session() as session, session.begin():
            tx = Tx(session, self._clock(), notices=self._notices)
            for write in batch:
                woken, told, epoch = set(tx.woken), set(tx._told), tx._epoch
                try:
                    with session.begin_nested():
                        (answer,) = write.op(tx, [write.item])
                        if isinstance(answer, BaseException):
                            raise answer
                        tx.flush()
                    write.answer = answer
                except OperationalError:
                    raise
                except Exception as error:
                    tx.woken, tx._told, tx._epoch = woken, told, epoch
                    write.answer = error
                tx.events.clear()
        return tx.woken


def _alike(batch: Sequence[Write]) -> Iterable[Sequence[Write]]:
    """The writes of each `op`, in the order of their first ones: nobody has been told of any of them yet."""
    found: dict[Any, list[Write]] = {}
    for write in batch:
        found.setdefault(write.op, []).append(write)
    return found.values()


def _answer(writes: Sequence[Write], answers: Sequence[Any]) -> None:
    for write, answer in zip(writes, answers, strict=True):
        write.answer = answer
