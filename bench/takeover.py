"""Whether a killed leader is followed in time, with nothing lost and nothing run twice:
`python bench/takeover.py`.

What belongs here: three real daemons on a real PostgreSQL and a local center, jobs that come all the
time, and leaders that are killed at moments drawn by a seed; one in `--stop-every` is stopped (SIGSTOP)
for longer than its lease and goes on afterwards.  Each job writes down that it began and that it ended:
that is the ground truth.  Exit code 1 when a job was lost or doubled, or a take-over was owed sooner.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.client import Client, RequestFailed, Unreachable
from tests.daemon_process import PASSWORD, DaemonProcess, eventually, local_center
from tests.databases import CURRENT

OWED_S = 5.0
PATIENCE_S = 600
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Load:
    """Creates jobs at whichever daemon answers.  One whose answer was cut off is asked for again with its
    key, so that it is known to exist once."""

    def __init__(self, daemons: list[DaemonProcess], token: str, marks: Path, *, pause_s: float) -> None:
        self._daemons = daemons
        self._token = token
        self._marks = marks
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.jobs: list[str] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._pause_s):
            number += 1
            name = f"job-{number}"
            command = f"echo began {name} >> {self._marks}; sleep 0.2; echo ended {name} >> {self._marks}"
            for attempt in range(10_000):
                daemon = self._daemons[(number + attempt) % len(self._daemons)]
                try:
                    self.jobs.append(self._create(Client(daemon.url, self._token), name, command))
                    break
                except (RequestFailed, Unreachable, OSError):
                    time.sleep(0.05)

    def _create(self, client: Client, name: str, command: str) -> str:
        specs = client.specs()["resourceSpecs"]
        spec = next(str(each["resourceSpecId"]) for each in specs if each["cpu"]["cores"] == 1)
        body = {"jobName": name, "config": {"specId": spec, "imageId": "local", "command": command}}
        return str(client.create_job(body, key=name)["metadata"]["id"])


def leads(daemon: DaemonProcess) -> bool:
    told = daemon.get("/readyz")[1]
    return isinstance(told, dict) and bool(told.get("leads"))


def take_over(daemons: list[DaemonProcess], draw: random.Random, *, stop: bool) -> float:
    """Kill or stop the leader; the seconds until another leads."""
    first = eventually("somebody leads", lambda: next(filter(leads, daemons), None), within_s=PATIENCE_S)
    time.sleep(draw.uniform(0, 1))
    assert first.process is not None
    others = [each for each in daemons if each is not first]
    began = time.monotonic()
    first.process.send_signal(signal.SIGSTOP if stop else signal.SIGKILL)
    eventually("another leads", lambda: any(map(leads, others)), within_s=PATIENCE_S)
    took_s = time.monotonic() - began
    if stop:
        time.sleep(draw.uniform(0, 2))
        first.process.send_signal(signal.SIGCONT)
        eventually("it stands by", lambda: first.get("/readyz")[0] == 200 and not leads(first))
    else:
        first.process.wait()
        first.start()
    return took_s


def verdict(client: Client, jobs: list[str], marks: Path) -> tuple[list[str], list[str]]:
    """Jobs that did not run to their end, and jobs that ran more than once."""

    def all_ended() -> bool:
        return all(client.job(job)["status"] in ENDED for job in jobs)

    eventually("all jobs end", all_ended, within_s=PATIENCE_S)
    lines = Counter(marks.read_text().splitlines())
    lost, doubled = [], []
    for job in jobs:
        found = client.job(job)
        name = found["name"]
        if found["status"] != "SUCCEEDED" or not lines[f"ended {name}"]:
            lost.append(f"{job} {name} {found['status']}")
        if lines[f"began {name}"] > 1 or lines[f"ended {name}"] > 1:
            doubled.append(f"{job} {name}")
    return lost, doubled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="take-overs")
    parser.add_argument("--pause-s", type=float, default=0.3, help="between two jobs")
    parser.add_argument("--stop-every", type=int, default=5, help="one in so many is stopped, not killed")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    CURRENT.begin("postgresql")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks = folder / "marks"
        marks.touch()
        center = local_center(folder, "one", nodes=8)
        daemons = [DaemonProcess(folder, center, replica=f"-{number}") for number in range(3)]
        daemons[0].add_user("alice")
        try:
            for each in daemons:
                each.start()
            token = Client(daemons[0].url).login("alice", PASSWORD)["token"]
            took: list[float] = []
            with Load(daemons, token, marks, pause_s=asked.pause_s) as load:
                for number in range(1, asked.times + 1):
                    took.append(take_over(daemons, draw, stop=number % asked.stop_every == 0))
                    print(f"{number}: {took[-1]:.2f} s, {len(load.jobs)} jobs", flush=True)
            lost, doubled = verdict(Client(daemons[0].url, token), load.jobs, marks)
        finally:
            for each in daemons:
                if each.process is not None and each.process.poll() is None:
                    each.kill()
            CURRENT.end()
    took.sort()
    print(
        f"{len(took)} take-overs: median {took[len(took) // 2]:.2f} s, worst {took[-1]:.2f} s"
        f" (owed {OWED_S:.0f} s); {len(load.jobs)} jobs, {len(lost)} lost, {len(doubled)} doubled"
    )
    for each_job in (*lost, *doubled):
        print(each_job)
    return 1 if lost or doubled or took[-1] > OWED_S else 0


if __name__ == "__main__":
    sys.exit(main())
