"""Online services as jobs over HTTP: create, list, show, stop, delete, logs, and every fault."""

from __future__ import annotations

from urllib.parse import urlsplit

from broker.core.events import SeenFailed, SeenStopped
from broker.core.model import FailureKind, JobId, Kind
from broker.store import jobs
from tests.api_fixtures import GPU_SPEC, START_MS, World, create_body, together, world
from tests.service_world import create, serve, start
from tests.test_api_create import BODY_FAULTS, CONFIG_FAULTS

__all__ = ["world"]

URL = "http://broker.example/services/{}/"


async def test_create_answers_exactly_this(world: World) -> None:
    body = {**create_body("svc_1", port=8000, public=True), "jobDesc": "a 服务"}
    data = await world.ok("POST", "/onlineJob", body)
    job = data["metadata"]["id"]
    assert data == {
        "metadata": {
            "id": job,
            "name": "svc_1",
            "desc": "a 服务",
            "createTime": "2025-03-01 10:00:00",
            "createTimeMs": START_MS,
            "url": URL.format(job),
        },
        "status": "PENDING",
    }


async def test_what_a_service_is_when_it_does_not_say(world: World) -> None:
    job = await create(world)
    view = await world.store.read(
        jobs.show_job, world.accounts["alice"], JobId(job), Kind.ONLINE, world.clock()
    )
    request = view.request
    assert (request.kind, request.preemptible, request.max_retries) == (Kind.ONLINE, False, 10)
    assert (request.port, request.public, request.estimate_s) == (None, False, 7 * 86_400)
    detail = await world.ok("GET", f"/broker/v1/jobs/{job}")
    assert (detail["kind"], detail["url"]) == ("online", URL.format(job))
    assert detail["config"]["maxRetries"] == 10
    said = await create(world, "said", preemptible=True, maxRetries=0, estimatedRunTime=60, port=1)
    config = (await world.ok("GET", f"/broker/v1/jobs/{said}"))["config"]
    assert (config["preemptible"], config["maxRetries"], config["port"]) == (True, 0, 1)


async def test_training_jobs_keep_their_defaults(world: World) -> None:
    detail = await world.ok("GET", f"/broker/v1/jobs/{await world.create()}")
    assert (detail["config"]["maxRetries"], detail["config"]["preemptible"]) == (0, True)
    assert "url" not in detail


async def test_faults_of_config(world: World) -> None:
    """As for a training job, but for the fields that only a service has."""
    for config, code, detail in CONFIG_FAULTS:
        if config in ({"port": 80}, {"public": False}):
            continue
        status, found, said = await world.refused("POST", "/onlineJob", create_body(**config))
        assert (status, found) == (400, code), (config, said)
        assert said.startswith(detail), (config, said)
    for port, code in ((0, "0204"), (-1, "0204"), (1.5, "0201"), (True, "0201"), ([], "0201")):
        assert (await world.refused("POST", "/onlineJob", create_body(port=port)))[:2] == (400, code)
    public: object
    for public in ("true", 1, [], "no"):
        body = create_body(public=public)
        assert (await world.refused("POST", "/onlineJob", body))[:2] == (400, "0201")
    assert (await world.ok("GET", "/onlineJob"))["totalSize"] == 0


async def test_faults_of_the_body(world: World) -> None:
    for body, code, detail in BODY_FAULTS:
        status, found, said = await world.refused("POST", "/onlineJob", body)
        assert (status, found) == (400, code), said
        assert said.startswith(detail), said
    assert (await world.refused("POST", "/onlineJob?a=1", create_body()))[:2] == (400, "0202")
    assert (await world.refused("POST", "/onlineJob", create_body(), as_=None))[:2] == (401, "0101")


async def test_null_is_absent(world: World) -> None:
    body = create_body()
    body["config"] |= {"port": None, "public": None, "maxRetries": None, "preemptible": None}
    await world.ok("POST", "/onlineJob", body)


async def test_names_are_shared_by_both_kinds(world: World) -> None:
    await world.create("both")
    assert (await world.refused("POST", "/onlineJob", create_body("both")))[:2] == (400, "0208")
    await create(world, "svc")
    assert (await world.refused("POST", "/trainjob", create_body("svc")))[:2] == (400, "0208")
    answers = await together(
        *(world.call("POST", path, create_body("race")) for path in ("/onlineJob", "/trainjob") * 3)
    )
    assert sorted(answer.status for answer in answers) == [200] + [400] * 5


