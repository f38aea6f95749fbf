"""The Ampha adapter against an emulated center: a task's life, and the traps of the platform's document.

A name such as T1 in a test is that trap.  Transport faults are in test_ampha_faults.py, what operators
may do in test_ampha_commands.py, plain functions in test_ampha_reading.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import ampha
from broker.adapter import (
    NoCapacity,
    Refused,
    RemoteState,
    RunRef,
    Sighting,
    Unavailable,
)
from broker.core.model import NodeShape, RunId
from tests.ampha_center import NODE, adapter_of, center_and_adapter, run, submit
from tests.emulators.ampha import Ampha, State, group, nodes
from tests.emulators.faults import Fault

APIS = ("trainOperator", "computationTask", "fineTune")
PAUSE_S = 0.005
LOOKS = 2000
SLOW: dict[str, Any] = {"scale": 1.0, "pull_s": (0, 0), "cached_pull_s": 0, "stop_s": (0, 0)}
"""The platform's own steps take no time, and commands as long as they say."""


async def see(adapter: ampha.Ampha, ref: RunRef, *states: RemoteState) -> Sighting:
    """Look until the run is in one of these states."""
    seen = None
    for _ in range(LOOKS):
        seen = (await adapter.observe([ref])).get(ref.id)
        if seen is not None and seen.state in states:
            return seen
        await asyncio.sleep(PAUSE_S)
    raise AssertionError(f"expected {states}, still {seen}")


def the_task(center: Ampha) -> Any:
    (task,) = center.world.tasks.values()
    return task


# ---------------------------------------------------------------- a task's life


@pytest.mark.parametrize("task_api", APIS)
async def test_a_task_lives_and_ends(task_api: str) -> None:
    async with center_and_adapter(task_api=task_api) as (center, adapter):
        ref = await submit(adapter, run())
        assert await adapter.find(ref.id) == ref.remote
        seen = await see(adapter, ref, RemoteState.SUCCEEDED)
        assert (seen.exit_code, seen.raw) == (0, "Succeeded")
        task = the_task(center)
        assert seen.started_ms == task.started_ms // 1000 * 1000, "naive times are those of China (T18)"
        assert (await adapter.observe([ref]))[ref.id] == seen
        await adapter.stop(ref, grace_s=1)  # refused there, and done all the same
        await adapter.delete(ref)
        await adapter.delete(ref)
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.GONE
        assert await adapter.find(ref.id) is None


@pytest.mark.parametrize("task_api", APIS)
async def test_a_stop_is_asked_and_seen(task_api: str) -> None:
    async with center_and_adapter(task_api=task_api, settings={"stop_s": (900, 900)}) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 100000"))
        await see(adapter, ref, RemoteState.RUNNING)
        await adapter.stop(ref, grace_s=1)
        assert the_task(center).stops == 1
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.RUNNING, "an acknowledgement (T33)"
        with pytest.raises(Unavailable, match="expected an ended one"):
            await adapter.delete(ref)
        seen = await see(adapter, ref, RemoteState.STOPPED)
        assert seen.ended_ms is not None


@pytest.mark.parametrize(
    ("task_api", "stop", "delete"),
    [
        ("trainOperator", "stop_a", "delete_a"),
        ("computationTask", "stop_c", "delete_c"),
        ("fineTune", "stop_b", "delete_c"),
    ],
)
async def test_the_calls_of_the_store_that_a_task_is_in(task_api: str, stop: str, delete: str) -> None:
    """T6: body and query where the document shows both; T7: ids in a list; T8: createWay as it was."""
    async with center_and_adapter(task_api=task_api, settings=SLOW) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        await see(adapter, ref, RemoteState.RUNNING)
        await adapter.stop(ref, grace_s=1)
        await see(adapter, ref, RemoteState.STOPPED)
        await adapter.delete(ref)
        task_id = ref.remote.partition(":")[2]
        (stopped_by,) = [seen for seen in center.seen if seen.operation == stop]
        assert task_id in (stopped_by.body.get("taskId"), stopped_by.query.get("taskId"))
        if stop == "stop_a":
            assert stopped_by.body == stopped_by.query == {"taskId": task_id}
        (deleted_by,) = [seen for seen in center.seen if seen.operation == delete]
        assert deleted_by.body["taskIds"] == [task_id]


