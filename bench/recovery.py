"""How soon a killed daemon is ready again, and what a long queue takes: `python bench/recovery.py`.

What belongs here: the real daemon on a real SQLite file with many live jobs, half of them queued and
half running at a center, started and killed (SIGKILL) again and again.  Time is that from the start of
the process to the first 200 of /readyz, which also needs the first poll of the center.  With `--jobs 1m`:
1,000,000 queued and 100,000 running jobs, and the memory of the daemon after its first rounds.

The center is an emulated service of T/AI 123.8 in this process; it knows every running job.  Jobs are
created over the API, one for each class, and their rows copied.  Memory is what the kernel tells of the
process: VmRSS after the rounds, VmHWM at most.  Exit code 1 when an owed figure is missed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from broker.client import Client
from tests.crowd import number
from tests.daemon_process import DaemonProcess, daemon, eventually
from tests.emulators import tai123
from tests.emulators.tai123 import Job, Service
from tests.soak import in_background
from tests.tai123_center import center_at

OWED_S, AIM_S = 5.0, 2.0
OWED_GIB, AIM_GIB = 1.5, 1.0
ROUNDS = 3
PATIENCE_S = 600

PRIORITIES = ("low", "normal", "high")
RUN_TIMES_S = (60, 600, 3600, 7200, 14_400, 43_200, 86_400, 604_800)
NODES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Size:
    queued: int
    running: int


SIZES = {"100k": Size(50_000, 50_000), "1m": Size(1_000_000, 100_000)}


# ---------------------------------------------------------------- what the daemon has


def nodes_free(alice: Client) -> int:
    return sum(
        int(node["nodeCount"])
        for center in alice.idle()["centerResources"]
        for node in center["nodeResources"]
    )


def templates(alice: Client, service: Service) -> tuple[str, list[str]]:
    """A job that runs, and one that waits for each class: nothing is free any more."""
    spec = eventually("the specs are known", lambda: alice.specs()["resourceSpecs"])[-1]["resourceSpecId"]
    image = eventually("the images are known", lambda: alice.images()["images"])[0]["imageId"]

    def create(name: str, **more: object) -> str:
        config = {"specId": spec, "imageId": image, "command": "train", **more}
        return str(alice.create_job({"jobName": name, "config": config})["metadata"]["id"])

    running = create("running")
    eventually("it runs", lambda: alice.job(running)["status"] == "RUNNING", within_s=PATIENCE_S)
    service.free = [(tai123.resources(4, 8, 2), "0")]
    eventually("nothing is free", lambda: not nodes_free(alice), within_s=PATIENCE_S)
    queued = [
        create(f"class-{at}", priority=priority, estimatedRunTime=run_time, nodeCount=nodes)
        for at, (priority, run_time, nodes) in enumerate(itertools.product(PRIORITIES, RUN_TIMES_S, NODES))
    ]
    return running, queued


def populate(file: Path, service: Service, running: str, queued: Sequence[str], size: Size) -> None:
    """So many jobs, copies of these; the center has every one that runs."""
    with closing(sqlite3.connect(file)) as store, store:
        store.execute("PRAGMA foreign_keys=OFF")
        (remote,) = store.execute("SELECT remote_id FROM run WHERE job_id = ?", (running,)).fetchone()
        own = next(iter(service.jobs))
        assert own in remote, remote
        _copy(store, running, size.running, "r", remote.replace(own, "c-"))
        for at, job in enumerate(queued):
            _copy(store, job, size.queued // len(queued), f"q{at:02}", None)
    for at in range(1, size.running + 1):
        service.jobs[f"c-{at}"] = Job(f"c-{at}", f"copy-{at}", {})


def _copy(store: sqlite3.Connection, job: str, count: int, mark: str, remote: str | None) -> None:
    changed = {
        "job": {
            "request": "replace(request, '\"train\"', '\"train --part ' || n || '\"')",
            "id": f"printf('j-{mark}%0{15 - len(mark)}d', n)",
            "name": f"printf('{mark}-%d', n)",
        },
        "run": {
            "id": f"printf('bk-{mark}%0{10 - len(mark)}d', n)",
            "job_id": f"printf('j-{mark}%0{15 - len(mark)}d', n)",
            "remote_id": "NULL" if remote is None else f"'{remote}' || n",
        },
    }
    for table, key in (("job", "id"), ("run", "job_id")):
        names = [column[1] for column in store.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(changed[table].get(name, f'"{name}"') for name in names)
        store.execute(
            "WITH RECURSIVE copies(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE n < ?)"
            f" INSERT INTO {table} SELECT {values} FROM {table}, copies WHERE {table}.{key} = ?",
            (count, job),
        )


# ---------------------------------------------------------------- what it takes


def seconds_to_ready(broker: DaemonProcess) -> tuple[float, float]:
    """Kill it, start it, and wait: by the wall clock, and of its processor time."""
    broker.kill()
    began = time.perf_counter()
    broker.start()
    took = time.perf_counter() - began
    assert broker.process is not None
    return took, sum(psutil.Process(broker.process.pid).cpu_times()[:2])


def memory_gib(broker: DaemonProcess) -> tuple[float, float]:
    """Now, and the most since its start."""
    assert broker.process is not None
    text = Path(f"/proc/{broker.process.pid}/status").read_text()
    found = {name: int(kib) for name, kib in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.MULTILINE)}
    return found["VmRSS"] / (1 << 20), found["VmHWM"] / (1 << 20)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", choices=SIZES, default="100k")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    size, missed = SIZES[options.jobs], 0
    tai123.CAP = 1000
    with tempfile.TemporaryDirectory() as name, in_background(Service) as service:
        folder = Path(name)
        center = center_at(service.url, "up", quick=False, more="max_in_flight = 100000")
        with daemon(folder, center) as broker:
            running, queued = templates(broker.client("alice"), service)
            broker.stop()
            populate(folder / "broker.db", service, running, queued, size)
            broker.start()
            wall, cpu = zip(*(seconds_to_ready(broker) for _ in range(options.repetitions)), strict=True)
            missed += options.jobs == "100k" and max(wall) > OWED_S
            print(f"{size.queued} queued, {size.running} running jobs; {options.repetitions} times killed")
            print(f"seconds to ready {min(wall):.2f} to {max(wall):.2f};", end=" ")
            print(f"owed {OWED_S:g}, aim {AIM_S:g} at 100k;", end=" ")
            print(f"of the daemon's processor time {min(cpu):.2f} to {max(cpu):.2f}")
            eventually(
                "rounds were made",
                lambda: number(broker, "broker_rounds_total") >= ROUNDS,
                within_s=PATIENCE_S,
            )
            now, most = memory_gib(broker)
            missed += options.jobs == "1m" and now > OWED_GIB
            print(f"GiB after {ROUNDS} rounds {now:.2f}, at most {most:.2f};", end=" ")
            print(f"owed {OWED_GIB:g}, aim {AIM_GIB:g} at 1m")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
