"""Runs in the store: one live run, the outbox and its claims, doubt, debts, late arrivals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from broker.core import events
from broker.core.events import Accepted, Found, NotFound, SeenRunning, SeenStopped, SeenSucceeded
from broker.core.model import CenterId, FailureKind, JobId, RemoteId, RunId, RunState, StopReason
from broker.store import LostLease, Tx, centers, debts, feed, lease, outbox, runs
from broker.store.outbox import Submission
from broker.store.runs import NoSuchRun, PrefixChanged
from broker.tables import Event, Job, Outbox, Run
from tests.harness import Harness, center, harness

pytestmark = pytest.mark.both_databases

A = CenterId("a")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path, center("a")) as broker:
        yield broker


async def claim(broker: Harness, **changes: Any) -> list[Submission]:
    facts: dict[str, Any] = {
        "epoch": broker.lease.epoch,
        "center": A,
        "limit": 10,
        "not_after_ms": broker.clock() + 10_000,
        "lookup_lag_s": 5,
    }
    return await broker.store.write(outbox.claim, **{**facts, **changes})


async def outcome(broker: Harness, run: RunId, event: events.Event) -> RunState:
    return await broker.store.write(outbox.record_outcome, run, event, epoch=broker.lease.epoch)


async def tell(broker: Harness, run: RunId, event: events.Event) -> RunState:
    return await broker.store.write(runs.advance, run, event, epoch=broker.lease.epoch)


async def placed(broker: Harness, jobs: int = 1) -> list[tuple[JobId, RunId]]:
    """Jobs with a submission in the outbox."""
    made = [await broker.submit() for _ in range(jobs)]
    await broker.plan()
    return [(job, (await broker.show(job)).runs[-1].id) for job in made]


async def accepted(broker: Harness) -> tuple[JobId, RunId]:
    """A job that the center took as remote `r`."""
    ((job, run),) = await placed(broker)
    await claim(broker)
    await outcome(broker, run, Accepted(broker.clock(), RemoteId("r")))
    return job, run


async def row(broker: Harness, run: RunId) -> Run:
    (found,) = await broker.rows(Run, id=run)
    return found


# ---------------------------------------------------------------- one live run


async def test_a_second_live_run_cannot_be_written(broker: Harness) -> None:
    job = await broker.submit()

    def second(tx: Tx, state: str) -> None:
        tx.session.execute(
            text(
                "INSERT INTO run (id, job_id, attempt, state, native_pool, spec, slot, nodes,"
                " rate_micro_per_hour, placement, not_after_ms, lookup_lag_s, created_ms, message, address,"
                " owed_tries) VALUES (:id, :job, 2, :state, '', '{}', 0, 1, 0, '{}', 0, 0, 0, '', '', 0)"
            ),
            {"id": f"bk-{state}", "job": job, "state": state},
        )

    for state in RunState:
        if state.live:
            with pytest.raises(IntegrityError):
                await broker.store.write(second, state.value)
        else:
            await broker.store.write(second, state.value)
    assert len(await broker.rows(Run)) == 5


async def test_a_job_has_runs_enough_and_never_two_alive(broker: Harness) -> None:
    ((job, run),) = await placed(broker)
    await claim(broker)
    no = events.SubmitRefused(broker.clock(), FailureKind.NO_CAPACITY, "full")
    assert await outcome(broker, run, no) is RunState.FAILED
    view = await broker.show(job)
    assert [r.state for r in view.runs] == ["FAILED", "NEW"]
    assert view.runs[1].attempt == 2
    assert await broker.rows(Outbox) == []


# ---------------------------------------------------------------- claims


async def test_a_call_is_claimed_once(broker: Harness) -> None:
    made = await placed(broker, jobs=12)
    got = await asyncio.gather(*(claim(broker, limit=5) for _ in range(4)))
    claimed = [s.run for part in got for s in part]
    assert [len(part) for part in got] == [5, 5, 2, 0]
    assert sorted(claimed) == sorted(run for _, run in made)
    for row in await broker.rows(Run):
        assert (row.not_after_ms, row.lookup_lag_s) == (broker.clock() + 10_000, 5)


async def test_a_claim_respects_the_center_and_the_time(broker: Harness) -> None:
    ((_, run),) = await placed(broker)
    assert await claim(broker, center=CenterId("b")) == []
    (claimed,) = await claim(broker)
    assert (claimed.run, claimed.action, claimed.native_pool, claimed.remote) == (run, "submit", "a", None)
    later = broker.clock() + 5000
    await broker.store.write(outbox.unclaim, run, epoch=broker.lease.epoch, not_before_ms=later)
    assert await claim(broker) == []
    assert await broker.store.read(outbox.waiting_centers, later - 1) == []
    broker.clock.now_ms = later
    assert await broker.store.read(outbox.waiting_centers, later) == [A]
    assert [s.run for s in await claim(broker)] == [run]


async def test_a_run_that_ended_before_its_start_is_not_claimed(broker: Harness) -> None:
    ((_, run),) = await placed(broker)
    await claim(broker)
    await outcome(broker, run, Accepted(broker.clock(), RemoteId("r"), to_start=True))
    (start,) = await broker.rows(Outbox)
    assert (start.action, start.claimed_ms) == ("start", None)
    await tell(broker, run, SeenStopped(broker.clock()))
    assert await claim(broker) == []
    assert await broker.rows(Outbox) == []


async def test_a_stop_takes_an_unclaimed_start_out_of_the_outbox(broker: Harness) -> None:
    ((job, run),) = await placed(broker)
    await claim(broker)
    await outcome(broker, run, Accepted(broker.clock(), RemoteId("r"), to_start=True))
    await broker.stop(job)
    assert await broker.rows(Outbox) == []
    assert (await row(broker, run)).stop_owed_ms is not None


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.PENDING, RunState.LOST])
async def test_a_start_without_an_answer_does_not_undo_what_was_seen(
    broker: Harness, state: RunState
) -> None:
    ((_, run),) = await placed(broker)
    await claim(broker)
    await outcome(broker, run, Accepted(broker.clock(), RemoteId("r"), to_start=True))
    await claim(broker)
    if state is not RunState.PENDING:
        await tell(broker, run, SeenRunning(broker.clock()))
    if state is RunState.LOST:
        await tell(broker, run, events.WentSilent(broker.clock()))
    await broker.restart()  # the next leader doubts the call that had no answer
    after = (await row(broker, run)).state
    assert after == ("DOUBT" if state is RunState.PENDING else state)
    assert await broker.rows(Outbox) == []


# ---------------------------------------------------------------- stops on the way


async def test_a_stop_between_claim_and_answer_reaches_the_center(broker: Harness) -> None:
    ((job, run),) = await placed(broker)
    await claim(broker)
    await broker.stop(job)
    assert (await row(broker, run)).state == "SUBMITTING"
    await broker.expect(job, "PENDING")
    assert await outcome(broker, run, Accepted(broker.clock(), RemoteId("r"))) is RunState.PENDING
    assert (await row(broker, run)).stop_owed_ms == broker.clock()
    (debt,) = await broker.store.read(debts.calls_owed, broker.clock(), 10)
    assert (debt.run, debt.stop, debt.remote) == (run, True, "r")


async def test_a_call_given_back_after_a_stop_ends(broker: Harness) -> None:
    ((job, run),) = await placed(broker)
    await claim(broker)
    await broker.stop(job)
    await broker.store.write(outbox.unclaim, run, epoch=broker.lease.epoch, not_before_ms=0)
    await broker.expect(job, "STOPPED", attempts=1)
    assert await broker.rows(Outbox) == []


async def test_recalled_placements_queue_again_and_spend_nothing(broker: Harness) -> None:
    made = await placed(broker, jobs=3)
    (first,) = await claim(broker, limit=1)
    recalled = await broker.store.write(outbox.recall_unsent, A, epoch=broker.lease.epoch)
    assert recalled == 2
    for job, run in made:
        view = await broker.show(job)
        if run == first.run:
            assert [r.state for r in view.runs] == ["SUBMITTING"]
        else:
            assert [r.state for r in view.runs] == ["STOPPED", "NEW"]
            assert (view.state, view.retries_used, view.avoid) == ("QUEUED", 0, ())


@pytest.mark.parametrize("reason", StopReason)
async def test_the_broker_asks_runs_to_end(broker: Harness, reason: StopReason) -> None:
    job, run = await accepted(broker)
    await broker.store.write(runs.request_stop, run, reason, epoch=broker.lease.epoch)
    assert (await row(broker, run)).stop_reason == reason
    await tell(broker, run, SeenStopped(broker.clock()))
    await broker.store.write(runs.request_stop, run, reason, epoch=broker.lease.epoch)  # over: nothing
    expected = {StopReason.CANCEL: "STOPPED", StopReason.DEADLINE: "FAILED"}.get(reason, "PENDING")
    await broker.expect(job, expected, attempts=2 if expected == "PENDING" else 1)
    assert (await broker.show(job)).retries_used == 0
    with pytest.raises(NoSuchRun):
        await broker.store.write(runs.request_stop, RunId("bk-x"), reason, epoch=broker.lease.epoch)


# ---------------------------------------------------------------- leaders


async def test_a_later_leader_doubts_what_has_no_outcome(broker: Harness) -> None:
    (sent, _), (waits, _) = await placed(broker, jobs=2)
    (claimed,) = await claim(broker, limit=1, lookup_lag_s=60)
    await broker.restart()
    for job in (sent, waits):
        (run,) = (await broker.show(job)).runs
        assert run.state == ("DOUBT" if run.id == claimed.run else "SUBMITTING")
    (left,) = await broker.rows(Outbox)
    assert left.run_id != claimed.run
    doubtful = await row(broker, claimed.run)
    assert doubtful.lookup_lag_s == 60  # law 2 holds for the next leader too
    assert await broker.store.write(outbox.doubt_unfinished, epoch=broker.lease.epoch) == 0


async def test_nothing_of_an_old_leader_is_written(broker: Harness) -> None:
    job, run = await accepted(broker)
    await placed(broker)
    old = broker.lease.epoch
    assert await broker.store.write(lease.acquire, "another", 15, alone=True)
    before = [await broker.rows(t) for t in (Run, Job, Outbox)]
    events = len(await broker.rows(Event))
    fenced: Sequence[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (runs.advance, (run, SeenSucceeded(broker.clock())), {}),
        (outbox.record_outcome, (run, Accepted(broker.clock(), RemoteId("x"))), {}),
        (runs.request_stop, (run, StopReason.PREEMPT), {}),
        (outbox.recall_unsent, (A,), {}),
        (outbox.unclaim, (run,), {"not_before_ms": 0}),
        (outbox.doubt_unfinished, (), {}),
        (debts.postpone_debt, (run,), {"next_ms": 0}),
        (debts.settle, (run,), {"stop": True}),
        (runs.touch_logs, (run,), {}),
        (outbox.claim, (), {"center": A, "limit": 9, "not_after_ms": 0, "lookup_lag_s": 0}),
    ]
    for op, args, kwargs in fenced:
        with pytest.raises(LostLease, match=f"epoch {old} no longer leads"):
            await broker.store.write(op, *args, epoch=old, **kwargs)
    assert [await broker.rows(t) for t in (Run, Job, Outbox)] == before
    assert len(await broker.rows(Event)) == events
    await broker.lease.acquire(alone=True)
    await broker.expect(job, "PENDING")


# ---------------------------------------------------------------- late arrivals


async def test_a_late_arrival_is_stopped_and_is_no_news_of_its_job(broker: Harness) -> None:
    ((job, first),) = await placed(broker)
    await claim(broker, not_after_ms=0)
    await outcome(broker, first, events.OutcomeUnknown(broker.clock(), "silence"))
    for _ in range(2):
        await tell(broker, first, NotFound(broker.clock()))
        broker.clock.now_ms += 60_000
    await broker.poll()
    await broker.plan()
    second = (await broker.show(job)).runs[-1].id
    if not await broker.rows(Outbox):  # the center is avoided for a while
        broker.clock.now_ms += 60_000
        await broker.plan()
    await claim(broker)
    await outcome(broker, second, Accepted(broker.clock(), RemoteId("r2")))
    await tell(broker, second, SeenRunning(broker.clock()))
    before = (await broker.rows(Job))[0]
    await tell(broker, first, Found(broker.clock(), RemoteId("r1")))
    after = (await broker.rows(Job))[0]
    assert (after.status, after.center_id, after.version) == ("RUNNING", "a", before.version)
    assert (await row(broker, first)).stop_owed_ms is not None
    await tell(broker, second, SeenSucceeded(broker.clock()))
    await tell(broker, first, Found(broker.clock(), RemoteId("r1")))  # known already: dropped
    kinds = [e.kind for e in await broker.rows(Event, job_id=job)]
    assert kinds.count("job.succeeded") == 1
    assert kinds.count("run.event_dropped") == 1
    watched = await broker.store.read(runs.watched, A, broker.clock())
    assert [w.run for w in watched] == [first]
    await broker.store.write(debts.settle, first, epoch=broker.lease.epoch, stop=True)
    assert await broker.store.read(runs.watched, A, broker.clock()) == []


# ---------------------------------------------------------------- debts


async def test_a_debt_waits_for_its_next_try(broker: Harness) -> None:
    job, run = await accepted(broker)
    await broker.stop(job)
    epoch, now = broker.lease.epoch, broker.clock()
    await broker.store.write(
        debts.postpone_debt, run, epoch=epoch, next_ms=now + 5000, stop=True, message="no answer"
    )
    assert await broker.store.read(debts.calls_owed, now + 4999, 10) == []
    (debt,) = await broker.store.read(debts.calls_owed, now + 5000, 10)
    assert debt.tries == 1
    assert "no answer" in [e.data.get("message") for e in await broker.rows(Event, run_id=run)]
    broker.clock.now_ms += 100
    await tell(broker, run, SeenStopped(broker.clock()))
    assert await broker.store.read(debts.calls_owed, broker.clock(), 10) == []
    (copy,) = await broker.store.read(debts.collections_owed, broker.clock(), 10)
    assert copy.tries == 0  # a new debt starts afresh


async def test_a_stop_that_is_answered_after_the_end_leaves_no_debt(broker: Harness) -> None:
    job, run = await accepted(broker)
    await broker.stop(job)
    await tell(broker, run, SeenStopped(broker.clock()))
    now, epoch = broker.clock(), broker.lease.epoch
    await broker.store.write(debts.postpone_debt, run, epoch=epoch, next_ms=now + 99_000, stop=True)
    assert (await row(broker, run)).owed_next_ms == now  # the collection is not put off
    await broker.store.write(debts.settle, run, epoch=epoch, collect=True)
    await broker.store.write(debts.postpone_debt, run, epoch=epoch, next_ms=now, stop=True)
    assert (await row(broker, run)).owed_next_ms is None


# ---------------------------------------------------------------- the rest


async def test_the_name_of_the_broker_is_fixed_while_runs_live(broker: Harness) -> None:
    job, run = await accepted(broker)
    with pytest.raises(PrefixChanged, match=run):
        await broker.store.write(runs.fix_prefix, "other")
    await tell(broker, run, SeenSucceeded(broker.clock()))
    with pytest.raises(PrefixChanged):  # it still owes its logs
        await broker.store.write(runs.fix_prefix, "other")
    await broker.store.write(debts.settle, run, epoch=broker.lease.epoch, collect=True)
    await broker.store.write(runs.fix_prefix, "other")
    assert (await broker.show(await broker.submit())).runs[0].id.startswith("other-")
    assert (await broker.show(job)).runs[0].id == run


async def test_pools_learn_how_long_runs_wait(broker: Harness) -> None:
    for waited_s in (40, 40):
        _, run = await accepted(broker)
        broker.clock.now_ms += waited_s * 1000
        await tell(broker, run, SeenRunning(broker.clock()))
        await tell(broker, run, SeenSucceeded(broker.clock()))
    world = await broker.store.read(runs.live_by_state)
    assert sum(world.values()) == 0
    (pool,) = await broker.store.read(centers.pools)
    assert pool.expected_wait_s == (3 * 10 + 40) // 4
    later_ms = broker.clock() + 2 * centers.WAIT_HALF_LIFE_S * 1000
    (aged,) = (await broker.store.read(feed.world, later_ms)).pools
    assert aged.expected_wait_s == pool.expected_wait_s // 4


async def test_an_address_is_kept(broker: Harness) -> None:
    _, run = await accepted(broker)
    event = SeenRunning(broker.clock())
    epoch = broker.lease.epoch
    await broker.store.write(runs.advance, run, event, epoch=epoch, address="http://n1:80")
    await broker.store.write(runs.advance, run, event, epoch=epoch, address="http://n2:80")
    assert (await row(broker, run)).address == "http://n2:80"