async def test_a_failure_names_the_pod() -> None:
    async with center_and_adapter() as (_, adapter):
        ref = await submit(adapter, run(command="sleep 5; exit 3"))
        seen = await see(adapter, ref, RemoteState.FAILED)
        assert "worker-0: Error" in seen.message
        assert (seen.exit_code, seen.host_lost) == (None, False), "the platform tells no exit code"


async def test_the_broker_s_request_is_the_documented_one() -> None:
    async with center_and_adapter() as (center, adapter):
        await adapter.submit(run(vip=True, nodes=2, env=(("A", "it's"),)))
        body = the_task(center).body
        assert body["isUrgentTask"] == "Y"
        (item,) = body["resource"]  # one entry with so many nodes (T10)
        assert (item["numbers"], item["cpuNumber"], item["memory"]) == (2, 128, 1024)
        assert item["gpuResource"] == {"gpuShare": "none", "gpuNum": 8}
        assert (body["userId"], body["storageMedium"], body["isPretrain"]) == ("6", "1201", 2)  # T4, T9, T11
        assert "export A='it'\"'\"'s'" in body["command"]
        assert "export BROKER_TASK_ID=bkaaaaaaaaaa" in body["command"]
        assert 'BROKER_NODE_RANK="${RANK:-0}"' in body["command"]


async def test_nothing_else_than_asked_runs_there() -> None:
    async with center_and_adapter(settings={"execute": True}, folder=Path("/")) as (center, adapter):
        with pytest.raises(Refused, match="NUL"):
            await adapter.submit(run(command="a\0b"))
        assert not center.world.tasks


# ---------------------------------------------------------------- T1, T2: names instead of ids


@pytest.mark.parametrize("task_api", ["computationTask", "fineTune"])
async def test_a_task_that_no_list_shows_yet(task_api: str) -> None:
    """T1: two ways to create a task do not tell its id, and lists are late."""
    settings = {"list_lag_s": (700, 700), "pull_s": (1, 1)}
    async with center_and_adapter(task_api=task_api, settings=settings, lookup_lag_s=30) as (_, adapter):
        ref = await submit(adapter, run(command="sleep 2000"))
        assert ref.remote == "new:bkaaaaaaaaaa"
        assert await adapter.observe([ref]) == {}, "no news, and not gone"
        with pytest.raises(Unavailable, match="in no list yet"):
            await adapter.stop(ref, grace_s=1)
        await see(adapter, ref, RemoteState.RUNNING)
        await adapter.stop(ref, grace_s=1)
        await see(adapter, ref, RemoteState.STOPPED)


async def test_a_name_that_was_found_once_is_not_missed_by_a_late_list() -> None:
    settings = {**SLOW, "list_lag_s": (0.02, 0.02)}
    async with center_and_adapter(task_api="fineTune", settings=settings, lookup_lag_s=0) as (
        center,
        adapter,
    ):
        adapter.api.settings = replace(adapter.api.settings, lookup_lag_s=1000)
        ref = await submit(adapter, run(command="sleep 1000"))
        assert ref.remote.startswith("new:")
        await adapter.observe([ref])
        await see(adapter, ref, RemoteState.RUNNING)
        adapter.api.settings = replace(adapter.api.settings, lookup_lag_s=0)
        center.stale_ms = 10**6
        center.faults.plan("list_b", Fault.STALE_READ, Fault.STALE_READ)
        center.faults.plan("list_a", Fault.STALE_READ)
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.RUNNING


async def test_an_accepted_name_that_never_appears_is_gone() -> None:
    async with center_and_adapter(task_api="computationTask", settings={"list_lag_s": (9e9, 9e9)}) as (
        _,
        adapter,
    ):
        ref = await submit(adapter, run())
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.GONE, "lookup_lag_s is 0 here"


