"""The broker at work on this machine: two centers, four trainings, one of them a gang of two nodes.

What belongs here: starting the real daemon in a folder of its own, submitting through the HTTP API,
following, and telling where each job ran, why, and what it cost and reached.  What does not: the
training (examples/iris) and the centers (demo.toml).  Exit 0 only when every training succeeded with
results, an accuracy of at least 0.9, and each of its nodes started once; else 1; wrong usage 2.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from demo_daemon import CONFIG, STOP_S, TAIL_LINES, Daemon, DemoFailed
from demo_progress import Progress, progress, seconds

from broker.cli.display import table
from broker.cli.request import inside_copy
from broker.cli.wait import ENDED, in_short
from broker.client import Client, RequestFailed, Unreachable
from broker.client.answers import JobDetail, RunDetail

HERE = Path(__file__).resolve().parent
GOOD_ENOUGH = 0.9
POLL_S = 0.25
FEN, MICRO = Decimal("0.01"), Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Training:
    """One job: `cores` per node."""

    name: str
    seed: int
    learning_rate: float
    epochs: int
    nodes: int = 1
    cores: int = 2

    @property
    def command(self) -> str:
        words = ("train.py", f"--seed={self.seed}", f"--learning-rate={self.learning_rate}")
        return shlex.join([sys.executable, *words, f"--epochs={self.epochs}"])


TRAININGS = (
    Training("iris-slow", seed=1, learning_rate=0.05, epochs=160_000),
    Training("iris-medium", seed=2, learning_rate=0.1, epochs=160_000),
    Training("iris-fast", seed=3, learning_rate=0.2, epochs=160_000),
    Training("iris-gang", seed=4, learning_rate=0.1, epochs=40_000, nodes=2, cores=4),
)
ESTIMATE_S = 20


# ---------------------------------------------------------------- the jobs


class Jobs:
    """The trainings as a user of the broker has them."""

    def __init__(self, daemon: Daemon, client: Client) -> None:
        self._daemon = daemon
        self._client = client
        self._waits: dict[str, str] = {}
        self.details: dict[str, JobDetail] = {}

    def submit(self) -> None:
        """Send the folder once and a job for each training."""
        data = self._client.upload(HERE / "iris", "iris")["id"]
        specs = {
            item["cpu"]["cores"]: item["resourceSpecId"] for item in self._client.specs()["resourceSpecs"]
        }
        for training in TRAININGS:
            config = {
                "specId": specs[training.cores],
                "nodeCount": training.nodes,
                "imageId": self._client.info()["submit"]["image"],
                "command": inside_copy(data, training.command),
                "datasetIds": [data],
                "estimatedRunTime": ESTIMATE_S,
                "maxRunTime": 600,
                "resumable": True,
                "stopGrace": 2,
                # One thread each: the matrices are too small to share out.
                "env": [{"key": f"{of}_NUM_THREADS", "value": "1"} for of in ("OMP", "OPENBLAS", "MKL")],
            }
            created = self._client.create_job({"jobName": training.name, "config": config})
            job = created["metadata"]["id"]
            self.details[job] = self._client.job(job)

    def follow(self, shown: Progress, *, deadline: float, kill: bool) -> None:
        """Until all have ended; `kill`: crash the daemon once when all have started."""
        while True:
            self._look()
            shown.show(list(self.details.values()), self._waits)
            states = {job["status"] for job in self.details.values()}
            if kill and states <= {"RUNNING", *ENDED} and "RUNNING" in states:
                kill = False
                self._crash(shown)
            if states <= ENDED:
                if kill:
                    raise DemoFailed("the jobs ended before the daemon could be killed under them")
                return
            if time.monotonic() > deadline:
                raise DemoFailed("not all jobs ended in time; see --timeout")
            time.sleep(POLL_S)

    def _look(self) -> None:
        for job, known in self.details.items():
            if known["status"] in ENDED:
                continue
            try:
                self.details[job] = self._client.job(job)
                if self.details[job]["status"] == "PENDING":
                    self._waits[job] = in_short(self._client.explain(job))
            except Unreachable:
                self._daemon.check()
                raise

    def _crash(self, shown: Progress) -> None:
        running = sum(job["status"] == "RUNNING" for job in self.details.values())
        shown.say(f"killing the daemon (SIGKILL) under {running} running jobs")
        self._daemon.kill()
        began = time.monotonic()
        self._daemon.start()
        shown.say(f"the daemon is back after {time.monotonic() - began:.1f} s")

    def stop(self) -> None:
        """Leave nothing running behind: stop what has not ended, as far as the broker still answers."""
        deadline = time.monotonic() + STOP_S
        try:
            for job, known in self.details.items():
                if known["status"] not in ENDED:
                    self._client.stop_job(job)
            while any(job["status"] not in ENDED for job in self.details.values()):
                if time.monotonic() > deadline:
                    print("some jobs did not stop in time", file=sys.stderr)
                    return
                time.sleep(POLL_S)
                self._look()
        except (Unreachable, RequestFailed, DemoFailed) as error:
            print(f"jobs may still run: {error}", file=sys.stderr)

    # ------------------------------------------------ what they left

    def metrics(self, job: JobDetail, folder: Path) -> dict[str, Any]:
        """What the training measured, from its downloaded results; DemoFailed without."""
        files = self._client.download(job["id"], folder / "results" / job["name"])
        for file in files:
            if file.name == "metrics.json":
                measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return measured
        raise DemoFailed(f"{job['name']}: no metrics.json among its results {[file.name for file in files]}")

    def log(self, job: JobDetail, node: int) -> str:
        pieces = self._client.logs(job["id"], task=job["runs"][-1]["taskId"], node=node)
        return b"".join(pieces).decode(errors="replace")

    def check_started_once(self, job: JobDetail) -> None:
        """DemoFailed unless there was one run and each of its nodes began the training once."""
        if len(job["runs"]) != 1:
            raise DemoFailed(f"{job['name']}: ran {len(job['runs'])} times, expected once")
        for node in range(job["runs"][0]["nodeCount"]):
            starts = sum(line.startswith("started ") for line in self.log(job, node).splitlines())
            if starts != 1:
                raise DemoFailed(f"{job['name']}: node {node} started {starts} times, expected once")

    def print_tails(self) -> None:
        """The end of the log of every node that did not come to a good end."""
        for job in self.details.values():
            if job["status"] == "SUCCEEDED":
                continue
            print(f"\n{job['name']} ({job['id']}): {job['status']} {job.get('message', '')}", file=sys.stderr)
            for node in range(job["runs"][-1]["nodeCount"]):
                try:
                    lines = self.log(job, node).splitlines()[-TAIL_LINES:]
                except (Unreachable, RequestFailed) as error:
                    lines = [f"its log cannot be had: {error}"]
                print(f"log of node {node}:", *lines, sep="\n  ", file=sys.stderr)


# ---------------------------------------------------------------- what it came to


@dataclass(frozen=True, slots=True)
class Place:
    """A center of demo.toml: one CPU pool and its price in CNY per core-hour."""

    id: str
    nodes: int
    cores: int
    price: Decimal


def places() -> list[Place]:
    text = CONFIG.read_text(encoding="utf-8")
    centers = tomllib.loads(text, parse_float=Decimal)["centers"]
    pools = [(center["id"], center["pools"][0], center["prices"][0]["price"]) for center in centers]
    return [Place(id, pool["nodes"], pool["cores"], price) for id, pool, price in pools]


def run_ms(run: RunDetail) -> int:
    return (run["finishTimeMs"] or 0) - (run["startTimeMs"] or 0)


def cost(job: JobDetail) -> Decimal:
    """CNY to six places, which the API rounds to fen: price per hour of the whole job times its time."""
    run = job["runs"][-1]
    exact = Decimal(run["pricePerHour"]) * run_ms(run) / 3_600_000
    if exact.quantize(FEN, ROUND_HALF_EVEN) != Decimal(run["cost"]):
        raise DemoFailed(f"{job['name']}: {exact} CNY by price and time, but the bill says {run['cost']}")
    return exact.quantize(MICRO, ROUND_HALF_EVEN)


def why(job: JobDetail, training: Training, jobs: Sequence[JobDetail]) -> str:
    """What spoke for the job's center and against the other: size, price, and who was there meanwhile."""
    run = job["runs"][-1]
    estimate = Decimal(run["placement"]["estimatedCostMicro"]) * MICRO
    told = [f"{run['pricePerHour']} CNY/h, {estimate:.6f} CNY at the estimate of {ESTIMATE_S} s"]
    for place in places():
        price = place.price * training.cores * training.nodes
        if place.id == run["centerId"]:
            continue
        if place.cores < training.cores:
            told.append(f"{place.id} has {place.cores} cores per node, the job asks for {training.cores}")
        elif price < Decimal(run["pricePerHour"]):
            taken = sum(each["runs"][-1]["nodeCount"] for each in jobs if _beside(each, job, place.id))
            told.append(f"{place.id}, {price} CNY/h, had {taken} of its {place.nodes} nodes taken meanwhile")
        else:
            told.append(f"{place.id} is {price} CNY/h")
    return "; ".join(told)


