"""How dear victims are, and how fast they are chosen: `python bench/preemption.py`.

What belongs here: the production scheduler on the full centers of crowded.py, beside youngest-first
and beside the proven optimum.  Progress goes to stderr, a table or one JSON document to stdout.

**Ours** is a whole schedule() with a new LP, as in a daemon that has just started; `decision` is the
time of its holds step, `round` that of the whole, both by the CPU clock of the thread.

**Youngest-first** takes the jobs in their order; in every pool the runs that started last are stopped
until the job fits, those that do not help are left out, and the pool with the fewest stops is chosen.
It respects the same limits.

**The optimum** is of the same problem under the same belief, which is the point of comparison: nobody
knows which nodes of a pool a run is on.  A run that holds whole nodes gives that many wherever it is.
Runs that share nodes surely give a whole node only once all of them that may lie elsewhere are gone, so
victims are dearer than they would be for one who knew the nodes.  The program:

    min  sum(price[r] e[r]) + sum(price[s] x[s]) + U sum(u)
    every group of equal VIP jobs: its jobs are in pools or unserved          sum_g y[k,g] + u[k] = n[k]
    every pool: the jobs there fit      sum_k nodes[k] y[k,g] <= spare[g] + sum(nodes[r] e[r]) + q[g]
    every tenant: at most so many runs within the hour                       sum(e[r]) <= room[t]

e are runs of whole nodes that the policies let be stopped, at the policies' price.  Smaller runs are
relaxed, in favour of the optimum: they may be stopped in part (x), count for no tenant, and give q slots
once they hold as many cards as the other nodes absorb before a slot surely comes free, and the least that
each further slot takes.  So the bound is below every plan.  Where q is 0, as it has been throughout, the
optimum itself is a plan; that it can be carried out is checked with the production belief.
HiGHS through OR-Tools, one thread, to a gap of 0.1 %; the bound it proves is what ratios are against.

Prices are of two kinds.  `whole` is the packaged policy: lost work, the restart, and what the job is worth
once it waits again.  `lost` is lost work and the restart alone (`requeue_weight = 0`), measured at 100 gangs
unless told otherwise.  Below each table stands what is owed, and whether it is met; the exit status is 1
where a ratio is missed.  The time is a figure of this machine at this hour and decides nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from ortools.linear_solver.python import model_builder

from bench.crowded import CARDS, crowded, policies
from broker.core import scheduler
from broker.core.memory import Memory
from broker.core.model import Snapshot, Tier, Why
from broker.core.plan import Plan, after
from broker.core.policy import PolicySet
from broker.core.problem import Problem, build
from broker.core.scheduler import schedule
from broker.core.snapshot import effective_free, of_pool, supply, without
from broker.core.solver import LP
from broker.core.victims import Candidates
from broker.interpreter import no_collection
from policies.preemption import Preemption

UNSERVED_CNY = 1e7


def policy_set(price: str) -> PolicySet:
    chosen = policies()
    if price == "whole":
        return chosen
    lost = Preemption(requeue_weight=Decimal(0))
    return PolicySet(tuple(replace(w, policy=lost) if w.name == "preemption" else w for w in chosen.policies))


class Clock:
    """Seconds of the last holds step, by wrapping it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        step = scheduler.hold

        def timed(*args: Any) -> Plan:
            began = time.thread_time()
            plan = step(*args)
            self.seconds = time.thread_time() - began
            return plan

        scheduler.hold = timed


@dataclass(frozen=True, slots=True)
class Told:
    """What one way of choosing costs: CNY and accelerator-hours."""

    served: int
    victims: int
    price: float
    lost_h: float