async def test_the_id_is_never_the_uid() -> None:
    async with center_and_adapter(task_api="computationTask") as (center, adapter):
        ref = await submit(adapter, run())
        assert ref.remote == f"ct:{the_task(center).id}"


@pytest.mark.parametrize("task_api", APIS)
async def test_the_platform_s_suffix_is_looked_through(task_api: str) -> None:
    """T20: `-[a-z0-9]{8}` is added to names, and the filter finds more than was asked for."""
    async with center_and_adapter(task_api=task_api, settings={"suffix_names": True}) as (_, adapter):
        ref = await submit(adapter, run("bkaaaaaaaaaa"))
        other = await submit(adapter, run("bkaaaaaaaaaa2"))
        assert await adapter.find(ref.id) == ref.remote
        assert await adapter.find(other.id) == other.remote
        assert ref.remote != other.remote
        assert await adapter.find(RunId("bkaaaaaaaa")) is None


async def test_of_two_tasks_of_one_name_the_live_one_counts() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        first = the_task(center)
        first.created_ms -= 2000  # times are told in whole seconds
        again = center.world.create(first.body, first.store, first.user, first.group, "elsewhere")
        assert await adapter.find(ref.id) == f"to:{first.id}", "the older of two that live"
        center.world.end(first, State.TERMINATED)
        assert await adapter.find(ref.id) == f"to:{again.id}"


async def test_a_name_that_is_taken_is_ours() -> None:
    async with center_and_adapter(settings={"refuse_duplicates": True, **SLOW}) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        again = await adapter_of(center)  # another daemon, which knows nothing of the first call
        assert await again.submit(run()) == ref.remote
        assert len(center.world.tasks) == 1
        await again.aclose()


# ---------------------------------------------------------------- going on from a checkpoint

CHECKPOINTING = "sleep 1000; checkpoint"


async def stopped(adapter: ampha.Ampha, command: str) -> RunRef:
    """A run that ran and was stopped."""
    ref = await submit(adapter, run(command=command))
    await see(adapter, ref, RemoteState.RUNNING)
    await adapter.stop(ref, grace_s=1)
    await see(adapter, ref, RemoteState.STOPPED)
    return ref


def later(ref: RunRef) -> Any:
    return run("bkbbbbbbbbbb", command=CHECKPOINTING, resume_from=ref.id)


@pytest.mark.parametrize("task_api", APIS)
async def test_a_stopped_task_goes_on_as_itself(task_api: str) -> None:
    async with center_and_adapter(task_api=task_api, settings=SLOW) as (center, adapter):
        first = await stopped(adapter, CHECKPOINTING)
        second = await submit(adapter, later(first))
        assert second.remote == await adapter.find(second.id)
        await see(adapter, second, RemoteState.RUNNING)
        assert len(center.world.tasks) == 1
        assert [e.how for e in center.world.executions] == ["Terminated", ""]
        await adapter.stop(second, grace_s=1)
        await see(adapter, second, RemoteState.STOPPED)
        assert await adapter.find(second.id) == second.remote


async def test_without_a_checkpoint_it_begins_anew() -> None:
    """T34, 1.3: the check answers success and says no."""
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        first = await stopped(adapter, "sleep 1000")
        second = await submit(adapter, later(first))
        assert second.remote != first.remote
        assert {t.name for t in center.world.tasks.values()} == {first.id, second.id}


