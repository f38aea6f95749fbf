"""Events as they happen, to whoever may see them: server-sent events with `Last-Event-ID`.

One reader (Feed) takes new events from the store for all streams of this process and hands each to the
streams whose caller may see it.  A stream first sends what the client missed, from the store, then what
it is handed.  Its buffer is bounded: a client that reads too slowly is told so in a last event and comes
back with the number of the last one it has.  Nothing is lost but what the retention has taken.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from broker.api.audit import shown_event
from broker.api.auth import GATE, request_token
from broker.api.context import CALLER, CONTEXT, STOPPING
from broker.api.errors import ApiError, Overloaded, TooMany, shown
from broker.api.limits import LIMITS
from broker.api.reading import no_query
from broker.api.routes import Media, Route
from broker.api.streaming import open_stream
from broker.api.turns import TURN
from broker.config import LimitSettings
from broker.store import Store, audit
from broker.store.accounts import Caller
from broker.store.audit import EventView, Sight
from broker.store.journal import EVENTS
from broker.store.writer import StoreUnavailable
from broker.telemetry import log

BUFFER = 10_000
"""Events that wait for one client; streams share them."""

PAGE = 500
POLL_S = 1.0
"""Events of other processes show this late; those of this one wake the feed."""

PAUSE_S = 0.05
"""Between two reads of the feed: a busy store is read in pages, not row by row."""

KEEP_ALIVE_S = 15.0
"""A comment goes out this often, and the caller's token is looked at again."""

RETRY_MS = 3000
STREAM_RETRY_S = 30

_ID = re.compile(r"[0-9]{1,18}", re.ASCII)


class Stream:
    """What waits for one client.  `position`: what was before it is not handed to the stream.
    `overflowed`: more came than the buffer holds."""

    def __init__(self, caller: Caller, position: int) -> None:
        self.caller = caller
        self.position = position
        self.waiting: deque[EventView] = deque()
        self.overflowed = False
        self.changed = asyncio.Event()

    def offer(self, event: EventView) -> None:
        """An event that the caller may see."""
        if self.overflowed:
            return
        if len(self.waiting) >= BUFFER:
            self.overflowed = True
        else:
            self.waiting.append(event)
        self.changed.set()

    def restart(self, position: int) -> None:
        """Everything up to `position` will be read from the store instead."""
        self.waiting.clear()
        self.overflowed = False
        self.position = position


