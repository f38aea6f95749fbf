"""A scripted center in memory, on a clock that the caller drives: for tests and simulation.

Here: a platform that behaves as told, keeps exact capacity and writes down the ground truth.  Not
here: anything that waits.  A run's whole life follows from its script and the clock, so a look at
any moment, also at an earlier one (`report_lag_s`, `lookup_lag_s`), is a calculation.

What finds no room is refused, unless the traits say that the platform's queue knows priorities: then
it waits there, higher ones first, and nothing overtakes the first that waits for a pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from adapters.nodes import Held, Room, histogram, misfit, pack, rooms
from broker.adapter import (
    AdapterError,
    Catalogue,
    Check,
    CopyRef,
    CopySighting,
    CopyState,
    Denied,
    Inventory,
    Lookup,
    NoCapacity,
    PoolReport,
    RawAnswer,
    Refused,
    RemoteState,
    ResultFile,
    RunRef,
    RunSpec,
    Sighting,
    Spans,
    StatedPool,
    Throttled,
    Traits,
    Unavailable,
    Unsupported,
)
from broker.core.model import Accuracy, CenterId, JobId, RemoteId, RunId

TRAITS = Traits(
    gang=True,
    resume=True,
    logs=True,
    results=True,
    services=True,
    idle=Accuracy.EXACT,
    lookup=Lookup.FIND_BY_NAME,
)


@dataclass(frozen=True, slots=True)
class Script:
    """The life of a run.  Seconds after its submission (`vanish_s`), after there was room for it
    (`queue_s`), or after its start (others)."""

    queue_s: int = 0
    run_s: int = 60
    exit_code: int = 0
    evict_s: int | None = None  # killed by the platform for `evicted_by`
    evicted_by: str = "another user's job"
    host_lost_s: int | None = None
    vanish_s: int | None = None  # from then on the platform says that it does not exist
    cannot_start: bool = False  # ends at its start
    checkpoint_s: int | None = None  # writes a checkpoint each time so many seconds have passed
    stop_s: int = 0  # how long it takes to end after a stop, at most the grace
    log: bytes = b""
    results: Mapping[str, bytes] = field(default_factory=dict)


class Fault(StrEnum):
    """What becomes of one call."""

    DROPPED = "dropped"  # nothing happens, Unavailable
    LOST_REPLY = "lost reply"  # it happens, Unavailable
    NO_CAPACITY = "no capacity"
    REFUSED = "refused"
    DENIED = "denied"
    THROTTLED = "throttled"


_ERRORS: Mapping[Fault, Callable[[str], AdapterError]] = {
    Fault.DROPPED: Unavailable,
    Fault.LOST_REPLY: Unavailable,
    Fault.NO_CAPACITY: NoCapacity,
    Fault.REFUSED: Refused,
    Fault.DENIED: Denied,
    Fault.THROTTLED: lambda message: Throttled(message, retry_after_s=5.0),
}
_WITH_EFFECT = frozenset({"submit", "start", "stop", "delete", "stage", "unstage"})
_NEVER_MS = 2**62


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached, or was meant to reach, the center."""

    at_ms: int
    name: str
    run: RunId | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """One start of a run's command; `end_ms` is None while it goes on."""

    run: RunId
    job: JobId
    start_ms: int
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class _Run:
    spec: RunSpec
    script: Script
    held: Held
    submitted_ms: int
    placed_ms: int | None  # when there was room for it; None: it waits for that
    asked_ms: int | None  # when its life begins: with its submission, or with its start
    stopped_ms: int | None = None  # when a stop takes it down
    before: tuple[Execution, ...] = ()  # those that a second start ended

    @property
    def start_ms(self) -> int:
        if self.placed_ms is None or self.asked_ms is None:
            return _NEVER_MS
        return max(self.placed_ms, self.asked_ms) + self.script.queue_s * 1000

    def holds(self, at_ms: int) -> bool:
        return self.placed_ms is not None and self.placed_ms <= at_ms < self.end[0]

    def started(self, now_ms: int) -> int | None:
        """When its command started, if it has: not when it ended in the queue."""
        end_ms, last = self.end
        in_queue = end_ms < self.start_ms or (
            end_ms == self.start_ms and last.state in (RemoteState.STOPPED, RemoteState.GONE)
        )
        return None if in_queue or now_ms < self.start_ms else self.start_ms

    @property
    def end(self) -> tuple[int, Sighting]:
        """When it ends and as what, as things stand: the earliest of all its possible ends."""
        script, start_ms = self.script, self.start_ms

        def after(seconds: int) -> int:
            return start_ms + seconds * 1000

        succeeded = script.exit_code == 0
        own = Sighting(
            RemoteState.SUCCEEDED if succeeded else RemoteState.FAILED,
            exit_code=script.exit_code,
            message="" if succeeded else f"exit code {script.exit_code}",
        )
        failed = Sighting(RemoteState.FAILED)
        ends = [(after(script.run_s), own)]
        if script.cannot_start:
            ends.append((after(0), replace(failed, exit_code=127, cannot_start=True, message="not found")))
        if script.evict_s is not None:
            ends.append((after(script.evict_s), replace(failed, evicted_by=script.evicted_by)))
        if script.host_lost_s is not None:
            ends.append((after(script.host_lost_s), replace(failed, host_lost=True)))
        if self.asked_ms is None:
            ends = [(_NEVER_MS, Sighting(RemoteState.CREATED))]
        if script.vanish_s is not None:
            ends.append((self.submitted_ms + script.vanish_s * 1000, Sighting(RemoteState.GONE)))
        if self.stopped_ms is not None:
            ends.append((self.stopped_ms, Sighting(RemoteState.STOPPED)))
        return min(ends, key=lambda end: end[0])

    def at(self, now_ms: int) -> Sighting:
        end_ms, last = self.end
        started_ms = self.started(now_ms)
        if now_ms < end_ms and self.asked_ms is None:
            return Sighting(RemoteState.CREATED)
        checkpoint_ms = self.checkpoint(min(now_ms, end_ms))
        if now_ms < end_ms:
            state = RemoteState.PENDING if started_ms is None else RemoteState.RUNNING
            return Sighting(state, started_ms=started_ms, checkpoint_ms=checkpoint_ms)
        if last.state is RemoteState.GONE:
            return last
        return replace(last, started_ms=started_ms, ended_ms=end_ms, checkpoint_ms=checkpoint_ms)

    def checkpoint(self, now_ms: int) -> int | None:
        """When its newest checkpoint was written."""
        every_s = self.script.checkpoint_s
        if every_s is None or now_ms - self.start_ms < every_s * 1000:
            return None
        return now_ms - (now_ms - self.start_ms) % (every_s * 1000)


