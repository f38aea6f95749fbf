"""PostgreSQL's LISTEN and NOTIFY: what one process commits wakes the loops and streams of the others.

What belongs here: the channel, and the connection that listens to it, which is never one of a pool: a
pool hands its connections on.  What does not: what a wake-up leads to.  A notice that is lost costs
latency alone, because whoever waits looks by itself from time to time, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection

from broker.telemetry import log

CHANNEL = "broker_wakes"
NOTIFY = f"pg_notify('{CHANNEL}', {{}})"
"""What sends a notice, its text to be filled in, with the transaction's commit."""

RETRY_S = (0.5, 10.0)
"""The first and the longest pause before a lost connection is made again."""

LONGEST = 4000
"""Characters of names in one notice; PostgreSQL takes 8000 bytes."""

CONNECT_S = 10
"""How long a connection to PostgreSQL may take."""

KEEPALIVE: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""A connection whose other end has gone without a word is given up after 25 s."""


def notify(connection: Connection, texts: Iterable[str]) -> None:
    """Send notices with this transaction's commit."""
    for text in texts:
        connection.exec_driver_sql(f"SELECT {NOTIFY.format('%s')}", (text,))


class Notices:
    """Those of one store: what it commits wakes its own loops without the way round."""

    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's, with the driver."""
        self._address = url.replace("postgresql+psycopg://", "postgresql://", 1)
        self._origin = uuid4().hex

    def texts(self, names: Collection[str]) -> list[str]:
        """Of the notices that tell the other processes whom to wake."""
        told: list[list[str]] = []
        for name in sorted(names):
            if not told or sum(map(len, told[-1])) + len(told[-1]) + len(name) > LONGEST:
                told.append([])
            told[-1].append(name)
        return ["\n".join([self._origin, *each]) for each in told]

    async def listen(self, woken: Callable[[Collection[str] | None], None]) -> None:
        """Call `woken` with the names in each notice of another store, and with None when notices may
        have been missed; until it is cancelled."""
        import psycopg  # an extra: only who has PostgreSQL needs it

        pause_s = RETRY_S[0]
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._address, autocommit=True, connect_timeout=CONNECT_S, **KEEPALIVE
                )
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    pause_s = RETRY_S[0]
                    woken(None)
                    await self._hear(connection.pgconn, woken)
            except psycopg.Error as error:
                log.warning("notices_interrupted", error=str(error).strip(), retry_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S[1])

    async def _hear(self, server: Any, woken: Callable[[Collection[str]], None]) -> None:
        """Until the connection, psycopg's PGconn, is lost: raises psycopg.OperationalError.

        The driver's own `notifies` arranges each wait with the event loop anew, which costs more than all
        the rest of a notice, and each commit of a busy store sends one.
        """
        loop = asyncio.get_running_loop()
        lost = loop.create_future()

        def read() -> None:
            try:
                server.consume_input()
            except Exception as error:  # and again, until who awaits it has stopped the reading
                if not lost.done():
                    lost.set_exception(error)
                return
            while (notice := server.notifies()) is not None:
                origin, *names = notice.extra.decode().split("\n")
                if origin != self._origin:
                    woken(names)

        file = server.socket  # gone once the connection is closed
        loop.add_reader(file, read)
        try:
            await lost
        finally:
            loop.remove_reader(file)