async def test_a_resume_that_is_refused_begins_anew() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        first = await stopped(adapter, CHECKPOINTING)
        center.world.groups[0].status = 2
        second = await submit(adapter, later(first))
        assert second.remote != first.remote


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.DROPPED])
@pytest.mark.parametrize("call", ["resume_a", "add_folder"])
async def test_a_resume_without_an_answer_is_found_or_not(call: str, fault: Fault) -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        first = await stopped(adapter, CHECKPOINTING)
        center.faults.plan(call, fault)
        with pytest.raises(Unavailable):
            await adapter.submit(later(first))
        arrived = (call, fault) == ("resume_a", Fault.LOST_REPLY)
        again = await adapter_of(center)  # a daemon that was started anew
        assert await again.find(RunId("bkbbbbbbbbbb")) == (first.remote if arrived else None)
        assert sum(not task.state.ended for task in center.world.tasks.values()) == arrived
        await again.aclose()


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.DROPPED])
async def test_what_ties_two_runs_goes_with_the_later_one(fault: Fault) -> None:
    """An obligation: the deletion fails until that is done, and then it is made again."""
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        first = await stopped(adapter, CHECKPOINTING)
        second = await submit(adapter, later(first))
        await see(adapter, second, RemoteState.RUNNING)
        (mark,) = center.market.folders["6"]
        assert mark.startswith(f"broker-resumed/{second.id}.{first.id}.")
        await adapter.stop(second, grace_s=1)
        await see(adapter, second, RemoteState.STOPPED)
        center.faults.plan("delete_own", fault)
        with pytest.raises(Unavailable):
            await adapter.delete(second)
        await adapter.delete(second)
        assert center.market.folders["6"] == {}
        await adapter.delete(first)
        assert center.world.tasks == {}


async def test_with_a_shared_storage_the_next_run_is_a_task_of_its_own(tmp_path: Path) -> None:
    output = {"in_job": "/mnt/broker", "here": str(tmp_path)}
    async with center_and_adapter(settings=SLOW, output=output) as (center, adapter):
        assert adapter.traits.resume
        first = await stopped(adapter, CHECKPOINTING)
        second = await submit(adapter, later(first))
        assert second.remote != first.remote
        commands = [t.body["command"] for t in center.world.tasks.values()]
        assert all("/mnt/broker/checkpoints/job-" in command for command in commands)


