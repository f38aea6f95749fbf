"""Data sets, operators' commands and `broker doctor` of the AIHub adapter over the emulated platform."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.staging import FOLDER
from broker.adapter import (
    Check,
    CopyRef,
    CopySighting,
    CopyState,
    Denied,
    Refused,
    RemoteState,
    StatedPool,
    Throttled,
    Unavailable,
    Unsupported,
)
from tests.aihub_center import NODE, Center, opened
from tests.emulators.aihub import Storage, Switches
from tests.emulators.faults import Fault


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.csv").write_text("1,2\n")
    (folder / "labels.txt").write_text("x\n")
    return folder


def copy_of(center: Center, source: Path) -> CopyRef:
    return CopyRef("ds-1", center.adapter.center, str(source), 6)


async def staged(center: Center, copy: CopyRef, *, most: int = 100) -> CopySighting:
    """Steps until the copy is ready or failed."""
    for _ in range(most):
        seen = await center.adapter.stage(copy)
        if seen.state is not CopyState.MOVING:
            return seen
        copy = replace(copy, remote=seen.remote)
        await asyncio.sleep(0.02)
    raise AssertionError(f"still moving: {seen}")


async def given(center: Center, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
    (command,) = [each for each in center.adapter.commands if each.name == name]
    return await command.run(arguments or {})


# ---------------------------------------------------------------- data sets


async def test_a_data_set_goes_to_the_storage_and_through_the_relay(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as center:
        seen = await staged(center, copy_of(center, source))
        here = tmp_path / "storage" / "broker" / FOLDER / "ds-1"
        assert seen == CopySighting(CopyState.READY, str(here), 6)
        assert (here / "train" / "a.csv").read_text() == "1,2\n"
        (path,) = center.hub.data.objects
        assert path == "s3://broker/bk-ds-1.zip"
        with zipfile.ZipFile(io.BytesIO(center.hub.data.objects[path])) as archive:
            assert sorted(archive.namelist()) == ["labels.txt", "train/a.csv"]
        (dataset,) = center.hub.data.datasets.values()
        assert (dataset.asked["name"], dataset.asked["create_by"]) == ("bk-ds-1", 1)
        (version,) = dataset.versions
        assert (version.asked["upload_path"], version.asked["upload_type"]) == (path, 1)
        names = {request.path.partition("?")[2] for request in center.asked("version")}
        assert "name=bk-ds-1/V1" in names or "name=bk-ds-1%2FV1" in names
        with pytest.raises(Unsupported, match="no call to delete"):  # what is registered stays
            await center.adapter.unstage(copy_of(center, source))
        assert not here.exists()
        assert (await staged(center, copy_of(center, source))).state is CopyState.READY
        assert len(center.hub.data.datasets) == 1, "what is registered stays, and is used again"


async def test_a_run_finds_its_data_sets(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as center:
        seen = await staged(center, copy_of(center, source))
        command = 'cat "$BROKER_DATASETS_DIR/ds-1/train/a.csv"'
        ref = await center.submit(command, datasets=(("ds-1", seen.remote),))
        await center.see(ref, RemoteState.SUCCEEDED)
        assert b"".join([c async for c in center.adapter.logs(ref, 0, 0)]) == b"1,2\n"


async def test_without_a_shared_storage_a_run_gets_names_only(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, output=None) as center:
        seen = await staged(center, copy_of(center, source))
        assert seen.remote == "bk-ds-1/V1"
        await center.submit("exit 0", datasets=(("ds-1", seen.remote),))
        (request,) = center.asked("create_training")
        env = {each["key"]: each["value"] for each in request.body["envs"]}
        assert env["BROKER_DATASETS"] == "ds-1=bk-ds-1/V1"


async def test_without_the_platforms_services_the_storage_is_enough(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, dataset_url=None, s3_url=None) as center:
        seen = await center.adapter.stage(copy_of(center, source))
        assert seen.state is CopyState.READY
        assert center.hub.data.objects == {}
        command = 'test "$(ls $BROKER_DATASETS_DIR)" = ds-1'
        only = await center.submit(command, datasets=(("ds-1", seen.remote),))
        await center.see(only, RemoteState.SUCCEEDED)
        await center.adapter.unstage(copy_of(center, source))
        assert center.adapter.output is not None
        assert list((center.adapter.output.here / "datasets").iterdir()) == []


async def test_what_is_registered_at_the_platform_stays_there(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as center:
        await staged(center, copy_of(center, source))
        with pytest.raises(Unsupported, match="no call to delete the data set bk-ds-1"):
            await center.adapter.unstage(copy_of(center, source))
        assert center.adapter.output is not None
        assert list((center.adapter.output.here / "datasets").iterdir()) == []


async def test_a_center_that_can_take_no_data_says_what_to_set(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, output=None, s3_url=None) as center:
        with pytest.raises(Unsupported, match=r"output .* or dataset_url, s3_url and s3_token"):
            await center.adapter.stage(copy_of(center, source))


async def test_a_version_that_the_platform_cannot_make_is_a_failure_with_its_word(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as center:
        copy = copy_of(center, source)
        while not copy.remote.startswith("s3:"):
            copy = replace(copy, remote=(await center.adapter.stage(copy)).remote)
        center.hub.data.objects = dict.fromkeys(center.hub.data.objects, b"no zip")
        seen = await staged(center, copy)
        assert seen.state is CopyState.FAILED
        assert "不是 zip 文件" in seen.message
        again = await staged(center, copy_of(center, source))
        assert again.state is CopyState.READY, "another try makes another version"
        (dataset,) = center.hub.data.datasets.values()
        assert [version.number for version in dataset.versions] == [1, 2]


@pytest.mark.parametrize("operation", ["upload", "create_dataset", "create_version", "version"])
@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.DROPPED, Fault.HTML_502, Fault.GARBAGE])
async def test_a_step_that_failed_is_made_again(
    tmp_path: Path, source: Path, operation: str, fault: Fault
) -> None:
    """The broker calls the step again where a copy failed; what was made is found by its name."""
    async with opened(tmp_path) as center:
        center.hub.faults.plan(operation, fault)
        with pytest.raises(Unavailable):
            await staged(center, copy_of(center, source))
        seen = await staged(center, copy_of(center, source))
        assert seen.state is CopyState.READY
        if operation == "create_version" and fault is not Fault.DROPPED:
            (dataset,) = center.hub.data.datasets.values()
            assert len(dataset.versions) == 1


async def test_the_relay_is_trusted_by_the_stated_certificate_only(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, ca_file=None) as center:
        with pytest.raises(Throttled, match="no connection"):
            await staged(center, copy_of(center, source))
        assert center.asked("upload") == []


async def test_the_relay_has_a_token_of_its_own(tmp_path: Path, source: Path) -> None:
    """The emulator complains when the login's token is sent to the relay."""
    async with opened(tmp_path) as center:
        without = replace(center.connection, credentials={"username": "broker", "password": "open sesame"})
        center.connection = without
        adapter = await center.reopened()
        with pytest.raises(Unsupported, match="s3_token"):
            await adapter.stage(copy_of(center, source))
        center.connection = replace(without, credentials={**without.credentials, "s3_token": "wrong"})
        adapter = await center.reopened()
        with pytest.raises(Refused, match="code 403"):
            await adapter.stage(copy_of(center, source))


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("methods", [("GET", "POST"), ("GET",), ("POST",)])
async def test_a_workflow_run_is_started_and_shown(tmp_path: Path, methods: tuple[str, ...]) -> None:
    """Its detail is printed as POST; GET is asked first, and the platform's verdict remembered."""
    switches = Switches(run_detail=methods)
    async with opened(tmp_path, switches=switches) as center:
        start = {"name": "r1", "pipeline": 1, "version": 4, "param": ("x=y=z",)}
        number = (await given(center, "workflow-start", start))["id"]
        (request,) = center.asked("create_run")
        assert request.body == {
            "name": "r1",
            "description": "",
            "pipeline_id": 1,
            "pipeline_version_id": 4,
            "params": [{"key": "x", "value": "y=z"}],
        }
        for _ in range(2):
            shown = await given(center, "workflow-run", {"id": number})
        assert shown["status"] in (1, 2, 3)
        assert shown["task_nodes"][0]["params"] == {"input": None, "output": None}, '"null" is nothing'
        asked = [len(center.asked("run")), len(center.asked("run_by_post"))]
        assert asked == ([2, 0] if "GET" in methods else [1, 2])
        with pytest.raises(Refused, match="运行实例不存在"):
            await given(center, "workflow-run", {"id": 999})
        with pytest.raises(Refused, match="expected KEY=VALUE"):
            await given(center, "workflow-start", start | {"param": ("x",)})


