"""Each loop by itself, through the harness: what it does with every answer of a center."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from adapters.fake import TRAITS, Fault, Script
from broker import connections, dispatch
from broker.adapter import (
    Connection,
    RunSpec,
    Unavailable,
)
from broker.connections import Connections
from broker.core.model import CenterId, JobId, RemoteId
from broker.store import LostLease, Store, StoreUnavailable, copies, outbox
from broker.store.centers import NoSuchCenter
from broker.supervise import loop
from broker.tables import Outbox, Run
from tests.harness import Harness, center, harness

A, B = CenterId("a"), CenterId("b")


async def states(broker: Harness, job: JobId) -> list[str]:
    return [run.state.value for run in (await broker.show(job)).runs]


async def the_run(broker: Harness, job: JobId) -> Run:
    (row,) = await broker.rows(Run, id=(await broker.show(job)).runs[-1].id)
    return row


# ---------------------------------------------------------------- supervise


async def turn(
    once: Callable[[asyncio.Event], Awaitable[float | None]],
    *,
    period_s: float = 0.001,
    wake: asyncio.Event | None = None,
) -> None:
    """Runs a loop until `once` sets the event that it is given."""
    stopping = asyncio.Event()
    task = asyncio.ensure_future(
        loop(
            "test", lambda: once(stopping), period_s=period_s, wake=wake or asyncio.Event(), stopping=stopping
        )
    )
    await asyncio.wait_for(task, 20)


async def test_a_loop_goes_round_until_it_is_told_to_stop() -> None:
    rounds = 0

    async def once(stopping: asyncio.Event) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 5:
            stopping.set()

    await turn(once)
    assert rounds == 5


async def test_a_loop_that_is_woken_during_its_pass_makes_another_at_once() -> None:
    wake, rounds = asyncio.Event(), 0

    async def once(stopping: asyncio.Event) -> None:
        nonlocal rounds
        rounds += 1
        (wake if rounds == 1 else stopping).set()

    await turn(once, period_s=3600, wake=wake)
    assert rounds == 2


async def test_a_loop_that_rests_is_not_woken_and_stops_at_once() -> None:
    wake, stopping, first, rounds = asyncio.Event(), asyncio.Event(), asyncio.Event(), 0

    async def once() -> None:
        nonlocal rounds
        rounds += 1
        first.set()

    resting = loop("test", once, period_s=3600, wake=wake, stopping=stopping, rest=1e9)
    task = asyncio.ensure_future(resting)
    await first.wait()
    for _ in range(10):
        wake.set()
        await asyncio.sleep(0.001)
    stopping.set()
    await asyncio.wait_for(task, 20)
    assert rounds == 1


async def test_a_loop_rests_no_longer_than_its_period() -> None:
    wake, stopping, rounds = asyncio.Event(), asyncio.Event(), 0

    async def once() -> None:
        nonlocal rounds
        rounds += 1
        (wake if rounds < 5 else stopping).set()

    resting = loop("test", once, period_s=0.001, wake=wake, stopping=stopping, rest=1e9)
    await asyncio.wait_for(resting, 20)
    assert rounds == 5


async def test_a_loop_that_has_rested_does_not_wait_its_whole_period_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping, waits, wait = asyncio.Event(), list[float](), asyncio.wait

    async def noted(awaited: Any, *, timeout: float, **more: Any) -> Any:
        waits.append(timeout)
        return await wait(awaited, timeout=0, **more)

    async def once() -> None:
        if waits:
            stopping.set()

    monkeypatch.setattr("broker.supervise.asyncio.wait", noted)
    await loop("test", once, period_s=100, wake=asyncio.Event(), stopping=stopping, rest=1e9)
    rested, waited = waits[:2]
    assert rested == 100
    assert 0 <= waited <= 10


async def test_a_loop_comes_back_when_its_work_says_so() -> None:
    rounds = 0

    async def once(stopping: asyncio.Event) -> float:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            stopping.set()
        return 0.001

    await turn(once, period_s=3600)
    assert rounds == 2


async def test_a_loop_survives_any_number_of_failures() -> None:
    wake, rounds = asyncio.Event(), 0

    async def once(stopping: asyncio.Event) -> None:
        nonlocal rounds
        rounds += 1
        wake.set()
        if rounds == 1100:
            stopping.set()
        raise ZeroDivisionError

    with patch("broker.supervise.log.exception"):
        await turn(once, wake=wake)
    assert rounds == 1100


async def test_a_lost_lease_ends_a_loop() -> None:
    async def once(stopping: asyncio.Event) -> None:
        raise LostLease("epoch 1 no longer leads")

    with pytest.raises(LostLease):
        await turn(once)


# ---------------------------------------------------------------- connections


async def test_an_adapter_that_cannot_be_opened_is_tried_again() -> None:
    settings, _ = center("a")
    tries = 0

    async def connect(connection: Connection) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("url is '', expected https://…")
        if tries == 2:
            await asyncio.Event().wait()
        return object()

    opened = Connections({"fake": connect}, prefix="bk")
    await opened.configure([settings, replace(settings, id=B, adapter="unbuilt")])
    with patch.object(connections, "OPEN_TIMEOUT_S", 0.01):
        with pytest.raises(Unavailable, match="url is ''"):
            await opened.adapter(A)
        with pytest.raises(Unavailable, match=r"no connection within 0\.01 s"):
            await opened.adapter(A)
        assert await opened.adapter(A) is await opened.adapter(A)
    for id, why in ((B, "no adapter 'unbuilt'"), (CenterId("c"), "not in the configuration")):
        with pytest.raises(Unavailable, match=why):
            await opened.adapter(id)
    assert tries == 3


# ---------------------------------------------------------------- dispatch


@pytest.mark.parametrize(
    ("fault", "expected", "failure"),
    [
        (Fault.DROPPED, ["DOUBT"], None),
        (Fault.LOST_REPLY, ["DOUBT"], None),
        (Fault.NO_CAPACITY, ["FAILED", "NEW"], "no_capacity"),
        (Fault.REFUSED, ["FAILED", "NEW"], "refused"),
        (Fault.DENIED, ["FAILED", "NEW"], "denied"),
        (Fault.THROTTLED, ["SUBMITTING"], None),
    ],
)
async def test_what_an_answer_to_a_submission_means(
    tmp_path: Path, fault: Fault, expected: list[str], failure: str | None
) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].fail("submit", fault)
        job = await broker.submit(max_retries=1)
        await broker.plan()
        await broker.send()
        view = await broker.show(job)
        assert [run.state for run in view.runs] == expected
        assert view.runs[0].failure == (failure or "")
        assert view.retries_used == 0
        assert [avoided for avoided, _ in view.avoid] == (["a"] if failure else [])
        outbox = await broker.rows(Outbox)
        assert [row.claimed_ms for row in outbox] == ([None] if fault is Fault.THROTTLED else [])


async def test_a_defect_in_a_submission_is_doubt(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.plan()
        with patch.object(broker.fakes[A], "submit", side_effect=KeyError("id")):
            await broker.send()
        assert await states(broker, job) == ["DOUBT"]
        assert "defect in the adapter: KeyError: 'id'" in (await broker.show(job)).runs[0].message


async def test_a_throttled_call_is_sent_again_later_and_once(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[A]
        fake.fail("submit", Fault.THROTTLED)
        job = await broker.submit()
        await broker.plan()
        for _ in range(3):
            await broker.send()
        assert [call.name for call in fake.calls].count("submit") == 1
        broker.clock.now_ms += 5000
        for _ in range(3):
            await broker.send()
        assert [call.name for call in fake.calls].count("submit") == 2
        assert await states(broker, job) == ["PENDING"]


async def test_a_call_that_hangs_is_cut_at_its_deadline(tmp_path: Path) -> None:
    quick = replace(TRAITS, submit_timeout_s=1)
    async with harness(tmp_path, center("a", traits=quick)) as broker:

        async def hang(run: RunSpec) -> RemoteId:
            await asyncio.Event().wait()
            raise AssertionError

        job = await broker.submit()
        await broker.plan()
        with patch.object(broker.fakes[A], "submit", hang):
            await broker.send()
        assert await states(broker, job) == ["DOUBT"]
        assert (await broker.show(job)).runs[0].message == "no answer to the submission: TimeoutError"


async def test_no_more_calls_than_allowed_run_at_a_center(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=4)) as broker:
        submit, at_once, most = broker.fakes[A].submit, 0, 0

        async def slow(run: RunSpec) -> RemoteId:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1
            return await submit(run)

        made = [await broker.submit() for _ in range(20)]
        await broker.plan()
        with patch.object(broker.fakes[A], "submit", slow):
            for _ in range(3):
                await broker.dispatch.once()
                assert sum(row.claimed_ms is not None for row in await broker.rows(Outbox)) <= 8
                await broker.dispatch.drain()
        assert 1 <= most <= 8
        for job in made:
            assert await states(broker, job) == ["PENDING"]


async def test_a_call_that_is_too_late_to_leave_is_given_back(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.plan()

        async def late() -> None:  # claimed, and not sent yet
            broker.clock.now_ms += 15_000  # the lease has run out and nobody has taken it

        with patch.object(broker.dispatch, "_debts", late):
            await broker.send()
        assert [call.name for call in broker.fakes[A].calls].count("submit") == 0
        assert [row.claimed_ms for row in await broker.rows(Outbox)] == [None]
        await broker.lease.renew()
        await broker.send()
        assert await states(broker, job) == ["PENDING"]


@contextmanager
def refused_twice(write: Any) -> Iterator[None]:
    """The store refuses a write of dispatch twice, which tries it again at once."""
    real, refused = Store.write, 0

    async def flaky(self: Store, op: Any, /, *args: Any, **kwargs: Any) -> Any:
        nonlocal refused
        if op is write and refused < 2:
            refused += 1
            raise StoreUnavailable("disk full")
        return await real(self, op, *args, **kwargs)

    with patch.object(Store, "write", flaky), patch.object(dispatch, "RECORD_AGAIN_S", 0):
        yield
    assert refused == 2


async def test_an_outcome_is_written_as_soon_as_the_store_can(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.plan()
        with refused_twice(outbox.record_outcome):
            await broker.send()
        assert await states(broker, job) == ["PENDING"]
        assert len(broker.executions(job)) == 1


async def test_a_claim_is_given_back_as_soon_as_the_store_can(tmp_path: Path) -> None:
    """One that nobody carries would keep its job from everywhere until the daemon's end."""
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.plan()
        broker.fakes[A].fail("submit", Fault.THROTTLED)
        with refused_twice(outbox.unclaim):
            await broker.send()
        assert [row.claimed_ms for row in await broker.rows(Outbox)] == [None]
        await broker.pass_time(10)
        assert len(broker.executions(job)) == 1


