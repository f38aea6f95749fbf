"""Every fault at every kind of call of the Ampha adapter: what is done there, and what the adapter says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from adapters import ampha
from broker.adapter import AdapterError, RemoteState, RunRef, RunSpec, Unavailable
from broker.core.model import RunId
from tests.ampha_center import center_and_adapter, run, submit
from tests.emulators.ampha import Ampha
from tests.emulators.faults import TRANSPORT, Fault

DONE = (Fault.LOST_REPLY, Fault.HTML_502, Fault.GARBAGE, Fault.TRUNCATED)
NOT_DONE = (Fault.DROPPED, Fault.HTML_500, Fault.HANG)
UNANSWERED = (*DONE, *NOT_DONE)
SLOW: dict[str, Any] = {"scale": 1.0, "pull_s": (0, 0), "cached_pull_s": 0, "stop_s": (0, 0)}
PATIENT: dict[str, Any] = {"timeout_s": 30.0}
APIS = {"trainOperator": "create_a", "computationTask": "create_c", "fineTune": "create_b"}
LONG = "sleep 1000"
LOOKS = 1000


async def running(center: Ampha, adapter: ampha.Ampha) -> RunRef:
    ref = await submit(adapter, run(command=LONG))
    for _ in range(LOOKS):
        if (await adapter.observe([ref]))[ref.id].state is RemoteState.RUNNING:
            center.seen.clear()
            return ref
        await asyncio.sleep(0.002)
    raise AssertionError("it does not start")


async def fails(center: Ampha, call: Awaitable[Any]) -> None:
    """The call meets the fault that was planned: it raises, or hangs until its caller gives up."""
    task = asyncio.ensure_future(call)
    before = len(center.faults.occurred)
    while not task.done():
        if len(center.faults.occurred) > before and center.faults.occurred[-1].fault is Fault.HANG:
            task.cancel()
        await asyncio.wait([task], timeout=0.005)
    if not task.cancelled():
        assert isinstance(task.exception(), AdapterError), task


@pytest.mark.parametrize("fault", UNANSWERED)
@pytest.mark.parametrize("task_api", APIS)
async def test_a_creation_without_an_answer_is_settled_by_looking(task_api: str, fault: Fault) -> None:
    async with center_and_adapter(task_api=task_api, settings=SLOW, **PATIENT) as (center, adapter):
        await adapter.probe()
        center.faults.plan(APIS[task_api], fault)
        await fails(center, adapter.submit(run(command=LONG)))
        assert len(center.world.tasks) == (1 if fault in DONE else 0)
        remote = await adapter.find(RunId("bkaaaaaaaaaa"))
        assert (remote is not None) is (fault in DONE)
        again = await asyncio.gather(adapter.submit(run(command=LONG)), return_exceptions=True)
        assert len(center.world.tasks) == (1 if fault in DONE else 0), "never sent twice"
        assert again[0] == remote or isinstance(again[0], Unavailable)


async def test_a_slow_answer_is_an_answer() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        center.faults.slow_s = 0.05
        center.faults.plan("create_a", Fault.SLOW_BODY)
        center.faults.plan("list_a", Fault.SLOW_BODY)
        ref = await submit(adapter, run(command=LONG))
        assert await adapter.find(ref.id) == ref.remote


async def test_a_duplicate_name_that_is_nowhere_is_in_doubt() -> None:
    async with center_and_adapter() as (center, adapter):
        center.faults.plan("create_a", Fault.DUPLICATE_NAME)
        with pytest.raises(Unavailable, match="sent already"):
            await adapter.submit(run())
        assert await adapter.find(RunId("bkaaaaaaaaaa")) is None


@pytest.mark.parametrize("fault", TRANSPORT)
async def test_a_stop_is_asked_until_it_is_taken(fault: Fault) -> None:
    async with center_and_adapter(settings=SLOW, **PATIENT) as (center, adapter):
        center.faults.slow_s = 0.05
        ref = await running(center, adapter)
        center.faults.plan("stop_a", fault)
        if fault is Fault.SLOW_BODY:
            await adapter.stop(ref, grace_s=1)
        else:
            await fails(center, adapter.stop(ref, grace_s=1))
        await adapter.stop(ref, grace_s=1)
        for _ in range(LOOKS):
            if (await adapter.observe([ref]))[ref.id].state is RemoteState.STOPPED:
                return
        raise AssertionError("it goes on")


async def test_a_stop_that_is_refused_stays_owed() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await running(center, adapter)
        center.faults.plan("stop_a", Fault.STOP_REFUSED)
        with pytest.raises(Unavailable, match="暂不支持停止"):
            await adapter.stop(ref, grace_s=1)
        await adapter.stop(ref, grace_s=1)


READS: dict[str, tuple[tuple[str, ...], Callable[[ampha.Ampha, RunRef], Awaitable[Any]]]] = {
    "probe": (("groups", "remains"), lambda a, _: a.probe()),
    "catalogue": (("image_items",), lambda a, _: a.catalogue()),
    "find": (("list_a", "list_b"), lambda a, ref: a.find(ref.id)),
    "observe": (("list_a",), lambda a, ref: a.observe([ref])),
    "logs": (("pods", "pod_logs"), lambda a, ref: _all(a.logs(ref, 0, 0))),
}


async def _all(chunks: Any) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("fault", UNANSWERED)
@pytest.mark.parametrize("call", READS)
async def test_a_read_without_an_answer_raises_and_then_works(call: str, fault: Fault) -> None:
    """Never half an answer, and never an empty one in its place."""
    operations, read = READS[call]
    async with center_and_adapter(settings=SLOW, **PATIENT) as (center, adapter):
        ref = await running(center, adapter)
        for operation in operations:
            center.faults.plan(operation, fault)
            await fails(center, read(adapter, ref))
            await read(adapter, ref)


@pytest.mark.parametrize("call", READS)
async def test_a_read_under_an_ended_session_is_made_again(call: str) -> None:
    operations, read = READS[call]
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await running(center, adapter)
        for operation in operations:
            center.faults.plan(operation, Fault.EXPIRED_SESSION)
            await read(adapter, ref)


async def test_a_late_list_is_not_a_missing_task() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await submit(adapter, run(command=LONG))
        center.stale_ms = 10**6
        center.faults.plan("list_a", Fault.STALE_READ)
        seen = (await adapter.observe([ref]))[ref.id]
        assert seen.state in (RemoteState.PENDING, RemoteState.RUNNING), "its details are asked for"


async def test_a_task_that_vanishes_is_gone() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await running(center, adapter)
        (task,) = center.world.tasks.values()
        center.world.forget(task, "vanished")
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.GONE
        await adapter.stop(ref, grace_s=1)
        assert await _all(adapter.logs(ref, 0, 0)) == b"", "nothing is owed for ever"
        await adapter.delete(ref)


@pytest.mark.parametrize("fault", UNANSWERED)
async def test_a_deletion_is_made_until_it_is_done(fault: Fault) -> None:
    async with center_and_adapter(settings={"stop_s": (0, 0)}, **PATIENT) as (center, adapter):
        ref = await running(center, adapter)
        await adapter.stop(ref, grace_s=1)
        for _ in range(LOOKS):
            if (await adapter.observe([ref]))[ref.id].state is RemoteState.STOPPED:
                break
        center.faults.plan("delete_a", fault)
        await fails(center, adapter.delete(ref))
        await adapter.delete(ref)
        assert not center.world.tasks


async def test_a_center_that_is_not_there() -> None:
    async with center_and_adapter() as (center, adapter):
        await adapter.probe()
        await adapter.catalogue()
        url, settings = center.url, adapter.api.settings
        object.__setattr__(settings, "base_url", "http://127.0.0.1:9")
        with pytest.raises(AdapterError, match="no connection"):
            await adapter.submit(run())
        object.__setattr__(settings, "base_url", url)
        await adapter.submit(run())
        assert len(center.world.tasks) == 1


async def test_concurrent_submissions_of_one_id_are_one() -> None:
    async with center_and_adapter(settings={"create_s": (20, 20)}) as (center, adapter):
        spec: RunSpec = run()
        answers = await asyncio.gather(*(adapter.submit(spec) for _ in range(8)))
        assert len(set(answers)) == 1
        assert center.count("create_a") == 1
