"""What may become of one HTTP call to an emulated platform, by plan or by chance.

What belongs here: the kinds of faults, drawing one per call from a seeded source, and carrying out
those of the transport as a middleware.  What does not: what a platform does; an emulator names its
routes (the operations), reads `request[FAULT]` and carries out the platform's own kinds itself.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aiohttp import web


class Fault(StrEnum):
    """One kind each.  "Done": the action has happened; "not done": it has not, and does not."""

    # of the transport, carried out here
    LOST_REPLY = "lost reply"  # done; the connection closes without an answer
    DROPPED = "dropped connection"  # not done; the connection closes once the request is read
    HTML_500 = "500 with HTML"  # not done
    HTML_502 = "502 with HTML"  # done; a gateway in between did not wait for the answer
    HANG = "hang"  # not done; no answer until the caller gives up
    SLOW_BODY = "slow body"  # done; the body comes in small pieces
    GARBAGE = "garbage"  # done; status 200 and a body that is no JSON
    TRUNCATED = "truncated JSON"  # done; half of the body, in good form as HTTP
    # of the platform, carried out by its emulator
    EXPIRED_SESSION = "expired session"  # not done; the session is no longer valid
    STALE_READ = "stale read"  # a read answers what was true some time ago
    VANISHED_TASK = "vanished task"  # the task asked for does not exist any more, nor runs
    NODE_LOSS = "node loss"  # a node dies under the task asked for
    DUPLICATE_NAME = "duplicate name"  # not done; the name is said to be taken
    STOP_REFUSED = "stop refused"  # not done; as while a task is being created


TRANSPORT: Final = (
    Fault.LOST_REPLY,
    Fault.DROPPED,
    Fault.HTML_500,
    Fault.HTML_502,
    Fault.HANG,
    Fault.SLOW_BODY,
    Fault.GARBAGE,
    Fault.TRUNCATED,
)
FAULT: Final = web.RequestKey("fault", Fault)
"""The fault of a request, for the emulator's handlers; absent when there is none."""

SLOW_PIECES = 5
HTML = "<html><head><title>{0} Error</title></head><body><h1>{0}</h1><p>nginx</p></body></html>"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Occurred:
    """A fault that a call met."""

    operation: str
    fault: Fault


class Faults:
    """The switchboard of one emulator.

    `plan` says what becomes of the next calls of an operation; `chance` lets any call of
    `operations` (all, when empty) meet one of `kinds`, each as likely as the others.  An operation is
    the name of the route; `only` says which operations can meet a kind at all (others: every one).
    The same seed and the same order of calls give the same faults.
    """

    def __init__(
        self, *, seed: int = 0, slow_s: float = 0.5, only: Mapping[Fault, Collection[str]] | None = None
    ) -> None:
        self.occurred: list[Occurred] = []
        self.only = dict(only or {})
        self.slow_s = slow_s  # how long a slow body takes
        self._random = random.Random(seed)
        self._planned: dict[str, deque[Fault | None]] = {}
        self._probability = 0.0
        self._kinds: tuple[Fault, ...] = ()
        self._operations: frozenset[str] = frozenset()

    def plan(self, operation: str, *faults: Fault | None) -> None:
        """One fault for each of the next calls, in order; None: that call meets none."""
        self._planned.setdefault(operation, deque()).extend(faults)

    def chance(self, probability: float, kinds: Collection[Fault], operations: Collection[str] = ()) -> None:
        self._probability = probability
        self._kinds = tuple(kinds)
        self._operations = frozenset(operations)

    def calm(self) -> None:
        """Nothing more goes wrong."""
        self._planned.clear()
        self.chance(0.0, ())

    def draw(self, operation: str) -> Fault | None:
        """What becomes of this call."""
        planned = self._planned.get(operation)
        if planned:
            fault = planned.popleft()
        elif self._operations and operation not in self._operations:
            return None
        else:
            hit = self._random.random() < self._probability
            kinds = [kind for kind in self._kinds if operation in self.only.get(kind, (operation,))]
            fault = self._random.choice(kinds) if hit and kinds else None
        if fault is not None:
            self.occurred.append(Occurred(operation, fault))
        return fault

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the application this one first: `web.Application(middlewares=[faults.middleware])`."""
        name = request.match_info.route.name
        fault = self.draw(name) if name else None
        if fault is None:
            return await handler(request)
        request[FAULT] = fault
        await request.read()
        match fault:
            case Fault.DROPPED:
                return _hang_up(request)
            case Fault.HTML_500:
                return web.Response(status=500, text=HTML.format(500), content_type="text/html")
            case Fault.HANG:
                await _gone(request)
                return _hang_up(request)
        answer = await handler(request)
        assert isinstance(answer, web.Response)
        match fault:
            case Fault.LOST_REPLY:
                return _hang_up(request)
            case Fault.HTML_502:
                return web.Response(status=502, text=HTML.format(502), content_type="text/html")
            case Fault.GARBAGE:
                return web.Response(body=b"\x89\x00}{ no json", content_type="application/json")
            case Fault.TRUNCATED:
                body = _body(answer)
                return web.Response(body=body[: max(1, len(body) // 2)], content_type="application/json")
            case Fault.SLOW_BODY:
                return await self._slowly(request, answer)
        return answer

    async def _slowly(self, request: web.Request, answer: web.Response) -> web.StreamResponse:
        body = _body(answer)
        out = web.StreamResponse(status=answer.status)
        out.content_type = answer.content_type
        await out.prepare(request)
        size = max(1, -(-len(body) // SLOW_PIECES))
        for at in range(0, len(body), size):
            await asyncio.sleep(self.slow_s / SLOW_PIECES)
            await out.write(body[at : at + size])
        await out.write_eof()
        return out


def _body(answer: web.Response) -> bytes:
    assert isinstance(answer.body, bytes)
    return answer.body


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # goes nowhere


async def _gone(request: web.Request) -> None:
    """Wait until the caller has hung up."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # the server tells a handler of it in no other way
