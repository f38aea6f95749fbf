"""The linear relaxation of a problem, by OR-Tools; the only module that imports it.

What belongs here: the model as it is kept from round to round, and its solution.  What does not: what
the problem means (core/problem.py), whole jobs (core/rounding.py), and how long a round may take (the
caller says).

The model.  GLOP through the wrapper that keeps its basis: no presolve and no scaling, since either
makes another matrix of the same model and so a start from nothing.  A change of bounds or costs goes
on from the last basis with the dual simplex; new columns alone go on with the primal one; anything
else starts anew.  Classes once seen stay, with bounds of zero; spare rows wait for new ones.

Of a large problem the model holds the columns near enough to being used, by their reduced costs at
the last prices.  All others are priced in every round, and added when they would help by more than
`TOLERANCE` of the objective: at once when by more than `SHIP`, else after the round, by `LP.settle`,
while nobody waits for the answer.

A problem with more options than `MOST` is not solved: there are prices for it (core/sample.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import linear_solver_pb2, pywraplp

from broker.core.bound import lower_bound, marginal_values, reduced_costs
from broker.core.check import Checked
from broker.core.fitting import BoolArray
from broker.core.memory import Memory
from broker.core.model import MICRO
from broker.core.places import Places
from broker.core.problem import IntArray, Problem
from broker.core.sample import adjusted, sampled

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 2e-5
"""Share of the objective that columns left out of the model may be worth together."""
SHIP = 2e-3
"""The same share, below which a round does not wait for them: its plan stands with its own bound."""
WHOLE = 4000
"""Problems of so many options are solved with all of them."""
NEAR = 16
"""Options per class that a larger model begins with, by reduced cost."""
CLOSE = 0.01
"""Options within this share of their reduced cost from being used are in the model, too."""
MOST = 200_000
"""Options of a problem that is solved with all its classes."""
PART = 20_000
"""Options, about, of the part that is solved of a larger one."""
PRICE_STEPS = 4
"""Steps by which its prices are made better after a round."""
STEPS = 3
"""Times at most that columns are added in a round that goes on from the last one."""
COLD_STEPS = 30


class SolverStatus(StrEnum):
    OPTIMAL = "optimal"
    LIMIT = "limit"  # stopped by a limit of iterations or time; the values may still round to a plan
    PRICED = "priced"  # too large to solve: prices that are nearly right, and no values
    FAILED = "failed"  # no values at all
    UNUSED = "unused"  # there was nothing to solve: the optimum was plain to see


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """A solved relaxation: jobs per option as fractions, and micro-CNY per unit of each row.

    `objective` is in micro-CNY and bounds every whole plan from below when the status is optimal.
    `duals` are at most 0: what one more of a row would change.  `reduced` are the reduced costs of
    all options at the prices `-duals`.
    """

    y: FloatArray
    objective: float
    duals: FloatArray
    status: SolverStatus
    reduced: FloatArray | None = None


@dataclass(slots=True)
class LP:
    """The solver as one caller keeps it from round to round; the limits are per round.

    It may be used by one thread at a time.  The solve itself releases the GIL.  `memory` is what
    building the next problem goes on from, `checked` what checking the next plan does.
    """

    iterations: int | None = None
    time_limit_s: float | None = None
    memory: Memory = field(default_factory=Memory)
    checked: Checked = field(default_factory=Checked)
    places: Places = field(default_factory=Places)
    prices: dict[str, float] = field(default_factory=dict)  # of rows by name, in the last solved round
    _model: _Model | None = None
    # What is left for settle(): options to add as columns, or reduced costs of a model to narrow.
    _wanted: tuple[Problem, IntArray] | None = None
    _narrow: tuple[Problem, FloatArray] | None = None
    _unfinished: bool = False  # or a solve to go on with
    _priced: tuple[Problem, FloatArray, FloatArray] | None = None  # or prices, with reduced costs
    _step: float = 0.5  # of these

    def relax(self, problem: Problem) -> Relaxation:
        """Solves the relaxation of `problem`, from the last basis where that is possible."""
        self.settle()
        if len(problem.option_class) <= MOST:
            return self._relax(problem)
        if not self.prices:
            self._relax(sampled(problem, -(-len(problem.option_class) // PART)))
        prices = self.last_prices(problem)
        reduced = reduced_costs(problem, prices)
        self._priced = (problem, prices, reduced)
        return Relaxation(
            y=np.zeros(len(reduced)),
            objective=0.0,
            duals=-prices,
            status=SolverStatus.PRICED,
            reduced=reduced,
        )

    def _relax(self, problem: Problem) -> Relaxation:
        model = self._model
        if model is not None and not model.follow(problem):
            model = None
        steps = STEPS
        if model is None:
            model, steps = self._start(problem), COLD_STEPS
        relaxation = model.solve(problem, self, steps)
        # A solve that was cut short goes on from where it was in the next round.
        self._model = None if relaxation.status is SolverStatus.FAILED else model
        self._wanted = (problem, model.wanted) if len(model.wanted) else None
        self._unfinished = relaxation.reduced is None
        if relaxation.reduced is not None:
            self.prices = dict(zip(problem.row_name, (-relaxation.duals).tolist(), strict=True))
            if model.columns > WHOLE and model.columns == np.count_nonzero(problem.row_ub > 0):
                self._narrow = (problem, relaxation.reduced)
        return relaxation

    def settle(self) -> None:
        """What the last round left for later, since its answer did not need it.

        Columns that it did without are added and solved with: new columns take the primal simplex,
        which starts well only before the bounds change again.  When prices have become known, a model
        of all columns gives way to one of those near to being used.  A solve that was cut short goes
        on, and prices of a problem that is too large are made better.  To be called between rounds;
        the next round does it otherwise.
        """
        priced, self._priced = self._priced, None
        if priced is not None and self.prices:
            self._follow_demand(*priced)
            return
        wanted, self._wanted = self._wanted, None
        narrow, self._narrow = self._narrow, None
        unfinished, self._unfinished = self._unfinished, False
        if narrow is not None:
            problem, reduced = narrow
            self._model = _Model(problem, _near(problem, reduced))
            self._model.solve(problem, self, COLD_STEPS)
        elif self._model is not None and wanted is not None:
            self._model.extend(*wanted, self)
        elif self._model is not None and unfinished:
            self._model.go_on(self)

    def _follow_demand(self, problem: Problem, prices: FloatArray, reduced: FloatArray) -> None:
        """Steps that raise the bound are taken; after one that does not, the next is shorter."""
        bound = lower_bound(problem, prices, reduced)
        for _ in range(PRICE_STEPS):
            moved = adjusted(problem, prices, reduced, self._step)
            then = reduced_costs(problem, moved)
            if (higher := lower_bound(problem, moved, then)) > bound:
                prices, reduced, bound = moved, then, higher
                self._step = min(1.0, self._step * 1.5)
            else:
                self._step = max(1e-3, self._step / 2)
        self.prices = dict(zip(problem.row_name, prices.tolist(), strict=True))

    def last_prices(self, problem: Problem) -> FloatArray:
        """Prices per row of the last solved round; 0 of a row that it had not."""
        get = self.prices.get
        return np.array([get(name, 0.0) for name in problem.row_name], dtype=np.float64)

    def _start(self, problem: Problem) -> _Model:
        if len(problem.option_class) <= WHOLE or not self.prices:
            return _Model(problem, np.flatnonzero(problem.row_ub > 0))
        return _Model(problem, _near(problem, reduced_costs(problem, self.last_prices(problem))))


def _near(problem: Problem, reduced: FloatArray) -> IntArray:
    """Options that are used or nearly so at these reduced costs, and the best few of every class."""
    split = marginal_values(problem, reduced)[problem.option_class]
    close = (reduced <= split + CLOSE * np.abs(reduced)) & (problem.row_ub > 0)
    close[_best(problem, reduced, np.flatnonzero(problem.row_ub > 0), NEAR)] = True
    return np.flatnonzero(close)


def _best(problem: Problem, reduced: FloatArray, among: IntArray, count: int) -> IntArray:
    """Of some options, the `count` of every class with the least reduced cost."""
    k = problem.option_class[among]
    order = np.argsort(reduced[among], kind="stable")
    order = order[np.argsort(k[order].astype(np.int32), kind="stable")]
    rank = np.arange(len(order)) - np.searchsorted(k[order], k[order])
    return np.sort(among[order[rank < count]])


class _Model:
    """One pywraplp model and what was last set in it, so that only changes are set again.

    A class has a place: one balance row and a column per age bucket.  A column has a number and a
    code, place times pools plus pool.  Money is in CNY here, to keep numbers small.
    """

    def __init__(self, p: Problem, options: IntArray) -> None:
        self._solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        self._objective = solver.Objective()
        self._objective.SetMinimization()
        infinity = solver.infinity()
        self._row_name = p.row_name
        self._pools = tuple(pool.id for pool in p.pools)
        self._row_bound = p.row_bound.copy()
        self._rows = [solver.Constraint(-infinity, float(b)) for b in p.row_bound.tolist()]
        self._place: dict[str, int] = {}
        places = len(p.classes) + 16 + len(p.classes) // 10
        self._balance = [solver.Constraint(0, 0) for _ in range(places)]
        self._served = [[solver.NumVar(0, 0, "") for _ in range(p.worth.shape[1])] for _ in range(places)]
        for row, columns in zip(self._balance, self._served, strict=True):
            for column in columns:
                row.SetCoefficient(column, -1)
        self._served_ub = np.zeros((places, p.worth.shape[1]), dtype=np.int64)
        self._served_worth = np.zeros((places, p.worth.shape[1]), dtype=np.int64)
        self._columns: list[pywraplp.Variable] = []
        self._code = self._column_ub = self._column_cost = np.zeros(0, dtype=np.int64)
        self._mark = np.zeros(0, dtype=np.uint64)
        # Random but fixed: tells columns of other rows or coefficients apart.
        self._key = np.random.default_rng(8238).integers(1, 2**63, len(p.row_name)).astype(np.uint64)
        self._layout: IntArray | None = None
        self._at: IntArray = np.zeros(0, dtype=np.int64)  # the place of each class of the problem
        self._column: IntArray = np.zeros(0, dtype=np.int64)  # the column of each option, -1: none
        self.wanted: IntArray = np.zeros(0, dtype=np.int64)  # options that the last solve did without
        self._grown = False  # columns since the last solve
        self._solved = False
        self._locate(p)
        self._add(p, options)
        self._set_bounds(p)

    @property
    def columns(self) -> int:
        return len(self._columns)

    # ------------------------------------------------------------ following the problem

    def follow(self, p: Problem) -> bool:
        """Takes over another problem; False when it has other rows, old columns have other entries, or
        there is no place for its new classes."""
        if p.row_name is not self._row_name and p.row_name != self._row_name:
            return False
        if tuple(pool.id for pool in p.pools) != self._pools:
            return False
        if self._layout is not p.entry_row and not self._locate(p):
            return False
        self._set_bounds(p)
        return True

    def _locate(self, p: Problem) -> bool:
        """Finds places and columns of a problem's classes and options; False when entries differ or
        places are too few."""
        for c in p.classes:
            self._place.setdefault(c.key, len(self._place))
        if len(self._place) > len(self._balance):
            return False
        self._at = np.array([self._place[c.key] for c in p.classes], dtype=np.int64)
        code = self._codes(p)
        order = np.argsort(self._code, kind="stable")
        found = np.searchsorted(self._code, code, sorter=order)
        found = np.where(found < len(order), found, 0)
        self._column = np.full(len(code), -1, dtype=np.int64)
        if len(order):
            column = order[found]
            self._column = np.where(self._code[column] == code, column, -1)
        self._layout = p.entry_row
        mine = np.flatnonzero(self._column >= 0)
        return bool((self._marks(p)[mine] == self._mark[self._column[mine]]).all())

    def _codes(self, p: Problem) -> IntArray:
        codes: IntArray = self._at[p.option_class] * len(self._pools) + p.option_pool
        return codes

    def _marks(self, p: Problem) -> npt.NDArray[np.uint64]:
        if not len(p.option_class):
            return np.zeros(0, dtype=np.uint64)
        weighed = self._key[p.entry_row] * p.entry_coef.astype(np.uint64)
        return np.add.reduceat(weighed, p.entry_first[:-1])

    def _add(self, p: Problem, options: IntArray) -> None:
        """New columns for options that have none."""
        options = options[self._column[options] < 0]
        if not len(options):
            return
        first, row, coef = p.entry_first, p.entry_row, p.entry_coef
        known = len(self._columns)
        for j in options.tolist():
            column = self._solver.NumVar(0, 0, "")
            self._balance[self._at[p.option_class[j]]].SetCoefficient(column, 1)
            entries = slice(int(first[j]), int(first[j + 1]))
            for r, a in zip(row[entries].tolist(), coef[entries].tolist(), strict=True):
                self._rows[r].SetCoefficient(column, a)
            self._columns.append(column)
        nothing = np.zeros(len(options), dtype=np.int64)
        self._column[options] = np.arange(known, len(self._columns))
        self._code = np.concatenate([self._code, self._codes(p)[options]])
        self._mark = np.concatenate([self._mark, self._marks(p)[options]])
        self._column_ub = np.concatenate([self._column_ub, nothing])
        self._column_cost = np.concatenate([self._column_cost, nothing])
        self._grown = True

    def _set_bounds(self, p: Problem) -> None:
        """Sets what differs: bounds of rows and columns, worth and cost."""
        for r in np.flatnonzero(p.row_bound != self._row_bound).tolist():
            self._rows[r].SetUb(float(p.row_bound[r]))
        self._row_bound = p.row_bound.copy()
        mine = np.flatnonzero(self._column >= 0)
        # A class bounds its columns by its balance row, so that bounds do not move with every job.
        ub, cost = np.zeros(len(self._columns), dtype=np.int64), self._column_cost.copy()
        ub[self._column[mine]] = p.row_ub[mine]
        cost[self._column[mine]] = p.cost[mine]
        for j in np.flatnonzero(ub != self._column_ub).tolist():
            self._columns[j].SetUb(float(ub[j]))
        for j in np.flatnonzero(cost != self._column_cost).tolist():
            self._objective.SetCoefficient(self._columns[j], float(cost[j]) / MICRO)
        self._column_ub, self._column_cost = ub, cost
        served, worth = np.zeros_like(self._served_ub), self._served_worth.copy()
        served[self._at], worth[self._at] = p.waiting, p.worth
        for at, b in np.argwhere(served != self._served_ub).tolist():
            self._served[at][b].SetUb(float(served[at, b]))
        for at, b in np.argwhere(worth != self._served_worth).tolist():
            self._objective.SetCoefficient(self._served[at][b], float(-worth[at, b]) / MICRO)
        self._served_ub, self._served_worth = served, worth

    # ------------------------------------------------------------ solving

    def solve(self, p: Problem, limits: LP, steps: int) -> Relaxation:
        """The relaxation of all options; adds columns up to `steps` times where the model lacks them."""
        began_ms = self._solver.wall_time()
        idle = _idle(p)
        self.wanted = np.zeros(0, dtype=np.int64)
        last: Relaxation | None = None
        while True:
            left_s = None
            if limits.time_limit_s is not None:
                left_s = limits.time_limit_s - (self._solver.wall_time() - began_ms) / 1000
            answer = self._run(limits.iterations, left_s)
            if answer != pywraplp.Solver.OPTIMAL:
                return last or self._cut_short(p, answer, idle)
            prices, split, values = self._answer()
            reduced = reduced_costs(p, prices)
            margin = reduced - split[p.option_class]
            objective = self._objective.Value() * MICRO + idle
            out = np.flatnonzero((self._column < 0) & (margin < 0) & (p.row_ub > 0))
            missed = float((margin[out] * p.ub[out]).sum())
            y = np.zeros(len(p.option_class), dtype=np.float64)
            # Only a column without a positive reduced cost can be used.
            used = np.flatnonzero((self._column >= 0) & (margin < 1e-6 * np.maximum(reduced, MICRO)))
            y[used] = values[self._column[used]]
            share = -missed / max(abs(objective), 1.0)
            complete = share <= TOLERANCE
            last = Relaxation(
                y=y,
                objective=objective,
                duals=-prices,
                status=SolverStatus.OPTIMAL if complete else SolverStatus.LIMIT,
                reduced=reduced,
            )
            add = np.zeros(0, dtype=np.int64) if complete else _best(p, margin, out, 6)
            if complete or steps <= 0 or (steps <= STEPS and share <= SHIP):
                self.wanted = add
                return last
            steps -= 1
            self._add(p, add)
            self._set_bounds(p)

    def _answer(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of the optimum: micro-CNY per unit of each row and per job of each class, jobs per column.

        In one message: asking the wrapper for one number at a time takes three times as long.
        """
        told = linear_solver_pb2.MPSolutionResponse()
        self._solver.FillSolutionResponseProto(told)
        duals = np.fromiter(told.dual_value, dtype=np.float64, count=len(told.dual_value)) * MICRO
        values = np.fromiter(told.variable_value, dtype=np.float64, count=len(told.variable_value))
        rows = len(self._rows)  # they come first, and columns last, as they were made
        prices = np.maximum(-duals[:rows], 0)
        return prices, duals[rows:][self._at], values[len(values) - len(self._columns) :]

    def extend(self, p: Problem, options: IntArray, limits: LP) -> None:
        """Takes columns for these options of the problem it was solved for last, and solves anew."""
        self._add(p, options)
        self._set_bounds(p)
        self.go_on(limits)

    def go_on(self, limits: LP) -> None:
        """Solves further, for the sake of the next round."""
        self._run(limits.iterations, limits.time_limit_s)

    def _run(self, iterations: int | None, left_s: float | None) -> int:
        # New columns keep the basis primal feasible; other changes keep it dual feasible.
        dual = not (self._grown and self._solved)
        # Milliseconds; 0 is no limit.
        self._solver.SetTimeLimit(0 if left_s is None else max(1, int(left_s * 1000)))
        text = "use_scaling: false"
        if iterations is not None:
            text += f" max_number_of_iterations: {iterations}"
        self._solver.SetSolverSpecificParametersAsString(text)
        answer: int = self._solver.Solve(_DUAL if dual else _PRIMAL)
        self._grown, self._solved = False, True
        return answer

    def _cut_short(self, p: Problem, answer: int, idle: float) -> Relaxation:
        """What there is when the solver did not come to the end."""
        y = np.zeros(len(p.option_class), dtype=np.float64)
        duals = np.zeros(len(p.row_bound), dtype=np.float64)
        if answer != pywraplp.Solver.FEASIBLE:
            status = SolverStatus.LIMIT if answer == pywraplp.Solver.NOT_SOLVED else SolverStatus.FAILED
            return Relaxation(y=y, objective=0.0, duals=duals, status=status)
        mine = np.flatnonzero(self._column >= 0)
        y[mine] = [self._columns[c].solution_value() for c in self._column[mine].tolist()]
        objective = self._objective.Value() * MICRO + idle
        return Relaxation(y=y, objective=objective, duals=duals, status=SolverStatus.LIMIT)


