"""Numbers the points at which a daemon can die, and kills it at the one it was told.

A point is every suspension (a coroutine of a task gives control back to the loop), by a task factory,
and the moments before and after a COMMIT of the writer, by SQLAlchemy's dialect: so no list of points is
kept anywhere.  Its place is the line of the broker that waits there and its caller's.  Loops pass the same
places again and again; of a place the 1st, 2nd, 4th, 8th … pass is a point and gets the next number.

Runs inside the daemon's process, before the daemon does.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import CodeType
from typing import Any

from sqlalchemy.engine.default import DefaultDialect

from broker.store import Store

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(f"{ROOT / name}{os.sep}" for name in ("broker", "adapters"))
WRITER = "store-writer"
LONGEST_S = 3.0


class Points:
    """Counts points and writes each into a file, `number place#pass`.

    `kill` is a number or a `place#pass`, "" for no kill.  One that was not reached after LONGEST_S is at
    the next pass of any place: a plan of many kills is carried out whatever people do.
    """

    def __init__(self, kill: str, record: Path) -> None:
        self._kill = kill
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._passes: Counter[str] = Counter()
        self._number = 0
        self._lock = threading.Lock()
        self._end = time.monotonic() + LONGEST_S

    def passed(self, place: str) -> None:
        with self._lock:
            self._passes[place] += 1
            nth = self._passes[place]
            name = f"{place}#{nth}"
            late = self._kill != "" and time.monotonic() > self._end
            if nth & (nth - 1) == 0:
                self._number += 1
                os.write(self._record, f"{self._number} {name}\n".encode())
            elif not late and name != self._kill:
                return
            if late or self._kill in (str(self._number), name):
                os.write(self._record, f"killed {name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)


class Counted(Coroutine[Any, Any, Any]):
    """A task's coroutine; each time that it comes back to the loop is a point."""

    def __init__(self, inner: Coroutine[Any, Any, Any], points: Points) -> None:
        self._inner = inner
        self._points = points

    def send(self, value: Any) -> Any:
        waits_for = self._inner.send(value)
        self._passed()
        return waits_for

    def throw(self, *error: Any) -> Any:
        waits_for = self._inner.throw(*error)
        self._passed()
        return waits_for

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()

    def _passed(self) -> None:
        if place := where(self._inner):
            self._points.passed(place)


def where(coroutine: Any) -> str:
    """The line of the broker's or an adapter's code that a suspended coroutine waits at, behind the one that
    called it (most waits are inside the store); "": a library's own wait, which serves nobody yet."""
    lines: list[str] = []
    while coroutine is not None:
        prefix = "cr" if hasattr(coroutine, "cr_code") else "gi" if hasattr(coroutine, "gi_code") else "ag"
        code: CodeType | None = getattr(coroutine, f"{prefix}_code", None)
        if code is None:
            break
        frame = getattr(coroutine, f"{prefix}_frame", None)
        if frame is not None and (name := _ours(code)):
            lines.append(f"{name}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "gi_yieldfrom" if prefix == "gi" else f"{prefix}_await", None)
    return " > ".join(lines[-2:])


@functools.cache
def _ours(code: CodeType) -> str:
    if not code.co_filename.startswith(OURS):
        return ""
    return f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_name}"


def install(kill: str, record: Path) -> None:
    """From now on every loop of this process and its store's writer pass points."""
    points = Points(kill, record)

    def factory(loop: Any, coroutine: Any, context: Any = None) -> asyncio.Task[Any]:
        return asyncio.Task(Counted(coroutine, points), loop=loop, context=context)

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            loop = super().new_event_loop()
            loop.set_task_factory(factory)
            return loop

    asyncio.set_event_loop_policy(Policy())
    _count_commits(points)


def _count_commits(points: Points) -> None:
    write, together = Store.write, Store.write_together
    commit: Callable[[DefaultDialect, Any], None] = DefaultDialect.do_commit
    batch: dict[str, None] = {}  # the writes of the transaction that the writer has under way

    def noted_write(store: Store, op: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        name = f"{op.__module__.rpartition('.')[2]}.{op.__qualname__}"

        def noted(tx: Any, *inner: Any, **named: Any) -> Any:
            batch[name] = None
            return op(tx, *inner, **named)

        return write(store, noted, *args, **kwargs)

    @functools.cache  # those that are alike stay so
    def noting(op: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tx: Any, items: Any) -> Any:
            batch[f"{op.__module__.rpartition('.')[2]}.{op.__qualname__}"] = None
            return op(tx, items)

        return noted

    def noted_together(store: Store, op: Callable[..., Any], item: Any) -> Any:
        return together(store, noting(op), item)

    def noted_commit(dialect: DefaultDialect, connection: Any) -> None:
        if threading.current_thread().name != WRITER:
            commit(dialect, connection)
            return
        names = list(batch)
        batch.clear()
        for name in names:
            points.passed(f"before COMMIT of {name}")
        commit(dialect, connection)
        for name in names:
            points.passed(f"after COMMIT of {name}")

    Store.write = noted_write  # type: ignore[method-assign]
    Store.write_together = noted_together  # type: ignore[method-assign, assignment]
    DefaultDialect.do_commit = noted_commit  # type: ignore[method-assign]
