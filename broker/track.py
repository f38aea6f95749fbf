"""Looks at the runs of one center, in batches, and turns what is seen into events.

What belongs here: looking, the meaning of a sighting, look-ups of runs in doubt, run-time limits,
silence, and copying logs that somebody reads.  What does not: calls with an effect (dispatch) and
what is kept after the end (collect).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from broker.adapter import Adapter, AdapterError, Lookup, RemoteState, RunRef, Sighting, Traits, Unavailable
from broker.config import SchedulerSettings
from broker.connections import Connections, timed
from broker.core import events
from broker.core.events import (
    Found,
    NotFound,
    SeenCreated,
    SeenFailed,
    SeenGone,
    SeenPending,
    SeenRunning,
    SeenStopped,
    SeenSucceeded,
    WentSilent,
)
from broker.core.model import CenterId, FailureKind, OnLost, RunId, RunState, StopReason
from broker.files import DataDirectory
from broker.leader import Lease
from broker.logs import append_log
from broker.reports import readable, remote_name
from broker.store import Store, debts, runs
from broker.store.runs import Watched
from broker.telemetry import log

DOUBT_HOT_S = 120
"""A run is looked for that often for so long after its submission; later with the others."""
CHECKPOINT_STEP_S = 300
"""A checkpoint of a run that goes on is kept when it is so much newer than the one that is known."""
OBSERVE_TIMEOUT_S = 30
LOG_TIMEOUT_S = 30


class Track:
    """One center's tracker; `once()` looks at all its runs."""

    def __init__(
        self,
        center: CenterId,
        *,
        store: Store,
        lease: Lease,
        connections: Connections,
        files: DataDirectory,
        settings: SchedulerSettings,
    ) -> None:
        self._center = center
        self._store = store
        self._lease = lease
        self._connections = connections
        self._files = files
        self._settings = settings
        self._answered_ms = store.clock()

    async def once(self) -> float | None:
        """One look; the pause until the next when it should be short (see pause_s)."""
        watched = await self._store.read(runs.watched, self._center, self._store.clock())
        if not watched:
            self._answered_ms = self._store.clock()
            return None
        began = asyncio.get_running_loop().time()
        try:
            adapter = await self._connections.adapter(self._center)
            await self._look(adapter, watched)
            await self._look_up(adapter, watched)
        except (AdapterError, TimeoutError) as error:
            await self._silence(watched, error)
            return None
        self._answered_ms = self._store.clock()
        await self._limits(watched)
        await self._copy_logs(adapter, watched)
        if not any(_hot(w, self._store.clock()) for w in watched):
            return None
        return self.pause_s(adapter.traits, asyncio.get_running_loop().time() - began)

    def pause_s(self, traits: Traits, took_s: float) -> float:
        """Until the next look while a stop is on its way, a run is about to start or a log is read.

        A look at a remote center is calls, which share its `requests_per_s` with submissions and stops:
        so no shorter than the look itself took, and never longer than where nothing is about to happen.
        """
        period_s = self._connections.settings(self._center).poll_interval_s
        return min(period_s, max(traits.look_pause_s, took_s))

    # ------------------------------------------------------------ looking

    async def _look(self, adapter: Adapter, watched: Sequence[Watched]) -> None:
        """Observe every run whose remote id is known."""
        known = [w for w in watched if w.remote is not None]
        for first in range(0, len(known), adapter.traits.max_batch):
            batch = known[first : first + adapter.traits.max_batch]
            refs = [RunRef(w.run, w.job, w.remote, w.nodes) for w in batch if w.remote is not None]
            asked_ms = self._store.clock()
            seen = await timed(self._center, "observe", partial(adapter.observe, refs), OBSERVE_TIMEOUT_S)
            await asyncio.gather(*(self._record(w, seen, asked_ms) for w in batch))

    async def _record(self, watched: Watched, seen: Mapping[RunId, Sighting], asked_ms: int) -> None:
        if watched.run not in seen:
            return  # no news
        sighting = readable(seen[watched.run], self._store.clock())
        if not watched.state.live:
            if not still_there(
                sighting.state, asked_ms, not_after_ms=watched.not_after_ms, lookup_lag_s=watched.lookup_lag_s
            ):
                await self._store.write(debts.settle, watched.run, epoch=self._lease.epoch, stop=True)
            return
        await self._note_checkpoint(watched, sighting)
        event = event_of(sighting, self._store.clock())
        if event is not None and not _nothing_new(watched, event, sighting.address):
            await self._advance(watched, event, address=sighting.address or None)

    async def _note_checkpoint(self, watched: Watched, seen: Sighting) -> None:
        """Keep a newer checkpoint, of a run that goes on only now and then: each is an event."""
        at_ms = newer_checkpoint_ms(watched.checkpoint_ms, seen.checkpoint_ms, self._store.clock())
        if at_ms is None:
            return
        goes_on = seen.state is RemoteState.RUNNING and watched.stop is None
        if goes_on and at_ms - (watched.checkpoint_ms or 0) < CHECKPOINT_STEP_S * 1000:
            return
        await self._store.write(runs.note_checkpoint, watched.run, at_ms, epoch=self._lease.epoch)

    async def _advance(self, watched: Watched, event: events.Event, *, address: str | None = None) -> None:
        state = await self._store.write(
            runs.advance, watched.run, event, epoch=self._lease.epoch, address=address
        )
        if state is not watched.state:
            log.info(
                "run",
                job=watched.job,
                run=watched.run,
                center=self._center,
                seen=type(event).__name__,
                state=state,
            )
        if not state.live:  # its capacity is free: look at the center at once
            self._store.wakeup(f"inventory:{self._center}").set()

    async def _look_up(self, adapter: Adapter, watched: Sequence[Watched]) -> None:
        """Look for runs whose submission had no answer, by their names (law 2).

        Where looking can only show that a run is there, finding nothing changes nothing.
        """
        if adapter.traits.lookup is Lookup.NEITHER:
            return
        for run in watched:
            sought = run.remote is None and (run.state is RunState.DOUBT or not run.state.live)
            if not sought or self._store.clock() <= run.not_after_ms:
                continue
            remote = await timed(self._center, "find", partial(adapter.find, run.run), OBSERVE_TIMEOUT_S)
            now = self._store.clock()
            if remote is not None:
                try:
                    found = remote_name(remote)
                except Unavailable as odd:
                    log.warning("found_under_no_name", center=self._center, run=run.run, error=str(odd))
                else:
                    await self._advance(run, Found(now, found))
            elif run.state.live and adapter.traits.lookup is not Lookup.EVIDENCE:
                await self._advance(run, NotFound(now))

    # ------------------------------------------------------------ limits and silence

    async def _limits(self, watched: Sequence[Watched]) -> None:
        """Ask runs that are over their maxRunTime to stop."""
        now = self._store.clock()
        for run in watched:
            if run.state is not RunState.RUNNING or run.max_run_time_s is None or run.started_ms is None:
                continue
            if run.stop is None and now - run.started_ms >= run.max_run_time_s * 1000:
                await self._store.write(
                    runs.request_stop, run.run, StopReason.DEADLINE, epoch=self._lease.epoch
                )

    async def _silence(self, watched: Sequence[Watched], error: Exception) -> None:
        """The center did not answer: after long enough its runs are LOST (northbound UNKNOWN).

        Runs that would be repeated or given up on that word stay as they are while no center at all
        answers: then it is more likely this side that is cut off.
        """
        now = self._store.clock()
        silent_s = (now - self._answered_ms) / 1000
        log.warning("observe_failed", center=self._center, silent_s=silent_s, error=str(error))
        if silent_s < self._settings.silent_after_s:
            return
        alone = await self._store.read(runs.no_center_answers)
        for run in watched:
            if run.state not in (RunState.PENDING, RunState.RUNNING):
                continue
            if run.on_lost is OnLost.WAIT or not alone:
                await self._advance(run, WentSilent(now))

    # ------------------------------------------------------------ logs

    async def _copy_logs(self, adapter: Adapter, watched: Sequence[Watched]) -> None:
        """Copy what is new in logs that somebody reads."""
        if not adapter.traits.logs:
            return
        for run in watched:
            if run.remote is None or (run.logs_wanted_ms or 0) < self._store.clock():
                continue
            ref = RunRef(run.run, run.job, run.remote, run.nodes)
            try:
                async with asyncio.timeout(LOG_TIMEOUT_S):
                    for node in range(run.nodes):
                        await append_log(
                            adapter, ref, node, self._files.log(run.run, node), most=self._files.max_log_bytes
                        )
            except (AdapterError, TimeoutError, OSError) as error:
                log.warning("log_not_copied", run=run.run, center=self._center, error=str(error))
                continue  # the next look goes on where this copy ended
            await self._store.write(runs.touch_logs, run.run, epoch=self._lease.epoch)


