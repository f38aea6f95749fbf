"""One round: a snapshot and its policies become a plan.

What belongs here: the order of the steps.  What does not: any step (problem, greedy, solver,
explain, plan), threads and deadlines.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from broker.core.explain import Reason, explain_counts
from broker.core.greedy import greedy
from broker.core.model import Snapshot
from broker.core.plan import Placement, Plan, Source, violations
from broker.core.policy import PolicySet
from broker.core.problem import IntArray, Problem, build
from broker.core.snapshot import effective_free
from broker.core.solver import LP, SolverStatus, solve, whole_plan


class InfeasiblePlan(Exception):
    """Neither candidate can be carried out: a defect, told with its story."""


def schedule(snapshot: Snapshot, policies: PolicySet, lp: LP | None = None) -> Plan:
    """The plan of one round.

    `lp` carries limits and whatever speeds up the next solve; it changes neither validity nor what
    is optimal.  Raises InfeasiblePlan when the check finds fault with both candidates.
    """
    if not any(job_class.jobs for job_class in snapshot.classes):
        return Plan(based_on=snapshot.version, bound=0, solver_status=SolverStatus.UNUSED)
    # 1 what is really free
    free = effective_free(snapshot)
    # 2 classes, options, rows
    problem = build(snapshot, policies, free)
    # 3 the baseline
    by_greedy = greedy(problem)
    # 4 the relaxation
    relaxation = solve(problem, lp=lp)
    candidates = [(problem.objective(by_greedy), Source.GREEDY, by_greedy)]
    if relaxation.status in (SolverStatus.OPTIMAL, SolverStatus.LIMIT):
        # 5 whole jobs
        by_lp = whole_plan(problem, relaxation)
        candidates.append((problem.objective(by_lp), Source.LP, by_lp))
    # 6 the better one first; the baseline where they are equal
    candidates.sort(key=lambda c: (c[0], c[1] is not Source.GREEDY))
    bound = None
    if relaxation.status in (SolverStatus.OPTIMAL, SolverStatus.UNUSED):
        # Less what a float of this size can be wrong by: a bound must not be above the optimum.
        bound = int(np.floor(relaxation.objective - 1 - 1e-7 * abs(relaxation.objective)))
        bound = min(bound, candidates[0][0])
    story = []
    for objective, source, y in candidates:
        # 7 jobs by name
        plan = Plan(
            based_on=snapshot.version,
            placements=placements(problem, y),
            objective=objective,
            bound=bound,
            solver_status=relaxation.status,
            source=source,
        )
        # 8 the independent check
        faults = violations(plan, snapshot)
        if not faults:
            # 9 reasons of what waits
            return _with_deferrals(plan, problem, y)
        story.append(f"{source}: {'; '.join(faults[:5])} ({len(faults)} in all)")
    raise InfeasiblePlan(f"no plan for snapshot {snapshot.version}: {' | '.join(story)}")


def placements(problem: Problem, y: IntArray) -> tuple[Placement, ...]:
    """Jobs per option as jobs by name: of a class the oldest first, to its cheapest options first."""
    made: list[Placement] = []
    for k, job_class in enumerate(problem.classes):
        options = problem.options(k)
        jobs = iter(job_class.jobs)
        nodes, estimate_s = job_class.request.nodes, job_class.request.estimate_s
        taken = options.start + np.flatnonzero(y[options])
        for j in taken[np.argsort(problem.cost[taken], kind="stable")].tolist():
            at = int(problem.option_pool[j])
            pool, rate = problem.pools[at], int(problem.rate[j])
            spec, slot = problem.specs[int(problem.fittings[k].spec[at])], int(problem.tau[j])
            made += [
                Placement(
                    job=next(jobs).id,
                    class_key=job_class.key,
                    center=pool.center,
                    pool=pool.id,
                    spec=spec,
                    slot=slot,
                    nodes=nodes,
                    cost_micro=rate * estimate_s // 3600,
                    rate_micro_per_hour=rate,
                )
                for _ in range(int(y[j]))
            ]
    return tuple(made)


def _with_deferrals(plan: Plan, problem: Problem, y: IntArray) -> Plan:
    left = problem.left(y)
    waits = problem.waiting.sum(axis=1) > problem.started(y)
    deferrals: dict[str, tuple[Reason, ...]] = {
        problem.classes[k].key: explain_counts(problem, y, k, left) for k in np.flatnonzero(waits).tolist()
    }
    return replace(plan, deferrals=deferrals)
