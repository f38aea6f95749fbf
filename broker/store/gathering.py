"""Writes on the loop's side: gathered until the writer takes them, and with those that are about to come.

What belongs here: when what is asked for is handed to the writer.  What does not: transactions (writer.py).

A transaction costs about as much for one write as for ten.  Who waited for one often asks again as soon as
it is answered, so where many wait at a time, the next transaction begins when as many have asked again, or
a moment later: else two crowds take turns for ever, and each pays for a transaction of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker.store.writer import StoreUnavailable, Write

FEW = 4
"""So many wait for nobody."""

LONGEST_S = 0.02
"""Nobody is waited for longer, nor longer than the last transaction took."""


class Gathering:
    """Of one writer: `submit` hands it a write, or raises StoreUnavailable."""

    def __init__(self, submit: Callable[[Write], None], loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._submit = submit
        self._asked: list[Write] = []
        self._under_way = 0
        self._handed, self._handed_s = 0, 0.0
        self._crowd, self._until_s = 0, 0.0
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._asked)

    def ask(self, write: Write) -> None:
        self._asked.append(write)
        self._arrange()

    def answered(self, count: int) -> None:
        """So many of the writes have been committed, or refused."""
        self._under_way -= count
        if self._under_way:
            return
        now = self._loop.time()
        crowd = self._handed + len(self._asked)
        self._crowd = crowd if crowd > FEW else 0
        self._until_s = now + min(now - self._handed_s, LONGEST_S)
        self._arrange()

    def _arrange(self) -> None:
        if self._under_way or self._soon or not self._asked:
            return
        if len(self._asked) >= self._crowd or self._loop.time() >= self._until_s:
            self._soon = True
            self._loop.call_soon(self.hand_over)  # with those who are ready to ask in this turn, too
        elif self._timer is None:
            self._timer = self._loop.call_at(self._until_s, self.hand_over)

    def hand_over(self) -> None:
        """All that wait, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._soon = False
        if not self._asked:
            return
        asked, self._asked = self._asked, []
        self._handed, self._handed_s = 0, self._loop.time()
        for write in asked:
            try:
                self._submit(write)
            except StoreUnavailable as error:
                if not write.waiting.done():
                    write.waiting.set_exception(error)
            else:
                self._handed += 1
        self._under_way += self._handed