async def test_what_could_not_be_read_before_the_call_is_no_doubt(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.plan()
        read = Store.read

        async def flaky(self: Store, query: Any, /, *args: Any, **kwargs: Any) -> Any:
            if query is copies.remotes:
                raise StoreUnavailable("restarted")
            return await read(self, query, *args, **kwargs)

        with patch.object(Store, "read", flaky):
            await broker.send()
        assert await states(broker, job) == ["SUBMITTING"]
        assert [row.claimed_ms for row in await broker.rows(Outbox)] == [None]
        await broker.pass_time(10)
        assert len(broker.executions(job)) == 1


async def test_a_stop_is_repeated_more_slowly_until_it_is_confirmed(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[A]
        fake.script(Script(run_s=5000))
        job = await broker.submit()
        await broker.round()
        began = broker.clock()
        fake.fail("stop", *[Fault.DROPPED] * 4, Fault.DENIED)
        await broker.stop(job)
        await broker.send()
        await broker.pass_time(60, step_s=1)
        await broker.expect(job, "STOPPED", attempts=1)
        tries = [(call.at_ms - began) // 1000 for call in fake.calls if call.name == "stop"]
        assert tries == [0, 1, 3, 7, 15, 31]
        assert (await the_run(broker, job)).stop_owed_ms is None


async def test_a_drained_center_is_sent_nothing_and_gives_back_what_waits(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", price="5"), center("b", price="50")) as broker:
        runs_on = await broker.submit()
        await broker.round()
        job = await broker.submit()
        await broker.plan()
        await broker.drain_center("a")
        await broker.send()
        assert await states(broker, job) == ["STOPPED", "NEW"]
        await broker.round()
        await broker.expect(job, "RUNNING", at="b", attempts=2)
        await broker.expect(runs_on, "RUNNING", at="a", attempts=1)
        assert (await broker.reasons(job)) == {}
        await broker.drain_center("a", None)
        later = await broker.submit()
        await broker.round()
        await broker.expect(later, "RUNNING", at="a")
        with pytest.raises(NoSuchCenter):
            await broker.drain_center("nowhere")


async def test_of_several_centers_a_job_gets_one_and_never_another(tmp_path: Path) -> None:
    """Centers that a job names are candidates: it runs whole in one of them, and nowhere else."""
    centers = center("a", price="50", nodes=1), center("b", price="60", nodes=1), center("c", nodes=2)
    async with harness(tmp_path, *centers) as broker:
        spread = await broker.submit(nodes=2, cards=8, centers=(A, B))
        job = await broker.submit(cards=8, centers=(A, B))
        await broker.round()
        await broker.expect(job, "RUNNING", at="a", attempts=1)
        await broker.pass_time(60)
        await broker.expect(spread, "PENDING", attempts=1)  # a node at each would be enough
        reasons = await broker.reasons(spread)
        assert (reasons["a"]["code"], reasons["c"]["code"]) == ("gang_nodes", "center_not_listed")


async def test_a_refusal_avoids_the_center_and_says_so(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", price="5"), center("b", price="50", nodes=1)) as broker:
        broker.fakes[A].fail("submit", Fault.REFUSED)
        full = await broker.submit(cards=8, centers=(B,))
        await broker.round()
        await broker.expect(full, "RUNNING", at="b")
        job = await broker.submit()
        await broker.round()
        await broker.plan()
        assert (await broker.reasons(job))["a"]["code"] == "avoided"
        await broker.pass_time(70)
        await broker.expect(job, "RUNNING", at="b", attempts=2)
