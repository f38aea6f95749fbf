"""Crowds of clients for a daemon: bursts of creates, idle event streams, bad tokens.

What belongs here: what a crowd does and what it was answered, and what a process takes meanwhile.  What
does not: how large a crowd is, and what it may cost (tests/test_overload.py, bench/overload.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from broker.client import Client
from tests.daemon_process import PASSWORD, DaemonProcess

PATIENCE_S = 300


@asynccontextmanager
async def session(broker: DaemonProcess, token: str = "") -> AsyncIterator[aiohttp.ClientSession]:
    """A client with as many connections as it has requests."""
    headers = {"X-Auth-Token": token} if token else {}
    async with aiohttp.ClientSession(
        broker.url,
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
    ) as client:
        yield client


def token_of(broker: DaemonProcess, name: str) -> str:
    return str(Client(broker.url).login(name, PASSWORD)["token"])


def resident_kib(broker: DaemonProcess) -> int:
    """Memory of the daemon, KiB."""
    assert broker.process is not None
    text = Path(f"/proc/{broker.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def number(broker: DaemonProcess, name: str) -> float:
    """A figure of /metrics; the sum where it has labels."""
    text = broker.get("/metrics")[1]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


# ---------------------------------------------------------------- creates


@dataclass
class Burst:
    """What one account was answered: `made` are names and ids, `refused` names and the whole answers,
    `closed` names whose connection was closed without one."""

    made: dict[str, str] = field(default_factory=dict)
    refused: dict[str, tuple[int, str | None, Any]] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)


async def create_at_once(broker: DaemonProcess, token: str, names: Sequence[str], spec: str) -> Burst:
    """A create of each name, all at the same time, each on a connection of its own."""
    burst = Burst()

    async def one(client: aiohttp.ClientSession, name: str) -> None:
        config = {"specId": spec, "imageId": "local", "command": "true"}
        try:
            async with client.post("/trainjob", json={"jobName": name, "config": config}) as answer:
                body = await answer.json()
        except aiohttp.ClientError:
            burst.closed.append(name)
            return
        if answer.status == 200:
            burst.made[name] = body["metadata"]["id"]
        else:
            burst.refused[name] = answer.status, answer.headers.get("Retry-After"), body

    async with session(broker, token) as client:
        await asyncio.gather(*(one(client, name) for name in names))
    return burst


async def create_all_at_once(
    broker: DaemonProcess, tokens: Mapping[str, str], each: int, spec: str
) -> dict[str, Burst]:
    """So many creates of every account at the same time.  `tokens` are by name, as is what comes back."""
    bursts = await asyncio.gather(
        *(
            create_at_once(broker, token, [f"{name}-{at}" for at in range(each)], spec)
            for name, token in tokens.items()
        )
    )
    return dict(zip(tokens, bursts, strict=True))


async def listed(broker: DaemonProcess, token: str) -> Counter[tuple[str, str]]:
    """How often each (name, id) is in the list of one's jobs."""
    found: Counter[tuple[str, str]] = Counter()
    async with session(broker, token) as client:
        for page in range(1, 1000):
            async with client.get(f"/trainjob?page={page}&pageSize=500") as answer:
                jobs = (await answer.json())["items"]
            found.update((job["metadata"]["name"], job["metadata"]["id"]) for job in jobs)
            if len(jobs) < 500:
                return found
    raise AssertionError("the list has no end")


# ---------------------------------------------------------------- somebody else


@dataclass
class Visitor:
    """One account's GETs, one after the other, until it is told to end.  Seconds."""

    path: str
    took: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    most_kib: int = 0

    async def visit(self, broker: DaemonProcess, token: str, end: asyncio.Event) -> None:
        async with session(broker, token) as client:
            while not end.is_set():
                began = time.perf_counter()
                async with client.get(self.path) as answer:
                    await answer.read()
                self.took.append(time.perf_counter() - began)
                self.statuses[answer.status] += 1
                self.most_kib = max(self.most_kib, resident_kib(broker))
                with suppress(TimeoutError):
                    await asyncio.wait_for(end.wait(), 0.02)

    def ms(self, share: float) -> float:
        return sorted(self.took)[int((len(self.took) - 1) * share)] * 1000


@asynccontextmanager
async def visiting(broker: DaemonProcess, token: str, path: str) -> AsyncIterator[Visitor]:
    visitor, end = Visitor(path), asyncio.Event()
    task = asyncio.create_task(visitor.visit(broker, token, end))
    try:
        yield visitor
    finally:
        end.set()
        await task


# ---------------------------------------------------------------- streams


@dataclass
class Listening:
    """An open event stream and the lines that came."""

    token: str
    status: int = 0
    lines: list[str] = field(default_factory=list)
    ended: bool = False

    def kinds(self) -> list[str]:
        return re.findall(r'"kind": "([^"]+)"', "\n".join(self.lines))

    @property
    def last(self) -> str:
        """The kind of the event that ended it."""
        found = [line.removeprefix("event: ") for line in self.lines if line.startswith("event: ")]
        return found[-1] if found else ""


@asynccontextmanager
async def streams(
    broker: DaemonProcess, tokens: Sequence[str], *, each: int
) -> AsyncIterator[list[Listening]]:
    """So many event streams of every token, all answered."""
    opened: list[Listening] = []
    tasks: list[asyncio.Task[None]] = []

    async def read(listening: Listening, answered: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        head = f"GET /broker/v1/events HTTP/1.1\r\nHost: b\r\nX-Auth-Token: {listening.token}\r\n\r\n"
        writer.write(head.encode())
        try:
            listening.status = int((await reader.readline()).split()[1])
            answered.set()
            while line := await reader.readline():
                listening.lines.append(line.decode().rstrip("\r\n"))
            listening.ended = True
        finally:
            writer.close()

    answers = []
    for token in tokens:
        for _ in range(each):
            answers.append(asyncio.Event())
            opened.append(Listening(token))
            tasks.append(asyncio.create_task(read(opened[-1], answers[-1])))
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(answered.wait() for answered in answers))
    try:
        yield opened
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------- bad tokens


async def guess_tokens(broker: DaemonProcess, count: int, *, at_once: int) -> Counter[int]:
    """Statuses of so many requests, each with another token that is none."""
    statuses: Counter[int] = Counter()
    numbers = iter(range(count))

    async def guesser(client: aiohttp.ClientSession) -> None:
        for each in numbers:
            headers = {"X-Auth-Token": f"no-token-{each}"}
            async with client.get("/broker/v1/me", headers=headers) as answer:
                await answer.read()
            statuses[answer.status] += 1

    async with session(broker) as client:
        await asyncio.gather(*(guesser(client) for _ in range(at_once)))
    return statuses