class Fake:
    """A center that lives by scripts.

    `clock` gives milliseconds since the epoch; it may stand still, and never goes back.  Reads may
    be late by what the traits say: probe by `report_lag_s`, find by `lookup_lag_s`.
    """

    def __init__(
        self,
        center: CenterId,
        clock: Callable[[], int],
        *,
        pools: Sequence[StatedPool],
        traits: Traits = TRAITS,
    ) -> None:
        self.center = center
        self.traits = traits
        self.calls: list[Call] = []
        self._clock = clock
        self._pools = {pool.native: pool for pool in pools}
        self._runs: dict[RunId, _Run] = {}
        self._queue: list[RunId] = []  # those that wait for room
        self._holding: list[RunId] = []  # those that may hold capacity at a moment still asked for
        self._deleted: set[RunId] = set()
        self._default = Script()
        self._scripts: dict[str, Script] = {}
        self._next: deque[Script] = deque()
        self._faults: dict[str, deque[Fault]] = {}
        self._silences: list[tuple[int, int]] = []
        self._foreign: list[tuple[str, int, int, int]] = []
        self.record_lag_s = 60  # with traits.metering: how late its records are
        self.record_skew_s = 0  # and how much earlier than it did a run ended by them

    # ------------------------------------------------------------ what a test says

    def script(self, script: Script, *, of: RunId | JobId | None = None) -> None:
        """How later submissions live: those of one run or job, or (None) all that nothing else names."""
        if of is None:
            self._default = script
        else:
            self._scripts[of] = script

    def script_next(self, *scripts: Script) -> None:
        """How the next submissions live, one each, in order; names and the default come after."""
        self._next.extend(scripts)

    def fail(self, call: str, *faults: Fault) -> None:
        """What becomes of the next calls of the method `call`, one fault each, in order."""
        self._faults.setdefault(call, deque()).extend(faults)

    def silence(self, from_ms: int, until_ms: int) -> None:
        """In [from_ms, until_ms) nothing reaches the center; its runs live on."""
        self._silences.append((from_ms, until_ms))

    def foreign(self, pool: str, nodes: int, from_ms: int, until_ms: int) -> None:
        """In [from_ms, until_ms) others have the last `nodes` nodes of `pool`, whole.

        A run of ours that is on one of them stays there; the node is simply full.
        """
        self._foreign.append((pool, nodes, from_ms, until_ms))

    @property
    def executions(self) -> list[Execution]:
        """Ground truth: every start so far, in order."""
        self._let_in()
        now_ms = self._clock()
        started: list[Execution] = []
        for run in self._runs.values():
            started += run.before
            if (start_ms := run.started(now_ms)) is not None:
                end_ms = run.end[0] if run.end[0] <= now_ms else None
                started.append(Execution(run.spec.id, run.spec.job, start_ms, end_ms))
        return sorted(started, key=lambda e: (e.start_ms, e.run))

    # ------------------------------------------------------------ capacity

    def _rooms(self, pool: StatedPool, at_ms: int) -> list[Room]:
        over_ms = self._clock() - self.traits.report_lag_s * 1000  # no later look is before this
        self._holding = [id for id in self._holding if self._runs[id].end[0] > over_ms]
        runs = [self._runs[id] for id in self._holding]
        return self._left(pool, at_ms, runs)

    def _left(self, pool: StatedPool, at_ms: int, runs: Iterable[_Run]) -> list[Room]:
        """What `runs`, and others, leave of each node of a pool."""
        mine = (run.held for run in runs if run.spec.native_pool == pool.native and run.holds(at_ms))
        free = rooms(pool.shape, pool.nodes, mine)
        for native, nodes, from_ms, until_ms in self._foreign:
            if native == pool.native and from_ms <= at_ms < until_ms:
                taken = min(nodes, pool.nodes)
                free[pool.nodes - taken :] = [(0, 0, 0, ())] * taken
        return free

    async def probe(self) -> Inventory:
        self._begin("probe")
        as_of_ms = self._clock()
        seen_ms = as_of_ms - self.traits.report_lag_s * 1000
        pools = tuple(
            PoolReport(pool.native, pool.shape, pool.nodes, histogram(self._rooms(pool, seen_ms)))
            for pool in self._pools.values()
        )
        return Inventory(as_of_ms, self.traits.idle, pools)

    # ------------------------------------------------------------ a run's life

    async def submit(self, run: RunSpec) -> RemoteId:
        """One run per id: a second submission answers with the first."""
        fault = self._begin("submit", run.id)
        if run.id not in self._runs:
            pool = self._pools.get(run.native_pool)
            if pool is None:
                raise Refused(f"pool is {run.native_pool!r}, expected one of {sorted(self._pools)}")
            if why := misfit(run.spec.shape, pool.shape):
                raise Refused(f"pool {pool.native!r}: {why}")
            if pack(pool.shape, rooms(pool.shape, pool.nodes, ()), run.spec.shape, run.nodes) is None:
                raise Refused(f"pool {pool.native!r}: nodes is {run.nodes}, more than it can ever hold")
            now_ms = self._clock()
            on = pack(pool.shape, self._rooms(pool, now_ms), run.spec.shape, run.nodes)
            queues = self.traits.priority or self.traits.vip_wait
            if on is None and not queues:
                raise NoCapacity(f"pool {pool.native!r} has no room for {run.nodes} x {run.spec.name}")
            held = Held(run.spec.shape, () if queues or on is None else on)
            placed_ms = None if queues else now_ms
            asked_ms = None if self.traits.two_phase_create else now_ms
            self._runs[run.id] = _Run(run, self._script(run), held, now_ms, placed_ms, asked_ms)
            self._holding.append(run.id)
            if queues:
                self._queue.append(run.id)
                self._let_in()
        self._reply(fault, "submit")
        return RemoteId(run.id)

    def _waiting(self) -> list[_Run]:
        """Runs that wait for room, those that go first before the others."""

        def order(run: _Run) -> tuple[int, bool, int, RunId]:
            priority = run.spec.priority if self.traits.priority else 0
            behind = not (run.spec.vip and self.traits.vip_wait)
            return (-priority, behind, run.submitted_ms, run.spec.id)

        return sorted((self._runs[id] for id in self._queue), key=order)

    def _let_in(self) -> None:
        """Give room to runs that wait, at the earliest moment at which there was some."""
        while self._queue and (found := self._next_in()) is not None:
            run, on, at_ms = found
            held = Held(run.spec.spec.shape, on)
            self._runs[run.spec.id] = replace(run, held=held, placed_ms=at_ms)
            self._queue.remove(run.spec.id)

    def _next_in(self) -> tuple[_Run, tuple[int, ...], int] | None:
        now_ms, waiting = self._clock(), self._waiting()
        ends = {run.end[0] for run in self._runs.values()}
        for at_ms in sorted({*(end for end in ends if end <= now_ms), now_ms}):
            blocked: set[str] = set()
            for run in waiting:
                pool, spec = self._pools[run.spec.native_pool], run.spec
                asked_ms = run.asked_ms
                if asked_ms is None or not asked_ms <= at_ms < run.end[0] or pool.native in blocked:
                    continue
                left = self._left(pool, at_ms, self._runs.values())
                if (on := pack(pool.shape, left, spec.spec.shape, spec.nodes)) is not None:
                    return run, on, at_ms
                blocked.add(pool.native)
        return None

    def _script(self, run: RunSpec) -> Script:
        if self._next:
            return self._next.popleft()
        return self._scripts.get(run.id) or self._scripts.get(run.job) or self._default

    def _there(self, id: RunId) -> _Run | None:
        return None if id in self._deleted else self._runs.get(id)

    async def start(self, run: RunRef) -> None:
        """Start a created run.  A second start ends the first execution and begins anew."""
        if not self.traits.two_phase_create:
            raise Unsupported("a run of this center starts when it is submitted")
        fault = self._begin("start", run.id)
        there = self._there(run.id)
        if there is None:
            raise Refused(f"there is no run {run.id}")
        now_ms = self._clock()
        before = there.before
        if (start_ms := there.started(now_ms)) is not None:
            before = (*before, Execution(run.id, run.job, start_ms, min(now_ms, there.end[0])))
        self._runs[run.id] = replace(there, asked_ms=now_ms, stopped_ms=None, before=before)
        self._let_in()
        self._reply(fault, "start")

    async def find(self, run: RunId) -> RemoteId | None:
        self._begin("find", run)
        there = self._there(run)
        seen_ms = self._clock() - self.traits.lookup_lag_s * 1000
        if there is None or there.submitted_ms > seen_ms:
            return None
        return None if there.at(self._clock()).state is RemoteState.GONE else RemoteId(run)

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        self._begin("observe")
        now_ms = self._clock()
        found = {ref.id: self._there(ref.id) for ref in runs}
        return {id: run.at(now_ms) if run else Sighting(RemoteState.GONE) for id, run in found.items()}

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        fault = self._begin("stop", run.id)
        there = self._there(run.id)
        now_ms = self._clock()
        if there is not None and there.asked_ms is not None and now_ms < there.end[0]:
            # A run that has not started has nothing to wind down.
            takes_s = min(there.script.stop_s, grace_s) if there.start_ms <= now_ms else 0
            stopped_ms = now_ms + takes_s * 1000
            earlier_ms = there.stopped_ms or stopped_ms
            self._runs[run.id] = replace(there, stopped_ms=min(stopped_ms, earlier_ms))
        self._reply(fault, "stop")

    async def delete(self, run: RunRef) -> None:
        """Raises Unavailable for a live run."""
        fault = self._begin("delete", run.id)
        there = self._there(run.id)
        if there is not None:
            if there.asked_ms is not None and self._clock() < there.end[0]:
                raise Unavailable(f"run {run.id} is live, expected an ended one")
            self._deleted.add(run.id)
        self._reply(fault, "delete")

    async def metered(self, runs: Collection[RunRef]) -> Mapping[RunId, Spans]:
        fault = self._begin("metered")
        lag_ms, skew_ms = self.record_lag_s * 1000, self.record_skew_s * 1000
        nodes = {run.id: run.nodes for run in runs}
        found = {
            each.run: ((each.start_ms, each.end_ms - skew_ms),) * nodes[each.run]
            for each in self.executions
            if each.run in nodes and each.end_ms is not None and each.end_ms + lag_ms <= self._clock()
        }
        self._reply(fault, "metered")
        return found

    # ------------------------------------------------------------ files and the rest

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        """The script's log, the same for each node, from the run's start on."""
        self._begin("logs", run.id)
        there = self._there(run.id)
        if there is None or not 0 <= node < there.spec.nodes or there.started(self._clock()) is None:
            return
        if text := there.script.log[offset:]:
            yield text

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        """The script's results, once the run has ended."""
        self._begin("results", run.id)
        there = self._there(run.id)
        if there is not None and there.at(self._clock()).ended_ms is not None:
            for path, content in sorted(there.script.results.items()):
                yield ResultFile(path, len(content), _once(content))

    async def stage(self, copy: CopyRef) -> CopySighting:
        fault = self._begin("stage")
        self._reply(fault, "stage")
        return CopySighting(CopyState.READY, remote=f"/data/{copy.dataset}", bytes_done=copy.bytes)

    async def unstage(self, copy: CopyRef) -> None:
        fault = self._begin("unstage")
        self._reply(fault, "unstage")

    async def catalogue(self) -> Catalogue:
        self._begin("catalogue")
        return Catalogue()

    async def checks(self) -> AsyncIterator[Check]:
        self._begin("checks")
        yield Check("runs", True, f"{len(self._runs)} known")

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        raise Unsupported("a scripted center has no interface to call")

    async def aclose(self) -> None:
        """Nothing is open."""

    # ------------------------------------------------------------ faults

    def _begin(self, name: str, run: RunId | None = None) -> Fault | None:
        """Write the call down; raise what prevents it.  A lost reply is left to `_reply`."""
        now_ms = self._clock()
        self._let_in()
        silent = any(from_ms <= now_ms < until_ms for from_ms, until_ms in self._silences)
        waiting = self._faults.get(name)
        fault = Fault.DROPPED if silent else waiting.popleft() if waiting else None
        self.calls.append(Call(now_ms, name, run, fault))
        if fault is Fault.LOST_REPLY and name in _WITH_EFFECT:
            return fault
        if fault is not None:
            raise _ERRORS[fault](f"{name}: {fault}")
        return None

    def _reply(self, fault: Fault | None, name: str) -> None:
        if fault is not None:
            raise _ERRORS[fault](f"{name}: {fault}")


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