async def test_a_repeated_key_gives_the_same_service(world: World) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = await world.ok("POST", "/onlineJob", create_body(), headers=key)
    assert await world.ok("POST", "/onlineJob", create_body(), headers=key) == first
    other = create_body(port=1)
    assert (await world.refused("POST", "/onlineJob", other, headers=key))[:2] == (400, "0202")
    assert (await world.refused("POST", "/trainjob", create_body(), headers=key))[:2] == (400, "0202")


async def test_each_kind_has_its_own_paths(world: World) -> None:
    train, service = await world.create("train"), await create(world, "service")
    run = await world.task(train)
    for method, path in (
        ("GET", f"/onlineJob/{train}"),
        ("POST", f"/onlineJob/{train}/stop"),
        ("DELETE", f"/onlineJob/{train}"),
        ("GET", f"/onlineJob/{train}/tasks/{run}/logs/url?contentType=text/plain"),
        ("GET", f"/trainjob/{service}"),
        ("POST", f"/trainjob/{service}/stop"),
        ("DELETE", f"/trainjob/{service}"),
        ("GET", f"/trainjob/{service}/download"),
    ):
        assert (await world.refused(method, path))[:2] == (400, "0240"), path
    assert [i["metadata"]["id"] for i in (await world.ok("GET", "/trainjob"))["items"]] == [train]
    assert [i["metadata"]["id"] for i in (await world.ok("GET", "/onlineJob"))["items"]] == [service]


async def test_the_list_and_its_filters(world: World) -> None:
    first = await create(world, "first", labels={"team": "a"})
    second, _ = await serve(world, "http://127.0.0.1:1", "second", as_="bob")
    (mine,) = (await world.ok("GET", "/onlineJob"))["items"]
    assert mine == {
        "metadata": {
            "id": first,
            "name": "first",
            "desc": "",
            "createTime": "2025-03-01 10:00:00",
            "createTimeMs": START_MS,
            "url": URL.format(first),
        },
        "status": "PENDING",
        "centerId": "",
        "priority": "normal",
        "finishTime": "",
    }
    for query, found in (
        ("status=RUNNING", [second]),
        ("centerId=sz-1", [second]),
        ("label=team=a", [first]),
        ("query=sec", [second]),
        ("processor=GPU&sort=name&order=asc", [first, second]),
        ("createAfter=2025-03-02", []),
        ("pageSize=1&page=2&sort=name&order=asc", [second]),
        ("owner=me", []),
    ):
        items = (await world.ok("GET", f"/onlineJob?{query}", as_="root"))["items"]
        assert [item["metadata"]["id"] for item in items] == found, query
    for query, code in (
        ("pageSize=0", "0204"),
        ("page=x", "0201"),
        ("status=LOST", "0202"),
        ("sort=size", "0202"),
        ("centerId=nowhere", "0210"),
        ("createAfter=2025-03-02&createBefore=2025-03-01", "0230"),
        ("public=true", "0202"),
    ):
        assert (await world.refused("GET", f"/onlineJob?{query}"))[:2] == (400, code), query


async def test_show(world: World) -> None:
    job, run = await serve(world, "http://127.0.0.1:1", port=8000)
    data = await world.ok("GET", f"/onlineJob/{job}")
    assert set(data) == {"metadata", "status", "public", "port", "restarts", "tasks"}
    assert data["metadata"]["url"] == URL.format(job)
    assert (data["status"], data["public"], data["port"], data["restarts"]) == ("RUNNING", False, 8000, 0)
    (task,) = data["tasks"]
    assert (task["taskId"], task["specId"], task["status"]) == (run, GPU_SPEC.id, "RUNNING")
    await world.advance(run, SeenFailed(world.clock(), FailureKind.JOB, "exit code 1", exit_code=1))
    data = await world.ok("GET", f"/onlineJob/{job}")
    assert (data["status"], data["restarts"], len(data["tasks"])) == ("PENDING", 1, 2)
    assert (await world.refused("GET", f"/onlineJob/{job}?a=1"))[:2] == (400, "0202")