def _idle(p: Problem) -> float:
    return float((p.worth * p.waiting.astype(np.float64)).sum())


def _parameters(algorithm: int) -> pywraplp.MPSolverParameters:
    parameters = pywraplp.MPSolverParameters()
    for key, value in (
        (parameters.LP_ALGORITHM, algorithm),
        (parameters.PRESOLVE, parameters.PRESOLVE_OFF),
        (parameters.INCREMENTALITY, parameters.INCREMENTALITY_ON),
    ):
        parameters.SetIntegerParam(key, value)
    return parameters


_DUAL = _parameters(pywraplp.MPSolverParameters.DUAL)
_PRIMAL = _parameters(pywraplp.MPSolverParameters.PRIMAL)


def solve(problem: Problem, *, lp: LP | None = None) -> Relaxation:
    """The relaxation of `problem`; see LP for the limits."""
    able = problem.ub > 0
    if not able.any() or problem.waiting.sum() == 1:
        y = _cheapest(problem, able)
        return Relaxation(
            y=y,
            objective=float(problem.objective(y.astype(np.int64))),
            duals=np.zeros(len(problem.row_bound), dtype=np.float64),
            status=SolverStatus.UNUSED,
        )
    return (lp or LP()).relax(problem)


def _cheapest(problem: Problem, able: BoolArray) -> FloatArray:
    """The optimum where at most one job can start: it does, by the cheapest option it is able to use,
    as long as it is worth that."""
    y = np.zeros(len(problem.option_class), dtype=np.float64)
    first = problem.by_cost[able[problem.by_cost]][:1]
    worth = np.where(problem.waiting > 0, problem.worth, 0).max(initial=0)
    y[first[problem.cost[first] < worth]] = 1
    return y
