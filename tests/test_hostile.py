"""Random stories of jobs, faults, stops and dying daemons; the laws hold at the end of each."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapters.fake import TRAITS, Fault, Script
from broker.adapter import RemoteState, RunRef
from broker.core.model import CenterId, JobId, JobState, OnLost, RemoteId, RunState
from broker.mirror import Mirror
from broker.store import feed
from broker.store.jobs import WrongState
from broker.tables import Event, Outbox, Run
from tests.harness import Harness, center, harness, picture

Story = Callable[[Harness, list[JobId]], Awaitable[None]]
ENDINGS = {"job.succeeded", "job.failed", "job.stopped"}
ROUNDS_TO_QUIET = 200

# ---------------------------------------------------------------- what may happen


def submit(cards: int, nodes: int, script: Script, max_retries: int, on_lost: OnLost) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        job = await broker.submit(cards=cards, nodes=nodes, max_retries=max_retries, on_lost=on_lost)
        for fake in broker.fakes.values():
            fake.script(script, of=job)
        jobs.append(job)

    return act


def on_a_job(index: int, what: str) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        if not jobs:
            return
        job = jobs[index % len(jobs)]
        try:
            if what == "stop":
                await broker.stop(job)
            elif not (await broker.show(job)).state.ended:
                await broker.preempt(job)
        except WrongState:
            pass  # it has ended, or its state is unknown

    return act


def fault(at: int, call: str, *faults: Fault) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        fakes = list(broker.fakes.values())
        fakes[at % len(fakes)].fail(call, *faults)

    return act


def misfortune(at: int, script: Script) -> Story:
    """What befalls the next run at a center, whichever it is."""

    async def act(broker: Harness, jobs: list[JobId]) -> None:
        fakes = list(broker.fakes.values())
        fakes[at % len(fakes)].script_next(script)

    return act


def silence(at: int, seconds: int) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        fakes = list(broker.fakes.values())
        fakes[at % len(fakes)].silence(broker.clock(), broker.clock() + seconds * 1000)

    return act


def drain(at: int) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        await broker.drain_center(list(broker.fakes)[at % len(broker.fakes)])

    return act


def step(what: str) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        await broker.lease.renew()
        match what:
            case "restart":
                await broker.restart()
            case "crash before the calls":
                await broker.crash("call")
            case "crash before the outcomes":
                await broker.crash("record")
            case "poll":
                await broker.poll()
            case "plan":
                await broker.plan()
            case "send":
                await broker.send()
            case "look":
                await broker.look()
            case "gather":
                await broker.gather()

    return act


def passes(seconds: int) -> Story:
    async def act(broker: Harness, jobs: list[JobId]) -> None:
        await broker.pass_time(seconds, step_s=max(5, seconds // 4))

    return act


SCRIPTS = st.builds(
    Script,
    queue_s=st.sampled_from([0, 0, 8]),
    run_s=st.sampled_from([1, 30, 90]),
    exit_code=st.sampled_from([0, 0, 0, 1]),
    stop_s=st.sampled_from([0, 9]),
    log=st.just(b"line\n"),
)
MISFORTUNES = st.sampled_from([Script(evict_s=12), Script(host_lost_s=7), Script(vanish_s=20)])
FAULTS = st.lists(st.sampled_from(Fault), min_size=1, max_size=3)
CENTERS = st.integers(0, 2)
STEPS = st.one_of(
    st.builds(
        submit,
        st.sampled_from([1, 2, 4]),
        st.sampled_from([1, 1, 2]),
        SCRIPTS,
        st.integers(0, 2),
        st.sampled_from([OnLost.WAIT, OnLost.FAIL]),
    ),
    st.builds(on_a_job, st.integers(0, 9), st.sampled_from(["stop", "preempt"])),
    st.builds(lambda at, faults: fault(at, "submit", *faults), CENTERS, FAULTS),
    st.builds(lambda at, faults: fault(at, "start", *faults), CENTERS, FAULTS),
    st.builds(
        lambda at, call, bad: fault(at, call, bad),
        CENTERS,
        st.sampled_from(["stop", "find", "observe", "probe", "logs", "results"]),
        st.sampled_from([Fault.DROPPED, Fault.LOST_REPLY, Fault.THROTTLED]),
    ),
    st.builds(misfortune, CENTERS, MISFORTUNES),
    st.builds(silence, CENTERS, st.sampled_from([20, 100, 400])),
    st.builds(drain, CENTERS),
    st.builds(
        step,
        st.sampled_from(
            [
                *("restart", "crash before the calls", "crash before the outcomes"),
                *("poll", "plan", "send", "look", "gather"),
            ]
        ),
    ),
    st.builds(passes, st.sampled_from([5, 20, 60])),
)


@st.composite
def networks(draw: st.DrawFn) -> list[Any]:
    """One to three centers; the first can hold every job of a story."""
    made = []
    for number in range(draw(st.integers(1, 3))):
        lags: dict[str, Any] = {
            "report_lag_s": draw(st.sampled_from([0, 10])),
            "lookup_lag_s": draw(st.sampled_from([0, 15])),
            "two_phase_create": draw(st.sampled_from([False, False, True])),
        }
        made.append(
            center(
                f"c{number}",
                cards=8 if number == 0 else draw(st.sampled_from([4, 8])),
                nodes=2 if number == 0 else draw(st.integers(1, 2)),
                price=draw(st.sampled_from(["5", "10", "20"])),
                traits=replace(TRAITS, **lags),
            )
        )
    return made


# ---------------------------------------------------------------- what holds at the end


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking stories takes minutes: ask for it by hand
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network=networks(), story=st.lists(STEPS, min_size=6, max_size=22))
def test_the_laws_hold_whatever_happens(network: list[Any], story: list[Story]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_told(Path(folder), network, story))


async def _told(folder: Path, network: list[Any], story: list[Story]) -> None:
    async with harness(folder, *network) as broker:
        jobs: list[JobId] = []
        for act in story:
            await act(broker, jobs)
            await _mirror_is_in_step(broker)
            broker.never_twice_at_once()
        await _quiet(broker, jobs)
        broker.never_twice_at_once()
        for job in jobs:
            await _ended_one_way(broker, job)
        assert await broker.rows(Outbox) == []
        for run in await broker.rows(Run):
            assert not RunState(run.state).live
            assert (run.stop_owed_ms, run.collect_owed_ms, run.owed_next_ms) == (None, None, None), run
        for fake in broker.fakes.values():
            assert all(execution.end_ms is not None for execution in fake.executions)


async def _quiet(broker: Harness, jobs: list[JobId]) -> None:
    """Nothing more goes wrong, and time passes until every job has ended and nothing is owed."""
    for id, fake in broker.fakes.items():
        fake._faults.clear()
        fake._next.clear()
        await broker.drain_center(id, None)
    for _ in range(ROUNDS_TO_QUIET):
        await broker.round()
        live = [run for run in await broker.rows(Run) if RunState(run.state).live]
        owed = [run for run in await broker.rows(Run) if run.owed_next_ms is not None]
        if not live and not owed:
            return
        until = [t for job in jobs for _, t in (await broker.show(job)).avoid if t > broker.clock()]
        if until and not owed and all(run.state == RunState.NEW for run in live):
            broker.clock.now_ms = min(until)  # everybody waits for a center that refused
        broker.clock.now_ms += 20_000
        for run in live:
            if run.state == RunState.LOST and run.missing_ms is not None and run.stop_reason is None:
                await broker.resolve(JobId(run.job_id), ended=RunState.FAILED)  # it vanished there
    raise AssertionError(f"not quiet after {ROUNDS_TO_QUIET} rounds: {live} {owed}")


async def _ended_one_way(broker: Harness, job: JobId) -> None:
    view = await broker.show(job)
    kinds = [event.kind for event in await broker.rows(Event, job_id=job)]
    assert kinds[0] == "job.created"
    assert [kind for kind in kinds if kind in ENDINGS] == [f"job.{view.state.lower()}"]
    succeeded = [run.id for run in view.runs if run.state is RunState.SUCCEEDED]
    assert len(succeeded) == (1 if view.state is JobState.SUCCEEDED else 0)
    if succeeded:
        (truth,) = [where for where in broker.executions(job) if where[1] == succeeded[0]]
        ref = RunRef(truth[1], job, RemoteId(truth[1]), 1)
        seen = await broker.fakes[CenterId(truth[0])].observe([ref])
        assert seen[truth[1]].state is RemoteState.SUCCEEDED


async def _mirror_is_in_step(broker: Harness) -> None:
    """The picture that is kept by event numbers is the one that is read afresh."""
    fresh = Mirror()
    await fresh.refresh(broker.store)
    await broker.mirror.refresh(broker.store)
    world = await broker.store.read(feed.world)
    assert picture(broker.mirror, world, broker.clock()) == picture(fresh, world, broker.clock())