class Feed:
    """Reads events once for all streams, while there are any.

    `position` is the number of the last event that was handed out.  Handing out never awaits, so a
    stream that is opened in between has either all or nothing of a page before it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._streams: set[Stream] = set()
        self._seeing: dict[Sight, set[Stream]] = {}
        self._of_account: Counter[str] = Counter()
        self._starting = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self.position = 0

    @asynccontextmanager
    async def stream(self, caller: Caller, limits: LimitSettings) -> AsyncIterator[Stream]:
        """A stream from now on.  Raises TooMany, Overloaded."""
        most = limits.event_streams
        if self._of_account[caller.id] >= most:
            detail = f"more than {most} event streams of one account (limits.event_streams)"
            raise TooMany(STREAM_RETRY_S, detail)
        if (total := self._of_account.total()) >= limits.all_event_streams:
            raise Overloaded(f"{total} event streams are open (limits.all_event_streams)")
        self._of_account[caller.id] += 1
        stream: Stream | None = None
        try:
            async with self._starting:
                if self._reader is None:
                    self.position = await self._store.read(audit.newest)
                    self._reader = asyncio.create_task(self._read())
            stream = Stream(caller, self.position)
            self._streams.add(stream)
            self._seeing.setdefault(audit.sight(caller), set()).add(stream)
            yield stream
        finally:
            if stream is not None:
                self._streams.discard(stream)
                self._leave(stream)
            self._of_account[caller.id] -= 1
            if not self._of_account[caller.id]:
                del self._of_account[caller.id]
            if not self._streams and self._reader is not None:
                self._reader.cancel()
                self._reader = None

    async def _read(self) -> None:
        wake = self._store.wakeup(EVENTS)
        while True:
            wake.clear()
            try:
                newest = await self._store.read(audit.newest)
                while self.position < newest:
                    page = await self._store.read(audit.events_after, self.position, upto=newest, limit=PAGE)
                    self._hand_out(page, newest if len(page) < PAGE else page[-1].seq)
            except StoreUnavailable as error:
                log.error("events.unavailable", error=str(error))
            await asyncio.sleep(PAUSE_S)
            try:
                await asyncio.wait_for(wake.wait(), POLL_S)
            except TimeoutError:
                continue

    def _hand_out(self, page: Sequence[EventView], upto: int) -> None:
        for event in page:
            for seeing in audit.seen_in(event):
                for stream in self._seeing.get(seeing, ()):
                    stream.offer(event)
        self.position = upto

    def _leave(self, stream: Stream) -> None:
        seeing = audit.sight(stream.caller)
        self._seeing[seeing].discard(stream)
        if not self._seeing[seeing]:
            del self._seeing[seeing]


FEED = web.AppKey("feed", Feed)


# ---------------------------------------------------------------- one client


async def follow(request: web.Request) -> web.StreamResponse:
    """GET /broker/v1/events"""
    no_query(request)
    context, feed = request.app[CONTEXT], request.app[FEED]
    after = _last_event_id(request)
    if after is not None and after > (newest := await context.store.read(audit.newest)):
        told = f"{after} is newer than the newest event, {newest}; begin anew without it"
        raise ApiError("0202", f"Last-Event-ID: {told}")
    async with feed.stream(request[CALLER], request.app[LIMITS].settings) as stream:
        request[TURN].give_up()
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
        response = await open_stream(request, headers)
        client = _Client(request, response, stream, stream.position if after is None else after)
        await client.send(f"retry: {RETRY_MS}\n\n")
        await client.serve()
        await response.write_eof()
    return response


def _last_event_id(request: web.Request) -> int | None:
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return None
    if not _ID.fullmatch(text):
        told = f"must be the number of an event, not {shown(text)}"
        raise ApiError("0202", f"Last-Event-ID: {told}")
    return int(text)


class _Client:
    """The other end of one stream; `sent` is the number of the last event that it has or need not have."""

    def __init__(self, request: web.Request, response: web.StreamResponse, stream: Stream, sent: int) -> None:
        self._request = request
        self._response = response
        self._stream = stream
        self._context = request.app[CONTEXT]
        self._stopping = request.app[STOPPING]
        self._sent = sent

    async def send(self, text: str) -> None:
        """Raises ConnectionError when the client has gone, or takes nothing any more."""
        try:
            async with asyncio.timeout(self._context.limits.stalled_s):
                await self._response.write(text.encode())
        except TimeoutError:
            raise ConnectionResetError("the client reads nothing") from None

    async def serve(self) -> None:
        """Until the client goes, reads too slowly, may no longer see, or the server shuts down."""
        stream, loop = self._stream, asyncio.get_running_loop()
        await self._catch_up()
        check_at = loop.time() + KEEP_ALIVE_S
        while not self._stopping.is_set():
            if stream.overflowed:
                await self._end("dropped", f"more than {BUFFER} events waited: read faster")
                return
            if loop.time() >= check_at:
                check_at = loop.time() + KEEP_ALIVE_S
                await self.send(": \n\n")
                if not await self._may_still():
                    await self._end("end", "the token has ended or the account has changed")
                    return
            elif stream.waiting:
                await self._send_event(stream.waiting.popleft())
            else:
                await self._changed(check_at - loop.time())
        await self._end("end", "the broker shuts down")

    async def _catch_up(self) -> None:
        """What the client missed, from the store.  What comes meanwhile waits in the buffer; when that
        is too small, the store has it too."""
        stream, store = self._stream, self._context.store
        while self._sent < stream.position and not self._stopping.is_set():
            page = await store.read(audit.events_after, self._sent, upto=stream.position, limit=PAGE)
            for event in page:
                if audit.may_see(stream.caller, event):
                    await self._send_event(event)
            self._sent = page[-1].seq if len(page) == PAGE else stream.position
            if stream.overflowed:
                stream.restart(self._request.app[FEED].position)

    async def _changed(self, within_s: float) -> None:
        """Wait for something to send, or for the shutdown."""
        # No await between this and the look at what waits: nothing can be missed.
        self._stream.changed.clear()
        waits = [
            asyncio.ensure_future(self._stream.changed.wait()),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _may_still(self) -> bool:
        """Whether the token still gives the caller that the stream was opened for."""
        session = await self._request.app[GATE].find(request_token(self._request))
        if session is None or session.frozen or session.ended(self._context.clock()):
            return False
        return session.caller == self._request[CALLER]

    async def _send_event(self, event: EventView) -> None:
        if event.seq <= self._sent:
            return  # the client has it from another process
        document = shown_event(event, self._context.timezone)
        await self.send(f"id: {event.seq}\n{_data(document)}")
        self._sent = event.seq

    async def _end(self, kind: str, reason: str) -> None:
        await self.send(f"event: {kind}\n{_data({'reason': reason, 'lastEventId': self._sent})}")


def _data(document: dict[str, Any]) -> str:
    """One event's document; its JSON is one line."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/events",
        follow,
        "What happens, as it does: server-sent events of what one may see",
        "事件流（SSE）：本人可见范围内的实时事件",
        answer=Media(
            ("text/event-stream",), "Events, each with a JSON document.", "事件，各含一个 JSON 文档。"
        ),
        headers={"Last-Event-ID": ("The last event one has.", "已收到的最后一个事件编号。")},
    ),
)
