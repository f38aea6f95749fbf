"""How many jobs the daemon takes in a second: `python bench/creates.py`.

What belongs here: the real daemon on a real SQLite file (WAL, synchronous=FULL) and on a real PostgreSQL
server (fsync and synchronous_commit on), and a load generator in a process of its own beside it: 16
keep-alive connections, each with one `POST /trainjob` on its way.  A create is answered when it is on the
disk.  Writes that wait are committed together, so beside the rate stand the commits of the writer and what
a plain loop of fsync reaches on the same disk.

With `--slurmrestd` the same load goes to a real slurmrestd and slurmctld in the same run, as held jobs: these
are kept in memory, and written now and then.

The jobs name no center that is free: the center is drained and polled as seldom as by default, so that
creates are measured, and the rounds that look at what came.
Exit code 1 when an owed figure is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import http.client

from bench.api import Figure, measured, under_load
from bench.slurm import SUBMIT, NoSlurm, slurmrestd
from tests import databases, postgres
from tests.daemon_process import DaemonProcess, daemon, local_center

OWED_PER_S, AIM_PER_S = 1000, 2500
FSYNC_S = 2.0


def fsyncs_per_s(folder: Path) -> float:
    """A page appended and forced to the disk, one after another."""
    count, page = 0, os.urandom(4096)
    with (folder / "fsync").open("wb", buffering=0) as file:
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < FSYNC_S:
            file.write(page)
            os.fsync(file.fileno())
            count += 1
    return count / took


def commits(broker: DaemonProcess) -> int:
    """How many transactions the writer has committed."""
    with closing(http.client.HTTPConnection("127.0.0.1", broker.port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found = re.search(r"^broker_store_commits_total (\S+)$", text, re.MULTILINE)
    assert found is not None, "the daemon tells no commits"
    return int(float(found[1]))


def bodies(spec: str) -> Iterator[bytes]:
    """Create requests, each with a name of its own."""
    config = {"specId": spec, "imageId": "local", "command": "echo done", "labels": {"bench": "creates"}}
    for number in itertools.count():
        yield json.dumps({"jobName": f"job-{number}", "config": config}).encode()


def timed(kind: str, options: argparse.Namespace) -> bool:
    """Print the figures of one kind of database; whether what is owed is reached."""
    databases.CURRENT.begin(kind)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            plain = fsyncs_per_s(folder)
            limits = "[limits]\nrequests_per_s = 1000000\nrequest_burst = 1000000"
            center = local_center(folder, "one", poll_interval_s=15, more='state = "drain"')
            with daemon(folder, center, extra=limits) as broker:
                return told(kind, *measure(broker, options), plain)
    finally:
        databases.CURRENT.end()


def measure(broker: DaemonProcess, options: argparse.Namespace) -> tuple[Figure, float]:
    """How fast creates are answered, and how many of them are in a commit."""
    alice = broker.client("alice")
    spec = alice.specs()["resourceSpecs"][0]["resourceSpecId"]
    token = alice.login("alice", "correct horse")["token"]
    drawn = bodies(spec)

    def request() -> bytes:
        body = next(drawn)
        head = f"POST /trainjob HTTP/1.1\r\nHost: b\r\nX-Auth-Token: {token}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    before = commits(broker)
    figure = measured(broker, request, options)
    return figure, next_number(drawn) / max(commits(broker) - before, 1)


def beside(options: argparse.Namespace) -> None:
    """Print the figures of slurmrestd.  Raises NoSlurm."""
    job = {"name": "bench", "hold": True, "current_working_directory": "/tmp"}
    job |= {"environment": {"PATH": "/bin:/usr/bin"}, "standard_output": "/dev/null"}
    body = json.dumps({"script": "#!/bin/sh\necho done\n", "job": job})
    with tempfile.TemporaryDirectory() as name, slurmrestd(Path(name)) as slurm:
        head = f"POST {SUBMIT} HTTP/1.1\r\nHost: s\r\nConnection: keep-alive\r\n{slurm.headers}"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = (head + body).encode()
        figure = under_load(slurm.port, slurm.pids, lambda: request, options)
    print(
        f"{'slurmrestd':16}{figure.per_s:8.0f}{'':14}{figure.per_cpu_s:8.0f}"
        f"{figure.p50_ms:8.1f}{figure.p99_ms:8.1f}",
        flush=True,
    )


def next_number(drawn: Iterator[bytes]) -> int:
    """How many bodies have been drawn."""
    return int(json.loads(next(drawn))["jobName"].removeprefix("job-"))


def told(kind: str, figure: Figure, batch: float, plain: float) -> bool:
    fast = figure.per_s >= OWED_PER_S
    print(
        f"{kind:16}{figure.per_s:8.0f}{OWED_PER_S:7}{AIM_PER_S:7}{figure.per_cpu_s:8.0f}"
        f"{figure.p50_ms:8.1f}{figure.p99_ms:8.1f}{batch:10.1f}{figure.per_s / batch:11.0f}{plain:10.0f}"
        f"  {'ok' if fast else 'missed'}",
        flush=True,
    )
    return fast


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=databases.KINDS, help="one of them; without it each")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--slurmrestd", action="store_true", help="also a real slurmrestd, as root")
    options = parser.parse_args()
    postgres.SETTINGS.update(postgres.DURABLE)
    print(
        f"{'POST /trainjob':16}{'per s':>8}{'owed':>7}{'aim':>7}{'cpu':>8}{'p50 ms':>8}{'p99 ms':>8}"
        f"{'a commit':>10}{'commits/s':>11}{'fsyncs/s':>10}",
        flush=True,
    )
    kinds = [options.database] if options.database else databases.KINDS
    reached = [timed(kind, options) for kind in kinds]
    if options.slurmrestd:
        try:
            beside(options)
        except NoSlurm as error:
            print(f"slurmrestd: {error}", file=sys.stderr)
            return 2
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