def still_there(seen: RemoteState, asked_ms: int, *, not_after_ms: int, lookup_lag_s: int) -> bool:
    """Whether a run that is over here may be at work at its center, or begin to, as the center said when it
    was asked.

    What was only created begins with a start of ours alone, none leaves after `not_after_ms`, and what one
    did is seen `lookup_lag_s` later; some platforms call it created for ever, whatever is asked of it.
    """
    if seen is RemoteState.CREATED:
        return asked_ms <= not_after_ms + lookup_lag_s * 1000
    return seen in (RemoteState.PENDING, RemoteState.RUNNING, RemoteState.UNKNOWN)


def _hot(run: Watched, now_ms: int) -> bool:
    return (
        run.state is RunState.PENDING
        or (run.state is RunState.DOUBT and now_ms < run.not_after_ms + DOUBT_HOT_S * 1000)
        or run.stop is not None
        or (run.logs_wanted_ms or 0) > now_ms
    )


def _nothing_new(run: Watched, event: events.Event, address: str) -> bool:
    if run.missing_ms is not None or address not in ("", run.address):
        return False
    if isinstance(event, SeenCreated):
        return run.state is RunState.PENDING and run.start_sent and run.started_ms is None
    if isinstance(event, SeenRunning):
        return run.state is RunState.RUNNING and event.started_ms in (None, run.started_ms)
    return isinstance(event, SeenPending) and run.state is RunState.PENDING and not event.message


