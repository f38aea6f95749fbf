"""What operators may ask of an emulated Ampha center: `broker ampha …`."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from adapters import ampha
from broker.adapter import AdapterError, Refused, RemoteState, Unsupported, commands_of
from tests.ampha_center import center_and_adapter, run, submit
from tests.emulators.ampha import Ampha

SLOW: dict[str, Any] = {
    "scale": 1.0,
    "pull_s": (0, 0),
    "cached_pull_s": 0,
    "stop_s": (0, 0),
    "metering_s": (0, 0),
}
LOOKS = 1000


async def ask(adapter: ampha.Ampha, word: str, /, **given: Any) -> Any:
    (command,) = [c for c in commands_of(adapter) if c.name == word]
    known = {argument.name for argument in command.arguments}
    arguments = {key.replace("_", "-"): value for key, value in given.items()}
    assert set(arguments) <= known, "an argument that the command does not have"
    return await command.run(arguments)


async def until(adapter: ampha.Ampha, name: str, word: str) -> dict[str, Any]:
    """The notebook or service of that name, once it is in that state."""
    kind = name.partition("-")[0]
    for _ in range(LOOKS):
        rows = await ask(adapter, f"{kind}s")
        found: list[dict[str, Any]] = [row for row in rows if row["name"] == name]
        if found and found[0]["status"] == word:
            return found[0]
        await asyncio.sleep(0.005)
    raise AssertionError(f"{name} is not {word}: {rows}")


async def ran(center: Ampha, adapter: ampha.Ampha, name: str = "bkaaaaaaaaaa") -> None:
    ref = await submit(adapter, run(name, command="sleep 1"))
    for _ in range(LOOKS):
        if (await adapter.observe([ref]))[ref.id].state is RemoteState.SUCCEEDED:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not end")


# ---------------------------------------------------------------- quotas, priorities, mass stop


async def test_quota() -> None:
    async with center_and_adapter() as (_, adapter):
        found = await ask(adapter, "quota")
        assert found["resources"]["remainGpu"] == 10000
        assert found["storage"]["blockQuota"] == "存储配额未开启-无限制"


async def test_user_priority_needs_the_id_that_no_call_lists() -> None:
    async with center_and_adapter(qos_ids={"6": "3"}) as (center, adapter):
        await ask(adapter, "user-priority", user="6", priority="high")
        assert center.world.priority == {"6": "high"}
        with pytest.raises(Refused, match="qos_ids"):
            await ask(adapter, "user-priority", user="7", priority="low")
        assert {"id": "6", "name": "sbb", "qosId": "3"} in await ask(adapter, "users")


async def test_what_needs_the_tenant_says_so() -> None:
    alone = {"username": "sbb", "password": "pw-user"}
    async with center_and_adapter(credentials=alone, qos_ids={"6": "3"}) as (_, adapter):
        with pytest.raises(Unsupported, match="tenant_username"):
            await ask(adapter, "user-priority", user="6", priority="high")
        with pytest.raises(Unsupported, match="tenant_username"):
            await ask(adapter, "stop-all-jobs", users=("6",), yes=True)


async def test_stop_all_jobs_wants_to_be_meant() -> None:
    async with center_and_adapter(settings=SLOW) as (_, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        with pytest.raises(Refused, match="--yes"):
            await ask(adapter, "stop-all-jobs", users=("6",), yes=False)
        await ask(adapter, "stop-all-jobs", users=("6",), yes=True)
        for _ in range(LOOKS):
            if (await adapter.observe([ref]))[ref.id].state is RemoteState.STOPPED:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it goes on")


# ---------------------------------------------------------------- work orders


async def test_a_quota_is_asked_for_and_granted() -> None:
    async with center_and_adapter() as (center, adapter):
        content = json.dumps({"gpuMemory": 5, "maxOperation": 2})
        (order,) = await ask(adapter, "request-quota", title="more", content=content, reason="work")
        assert (order["status"], order["content"]) == ("pending", {"gpuMemory": 5, "maxOperation": 2})
        (waiting,) = await ask(adapter, "orders", to_approve=True)
        await ask(adapter, "approve-order", order=waiting["id"])
        assert (await ask(adapter, "order", order=order["id"]))["status"] == "approved"
        assert (center.quota["remainGpu"], center.quota["remainJobNum"]) == (5, 2)


async def test_an_order_is_refused_or_withdrawn() -> None:
    async with center_and_adapter() as (_, adapter):
        (one,) = await ask(adapter, "request-quota", title="one", content='{"gpuMemory": 1}')
        (two,) = await ask(adapter, "request-quota", title="two", content='{"gpuMemory": 1}')
        await ask(adapter, "approve-order", order=one["id"], refuse=True)
        assert (await ask(adapter, "withdraw-order", order=two["id"]))["status"] == "withdrawn"
        assert [o["status"] for o in await ask(adapter, "orders")] == ["refused", "withdrawn"]
        with pytest.raises(Refused, match="JSON object"):
            await ask(adapter, "request-quota", title="x", content="[1]")


# ---------------------------------------------------------------- metering, looking into tasks


async def test_metering_is_joined_to_runs() -> None:
    async with center_and_adapter(settings=SLOW) as (center, adapter):
        await ran(center, adapter)
        await ran(center, adapter, "bkbbbbbbbbbb")
        await ran(center, adapter, "somebodyelse")
        await asyncio.sleep(0.01)
        records = await ask(adapter, "metering")
        assert {record["run"] for record in records} == {"bkaaaaaaaaaa", "bkbbbbbbbbbb"}
        (record,) = await ask(adapter, "metering", runs=("bkaaaaaaaaaa",))
        assert (record["cards"], record["memoryGib"]) == (Decimal(8), Decimal(1024)), "MB here (T13)"
        seconds = (record["endedMs"] - record["startedMs"]) // 1000
        assert record["cardHours"] == (Decimal(8) * seconds / 3600).quantize(Decimal("0.0001"))
        assert record["accelerator"] == "A800-PCIE-80GB"


@pytest.mark.parametrize("task_api", ["trainOperator", "fineTune"])
async def test_looking_into_a_task(task_api: str) -> None:
    async with center_and_adapter(task_api=task_api, settings=SLOW) as (center, adapter):
        await ran(center, adapter)
        task = await ask(adapter, "task", task="bkaaaaaaaaaa")
        assert task["resources"][0]["gpuResource"].startswith("{")
        assert task["variable"] == [], "documents in texts are unpacked (T3)"
        (pod,) = await ask(adapter, "pods", task="bkaaaaaaaaaa")
        assert pod["status"] == 2
        events = [event["message"] for event in await ask(adapter, "events", task="bkaaaaaaaaaa")]
        assert events[-1] == "Started container pytorch"
        figures = await ask(adapter, "monitoring", task="bkaaaaaaaaaa")
        assert figures["gpuUtilizationRate"]["unit"] == "%"
        with pytest.raises(Refused, match="no task there"):
            await ask(adapter, "pods", task="bkzzzzzzzzzz")


async def test_a_pod_is_stopped() -> None:
    async with center_and_adapter(settings=SLOW) as (_, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        for _ in range(LOOKS):
            if pods := await ask(adapter, "pods", task=ref.id):
                break
            await asyncio.sleep(0.005)
        await ask(adapter, "stop-pod", task=ref.id, pod=pods[0]["name"])
        assert (await adapter.observe([ref]))[ref.id].state is RemoteState.FAILED
        with pytest.raises(AdapterError, match="容器不存在"):
            await ask(adapter, "stop-pod", task=ref.id, pod="nothing")


async def test_assets_of_each_kind() -> None:
    async with center_and_adapter() as (center, adapter):
        model = center.market.add("bert", 3, owner="6")
        (image,) = await ask(adapter, "assets", kind="images")
        assert (image["name"], image["version"]) == ("ai-common", "v1.0.0")
        (algorithm,) = await ask(adapter, "assets", kind="algorithms")
        assert algorithm["path"].endswith("/")
        (version,) = model.versions.values()
        version.files["config/a.json"] = (b"{}", 0)
        (shown,) = await ask(adapter, "assets", kind="models", title="ber")
        files = await ask(adapter, "asset-files", id=shown["id"], version=shown["versionId"])
        assert files == [{"path": "config/a.json", "bytes": 2}]
        assert await ask(adapter, "assets", kind="datasets") == []


# ---------------------------------------------------------------- notebooks and services


async def test_a_notebook_lives() -> None:
    async with center_and_adapter() as (center, adapter):
        request = {
            "name": "notebook-1",
            "imageId": center.image.id,
            "image": "registry/ai",
            "imageType": 1,
            "resourceGroupId": center.world.groups[0].id,
            "cpuLimit": 4,
            "memoryLimit": 16,
            "gpuResource": {"gpuLimit": 1},
            "enableSsh": False,
            "enableSharedMemory": True,
            "specId": None,
        }
        (made,) = await ask(adapter, "create-notebook", request=json.dumps(request))
        assert "sshPassword" not in made, "the platform shows it in clear text (T35)"
        with pytest.raises(Refused, match="already"):
            await ask(adapter, "create-notebook", request=json.dumps(request))
        running = await until(adapter, "notebook-1", "running")
        assert running["webPath"]
        await ask(adapter, "stop-notebook", name="notebook-1")
        await until(adapter, "notebook-1", "stopped")
        await ask(adapter, "start-notebook", name="notebook-1")
        await until(adapter, "notebook-1", "running")
        await ask(adapter, "stop-notebook", name="notebook-1")
        await until(adapter, "notebook-1", "stopped")
        await ask(adapter, "delete-notebook", name="notebook-1")
        for _ in range(LOOKS):
            if not await ask(adapter, "notebooks"):
                break
        with pytest.raises(Refused, match="0 notebooks"):
            await ask(adapter, "stop-notebook", name="notebook-1")


async def test_a_service_lives() -> None:
    async with center_and_adapter() as (center, adapter):
        zone = center.world.groups[0]
        (model,) = center.model.versions.values()
        version = {
            "modelId": center.model.id,
            "modelVersionId": model.id,
            "modelInfo": f"DeepSeek-14B/{model.name}",
            "volumePath": model.path,
            "createUser": "6",
            "userName": "sbb",
            "cpu": 1,
            "memory": 1,
            "gpu": 0,
            "gpuShare": "none",
            "predictMinReplicas": 2,
            "rate": 100,
            "customImageFlag": 14,
            "framework": 14,
            "reqMethod": "rest",
            "resourceGroupName": zone.name,
            "resourceGroupId": zone.id,
            "resourceGroupKey": zone.key,
            "volumes": "[]",
            "hyperParameterList": "[]",
            "scenario": "算力任务（在线服务）",
            "deploymentMode": 2,
        }
        server = {"name": "service-1", "createUser": "6", "userName": "sbb", "path": "", "isLargeModel": 3}
        request = json.dumps({"modelServer": server, "modelServerVersions": [version]})
        await ask(adapter, "create-service", request=request)
        await until(adapter, "service-1", "running")
        shown = await ask(adapter, "service", name="service-1")
        assert (shown["replicas"], shown["predictUrl"][-len("/v1/chat/completions") :]) == (
            2,
            "/v1/chat/completions",
        )
        assert "status" in (await ask(adapter, "service-log", name="service-1"))["log"]
        assert await ask(adapter, "service-calls", name="service-1")
        await ask(adapter, "stop-service", name="service-1")
        await until(adapter, "service-1", "stopped")
        await ask(adapter, "start-service", name="service-1")
        await until(adapter, "service-1", "running")
        await ask(adapter, "stop-service", name="service-1")
        await until(adapter, "service-1", "stopped")
        await ask(adapter, "delete-service", name="service-1")
        assert await ask(adapter, "services") == []
