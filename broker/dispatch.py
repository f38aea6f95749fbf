"""Makes the calls that have an effect: submissions and starts from the outbox, stops and deletions
that are owed.

What belongs here: claiming, the deadline and lease check right before a call, and what each kind of
answer means.  A claimed call whose outcome is not recorded is never sent again by anybody (law 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace

from broker.adapter import (
    Adapter,
    AdapterError,
    Denied,
    NoCapacity,
    Refused,
    RunRef,
    RunSpec,
    Throttled,
    Traits,
    Unsupported,
)
from broker.connections import Connections, timed
from broker.core import events
from broker.core.events import Accepted, OutcomeUnknown, SubmitRefused
from broker.core.model import (
    CenterFacts,
    CenterId,
    CenterState,
    FailureKind,
    Health,
    RunState,
    Tier,
)
from broker.core.retry import debt_pause_s
from broker.leader import Lease
from broker.reports import remote_name
from broker.store import LostLease, Store, StoreUnavailable, centers, copies, debts, outbox, runs
from broker.store.debts import Debt
from broker.store.outbox import Submission
from broker.telemetry import DEBTS, log

STOP_TIMEOUT_S = 30
DEBTS_AT_ONCE = 1000
"""Read at once: more than one hanging center can keep from being tried."""
RECORD_AGAIN_S = 1.0
DEFAULT_PORT = 8080
"""Of an online service that names none."""


class Dispatch:
    """`once()` claims what waits and starts the calls; they end by themselves.

    At most `concurrency` calls run at one center.  `drain()` waits for those under way.
    """

    def __init__(self, *, store: Store, lease: Lease, connections: Connections, concurrency: int) -> None:
        self._store = store
        self._lease = lease
        self._connections = connections
        self._concurrency = concurrency
        self._calls: dict[CenterId, set[asyncio.Task[None]]] = {}
        self._indebted: set[str] = set()

    async def once(self) -> None:
        """Start what may start now."""
        await self._submissions()
        await self._debts()

    async def abandon(self) -> None:
        """Give up the calls under way: their outcomes are not this daemon's to record any more."""
        for calls in self._calls.values():
            for task in calls:
                task.cancel()
        await self.drain()

    async def drain(self) -> None:
        """Wait for the calls under way; each has its own deadline."""
        while tasks := {task for calls in self._calls.values() for task in calls}:
            await asyncio.wait(tasks)

    # ------------------------------------------------------------ submissions and starts

    async def _submissions(self) -> None:
        waiting = await self._store.read(outbox.waiting_centers, self._store.clock())
        if not waiting:
            return
        facts = {c.id: c for c in await self._store.read(centers.center_facts)}
        for center in waiting:
            adapter = self._connections.current(center)
            if adapter is None or not _takes(facts.get(center)):
                # A silent center may come back and start what it has created; a closed one does not.
                closed = (known := facts.get(center)) is not None and known.state is not CenterState.ACTIVE
                recalled = await self._store.write(
                    outbox.recall_unsent, center, epoch=self._lease.epoch, starts=closed
                )
                if recalled:
                    log.warning("placements_recalled", center=center, runs=recalled)
                continue
            room = self._concurrency - len(self._calls.get(center, ()))
            if room > 0:
                await self._claim(center, adapter, room)

    async def _claim(self, center: CenterId, adapter: Adapter, room: int) -> None:
        now = self._store.clock()
        # It may end after the lease: it leaves before, and the next leader doubts it until `not_after`.
        not_after = now + adapter.traits.submit_timeout_s * 1000
        claimed = await self._store.write(
            outbox.claim,
            epoch=self._lease.epoch,
            center=center,
            limit=room,
            not_after_ms=not_after,
            lookup_lag_s=adapter.traits.lookup_lag_s,
        )
        for submission in claimed:
            self._start(center, self._send(adapter, submission), f"submit {submission.run}")

    def _start(self, center: CenterId, call: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(call, name=name)
        self._calls.setdefault(center, set()).add(task)
        task.add_done_callback(lambda done: self._ended(center, done))

    def _ended(self, center: CenterId, task: asyncio.Task[None]) -> None:
        self._calls[center].discard(task)
        self._store.wakeup("dispatch").set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call_not_recorded", task=task.get_name(), error=repr(error))

    async def _send(self, adapter: Adapter, submission: Submission) -> None:
        """One claimed call and its outcome."""
        now = self._store.clock()
        try:
            self._lease.check()
            late = now >= submission.not_after_ms
        except LostLease:  # it has run out; it may be renewed yet, and then nobody else leads
            late = True
        if late:
            await self._unclaim(submission, now)
            return
        try:
            event = await self._call(adapter, submission, (submission.not_after_ms - now) / 1000)
        except Throttled as busy:
            wait_ms = int(max(busy.retry_after_s, 0.1) * 1000)
            await self._unclaim(submission, self._store.clock() + wait_ms)
            return
        state = await self._record(submission, event)
        log.info(
            "submitted",
            job=submission.job,
            run=submission.run,
            center=submission.center,
            outcome=type(event).__name__,
            state=state,
        )
        self._store.wakeup(f"track:{submission.center}").set()

    async def _record(self, submission: Submission, event: events.Event) -> RunState:
        """Write the outcome down, however long the store takes: nobody else knows it."""
        while True:
            try:
                return await self._store.write(
                    outbox.record_outcome, submission.run, event, epoch=self._lease.epoch
                )
            except StoreUnavailable as error:
                log.error("outcome_not_recorded_yet", run=submission.run, error=str(error))
                await asyncio.sleep(RECORD_AGAIN_S)

    async def _call(self, adapter: Adapter, submission: Submission, timeout_s: float) -> events.Event:
        """The event that the call's answer is.  Raises Throttled."""
        run, center = submission.run, submission.center
        try:
            if submission.action == runs.START:
                assert submission.remote is not None, "a start follows an accepted create"
                ref = RunRef(run, submission.job, submission.remote, submission.nodes)
                await timed(center, "start", lambda: adapter.start(ref), timeout_s)
                return Accepted(self._store.clock(), submission.remote)
            try:
                spec = await self._run_spec(adapter, submission)
            except StoreUnavailable as error:  # nothing has been sent: no doubt
                raise Throttled(str(error), retry_after_s=RECORD_AGAIN_S) from error
            remote = await timed(center, "submit", lambda: adapter.submit(spec), timeout_s)
            to_start = adapter.traits.two_phase_create
            return Accepted(self._store.clock(), remote_name(remote), to_start=to_start)
        except Throttled:
            raise
        except NoCapacity as no:
            return self._refusal(FailureKind.NO_CAPACITY, no)
        except (Refused, Unsupported) as no:
            return self._refusal(FailureKind.REFUSED, no)
        except Denied as no:
            return self._refusal(FailureKind.DENIED, no)
        except (AdapterError, TimeoutError) as error:
            text = f"no answer to the submission: {type(error).__name__}: {error}".rstrip(": ")
        except Exception as error:
            log.exception("submit_defect", run=run, center=center)
            text = f"defect in the adapter: {type(error).__name__}: {error}"
        return OutcomeUnknown(self._store.clock(), text)

    def _refusal(self, kind: FailureKind, error: AdapterError) -> SubmitRefused:
        return SubmitRefused(self._store.clock(), kind, str(error))

    async def _unclaim(self, submission: Submission, not_before_ms: int) -> None:
        """Give the call back, however long the store takes: a claim that nobody carries stays for ever."""
        with suppress(LostLease):  # the next leader puts it in doubt
            while True:
                try:
                    await self._store.write(
                        outbox.unclaim, submission.run, epoch=self._lease.epoch, not_before_ms=not_before_ms
                    )
                    return
                except StoreUnavailable as error:
                    log.error("claim_not_given_back_yet", run=submission.run, error=str(error))
                    await asyncio.sleep(RECORD_AGAIN_S)

    async def _run_spec(self, adapter: Adapter, submission: Submission) -> RunSpec:
        request = submission.request
        image = request.image_url
        if request.image_id:
            natives = await self._store.read(centers.image_centers, request.image_id)
            if submission.center not in natives:
                raise Refused(f"the center no longer offers image {request.image_id!r}")
            image = natives[submission.center]
        remotes = await self._store.read(copies.remotes, submission.center, request.datasets)
        spec = RunSpec(
            id=submission.run,
            job=submission.job,
            attempt=submission.attempt,
            native_pool=submission.native_pool,
            spec=submission.spec,
            nodes=submission.nodes,
            command=request.command,
            image=image,
            env=request.env,
            max_run_time_s=request.max_run_time_s,
            stop_grace_s=request.stop_grace_s,
            kind=request.kind,
            port=request.port or (DEFAULT_PORT if request.endless else None),
            datasets=remotes,
            labels=request.labels,
        )
        return self._ranked(spec, adapter.traits, submission)

    def _ranked(self, spec: RunSpec, traits: Traits, submission: Submission) -> RunSpec:
        """With what the platform is told of the job's rank and past: only what it can act on.

        A platform kills by itself only where its operator allows that, and never for a run whose
        victims the round has chosen: they would be stopped beside its own.
        """
        request = submission.request
        allowed = bool(self._connections.settings(submission.center).connection.get("allow_preempt_kill"))
        kills = traits.vip_kill and allowed and not submission.victims
        vip = request.tier is Tier.VIP and (traits.vip_wait or traits.vip_flag or kills)
        return replace(
            spec,
            vip=vip,
            preempt_policy=request.preempt_policy if vip and kills else 1,
            vip_nodes=request.vip_nodes if request.tier is Tier.VIP and traits.node_hold else (),
            priority=int(request.tier if traits.priority else Tier.NORMAL),
            resume_from=submission.resume_from if traits.resume else None,
        )

    # ------------------------------------------------------------ stops and deletions

    async def _debts(self) -> None:
        now = self._store.clock()
        owed = await self._store.read(debts.calls_owed, now, DEBTS_AT_ONCE)
        DEBTS.set(len(owed))
        for debt in owed:
            room = self._concurrency - len(self._calls.get(debt.center, ()))
            if debt.run in self._indebted or room <= 0:
                continue
            self._indebted.add(debt.run)
            self._start(debt.center, self._pay(debt), f"{'stop' if debt.stop else 'delete'} {debt.run}")

    async def _pay(self, debt: Debt) -> None:
        """One try.  A stop is confirmed by looking (track); a deletion by its answer."""
        try:
            message = await self._ask(debt)
            if message:
                log.warning("debt_unpaid", run=debt.run, center=debt.center, error=message)
            elif not debt.stop:
                await self._store.write(debts.settle, debt.run, epoch=self._lease.epoch, delete=True)
                return
            # A stop that was taken is asked again after its grace, should the run still be there.
            pause_ms = 0 if message else debt.stop_grace_s * 1000
            await self._store.write(
                debts.postpone_debt,
                debt.run,
                epoch=self._lease.epoch,
                next_ms=self._store.clock() + debt_pause_s(debt.tries) * 1000 + pause_ms,
                stop=debt.stop,
                message=message,
            )
            self._store.wakeup(f"track:{debt.center}").set()
        except LostLease:
            pass  # the debt is a row; the next leader pays it
        finally:
            self._indebted.discard(debt.run)

    async def _ask(self, debt: Debt) -> str:
        """The stop or deletion itself; what went wrong, or "".  Raises LostLease."""
        ref = RunRef(debt.run, debt.job, debt.remote, debt.nodes)
        try:
            adapter = await self._connections.adapter(debt.center)
            self._lease.check()
            if debt.stop:
                grace_s = debt.stop_grace_s
                await timed(debt.center, "stop", lambda: adapter.stop(ref, grace_s=grace_s), STOP_TIMEOUT_S)
            else:
                await timed(debt.center, "delete", lambda: adapter.delete(ref), STOP_TIMEOUT_S)
        except LostLease:
            raise
        except (AdapterError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            log.exception("stop_defect", run=debt.run, center=debt.center)
            return f"defect in the adapter: {type(error).__name__}: {error}"
        return ""


def _takes(center: CenterFacts | None) -> bool:
    return center is not None and center.state is CenterState.ACTIVE and center.health is not Health.DOWN