# ---------------------------------------------------------------- what a refusal means


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"shape": replace(NODE, cores=129)}, Refused, "cores is 129"),
        ({"pool": "nowhere"}, Refused, "expected that of a resource group"),
        ({"image": "nothing:1"}, Refused, "image is 'nothing:1'"),
        ({"nodes": 3}, Refused, "more than it can ever hold"),
        ({"datasets": (("a", "x"), ("b", "y"))}, Refused, "reads one"),
    ],
)
async def test_what_can_never_be_is_refused_before_it_is_sent(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    async with center_and_adapter() as (center, adapter):
        with pytest.raises(error, match=text):
            await adapter.submit(run(**change))
        assert center.count("create_a") == 0


async def test_a_quota_that_is_used_up_is_no_capacity() -> None:
    async with center_and_adapter(settings={"quotas": True}) as (center, adapter):
        center.quota["remainJobNum"] = 0
        with pytest.raises(NoCapacity, match="作业数量超过配额限制"):
            await adapter.submit(run())
        center.quota["remainJobNum"] = 1
        await adapter.submit(run())


async def test_a_group_that_is_down_refuses() -> None:
    async with center_and_adapter() as (center, adapter):
        await adapter.probe()
        center.world.groups[0].status = 3
        with pytest.raises(Refused, match="不可用"):
            await adapter.submit(run())


async def test_a_refusal_without_a_reason_leaves_the_outcome_open() -> None:
    """1.4: code 500 is also what a failure after the act says."""
    async with center_and_adapter() as (center, adapter):
        await adapter.probe()
        center.stumble = "系统异常"
        with pytest.raises(Unavailable, match="系统异常"):
            await adapter.submit(run())
        center.stumble = ""
        assert await adapter.find(RunId("bkaaaaaaaaaa")) is not None, "it had been done"


async def test_an_id_whose_outcome_is_unknown_is_not_sent_again() -> None:
    async with center_and_adapter() as (center, adapter):
        center.stumble = "系统异常"
        with pytest.raises(Unavailable):
            await adapter.submit(run())
        remote = await adapter.submit(run())
        assert remote == await adapter.find(RunId("bkaaaaaaaaaa"))
        assert center.count("create_a") == 1


# ---------------------------------------------------------------- looking


async def test_words_of_state_that_nobody_documented() -> None:
    """15.1: they occupy; what the pods show for certain counts."""
    words = {"Running": "Suspended", "Succeeded": "Finished", "Failed": "Broken"}
    async with center_and_adapter(settings={"english": words, **SLOW}) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        seen = await see(adapter, ref, RemoteState.RUNNING)
        assert seen.raw == "Suspended"
        center.world.end(the_task(center), State.SUCCEEDED)
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.SUCCEEDED
        other = await submit(adapter, run("bkbbbbbbbbbb", command="sleep 1000"))
        await see(adapter, other, RemoteState.RUNNING)
        center.world.end(next(t for t in center.world.tasks.values() if t.name == other.id), State.FAILED)
        assert (await adapter.observe([other]))[other.id].state is RemoteState.FAILED


async def test_a_word_without_pods_stays_unknown() -> None:
    async with center_and_adapter(settings={"english": {"Pending": "Parked"}, **SLOW}) as (center, adapter):
        center.world.groups[0].status = 2
        ref = await submit(adapter, run())
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.UNKNOWN


@pytest.mark.parametrize("word", ["排队中", "Inqueue", "QUEUED ", "创建中"])
async def test_words_of_waiting(word: str) -> None:
    async with center_and_adapter(settings={"english": {"Pending": word}, **SLOW}) as (center, adapter):
        center.world.groups[0].status = 2
        ref = await submit(adapter, run())
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.PENDING


async def test_many_runs_are_seen_in_few_calls() -> None:
    """T30: lists of 100, and no call per run while nothing changes."""
    machines = nodes(1, cores=200, memory_gib=2000, cards=0)
    async with center_and_adapter(groups=[group(machines)], settings=SLOW) as (center, adapter):
        shape = NodeShape("X86", 1, 1)
        refs = [
            await submit(adapter, run(f"bk{n:010d}", shape=shape, command="sleep 999")) for n in range(150)
        ]
        for ref in refs:
            await see(adapter, ref, RemoteState.RUNNING)
        center.seen.clear()
        seen = await adapter.observe(refs)
        assert {s.state for s in seen.values()} == {RemoteState.RUNNING}
        assert len(center.seen) == 2


async def test_a_node_that_dies_is_told_from_a_job_that_fails() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        await see(adapter, ref, RemoteState.RUNNING)
        center.world.lose_node(the_task(center).pods[0].node, for_s=10**6)
        the_task(center).pods[0].reason = "Error"
        assert (await see(adapter, ref, RemoteState.FAILED)).host_lost, "the node is not normal"
        again = await submit(adapter, run("bkbbbbbbbbbb", command="sleep 1000"))
        await see(adapter, again, RemoteState.RUNNING)
        other = next(t for t in center.world.tasks.values() if t.name == again.id)
        center.world.lose_node(other.pods[0].node, for_s=0)
        assert (await see(adapter, again, RemoteState.FAILED)).host_lost, "the pod's reason tells"


# ---------------------------------------------------------------- logs


async def test_logs_over_many_pages_from_any_offset() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        await see(adapter, ref, RemoteState.RUNNING)
        (pod,) = the_task(center).pods
        pod.lines = [f"line {n} 世界" if n % 7 else "" for n in range(2345)]
        center.world.end(the_task(center), State.SUCCEEDED)
        text = b"".join(f"{line}\n".encode() for line in center.world.lines(pod, the_task(center)))
        for offset in (0, 1, 12345, len(text) - 3, len(text), len(text) + 9):
            read = b"".join([chunk async for chunk in adapter.logs(ref, 0, offset)])
            assert read == text[offset:]
        assert [c async for c in adapter.logs(ref, 1, 0)] == []


async def test_a_log_that_grows_is_followed_without_its_unfinished_line() -> None:
    async with center_and_adapter(settings={**SLOW, "scale": 1e-9}) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        await see(adapter, ref, RemoteState.RUNNING)
        (pod,) = the_task(center).pods
        copied, lines = b"", [f"line {n}" for n in range(1500)]
        for count in (1, 2, 999, 1001, 1400):
            pod.lines = [*lines[:count], "unfin"]
            center.seen.clear()
            copied += b"".join([chunk async for chunk in adapter.logs(ref, 0, len(copied))])
            assert copied == b"".join(f"{line}\n".encode() for line in lines[:count])
            assert center.count("pod_logs") <= 3, "only what is new is read"
