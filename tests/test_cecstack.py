"""The CECSTACK adapter over the emulated platform: runs, from their creation to their deletion.

Here: tasks.  Elsewhere: what is refused and goes wrong (test_cecstack_faults.py), packages and answers as
texts (test_cecstack_reading.py), services and operators' commands (test_cecstack_commands.py).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import cecstack
from broker.adapter import (
    Connection,
    CopyRef,
    CopyState,
    Denied,
    Lookup,
    NoCapacity,
    Refused,
    RemoteState,
    Throttled,
    Unavailable,
    Unsupported,
)
from broker.core.model import CenterId, RemoteId, RunId
from tests.cecstack_center import (
    DEADLINE_S,
    KEYS,
    PACKAGE,
    Center,
    center,
    connect,
    created,
    look,
    options,
    ref,
    run_spec,
    sent,
    started,
    there,
    until,
)
from tests.emulators.cecstack import Cecstack, Site
from tests.emulators.faults import Fault

__all__ = ["there"]


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
    with pytest.raises(Throttled, match="not sent: HTTP 500"):
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
        only = 'test "$(ls $BROKER_DATASETS_DIR)" = ds-1'
        await adapter.stage(CopyRef("ds-2", CenterId("c"), str(source), 2))
        named = await started(adapter, 2, command=only, datasets=(("ds-1", copied.remote),))
        await until(adapter, named, RemoteState.SUCCEEDED)
        await adapter.unstage(CopyRef("ds-1", CenterId("c"), str(source), 2))
        assert [path.name for path in (shared / "datasets").iterdir()] == ["ds-2"]


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
