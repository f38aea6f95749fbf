"""Whose request is worked on: accounts take turns, so that the burst of one is not the wait of others.

What belongs here: how many requests of one account are worked on at once, how many more wait, and how
many carry data for long.  What does not: how often anybody may ask (limits.py), and how many connections
there are (listener.py).

Until its turn a request holds no thread, no transaction and no body: aiohttp stops reading the body when
some tens of KiB wait.  Who has no account is counted by address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.api.context import CALLER
from broker.api.errors import RETRY_AFTER_S, TooMany
from broker.api.limits import HEALTH, LIMITS
from broker.config import LimitSettings


@dataclass(slots=True)
class _Line:
    """Requests of one account: those that have a free turn go on, the others wait in their order."""

    free: asyncio.Semaphore
    inside: int = 0  # those that wait, too


class Turns:
    """Of one application."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._lines: dict[str, _Line] = {}
        self._transfers: Counter[str] = Counter()

    async def begin(self, who: str) -> Turn:
        """Wait for a turn.  Raises TooMany when too many wait already."""
        at_once, most = self._settings.requests_at_once, self._settings.requests_waiting
        line = self._lines.get(who)
        if line is None:
            line = self._lines[who] = _Line(asyncio.Semaphore(at_once))
        if line.inside >= at_once + most:
            raise TooMany(
                RETRY_AFTER_S,
                f"{most} requests of one account wait for their turn (limits.requests_waiting)",
            )
        line.inside += 1
        try:
            await line.free.acquire()
        except BaseException:
            self._left(who, line)
            raise
        return Turn(self, who)

    def end(self, who: str) -> None:
        line = self._lines[who]
        line.free.release()
        self._left(who, line)

    def _left(self, who: str, line: _Line) -> None:
        line.inside -= 1
        if not line.inside:
            del self._lines[who]

    def begin_transfer(self, who: str) -> None:
        """Raises TooMany."""
        most = self._settings.transfers
        if self._transfers[who] >= most:
            raise TooMany(
                RETRY_AFTER_S, f"{most} uploads, downloads and open logs of one account (limits.transfers)"
            )
        self._transfers[who] += 1

    def end_transfer(self, who: str) -> None:
        self._transfers[who] -= 1
        if not self._transfers[who]:
            del self._transfers[who]


class Turn:
    """One request's: being worked on, then perhaps a transfer, which takes nobody's turn."""

    __slots__ = ("_has_turn", "_is_transfer", "_turns", "_who")

    def __init__(self, turns: Turns, who: str) -> None:
        self._turns, self._who = turns, who
        self._has_turn, self._is_transfer = True, False

    def give_up(self) -> None:
        """It goes on for long, and is counted elsewhere."""
        if self._has_turn:
            self._has_turn = False
            self._turns.end(self._who)

    def transfer(self) -> None:
        """From here on it carries data for as long as its client takes.  Raises TooMany."""
        if self._has_turn:
            self._turns.begin_transfer(self._who)
            self._is_transfer = True
            self.give_up()

    def end(self) -> None:
        self.give_up()
        if self._is_transfer:
            self._turns.end_transfer(self._who)


TURNS = web.AppKey("turns", Turns)
TURN = web.RequestKey("turn", Turn)


@web.middleware
async def take_turns(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path in HEALTH:
        return await handler(request)
    caller = request.get(CALLER)
    who = caller.id if caller is not None else request.app[LIMITS].address(request)
    turn = await request.app[TURNS].begin(who)
    request[TURN] = turn
    try:
        if request.transport is None:
            raise ConnectionResetError("the client left before its turn")
        return await handler(request)
    finally:
        turn.end()
