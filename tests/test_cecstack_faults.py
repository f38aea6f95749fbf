"""The CECSTACK adapter: what is refused, what may go wrong with a call, and the platform's own training."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.adapter import (
    AdapterError,
    Refused,
    RemoteState,
    RunSpec,
    StatedPool,
    Throttled,
    Unavailable,
    Unsupported,
)
from broker.core.model import NodeShape, RemoteId, RunId
from tests.cecstack_center import (
    NODE,
    PACKAGE,
    Center,
    center,
    connect,
    created,
    look,
    ref,
    run_spec,
    sent,
    started,
    there,
    until,
)
from tests.emulators.cecstack import Site
from tests.emulators.faults import TRANSPORT, Fault

__all__ = ["there"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"nodes": 2}, Refused, "nodes is 2, it has 1"),
        ({"native_pool": "AIDP-0"}, Refused, "package is 'AIDP-0', expected one of"),
        ({"image": ""}, Refused, "image is ''"),
        ({"vip_nodes": ("n1",)}, Unsupported, "nodes cannot be named"),
        ({"port": 80}, Unsupported, "online services need model_id"),
        ({"env": (("CECSTACK_TASK", "sft"), ("CECSTACK_AIHUB_ID", "1"))}, Unsupported, "multi_node"),
        ({"env": (("CECSTACK_TASK", "slm"),)}, Refused, "expected one of pt, sft, dpo, rw, ppo"),
    ],
)
async def test_what_cannot_run_here(
    there: Center, changes: dict[str, Any], error: type[AdapterError], match: str
) -> None:
    platform, adapter = there
    with pytest.raises(error, match=match):
        await adapter.submit(run_spec(**changes))
    assert sent(platform, "task.create") == []


async def test_several_nodes_are_not_for_own_commands(tmp_path: Path) -> None:
    """Trap 34."""
    async with center(tmp_path) as (platform, adapter):
        platform.packages.all[PACKAGE].nodes = 4
        wide = await connect(platform, pools=[StatedPool(PACKAGE, NODE, 4)])
        with pytest.raises(Unsupported, match="one node here"):
            await wide.submit(run_spec(nodes=2))
        await wide.aclose()
        assert not adapter.traits.gang


async def test_a_part_of_a_node_is_refused(there: Center) -> None:
    _, adapter = there
    half = NodeShape("X86", 25, 100, "Nvidia/GPU/H800", 1, 80)
    with pytest.raises(Refused, match="takes a whole node"):
        await adapter.submit(run_spec(shape=half))


async def test_a_run_that_outlives_its_package_is_refused(there: Center) -> None:
    """Trap 20."""
    platform, adapter = there
    platform.packages.all[PACKAGE].ends = platform.clock() + 3600
    await adapter.probe()
    with pytest.raises(Refused, match="maxRunTime is 7200 s"):
        await adapter.submit(run_spec(max_run_time_s=7200))
    await adapter.submit(run_spec(max_run_time_s=60))


async def test_the_platforms_no_reaches_the_user(there: Center) -> None:
    platform, adapter = there
    platform.faults.plan("task.create", Fault.DUPLICATE_NAME)
    with pytest.raises(Refused, match="name bk0000000001 is in use"):
        await adapter.submit(run_spec())


async def test_failures_with_http_200(tmp_path: Path) -> None:
    """Status -1: of a create nothing can have started; of a start nobody knows."""
    async with center(tmp_path, site=Site(failures_in_body=True)) as (platform, adapter):
        platform.faults.plan("task.create", Fault.DUPLICATE_NAME)
        with pytest.raises(Refused, match="in use"):
            await adapter.submit(run_spec())
        run = await started(adapter, command="sleep 1000")
        platform.tasks.rerun_is_error = True
        with pytest.raises(Unavailable, match="Pending already"):
            await adapter.start(run)
        assert (await look(adapter, ref(run_spec(9), RemoteId("slm:99")))).state is RemoteState.GONE


# ---------------------------------------------------------------- faults


NOTHING_DONE = (Fault.DROPPED, Fault.HTML_500, Fault.HANG)


def patience(fault: Fault) -> dict[str, Any]:
    """Short where no answer will come: that has to be waited for."""
    return {"timeout_s": 2.0} if fault is Fault.HANG else {}


@pytest.mark.parametrize("fault", TRANSPORT)
@pytest.mark.parametrize("operation", ["task.create", "task.run", "task.stop", "instance.delete"])
async def test_a_call_with_an_effect_arrives_once(tmp_path: Path, operation: str, fault: Fault) -> None:
    """Trap 1: starts and stops are GETs, which an HTTP library repeats if it is let."""
    async with center(tmp_path, **patience(fault)) as (platform, adapter):
        run = ref(run_spec(1), RemoteId("slm:1"))
        if operation != "task.create":
            await created(adapter)
        if operation == "task.stop":
            await adapter.start(run)
        platform.faults.plan(operation, fault)
        await adapter.packages()  # a connection that is kept is there
        acts: dict[str, Callable[[], Awaitable[object]]] = {
            "task.create": lambda: adapter.submit(run_spec(1)),
            "task.run": lambda: adapter.start(run),
            "task.stop": lambda: adapter.stop(run, grace_s=1),
            "instance.delete": lambda: adapter.delete(run),
        }
        act = acts[operation]
        if fault is Fault.SLOW_BODY:
            await act()
        else:
            with pytest.raises(Unavailable):
                await act()
        assert len(sent(platform, operation)) == 1
        (request,) = sent(platform, operation)
        assert request.done == (fault not in NOTHING_DONE)
        seen = await adapter.observe([run])
        assert seen[run.id].state is not RemoteState.UNKNOWN


@pytest.mark.parametrize("fault", TRANSPORT)
async def test_a_look_that_fails_tells_nothing(tmp_path: Path, fault: Fault) -> None:
    async with center(tmp_path, **patience(fault)) as (platform, adapter):
        run = await created(adapter)
        platform.faults.plan("task.list", fault)
        if fault is Fault.SLOW_BODY:
            assert (await look(adapter, run)).state is RemoteState.CREATED
            return
        with pytest.raises(Unavailable):
            await adapter.observe([run])
        assert (await look(adapter, run)).state is RemoteState.CREATED


async def test_a_lost_create_is_found_by_its_name(there: Center) -> None:
    platform, adapter = there
    platform.faults.plan("task.create", Fault.LOST_REPLY)
    with pytest.raises(Unavailable):
        await adapter.submit(run_spec())
    remote = await adapter.find(RunId("bk0000000001"))
    assert remote == "slm:1"
    run = ref(run_spec(), remote)
    await adapter.start(run)
    await until(adapter, run, RemoteState.SUCCEEDED)
    assert len(platform.tasks.executions) == 1


async def test_a_platform_that_is_not_there_was_not_asked(tmp_path: Path) -> None:
    async with center(tmp_path) as (platform, adapter):
        await adapter.probe()
        await platform.__aexit__(None, None, None)
        with pytest.raises(Throttled):
            await adapter.submit(run_spec())
        with pytest.raises(Unavailable):
            await adapter.probe()


async def test_a_stop_that_is_refused_is_tried_again_later(there: Center) -> None:
    platform, adapter = there
    run = await started(adapter, command="sleep 1000")
    platform.faults.plan("task.stop", Fault.STOP_REFUSED)
    with pytest.raises(Unavailable, match="being created"):
        await adapter.stop(run, grace_s=1)
    await adapter.stop(run, grace_s=1)
    await until(adapter, run, RemoteState.STOPPED)


async def test_a_task_that_vanishes_and_a_node_that_dies(there: Center) -> None:
    platform, adapter = there
    run = await started(adapter, command="sleep 1000")
    await until(adapter, run, RemoteState.RUNNING)
    platform.faults.plan("task.list", Fault.NODE_LOSS)
    await until(adapter, run, RemoteState.FAILED)
    second = await started(adapter, 2, command="sleep 1000")
    await until(adapter, second, RemoteState.RUNNING)
    platform.faults.plan("task.list", Fault.VANISHED_TASK)
    assert (await look(adapter, second)).state is RemoteState.GONE


async def test_a_stale_read_is_a_state_of_the_past(there: Center) -> None:
    platform, adapter = there
    run = await started(adapter, command="sleep 1000")
    await until(adapter, run, RemoteState.RUNNING)
    platform.faults.plan("task.list", Fault.STALE_READ)
    assert (await look(adapter, run)).state in (RemoteState.CREATED, RemoteState.PENDING, RemoteState.RUNNING)


# ---------------------------------------------------------------- the platform's own training


def recipe(**more: str) -> RunSpec:
    env = {"CECSTACK_TASK": "sft", "CECSTACK_AIHUB_ID": "41", **more}
    return run_spec(nodes=2, env=tuple(env.items()), image="", command="")


@pytest.fixture
async def wide(tmp_path: Path) -> AsyncIterator[Center]:
    """A package of four nodes at a center that is set up for fine-tuning."""
    pools = [StatedPool(PACKAGE, NODE, 4)]
    async with center(tmp_path, pools=pools, multi_node="fine-tuning") as (platform, adapter):
        platform.packages.all[PACKAGE].nodes = 4
        yield platform, adapter
        assert platform.complaints == []


async def test_a_task_of_several_workers(wide: Center) -> None:
    platform, adapter = wide
    assert adapter.traits.gang
    spec = recipe(CECSTACK_DATASET_IDS="[115]", CECSTACK_ARGS='{"EPOCH": 3}')
    run = ref(spec, await adapter.submit(spec))
    assert run.remote == "sft:2"  # its container is 1
    body = sent(platform, "task.create")[0].body
    assert (body["workers"], body["maas"], body["aihub_id"], body["jobname"]) == (2, 1, 41, spec.id)
    assert (body["dataset_ids"], body["args"], body["ft_type"]) == ("[115]", '{"EPOCH": 3}', "lora")
    await adapter.start(run)
    await until(adapter, run, RemoteState.RUNNING)
    (pool,) = (await adapter.probe()).pools
    assert [(free.accelerators, free.nodes) for free in pool.free] == [(2, 2), (0, 2)]
    assert await adapter.find(spec.id) == run.remote
    await until(adapter, run, RemoteState.SUCCEEDED)
    await adapter.delete(run)
    assert platform.tasks.containers == {}
    assert (await look(adapter, run)).state is RemoteState.GONE


@pytest.mark.parametrize(
    ("env", "match"),
    [
        ({"CECSTACK_AIHUB_ID": "x"}, "CECSTACK_AIHUB_ID is 'x', expected the number"),
        ({"CECSTACK_DATASET_IDS": "{}"}, "CECSTACK_DATASET_IDS is '{}', expected a list"),
        ({"CECSTACK_ARGS": "["}, "expected an object in JSON"),
    ],
)
async def test_a_recipe_that_cannot_be_meant(wide: Center, env: dict[str, str], match: str) -> None:
    platform, adapter = wide
    with pytest.raises(Refused, match=match):
        await adapter.submit(recipe(**env))
    assert platform.tasks.containers == {}


async def test_own_commands_have_one_node_there_too(wide: Center) -> None:
    _, adapter = wide
    with pytest.raises(Unsupported, match="CECSTACK_TASK"):
        await adapter.submit(run_spec(nodes=2))
    run = await started(adapter, 2)
    await until(adapter, run, RemoteState.SUCCEEDED)