def _beside(other: JobDetail, job: JobDetail, center: str) -> bool:
    """Whether `other` ran at `center` while `job` waited or ran."""
    theirs, ours = other["runs"][-1], job["runs"][-1]
    began, ended = theirs["startTimeMs"] or 0, theirs["finishTimeMs"] or 0
    overlap = began < (ours["finishTimeMs"] or 0) and ended > job["createTimeMs"]
    return theirs["centerId"] == center and overlap


def report(jobs: Jobs, folder: Path) -> None:
    """Print what became of every job; DemoFailed when one did not do well."""
    ended = list(jobs.details.values())
    bad = [f"{job['name']} {job['status']}" for job in ended if job["status"] != "SUCCEEDED"]
    if bad:
        raise DemoFailed(f"not every job succeeded: {', '.join(bad)}")
    rows, worst = [], 1.0
    for job in ended:
        jobs.check_started_once(job)
        run, accuracy = job["runs"][-1], float(jobs.metrics(job, folder)["accuracy"])
        worst = min(worst, accuracy)
        waited = seconds((run["startTimeMs"] or 0) - job["createTimeMs"])
        where = (job["name"], run["centerId"], run["pool"], run["nodeCount"], run["taskId"])
        rows.append((*where, waited, seconds(run_ms(run)), f"{cost(job)}", f"{accuracy:.4f}"))
    headings = ("JOB", "CENTER", "POOL", "NODES", "TASK", "WAITED", "RAN", "CNY", "ACCURACY")
    total = ("total", "", "", None, "", "", "", f"{sum((cost(job) for job in ended), Decimal(0))}", "")
    print(f"\n{table(headings, [*rows, total])}\n\nWhy there")
    for job, training in zip(ended, TRAININGS, strict=True):
        print(f"  {job['name']} at {job['runs'][-1]['centerId']}: {why(job, training, ended)}")
    print("\nCosts are price per hour times time ran; the broker's bills round them to 0.01 CNY.")
    print("Every job ran once, and each of its nodes started once.")
    if worst < GOOD_ENOUGH:
        raise DemoFailed(f"the worst accuracy is {worst:.4f}, expected at least {GOOD_ENOUGH}")


