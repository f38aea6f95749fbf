"""The broker's own paths, health, and how errors are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from broker.api.errors import ANNEX_B, ApiError
from broker.core.events import OutcomeUnknown, SeenFailed, SeenRunning, SeenSucceeded, WentSilent
from broker.core.model import CenterId, FailureKind, JobRequest, TenantId
from broker.store import centers, rounds
from broker.store.rounds import RoundFacts
from broker.store.writer import Tx
from broker.tables import Deferral, Job
from tests.api_fixtures import (
    GPU_SPEC,
    START_MS,
    World,
    close_world,
    create_body,
    entry,
    open_world,
    together,
    world,
)

__all__ = ["world"]


async def test_info(world: World) -> None:
    assert await world.ok("GET", "/broker/v1/info") == {
        "version": "0.1.0",
        "name": "bk",
        "installation": "0000000000",
        "timezone": "Asia/Shanghai",
        "submit": {"image": "img.example/default"},
        "limits": {"maxPageSize": 1000, "maxBodyBytes": 200_000, "maxUploadBytes": 1_000_000},
    }


async def test_a_job_in_full(world: World) -> None:
    job = await world.create("full", maxPrice=0.5, labels={"a": "b"}, maxRetries=1, centerId=["sz-1"])
    hour = 3_600_000
    end = SeenFailed(START_MS + hour, FailureKind.JOB, "exit 3", START_MS, START_MS + hour, exit_code=3)
    run = await world.run_job(job, SeenRunning(START_MS))
    world.clock.now_ms += hour
    await world.advance(run, end)
    second = await world.task(job)
    data = await world.ok("GET", f"/broker/v1/jobs/{job}")
    first, waiting = data.pop("runs")
    assert data == {
        "id": job,
        "kind": "train",
        "name": "full",
        "desc": "",
        "owner": "alice",
        "tenant": "lab",
        "state": "QUEUED",
        "status": "PENDING",
        "message": "exit 3",
        "createTime": "2025-03-01 10:00:00",
        "createTimeMs": START_MS,
        "finishTime": "",
        "retriesUsed": 1,
        "stopReason": "",
        "originId": job,
        "hops": [],
        "config": {
            "centerId": ["sz-1"],
            "specId": GPU_SPEC.id,
            "nodeCount": 1,
            "imageUrl": "img.example/pt:2.3",
            "command": "bash run.sh",
            "priority": "normal",
            "isVip": False,
            "preemptible": True,
            "maxPrice": 0.5,
            "maxRetries": 1,
            "onLost": "wait",
            "resumable": False,
            "stopGrace": 30,
            "env": [],
            "datasetIds": [],
            "labels": {"a": "b"},
        },
        "cost": "12.50",
        "currency": "CNY",
        "costs": {
            "estimated": "0.00",
            "measured": "12.50",
            "billed": "12.50",
            "story": "paid 12.50 CNY at sz-1 (12.50 CNY/h); no center was cheaper",
        },
    }
    assert first == {
        "taskId": run,
        "attempt": 1,
        "state": "FAILED",
        "status": "FAILED",
        "centerId": "sz-1",
        "centerName": "深圳一号",
        "pool": "gpu",
        "specId": GPU_SPEC.id,
        "specName": GPU_SPEC.name,
        "nodeCount": 1,
        "remoteId": f"r:{run}",
        "submitTime": first["submitTime"],
        "startTime": "2025-03-01 10:00:00",
        "finishTime": "2025-03-01 11:00:00",
        "startTimeMs": START_MS,
        "finishTimeMs": START_MS + hour,
        "exitCode": 3,
        "failure": "job",
        "message": "exit 3",
        "address": "",
        "pricePerHour": "12.50",
        "cost": "12.50",
        "placement": {"pool": "sz-1/gpu", "slot": 1},
        "costs": {
            "estimated": None,
            "measured": "12.50",
            "center": None,
            "billed": "12.50",
            "notBilled": "",
            "rates": [
                {"startTimeMs": START_MS, "finishTimeMs": START_MS + hour, "pricePerHour": "12.50"},
            ],
        },
    }
    assert (waiting["taskId"], waiting["state"], waiting["cost"], waiting["pricePerHour"]) == (
        second,
        "NEW",
        "0.00",
        "0.00",
    )


# ---------------------------------------------------------------- explain


async def test_why_a_job_waits(world: World) -> None:
    first = await world.create("first", as_="bob")
    world.clock.now_ms += 1
    job = await world.create("second")
    reason = {
        "centerId": "sz-1",
        "code": "capacity",
        "message": "needs 4 slots",
        "need": 4,
        "have": 1,
        "unit": "slots",
    }

    def defer(tx: Tx) -> None:
        key = tx.session.get_one(Job, job).class_key
        tx.session.add(Deferral(class_key=key, reasons=[reason], at_ms=START_MS))

    before = await world.ok("GET", f"/broker/v1/jobs/{job}/explain")
    assert (before["reasons"], before["position"]) == ([], 2)
    await world.sql(defer)
    assert await world.ok("GET", f"/broker/v1/jobs/{job}/explain") == {
        "id": job,
        "status": "PENDING",
        "position": 2,
        "reasons": [reason],
        "placement": {},
        "eta": {"p50": 0, "p90": 0, "centerId": "sz-1", "error": None},
        "expectedEnd": None,
        "whatIf": [],
        "whatIfNote": "",
        "data": [],
    }
    await world.create("urgent", as_="bob", priority="high")
    assert (await world.ok("GET", f"/broker/v1/jobs/{job}/explain"))["position"] == 3
    assert (await world.refused("GET", f"/broker/v1/jobs/{first}/explain"))[1] == "0240"


async def test_why_a_job_is_where_it_is_and_nothing_once_it_has_ended(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS))
    placed = await world.ok("GET", f"/broker/v1/jobs/{job}/explain")
    assert placed == {
        "id": job,
        "status": "RUNNING",
        "position": None,
        "reasons": [],
        "placement": {
            "pool": "sz-1/gpu",
            "slot": 1,
            "centerId": "sz-1",
            "centerName": "深圳一号",
            "taskId": run,
            "pricePerHour": "12.50",
            "alternatives": [],
        },
        "eta": {"p50": None, "p90": None, "centerId": "", "error": None},
        "expectedEnd": None,
        "whatIf": [],
        "whatIfNote": "",
        "data": [],
    }
    await world.advance(run, SeenSucceeded(START_MS))
    ended = await world.ok("GET", f"/broker/v1/jobs/{job}/explain")
    assert (ended["position"], ended["reasons"], ended["placement"]) == (None, [], {})


# ---------------------------------------------------------------- retry, resolve


async def test_retry_makes_a_new_job_of_the_same_request(world: World) -> None:
    job = await world.create("again", nodeCount=2, labels={"x": "y"}, env=[{"key": "A", "value": "s"}])
    assert (await world.refused("POST", f"/broker/v1/jobs/{job}/retry"))[:2] == (400, "0202")
    await world.ok("POST", f"/trainjob/{job}/stop")
    answer = await world.ok("POST", f"/broker/v1/jobs/{job}/retry")
    assert (answer["metadata"]["name"], answer["status"]) == ("again-2", "PENDING")
    new = await world.ok("GET", f"/broker/v1/jobs/{answer['metadata']['id']}")
    old = await world.ok("GET", f"/broker/v1/jobs/{job}")
    assert new["config"] == {**old["config"], "labels": {"x": "y", "retryOf": job}}
    await world.ok("POST", f"/trainjob/{new['id']}/stop")
    third = await world.ok("POST", f"/broker/v1/jobs/{new['id']}/retry")
    found = await world.ok("GET", f"/trainjob?label=retryOf={new['id']}")
    assert [item["metadata"]["id"] for item in found["items"]] == [third["metadata"]["id"]]


async def test_retries_at_once_get_names_of_their_own(world: World) -> None:
    job = await world.create("again")
    await world.ok("POST", f"/trainjob/{job}/stop")
    answers = await together(*(world.ok("POST", f"/broker/v1/jobs/{job}/retry") for _ in range(5)))
    assert {a["metadata"]["name"] for a in answers} == {f"again-{n}" for n in range(2, 7)}


async def test_a_retry_is_judged_like_a_create(world: World) -> None:
    job = await world.create("vip", as_="carol", isVip=True)
    await world.ok("POST", f"/trainjob/{job}/stop", as_="carol")
    await world.ok("POST", f"/broker/v1/jobs/{job}/retry", as_="root")
    await world.store.write(centers.configure, [entry("new", "left")])
    assert (await world.refused("POST", f"/broker/v1/jobs/{job}/retry", as_="root"))[1] == "0211"


async def lost(world: World, name: str) -> str:
    job = await world.create(name)
    await world.run_job(job, SeenRunning(START_MS), WentSilent(START_MS))
    return job


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ({"ended": "SUCCEEDED"}, "SUCCEEDED"),
        ({"ended": "FAILED"}, "FAILED"),
        ({"ended": "STOPPED"}, "STOPPED"),
        ({"neverRan": True}, "PENDING"),
        ({"remote": "slm:44"}, "PENDING"),
    ],
)
async def test_an_operator_settles_a_lost_run(world: World, verdict: dict[str, Any], status: str) -> None:
    job = await lost(world, "lost")
    answer = await world.ok("POST", f"/broker/v1/jobs/{job}/resolve", verdict, as_="root")
    assert (answer["metadata"]["id"], answer["status"]) == (job, status)


async def test_a_run_in_doubt_that_turns_up_keeps_its_name_there(world: World) -> None:
    job = await world.create()
    run = await world.place(job)
    await world.advance(run, OutcomeUnknown(START_MS, "timeout"))
    await world.ok("POST", f"/broker/v1/jobs/{job}/resolve", {"remote": "slm:44"}, as_="root")
    detail = await world.ok("GET", f"/broker/v1/jobs/{job}")
    assert [(r["taskId"], r["remoteId"], r["state"]) for r in detail["runs"]] == [(run, "slm:44", "PENDING")]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        ({}, "0203"),
        ({"neverRan": None}, "0203"),
        ({"neverRan": False}, "0202"),
        ({"neverRan": "yes"}, "0201"),
        ({"remote": ""}, "0204"),
        ({"remote": 44}, "0201"),
        ({"ended": "LOST"}, "0202"),
        ({"neverRan": True, "ended": "FAILED"}, "0202"),
    ],
)
async def test_faults_of_a_verdict(world: World, verdict: dict[str, Any], code: str) -> None:
    job = await lost(world, "lost")
    answer = await world.refused("POST", f"/broker/v1/jobs/{job}/resolve", verdict, as_="root")
    assert answer[:2] == (400, code)
    assert (await world.ok("GET", f"/trainjob/{job}"))["status"] == "UNKNOWN"


async def test_only_doubt_and_loss_are_settled(world: World) -> None:
    job = await world.create()
    verdict = {"ended": "FAILED"}
    status, code, detail = await world.refused("POST", f"/broker/v1/jobs/{job}/resolve", verdict, as_="root")
    assert (status, code) == (400, "0202")
    assert "NEW" in detail
    unknown = await world.refused("POST", "/broker/v1/jobs/j-nope/resolve", verdict, as_="root")
    assert unknown[:2] == (400, "0240")


# ---------------------------------------------------------------- health


async def test_rounds_are_for_operators_newest_first(world: World) -> None:
    made = [RoundFacts(1_000 * n, 5, n, 0, 1_000_000, 990_000, 1.5, 2.5) for n in (1, 2, 3)]
    for each in made:
        await world.store.write(rounds.record_round, each, epoch=world.epoch)
    found = await world.ok("GET", "/broker/v1/rounds?limit=2", as_="root")
    assert [item["placed"] for item in found["items"]] == [3, 2]
    assert found["items"][0] == {
        "startedAt": "1970-01-01 08:00:03",
        "queued": 5,
        "placed": 3,
        "preempted": 0,
        "objective": 1_000_000,
        "bound": 990_000,
        "gap": 0.01,
        "solveMs": 1.5,
        "totalMs": 2.5,
    }
    assert (await world.refused("GET", "/broker/v1/rounds"))[:2] == (400, "0202")
    assert (await world.refused("GET", "/broker/v1/rounds?limit=0", as_="root"))[:2] == (400, "0204")


async def test_health_needs_no_token(world: World) -> None:
    assert await world.ok("GET", "/healthz", as_=None) == {"status": "ok"}
    answer = await world.call("GET", "/readyz", as_=None)
    assert answer.status == 503
    assert await answer.json() == {
        "ready": False,
        "store": "ok",
        "leads": True,
        "leader": "test",
        "centers": [
            {"centerId": "gz-2", "health": "fresh", "error": ""},
            {"centerId": "new", "health": "unknown", "error": ""},
            {"centerId": "off", "health": "unknown", "error": ""},
            {"centerId": "sz-1", "health": "fresh", "error": ""},
        ],
    }
    await world.store.write(
        centers.record_silence, CenterId("new"), "refused", epoch=world.epoch, down_after=3
    )
    ready = await world.ok("GET", "/readyz", as_=None)
    assert ready["ready"] is True
    assert {"centerId": "new", "health": "down", "error": "refused"} in ready["centers"]
    metrics = await world.call("GET", "/metrics", as_=None)
    assert metrics.headers["Content-Type"].startswith("text/plain")
    assert 'route="/healthz",status="200"' in await metrics.text()


async def test_not_ready_while_the_daemon_starts(tmp_path: Path) -> None:
    starting = await open_world(tmp_path, ready=lambda: False)
    await starting.store.write(centers.configure, [entry("sz-1", "one"), entry("gz-2", "two")])
    assert (await starting.call("GET", "/readyz", as_=None)).status == 503
    await close_world(starting)


# ---------------------------------------------------------------- errors


async def test_unknown_paths_and_methods_are_plain_but_json(world: World) -> None:
    for as_ in (None, "alice"):
        answer = await world.call("GET", "/nothing?secret=1", as_=as_)
        data = await answer.json()
        assert answer.status == 404
        assert (data["errorCode"], data["detail"]) == ("", "GET /nothing")
    answer = await world.call("PUT", "/trainjob")
    assert (answer.status, (await answer.json())["errorCode"]) == (405, "")
    assert set(answer.headers["Allow"].split(",")) == {"GET", "POST"}


async def test_a_store_that_is_gone_is_503_with_retry_after(world: World) -> None:
    await world.ok("GET", "/broker/v1/me")  # its token is remembered for a moment
    world.store._writer.close()
    answer = await world.call("POST", "/trainjob", create_body())
    data = await answer.json()
    assert (answer.status, data["errorCode"], answer.headers["Retry-After"]) == (503, "", "5")


def broken_class_key(request: JobRequest, tenant: TenantId) -> str:
    raise RuntimeError("defect of the test")


@pytest.fixture
async def broken(tmp_path: Path) -> AsyncIterator[World]:
    opened = await open_world(tmp_path / "broken", class_key=broken_class_key)
    yield opened
    await close_world(opened)


async def test_a_defect_is_500_0100_and_in_the_log_with_its_request_id(broken: World) -> None:
    with structlog.testing.capture_logs() as lines:
        answer = await broken.call("POST", "/trainjob", create_body())
    data = await answer.json()
    assert (answer.status, data["errorCode"], data["errorMsg"]) == (500, "0100", "调度器服务异常")
    assert "defect of the test" not in data["detail"]
    (line,) = [line for line in lines if line["event"] == "request.defect"]
    assert line["requestId"] == data["requestId"]
    assert str(line["exc_info"]) == "defect of the test"


async def test_a_request_is_one_log_line_without_query_or_body(world: World) -> None:
    with structlog.testing.capture_logs() as lines:
        await world.call("GET", "/trainjob?query=secret")
        job = await world.create(command="secret")
    (listed, created) = [line for line in lines if line["event"] == "request"]
    assert {**listed, "ms": 0, "requestId": ""} == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "route": "/trainjob",
        "status": 200,
        "ms": 0,
        "requestId": "",
        "account": "alice",
    }
    assert created["route"] == "/trainjob"
    assert "secret" not in str(lines)
    assert job


def test_an_error_outside_annex_b_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        ApiError("0101", "the row is 401 or 500")


async def test_every_row_of_annex_b_is_reached(
    world: World, broken: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.api.results.COLLECT_WAIT_S", 0.05)
    reached: dict[tuple[int, str], str] = {}

    async def reach(where: World, method: str, path: str, body: Any = None, **kwargs: Any) -> None:
        answer = await where.call(method, path, body, **kwargs)
        data = await answer.json()
        reached[answer.status, data["errorCode"]] = data["errorMsg"]

    taken = await world.create("taken")
    pending = await world.create("ended")
    await world.run_job(pending, SeenRunning(START_MS), SeenSucceeded(START_MS))
    create = create_body("x")
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/trainjob", b"{"),
        ("POST", "/trainjob", {**create, "colour": "red"}),
        ("POST", "/trainjob", {}),
        ("POST", "/trainjob", create_body("x", nodeCount=0)),
        ("POST", "/trainjob", create_body("é")),
        ("POST", "/trainjob", create_body("")),
        ("POST", "/trainjob", {**create, "jobDesc": "x" * 257}),
        ("POST", "/trainjob", create_body("taken")),
        ("POST", "/trainjob", create_body("x", centerId=["nowhere"])),
        ("POST", "/trainjob", create_body("x", specId="nope")),
        ("POST", "/trainjob", create_body("x", imageUrl=None)),
        ("POST", "/trainjob", create_body("x", imageUrl=None, imageId="nope")),
        ("GET", "/trainjob?createAfter=2025-03-02&createBefore=2025-03-01", None),
        ("GET", "/trainjob/j-nope", None),
        ("GET", f"/trainjob/{taken}/tasks/bk-0/logs/url?contentType=text/plain", None),
        ("GET", f"/trainjob/{pending}/download", None),
    ]
    for method, path, body in calls:
        await reach(world, method, path, body)
    await reach(broken, "POST", "/trainjob", create)
    await reach(world, "GET", "/trainjob", as_=None)
    await world.ok("POST", "/broker/v1/accounts/bob/freeze", as_="root")
    await reach(world, "GET", "/trainjob", as_="bob")
    world.clock.now_ms += 10**12 + 1
    await reach(world, "GET", "/trainjob", as_="alice")
    assert reached == ANNEX_B
