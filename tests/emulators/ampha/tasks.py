"""Training tasks of the emulated platform: three APIs over two stores, pods, logs, events (spec 6, 7)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.emulators.ampha.market import DATASET
from tests.emulators.ampha.parts import State, Task
from tests.emulators.ampha.requests import CREATE, CREATE_A, CREATE_C, LIST, LIST_C, TASK, TASKS, WAY
from tests.emulators.ampha.wire import (
    USR,
    Answer,
    Call,
    Fields,
    No,
    Route,
    e2,
    e4,
    naive,
    span,
    text,
)
from tests.emulators.ampha.world import RESOURCE_GROUP_DOWN
from tests.emulators.faults import Fault

KERNEL = "/api/kernel/"
CHINESE = {
    State.PENDING: "排队中",
    State.CREATING: "创建中",
    State.RUNNING: "运行中",
    State.SUCCEEDED: "成功",
    State.FAILED: "失败",
    State.TERMINATED: "已终止",
}
OUTPUTS = {
    "算力任务（调优）": "/output/Tuning/{}/model",
    "算力任务（预训练）": "/output/Full_Pretrain/{}/model",
}
NO_TASK = "任务不存在"

# ---------------------------------------------------------------- creation


async def _create(call: Call, store: str) -> Task:
    center, world, body = call.center, call.center.world, call.body
    if call.wants(Fault.DUPLICATE_NAME):
        raise No("任务名称已存在")
    group = next((g for g in world.groups if g.id == body["zoneId"]), None)
    if group is None or (group.name, group.key) != (body["zoneName"], body["resourceGroupKey"]):
        raise No("参数错误，资源组不存在")
    if group.status == 3:
        raise No("该任务资源组不可用")
    if body["userId"] != call.user:
        raise No("没有权限访问用户数据！")
    if len(body["resource"]) != 1:
        raise No("参数错误，资源配置不支持")
    _check_assets(call)
    same = [t for t in world.tasks.values() if t.name == body["name"] and t.user == call.user]
    if same and world.settings.refuse_duplicates:
        raise No("任务名称已存在")
    live = [t for t in world.tasks.values() if t.user == call.user and not t.state.ended]
    if world.settings.quotas and len(live) >= center.quota["remainJobNum"]:
        raise No("作业数量超过配额限制")
    if center.operations is not None and world.settings.preset:
        await center.operations.permit(call)
    await asyncio.sleep(world.takes(world.settings.create_s) / world.settings.scale)
    world.advance()
    task = world.create(body, store, call.user, group, call.operation)
    task.checkpoint = "checkpoint" in body["command"]
    if center.stumble:
        raise No(center.stumble)
    return task


def _check_assets(call: Call) -> None:
    """The image must be one of the list, with all that belongs to it."""
    body, market = call.body, call.center.market
    asset = market.assets.get(body["imageId"])
    version = asset.versions.get(body["imageVersionId"]) if asset and asset.category == 4 else None
    if asset is None or version is None:
        raise No("参数错误，镜像不存在")
    said = (body["imageName"], body["imageVersion"], body["image"])
    if said != (asset.name, version.name, version.path):
        call.center.complain(call.operation, f"image {said} is not that of {body['imageVersionId']}")
    paths = {v.path for a in market.assets.values() if a.category == DATASET for v in a.versions.values()}
    for pair in body.get("extraMultipleDirBo", {}).get("extraMultipleInputDirs", []):
        if pair["value"] not in paths:
            call.center.complain(call.operation, f"a further input is {pair['value']}, which is no data set")
    if call.center.world.settings.preset:
        for item in body["resource"]:
            _check_spec(call, item)


def _check_spec(call: Call, item: dict[str, Any]) -> None:
    """With a preset spec its own numbers are sent (3.3)."""
    spec = next((s for s in call.center.specs if s["specId"] == item.get("specId")), None)
    if spec is None:
        raise No("规格不存在")
    gpu = item["gpuResource"]
    said = {
        "cpuCoresNumber": item["cpuNumber"],
        "memorySize": item["memory"],
        "numberOfGpus": gpu["gpuNum"],
        "gpuShare": gpu["gpuShare"],
        "migType": gpu.get("migRes"),
        "gpuMemory": gpu.get("gpuMem"),
        "computility": gpu.get("gpuCores"),
    }
    plain = {"gpuShare": "none", "migType": None, "gpuMemory": None, "computility": None}
    wrong = {name: value for name, value in said.items() if value != {**plain, **spec}[name]}
    if wrong:
        call.center.complain(call.operation, f"spec {spec['specName']} was asked for with {wrong}")


async def create_a(call: Call) -> Answer:
    task = await _create(call, "trainOperator")
    return e4({"taskId": task.id, "uid": task.uid})


async def create_b(call: Call) -> Answer:
    await _create(call, "fineTune")
    return e4({}, "", code=0)


async def create_c(call: Call) -> Answer:
    defined = call.body["createWay"] == "userDefined"
    if defined is not (call.body["scenario"] == "算力任务（模型训练）"):
        raise No("参数错误，createWay与scenario不一致")
    task = await _create(call, "trainOperator" if defined else "fineTune")
    return e4(json.dumps({"uid": task.uid}))


# ---------------------------------------------------------------- lists and details


def _mine(call: Call, store: str | None) -> list[Task]:
    """Visible tasks of the caller, newest first, filtered as the request says."""
    world = call.center.world
    if call.body["userId"] != call.user:
        return []
    at_ms = world.now() - (call.center.stale_ms if call.wants(Fault.STALE_READ) else 0)
    found = [
        task
        for task in world.tasks.values()
        if task.user == call.user
        and task.visible_ms <= at_ms
        and store in (None, task.store)
        and call.body.get("taskName", "") in task.name
    ]
    return sorted(found, key=lambda t: (t.created_ms, t.seq), reverse=True)


def _state(call: Call, task: Task) -> State:
    if call.wants(Fault.STALE_READ):
        return task.state_at(call.center.world.now() - call.center.stale_ms)
    return task.state


def _word(call: Call, task: Task) -> str:
    state = _state(call, task).value
    return call.center.world.settings.english.get(state, state)


def _partition(task: Task) -> str:
    return json.dumps({"resourceGroupKey": task.group.key, "zoneId": task.group.id, "zoneName": ""})


def _output(task: Task) -> str:
    pattern = OUTPUTS.get(str(task.body.get("scenario")), "/output/Train_Operator/{}/model")
    return pattern.format(task.name)


def _row(call: Call, task: Task) -> dict[str, Any]:
    end_ms = task.ended_ms or call.center.world.now()
    return {
        "id": task.id,
        "status": _word(call, task),
        "runTime": span(task.started_ms, end_ms),
        "description": task.body.get("describe"),
        "createTime": naive(task.created_ms),
        "partitions": _partition(task),
        "outputDir": _output(task),
        "modelId": task.body.get("modelId", ""),
        "modelName": task.body.get("modelName", ""),
        "createWay": task.body["createWay"],
    }


async def list_a(call: Call) -> Answer:
    rows = [
        {**_row(call, t), "name": t.name, "type": t.body["type"], "taskType": t.body.get("taskType")}
        for t in _mine(call, "trainOperator")
    ]
    return e4(call.pages(_filtered(call, rows)))


async def list_b(call: Call) -> Answer:
    rows = [
        {
            **_row(call, t),
            "taskName": t.name,
            "fineTuneStrategy": t.body["fineTuneStrategy"],
            "isPretrain": t.body["isPretrain"],
        }
        for t in _mine(call, "fineTune")
    ]
    return e4(call.pages(_filtered(call, rows)))


def _filtered(call: Call, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = call.body.get("status", "")
    return [row for row in rows if not wanted or row["status"] == wanted]


async def list_c(call: Call) -> Answer:
    """Trainings among online services, under Chinese words."""
    rows = []
    for task in _mine(call, None):
        state = _state(call, task)
        rows.append(
            {
                "taskId": task.id,
                "taskName": task.name,
                "createTime": task.created_ms // 1000 * 1000,
                "cpu": task.need.cores,
                "memory": task.need.memory_gib,
                "gpuResource": {"gpuLimit": task.need.cards},
                "type": 6,
                "scenario": task.body.get("scenario", "算力任务（模型训练）"),
                "imageName": task.body["imageName"],
                "taskType": "模型训练" if task.store == "trainOperator" else "调优",
                "taskStatusName": CHINESE[state],
                "metas": {"taskStatus": _word(call, task)},
            }
        )
    wanted = call.body["status"]
    return e4(call.pages([r for r in rows if not wanted or r["taskStatusName"] == wanted]))


def task_of(call: Call, store: str | None = None, id: str = "") -> Task:
    """The task a request names.  Raises No."""
    world = call.center.world
    id = id or str(call.body.get("taskId") or call.request.query.get("taskId", ""))
    task = world.tasks.get(id)
    if task is None or task.user != call.user or (store and task.store != store):
        raise No(NO_TASK)
    if call.wants(Fault.VANISHED_TASK) and task.state is State.RUNNING:
        world.forget(task, "vanished")
        raise No(NO_TASK)
    if call.wants(Fault.NODE_LOSS) and task.pods and not task.state.ended:
        world.lose_node(task.pods[0].node)
    return task


def _detail(call: Call, task: Task) -> dict[str, Any]:
    body = task.body
    resources = [
        {
            **item,
            "taskId": task.id,
            "specId": item.get("specId") or "",
            "specType": "GPU" if task.need.cards else "CPU",
            "gpuResource": json.dumps(item["gpuResource"]),
        }
        for item in body["resource"]
    ]
    kept = {
        name: body.get(name)
        for name in (
            *("scenario", "image", "imageId", "imageName", "imageVersion", "imageVersionId", "command"),
            *("inputDir", "inputType", "isPretrain", "startupFile", "fineTuneStrategy", "resourceType"),
            *("createWay", "workingDir", "modelId", "modelName", "datasetId", "algorithmId"),
        )
    }
    return {
        **kept,
        "status": _word(call, task),
        "runTime": span(task.started_ms, task.ended_ms or call.center.world.now()),
        "createTime": naive(task.created_ms),
        "outputDir": _output(task),
        "variable": json.dumps(body.get("variable", [])),
        "commonHyperParameters": json.dumps(body.get("commonHyperParameters", [])),
        "rdma": str(bool(body.get("rdma", False))).lower(),
        "resources": resources,
        "mountpoint": "/ampha/tenant/testgroup",
    }


async def detail_a(call: Call) -> Answer:
    task = task_of(call, "trainOperator")
    more = {
        "name": task.name,
        "type": task.body["type"],
        "taskType": task.body.get("taskType"),
        "partition": _partition(task),
        "describe": task.body.get("describe", ""),
        "isUrgentTask": task.body.get("isUrgentTask", "N"),
    }
    return e4({**_detail(call, task), **more})


async def detail_b(call: Call) -> Answer:
    task = task_of(call, "fineTune")
    more = {
        "taskName": task.name,
        "llmTrainFramework": task.body["llmTrainFramework"],
        "partitions": _partition(task),
        "description": task.body.get("describe", ""),
        "autoRecovery": task.body.get("autoRecovery", 0),
        "retryTimes": task.retries,
        "fineTuneHyperParameters": json.dumps(task.body.get("fineTuneHyperParameters", [])),
    }
    return e4({**_detail(call, task), **more})


# ---------------------------------------------------------------- operations


def _stop(call: Call, task: Task) -> Answer:
    if call.wants(Fault.STOP_REFUSED):
        raise No("任务创建中，暂不支持停止")
    if task.state.ended:
        raise No("任务已结束，无法停止")
    call.center.world.stop(task)
    return e4("SUCCESS")


def _by_way(call: Call, id: str = "") -> Task:
    store = "trainOperator" if call.body["createWay"] == "userDefined" else "fineTune"
    return task_of(call, store, id)


async def stop_a(call: Call) -> Answer:
    return _stop(call, task_of(call, "trainOperator"))


async def stop_b(call: Call) -> Answer:
    return _stop(call, task_of(call, "fineTune"))


async def stop_c(call: Call) -> Answer:
    return _stop(call, _by_way(call))


def _delete(call: Call, tasks: list[Task]) -> Answer:
    world = call.center.world
    if not world.settings.implicit_stop and any(not task.state.ended for task in tasks):
        raise No("任务运行中，请先停止任务")
    for task in tasks:
        world.forget(task)
    return e4("SUCCESS")


async def delete_a(call: Call) -> Answer:
    return _delete(call, [task_of(call, "trainOperator", id) for id in call.body["taskIds"]])


async def delete_b(call: Call) -> Answer:
    return _delete(call, [task_of(call, "fineTune", id) for id in call.body["taskIds"]])


async def delete_c(call: Call) -> Answer:
    return _delete(call, [_by_way(call, id) for id in call.body["taskIds"]])


def _can_resume(task: Task) -> str:
    if not task.state.ended or task.state is State.SUCCEEDED:
        return "任务状态不支持恢复"
    return "" if task.checkpoint else "输出目录无checkpoint文件,无法恢复"


def _checked(store: str) -> Any:
    async def check(call: Call) -> Answer:
        why = _can_resume(task_of(call, store, call.request.match_info["task"]))
        return e2(not why, why or "success")

    return check


def _resumed(store: str) -> Any:
    async def resume(call: Call) -> Answer:
        task = task_of(call, store)
        if task.group.status != 1:
            raise No(RESOURCE_GROUP_DOWN)
        if why := _can_resume(task):
            raise No(why)
        call.center.world.resume(task, call.operation)
        return e4("SUCCESS")

    return resume


async def clone(call: Call) -> Answer:
    """A create body with texts where a create wants arrays; nothing is created."""
    task = _by_way(call)
    data = {
        **task.body,
        "status": _word(call, task),
        "createTime": naive(task.created_ms),
        "runTime": span(task.started_ms, task.ended_ms or call.center.world.now()),
        "retryTimes": task.retries,
        "partition": _partition(task),
        "commonHyperParameters": json.dumps(task.body.get("commonHyperParameters", [])),
        "variable": json.dumps(task.body.get("variable", [])),
        "resource": [
            {**item, "taskId": task.id, "gpuResource": json.dumps(item["gpuResource"])}
            for item in task.body["resource"]
        ],
    }
    return e4(data)


async def stop_pod(call: Call) -> Answer:
    task = task_of(call)
    if call.body["podName"] not in {pod.name for pod in task.pods}:
        raise No("容器不存在")
    call.center.world.end(task, State.FAILED)
    return {"success": True, "returnCode": 200, "message": "success"}


def _route(name: str, path: str, do: Any, fields: Fields | None = None, **more: Any) -> Route:
    method = more.pop("method", "POST")
    return Route(name, method, path, do, more.pop("envelope", 4), fields, roles=(USR,), **more)


ROUTES = (
    _route("create_a", KERNEL + "trainOperator/createTask", create_a, CREATE_A, effect=True),
    _route("create_b", KERNEL + "fineTune/createLlmFineTuneTask", create_b, CREATE, effect=True),
    _route("create_c", KERNEL + "computationTask/train", create_c, CREATE_C, effect=True),
    _route("list_a", KERNEL + "trainOperator/listTask", list_a, LIST),
    _route("list_b", KERNEL + "fineTune/listLlmFineTuneTask", list_b, LIST),
    _route("list_c", KERNEL + "computationTask/list", list_c, LIST_C),
    _route("detail_a", KERNEL + "trainOperator/queryTaskInfo", detail_a, TASK, optional=("taskId",)),
    _route("detail_b", KERNEL + "fineTune/queryLlmFineTuneTaskDetail", detail_b, query=("taskId",)),
    _route("stop_a", KERNEL + "trainOperator/stopTask", stop_a, TASK, optional=("taskId",), effect=True),
    _route("stop_b", KERNEL + "fineTune/stopLlmFineTuneTask", stop_b, query=("taskId",), effect=True),
    _route("stop_c", KERNEL + "computationTask/stop", stop_c, {**TASK, **WAY}, effect=True),
    _route("delete_a", KERNEL + "trainOperator/deleteTask", delete_a, TASKS, effect=True),
    _route(
        "delete_b",
        KERNEL + "fineTune/deleteLlmFineTuneTask",
        delete_b,
        TASKS,
        method="DELETE",
        effect=True,
    ),
    _route("delete_c", KERNEL + "computationTask/deleteTask", delete_c, {**TASKS, **WAY}, effect=True),
    _route(
        "can_resume_a",
        KERNEL + "trainOperator/checkCanResumeTrainOperatorTask/{task}",
        _checked("trainOperator"),
        envelope=2,
    ),
    _route(
        "can_resume_b",
        KERNEL + "fineTune/checkCanResumeFineTuneTask/{task}",
        _checked("fineTune"),
        envelope=2,
    ),
    _route(
        "resume_a",
        KERNEL + "trainOperator/resumeTrainOperatorTask",
        _resumed("trainOperator"),
        query=("taskId",),
        effect=True,
    ),
    _route(
        "resume_b",
        KERNEL + "fineTune/resumeLlmFineTuneTask",
        _resumed("fineTune"),
        query=("taskId",),
        effect=True,
    ),
    _route("clone", KERNEL + "computationTask/cloneTask", clone, {**TASK, **WAY, "userId": text(need=False)}),
    _route(
        "stop_pod",
        KERNEL + "fineTune/deleteLlmFineTunePod",
        stop_pod,
        {**TASK, "podName": text()},
        effect=True,
    ),
)