async def ended(center: Center, number: int) -> Any:
    for _ in range(100):
        shown = await given(center, "search", {"id": number})
        if shown["status"] in (3, 4):
            return shown
        await asyncio.sleep(0.02)
    raise AssertionError("the search does not end")


async def test_a_search_ends_well_or_with_its_message(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        sql = {"type": "sql", "name": "s", "sql": "select object_name from meta"}
        shown = await ended(center, (await given(center, "search-start", sql))["id"])
        assert shown["status"] == 3
        assert shown["result_url"].endswith(".csv")
        bad = sql | {"sql": "drop table meta"}
        shown = await ended(center, (await given(center, "search-start", bad))["id"])
        assert (shown["status"], shown["message"]) == (4, "sql 不允许")


async def test_each_kind_of_search_has_its_own_fields(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        shared = {"name": "s", "feature-library": 2, "top": 5}
        image = {"type": "image", "image": ("http://img/1.jpg,1,2,3,4",)}
        await given(center, "search-start", shared | image)
        await given(center, "search-start", shared | {"type": "text", "keywords": "red car"})
        by_image, by_text = [request.body for request in center.asked("create_search")]
        assert by_image["images"] == [{"url": "http://img/1.jpg", "box": [1, 2, 3, 4]}]
        assert (by_image["feature_lib_id"], by_image["top_k"]) == (2, 5)
        assert by_text["keywords"] == "red car"
        with pytest.raises(Refused, match="needs sql"):
            await given(center, "search-start", {"type": "sql", "name": "s"})
        with pytest.raises(Refused, match="expected URL"):
            await given(center, "search-start", shared | {"type": "image", "image": ("http://img",)})


async def test_data_sets_are_made_and_shown_by_hand(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        dataset = (await given(center, "dataset-create", {"name": "mnist"}))["id"]
        version = {"dataset": dataset, "path": "s3://b/none.zip"}
        number = (await given(center, "dataset-version", version))["id"]
        shown = await given(center, "dataset-show", {"name": "mnist/V1"})
        assert (shown["id"], shown["dataset_id"]) == (number, dataset)
        with pytest.raises(Refused, match="数据集不存在"):
            await given(center, "dataset-version", version | {"dataset": 99})


EVALUATION = {
    "model-file": "model.pt",
    "pred-file": "out/p.jsonl",
    "model-name": "m1",
    "model-type": "face",
    "epoch": 10,
    "dataset-name": "g1",
    "id-dataset-name": "i1",
    "gallery-dataset-name": "q1",
}


async def test_results_of_a_run_are_given_to_the_evaluation_platform(tmp_path: Path) -> None:
    command = 'cd "$BROKER_OUTPUT_DIR"; mkdir out; printf weights >model.pt; printf "{}" >out/p.jsonl'
    async with opened(tmp_path) as center:
        ref = await center.submit(command)
        await center.see(ref, RemoteState.SUCCEEDED)
        answer = await given(center, "evaluation-import", EVALUATION | {"task": ref.id})
        assert answer["id"] > 0
        ((fields, files),) = center.hub.data.imported
        assert files == {"model_file": b"weights", "pred_file": b"{}"}
        assert fields == {
            "model_name": "m1",
            "model_type": "3",
            "epoch": "10",
            "dataset_name": "g1",
            "id_dataset_name": "i1",
            "gallery_dataset_name": "q1",
            "user_id": "1",
        }, "by the names of the fields, whatever the document says of them"
        for wrong in ({"model-file": "../log-0"}, {"task": "../../storage"}, {"pred-file": "none"}):
            with pytest.raises(Refused, match="expected one of"):
                await given(center, "evaluation-import", EVALUATION | {"task": ref.id} | wrong)


async def test_listings(tmp_path: Path) -> None:
    async with opened(tmp_path, mode="quota") as center:
        assert "'vc-a800-train'" in (await given(center, "clusters"))[0]
        assert [row["id"] for row in await given(center, "storages")] == [1]
        ref = await center.submit()
        await center.see(ref, RemoteState.RUNNING)
        pods = await given(center, "pods", {"task": ref.remote})
        assert [pod["node_name"] for pod in pods] == ["ai-13-108"]
        await center.look(ref)
        (task,) = await given(center, "node-tasks", {"cluster": 29})
        assert (task["name"], task["skus"], task["user"]) == (ref.id, 2, "broker")
        with pytest.raises(Refused, match="expected a remote id"):
            await given(center, "pods", {"task": "bk-1"})


@pytest.mark.parametrize(
    ("key", "command", "arguments"),
    [
        ("workflow_url", "workflow-run", {"id": 1}),
        ("warehouse_url", "search", {"id": 1}),
        ("dataset_url", "dataset-show", {"name": "a/V1"}),
        ("tag_url", "clusters", {}),
    ],
)
async def test_a_missing_address_switches_its_commands_off(
    tmp_path: Path, key: str, command: str, arguments: dict[str, Any]
) -> None:
    off: dict[str, Any] = {key: None}
    async with opened(tmp_path, **off) as center:
        with pytest.raises(Unsupported, match=f"{key} is not set"):
            await given(center, command, arguments)


async def test_a_raw_call_goes_to_the_service_of_its_path(tmp_path: Path) -> None:
    async with opened(tmp_path, workflow_url=None) as center:
        await center.submit()
        answer = await center.adapter.call("GET", "/model-training-platform/api/v1/trainings/101", None)
        assert b'"status"' in answer.body
        with pytest.raises(Unsupported, match="workflow_url"):
            await center.adapter.call("GET", "/workflow-center/api/v1/runs/1", None)
        with pytest.raises(Unsupported, match="/dataset-mng/api/v2"):
            await center.adapter.call("GET", "/upload", None)
        body = b'{"username": "broker", "password": "open sesame"}'
        shown = await center.adapter.call("POST", "/api/v1/auth/login", body)
        assert b"eyJ" not in shown.body, "tokens are taken out"


# ---------------------------------------------------------------- doctor


async def doctor(center: Center) -> dict[str, Check]:
    return {check.name: check async for check in center.adapter.checks()}


async def test_the_doctor_shows_every_step_and_every_reading(tmp_path: Path) -> None:
    async with opened(tmp_path, evaluation_url=None) as center:
        checks = await doctor(center)
        assert [check for check in checks.values() if not check.ok] == []
        assert "evaluation_url" in checks["services"].detail
        assert checks["reading: sku_cnt"].detail.startswith("is per instance (sku_cnt)")
        assert "allow_preempt_kill" in checks["reading: preemption"].detail
        assert "broker resolve" in checks["reading: lost creates"].detail


@pytest.mark.parametrize("per", ["per-instance", "total"])
async def test_the_doctor_tells_what_a_gang_has_shown_of_sku_cnt(tmp_path: Path, per: str) -> None:
    """The site is read as per-instance; the platform may mean it otherwise."""
    switches = Switches(per_instance=per == "per-instance")
    async with opened(tmp_path, switches=switches, mode="quota") as center:
        ref = await center.submit(nodes=2)
        await center.see(ref, RemoteState.RUNNING)
        await center.look(ref)
        detail = (await doctor(center))["reading: sku_cnt"].detail
        shows = "it is per instance" if per == "per-instance" else "it is of the whole task"
        assert f"run {ref.id} shows that {shows}" in detail


@pytest.mark.parametrize(
    ("changes", "failing", "words"),
    [
        ({"storage_ids": [1, 7]}, "storages", "storage_ids has [7]"),
        ({"output": {"in_job": "/mnt/else", "here": "/nowhere"}}, "output", "/nowhere"),
        ({"output": {"in_job": "/mnt/else", "here": "/tmp"}}, "output in jobs", "on no storage"),
        ({"pools": (StatedPool("31", NODE, 1),)}, "cluster 31", "does not see it"),
        ({"pools": (replace(StatedPool("29", NODE, 1), shape=replace(NODE, cores=64)),)}, "cluster 29", "64"),
        ({"tag_url": "http://127.0.0.1:9"}, "virtual clusters", "check tag_url"),
        ({"training_url": "http://127.0.0.1:9"}, "storages", "check training_url"),
    ],
)
async def test_the_doctor_names_what_to_change(
    tmp_path: Path, changes: dict[str, Any], failing: str, words: str
) -> None:
    async with opened(tmp_path, **changes) as center:
        checks = await doctor(center)
        assert not checks[failing].ok
        assert words in checks[failing].detail


async def test_the_doctor_stops_at_a_refused_login(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        center.connection = replace(center.connection, credentials={"username": "broker", "password": "x"})
        await center.reopened()
        (check,) = (await doctor(center)).values()
        assert not check.ok
        assert "用户名或密码错误" in check.detail
        assert "check user_url, username and password" in check.detail
        with pytest.raises(Denied):
            await center.submit()


async def test_a_read_only_storage_takes_no_output(tmp_path: Path) -> None:
    storages = (Storage(1, "ro", str(tmp_path / "storage"), permission="r"),)
    async with opened(tmp_path, storages=storages) as center:
        assert not (await doctor(center))["output in jobs"].ok
