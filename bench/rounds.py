"""How long a round takes and how far from the optimum it is: `python bench/rounds.py --size 10k`.

What belongs here: measuring whole rounds of the production scheduler after a change of 1 % on the
synthetic worlds of instances.py, beside a frozen greedy baseline.  A round is measured from the
events to the checked plan: policies, classing, solving and reading included.  Progress goes to
stderr, tables or one JSON document to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.instances import SIZES, World
from broker.core import scheduler, solver
from broker.core.check import pack
from broker.core.memory import Memory
from broker.core.model import Snapshot
from broker.core.plan import Plan, grouped
from broker.core.problem import IntArray, Problem, build
from broker.core.scheduler import schedule
from broker.core.snapshot import effective_free
from broker.core.solver import LP
from broker.interpreter import collect_and_keep, no_collection, take_turns

STAGES = ("delta", "build", "LP", "read", "fill", "improve", "bound", "greedy", "name", "check", "total")
SOLVE_LIMIT_S = 0.5  # the default of scheduler.solve_limit_s


class Stopwatch:
    """Milliseconds per stage of the round that runs, by wrapping the steps of the scheduler."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.ms: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        for owner, name, stage in (
            (Memory, "free", "build"),
            (scheduler, "build", "build"),
            (solver._Model, "_run", "LP"),
            (scheduler, "solve", "solve"),
            (scheduler, "whole_plan", "fill"),
            (scheduler, "improve", "improve"),
            (scheduler, "lower_bound", "bound"),
            (scheduler, "greedy", "greedy"),
            (scheduler, "placements", "name"),
            (scheduler, "violations", "check"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name), stage))

    def _timed(self, step: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = self._clock()
            try:
                return step(*args, **kwargs)
            finally:
                self.ms[stage] += (self._clock() - began) * 1000

        return run

    def take(self) -> dict[str, float]:
        """The stages of one round; starts anew."""
        ms, self.ms = self.ms, defaultdict(float)
        ms["read"] = ms["solve"] - ms["LP"]
        return {stage: ms[stage] for stage in STAGES}


def frozen_greedy(p: Problem) -> IntArray:
    """The baseline to beat, never to be improved: higher tiers first, then older jobs, each to its
    cheapest pool with room."""
    y = np.zeros(len(p.option_class), dtype=np.int64)
    left = p.row_bound.tolist()
    row, coef, first = p.entry_row.tolist(), p.entry_coef.tolist(), p.entry_first.tolist()
    queue = sorted(
        (-int(p.classes[k].request.tier), -b, p.classes[k].key, k, b)
        for k, b in np.argwhere(p.waiting).tolist()
    )
    by_cost = [
        (p.options(k).start + np.argsort(p.cost[p.options(k)], kind="stable")).tolist()
        for k in range(len(p.classes))
    ]
    at = [0] * len(p.classes)
    for _, _, _, k, b in queue:
        wanted = int(p.waiting[k, b])
        while wanted and at[k] < len(by_cost[k]):
            j = by_cost[k][at[k]]
            entries = range(first[j], first[j + 1])
            count = min(wanted, *(left[row[e]] // coef[e] for e in entries))
            for e in entries:
                left[row[e]] -= coef[e] * count
            y[j] += count
            wanted -= count
            at[k] += 1 if wanted else 0
    assert p.feasible(y)
    return y


def unpackable(plan: Plan, snapshot: Snapshot) -> tuple[int, int]:
    """(slots of the plan, those that no node has room for), by packing every pool node by node."""
    free = effective_free(snapshot)
    wanted: dict[Any, Counter[Any]] = {}
    for one in grouped(plan.placements):
        wanted.setdefault(one.kind.pool, Counter())[one.kind.slot, one.kind.spec] += one.kind.nodes * len(
            one.jobs
        )
    pools = {pool.id: pool for pool in snapshot.pools}
    lost = sum(sum(pack(pools[i], free[i], slots).values()) for i, slots in wanted.items())
    return sum(sum(slots.values()) for slots in wanted.values()), lost


def rounds(size: str, count: int, seed: int, worth: str, clock: Callable[[], float]) -> dict[str, Any]:
    """Measures `count` rounds after a cold one."""
    world = World(SIZES[size], seed, worth=worth)
    snapshot = world.snapshot()
    before_mb = _memory_mb(reset=True)
    # Where classes explode, the limit of the daemon's rounds is what is measured.
    watch, lp = Stopwatch(clock), LP(time_limit_s=SOLVE_LIMIT_S if size == "unique" else None)
    began = time.perf_counter()
    plan = schedule(snapshot, world.policies, lp)
    cold_ms = (time.perf_counter() - began) * 1000
    watch.take()
    collect_and_keep()  # as a daemon does that is up
    print(f"{size}: cold round {cold_ms:.0f} ms", file=sys.stderr)
    times: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "cpu", "after")}
    lp.settle()
    watch.take()
    gaps, worse, captured, frozen_captured, frozen_gaps, slots, lost = [], [], [], [], [], 0, 0
    started: list[int] = []
    for n in range(count):
        events = world.draw()
        cpu, began = time.thread_time(), clock()
        with no_collection():
            snapshot = world.apply(events)
            applied = clock()
            plan = schedule(snapshot, world.policies, lp)
        total = (clock() - began) * 1000
        times["cpu"].append((time.thread_time() - cpu) * 1000)
        for stage, ms in (watch.take() | {"delta": (applied - began) * 1000, "total": total}).items():
            times[stage].append(ms)
        began = clock()
        lp.settle()  # as the daemon does when the plan is committed
        times["after"].append((clock() - began) * 1000)
        watch.take()
        gaps.append((plan.objective - plan.bound) / plan.objective)
        started.append(len(plan.placements))
        if n % max(1, count // 8) == 0:
            problem = build(snapshot, world.policies)
            frozen = problem.objective(frozen_greedy(problem))
            idle = problem.objective(np.zeros(len(problem.option_class), dtype=np.int64))
            worse.append(frozen / plan.objective - 1)
            frozen_gaps.append((frozen - plan.bound) / frozen)
            captured.append((idle - plan.objective) / (idle - plan.bound))
            frozen_captured.append((idle - frozen) / (idle - plan.bound))
            all_slots, no_room = unpackable(plan, snapshot)
            slots, lost = slots + all_slots, lost + no_room
            watch.take()  # building it for the baseline is no part of the next round
        print(f"{size}: round {n + 1}/{count} {total:.0f} ms, gap {gaps[-1]:.3%}", file=sys.stderr)
    return {
        "size": size,
        "seed": seed,
        "worth": worth,
        "rounds": count,
        "options": len(build(snapshot, world.policies).option_class),
        "startedMedian": statistics.median(started),
        "coldMs": cold_ms,
        "ms": {
            stage: {"p50": _at(ms, 50), "p99": _at(ms, 99), "worst": max(ms)} for stage, ms in times.items()
        },
        "gapMedian": statistics.median(gaps),
        "gapWorst": max(gaps),
        "frozenGapMedian": statistics.median(frozen_gaps),
        "frozenObjectiveAbove": statistics.median(worse),
        "captured": statistics.median(captured),
        "frozenCaptured": statistics.median(frozen_captured),
        "slots": slots,
        "unpackableSlots": lost,
        "memoryMb": _memory_mb() - before_mb,
        "latenessMs": asyncio.run(_lateness(world, lp, min(count, 20))),
    }


async def _lateness(world: World, lp: LP, count: int) -> dict[str, float]:
    """How late a ticker of 1 ms is on the event loop while rounds run in a thread."""
    late: list[float] = []
    events = [world.draw()]

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - began) * 1000 - 1)

    def one_round() -> None:
        with no_collection():
            schedule(world.apply(events[0]), world.policies, lp)

    usual = sys.getswitchinterval()
    take_turns()
    for _ in range(count):
        ticker = asyncio.create_task(tick())
        await asyncio.to_thread(one_round)
        await asyncio.to_thread(lp.settle)
        ticker.cancel()
        events[0] = world.draw()
    sys.setswitchinterval(usual)
    return {"p50": _at(late, 50), "p99": _at(late, 99), "worst": max(late)}


