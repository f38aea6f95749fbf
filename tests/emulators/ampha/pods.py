"""Pods of the emulated platform's tasks: lists, logs, events (spec 7)."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from tests.emulators.ampha.parts import Pod, Task
from tests.emulators.ampha.requests import PARAMETER
from tests.emulators.ampha.tasks import KERNEL, task_of
from tests.emulators.ampha.wire import (
    USR,
    Answer,
    Call,
    Fields,
    No,
    Route,
    array,
    e2,
    e4,
    flag,
    maybe,
    naive,
    number,
    span,
    text,
)


async def jobs_of_task(call: Call) -> Answer:
    return e4([pod.name for pod in task_of(call).pods])


async def pods(call: Call) -> Answer:
    task, now = task_of(call), call.center.world.now()
    rows = []
    for pod in task.pods:
        row = {
            "id": pod.id,
            "ip": pod.node.ip,
            "podUid": pod.uid,
            "taskId": task.id,
            "name": pod.name,
            "status": pod.status,
            "type": pod.type,
            "startTime": naive(pod.started_ms),
            "endTime": naive(pod.ended_ms) if pod.started_ms is not None else None,
            "runTime": span(pod.started_ms, pod.ended_ms or now),
            "currentTime": naive(now),
        }
        rows.append({**row, "reason": pod.reason} if pod.reason else row)
    return e4(call.pages(rows))


def _pod(call: Call, wanted: str, key: str) -> tuple[Task, Pod]:
    for task in call.center.world.tasks.values():
        for pod in task.pods:
            if getattr(pod, key) == wanted and task.user == call.user:
                return task, pod
    raise No("容器不存在")


async def pod_logs(call: Call) -> Answer:
    """Lines from `startReadLines` on, or backwards from it (from the end when it is null)."""
    task, pod = _pod(call, call.body["id"], "id")
    lines = call.center.world.lines(pod, task)
    wanted, at = call.body["offset"], call.body.get("startReadLines")
    if call.body["recerseRead"]:
        end = len(lines) if at is None else min(at, len(lines))
        first = max(0, end - wanted)
        chosen, following = lines[first:end], first
    else:
        first = at or 0
        chosen = lines[first : first + wanted]
        following = first + len(chosen)
    more = following > 0 if call.body["recerseRead"] else False
    return e4({"offset": len(chosen), "startReadLines": following, "reverseRead": more, "logContent": chosen})


async def download_logs(call: Call) -> Answer:
    task = task_of(call)
    if call.request.query["taskName"] != task.name:
        raise No("任务名称错误")
    text = "".join(
        f"{pod.name}-log：\n" + "".join(f"{line}\n" for line in call.center.world.lines(pod, task))
        for pod in task.pods
    )
    return web.Response(text=text)


async def pod_events(call: Call) -> Answer:
    _, pod = _pod(call, call.body["podUid"], "uid")
    return e4(
        [
            {
                "id": call.center.world.hex(),
                "createTime": f"{naive(at)}.{at % 1000:03d}000000",
                "message": message,
                "podUid": pod.uid,
            }
            for at, message in pod.events
        ]
    )


async def generate_command(call: Call) -> Answer:
    body = call.body
    words = " ".join(f"--{p['name']}={p['value']}" for p in body["trainHyperParams"])
    start = f"torchrun --nnodes={body['nnodes']} --nproc-per-node={max(1, body['ngpus'])} {body['bootFile']}"
    return e2(re.sub(r"\s+", " ", f"{start} {words}").strip())


POD_PAGE: Fields = {"taskId": text(), "pageNum": number(), "pageSize": number()}
LOGS: Fields = {
    "id": text(),
    "offset": number(),
    "startReadLines": maybe(int),
    "recerseRead": flag(),
    "taskId": text(need=False),
}
COMMAND: Fields = {
    "bootFile": text(),
    "ngpus": number(),
    "nnodes": number(),
    "trainEnvParams": array(),
    "trainHyperParams": array(PARAMETER),
    "trainTaskType": number(0, 1, 2, 3),
}


def _route(name: str, path: str, do: Any, fields: Fields | None = None, **more: Any) -> Route:
    method = more.pop("method", "POST")
    return Route(name, method, path, do, more.pop("envelope", 4), fields, roles=(USR,), **more)


ROUTES = (
    _route(
        "jobs_of_task",
        KERNEL + "trainOperatorPod/getJobIdsByTaskId",
        jobs_of_task,
        method="GET",
        query=("taskId",),
    ),
    _route("pods", KERNEL + "trainOperatorPod/getPodList", pods, POD_PAGE),
    _route("pod_logs", KERNEL + "trainOperatorPod/viewPodLogs", pod_logs, LOGS),
    _route(
        "download_logs",
        KERNEL + "trainOperatorPod/downloadTaskLogs",
        download_logs,
        method="GET",
        query=("taskId", "taskName"),
    ),
    _route("pod_events", KERNEL + "trainOperatorPod/viewPodEvents", pod_events, {"podUid": text()}),
    _route(
        "generate_command",
        "/api/market/datahub/algo/generateCommand",
        generate_command,
        COMMAND,
        envelope=2,
    ),
)