# ---------------------------------------------------------------- the script


def demonstrate(folder: Path, options: argparse.Namespace) -> None:
    """The whole demonstration in `folder`; DemoFailed, Unreachable, RequestFailed."""
    deadline = time.monotonic() + options.timeout
    daemon = Daemon(folder)
    jobs: Jobs | None = None
    try:
        password = secrets.token_urlsafe(12)
        daemon.add_user("demo", password)
        daemon.start()
        print(f"the broker listens at {daemon.url}, its log is {daemon.log}", flush=True)
        token = Client(daemon.url).login("demo", password)["token"]
        jobs = Jobs(daemon, Client(daemon.url, token))
        jobs.submit()
        with progress(plain=options.plain) as shown:
            jobs.follow(shown, deadline=deadline, kill=options.kill)
        report(jobs, folder)
    except (DemoFailed, Unreachable, RequestFailed):
        if jobs is not None:
            jobs.print_tails()
        raise
    finally:
        try:
            if jobs is not None:
                jobs.stop()
        finally:
            code = daemon.stop()
    if code != 0:
        raise DemoFailed(f"the daemon ended with {code} when asked to stop:\n{daemon.tail()}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The broker at work on this machine, with two centers.")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work in this empty folder and leave it")
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=120.0, help="give up after; default 120"
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table")
    parser.add_argument("--kill", action="store_true", help="crash the daemon under the running jobs")
    options = parser.parse_args()
    keep: Path | None = options.keep
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        parser.error(f"--keep: {keep} is not an empty folder; choose another")
    return options


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.keep is not None:
        folder: Path = options.keep.resolve()
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="broker-demo-"))
    kept = options.keep is not None
    try:
        demonstrate(folder, options)
    except (DemoFailed, Unreachable, RequestFailed) as error:
        print(
            f"\nthe demonstration failed: {error}\nthe daemon's log: {folder / 'daemon.log'}", file=sys.stderr
        )
        kept = True
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"everything is left in {folder}" if kept else "the daemon has stopped and its folder is removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