def single(count: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One new job among 400 pools it may use: from the job to the checked plan."""
    world = World(replace(SIZES["10k"], name="single", jobs=400, classes=400, centers=40), 1)
    request = next(r for r, _ in world.requests if r.spec and r.spec.shape.accelerators == 1 and r.nodes == 1)
    spec = request.spec
    assert spec is not None
    request = replace(request, centers=(), max_price_micro=None)
    likely = next(p for p in world.pools if p.shape.accelerator == spec.shape.accelerator)
    pools = tuple(replace(p, shape=likely.shape, free=likely.free, nodes=likely.nodes) for p in world.pools)
    base = replace(world.snapshot(), pools=pools)
    lp, ms = LP(), []
    for n in range(count + 20):
        one = replace(
            base.classes[0],
            key=f"n{n}",
            request=replace(request, estimated_run_time_s=600 + n),
            jobs=base.classes[0].jobs,
        )
        began = clock()
        with no_collection():
            plan = schedule(replace(base, version=n, classes=(one,)), world.policies, lp)
        ms.append((clock() - began) * 1000)
        assert len(plan.placements) == 1
    options = len(build(replace(base, classes=(one,)), world.policies).option_class)
    ms = ms[20:]
    return {
        "size": "single",
        "rounds": count,
        "options": options,
        "p50": _at(ms, 50),
        "p99": _at(ms, 99),
        "worst": max(ms),
    }


def _at(values: list[float], percent: int) -> float:
    return float(np.percentile(values, percent))


def _memory_mb(*, reset: bool = False) -> float:
    """Peak resident memory; with `reset` what is resident now, from where a new peak counts."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if reset:
        clear.write_text("5")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _table(told: dict[str, Any]) -> str:
    if told["size"] == "single":
        return "one job, {options} options: p50 {p50:.2f} ms, p99 {p99:.2f}, worst {worst:.2f}".format(**told)
    lines = [
        f"{told['size']}, {told['worth']} worth: {told['options']} options, {told['rounds']} rounds, "
        f"cold {told['coldMs']:.0f} ms, {told['startedMedian']:.0f} jobs start",
        f"{'ms':8}" + "".join(f"{stage:>9}" for stage in told["ms"]),
    ]
    lines += [
        f"{row:8}" + "".join(f"{ms[row]:9.1f}" for ms in told["ms"].values())
        for row in ("p50", "p99", "worst")
    ]
    late = told["latenessMs"]
    lines += [
        f"gap median {told['gapMedian']:.3%}, worst {told['gapWorst']:.3%}; captured {told['captured']:.2%}",
        f"frozen greedy: gap {told['frozenGapMedian']:.2%}, captured {told['frozenCaptured']:.2%}, "
        f"objective {told['frozenObjectiveAbove']:+.2%} above the plan's",
        f"unpackable slots {told['unpackableSlots']} of {told['slots']}; memory beyond the instance "
        f"{told['memoryMb']:.0f} MB; loop lateness p50 {late['p50']:.2f}, p99 {late['p99']:.2f}, "
        f"worst {late['worst']:.1f} ms",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), action="append", help="default: 10k, 100k and 1m")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--worth",
        choices=("reference", "packaged"),
        default="reference",
        help="what waiting is weighed at: the usual weighted objective, or the packaged policies",
    )
    parser.add_argument("--single", action="store_true", help="one job among 400 options, nothing else")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: of the round's thread, on a busy machine",
    )
    told = parser.parse_args()
    clock = time.perf_counter if told.clock == "wall" else time.thread_time
    if told.single:
        results = [single(500, clock)]
    else:
        sizes = told.size or ("10k", "100k", "1m")
        results = [rounds(size, told.rounds, told.seed, told.worth, clock) for size in sizes]
    print(json.dumps(results) if told.json else "\n\n".join(map(_table, results)))


if __name__ == "__main__":
    main()