async def test_stop_and_delete(world: World) -> None:
    job, run = await serve(world, "http://127.0.0.1:1")
    assert (await world.refused("DELETE", f"/onlineJob/{job}"))[:2] == (400, "0202")
    answer = await world.ok("POST", f"/onlineJob/{job}/stop")
    assert answer == {"id": job, "status": "RUNNING", "stoppedTime": ""}  # the center has not said so
    await world.advance(run, SeenStopped(world.clock()))
    answer = await world.ok("POST", f"/onlineJob/{job}/stop")
    assert (answer["status"], answer["stoppedTime"]) == ("STOPPED", "2025-03-01 10:00:00")
    assert (await world.call("DELETE", f"/onlineJob/{job}")).status == 204
    assert (await world.refused("GET", f"/onlineJob/{job}"))[:2] == (400, "0240")
    await create(world)  # its name is free again


async def test_a_request_to_a_service_sees_its_stop_and_deletion_at_once(world: World) -> None:
    job = await create(world)
    path = f"/services/{job}/"
    assert (await world.call("GET", path)).status == 503
    await world.ok("POST", f"/onlineJob/{job}/stop")
    assert (await world.call("GET", path)).status == 410
    assert (await world.call("DELETE", f"/onlineJob/{job}")).status == 204
    assert (await world.refused("GET", path))[:2] == (400, "0240")


async def test_a_service_that_waits_stops_at_once(world: World) -> None:
    job = await create(world)
    assert (await world.ok("POST", f"/onlineJob/{job}/stop"))["status"] == "STOPPED"


async def test_foreign_and_unknown_services_are_the_same(world: World) -> None:
    job = await create(world)
    task = await world.task(job)
    for method, path in (
        ("GET", "/onlineJob/{}"),
        ("POST", "/onlineJob/{}/stop"),
        ("DELETE", "/onlineJob/{}"),
        ("GET", f"/onlineJob/{{}}/tasks/{task}/logs/url?contentType=text/plain"),
        ("POST", "/broker/v1/services/{}/link"),
    ):
        foreign = await world.refused(method, path.format(job), as_="eve")
        unknown = await world.refused(method, path.format("j-none"), as_="eve")
        assert foreign[:2] == unknown[:2] == (400, "0240")
        assert foreign[2].replace(job, "") == unknown[2].replace("j-none", "")
        for bad in ("%00", "%20", "x" * 65, "作"):
            assert (await world.refused(method, path.format(bad)))[:2] == (400, "0240"), bad


async def test_the_log_of_a_start(world: World) -> None:
    job, run = await serve(world, "http://127.0.0.1:1")
    path = f"/onlineJob/{job}/tasks/{run}/logs/url"
    url = urlsplit((await world.ok("GET", f"{path}?contentType=text/plain"))["logUrl"])
    assert url.path == f"/logs/{run}"
    assert (await world.refused("GET", path))[:2] == (400, "0203")
    assert (await world.refused("GET", f"{path}?contentType=image/png"))[:2] == (400, "0202")
    other = f"/onlineJob/{job}/tasks/bk-none/logs/url?contentType=text/plain"
    assert (await world.refused("GET", other))[:2] == (400, "0241")


async def test_a_service_is_retried_as_one(world: World) -> None:
    job = await create(world, port=8000, public=True)
    await world.ok("POST", f"/onlineJob/{job}/stop")
    again = await world.ok("POST", f"/broker/v1/jobs/{job}/retry")
    new = again["metadata"]["id"]
    assert again["metadata"]["url"] == URL.format(new)
    config = (await world.ok("GET", f"/broker/v1/jobs/{new}"))["config"]
    assert (config["port"], config["public"], config["maxRetries"]) == (8000, True, 10)


async def test_nobody_is_told_when_a_service_ends(world: World) -> None:
    job, _ = await serve(world, "http://127.0.0.1:1")
    assert (await world.ok("GET", f"/broker/v1/jobs/{job}/explain"))["expectedEnd"] is None


async def test_a_spec_or_power_is_needed(world: World) -> None:
    assert (await world.refused("POST", "/onlineJob", create_body(specId=None)))[:2] == (400, "0203")
    await create(world, specId=None, minComputingPower=10**12)


async def test_an_address_is_of_the_run_that_runs(world: World) -> None:
    job, run = await serve(world, "http://127.0.0.1:1")
    await world.advance(run, SeenFailed(world.clock(), FailureKind.JOB, "exit code 1", exit_code=1))
    second = await start(world, job, "http://127.0.0.1:2")
    runs = (await world.ok("GET", f"/broker/v1/jobs/{job}"))["runs"]
    assert [each["address"] for each in runs] == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    assert runs[1]["taskId"] == second
