"""The CECSTACK adapter over the emulated platform: runs, from their creation to their deletion.

Here: tasks and what may go wrong with them.  Elsewhere: packages and answers as texts
(test_cecstack_reading.py), services and operators' commands (test_cecstack_commands.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import cecstack
from adapters.cecstack import Cecstack as Adapter
from broker.adapter import (
    AdapterError,
    Connection,
    CopyRef,
    CopyState,
    Denied,
    Lookup,
    NoCapacity,
    Refused,
    RemoteState,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
    Throttled,
    Unavailable,
    Unsupported,
)
from broker.core.model import CenterId, NodeShape, RemoteId, RunId
from tests.cecstack_center import KEYS, NODE, PACKAGE, center, connect, options, ref, run_spec
from tests.emulators.cecstack import Cecstack, Site
from tests.emulators.faults import TRANSPORT, Fault

Center = tuple[Cecstack, Adapter]
ENDED = (RemoteState.SUCCEEDED, RemoteState.FAILED, RemoteState.STOPPED, RemoteState.GONE)
DEADLINE_S = 20.0


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Center]:
    async with center(tmp_path) as (platform, adapter):
        yield platform, adapter
        assert platform.complaints == []


async def look(adapter: Adapter, run: RunRef) -> Sighting:
    return (await adapter.observe([run]))[run.id]


async def until(adapter: Adapter, run: RunRef, *states: RemoteState) -> Sighting:
    async with asyncio.timeout(DEADLINE_S):
        while (seen := await look(adapter, run)).state not in states:
            assert seen.state not in ENDED, f"expected {states}, got {seen}"
            await asyncio.sleep(0.01)
    return seen


async def created(adapter: Adapter, number: int = 1, **changes: Any) -> RunRef:
    run = run_spec(number, **changes)
    return ref(run, await adapter.submit(run))


async def started(adapter: Adapter, number: int = 1, **changes: Any) -> RunRef:
    run = await created(adapter, number, **changes)
    await adapter.start(run)
    return run


def sent(platform: Cecstack, operation: str) -> list[Any]:
    return [seen for seen in platform.seen if seen.operation == operation]


# ---------------------------------------------------------------- what is sent


async def test_a_create_has_every_documented_field(there: Center) -> None:
    platform, adapter = there
    run = await created(adapter)
    assert run.remote == "slm:1"
    (request,) = sent(platform, "task.create")
    body = request.body
    assert body["projectId"] == body["project_id"] == platform.project  # never 58 and 8
    assert body["resourceId"] == body["resource_id"] == PACKAGE
    assert (body["name"], body["images"], body["command"]) == (run.id, "image.cestc.cn/x:1", "sleep 5")
    envs = {each["key"]: each["value"] for each in json.loads(body["expand"])["trainWorkArgs"]["envs"]}
    assert envs["GREETING"] == "hello"
    assert (envs["BROKER_TASK_ID"], envs["BROKER_NODE_COUNT"], envs["BROKER_NODE_RANK"]) == (run.id, "1", "0")


async def test_every_request_has_region_and_content_type(there: Center) -> None:
    platform, adapter = there
    run = await started(adapter)
    await look(adapter, run)
    await adapter.stop(run, grace_s=1)
    await adapter.probe()
    await adapter.catalogue()
    for seen in platform.seen:
        assert seen.headers["x-regionid"] == seen.query["requestInfo"] == "region1", seen
        assert seen.headers["content-type"] == "application/json"
        assert seen.headers["cache-control"] == "no-store"
        assert "x-signature" not in seen.headers


async def test_further_headers_are_sent_and_kept_secret(tmp_path: Path) -> None:
    extra = {"x-auth-validate": "true", "x-tenant-key": "quite-a-secret"}
    async with center(tmp_path, extra_headers=extra) as (platform, adapter):
        assert all(seen.headers["x-auth-validate"] == "true" for seen in platform.seen)
        assert adapter.wire.http.redact("true quite-a-secret") == "true ***"


async def test_signed_requests_are_taken_and_unsigned_ones_denied(tmp_path: Path) -> None:
    site = Site(secrets={"AK-1": KEYS["secret_key"]})
    async with center(tmp_path, site=site, signature="hmac-sha256") as (platform, adapter):
        await until(adapter, await started(adapter), RemoteState.SUCCEEDED)
        assert all(s.headers["x-access-key"] == "AK-1" for s in platform.seen)
        with pytest.raises(Denied, match="401"):
            await connect(platform)
        platform.site.secrets = {"AK-1": "another"}
        with pytest.raises(Denied) as denied:
            await adapter.submit(run_spec(2))
        assert KEYS["secret_key"] not in str(denied.value)
        assert len(platform.tasks.all) == 1


async def test_a_signature_of_the_past_is_denied_with_no_effect(there: Center) -> None:
    platform, adapter = there
    await adapter.probe()
    platform.faults.plan("task.create", Fault.EXPIRED_SESSION)
    with pytest.raises(Denied):
        await adapter.submit(run_spec())
    assert platform.tasks.all == {}


# ---------------------------------------------------------------- a run's life


async def test_the_two_phases(there: Center) -> None:
    """Trap 3: a create starts nothing."""
    platform, adapter = there
    run = await created(adapter)
    assert (await look(adapter, run)).state is RemoteState.CREATED
    assert platform.tasks.executions == []
    await adapter.start(run)
    seen = await until(adapter, run, RemoteState.SUCCEEDED)
    (execution,) = platform.tasks.executions
    assert (execution.outcome, execution.exit_code) == ("Succeeded", 0)
    assert seen.started_ms == int(execution.started) * 1000  # of the zone that is configured (trap 31)
    assert seen.ended_ms is not None
    assert seen.ended_ms >= seen.started_ms


async def test_a_second_start_begins_anew(there: Center) -> None:
    """Trap 2, which is why the broker never repeats a start without a look."""
    platform, adapter = there
    run = await started(adapter, command="sleep 100")
    await until(adapter, run, RemoteState.RUNNING)
    await adapter.start(run)
    await until(adapter, run, RemoteState.RUNNING)
    first, second = platform.tasks.executions
    assert first.ended is not None
    assert first.ended <= second.started


async def test_a_start_of_what_runs_already_was_made_before(there: Center) -> None:
    """Some installations refuse it.  Taken for a refusal, the run would be given up while it runs."""
    platform, adapter = there
    run = await started(adapter, command="sleep 1000")
    await until(adapter, run, RemoteState.RUNNING)
    platform.tasks.rerun_is_error = True
    await adapter.start(run)
    assert len(platform.tasks.executions) == 1
    with pytest.raises(Refused, match="Not found"):
        await adapter.start(ref(run_spec(9), RemoteId("slm:99")))
    with pytest.raises(Refused, match="nothing that this center can start"):
        await adapter.start(ref(run_spec(9), RemoteId("quo:7")))


async def test_a_submission_that_cannot_be_prepared_is_no_doubt(there: Center) -> None:
    platform, adapter = there
    platform.faults.plan("resource.list", Fault.HTML_500)
    with pytest.raises(Throttled, match="the packages are not known"):
        await adapter.submit(run_spec())
    platform.packages.all[PACKAGE].state = 3
    with pytest.raises(NoCapacity, match="resourceState is 3"):
        await adapter.submit(run_spec())
    assert platform.tasks.all == {}


async def test_a_run_waits_for_its_package(there: Center) -> None:
    platform, adapter = there
    first = await started(adapter, 1, command="sleep 1000")
    await until(adapter, first, RemoteState.RUNNING)
    second = await started(adapter, 2)
    assert (await look(adapter, second)).state is RemoteState.PENDING
    await adapter.stop(second, grace_s=1)
    assert (await look(adapter, second)).state is RemoteState.STOPPED
    await adapter.stop(first, grace_s=1)
    await until(adapter, first, RemoteState.STOPPED)
    assert len(platform.tasks.executions) == 1


async def test_a_stop_of_what_was_never_started_changes_nothing(there: Center) -> None:
    _, adapter = there
    run = await created(adapter)
    await adapter.stop(run, grace_s=1)
    assert (await look(adapter, run)).state is RemoteState.CREATED


async def test_a_stop_of_an_ended_run_is_not_sent(there: Center) -> None:
    platform, adapter = there
    run = await started(adapter)
    await until(adapter, run, RemoteState.SUCCEEDED)
    await adapter.stop(run, grace_s=1)
    assert sent(platform, "task.stop") == []


async def test_a_failure_has_a_text(there: Center) -> None:
    _, adapter = there
    seen = await until(adapter, await started(adapter, command="exit 3"), RemoteState.FAILED)
    assert seen.exit_code is None
    assert "no exit code was left" in seen.message


async def test_exit_codes_come_from_the_shared_storage(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    output = {"in_job": str(shared), "here": str(shared)}
    async with center(tmp_path / "p", output=output) as (platform, adapter):
        assert (adapter.traits.logs, adapter.traits.results, adapter.traits.resume) == (True, True, True)
        seen = await until(adapter, await started(adapter, command="echo hi; exit 3"), RemoteState.FAILED)
        assert (seen.exit_code, seen.message, seen.cannot_start) == (3, "exit code 3", False)
        gone = await until(adapter, await started(adapter, 2, command="/no/such"), RemoteState.FAILED)
        assert (gone.exit_code, gone.cannot_start) == (127, True)
        run = ref(run_spec(), RemoteId("slm:1"))
        assert b"".join([chunk async for chunk in adapter.logs(run, 0, 0)]) == b"hi\n"
        await adapter.delete(run)
        assert not (shared / run.id).exists()
        assert platform.complaints == []


async def test_data_sets_are_brought_over_the_shared_storage(tmp_path: Path) -> None:
    source, shared = tmp_path / "source", tmp_path / "shared"
    for folder in (source, shared):
        folder.mkdir()
    (source / "x").write_text("42")
    output = {"in_job": str(shared), "here": str(shared)}
    async with center(tmp_path / "p", output=output) as (_, adapter):
        copied = await adapter.stage(CopyRef("ds-1", CenterId("c"), str(source), 2))
        assert copied.state is CopyState.READY
        command = 'test "$(cat $BROKER_DATASETS_DIR/ds-1/x)" = 42'
        run = await started(adapter, command=command, datasets=(("ds-1", copied.remote),))
        await until(adapter, run, RemoteState.SUCCEEDED)


async def test_without_the_storage_there_are_no_logs_and_it_is_said(there: Center) -> None:
    _, adapter = there
    run = await created(adapter)
    assert (adapter.traits.logs, adapter.traits.results, adapter.traits.resume) == (False, False, False)
    with pytest.raises(Unsupported, match="output"):
        await anext(adapter.logs(run, 0, 0))
    with pytest.raises(Unsupported, match="output"):
        await anext(adapter.results(run))
    with pytest.raises(Unsupported, match="output"):
        await adapter.stage(CopyRef("ds-1", CenterId("c"), "/nowhere", 2))


# ---------------------------------------------------------------- looking


async def test_many_runs_are_seen_with_one_list(there: Center) -> None:
    platform, adapter = there
    runs = [await created(adapter, number) for number in range(1, 21)]
    before = len(platform.seen)
    seen = await adapter.observe(runs)
    assert len(seen) == 20
    assert len(platform.seen) == before + 1


async def test_runs_are_found_on_any_page(there: Center) -> None:
    """250 tasks are three pages; the oldest is on the last."""
    platform, adapter = there
    first = await created(adapter)
    body = dict(platform.tasks.all[1].body)
    for number in range(250):
        platform.tasks.create("slm", {**body, "name": f"other-{number}"})
    assert await adapter.find(first.id) == first.remote
    assert (await look(adapter, first)).state is RemoteState.CREATED
    assert await adapter.find(RunId("bkzzzzzzzzzz")) is None


async def test_a_look_up_that_cannot_be_whole_says_nothing(there: Center) -> None:
    """An answer of which a part is missing is not "not found"."""
    platform, adapter = there
    run = await created(adapter)
    for fault in (Fault.TRUNCATED, Fault.GARBAGE, Fault.DROPPED, Fault.HTML_500):
        platform.faults.plan("task.list", fault)
        with pytest.raises(Unavailable):
            await adapter.find(run.id)
    assert await adapter.find(run.id) == run.remote


async def test_what_the_platform_does_not_know_is_gone(there: Center) -> None:
    _, adapter = there
    known = await created(adapter)
    for remote in ("slm:999", "slm:x", "44", "", "quo:7"):
        unknown = ref(run_spec(9), RemoteId(remote))
        seen = await adapter.observe([unknown, known])
        assert seen[unknown.id].state is RemoteState.GONE
        assert seen[known.id].state is RemoteState.CREATED
        await adapter.stop(unknown, grace_s=1)
        await adapter.delete(unknown)


async def test_a_site_that_lists_no_slm_tasks(tmp_path: Path) -> None:
    """Trap 17: a lost create can then only be settled by an operator; a look is by detail."""
    async with center(tmp_path, site=Site(slm_list=False)) as (_, adapter):
        assert adapter.traits.lookup is Lookup.NEITHER
        with pytest.raises(Unsupported):
            await adapter.find(RunId("bk0000000001"))
        await until(adapter, await started(adapter), RemoteState.SUCCEEDED)


async def test_a_site_that_shows_no_slm_task_by_its_id(tmp_path: Path) -> None:
    async with center(tmp_path, site=Site(slm_detail=False)) as (_, adapter):
        assert adapter.traits.lookup is Lookup.FIND_BY_NAME
        run = await started(adapter)
        await until(adapter, run, RemoteState.SUCCEEDED)
        assert (await look(adapter, ref(run_spec(9), RemoteId("slm:99")))).state is RemoteState.GONE
        await adapter.delete(run)
        assert (await look(adapter, run)).state is RemoteState.GONE


async def test_a_site_that_shows_nothing_of_slm_tasks(tmp_path: Path) -> None:
    """Only what a run leaves on the shared storage tells of its end; until then there is no news."""
    shared = tmp_path / "shared"
    shared.mkdir()
    site = Site(slm_list=False, slm_detail=False)
    output = {"in_job": str(shared), "here": str(shared)}
    async with center(tmp_path / "p", site=site, output=output) as (_, adapter):
        run = await started(adapter, command="exit 3")
        async with asyncio.timeout(DEADLINE_S):
            while not (seen := await adapter.observe([run])):  # noqa: ASYNC110  (nothing tells of it)
                await asyncio.sleep(0.01)
        assert (seen[run.id].state, seen[run.id].exit_code) == (RemoteState.FAILED, 3)
        await adapter.stop(await started(adapter, 2, command="sleep 1000"), grace_s=1)


async def test_states_in_html_and_in_unknown_words(there: Center) -> None:
    """Trap 30.  A word that nobody knows occupies capacity and ends nothing."""
    platform, adapter = there
    platform.tasks.status_form = "html"
    run = await created(adapter)
    assert (await look(adapter, run)).state is RemoteState.CREATED
    await adapter.start(run)
    await until(adapter, run, RemoteState.SUCCEEDED)
    platform.tasks.status_form = "plain"
    platform.site.unknown_words = {"Succeeded": "已完成"}
    seen = await look(adapter, run)
    assert (seen.state, seen.raw) == (RemoteState.UNKNOWN, "已完成")


async def test_a_state_may_be_late(there: Center) -> None:
    platform, adapter = there
    platform.tasks.status_lag_s = 5
    run = await started(adapter, command="sleep 1000")
    assert (await look(adapter, run)).state is RemoteState.CREATED
    await until(adapter, run, RemoteState.RUNNING)


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


@pytest.mark.parametrize("fault", TRANSPORT)
@pytest.mark.parametrize("operation", ["task.create", "task.run", "task.stop", "instance.delete"])
async def test_a_call_with_an_effect_arrives_once(there: Center, operation: str, fault: Fault) -> None:
    """Trap 1: starts and stops are GETs, which an HTTP library repeats if it is let."""
    platform, adapter = there
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
async def test_a_look_that_fails_tells_nothing(there: Center, fault: Fault) -> None:
    platform, adapter = there
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


# ---------------------------------------------------------------- deleting


async def test_another_ones_task_is_not_deleted(there: Center) -> None:
    """Trap 6: numbers are all that a deletion names."""
    platform, adapter = there
    await created(adapter, 1)
    with pytest.raises(Refused, match="is called 'bk0000000001' there, expected 'bk0000000002'"):
        await adapter.delete(ref(run_spec(2), RemoteId("slm:1")))
    assert sent(platform, "instance.delete") == []


async def test_a_live_task_is_not_deleted(there: Center) -> None:
    platform, adapter = there
    run = await started(adapter, command="sleep 1000")
    await until(adapter, run, RemoteState.RUNNING)
    with pytest.raises(Unavailable, match="'Running', expected an ended one"):
        await adapter.delete(run)
    assert sent(platform, "instance.delete") == []


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


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"signature": "md5"}, "signature is 'md5', expected one of none, hmac-sha256"),
        ({"project_id": "broker"}, "project_id is 'broker', expected a number"),
    ],
)
async def test_options_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    async with Cecstack(tmp_path) as platform:
        with pytest.raises(ValueError, match=match):
            await connect(platform, **changes)


async def test_a_wrong_region_is_told(tmp_path: Path) -> None:
    async with Cecstack(tmp_path) as platform:
        connection = Connection(CenterId("c"), "bk", {**options(platform), "region": "region9"}, KEYS)
        with pytest.raises(Refused, match="unknown region"):
            await cecstack.connect(connection)


async def test_the_same_submission_is_answered_with_the_first(there: Center) -> None:
    platform, adapter = there
    spec = run_spec()
    first = await adapter.submit(spec)
    assert await adapter.submit(replace(spec)) == first
    assert len(sent(platform, "task.create")) == 1
