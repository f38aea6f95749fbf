"""The openb workload of Alibaba (gpu-v2023) in the setting of the FGD paper: packing without departures.

    python bench/openb.py DATA_DIR [--seeds N] [--batch N]

DATA_DIR has openb_default.csv.gz, centers_openb.csv and published_fgd_gpu_allocation.csv; without them
nothing is measured, loudly.  Pods are sampled with replacement, arrive one after the other and never
leave; the figure is the share of all cards that is allocated when so much of them has been asked for.

The broker decides with `schedule()` alone, by the policy text below: every node is a pool of one
center that reports what is free on it.  *Online*: every pod is decided in order of arrival and never
again.  *Window*: so many pods may wait because others make more of the cards that they need; when
arrivals end they are decided, too.  What arrives between two rounds is decided in the order in which it
did, so the size of a batch changes how often rounds are made and the mix is learned, and little else.
Random, BestFit and FGD are baselines of this file's neighbour bench/fgd.py.  The bound is what nobody
can exceed who knows all pods of a seed and may choose among them: cards alone, without cores and GiB.

Cores and GiB are counted in thousandths, so that shapes are whole numbers.  Decisions per second are by
the CPU clock of the deciding thread over whole schedule() calls.  Exits 1 where a figure that is owed
is missed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.fgd import BASELINES, Pod, cards_bound
from broker.companions import available_policies
from broker.core.model import (
    Accelerator,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Claim,
    FreeNodes,
    Health,
    JobClass,
    JobId,
    JobRequest,
    NodeShape,
    Pool,
    PoolId,
    QueuedJob,
    RunId,
    Snapshot,
    TenantId,
)
from broker.core.plan import grouped
from broker.core.policy import PolicySet
from broker.core.policy_file import load_policies
from broker.core.resources import make_spec
from broker.core.scheduler import schedule
from broker.core.solver import LP
from broker.interpreter import no_collection

FILES = ("openb_default.csv.gz", "centers_openb.csv", "published_fgd_gpu_allocation.csv")
PRODUCT = "Openb/GPU/any"
CENTER = CenterId("openb")
MARKS = (0.9, 0.95, 1.0)
OWED = {"broker, online": 95.23, "broker, window of 256": 96.3}
OWED_PER_S = 5000

ONLINE = """
[policies.fit]
[policies.priority]
[policies.packing]
"""
WINDOW = "window_jobs = 256\n"


@dataclass(frozen=True, slots=True)
class Workload:
    """Nodes as (thousandths of cards, of cores, of GiB) and the pods that are sampled."""

    nodes: tuple[Pod, ...]
    pods: tuple[Pod, ...]

    @property
    def cards(self) -> int:
        """Thousandths of all cards."""
        return sum(node.cards for node in self.nodes)

    def sample(self, seed: int, share: float) -> list[Pod]:
        """Pods until so much of all cards is asked for."""
        chance, asked, most = random.Random(seed), 0, share * self.cards
        found: list[Pod] = []
        while True:
            pod = chance.choice(self.pods)
            asked += pod.cards
            if asked > most:
                return found
            found.append(pod)


def read(folder: Path) -> Workload:
    """The workload; nodes in a fixed random order, since the file has them by kind."""
    with gzip.open(folder / FILES[0], "rt", encoding="utf-8") as lines:
        pods = tuple(_pod(row) for row in csv.DictReader(lines))
    with (folder / FILES[1]).open(encoding="utf-8") as lines:
        rows = [(_pod(row), int(row["node_count"])) for row in csv.DictReader(lines)]
    nodes = [node for node, count in rows if node.cards for _ in range(count)]
    random.Random(0).shuffle(nodes)
    return Workload(tuple(nodes), pods)


def _pod(row: dict[str, str]) -> Pod:
    columns = ("gpus_per_node", "cpus_per_node", "mem_gib_per_node")
    return Pod(*(round(float(row[name]) * 1000) for name in columns))


# ---------------------------------------------------------------- the broker


class Center:
    """A center of single-node pools that starts what it is sent and reports what is free."""

    def __init__(self, workload: Workload) -> None:
        self.pools = [self._pool(number, node) for number, node in enumerate(workload.nodes)]
        self.at = {pool.id: number for number, pool in enumerate(self.pools)}
        self.claims: list[Claim] = []

    def _pool(self, number: int, node: Pod) -> Pool:
        cards = node.cards // 1000
        return Pool(
            id=PoolId(f"openb/{number:04}"),
            center=CENTER,
            native=f"{number:04}",
            shape=NodeShape("X86", node.cores, node.memory, PRODUCT, cards, split_permille=1),
            nodes=1,
            free=(FreeNodes(node.cores, node.memory, cards, 1),),
            as_of_ms=0,
            accuracy=Accuracy.EXACT,
        )

    def run(self, job: JobId, pool: PoolId, shape: NodeShape, now_ms: int) -> None:
        """A part of a card goes to the fullest card that holds it."""
        number = self.at[pool]
        there = self.pools[number]
        free = there.free[0] if there.free else FreeNodes(0, 0, 0, 1)
        cards, parts = free.accelerators, list(free.parts)
        if shape.card_permille < 1000:
            held = min((part for part in parts if part >= shape.card_permille), default=1000)
            if held in parts:
                parts.remove(held)
            else:
                cards -= 1
            parts += [held - shape.card_permille] if held > shape.card_permille else []
        else:
            cards -= shape.accelerators
        left = FreeNodes(
            free.cores - shape.cores, free.memory_gib - shape.memory_gib, cards, 1, tuple(sorted(parts))
        )
        assert min(left.cores, left.memory_gib, left.accelerators) >= 0, (pool, left)
        self.pools[number] = replace(there, free=(left,), as_of_ms=now_ms)
        self.claims.append(Claim(RunId(f"run-{job}"), CENTER, pool, shape, 1, started_ms=now_ms - 1))


def request(pod: Pod) -> JobRequest:
    """A pod as a request; one without cards may use any node of the center."""
    cards = max(1, pod.cards // 1000) if pod.cards else 0
    part = pod.cards if 0 < pod.cards < 1000 else 1000
    shape = NodeShape("X86", pod.cores, pod.memory, PRODUCT, cards, card_permille=part)
    return JobRequest(spec=make_spec(shape), estimated_run_time_s=3600)


@dataclass(slots=True)
class Result:
    """Share of cards in per cent when so much was asked for; decisions and their CPU seconds."""

    shares: dict[float, float]
    decisions: int = 0
    seconds: float = 0.0


def expected(workload: Workload) -> str:
    """The mix of all pods as keys of the policy: FGD is told it, too."""
    table = "[[policies.packing.expected]]\n"
    return "".join(
        f"{table}millicards = {pod.cards}\ncores = {pod.cores}\nmemory_gib = {pod.memory}\ncount = {count}\n"
        for pod, count in Counter(workload.pods).items()
        if pod.cards
    )


def broker(workload: Workload, pods: Sequence[Pod], text: str, batch: int) -> Result:
    """Decides all pods; those that find no place are gone, or wait where the policy has a window."""
    policies, last = (
        load_policies(text, available_policies()),
        load_policies(text.replace(WINDOW, ""), available_policies()),
    )
    center, lp, result = Center(workload), LP(), Result({})
    wishes = {pod: request(pod) for pod in dict.fromkeys(pods)}
    sizes: dict[JobId, int] = {}
    waiting: dict[Pod, list[QueuedJob]] = {}
    asked = allocated = version = 0
    cards = workload.cards
    marks = list(MARKS)

    def decide(by: PolicySet) -> int:
        nonlocal version
        version += 1
        now_ms = version * 1000
        keys = {f"{pod.cards}-{pod.cores}-{pod.memory}": pod for pod in waiting}
        snapshot = Snapshot(
            version=version,
            now_ms=now_ms,
            minute_of_week=0,
            centers=(CenterFacts(CENTER, "openb", CenterState.ACTIVE, Health.FRESH, max_in_flight=10**6),),
            pools=tuple(center.pools),
            claims=tuple(center.claims),
            reservations=(),
            classes=tuple(
                JobClass(key, wishes[pod], TenantId("t"), tuple(waiting[pod])) for key, pod in keys.items()
            ),
            accelerators={PRODUCT: Accelerator(PRODUCT, (), 1000, 1000)},
        )
        began = time.thread_time()
        with no_collection():  # as in the daemon
            plan = schedule(snapshot, by, lp)
        result.seconds += time.thread_time() - began
        assert plan.bound <= plan.objective
        started = set()
        for one in grouped(plan.placements):
            for job in one.jobs:
                center.run(job, one.kind.pool, one.kind.spec.shape, now_ms)
                started.add(job)
        for pod in list(waiting):
            waiting[pod] = [job for job in waiting[pod] if job.id not in started]
            if not waiting[pod]:
                del waiting[pod]
        return sum(sizes[job] for job in started)

    arrived = 0
    for number, pod in enumerate(pods):
        while marks and asked + pod.cards > marks[0] * cards:
            # What has arrived is decided before the share is taken.
            allocated += decide(policies) if arrived else 0
            arrived = 0
            if policies.window is None:
                waiting.clear()
            result.shares[marks.pop(0)] = 100 * allocated / cards
        job = QueuedJob(JobId(f"j{number:06}"), number)
        sizes[job.id] = pod.cards
        waiting.setdefault(pod, []).append(job)
        asked += pod.cards
        arrived += 1
        if arrived == batch:
            allocated += decide(policies)
            arrived = 0
            if policies.window is None:
                waiting.clear()
    allocated += decide(policies) if arrived else 0
    if policies.window is not None:
        allocated += decide(last)
    for mark in marks:
        result.shares[mark] = 100 * allocated / cards
    result.decisions = len(pods)
    return result


# ---------------------------------------------------------------- the table


def published(folder: Path) -> dict[str, dict[float, float]]:
    """Of the default workload: policy → share at a mark."""
    found = {}
    with (folder / FILES[2]).open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["workload"] == "openb_pod_list_default":
                shares = (float(row[name]) for name in ("at_90", "at_95", "at_100"))
                found[row["policy"].split("-")[-1]] = dict(zip(MARKS, shares, strict=True))
    return found


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="openb in the setting of the FGD paper")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1024, help="arrivals per round")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    options = parser.parse_args(words)
    lacking = [name for name in FILES if not (options.folder / name).exists()]
    if lacking:
        print(f"SKIPPED: no {', '.join(lacking)} in {options.folder}")
        return 0
    workload, paper = read(options.folder), published(options.folder)
    samples = [workload.sample(seed, 1.0) for seed in range(options.seeds)]
    print(f"openb: {len(workload.nodes)} nodes, {workload.cards // 1000} cards, {options.seeds} seeds")
    print(f"{'':28}{'at 90 %':>9}{'at 95 %':>9}{'at 100 %':>9}{'paper':>8}{'decisions/s':>13}")
    missed: list[str] = []
    for name, place in BASELINES.items():
        if options.only in name:
            shares = [place(workload.nodes, pods, MARKS, seed) for seed, pods in enumerate(samples)]
            mean = {mark: fmean(s[mark] for s in shares) for mark in MARKS}
            _row(name, mean, f"{paper[name][1.0]:8.2f}")
            if abs(mean[1.0] - paper[name][1.0]) > 0.5:
                missed.append(f"{name} is {mean[1.0]:.2f}, published {paper[name][1.0]}")
    known = expected(workload)
    for name, text in (
        ("broker, nothing known", ONLINE),
        ("broker, online", ONLINE + known),
        ("broker, window of 256", ONLINE + WINDOW + known),
    ):
        if options.only in name:
            results = [broker(workload, pods, text, options.batch) for pods in samples]
            mean = {mark: fmean(r.shares[mark] for r in results) for mark in MARKS}
            per_s = sum(r.decisions for r in results) / sum(r.seconds for r in results)
            _row(name, mean, f"{'':8}{per_s:13,.0f}")
            if mean[1.0] <= OWED.get(name, 0):
                missed.append(f"{name} is {mean[1.0]:.2f}, owed is more than {OWED[name]}")
            if per_s < OWED_PER_S:
                missed.append(f"{name}: {per_s:,.0f} decisions per second, owed are {OWED_PER_S:,}")
    bound = fmean(cards_bound(pods, workload.cards // 1000) for pods in samples)
    print(f"{'bound, all pods known':28}{'':18}{bound:9.2f}")
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


def _row(name: str, shares: dict[float, float], rest: str) -> None:
    print(f"{name:28}" + "".join(f"{shares[mark]:9.2f}" for mark in MARKS) + rest, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
