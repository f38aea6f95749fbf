"""An HTTP server of bare sockets, for what a real server would never do.

What belongs here: reading requests, counting them and the connections they came by, and answering
with whatever bytes a test says.  What does not: tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arrived:
    """One request as it came; `connection` numbers the connections from 1."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Stalled(bytes):
    """The beginning of an answer, after which nothing comes."""


Answer = bytes | None
"""The whole answer; None: the connection is closed without one."""


def answer(
    body: bytes | str,
    *,
    status: int = 200,
    kind: str | None = "application/json",
    headers: Mapping[str, str] | None = None,
    cut: int = 0,
) -> bytes:
    """An HTTP answer; `cut` bytes of its body are announced and not sent."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}"]
    lines += [f"Content-Type: {kind}"] if kind is not None else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + content[: len(content) - cut]


def document(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    return answer(json.dumps(value), status=status, headers=headers)


@dataclass
class RawServer:
    """`answers` decides by request; every request is kept in order."""

    url: str
    answers: Callable[[Arrived], Answer | Awaitable[Answer]]
    requests: list[Arrived] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while (request := await _read(reader, number)) is not None:
                self.requests.append(request)
                reply = self.answers(request)
                if isinstance(reply, Awaitable):
                    reply = await reply
                if reply is None:
                    return
                writer.write(reply)
                await writer.drain()
                if isinstance(reply, Stalled):
                    await asyncio.Event().wait()
                announced = int(reply.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
                if len(reply.partition(b"\r\n\r\n")[2]) < announced:
                    return
        except ConnectionError:
            pass  # the client did not wait
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, connection: int) -> Arrived | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (h.partition(":") for h in head[1:] if h)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Arrived(method, path, headers, body, connection)


@asynccontextmanager
async def raw_server(
    answers: Callable[[Arrived], Answer | Awaitable[Answer]],
) -> AsyncIterator[RawServer]:
    server = RawServer("", answers)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()