def newer_checkpoint_ms(known_ms: int | None, seen_ms: object, now_ms: int) -> int | None:
    """The time of a checkpoint that is news; None when it is not, or cannot be true.

    A job can give its files any time, and a center's clock may be fast: the future is no evidence.
    """
    if type(seen_ms) is not int or not 0 < seen_ms <= now_ms:
        return None
    return seen_ms if known_ms is None or seen_ms > known_ms else None


def event_of(seen: Sighting, now_ms: int) -> events.Event | None:
    """What a sighting means for the machine; None: a word we do not know, nothing changes."""
    match seen.state:
        case RemoteState.CREATED:
            return SeenCreated(now_ms)
        case RemoteState.PENDING:
            return SeenPending(now_ms, seen.message)
        case RemoteState.RUNNING:
            return SeenRunning(now_ms, seen.started_ms)
        case RemoteState.SUCCEEDED:
            return SeenSucceeded(now_ms, seen.started_ms, seen.ended_ms)
        case RemoteState.FAILED:
            return SeenFailed(
                now_ms,
                failure_of(seen),
                seen.message or _why_failed(seen),
                seen.started_ms,
                seen.ended_ms,
                seen.exit_code,
            )
        case RemoteState.STOPPED if seen.evicted_by:
            return SeenFailed(
                now_ms, FailureKind.EVICTED, _why_failed(seen), seen.started_ms, seen.ended_ms, seen.exit_code
            )
        case RemoteState.STOPPED:
            return SeenStopped(now_ms, seen.message, seen.started_ms, seen.ended_ms)
        case RemoteState.GONE:
            return SeenGone(now_ms)
        case RemoteState.UNKNOWN:
            return None


def _why_failed(seen: Sighting) -> str:
    """What a user is told of a failure that the center has no words for."""
    if seen.evicted_by:
        return f"evicted by {seen.evicted_by}"
    return f"ended with exit code {seen.exit_code}"


def failure_of(seen: Sighting) -> FailureKind:
    """Why a run that the center calls failed did fail."""
    if seen.evicted_by:
        return FailureKind.EVICTED
    if seen.host_lost:
        return FailureKind.HOST
    return FailureKind.COMMAND if seen.cannot_start else FailureKind.JOB
