"""The scripted center: scripts, faults, late reads and its record of the truth."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.fake import TRAITS, Execution, Fake, Fault, Script
from broker.adapter import (
    AdapterError,
    Denied,
    NoCapacity,
    Refused,
    RemoteState,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
    Throttled,
    Unavailable,
)
from broker.core.model import CenterId, JobId, NodeShape, RemoteId, RunId, Spec, SpecId

T0 = 1_700_000_000_000
NODE = NodeShape("X86", 4, 8, "Nvidia/GPU/A800", 2, 80)


class Clock:
    def __init__(self) -> None:
        self.now_ms = T0

    def __call__(self) -> int:
        return self.now_ms

    def to(self, seconds: int) -> None:
        self.now_ms = T0 + seconds * 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def center(clock: Clock) -> Fake:
    return Fake(CenterId("c"), clock, pools=[StatedPool("p", NODE, 2)])


def spec(number: int = 1, *, nodes: int = 1) -> RunSpec:
    return RunSpec(
        id=RunId(f"bk{number:010d}"),
        job=JobId(f"job-{number}"),
        attempt=1,
        native_pool="p",
        spec=Spec(SpecId("s"), "s", NODE),
        nodes=nodes,
        command="",
        image="",
        env=(),
        max_run_time_s=None,
        stop_grace_s=30,
    )


def ref(run: RunSpec) -> RunRef:
    return RunRef(run.id, run.job, RemoteId(run.id), run.nodes)


async def seen(center: Fake, run: RunSpec) -> Sighting:
    return (await center.observe([ref(run)]))[run.id]


async def free_nodes(center: Fake) -> int:
    (pool,) = (await center.probe()).pools
    return sum(free.nodes for free in pool.free if free.accelerators == 2)


@pytest.mark.parametrize(
    ("script", "last"),
    [
        (Script(10, 20), Sighting(RemoteState.SUCCEEDED, T0 + 10_000, T0 + 30_000, 0)),
        (Script(10, 20, evict_s=5), Sighting(RemoteState.FAILED, T0 + 10_000, T0 + 15_000)),
        (Script(10, 20, host_lost_s=1), Sighting(RemoteState.FAILED, T0 + 10_000, T0 + 11_000)),
        (Script(10, 20, cannot_start=True), Sighting(RemoteState.FAILED, T0 + 10_000, T0 + 10_000, 127)),
        (Script(10, 20, vanish_s=12), Sighting(RemoteState.GONE)),
    ],
)
async def test_a_script_is_lived(center: Fake, clock: Clock, script: Script, last: Sighting) -> None:
    center.script(script)
    await center.submit(spec())
    clock.to(9)
    assert (await seen(center, spec())).state is RemoteState.PENDING
    assert center.executions == []
    clock.to(40)
    end = await seen(center, spec())
    assert (end.state, end.started_ms, end.ended_ms, end.exit_code) == (
        last.state,
        last.started_ms,
        last.ended_ms,
        last.exit_code,
    )
    assert bool(end.evicted_by) is (script.evict_s is not None)
    assert end.host_lost is (script.host_lost_s is not None)
    assert end.cannot_start is script.cannot_start
    assert len(center.executions) == 1


async def test_scripts_go_by_next_then_run_then_job_then_default(center: Fake, clock: Clock) -> None:
    center.script(Script(run_s=1))
    center.script(Script(run_s=2), of=JobId("job-2"))
    center.script_next(Script(run_s=3))
    for number in (1, 2, 3):
        await center.submit(spec(number))
        clock.to((clock.now_ms - T0) // 1000 + 10)
    ran = [(e.run, (e.end_ms or 0) - e.start_ms) for e in center.executions]
    assert ran == [(spec(1).id, 3000), (spec(2).id, 2000), (spec(3).id, 1000)]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.DROPPED, Unavailable),
        (Fault.NO_CAPACITY, NoCapacity),
        (Fault.REFUSED, Refused),
        (Fault.DENIED, Denied),
        (Fault.THROTTLED, Throttled),
    ],
)
async def test_a_fault_without_effect(center: Fake, fault: Fault, error: type[AdapterError]) -> None:
    center.fail("submit", fault)
    with pytest.raises(error):
        await center.submit(spec())
    assert await center.find(spec().id) is None
    assert center.executions == []
    await center.submit(spec())
    assert [call.fault for call in center.calls if call.name == "submit"] == [fault, None]


async def test_a_lost_reply_has_its_effect_once(center: Fake) -> None:
    center.fail("submit", Fault.LOST_REPLY)
    with pytest.raises(Unavailable):
        await center.submit(spec())
    assert await center.find(spec().id) == ref(spec()).remote
    await center.submit(spec())
    assert center.executions == [Execution(spec().id, spec().job, T0, None)]
    center.fail("stop", Fault.LOST_REPLY)
    with pytest.raises(Unavailable):
        await center.stop(ref(spec()), grace_s=0)
    assert (await seen(center, spec())).state is RemoteState.STOPPED


async def test_silence_hides_and_changes_nothing(center: Fake, clock: Clock) -> None:
    center.script(Script(run_s=20))
    await center.submit(spec())
    center.silence(T0 + 5000, T0 + 30_000)
    clock.to(5)
    with pytest.raises(Unavailable):
        await center.observe([ref(spec())])
    with pytest.raises(Unavailable):
        await center.stop(ref(spec()), grace_s=0)
    clock.to(30)
    end = await seen(center, spec())
    assert (end.state, end.ended_ms) == (RemoteState.SUCCEEDED, T0 + 20_000)


async def test_late_reads(clock: Clock) -> None:
    traits = replace(TRAITS, report_lag_s=10, lookup_lag_s=5)
    center = Fake(CenterId("c"), clock, pools=[StatedPool("p", NODE, 2)], traits=traits)
    center.script(Script(run_s=20))
    await center.submit(spec())
    assert await center.find(spec().id) is None
    assert await free_nodes(center) == 2
    clock.to(5)
    assert await center.find(spec().id) == ref(spec()).remote
    clock.to(10)
    assert await free_nodes(center) == 1
    clock.to(29)
    assert await free_nodes(center) == 1, "the report does not know yet that it has ended"
    await center.submit(spec(2, nodes=2))
    clock.to(30)
    assert await free_nodes(center) == 2


async def test_foreign_load_takes_nodes_for_a_while(center: Fake, clock: Clock) -> None:
    center.foreign("p", 1, T0 + 10_000, T0 + 20_000)
    await center.submit(spec(1))
    clock.to(10)
    assert await free_nodes(center) == 0
    with pytest.raises(NoCapacity):
        await center.submit(spec(2))
    clock.to(20)
    await center.submit(spec(2))


async def test_a_stop_in_the_queue_starts_nothing(center: Fake, clock: Clock) -> None:
    center.script(Script(queue_s=10, stop_s=30))
    await center.submit(spec())
    await center.stop(ref(spec()), grace_s=30)
    clock.to(60)
    end = await seen(center, spec())
    assert (end.state, end.started_ms, end.ended_ms) == (RemoteState.STOPPED, None, T0)
    assert center.executions == []


async def test_a_stop_takes_its_time_at_most_the_grace(center: Fake, clock: Clock) -> None:
    center.script(Script(run_s=100, stop_s=30))
    await center.submit(spec())
    clock.to(10)
    await center.stop(ref(spec()), grace_s=20)
    clock.to(29)
    assert (await seen(center, spec())).state is RemoteState.RUNNING
    assert await free_nodes(center) == 1
    clock.to(30)
    assert (await seen(center, spec())).state is RemoteState.STOPPED


async def test_a_live_run_is_not_deleted(center: Fake) -> None:
    await center.submit(spec())
    with pytest.raises(Unavailable):
        await center.delete(ref(spec()))
    assert (await seen(center, spec())).state is RemoteState.RUNNING


steps = st.lists(
    st.tuples(st.sampled_from(["submit", "stop", "wait"]), st.integers(1, 8), st.integers(1, 3)), max_size=40
)


@given(steps)
def test_the_truth_never_overfills_and_runs_nothing_twice(program: list[tuple[str, int, int]]) -> None:
    async def play() -> None:
        clock = Clock()
        center = Fake(CenterId("c"), clock, pools=[StatedPool("p", NODE, 3)])
        center.script(Script(queue_s=1, run_s=4, stop_s=1))
        accepted: dict[RunId, RunSpec] = {}
        for verb, number, size in program:
            run = spec(number, nodes=size)
            if verb == "submit" and run.id not in accepted:
                try:
                    await center.submit(run)
                    accepted[run.id] = run
                except NoCapacity:
                    assert await free_nodes(center) < size
            elif verb == "stop":
                await center.stop(ref(run), grace_s=size)
            else:
                clock.now_ms += size * 1000
            now = await center.observe([ref(run) for run in accepted.values()])
            live = (RemoteState.PENDING, RemoteState.RUNNING)
            held = sum(run.nodes for run in accepted.values() if now[run.id].state in live)
            assert await free_nodes(center) == 3 - held
        ran = [execution.run for execution in center.executions]
        assert len(ran) == len(set(ran))

    asyncio.run(play())
