"""Training jobs over HTTP: names and keys, list, who sees what, show, stop, delete."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from broker.api.app import ROUTES
from broker.core.events import (
    Accepted,
    OutcomeUnknown,
    SeenFailed,
    SeenRunning,
    SeenStopped,
    SeenSucceeded,
    WentSilent,
)
from broker.core.model import FailureKind, RemoteId
from broker.store import debts
from broker.tables import Run
from tests.api_fixtures import (
    GPU_INFO,
    GPU_SPEC,
    NPU_SPEC,
    START_MS,
    World,
    create_body,
    together,
    world,
)

__all__ = ["world"]

# ---------------------------------------------------------------- names and keys


async def test_a_name_is_taken_until_its_job_is_deleted(world: World) -> None:
    job = await world.create("same")
    status, code, detail = await world.refused("POST", "/trainjob", create_body("same"))
    assert (status, code) == (400, "0208")
    assert "same" in detail
    await world.create("same", as_="bob")
    await world.ok("POST", f"/trainjob/{job}/stop")
    assert (await world.refused("POST", "/trainjob", create_body("same")))[1] == "0208"
    assert (await world.call("DELETE", f"/trainjob/{job}")).status == 204
    await world.create("same")


async def test_of_many_creates_of_one_name_exactly_one_wins(world: World) -> None:
    answers = await together(*(world.call("POST", "/trainjob", create_body("same")) for _ in range(10)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200] + [400] * 9
    codes = {(await answer.json())["errorCode"] for answer in answers if answer.status == 400}
    assert codes == {"0208"}


async def test_a_repeated_key_gives_back_the_same_job_with_its_present_status(world: World) -> None:
    key = {"Idempotency-Key": "k!~"}
    first = await world.ok("POST", "/trainjob", create_body("one"), headers=key)
    job = first["metadata"]["id"]
    await world.run_job(job, SeenRunning(START_MS))
    # spacing and order of fields say nothing, and what the centers offer by now does not matter
    again = json.dumps(dict(reversed(create_body("one").items())), indent=3).encode()
    await world.set_job(job, name="renamed")
    repeated = await world.ok("POST", "/trainjob", again, headers=key)
    assert (repeated["metadata"]["id"], repeated["status"]) == (job, "RUNNING")
    status, code, detail = await world.refused("POST", "/trainjob", create_body("two"), headers=key)
    assert (status, code) == (400, "0202")
    assert job in detail
    other = await world.ok("POST", "/trainjob", create_body("one"), headers=key, as_="bob")
    assert other["metadata"]["id"] != job


async def test_ten_creates_with_one_key_at_once_make_one_job(world: World) -> None:
    calls = (
        world.ok("POST", "/trainjob", create_body(), headers={"Idempotency-Key": "k"}) for _ in range(10)
    )
    answers = await together(*calls)
    assert len({answer["metadata"]["id"] for answer in answers}) == 1
    assert (await world.ok("GET", "/trainjob"))["totalSize"] == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_keys_that_are_none(world: World, key: str) -> None:
    answer = await world.refused("POST", "/trainjob", create_body(), headers={"Idempotency-Key": key})
    assert answer[:2] == (400, "0202")
    assert answer[2].startswith("Idempotency-Key: ")


# ---------------------------------------------------------------- list


async def ten_jobs(world: World) -> list[str]:
    """Ten jobs of alice, a second apart: the names run backwards."""
    made = []
    for number in range(10):
        spec = NPU_SPEC.id if number % 2 else GPU_SPEC.id
        made.append(
            await world.create(f"n{9 - number}", specId=spec, labels={"odd": str(number % 2), "k": "v"})
        )
        world.clock.now_ms += 1000
    return made


def ids(answer: Mapping[str, Any]) -> list[str]:
    return [item["metadata"]["id"] for item in answer["items"]]


async def test_a_list_item_is_exactly_this(world: World) -> None:
    job = await world.create("one", priority="high")
    await world.run_job(job, SeenSucceeded(START_MS + 5000, ended_ms=START_MS + 5000))
    answer = await world.ok("GET", "/trainjob")
    assert answer == {
        "items": [
            {
                "metadata": {
                    "id": job,
                    "name": "one",
                    "desc": "",
                    "createTime": "2025-03-01 10:00:00",
                    "createTimeMs": START_MS,
                    "userId": world.accounts["alice"].id,
                },
                "status": "SUCCEEDED",
                "centerId": "sz-1",
                "priority": "high",
                "finishTime": "2025-03-01 10:00:05",
            }
        ],
        "totalSize": 1,
    }


async def test_pages(world: World) -> None:
    made = await ten_jobs(world)
    newest = made[::-1]
    assert ids(await world.ok("GET", "/trainjob")) == newest
    assert ids(await world.ok("GET", "/trainjob?pageSize=3")) == newest[:3]
    assert ids(await world.ok("GET", "/trainjob?pageSize=3&page=4")) == newest[9:]
    beyond = await world.ok("GET", "/trainjob?pageSize=3&page=2147483647")
    assert beyond == {"items": [], "totalSize": 10}


PAGING_FAULTS = [
    ("pageSize=x", "0201"),
    ("pageSize=", "0201"),
    ("pageSize=1.0", "0201"),
    ("pageSize=%201", "0201"),
    ("pageSize=%EF%BC%91", "0201"),
    ("pageSize=0", "0204"),
    ("pageSize=1001", "0204"),
    ("page=true", "0201"),
    ("page=0", "0204"),
    ("page=-1", "0204"),
    ("page=2147483648", "0204"),
    ("page=" + "9" * 41, "0204"),
    ("page=-" + "9" * 5000, "0204"),
    ("sort=color", "0202"),
    ("sort=", "0202"),
    ("order=up", "0202"),
    ("order=", "0202"),
    ("order=1", "0202"),
    ("page=0&sort=x", "0204"),
    ("page=x&pageSize=0", "0201"),
]


@pytest.mark.parametrize("path", ["/trainjob", "/centers", "/resource/specs"])
async def test_faults_of_paging(world: World, path: str) -> None:
    for query, code in PAGING_FAULTS:
        status, found, detail = await world.refused("GET", f"{path}?{query}")
        assert (status, found) == (400, code), (query, detail)


@pytest.mark.parametrize("sort", ["id", "name", "status", "createTime"])
async def test_every_sort_both_ways_and_the_spellings_of_order(world: World, sort: str) -> None:
    made = await ten_jobs(world)
    for job in made[::3]:
        await world.ok("POST", f"/trainjob/{job}/stop")
    up = await world.ok("GET", f"/trainjob?sort={sort}&order=asc")
    keys = {
        "id": lambda i: i["metadata"]["id"],
        "name": lambda i: i["metadata"]["name"],
        "status": lambda i: (i["status"], i["metadata"]["id"]),
        "createTime": lambda i: i["metadata"]["createTimeMs"],
    }
    assert up["items"] == sorted(up["items"], key=keys[sort])
    for order, expected in (
        ("", ids(up)[::-1]),
        ("&order=desc", ids(up)[::-1]),
        ("&order=DESC", ids(up)[::-1]),
        ("&order=true", ids(up)[::-1]),
        ("&order=Asc", ids(up)),
        ("&order=false", ids(up)),
    ):
        assert ids(await world.ok("GET", f"/trainjob?sort={sort}{order}")) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("createAfter=2025-03-01 10:00:08", [9, 8]),
        ("createBefore=2025-03-01 10:00:01", [1, 0]),
        ("createAfter=2025-03-01T10:00:03&createBefore=2025-03-01T10:00:03", [3]),
        ("createAfter=2025-03-01T02:00:08Z", [9, 8]),
        ("createAfter=2025-03-01T10:00:08%2B08:00", [9, 8]),
        ("createAfter=2025-03-01T10:00:08+08:00", [9, 8]),
        ("createAfter=2025-03-01T10:00:08.250", [9, 8]),
        ("createAfter=2025-03-01T10:00:08.251", [9]),
        (f"createAfter={START_MS + 8000}", [9, 8]),
        (f"createBefore={START_MS + 1000}", [1, 0]),
        (f"createBefore={START_MS + 999}", [0]),
        (f"createBefore={START_MS // 1000 + 1}", [1, 0]),
        ("createAfter=2025-03-01&createBefore=2025-03-01&pageSize=1", [9]),
        ("createAfter=2025-03-02", []),
        ("createBefore=2025-02-28", []),
        ("createBefore=2025-03-01 10:00&pageSize=2", [9, 8]),
    ],
)
async def test_bounds_of_time_are_inclusive(world: World, query: str, expected: list[int]) -> None:
    made = await ten_jobs(world)
    answer = await world.ok("GET", f"/trainjob?{query}")
    assert ids(answer) == [made[index] for index in expected]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("createAfter=2025-03-02&createBefore=2025-03-01", "0230"),
        ("createAfter=yesterday", "0202"),
        ("createAfter=", "0202"),
        ("createBefore=2025-02-30", "0202"),
        ("createBefore=2025-3-1", "0202"),
        ("createBefore=2025-03-01 25:00:00", "0202"),
        ("createBefore=2025-03-01 10:00:00 CST", "0202"),
        ("createBefore=10000-01-01", "0202"),
        ("createBefore=123456789012345", "0202"),
        ("status=DONE", "0202"),
        ("status=running", "0202"),
        ("owner=alice", "0202"),
        ("label=odd", "0202"),
        ("label=%3Dx", "0202"),
        ("centerId=nowhere", "0210"),
        ("query=%00", "0202"),
    ],
)
async def test_faults_of_filters(world: World, query: str, code: str) -> None:
    status, found, detail = await world.refused("GET", f"/trainjob?{query}")
    assert (status, found) == (400, code), detail
    assert detail.startswith(query.partition("=")[0])


async def test_filters(world: World) -> None:
    made = await ten_jobs(world)
    run = await world.run_job(made[0], SeenRunning(START_MS))
    await world.ok("POST", f"/trainjob/{made[1]}/stop")

    async def found(query: str) -> list[str]:
        return ids(await world.ok("GET", f"/trainjob?{query}"))

    assert run
    assert await found("status=RUNNING") == [made[0]]
    assert await found("status=STOPPED") == [made[1]]
    assert await found("centerId=sz-1") == [made[0]]
    assert await found("centerId=gz-2") == []
    assert await found("centerId=") == made[::-1]
    assert await found("processor=npu") == made[9::-2]
    assert await found("processor=TPU") == []
    assert await found("query=N3") == [made[6]]
    assert await found("query=%25") == []
    assert await found("label=odd=1&label=k=v") == made[9::-2]
    assert await found("label=odd=1&label=odd=0") == []
    assert await found("owner=me&status=STOPPED") == [made[1]]


async def test_deleted_jobs_are_not_found_by_keyword(world: World) -> None:
    kept, gone = await world.create("bert-one"), await world.create("bert-two")
    for job in (kept, gone):
        await world.ok("POST", f"/trainjob/{job}/stop")
    assert set(ids(await world.ok("GET", "/trainjob?query=BERT"))) == {gone, kept}
    assert (await world.call("DELETE", f"/trainjob/{gone}")).status == 204
    found = await world.ok("GET", "/trainjob?query=BERT")
    assert (ids(found), found["totalSize"]) == ([kept], 1)


async def test_the_ends_of_the_calendar_are_bounds_too(world: World) -> None:
    job = await world.create()
    for text in ("9999-12-31", "9999-12-31T23:59:59-12:00"):
        assert ids(await world.ok("GET", f"/trainjob?createBefore={text}")) == [job]
    for text in ("0001-01-01", "0001-01-01T00:00:00%2B14:00", "0"):
        assert ids(await world.ok("GET", f"/trainjob?createAfter={text}")) == [job]


# ---------------------------------------------------------------- who sees what


async def test_visibility_of_jobs(world: World) -> None:
    of = {name: await world.create(name, as_=name) for name in ("alice", "bob", "carol", "eve", "root")}

    async def seen(name: str, query: str = "") -> set[str]:
        return set(ids(await world.ok("GET", f"/trainjob{query}", as_=name)))

    assert await seen("alice") == {of["alice"]}
    assert await seen("carol") == {of["alice"], of["bob"], of["carol"]}
    assert await seen("eve") == {of["eve"]}
    assert await seen("root") == set(of.values())
    assert await seen("carol", "?owner=me") == {of["carol"]}
    assert await seen("root", "?owner=me") == {of["root"]}


JOB_PATHS = [
    ("GET", "/trainjob/{}"),
    ("POST", "/trainjob/{}/stop"),
    ("DELETE", "/trainjob/{}"),
    ("GET", "/trainjob/{}/tasks/bk-0/logs/url?contentType=text/plain"),
    ("GET", "/trainjob/{}/download"),
    ("GET", "/broker/v1/jobs/{}"),
    ("GET", "/broker/v1/jobs/{}/explain"),
    ("GET", "/broker/v1/jobs/{}/logs"),
    ("POST", "/broker/v1/jobs/{}/retry"),
]


@pytest.mark.parametrize(("method", "path"), JOB_PATHS)
async def test_foreign_unknown_and_deleted_jobs_do_not_exist(world: World, method: str, path: str) -> None:
    job = await world.create()
    gone = await world.create("gone")
    await world.ok("POST", f"/trainjob/{gone}/stop")
    await world.call("DELETE", f"/trainjob/{gone}")
    for target, name in ((job, "bob"), (job, "eve"), (gone, "alice"), ("j-nope", "root"), ("a%00b", "root")):
        answer = await world.refused(method, path.format(target), as_=name)
        assert answer[:2] == (400, "0240"), (target, answer)
        # nor does the text tell them apart
        unknown = await world.refused(method, path.format("j-none"), as_=name)
        if target.startswith("j-"):
            assert answer[2].replace(target, "") == unknown[2].replace("j-none", ""), target
    assert (await world.ok("GET", f"/trainjob/{job}"))["status"] == "PENDING"


def test_every_path_of_a_job_is_among_these() -> None:
    tried = {
        (method, re.sub(r"\{\}(/tasks/)bk-0", r"{}\1{}", path.partition("?")[0]))
        for method, path in JOB_PATHS
    }
    served = {
        (route.method, re.sub(r"\{\w+\}", "{}", route.path))
        for route in ROUTES
        if route.path.startswith(("/trainjob/{id}", "/broker/v1/jobs/{id}"))
    }
    assert served - tried == {("POST", "/broker/v1/jobs/{}/resolve")}, "operators see every job"
    assert tried <= served


# ---------------------------------------------------------------- states: show, stop, delete


async def job_in(world: World, status: str) -> tuple[str, str]:
    """(job, run) in a state of the standard."""
    job = await world.create(f"job-{status}")
    if status == "PENDING":
        return job, await world.task(job)
    running = SeenRunning(START_MS)
    if status == "STOPPED":
        await world.ok("POST", f"/trainjob/{job}/stop")
        return job, await world.task(job)
    events = {
        "RUNNING": (running,),
        "SUCCEEDED": (running, SeenSucceeded(START_MS)),
        "FAILED": (running, SeenFailed(START_MS, FailureKind.JOB, "exit 3", exit_code=3)),
        "UNKNOWN": (running, WentSilent(START_MS)),
    }[status]
    return job, await world.run_job(job, *events)


STATES = ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "UNKNOWN"]


@pytest.mark.parametrize("status", STATES)
async def test_a_job_shows_its_state(world: World, status: str) -> None:
    job, run = await job_in(world, status)
    data = await world.ok("GET", f"/trainjob/{job}")
    (task,) = data["tasks"]
    assert (data["status"], task["status"], task["taskId"]) == (status, status, run)


async def test_an_uncertain_submission_shows_as_pending(world: World) -> None:
    job = await world.create()
    run = await world.place(job)
    await world.advance(run, OutcomeUnknown(START_MS, "timeout"))
    assert (await world.ok("GET", f"/trainjob/{job}"))["status"] == "PENDING"


async def test_attempts_are_tasks_oldest_first(world: World) -> None:
    job = await world.create(maxRetries=1)
    first = await world.run_job(job, SeenFailed(START_MS + 1000, FailureKind.JOB, "exit 1", exit_code=1))
    data = await world.ok("GET", f"/trainjob/{job}")
    assert data["status"] == "PENDING"
    assert [task["taskId"] for task in data["tasks"]] == [first, await world.task(job)]
    assert [task["status"] for task in data["tasks"]] == ["FAILED", "PENDING"]
    assert data["tasks"][0]["message"] == "exit 1"
    assert data["tasks"][0]["centerName"] == "深圳一号"
    assert data["tasks"][0]["finishTime"] == "2025-03-01 10:00:01"
    second = await world.place(job, "gz-2")
    again = await world.ok("GET", f"/trainjob/{job}")
    assert again["metadata"] == data["metadata"]
    assert again["tasks"][0] == data["tasks"][0]
    assert (again["tasks"][1]["taskId"], again["tasks"][1]["centerId"]) == (second, "gz-2")


async def test_stopping_a_job_that_waits_is_at_once(world: World) -> None:
    job = await world.create()
    answer = await world.ok("POST", f"/trainjob/{job}/stop")
    assert answer == {"id": job, "status": "STOPPED", "stoppedTime": "2025-03-01 10:00:00"}
    assert await world.ok("POST", f"/trainjob/{job}/stop") == answer


async def test_stopping_a_running_job_never_claims_the_end_early(world: World) -> None:
    job, run = await job_in(world, "RUNNING")
    answer = await world.ok("POST", f"/trainjob/{job}/stop")
    assert answer == {"id": job, "status": "RUNNING", "stoppedTime": ""}
    await world.advance(run, SeenStopped(START_MS + 3000))
    answer = await world.ok("POST", f"/trainjob/{job}/stop")
    assert answer == {"id": job, "status": "STOPPED", "stoppedTime": "2025-03-01 10:00:03"}


async def test_a_stop_that_is_confirmed_in_time_is_answered(world: World) -> None:
    job, run = await job_in(world, "RUNNING")

    async def confirm() -> None:
        while (await world.ok("GET", f"/broker/v1/jobs/{job}"))["stopReason"] != "cancel":
            pass
        await world.advance(run, SeenStopped(START_MS + 3000))

    answer, _ = await together(world.ok("POST", f"/trainjob/{job}/stop"), confirm())
    assert answer == {"id": job, "status": "STOPPED", "stoppedTime": "2025-03-01 10:00:03"}


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "UNKNOWN"])
async def test_what_has_ended_otherwise_cannot_be_stopped(world: World, status: str) -> None:
    job, _ = await job_in(world, status)
    code, detail = (await world.refused("POST", f"/trainjob/{job}/stop"))[1:]
    assert code == "0202"
    assert status in detail


@pytest.mark.parametrize("status", STATES)
async def test_delete_in_each_state(world: World, status: str) -> None:
    job, run = await job_in(world, status)
    for file in (world.files.log(run, 0), world.files.results(run) / "out"):
        file.parent.mkdir(parents=True)
        file.write_text("x")
    answer = await world.call("DELETE", f"/trainjob/{job}")
    if status in ("PENDING", "RUNNING"):
        assert answer.status == 400
        data = await answer.json()
        assert data["errorCode"] == "0202"
        assert status in data["detail"]
        assert world.files.log(run, 0).exists()
        return
    assert (answer.status, await answer.read()) == (204, b"")
    assert (await world.refused("GET", f"/trainjob/{job}"))[1] == "0240"
    assert not world.files.logs(run).exists()
    assert not world.files.results(run).exists()
    # what is at a center is owed to be cleared up there; a job that waited has nothing anywhere
    row = await world.store.read(lambda session: session.get_one(Run, run))
    assert (row.delete_owed_ms is not None) == (status != "STOPPED")


async def test_the_stop_of_an_unknown_job_that_is_deleted_stays_owed(world: World) -> None:
    job, run = await job_in(world, "UNKNOWN")
    assert (await world.call("DELETE", f"/trainjob/{job}")).status == 204
    assert (await world.ok("GET", "/trainjob"))["items"] == []
    (debt,) = await world.store.read(debts.calls_owed, world.clock(), 10)
    assert (debt.run, debt.center, debt.stop) == (run, "sz-1", True)
    # it is seen to run, and the stop is owed still; only its end settles that
    await world.advance(run, SeenRunning(world.clock()))
    assert [each.stop for each in await world.store.read(debts.calls_owed, world.clock(), 10)] == [True]
    await world.advance(run, SeenStopped(world.clock()))
    assert not any(each.stop for each in await world.store.read(debts.calls_owed, world.clock(), 10))
    assert (await world.refused("GET", f"/trainjob/{job}"))[1] == "0240"


async def test_the_accepted_run_is_seen_where_it_is(world: World) -> None:
    job = await world.create()
    run = await world.place(job)
    await world.advance(run, Accepted(START_MS, RemoteId("slm:44")))
    (task,) = (await world.ok("GET", f"/trainjob/{job}"))["tasks"]
    assert (task["taskId"], task["centerId"], task["specInfo"]) == (run, "sz-1", GPU_INFO)
