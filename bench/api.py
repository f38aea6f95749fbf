"""How many reads the daemon answers in a second: `python bench/api.py`.

What belongs here: the real daemon on a real SQLite file with 100,000 jobs, and a load generator in a
process of its own beside it, over keep-alive connections.  Two calls are measured: one job by its id,
picked at random, and the newest fifty of a listing.  A job is run once and its rows are copied, so
that every job is as the daemon writes it.

Rates are by the wall clock; `cpu` is what one second of the daemon's processor time would answer,
which does not change when others use the machine.  Exit code 1 when an owed figure is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from tests.daemon_process import DaemonProcess, daemon, eventually, local_center

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True)
class Owed:
    """`p99_ms` is None where none is owed."""

    per_s: int
    aim_per_s: int
    p99_ms: int | None = None


OWED = {"GET /trainjob/{id}": Owed(800, 2000), "GET /trainjob, 50 of 100k": Owed(250, 800, 60)}


@dataclass(frozen=True)
class Figure:
    """Requests a second by the wall clock and by the daemon's processor time; milliseconds."""

    per_s: float
    per_cpu_s: float
    p50_ms: float
    p99_ms: float


# ---------------------------------------------------------------- what the daemon has


def settled(file: Path, job: str) -> bool:
    """The job has ended and its logs are here: else its copies would be work for the daemon."""
    with closing(sqlite3.connect(file)) as store:
        (owing,) = store.execute(
            "SELECT count(*) FROM job JOIN run ON run.job_id = job.id WHERE job.id = ?"
            " AND (job.ended_ms IS NULL OR run.owed_next_ms IS NOT NULL)",
            (job,),
        ).fetchone()
    return not owing


def populate(file: Path, job: str, count: int) -> list[str]:
    """Copy a job and its run so often, with ids and names of their own; the ids of the copies."""
    draw = random.Random(1)
    ids = [f"j-{'0' * 4}{''.join(draw.choices(ALPHABET, k=11))}" for _ in range(count)]
    with sqlite3.connect(file) as store:
        store.execute("PRAGMA foreign_keys=OFF")
        for table, key in (("job", "id"), ("run", "job_id")):
            names = [column[1] for column in store.execute(f"PRAGMA table_info({table})")]
            for row in store.execute(f"SELECT * FROM {table} WHERE {key} = ?", (job,)).fetchall():
                values = dict(zip(names, row, strict=True))
                marks = ",".join("?" * len(names))
                store.executemany(
                    f"INSERT INTO {table} VALUES ({marks})",
                    (
                        tuple(_copied(values, table, copy, at)[name] for name in names)
                        for at, copy in enumerate(ids)
                    ),
                )
    store.close()
    return ids


def _copied(values: dict[str, object], table: str, job: str, at: int) -> dict[str, object]:
    if table == "run":
        return {**values, "id": f"bk-{job[2:]}", "job_id": job, "remote_id": None}
    return {**values, "id": job, "name": f"job-{at}"}


# ---------------------------------------------------------------- load


class Connection(asyncio.Protocol):
    """One keep-alive connection that always has one request on its way, until the end."""

    def __init__(self, request: Callable[[], bytes], end: float, took: list[float]) -> None:
        self._request, self._end, self._took = request, end, took
        self._answer = bytearray()
        self._needed = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._needed and (head := self._answer.find(b"\r\n\r\n")) >= 0:
            assert self._answer.startswith(b"HTTP/1.1 200"), bytes(self._answer[:200])
            length = self._answer[:head].lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            self._needed = head + 4 + int(length)
        if not self._needed or len(self._answer) < self._needed:
            return
        now = time.perf_counter()
        self._took.append(now - self._sent)
        self._answer.clear()
        self._needed = 0
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


async def load(port: int, request: Callable[[], bytes], *, connections: int, seconds: float) -> list[float]:
    """Keep so many requests on their way for so long; how long each took, in seconds."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Connection(request, end, took), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in opened))
    return took


def measured(broker: DaemonProcess, request: Callable[[], bytes], options: argparse.Namespace) -> Figure:
    assert broker.process is not None
    return under_load(broker.port, [broker.process.pid], request, options)


def under_load(
    port: int, pids: Sequence[int], request: Callable[[], bytes], options: argparse.Namespace
) -> Figure:
    """The figures of who answers at a port and are these processes."""
    processes = [psutil.Process(pid) for pid in pids]

    def cpu_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    asyncio.run(load(port, request, connections=options.connections, seconds=1))  # warm
    before, began = cpu_s(), time.perf_counter()
    took = sorted(asyncio.run(load(port, request, connections=options.connections, seconds=options.seconds)))
    wall, cpu = time.perf_counter() - began, cpu_s() - before
    return Figure(
        per_s=len(took) / wall,
        per_cpu_s=len(took) / cpu,
        p50_ms=took[len(took) // 2] * 1000,
        p99_ms=took[len(took) * 99 // 100] * 1000,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with daemon(folder, local_center(folder, "one"), extra="") as broker:
            alice = broker.client("alice")
            spec = alice.specs()["resourceSpecs"][0]["resourceSpecId"]
            config = {"specId": spec, "imageId": "local", "command": "echo done", "labels": {"bench": "api"}}
            job = alice.create_job({"jobName": "first", "config": config})["metadata"]["id"]
            eventually("the job ended and owes nothing", lambda: settled(folder / "broker.db", job))
            broker.stop()
            ids = populate(folder / "broker.db", job, options.jobs)
            broker.start()
            token = alice.login("alice", "correct horse")["token"]
            head = f"HTTP/1.1\r\nHost: b\r\nX-Auth-Token: {token}\r\n\r\n"
            draw = random.Random(2)
            requests: dict[str, Callable[[], bytes]] = {
                "GET /trainjob/{id}": lambda: f"GET /trainjob/{draw.choice(ids)} {head}".encode(),
                "GET /trainjob, 50 of 100k": lambda: f"GET /trainjob?pageSize=50 {head}".encode(),
            }
            figures = {call: measured(broker, request, options) for call, request in requests.items()}
    return told(figures)


def told(figures: dict[str, Figure]) -> int:
    """Print the table; 1 when an owed figure is missed."""
    missed = 0
    print(f"{'call':28}{'per s':>8}{'owed':>7}{'aim':>7}{'cpu':>8}{'p50 ms':>8}{'p99 ms':>8}")
    for call, figure in figures.items():
        owed = OWED[call]
        fast = figure.per_s >= owed.per_s and (owed.p99_ms is None or figure.p99_ms <= owed.p99_ms)
        missed += not fast
        print(
            f"{call:28}{figure.per_s:8.0f}{owed.per_s:7}{owed.aim_per_s:7}{figure.per_cpu_s:8.0f}"
            f"{figure.p50_ms:8.1f}{figure.p99_ms:8.1f}  {'ok' if fast else 'missed'}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
