"""The linear relaxation of a problem, by OR-Tools; the only module that imports it.

What belongs here: the model, its solution, and turning fractions into whole jobs.  What does not:
what the problem means (core/problem.py) and how long a round may take (the caller says).

GLOP with the dual simplex and without presolve: presolve costs more than it saves on this shape of
model, and a dual simplex is what a later change of bounds can go on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import pywraplp

from broker.core.greedy import fill
from broker.core.model import MICRO
from broker.core.problem import IntArray, Problem

FloatArray = npt.NDArray[np.float64]


class SolverStatus(StrEnum):
    OPTIMAL = "optimal"
    LIMIT = "limit"  # stopped by a limit of iterations or time; the values may still round to a plan
    FAILED = "failed"  # no values at all
    UNUSED = "unused"  # there was nothing to solve


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """A solved relaxation: jobs per option as fractions, and micro-CNY per unit of each row.

    `objective` is in micro-CNY and bounds every whole plan from below when the status is optimal.
    """

    y: FloatArray
    objective: float
    duals: FloatArray
    status: SolverStatus


@dataclass(slots=True)
class LP:
    """The solver as one caller keeps it from round to round; the limits are per solve.

    It may be used by one thread at a time.  The solve itself releases the GIL.
    """

    iterations: int | None = None
    time_limit_s: float | None = None

    def relax(self, problem: Problem) -> Relaxation:
        """Solves the relaxation of `problem` from nothing."""
        solver = pywraplp.Solver.CreateSolver("GLOP")
        if self.time_limit_s is not None:
            solver.SetTimeLimit(max(1, int(self.time_limit_s * 1000)))
        if self.iterations is not None:
            solver.SetSolverSpecificParametersAsString(f"max_number_of_iterations: {self.iterations}")
        columns, rows = _model(solver, problem)
        answer = solver.Solve(_parameters())
        y = np.zeros(len(problem.option_class), dtype=np.float64)
        duals = np.zeros(len(problem.row_bound), dtype=np.float64)
        if answer not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            status = SolverStatus.LIMIT if answer == pywraplp.Solver.NOT_SOLVED else SolverStatus.FAILED
            return Relaxation(y=y, objective=0.0, duals=duals, status=status)
        for option, column in columns.items():
            y[option] = column.solution_value()
        optimal = answer == pywraplp.Solver.OPTIMAL
        if optimal:
            for r, row in rows.items():
                duals[r] = row.dual_value() * MICRO
        return Relaxation(
            y=y,
            objective=solver.Objective().Value() * MICRO,
            duals=duals,
            status=SolverStatus.OPTIMAL if optimal else SolverStatus.LIMIT,
        )


def solve(problem: Problem, *, lp: LP | None = None) -> Relaxation:
    """The relaxation of `problem`; see LP for the limits."""
    if not (problem.ub > 0).any():
        idle = problem.objective(np.zeros(len(problem.option_class), dtype=np.int64))
        return Relaxation(
            y=np.zeros(len(problem.option_class), dtype=np.float64),
            objective=float(idle),
            duals=np.zeros(len(problem.row_bound), dtype=np.float64),
            status=SolverStatus.UNUSED,
        )
    return (lp or LP()).relax(problem)


def whole_plan(problem: Problem, relaxation: Relaxation) -> IntArray:
    """Whole jobs per option: the relaxation rounded down, checked in integers, and filled."""
    y = np.floor(np.clip(relaxation.y, 0, None) + 1e-7).astype(np.int64)
    y = np.minimum(y, problem.ub)
    if not problem.feasible(y):
        y = _clipped(problem, y)
    return fill(problem, y)


def _clipped(problem: Problem, y: IntArray) -> IntArray:
    """The largest part of `y`, option by option, that keeps every row and starts only waiting jobs."""
    left = problem.row_bound.copy()
    jobs = problem.waiting.sum(axis=1)
    kept = np.zeros_like(y)
    for option in np.flatnonzero(y).tolist():
        entries = slice(int(problem.entry_first[option]), int(problem.entry_first[option + 1]))
        rows, coefs = problem.entry_row[entries], problem.entry_coef[entries]
        k = problem.option_class[option]
        kept[option] = max(0, min(int(y[option]), int(jobs[k]), int((left[rows] // coefs).min())))
        left[rows] -= coefs * kept[option]
        jobs[k] -= kept[option]
    return kept


def _parameters() -> pywraplp.MPSolverParameters:
    parameters = pywraplp.MPSolverParameters()
    for key, value in (
        (parameters.LP_ALGORITHM, parameters.DUAL),
        (parameters.PRESOLVE, parameters.PRESOLVE_OFF),
    ):
        parameters.SetIntegerParam(key, value)
    return parameters


def _model(
    solver: pywraplp.Solver, p: Problem
) -> tuple[dict[int, pywraplp.Variable], dict[int, pywraplp.Constraint]]:
    """Columns of options that have room, and rows that bind them; in CNY, to keep numbers small."""
    infinity = solver.infinity()
    objective = solver.Objective()
    rows: dict[int, pywraplp.Constraint] = {}
    columns: dict[int, pywraplp.Variable] = {}
    bound, first = p.row_bound.tolist(), p.entry_first.tolist()
    entry_row, entry_coef = p.entry_row.tolist(), p.entry_coef.tolist()
    cost, ub = p.cost.tolist(), p.ub.tolist()
    worth, waiting = p.worth.tolist(), p.waiting.tolist()
    constant = 0
    for k in range(len(p.classes)):
        constant += sum(u * n for u, n in zip(worth[k], waiting[k], strict=True))
        options = [j for j in range(p.options(k).start, p.options(k).stop) if ub[j] > 0]
        if not options:
            continue
        # Jobs started of the class are jobs served from its age buckets.
        balance = solver.Constraint(0, 0)
        for j in options:
            columns[j] = column = solver.NumVar(0, ub[j], "")
            objective.SetCoefficient(column, cost[j] / MICRO)
            balance.SetCoefficient(column, 1)
            for e in range(first[j], first[j + 1]):
                row = rows.get(entry_row[e])
                if row is None:
                    row = rows[entry_row[e]] = solver.Constraint(-infinity, bound[entry_row[e]])
                row.SetCoefficient(column, entry_coef[e])
        for u, n in zip(worth[k], waiting[k], strict=True):
            if n:
                served = solver.NumVar(0, n, "")
                objective.SetCoefficient(served, -u / MICRO)
                balance.SetCoefficient(served, -1)
    objective.SetOffset(constant / MICRO)
    objective.SetMinimization()
    return columns, rows
