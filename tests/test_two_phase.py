"""Platforms that create a run in one call and start it in another: every way the start can go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest

from adapters.fake import TRAITS, Fake, Fault, Script
from broker.adapter import RunRef, Sighting
from broker.core.model import CenterId, FailureKind, JobId, RunId
from broker.tables import Outbox, Run
from tests.harness import Harness, center, harness

pytestmark = pytest.mark.both_databases

LAG_S = 10


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Harness]:
    traits = replace(TRAITS, two_phase_create=True, lookup_lag_s=LAG_S, submit_timeout_s=5)
    async with harness(tmp_path, center("a", traits=traits)) as running:
        yield running


def at(broker: Harness) -> Fake:
    return broker.fakes[CenterId("a")]


def starts(broker: Harness) -> int:
    return sum(call.name == "start" for call in at(broker).calls)


async def created(broker: Harness) -> JobId:
    """A job whose run is at the center and waits for its start, which is in the outbox."""
    job = await broker.submit()
    await broker.plan()
    await broker.send()
    (row,) = await broker.rows(Outbox)
    assert (row.action, row.claimed_ms) == ("start", None)
    return job


async def test_a_run_is_created_and_then_started_once(broker: Harness) -> None:
    job = await created(broker)
    assert at(broker).executions == []
    await broker.send()
    await broker.pass_time(100)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert (starts(broker), len(at(broker).executions)) == (1, 1)


async def test_a_start_whose_reply_is_lost_is_seen_and_not_sent_again(broker: Harness) -> None:
    job = await created(broker)
    at(broker).fail("start", Fault.LOST_REPLY)
    await broker.send()
    (run,) = await broker.rows(Run)
    assert run.state == "DOUBT"
    await broker.pass_time(100)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert (starts(broker), len(at(broker).executions)) == (1, 1)


async def test_a_start_that_never_arrived_is_sent_again_after_two_looks(broker: Harness) -> None:
    job = await created(broker)
    at(broker).fail("start", Fault.DROPPED)
    await broker.send()
    await broker.pass_time(5 + LAG_S, step_s=1)
    assert starts(broker) == 1, "the second look is not yet late enough"
    await broker.pass_time(100)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert (starts(broker), len(at(broker).executions)) == (2, 1)


@pytest.mark.parametrize(("before", "sent"), [("call", 1), ("record", 1)])
async def test_a_daemon_that_dies_at_the_start(
    broker: Harness, before: Literal["call", "record"], sent: int
) -> None:
    """Before the call: looked for, then sent.  After it: seen, and not sent again."""
    job = await created(broker)
    await broker.crash(before)
    assert [row.action for row in await broker.rows(Outbox)] == []
    await broker.pass_time(150)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert (starts(broker), len(at(broker).executions)) == (sent, 1)


async def test_a_daemon_that_dies_before_the_claim(broker: Harness) -> None:
    job = await created(broker)
    await broker.restart()
    await broker.pass_time(100)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert starts(broker) == 1


async def test_a_create_whose_reply_is_lost_is_found_and_started(broker: Harness) -> None:
    at(broker).fail("submit", Fault.LOST_REPLY)
    job = await broker.submit()
    await broker.round()
    await broker.pass_time(120)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert (starts(broker), len(at(broker).executions)) == (1, 1)


async def test_an_operator_names_a_created_run(broker: Harness) -> None:
    at(broker).fail("submit", Fault.LOST_REPLY)
    at(broker).fail("find", *[Fault.DROPPED] * 3)
    job = await broker.submit()
    await broker.round()
    (run,) = (await broker.show(job)).runs
    await broker.resolve(job, remote=run.id)
    await broker.pass_time(120)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert starts(broker) == 1


async def test_a_stop_before_the_start(broker: Harness) -> None:
    job = await created(broker)
    await broker.stop(job)
    await broker.pass_time(10)
    await broker.expect(job, "STOPPED", attempts=1)
    assert (starts(broker), at(broker).executions) == (0, [])


@pytest.mark.parametrize(("fault", "ran"), [(Fault.LOST_REPLY, 1), (Fault.DROPPED, 0)])
async def test_a_stop_while_the_start_is_in_doubt(broker: Harness, fault: Fault, ran: int) -> None:
    at(broker).script(Script(run_s=1000))
    job = await created(broker)
    at(broker).fail("start", fault)
    await broker.send()
    await broker.stop(job)
    await broker.pass_time(60)
    await broker.expect(job, "STOPPED", attempts=1)
    assert (starts(broker), len(at(broker).executions)) == (1, ran)
    assert all(execution.end_ms is not None for execution in at(broker).executions)


async def test_a_refused_start_gives_the_created_run_up(broker: Harness) -> None:
    job = await created(broker)
    at(broker).fail("start", Fault.NO_CAPACITY)
    await broker.send()
    view = await broker.show(job)
    assert view.runs[0].failure == FailureKind.NO_CAPACITY
    await broker.pass_time(200)
    await broker.expect(job, "SUCCEEDED", attempts=2)
    assert len(at(broker).executions) == 1
    assert all(row.stop_owed_ms is None for row in await broker.rows(Run))


async def test_a_created_run_is_over_once_no_start_of_it_can_show(broker: Harness) -> None:
    """By the moment of the question: the answer may be long on its way."""
    await created(broker)
    at(broker).fail("start", Fault.NO_CAPACITY)
    at(broker).fail("stop", *[Fault.THROTTLED] * 3)
    await broker.send()
    await broker.send()
    (run,) = await broker.rows(Run, attempt=1)
    assert (run.state, run.stop_owed_ms is not None) == ("FAILED", True)
    last_ms = run.not_after_ms + LAG_S * 1000
    observe = at(broker).observe

    async def slow(runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        seen = await observe(runs)
        broker.clock.now_ms += 20_000
        return seen

    for asked_ms, owed in ((last_ms, True), (last_ms + 1, False)):
        broker.clock.now_ms = asked_ms
        with patch.object(at(broker), "observe", slow):
            await broker.look()
        (run,) = await broker.rows(Run, attempt=1)
        assert (run.stop_owed_ms is not None) is owed


async def test_a_throttled_start_is_sent_later(broker: Harness) -> None:
    job = await created(broker)
    at(broker).fail("start", Fault.THROTTLED)
    await broker.pass_time(120)
    await broker.expect(job, "SUCCEEDED", attempts=1)
    assert len(at(broker).executions) == 1


async def test_what_a_draining_center_has_only_created_is_called_back(broker: Harness) -> None:
    job = await created(broker)
    await broker.drain_center("a")
    await broker.pass_time(20)
    view = await broker.show(job)
    assert [run.state for run in view.runs] == ["STOPPED", "NEW"]
    assert at(broker).executions == []
    await broker.drain_center("a", None)
    await broker.pass_time(120)
    await broker.expect(job, "SUCCEEDED", attempts=2)
