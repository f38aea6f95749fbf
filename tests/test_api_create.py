"""Creating training jobs over HTTP: what is taken, and every fault."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event

from broker.api import wire
from broker.api.admission import request_of
from broker.api.errors import ApiError
from broker.api.models import CreateJob, CreateTrainJob
from broker.api.reading import parse
from broker.core.model import JobId, JobRequest, Kind, OnLost, Tier
from broker.store import datasets, jobs
from broker.store.datasets import NewDataset
from tests.api_fixtures import (
    CPU_SPEC_ID,
    EXTRA_SPEC,
    GPU_INFO,
    GPU_SPEC,
    NPU_SPEC,
    START_MS,
    World,
    create_body,
    token_of,
    world,
)

__all__ = ["world"]

# ---------------------------------------------------------------- create


async def test_create_answers_exactly_this(world: World) -> None:
    answer = await world.call("POST", "/trainjob", {**create_body("bert_1"), "jobDesc": "a 作业"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    text = await answer.text()
    assert "作业" in text
    data = json.loads(text)
    assert data == {
        "metadata": {
            "id": data["metadata"]["id"],
            "name": "bert_1",
            "desc": "a 作业",
            "createTime": "2025-03-01 10:00:00",
            "createTimeMs": START_MS,
            "userId": world.accounts["alice"].id,
        },
        "status": "PENDING",
    }


async def test_a_create_is_one_write_and_asks_no_center(world: World) -> None:
    """Nothing in this world could ask one: its centers are rows of reports."""
    commits: list[Connection] = []

    def committed(connection: Connection) -> None:
        commits.append(connection)

    event.listen(Engine, "commit", committed)
    try:
        job = await world.create()
    finally:
        event.remove(Engine, "commit", committed)
    assert len(commits) == 1
    assert (await world.ok("GET", f"/trainjob/{job}"))["status"] == "PENDING"


async def test_the_first_task_exists_from_the_start_without_a_center(world: World) -> None:
    job = await world.create("bert_1", nodeCount=2)
    data = await world.ok("GET", f"/trainjob/{job}")
    (task,) = data["tasks"]
    assert task.pop("taskId").startswith("bk-")
    assert task == {
        "centerId": "",
        "centerName": "",
        "imageUrl": "img.example/pt:2.3",
        "command": "bash run.sh",
        "specId": GPU_SPEC.id,
        "specName": GPU_SPEC.name,
        "specInfo": GPU_INFO,
        "status": "PENDING",
        "startTime": "",
        "finishTime": "",
        "message": "",
        "nodeCount": 2,
    }
    assert data["status"] == "PENDING"


FULL: dict[str, Any] = {
    "centerId": ["sz-1", "gz-2", "sz-1"],
    "specId": GPU_SPEC.id,
    "nodeCount": 3,
    "imageId": "pytorch-2.3",
    "imageUrl": None,
    "command": "run",
    "priority": "high",
    "isVip": True,
    "preemptPolicy": 2,
    "vipNodeNames": ["n1"],
    "estimatedRunTime": 600,
    "maxRunTime": 900,
    "maxPrice": 12.345678,
    "maxRetries": 2,
    "onLost": "rerun",
    "resumable": True,
    "checkpointInterval": 60,
    "stopGrace": 0,
    "env": [{"key": "A", "value": "1"}, {"key": "_b", "value": ""}],
    "datasetIds": ["d-1"],
    "labels": {"team/x": "y", "a.b": ""},
}


async def test_every_field_reaches_the_scheduler(world: World) -> None:
    own = world.accounts["root"]
    new = NewDataset(id="d-1", account=own.id, tenant=own.tenant, title="t", bytes=1)
    await world.store.write(datasets.add_dataset, new)
    job = await world.create("full", as_="root", **FULL)
    view = await world.store.read(jobs.show_job, own, JobId(job), Kind.TRAIN, START_MS)
    assert view.request == JobRequest(
        centers=("sz-1", "gz-2"),  # type: ignore[arg-type]
        spec=GPU_SPEC,
        nodes=3,
        image_id="pytorch-2.3",
        command="run",
        tier=Tier.VIP,
        preempt_policy=2,
        vip_nodes=("n1",),
        preemptible=False,
        estimated_run_time_s=600,
        max_run_time_s=900,
        max_price_micro=12_345_678,
        max_retries=2,
        on_lost=OnLost.RERUN,
        resumable=True,
        checkpoint_interval_s=60,
        stop_grace_s=0,
        env=(("A", "1"), ("_b", "")),
        datasets=("d-1",),
        labels=(("a.b", ""), ("team/x", "y")),
    )
    (task,) = (await world.ok("GET", f"/trainjob/{job}", as_="root"))["tasks"]
    assert task["imageId"] == "pytorch-2.3"
    assert "imageUrl" not in task


@pytest.mark.parametrize(
    ("config", "preemptible"),
    [
        ({}, True),
        ({"priority": "low"}, True),
        ({"priority": "high"}, False),
        ({"isVip": True}, False),
        ({"priority": "high", "preemptible": True}, True),
        ({"preemptible": False}, False),
        ({"preemptible": None}, True),
    ],
)
async def test_who_may_be_preempted(world: World, config: dict[str, Any], preemptible: bool) -> None:
    job = await world.create(as_="root", **config)
    detail = await world.ok("GET", f"/broker/v1/jobs/{job}", as_="root")
    assert detail["config"]["preemptible"] is preemptible


@pytest.mark.parametrize("spec", [GPU_SPEC.id, NPU_SPEC.id, CPU_SPEC_ID, EXTRA_SPEC.id])
async def test_specs_of_slices_platforms_and_operators_can_be_asked_for(world: World, spec: str) -> None:
    await world.create(specId=spec)


async def test_power_instead_of_a_spec(world: World) -> None:
    # eight A800 at 312 TFLOPS times the measured 0.5 are less than eight Ascend at 256
    strongest = 8 * 256 * 10**12
    job = await world.create(specId=None, minComputingPower=strongest)
    (task,) = (await world.ok("GET", f"/trainjob/{job}"))["tasks"]
    assert (task["specId"], task["specName"]) == ("", "")
    body = create_body("j2", specId=None, minComputingPower=strongest + 1)
    status, code, detail = await world.refused("POST", "/trainjob", body)
    assert (status, code) == (400, "0211")
    assert str(strongest) in detail
    beyond = create_body("j2", specId=None, minComputingPower=2**63 + 1)
    assert (await world.refused("POST", "/trainjob", beyond))[1] == "0211"
    # the figure is rounded up to GFLOPS
    job = await world.create("j3", specId="", minComputingPower=10**9 + 1)
    detail = await world.ok("GET", f"/broker/v1/jobs/{job}")
    assert detail["config"]["minComputingPower"] == 2 * 10**9
    assert "specId" not in detail["config"]


@pytest.mark.parametrize(("alias", "name"), [("image_id", "imageId"), ("image_url", "imageUrl")])
async def test_names_of_the_image_as_the_standard_text_has_them(world: World, alias: str, name: str) -> None:
    job = await world.create(imageUrl=None, **{alias: "pytorch-2.3"})
    (task,) = (await world.ok("GET", f"/trainjob/{job}"))["tasks"]
    assert {key: value for key, value in task.items() if key.startswith("image")} == {name: "pytorch-2.3"}


async def test_a_known_center_that_is_away_is_dropped_while_another_is_left(world: World) -> None:
    await world.create(centerId=["off", "new", "sz-1"])
    for away in (["off"], ["new"], ["off", "new"]):
        answer = await world.refused("POST", "/trainjob", create_body("j2", centerId=away))
        assert answer[:2] == (400, "0210")
        assert away[0] in answer[2]
    await world.ok("POST", "/broker/v1/centers/sz-1/drain", as_="root")
    drained = await world.refused("POST", "/trainjob", create_body("j2", centerId=["sz-1"]))
    assert drained[:2] == (400, "0210")
    assert "sz-1 is drain" in drained[2]


# (fields of config or body, status code, how the detail starts)
CONFIG_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"specId": None}, "0203", "config.specId: "),
    ({"specId": 5}, "0201", "config.specId: "),
    ({"specId": "nope"}, "0211", "config.specId: "),
    ({"specId": ""}, "0211", "config.specId: "),
    ({"specId": NPU_SPEC.id, "centerId": ["sz-1"]}, "0211", "config.specId: "),
    ({"minComputingPower": 1}, "0202", "config.minComputingPower: "),
    ({"specId": None, "minComputingPower": "1"}, "0201", "config.minComputingPower: "),
    ({"specId": None, "minComputingPower": 1.5}, "0201", "config.minComputingPower: "),
    ({"specId": None, "minComputingPower": 0}, "0204", "config.minComputingPower: "),
    ({"specId": None, "minComputingPower": 10**25}, "0204", "config.minComputingPower: "),
    ({"centerId": "sz-1"}, "0201", "config.centerId: "),
    ({"centerId": [1]}, "0201", "config.centerId[0]: "),
    ({"centerId": [None]}, "0201", "config.centerId[0]: "),
    ({"centerId": ["sz-1", "nowhere"]}, "0210", "config.centerId[1]: "),
    ({"centerId": ["x"] * 1001}, "0204", "config.centerId: "),
    ({"nodeCount": True}, "0201", "config.nodeCount: "),
    ({"nodeCount": "1"}, "0201", "config.nodeCount: "),
    ({"nodeCount": 1.5}, "0201", "config.nodeCount: "),
    ({"nodeCount": 0}, "0204", "config.nodeCount: "),
    ({"nodeCount": 100_001}, "0204", "config.nodeCount: "),
    ({"nodeCount": 10**50}, "0204", "config.nodeCount: "),
    ({"imageUrl": None}, "0220", "config.imageId or config.imageUrl: "),
    ({"imageUrl": "", "imageId": ""}, "0220", "config.imageId or config.imageUrl: "),
    ({"imageId": "pytorch-2.3"}, "0202", "config.imageUrl: "),
    ({"imageUrl": None, "imageId": "nope"}, "0221", "config.imageId: "),
    ({"imageUrl": None, "imageId": "pytorch-2.3", "centerId": ["sz-1"]}, "0221", "config.imageId: "),
    ({"imageUrl": None, "imageId": 1}, "0201", "config.imageId: "),
    ({"imageUrl": ["x"]}, "0201", "config.imageUrl: "),
    ({"imageUrl": "a b"}, "0202", "config.imageUrl: "),
    ({"imageUrl": "a\n"}, "0202", "config.imageUrl: "),
    ({"imageUrl": "x" * 1025}, "0204", "config.imageUrl: "),
    ({"command": 1}, "0201", "config.command: "),
    ({"command": "a\0"}, "0202", "config.command: "),
    ({"command": "字" * 21846}, "0204", "config.command: "),
    ({"priority": "urgent"}, "0202", "config.priority: "),
    ({"priority": 1}, "0201", "config.priority: "),
    ({"isVip": "true"}, "0201", "config.isVip: "),
    ({"isVip": 1}, "0201", "config.isVip: "),
    ({"isVip": True}, "0202", "config.isVip: "),
    ({"preemptPolicy": 1}, "0202", "config.preemptPolicy: "),
    ({"isVip": True, "preemptPolicy": 3}, "0202", "config.preemptPolicy: "),
    ({"isVip": True, "preemptPolicy": "1"}, "0201", "config.preemptPolicy: "),
    ({"isVip": True, "preemptPolicy": True}, "0201", "config.preemptPolicy: "),
    ({"vipNodeNames": ["n"]}, "0202", "config.vipNodeNames: "),
    ({"isVip": True, "vipNodeNames": "n"}, "0201", "config.vipNodeNames: "),
    ({"isVip": True, "vipNodeNames": [""]}, "0204", "config.vipNodeNames[0]: "),
    ({"preemptible": 0}, "0201", "config.preemptible: "),
    ({"estimatedRunTime": 0}, "0204", "config.estimatedRunTime: "),
    ({"estimatedRunTime": "60"}, "0201", "config.estimatedRunTime: "),
    ({"maxRunTime": 315_360_001}, "0204", "config.maxRunTime: "),
    ({"maxRunTime": False}, "0201", "config.maxRunTime: "),
    ({"maxPrice": "1"}, "0201", "config.maxPrice: "),
    ({"maxPrice": True}, "0201", "config.maxPrice: "),
    ({"maxPrice": -0.01}, "0204", "config.maxPrice: "),
    ({"maxPrice": 10**10}, "0204", "config.maxPrice: "),
    ({"maxPrice": 0.0000001}, "0202", "config.maxPrice: "),
    ({"maxRetries": -1}, "0204", "config.maxRetries: "),
    ({"maxRetries": "1"}, "0201", "config.maxRetries: "),
    ({"onLost": "panic"}, "0202", "config.onLost: "),
    ({"onLost": 1}, "0201", "config.onLost: "),
    ({"resumable": "yes"}, "0201", "config.resumable: "),
    ({"checkpointInterval": 0}, "0204", "config.checkpointInterval: "),
    ({"checkpointInterval": 1.5}, "0201", "config.checkpointInterval: "),
    ({"stopGrace": 3601}, "0204", "config.stopGrace: "),
    ({"stopGrace": -1}, "0204", "config.stopGrace: "),
    ({"stopGrace": "1"}, "0201", "config.stopGrace: "),
    ({"env": {"A": "b"}}, "0201", "config.env: "),
    ({"env": ["A=b"]}, "0201", "config.env[0]: "),
    ({"env": [{"key": "A"}]}, "0203", "config.env[0].value: "),
    ({"env": [{"value": "A"}]}, "0203", "config.env[0].key: "),
    ({"env": [{"key": "A", "value": 1}]}, "0201", "config.env[0].value: "),
    ({"env": [{"key": "1A", "value": ""}]}, "0202", "config.env[0].key: "),
    ({"env": [{"key": "", "value": ""}]}, "0202", "config.env[0].key: "),
    ({"env": [{"key": "BROKER_X", "value": ""}]}, "0202", "config.env[0].key: "),
    ({"env": [{"key": "A" * 256, "value": ""}]}, "0204", "config.env[0].key: "),
    ({"env": [{"key": "A", "value": "a\0"}]}, "0202", "config.env[0].value: "),
    ({"env": [{"key": "A", "value": "x" * 32769}]}, "0204", "config.env[0].value: "),
    ({"env": [{"key": "A", "value": "", "secret": True}]}, "0202", "config.env[0].secret: "),
    ({"env": [{"key": "A", "value": "hunter2"}] * 2}, "0202", "config.env: "),
    ({"env": [{"key": f"K{i}", "value": ""} for i in range(257)]}, "0204", "config.env: "),
    ({"datasetIds": "d"}, "0201", "config.datasetIds: "),
    ({"datasetIds": [1]}, "0201", "config.datasetIds[0]: "),
    ({"datasetIds": ["nope"]}, "0202", "config.datasetIds: "),
    ({"datasetIds": ["nope\0"]}, "0202", "config.datasetIds[0]: "),
    ({"datasetIds": ["d"] * 257}, "0204", "config.datasetIds: "),
    ({"port": 80}, "0202", "config.port: "),
    ({"port": "80"}, "0201", "config.port: "),
    ({"port": 65_536}, "0204", "config.port: "),
    ({"public": False}, "0202", "config.public: "),
    ({"public": 0}, "0201", "config.public: "),
    ({"labels": [["a", "b"]]}, "0201", "config.labels: "),
    ({"labels": {"a": 1}}, "0201", "config.labels.a: "),
    ({"labels": {"a": None}}, "0201", "config.labels.a: "),
    ({"labels": {"": "x"}}, "0202", "config.labels: "),
    ({"labels": {"a b": "x"}}, "0202", "config.labels: "),
    ({"labels": {"a" * 64: "x"}}, "0202", "config.labels: "),
    ({"labels": {"a": "x" * 256}}, "0204", "config.labels: "),
    ({"labels": {"a": "\0"}}, "0202", "config.labels: "),
    ({"labels": {f"k{i}": "" for i in range(65)}}, "0204", "config.labels: "),
    ({"nodecount": 2}, "0202", "config.nodecount: not a known field; the nearest known one is nodeCount"),
    ({"center_id": []}, "0202", "config.center_id: not a known field; the nearest known one is centerId"),
]


async def test_faults_of_config(world: World) -> None:
    for config, code, detail in CONFIG_FAULTS:
        status, found, said = await world.refused("POST", "/trainjob", create_body(**config))
        assert (status, found) == (400, code), (config, said)
        assert said.startswith(detail), (config, said)
        assert "hunter2" not in said
        assert len(said) < 300
    assert (await world.ok("GET", "/trainjob"))["totalSize"] == 0


CONFIG = create_body()["config"]
BODY_FAULTS: list[tuple[Any, str, str]] = [
    (b"", "0201", "the body is not JSON"),
    (b"{", "0201", "the body is not JSON"),
    (b"[]", "0201", "the body must be a JSON object"),
    (b"null", "0201", "the body must be a JSON object"),
    (b'"\\ud800"', "0201", "the body must be a JSON object"),
    (b'{"\\ud800": 1, "\\ud800": 1}', "0201", "the body is not JSON"),
    (b'{"jobName": NaN}', "0201", "the body is not JSON"),
    (b'{"jobName": 1e99999999999999999999}', "0201", "the body is not JSON"),
    (b"[" * 100_000, "0201", "the body is not JSON"),
    ('{"jobName":"作业"}'.encode("gbk"), "0201", "the body must be JSON in UTF-8"),
    ('{"jobName":"a"}'.encode("utf-16"), "0201", "the body must be JSON in UTF-8"),
    (b'{"jobName":"a","jobDesc":"\\ud800"}', "0201", "jobDesc: "),
    (b'{"jobName":"a","config":{"labels":{"\\udfff":""}}}', "0201", "config.labels: "),
    (b" " * 200_001, "0204", "the body must have at most 200000 bytes"),
    ({"config": CONFIG}, "0203", "jobName: "),
    ({"jobName": None, "config": CONFIG}, "0203", "jobName: "),
    ({"jobName": "a"}, "0203", "config: "),
    ({"jobName": "a", "config": None}, "0203", "config: "),
    ({"jobName": "a", "config": {}}, "0203", "config.specId: "),
    ({"jobName": "a", "config": []}, "0201", "config: "),
    ({"jobName": 1, "config": CONFIG}, "0201", "jobName: "),
    ({"jobName": "", "config": CONFIG}, "0206", "jobName: "),
    ({"jobName": "a" * 65, "config": CONFIG}, "0206", "jobName: "),
    ({"jobName": "作" * 65, "config": CONFIG}, "0206", "jobName: "),
    ({"jobName": "a\n", "config": CONFIG}, "0205", "jobName: "),
    ({"jobName": " a", "config": CONFIG}, "0205", "jobName: "),
    ({"jobName": "作业", "config": CONFIG}, "0205", "jobName: "),
    ({"jobName": "é", "config": CONFIG}, "0205", "jobName: "),
    ({"jobName": "a", "jobDesc": 1, "config": CONFIG}, "0201", "jobDesc: "),
    ({"jobName": "a", "jobDesc": "作" * 257, "config": CONFIG}, "0207", "jobDesc: "),
    ({"jobName": "a", "jobDesc": "\0", "config": CONFIG}, "0202", "jobDesc: "),
    ({"jobname": "a", "jobName": "a", "config": CONFIG}, "0202", "jobname: "),
    # several at once: missing, then types, then name, description, ranges, values
    ({"jobName": "é" * 65, "jobDesc": "x" * 257, "config": {"nodeCount": "1"}}, "0203", "config.specId: "),
    (
        {"jobName": "é" * 65, "jobDesc": "x" * 257, "config": {**CONFIG, "nodeCount": "1"}},
        "0201",
        "config.nodeC",
    ),
    ({"jobName": "é" * 65, "jobDesc": "x" * 257, "config": {**CONFIG, "nodeCount": 0}}, "0206", "jobName: "),
    ({"jobName": "é", "jobDesc": "x" * 257, "config": {**CONFIG, "nodeCount": 0}}, "0205", "jobName: "),
    ({"jobName": "e", "jobDesc": "x" * 257, "config": {**CONFIG, "nodeCount": 0}}, "0207", "jobDesc: "),
    ({"jobName": "e", "x": 1, "config": {**CONFIG, "nodeCount": 0}}, "0204", "config.nodeCount: "),
    ({"jobName": "e", "x": 1, "config": {**CONFIG, "specId": "nope"}}, "0202", "x: "),
]


async def test_faults_of_a_body(world: World) -> None:
    for body, code, detail in BODY_FAULTS:
        status, found, said = await world.refused("POST", "/trainjob", body)
        assert (status, found) == (400, code), said
        assert said.startswith(detail), said
    assert (await world.ok("GET", "/trainjob"))["totalSize"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"jobName": "a" * 64, "jobDesc": "作" * 256, "config": CONFIG},
        {
            "jobName": "_",
            "jobDesc": None,
            "config": {**CONFIG, "nodeCount": None, "env": None, "labels": None},
        },
        {"jobName": "-1", "jobDesc": "", "config": {**CONFIG, "nodeCount": 2.0, "centerId": []}},
        {"jobName": "b", "config": {**CONFIG, "maxPrice": 0, "image_id": None}},
        {"jobName": "c", "config": {**CONFIG, "imageUrl": "x" * 1024, "command": "字" * 21845}},
    ],
    ids=range(5),
)
async def test_bodies_at_their_limits_are_taken(world: World, body: Any) -> None:
    await world.ok("POST", "/trainjob", body)


async def test_a_body_without_a_length_is_counted(world: World) -> None:
    async def endless() -> Any:
        for _ in range(300):
            yield b" " * 1000

    headers = {"X-Auth-Token": token_of("alice")}
    answer = await world.client.post("/trainjob", data=endless(), headers=headers)
    assert (answer.status, (await answer.json())["errorCode"]) == (400, "0204")


async def test_an_unknown_query_is_named(world: World) -> None:
    answer = await world.refused("POST", "/trainjob?x=1", create_body())
    assert answer[1:] == ("0202", "x: no query is understood here")
    answer = await world.refused("GET", "/trainjob?pagesize=1")
    assert answer[1:] == ("0202", "pagesize: not a known field; the nearest known one is pageSize")
    answer = await world.refused("GET", "/trainjob?page=1&page=2")
    assert answer[1:] == ("0202", "page: must be given once")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(CreateJob.known())), JSON), JSON)
def test_whatever_the_body_the_answer_is_a_row_of_annex_b(config: dict[str, Any], other: Any) -> None:
    for body in ({"jobName": "a", "config": config}, {"jobName": other, "config": other, "jobDesc": other}):
        with contextlib.suppress(ApiError):
            parse(CreateTrainJob, body)


TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
SECONDS = st.none() | st.integers(1, 315_360_000)


@st.composite
def requests(draw: st.DrawFn) -> JobRequest:
    tier = draw(st.sampled_from(Tier))
    spec = draw(st.none() | st.just(GPU_SPEC))
    image = draw(st.booleans())
    keys = draw(
        st.lists(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), unique=True, max_size=3)
    )
    labels = draw(st.dictionaries(st.from_regex(r"[A-Za-z0-9._/-]{1,9}", fullmatch=True), TEXT, max_size=3))
    return JobRequest(
        spec=spec,
        min_gflops=0 if spec else draw(st.integers(1, 10**15)),
        nodes=draw(st.integers(1, 100_000)),
        image_id="i" if image else "",
        image_url="" if image else "u",
        command=draw(TEXT),
        tier=tier,
        preempt_policy=draw(st.sampled_from([1, 2])) if tier is Tier.VIP else 1,
        vip_nodes=("n",) if tier is Tier.VIP and draw(st.booleans()) else (),
        preemptible=draw(st.booleans()),
        estimated_run_time_s=draw(SECONDS),
        max_run_time_s=draw(SECONDS),
        max_price_micro=draw(st.none() | st.integers(0, 10**15)),
        max_retries=draw(st.integers(0, 1000)),
        on_lost=draw(st.sampled_from(OnLost)),
        resumable=draw(st.booleans()),
        checkpoint_interval_s=draw(SECONDS),
        stop_grace_s=draw(st.integers(0, 3600)),
        env=tuple((key, draw(TEXT)) for key in keys if not key.startswith("BROKER_")),
        labels=tuple(sorted(labels.items())),
    )


@given(requests())
def test_a_shown_config_can_be_sent_again(request: JobRequest) -> None:
    sent = json.loads(json.dumps({"jobName": "a", "config": wire.config(request)}), parse_float=Decimal)
    again = parse(CreateTrainJob, sent).config
    assert request_of(again, Kind.TRAIN, request.spec) == request
