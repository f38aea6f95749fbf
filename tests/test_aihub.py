"""The AIHub adapter over the emulated platform: runs, VIP, and the traps of the document.

Here: calls that are answered.  Not here: capacity and options (test_aihub_capacity.py), what goes
wrong on the way (test_aihub_faults.py), data and operators' commands (test_aihub_data.py), what every
adapter must do (test_adapter_contract.py).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters import aihub
from adapters.aihub_services import Service
from adapters.aihub_tasks import LONG_S, TaskId, sighting
from broker.adapter import (
    Lookup,
    Refused,
    RemoteState,
    RunRef,
    Unavailable,
    Unsupported,
)
from broker.core.model import JobId, RemoteId, RunId, Tier
from tests.aihub_center import opened
from tests.emulators.aihub import USERS, Switches

ZHANG = USERS[1]
MODES = ("training", "quota")


def prefix(mode: str) -> str:
    return "quo:" if mode == "quota" else "trn:"


# ---------------------------------------------------------------- a run's life


@pytest.mark.parametrize("mode", MODES)
async def test_every_documented_field_is_sent(tmp_path: Path, mode: str) -> None:
    """The emulator refuses a create with a field missing, unknown or of another type."""
    async with opened(tmp_path, mode=mode, shm_gib=64) as center:
        await center.adapter.probe()
        ref = await center.submit("exit 0", max_run_time_s=3600, priority=Tier.HIGH, nodes=2)
        assert ref.remote.startswith(prefix(mode))
        (request,) = center.asked("create_quota_task" if mode == "quota" else "create_training")
        sent = dict(request.body)
        assert sent.pop("command").startswith("BROKER_NODE_RANK=")
        env = {each["key"]: each["value"] for each in sent.pop("envs")}
        assert (env["BROKER_JOB_ID"], env["BROKER_TASK_ID"]) == (ref.job, ref.id)
        assert (env["BROKER_ATTEMPT"], env["BROKER_NODE_COUNT"], env["GREETING"]) == ("1", "2", "hello")
        own = (
            {"priority": 2}
            if mode == "quota"
            else {"is_vip": False, "preempt_policy": 1, "vip_node_names": []}
        )
        assert sent == own | {
            "framework": "PyTorchJob",
            "name": ref.id,
            "description": f"{ref.job}, attempt 1",
            "image": "reg/pt:2.3",
            "virtual_cluster_id": 29,
            "sku_cnt": 2,
            "enable_ssh": False,
            "storage_ids": [1],
            "instances": 2,
            "use_ib_network": True,
            "always_pull_image": False,
            "shm": 64,
            "category_id": 1,
            "project_id": 1,
            "estimate_run_time": 3600,
        }


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_from_its_create_to_its_results(tmp_path: Path, mode: str) -> None:
    command = (
        'echo "$GREETING from $BROKER_NODE_RANK of $BROKER_NODE_COUNT"; sleep 20;'
        ' [ "$BROKER_NODE_RANK" = 1 ] || echo 42 >"$BROKER_OUTPUT_DIR/answer"'
    )
    async with opened(tmp_path, mode=mode) as center:
        ref = await center.submit(command, nodes=2)
        running = await center.see(ref, RemoteState.RUNNING)
        seen = await center.see(ref, RemoteState.SUCCEEDED)
        (truth,) = center.hub.platform.executions
        assert (seen.started_ms, seen.ended_ms) == (truth.started_ms, truth.ended_ms)
        assert running.started_ms == truth.started_ms
        assert seen.exit_code == 0
        for node in (0, 1):
            log = b"".join([chunk async for chunk in center.adapter.logs(ref, node, 0)])
            assert log == f"hello from {node} of 2\n".encode()
        found = {r.path: b"".join([c async for c in r.chunks]) async for r in center.adapter.results(ref)}
        assert found == {"answer": b"42\n"}
        await center.adapter.delete(ref)
        assert (await center.look(ref)).state is RemoteState.GONE
        assert await center.adapter.find(ref.id) is None
        assert [chunk async for chunk in center.adapter.logs(ref, 0, 0)] == []
        assert center.hub.platform.tasks[0].status == 3, "the platform keeps it: it has no deletion"


async def test_without_a_shared_storage_logs_and_results_are_declared_unavailable(tmp_path: Path) -> None:
    async with opened(tmp_path, output=None) as center:
        traits = center.adapter.traits
        assert (traits.logs, traits.results, traits.resume) == (False, False, False)
        ref = await center.submit("exit 3")
        seen = await center.see(ref, RemoteState.FAILED)
        assert seen.exit_code is None
        assert "gives no reason" in seen.message
        with pytest.raises(Unsupported, match="output"):
            await anext(aiter(center.adapter.logs(ref, 0, 0)))
        with pytest.raises(Unsupported, match="output"):
            await anext(aiter(center.adapter.results(ref)))


@pytest.mark.parametrize("mode", MODES)
async def test_a_stop_ends_a_waiting_and_a_running_task(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        running = await center.submit(nodes=2)
        await center.see(running, RemoteState.RUNNING)
        waiting = await center.submit()
        assert (await center.look(waiting)).state is RemoteState.PENDING
        for ref in (waiting, running):
            await center.adapter.stop(ref, grace_s=5)
            seen = await center.see(ref, RemoteState.STOPPED)
            assert seen.evicted_by == ""
            await center.adapter.stop(ref, grace_s=5)  # the platform refuses; it is done all the same
        assert [e.name for e in center.hub.platform.executions] == [running.id]


async def test_stopping_a_quota_task_still_runs_and_is_addressed_by_its_own_id(tmp_path: Path) -> None:
    """Status 6 holds its cards; the training behind it is left alone."""
    async with opened(tmp_path, mode="quota") as center:
        ref = await center.submit('trap "" TERM; sleep 60; sleep 60')
        await center.see(ref, RemoteState.RUNNING)
        await center.adapter.stop(ref, grace_s=5)
        assert "status 6" in (seen := await center.look(ref)).raw
        assert seen.state is RemoteState.RUNNING
        await center.see(ref, RemoteState.STOPPED)
        assert center.asked("stop_training") == []
        assert [r.path for r in center.asked("stop_quota_task")] == [
            "/quota-schedule-management/api/v1/tasks/7/stop"
        ]


async def test_somebody_elses_task_is_never_stopped(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        task = center.hub.platform.foreign(29, name="theirs", user=ZHANG, sku_cnt=1)
        ref = RunRef(RunId("bk-0000000000"), JobId("j"), RemoteId(f"trn:{task.id}"), 1)
        with pytest.raises(Refused, match="theirs"):
            await center.adapter.stop(ref, grace_s=5)
        assert center.asked("stop_training") == []
        seen = await center.look(ref)
        assert seen.state is RemoteState.UNKNOWN
        assert "theirs" in seen.raw


@pytest.mark.parametrize("remote", ["", "slm:44", "trn:", "trn:101; rm", "bk-0000000000"])
async def test_what_is_no_id_of_the_platform_is_gone(tmp_path: Path, remote: str) -> None:
    async with opened(tmp_path) as center:
        ref = RunRef(RunId("bk-0000000000"), JobId("j"), RemoteId(remote), 1)
        assert (await center.look(ref)).state is RemoteState.GONE
        await center.adapter.stop(ref, grace_s=5)


def test_an_operator_may_leave_out_the_kind_of_an_id() -> None:
    assert TaskId.read("101", Service.QUOTA) == TaskId(Service.QUOTA, 101)
    assert TaskId.read("trn:101", Service.QUOTA) == TaskId(Service.TRAINING, 101)


async def test_an_unknown_id_is_gone_and_hides_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        known = await center.submit()
        unknown = RunRef(RunId("bk-0000000000"), JobId("j"), RemoteId("trn:9999"), 1)
        seen = await center.adapter.observe([unknown, known])
        assert seen[unknown.id].state is RemoteState.GONE
        assert seen[known.id].state in (RemoteState.PENDING, RemoteState.RUNNING)


async def test_the_estimate_is_generous_and_never_zero(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        await center.submit("exit 0")
        (request,) = center.asked("create_training")
        assert request.body["estimate_run_time"] == LONG_S > 86_400


async def test_pods_are_read_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as center:
        ref = await center.submit(nodes=2)
        await center.see(ref, RemoteState.RUNNING)
        task = TaskId.read(ref.remote, center.adapter.settings.usual)
        assert task is not None
        assert len(await center.adapter.pods(task)) == 2
        assert "page_size=9999&page_num=1" in center.asked("training_pods")[0].path
        monkeypatch.setattr(aihub, "PAGE", 1)
        rows = await center.adapter.pods(task)
        assert sorted(row["node_name"] for row in rows) == ["ai-13-108", "ai-13-109"]
        assert len(center.asked("training_pods")) == 3


async def test_pods_say_nothing_about_the_state_of_a_run(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        ref = await center.submit()
        await center.see(ref, RemoteState.RUNNING)
        center.hub.platform.tasks[0].pods[0].status = "Deleted"
        assert (await center.look(ref)).state is RemoteState.RUNNING


# ---------------------------------------------------------------- what a detail says


DETAIL: dict[str, Any] = {"name": "bk-1", "status": 4, "started_at": 1_729_063_124_000, "finished_at": 0}


@pytest.mark.parametrize(
    ("changes", "exit_code", "state", "evicted_by"),
    [
        ({"status": 1}, None, RemoteState.PENDING, ""),
        ({"status": 2}, None, RemoteState.RUNNING, ""),
        ({"status": 6}, None, RemoteState.RUNNING, ""),
        ({"status": "2"}, None, RemoteState.RUNNING, ""),
        ({"status": 0}, None, RemoteState.UNKNOWN, ""),
        ({"status": None}, None, RemoteState.UNKNOWN, ""),
        ({"status": 9}, None, RemoteState.UNKNOWN, ""),
        ({"status": 3}, None, RemoteState.SUCCEEDED, ""),
        ({}, 3, RemoteState.FAILED, ""),
        ({"stop_op_user": {"id": 0, "name": ""}}, None, RemoteState.FAILED, ""),
        ({"stop_op_user": {"id": 2, "name": "zhang"}}, 143, RemoteState.FAILED, "user zhang"),
        ({"status": 5, "stop_op_user": {"id": 2, "name": ""}}, None, RemoteState.STOPPED, "user 2"),
        ({"status": 5, "stop_op_user": {"id": 1, "name": "broker"}}, None, RemoteState.STOPPED, ""),
        ({"status": 5, "stop_op_user": {"id": 0, "name": ""}}, None, RemoteState.STOPPED, "the platform"),
        ({"status": 5, "stop_op_user": None}, None, RemoteState.STOPPED, "the platform"),
        ({"name": "bk-2"}, None, RemoteState.UNKNOWN, ""),
    ],
)
def test_states_and_evictions(
    changes: dict[str, Any], exit_code: int | None, state: RemoteState, evicted_by: str
) -> None:
    seen = sighting(DETAIL | changes, name="bk-1", user_id=1, exit_code=exit_code)
    assert (seen.state, seen.evicted_by) == (state, evicted_by)
    if state in (RemoteState.FAILED, RemoteState.STOPPED, RemoteState.SUCCEEDED):
        assert (seen.started_ms, seen.ended_ms) == (1_729_063_124_000, None), "milliseconds, 0 is not yet"
        assert seen.exit_code == (0 if state is RemoteState.SUCCEEDED else exit_code)


@pytest.mark.parametrize("status", [4, 5])
@pytest.mark.parametrize("named", [True, False])
async def test_a_victim_of_the_platform_is_evicted(tmp_path: Path, status: int, named: bool) -> None:
    """What becomes of a preempted task is not documented: 4 or 5, its killer named or not.

    Nameless and failed, it cannot be told from a failure of its own.
    """
    switches = Switches(victim_status=status, victim_names_its_killer=named)
    async with opened(tmp_path, switches=switches) as center:
        ref = await center.submit(nodes=2)
        await center.see(ref, RemoteState.RUNNING)
        vip = {"name": "v", "virtual_cluster_id": 29, "sku_cnt": 2, "instances": 1, "framework": "PyTorchJob"}
        more = {"estimate_run_time": 1, "category_id": 1, "project_id": 1, "command": "true", "envs": []}
        asked = vip | more | {"is_vip": True, "preempt_policy": 2, "vip_node_names": []}
        center.hub.platform.create(asked, user=ZHANG, request=0, quota=False)
        seen = await center.see(ref, RemoteState.FAILED if status == 4 else RemoteState.STOPPED)
        expected = "user zhang" if named else "" if status == 4 else "the platform"
        assert seen.evicted_by == expected


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("says_msg", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_missing_and_unknown_fields_are_tolerated(
    tmp_path: Path, mode: str, says_msg: bool, noise: bool
) -> None:
    switches = Switches(noise=noise, says_msg=says_msg, empty_nodes=True)
    async with opened(tmp_path, switches=switches, mode=mode) as center:
        await center.see(await center.submit("exit 0"), RemoteState.SUCCEEDED)
        assert await center.free_cards() == 4


# ---------------------------------------------------------------- VIP


@pytest.mark.parametrize("mode", MODES)
async def test_a_vip_job_is_a_training_and_waits_on_its_nodes(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        other = await center.submit(nodes=2)
        await center.see(other, RemoteState.RUNNING)
        vip = await center.submit("exit 0", vip=True, preempt_policy=2, vip_nodes=("ai-13-108",))
        assert vip.remote.startswith("trn:")
        (sent,) = [r.body for r in center.asked("create_training") if r.body["name"] == vip.id]
        assert (sent["is_vip"], sent["vip_node_names"]) == (True, ["ai-13-108"])
        assert sent["preempt_policy"] == 1, "the operator has not allowed that the platform kills"
        assert (await center.look(other)).state is RemoteState.RUNNING
        assert (await center.look(vip)).state is RemoteState.PENDING
        late = await center.submit("exit 0")
        await center.adapter.stop(other, grace_s=1)
        await center.see(vip, RemoteState.SUCCEEDED)
        await center.see(late, RemoteState.SUCCEEDED)
        assert not center.adapter.traits.vip_kill


async def test_the_platform_kills_for_a_vip_job_only_where_the_operator_allows_it(tmp_path: Path) -> None:
    """The victim is our own run, and its stop names our own account: it was evicted all the same."""
    async with opened(tmp_path, allow_preempt_kill=True) as center:
        assert center.adapter.traits.vip_kill
        other = await center.submit(nodes=2)
        await center.see(other, RemoteState.RUNNING)
        vip = await center.submit("exit 0", vip=True, preempt_policy=2)
        seen = await center.see(other, RemoteState.STOPPED)
        assert seen.evicted_by == "user broker"
        await center.see(vip, RemoteState.SUCCEEDED)
        mine = await center.submit()
        await center.see(mine, RemoteState.RUNNING)
        await center.adapter.stop(mine, grace_s=1)
        assert (await center.see(mine, RemoteState.STOPPED)).evicted_by == "", "this one we stopped"


async def test_without_a_training_service_vip_jobs_are_unsupported(tmp_path: Path) -> None:
    async with opened(tmp_path, mode="quota", training_url=None) as center:
        traits = center.adapter.traits
        assert (traits.vip_wait, traits.node_hold, traits.priority) == (False, False, True)
        with pytest.raises(Unsupported, match="training_url is not set"):
            await center.submit(vip=True)
        await center.see(await center.submit("exit 0"), RemoteState.SUCCEEDED)


# ---------------------------------------------------------------- finding


@pytest.mark.parametrize("mode", MODES)
async def test_the_same_id_is_created_once(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        spec = center.spec()
        remotes = await asyncio.gather(*(center.adapter.submit(spec) for _ in range(5)))
        assert len(set(remotes)) == 1
        assert len(center.hub.platform.tasks) == 1
        assert await center.adapter.find(spec.id) == remotes[0]


async def test_a_name_in_node_tasks_leads_to_the_quota_task_and_not_to_its_training(tmp_path: Path) -> None:
    """node_tasks give the training's id (101 and on), which is not how a quota task is addressed."""
    async with opened(tmp_path, mode="quota") as center:
        for _ in range(3):
            center.hub.platform.foreign(29, name="theirs", user=ZHANG, sku_cnt=0)
        ref = await center.submit()
        await center.see(ref, RemoteState.RUNNING)
        fresh = await center.reopened()
        assert await fresh.find(ref.id) is None, "nothing is known of this platform yet"
        other = await center.submit("exit 0")
        await center.look(other)
        assert fresh.evidence[29][0].name in ("theirs", ref.id)
        assert {t.id for t in fresh.evidence[29] if t.name == ref.id} == {"104"}
        assert await fresh.find(ref.id) == ref.remote == "quo:7"
        assert fresh.traits.lookup is Lookup.EVIDENCE


async def test_looking_for_what_is_not_there_ends_and_is_not_repeated_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        await center.submit()
        for _ in range(3):
            assert await center.adapter.find(RunId("bk-zzzzzzzzzz")) is None
        assert len(center.asked("training")) <= 80


async def test_a_task_starts_by_itself(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        ref = await center.submit("exit 0")
        with pytest.raises(Unsupported):
            await center.adapter.start(ref)
        await center.see(ref, RemoteState.SUCCEEDED)


async def test_a_detail_that_cannot_be_read_is_no_news(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        ref = await center.submit()
        await center.see(ref, RemoteState.RUNNING)
        (task,) = center.hub.platform.tasks
        task.started_at = "yesterday"  # type: ignore[assignment]
        with pytest.raises(Unavailable, match="started_at is 'yesterday'"):
            await center.adapter.observe([ref])