class Question:
    """One instance as columns: candidates, what each gives, and what the jobs need."""

    def __init__(self, snapshot: Snapshot, chosen: PolicySet, plan: Plan) -> None:
        self.snapshot, self.policies = snapshot, chosen
        self.problem = p = build(snapshot, chosen)
        self.c = Candidates(p, Memory())
        everything = np.arange(len(self.c.claims))
        self.price = self.c.prices(everything)
        self.at = {pool.id: i for i, pool in enumerate(p.pools)}
        self.pool = np.array([self.at[c.pool] for c in self.c.claims])
        self.gain = self.c.nodes * (self.c.size // CARDS)
        placed = after(snapshot, plan.placements)
        self.parts = [of_pool(placed, pool) for pool in p.pools]
        self.spare = [self.slots(g, ()) for g in range(len(p.pools))]
        # (job, nodes, pools) in order of the queue
        self.jobs = sorted(
            (job.queued_ms, job.id, k.request.nodes, product_pools(p, k.request.spec.shape.accelerator))
            for k in snapshot.classes
            if k.request.tier is Tier.VIP and k.request.spec is not None
            for job in k.jobs
        )

    def slots(self, g: int, runs: Any) -> int:
        """Whole nodes free in a pool without some candidates, by the production belief."""
        gone = [self.c.claims[i].run for i in runs]
        free = effective_free(without(self.parts[g], gone, slot=CARDS), reservations=())
        return supply(self.problem.pools[g].shape, free[self.problem.pools[g].id], CARDS)

    def told(self, served: int, victims: Any) -> Told:
        cards = self.c.size * self.c.nodes
        return Told(
            served,
            len(victims),
            sum(int(self.price[i]) for i in victims) / 1e6,
            sum(int(cards[i] * self.c.lost_s[i]) for i in victims) / 3600,
        )

    def ours(self, plan: Plan) -> Told:
        row = {c.run: i for i, c in enumerate(self.c.claims)}
        stops = [row[run] for run in plan.stops]
        assert sum(int(self.price[i]) for i in stops) == sum(x.price_micro for x in plan.preemptions)
        ids = {job for _, job, _, _ in self.jobs}
        held = [r for r in plan.reservations if r.job in ids]
        needs, stopped = Counter[int](), {}
        for i in stops:
            stopped.setdefault(int(self.pool[i]), []).append(i)
        served = 0
        for r in sorted(held, key=lambda r: r.why != Why.PREEMPTING):
            g = self.at[r.pool]
            fits = needs[g] + r.nodes <= self.slots(g, stopped.get(g, []))
            assert fits or r.why != Why.PREEMPTING
            served += fits
            needs[g] += r.nodes * fits
        return self.told(served, stops)

    # ------------------------------------------------------------ youngest first

    def youngest_first(self) -> Told:
        p, spare = self.problem, list(self.spare)
        room = {t: self.policies.kill_room(p, t) for t in {c.tenant for c in self.c.claims}}
        started = [c.started_ms or 0 for c in self.c.claims]
        order = sorted(
            np.flatnonzero((self.price >= 0) & (self.gain > 0)).tolist(), key=lambda i: -started[i]
        )
        left: dict[int, list[int]] = {}
        for i in order:
            left.setdefault(int(self.pool[i]), []).append(i)
        stopped: list[int] = []
        served = 0
        for _, _, nodes, pools in self.jobs:
            best: tuple[int, int, list[int]] | None = None
            for g in pools:
                need, mine, taken = nodes - spare[g], [], Counter[str]()
                for i in left.get(g, ()):
                    tenant = self.c.claims[i].tenant
                    if need > 0 and taken[tenant] < room[tenant]:
                        taken[tenant] += 1
                        mine.append(i)
                        need -= int(self.gain[i])
                for i in list(mine):  # the youngest that is not needed after all
                    if need + int(self.gain[i]) <= 0:
                        mine.remove(i)
                        need += int(self.gain[i])
                if need <= 0 and (best is None or (len(mine), g) < best[:2]):
                    best = (len(mine), g, mine)
            if best is None:
                continue
            _, g, mine = best
            spare[g] += sum(int(self.gain[i]) for i in mine) - nodes
            left[g] = [i for i in left.get(g, ()) if i not in mine]
            for i in mine:
                room[self.c.claims[i].tenant] -= 1
            stopped += mine
            served += 1
        return self.told(served, stopped)

    # ------------------------------------------------------------ the optimum

    def optimum(self, limit_s: float) -> tuple[Told, float, float]:
        """The best plan found, the bound proven and the seconds it took."""
        m = model_builder.Model()
        p = self.problem
        pools = range(len(p.pools))
        can = self.price >= 0
        big = np.flatnonzero(can & (self.gain > 0)).tolist()
        small = np.flatnonzero(can & (self.gain == 0) & (self.c.size > 0)).tolist()
        e = {i: m.new_bool_var(f"e{i}") for i in big}
        x = {i: m.new_num_var(0, 1, f"x{i}") for i in small}
        groups = Counter((nodes, pools_) for _, _, nodes, pools_ in self.jobs)
        y = {
            (k, g): m.new_int_var(0, n, f"y{k}-{g}")
            for k, ((_, there), n) in enumerate(groups.items())
            for g in there
        }
        u = [m.new_int_var(0, n, f"u{k}") for k, n in enumerate(groups.values())]
        for k, ((_, there), n) in enumerate(groups.items()):
            m.add(sum(y[k, g] for g in there) + u[k] == n)
        big_in: dict[int, list[int]] = {}
        small_in: dict[int, list[int]] = {}
        for i in big:
            big_in.setdefault(int(self.pool[i]), []).append(i)
        for i in small:
            small_in.setdefault(int(self.pool[i]), []).append(i)
        gained = []
        for g in pools:
            freed = sum(int(self.gain[i]) * e[i] for i in big_in.get(g, ()))
            wanted = sum(nodes * y[k, g] for k, (nodes, there) in enumerate(groups) if g in there)
            mine = small_in.get(g, [])
            q: Any = 0
            if mine:
                cards = sum(int(self.c.size[i] * self.c.nodes[i]) for i in mine)
                largest = int(self.c.size[mine].max())
                pool = p.pools[g]
                # A node absorbs small runs without surely coming free while so many are free on it at most.
                calm = CARDS - largest
                full = pool.nodes - sum(f.nodes for f in pool.free)
                absorbed = calm * full + sum(max(0, calm - f.accelerators) * f.nodes for f in pool.free)
                some, q = m.new_bool_var(f"z{g}"), m.new_int_var(0, cards // largest, f"q{g}")
                held = sum(int(self.c.size[i] * self.c.nodes[i]) * x[i] for i in mine)
                m.add(q <= cards // largest * some)
                m.add(held >= absorbed * some - calm * freed + largest * q)
                gained.append(q)
            m.add(wanted <= self.spare[g] + freed + q)
        by_tenant: dict[str, list[int]] = {}
        for i in big:
            by_tenant.setdefault(self.c.claims[i].tenant, []).append(i)
        for tenant, mine in by_tenant.items():
            m.add(sum(e[i] for i in mine) <= self.policies.kill_room(p, tenant))
        cost = sum(float(self.price[i]) / 1e6 * v for i, v in (*e.items(), *x.items()))
        m.minimize(cost + sum(UNSERVED_CNY * v for v in u))
        solver = model_builder.Solver("highs")
        solver.set_time_limit_in_seconds(limit_s)
        solver.set_solver_specific_parameters("mip_rel_gap=0.001")
        began = time.perf_counter()
        with banner_to_stderr():
            status = solver.solve(m)
        took_s = time.perf_counter() - began
        assert status in (model_builder.SolveStatus.OPTIMAL, model_builder.SolveStatus.FEASIBLE), status
        stops = [i for i in big if solver.value(e[i]) > 0.5]
        unserved = round(sum(solver.value(v) for v in u))
        if not any(solver.value(q) > 0.5 for q in gained):
            for g in pools:
                mine = [i for i in stops if self.pool[i] == g]
                used = sum(n * solver.value(y[k, g]) for k, (n, t) in enumerate(groups) if g in t)
                assert self.slots(g, mine) >= round(used), "the optimum cannot be carried out"
        bound = solver.best_objective_bound - UNSERVED_CNY * unserved
        return self.told(len(self.jobs) - unserved, stops), bound, took_s


@contextmanager
def banner_to_stderr() -> Iterator[None]:
    """HiGHS names itself on stdout, whatever it is told."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def product_pools(p: Problem, product: str) -> tuple[int, ...]:
    return tuple(g for g, pool in enumerate(p.pools) if pool.shape.accelerator == product)


# ---------------------------------------------------------------- measuring


def measured(price: str, vips: int, seed: int, told: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    snapshot, chosen = crowded(vips, seed), policy_set(price)
    gc.collect()
    gc.freeze()
    decision_ms, round_ms = [], []
    for _ in range(told.repeat):
        began = time.thread_time()
        with no_collection():  # as in the daemon
            plan = schedule(snapshot, chosen, LP())
        round_ms.append((time.thread_time() - began) * 1000)
        decision_ms.append(clock.seconds * 1000)
    question = Question(snapshot, chosen, plan)
    ours, young = question.ours(plan), question.youngest_first()
    best, bound, took_s = question.optimum(told.limit)
    row = {
        "price": price,
        "vips": vips,
        "seed": seed,
        "nodes": sum(nodes for _, _, nodes, _ in question.jobs),
        "decisionMs": statistics.median(decision_ms),
        "decisionBestMs": min(decision_ms),
        "roundMs": statistics.median(round_ms),
        "ours": ours,
        "youngest": young,
        "best": best,
        "bound": bound,
        "gap": 1 - bound / best.price,
        "solveS": took_s,
        # Prices of plans that serve more jobs and fewer are not compared.
        "ratio": ours.price / bound if ours.served == best.served else None,
        "lostRatio": ours.lost_h / best.lost_h,
        "youngestLost": young.lost_h / ours.lost_h,
        "youngestPrice": young.price / ours.price,
    }
    row["ratioText"] = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
    print(f"{price}, {vips} gangs, seed {seed}: {row['ratioText']} x the bound", file=sys.stderr)
    return row


COLUMNS = (
    ("gangs", "{vips}"),
    ("nodes", "{nodes}"),
    ("seed", "{seed}"),
    ("decision ms", "{decisionMs:.1f}"),
    ("best", "{decisionBestMs:.1f}"),
    ("round ms", "{roundMs:.0f}"),
    ("served", "{ours.served}/{youngest.served}/{best.served}"),
    ("victims", "{ours.victims}/{youngest.victims}/{best.victims}"),
    ("price CNY", "{ours.price:.0f}/{youngest.price:.0f}/{best.price:.0f}"),
    ("lost h", "{ours.lost_h:.1f}/{youngest.lost_h:.1f}/{best.lost_h:.1f}"),
    ("MIP gap", "{gap:.2%}"),
    ("MIP s", "{solveS:.1f}"),
    ("ours/bound", "{ratioText}"),
    ("youngest price/ours", "{youngestPrice:.1f}"),
    ("youngest lost/ours", "{youngestLost:.1f}"),
)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [[name for name, _ in COLUMNS], *([form.format(**row) for _, form in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    told = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    for vips in sorted({row["vips"] for row in rows}):
        of = [row for row in rows if row["vips"] == vips]
        ratios = [row["ratio"] for row in of if row["ratio"] is not None] or [float("nan")]
        told.append(
            f"{vips} gangs: decision p50 {statistics.median(r['decisionMs'] for r in of):.1f} ms, "
            f"best {min(r['decisionBestMs'] for r in of):.1f}, "
            f"price over the bound mean {statistics.mean(ratios):.3f}, worst {max(ratios):.3f}; "
            f"youngest-first: price {statistics.mean(r['youngestPrice'] for r in of):.1f} times ours, "
            f"lost work {statistics.mean(r['youngestLost'] for r in of):.1f} times"
        )
    return "\n".join(told)


TITLES = {
    "whole": "Price whole: lost work, restart and worth in the queue, as packaged.\n"
    "Proves how near the price of ours is to the least of any plan.",
    "lost": "Price lost: lost work and restart alone (requeue_weight = 0).\n"
    "Proves how near the work lost is to the least of any plan.",
}


@dataclass(frozen=True, slots=True)
class Owed:
    """A figure that is owed: the worst instance, or for the time the median of one size."""

    what: str
    figure: float
    most: float | None = None
    least: float | None = None
    ratio: bool = True

    @property
    def met(self) -> bool:
        return (self.most is None or self.figure <= self.most) and (
            self.least is None or self.figure >= self.least
        )

    def __str__(self) -> str:
        bound = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"
        return f"owed: {self.what} {bound}: {self.figure:.3g}, {'ok' if self.met else 'missed'}"


def owed(price: str, rows: list[dict[str, Any]]) -> list[Owed]:
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    # Prices of plans that serve fewer jobs than the optimum say nothing: nothing is shown by them.
    worst = max(ratios) if ratios else float("inf")
    found = []
    if price == "whole":
        found.append(Owed("price over the proven bound, worst", worst, most=1.2))
        for vips in sorted({row["vips"] for row in rows} & {100}):
            took_ms = statistics.median(row["decisionMs"] for row in rows if row["vips"] == vips)
            found.append(Owed(f"decision at {vips} gangs, median ms", took_ms, most=50, ratio=False))
    else:
        found.append(Owed("lost work and restarts over the proven bound, worst", worst, most=1.2))
        lost = max(row["lostRatio"] for row in rows)
        found.append(Owed("hours lost over those of the optimal plan, worst", lost, most=1.2))
        young = min(row["youngestLost"] for row in rows)
        found.append(Owed("hours lost by youngest-first over ours, worst", young, least=3))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vips", type=int, action="append", help="whole: 20, 100 and 300; lost: 100")
    parser.add_argument("--seeds", type=int, default=3, help="seeds from 1 on")
    parser.add_argument("--repeat", type=int, default=5, help="rounds per instance")
    parser.add_argument("--limit", type=float, default=60, help="seconds for the optimum")
    parser.add_argument("--price", choices=tuple(TITLES), action="append", help="default: both")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    clock = Clock()
    usual = {"whole": (20, 100, 300), "lost": (100,)}
    instances: list[dict[str, Any]] = []
    figures: list[Owed] = []
    for price in told.price or TITLES:
        rows = [
            measured(price, vips, seed, told, clock)
            for vips in told.vips or usual[price]
            for seed in range(1, told.seeds + 1)
        ]
        instances += rows
        figures += (due := owed(price, rows))
        if not told.json:
            print("\n".join((TITLES[price], table(rows), *map(str, due), "")))
    if told.json:
        told_owed = [{**asdict(figure), "met": figure.met} for figure in figures]
        print(json.dumps({"instances": instances, "owed": told_owed}, default=asdict))
    return 0 if all(figure.met for figure in figures if figure.ratio) else 1


if __name__ == "__main__":
    sys.exit(main())
