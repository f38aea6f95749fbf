"""The AIHub adapter when things go wrong on the way: every fault of the emulator at every kind of call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters.aihub_services import (
    Missing,
    NameTaken,
    WrongMethod,
    _login_envelope,
    envelope,
)
from adapters.breaker import FAILURES
from adapters.session import SessionExpired
from broker.adapter import (
    AdapterError,
    Denied,
    NoCapacity,
    Refused,
    RemoteState,
    RunRef,
    Throttled,
    Unavailable,
    Unsupported,
)
from broker.core.model import Accuracy, RunId
from tests.aihub_center import opened, until
from tests.emulators.aihub import USERS, Switches
from tests.emulators.faults import TRANSPORT, Fault

MODES = ("training", "quota")
NOTHING_DONE = (Fault.DROPPED, Fault.HTML_500, Fault.HANG)
NO_ANSWER = [fault for fault in TRANSPORT if fault is not Fault.SLOW_BODY]


ZHANG = USERS[1]


def create(mode: str) -> str:
    return "create_quota_task" if mode == "quota" else "create_training"


def detail(mode: str) -> str:
    return "quota_task" if mode == "quota" else "training"


def stop(mode: str) -> str:
    return "stop_quota_task" if mode == "quota" else "stop_training"


# ---------------------------------------------------------------- a create


@pytest.mark.parametrize("fault", NO_ANSWER)
@pytest.mark.parametrize("mode", MODES)
async def test_a_create_without_an_answer_is_in_doubt_and_never_sent_again(
    tmp_path: Path, mode: str, fault: Fault
) -> None:
    async with opened(tmp_path, mode=mode, timeout_s=1.0) as center:
        await center.submit("exit 0")
        spec = center.spec()
        center.hub.faults.plan(create(mode), fault)
        with pytest.raises(Unavailable):
            await center.adapter.submit(spec)
        assert len(center.asked(create(mode))) == 2
        made = [task for task in center.hub.platform.tasks if task.name == spec.id]
        found = await center.adapter.find(spec.id)
        if fault in NOTHING_DONE:
            assert made == []
            assert found is None
            return
        (task,) = made
        assert found == (f"quo:{task.quota_id}" if mode == "quota" else f"trn:{task.id}")
        seen = await center.see(RunRef(spec.id, spec.job, found, 1), RemoteState.RUNNING)
        assert seen.evicted_by == ""
        assert len(center.asked(create(mode))) == 2


async def test_a_create_in_doubt_is_not_sent_again_whoever_asks(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout_s=2.0) as center:
        spec = center.spec()
        center.hub.faults.plan("create_training", Fault.DROPPED)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await center.adapter.submit(spec)
        assert len(center.asked("create_training")) == 1
        late = center.spec()
        center.hub.faults.plan("create_training", Fault.HANG)
        calls = [center.adapter.submit(late) for _ in range(3)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert len(center.asked("create_training")) == 2


async def test_closing_ends_a_create_under_way_as_unknown(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout_s=30.0) as center:
        center.hub.faults.plan("create_training", Fault.HANG)
        create = asyncio.create_task(center.adapter.submit(center.spec()))
        await until(lambda: bool(center.asked("create_training")))
        await center.adapter.aclose()
        with pytest.raises(Unavailable):
            await create


@pytest.mark.parametrize("mode", MODES)
async def test_several_lost_creates_are_told_apart(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        await center.submit("exit 0")
        specs = [center.spec() for _ in range(FAILURES - 1)]
        for spec in specs:
            center.hub.faults.plan(create(mode), Fault.LOST_REPLY)
            with pytest.raises(Unavailable):
                await center.adapter.submit(spec)
            for _ in range(5):  # others create tasks meanwhile
                center.hub.platform.foreign(29, name="theirs", user=ZHANG, sku_cnt=2)
        by_name = {t.name: t.quota_id if mode == "quota" else t.id for t in center.hub.platform.tasks}
        for spec in reversed(specs):
            looks = [await center.adapter.find(spec.id) for _ in range(3)]  # so many ids at a time
            found = looks[-1]
            assert found is not None
            assert int(found.partition(":")[2]) == by_name[spec.id]


@pytest.mark.parametrize("mode", MODES)
async def test_a_lost_create_is_found_by_a_later_process(tmp_path: Path, mode: str) -> None:
    """It knows no ids but those of the runs that it is told to look at."""
    async with opened(tmp_path, mode=mode) as center:
        known = await center.submit()
        spec = center.spec()
        center.hub.faults.plan(create(mode), Fault.LOST_REPLY)
        with pytest.raises(Unavailable):
            await center.adapter.submit(spec)
        fresh = await center.reopened()
        assert await fresh.find(spec.id) is None
        await center.look(known)
        assert await fresh.find(spec.id) is not None


async def test_a_slow_answer_is_an_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        center.hub.faults.plan("create_training", Fault.SLOW_BODY)
        ref = await center.submit("exit 0")
        await center.see(ref, RemoteState.SUCCEEDED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("style", ["401", "code"])
async def test_an_expired_session_at_a_create_makes_one_task(tmp_path: Path, mode: str, style: str) -> None:
    """Nothing is done without a session, so this one create may be made again."""
    async with opened(tmp_path, mode=mode, switches=Switches(expired=style)) as center:
        center.hub.faults.plan(create(mode), Fault.EXPIRED_SESSION)
        ref = await center.submit("exit 0")
        await center.see(ref, RemoteState.SUCCEEDED)
        assert len(center.hub.platform.tasks) == 1
        assert center.hub.logins == 2


async def test_a_name_that_is_taken_means_that_the_create_has_arrived(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        center.hub.faults.plan("create_training", Fault.DUPLICATE_NAME)
        with pytest.raises(Unavailable, match="has a task named bk-0000000001 already"):
            await center.submit()


async def test_an_unknown_no_to_a_create_is_a_no(tmp_path: Path) -> None:
    """虚拟集群不存在, 存储不存在: a well-formed failure, nothing was made."""
    async with opened(tmp_path, storage_ids=[1, 7]) as center:
        with pytest.raises(Refused, match="存储不存在"):
            await center.submit()
        assert center.hub.platform.tasks == []


async def test_no_connection_at_all_is_no_doubt(tmp_path: Path) -> None:
    async with opened(tmp_path, training_url="http://127.0.0.1:9") as center:
        with pytest.raises(Throttled):
            await center.submit()


# ---------------------------------------------------------------- looks and probes


@pytest.mark.parametrize("fault", NO_ANSWER)
@pytest.mark.parametrize("mode", MODES)
async def test_a_look_without_an_answer_is_no_news(tmp_path: Path, mode: str, fault: Fault) -> None:
    async with opened(tmp_path, mode=mode, timeout_s=1.0) as center:
        first, second = await center.submit(), await center.submit()
        center.hub.faults.plan(detail(mode), fault)
        seen = await center.adapter.observe([first, second])
        assert len(seen) == 1, "one has no news, the other has"
        center.hub.faults.plan(detail(mode), fault, fault)
        with pytest.raises(Unavailable):
            await center.adapter.observe([first, second])
        assert len(await center.adapter.observe([first, second])) == 2


@pytest.mark.parametrize("fault", NO_ANSWER)
@pytest.mark.parametrize("operation", ["clusters", "login"])
async def test_a_probe_is_whole_or_raises(tmp_path: Path, operation: str, fault: Fault) -> None:
    async with opened(tmp_path, timeout_s=1.0) as center:
        center.hub.faults.plan(operation, fault)
        with pytest.raises(Unavailable):
            await center.adapter.probe()
        assert (await center.adapter.probe()).accuracy is Accuracy.ESTIMATED


@pytest.mark.parametrize("mode", MODES)
async def test_a_stale_answer_is_believed_until_the_next(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        ref = await center.running()
        center.hub.faults.plan(detail(mode), Fault.STALE_READ)
        assert (await center.look(ref)).state is RemoteState.PENDING
        assert (await center.look(ref)).state is RemoteState.RUNNING


@pytest.mark.parametrize("mode", MODES)
async def test_a_task_that_vanishes_is_gone_by_the_platforms_word_only(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        ref = await center.running()
        center.hub.faults.plan(detail(mode), Fault.VANISHED_TASK)
        assert (await center.look(ref)).state is RemoteState.GONE
        assert (await center.look(ref)).state is RemoteState.RUNNING
        center.hub.platform.forget(center.hub.platform.tasks[0])
        assert (await center.look(ref)).state is RemoteState.GONE
        await center.adapter.stop(ref, grace_s=1)


@pytest.mark.parametrize("mode", MODES)
async def test_a_lost_node_fails_the_run_or_starts_it_again(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, mode=mode) as center:
        ref = await center.running()
        center.hub.faults.plan(detail(mode), Fault.NODE_LOSS)
        await center.look(ref)
        seen = await center.see(ref, RemoteState.FAILED)
        assert seen.exit_code is None, "the command did not end by itself"
        assert seen.evicted_by == ""
    async with opened(tmp_path / "again", mode=mode, switches=Switches(lost_node_status=1)) as center:
        ref = await center.running()
        center.hub.faults.plan(detail(mode), Fault.NODE_LOSS)
        await center.look(ref)
        while len(center.hub.platform.executions) < 2:
            await center.see(ref, RemoteState.RUNNING, RemoteState.PENDING)
            await asyncio.sleep(0.01)
        first, second = center.hub.platform.executions
        assert first.ended_ms is not None
        assert first.ended_ms <= second.started_ms


# ---------------------------------------------------------------- stops


@pytest.mark.parametrize("fault", [*NO_ANSWER, Fault.STOP_REFUSED])
@pytest.mark.parametrize("mode", MODES)
async def test_a_stop_that_was_not_confirmed_is_asked_again(tmp_path: Path, mode: str, fault: Fault) -> None:
    async with opened(tmp_path, mode=mode, timeout_s=1.0) as center:
        ref = await center.running()
        center.hub.faults.plan(stop(mode), fault)
        with pytest.raises(Unavailable):
            await center.adapter.stop(ref, grace_s=1)
        await center.adapter.stop(ref, grace_s=1)
        await center.see(ref, RemoteState.STOPPED)
        (truth,) = center.hub.platform.executions
        assert truth.ended_by.startswith("stop ")


@pytest.mark.parametrize("strict", [True, False])
async def test_a_stop_of_an_ended_task_is_done_however_the_platform_takes_it(
    tmp_path: Path, strict: bool
) -> None:
    async with opened(tmp_path, switches=Switches(stop_of_ended_fails=strict)) as center:
        ref = await center.submit("exit 0")
        await center.see(ref, RemoteState.SUCCEEDED)
        await center.adapter.stop(ref, grace_s=1)
        assert (await center.look(ref)).state is RemoteState.SUCCEEDED


async def test_a_stop_is_made_while_the_center_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout_s=1.0) as center:
        ref = await center.running()
        center.hub.faults.plan("training", *[Fault.DROPPED] * FAILURES)
        for _ in range(FAILURES):
            with pytest.raises(Unavailable):
                await center.look(ref)
        asked = len(center.asked("training"))
        with pytest.raises(Unavailable, match="left alone"):
            await center.look(ref)
        assert len(center.asked("training")) == asked
        await center.adapter.stop(ref, grace_s=1)
        await center.see(ref, RemoteState.STOPPED)


# ---------------------------------------------------------------- sessions


@pytest.mark.parametrize("style", ["401", "code"])
async def test_sessions_end_and_jobs_do_not_notice(tmp_path: Path, style: str) -> None:
    """The platform forgets sessions, or they end by their own claim; a login follows, one for all."""
    async with opened(tmp_path, switches=Switches(expired=style)) as center:
        refs = [await center.submit() for _ in range(3)]
        center.hub.issued.clear()
        before = center.hub.logins
        assert len(await center.adapter.observe(refs)) == 3
        assert center.hub.logins == before + 1


async def test_a_session_is_renewed_before_it_ends_by_its_own_claim(tmp_path: Path) -> None:
    async with opened(tmp_path, switches=Switches(token_s=0.3)) as center:
        ref = await center.submit()
        for _ in range(20):
            await center.look(ref)
            await asyncio.sleep(0.03)
        assert center.hub.logins >= 3


async def test_refused_credentials_are_denied_and_not_tried_again_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        center.hub.users = {}
        for _ in range(5):
            with pytest.raises(Denied, match="用户名或密码错误"):
                await center.adapter.probe()
        assert len(center.asked("login")) == 1
        with pytest.raises(Denied):
            await center.submit()


async def test_neither_password_nor_token_is_in_any_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        await center.adapter.probe()
        (token,) = center.hub.issued
        raw = await center.adapter.call("GET", "/model-training-platform/api/v1/trainings/1", None)
        assert raw.status == 200
        with pytest.raises(Unsupported) as error:
            await center.adapter.call("GET", f"/elsewhere/{token}?password=open sesame", None)
        assert "expected one that begins with" in str(error.value)


# ---------------------------------------------------------------- envelopes


@pytest.mark.parametrize(
    ("status", "document", "error"),
    [
        (200, {"msg": "", "data": {}}, Unavailable),
        (200, {"code": "0", "data": {}}, Unavailable),
        (200, [], Unavailable),
        (200, None, Unavailable),
        (500, {"code": 0}, Unavailable),
        (500, {"code": 1, "msg": "任务不存在"}, Unavailable),
        (302, {"code": 0}, Unavailable),
        (200, {"code": 1}, Refused),
        (200, {"code": 1, "msg": "参数错误"}, Refused),
        (400, {"code": 400, "msg": "参数错误"}, Refused),
        (200, {"code": 1, "msg": "任务不存在"}, Missing),
        (200, {"code": 1, "msg": "record not found"}, Missing),
        (404, {"code": 404, "msg": "not found"}, WrongMethod),
        (200, {"code": 1, "msg": "名称已存在"}, NameTaken),
        (200, {"code": 1, "msg": "资源不足"}, NoCapacity),
        (200, {"code": 1, "msg": "请求过于频繁，请稍后再试"}, Throttled),
        (200, {"code": 1, "msg": "系统繁忙"}, Throttled),
        (200, {"code": 1, "msg": "调度服务调用超时"}, Unavailable),
        (200, {"code": 1, "msg": "系统错误"}, Unavailable),
        (200, {"code": 1, "msg": "没有权限"}, Denied),
        (403, {"code": 1}, Denied),
        (200, {"code": 1, "msg": "token 已过期"}, SessionExpired),
        (200, {"code": 1, "msg": "invalid JWT"}, SessionExpired),
    ],
)
def test_what_an_answer_means(status: int, document: Any, error: type[AdapterError]) -> None:
    with pytest.raises(error) as caught:
        envelope(status, document)
    assert type(caught.value) is error


def test_an_answer_may_have_neither_msg_nor_data() -> None:
    assert envelope(200, {"code": 0}) is None
    assert envelope(201, {"code": 0, "data": {"id": 1}}) == {"id": 1}


@pytest.mark.parametrize(
    ("msg", "error"),
    [
        ("用户名或密码错误", Denied),
        ("账号已冻结", Denied),
        ("bad password", Denied),
        ("系统错误", Unavailable),
    ],
)
def test_only_a_word_about_the_account_refuses_the_credentials(msg: str, error: type[AdapterError]) -> None:
    with pytest.raises(error) as caught:
        _login_envelope(200, {"code": 5, "msg": msg})
    assert type(caught.value) is error


async def test_ids_that_cannot_be_are_no_success(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        center.hub.platform._ids["training"] = -5
        with pytest.raises(Unavailable, match="without an id"):
            await center.submit()
        assert await center.adapter.find(RunId("bk-0000000001")) is None
