"""Accounts, capacity, quotas, priorities, work orders, metering (spec 2, 3, 10-14)."""

from __future__ import annotations

import json
from typing import Any

from tests.emulators.ampha.parts import Group, Node
from tests.emulators.ampha.wire import (
    SYS,
    TEN,
    USR,
    Answer,
    Call,
    Fields,
    No,
    Route,
    array,
    e1,
    e2,
    e3,
    maybe,
    naive,
    number,
    span,
    text,
)
from tests.emulators.faults import Fault

# ---------------------------------------------------------------- people


async def get_info(call: Call) -> Answer:
    return e1(
        clusterType="traditionalScenario",
        clusterMode="cluster-manager",
        roles=["sys_user"],
        permissions=[],
        user=call.account.show(),
    )


async def user_list(call: Call) -> Answer:
    rows = [a.show() for a in call.center.accounts.values()]
    return e1(total=len(rows), rows=rows)


async def quota_users(call: Call) -> Answer:
    users = call.center.accounts.values()
    return e3(
        [
            {"nickname": a.name, "uid": 2000 + a.id, "group_id": 2000, "userId": a.id, "user_name": a.name}
            for a in users
        ],
        "用户列表查询成功",
    )


# ---------------------------------------------------------------- capacity


def _node(group: Group, node: Node) -> dict[str, Any]:
    """A node with the platform's types: texts for totals, M for card memory, JSON in a text for MIG."""
    cores, memory, cards = node.free()
    total, left = node.cards, cards - (cards % 1)
    share: Any = None
    whole = left
    if node.mig is not None:
        total = sum(sum(layout.values()) or 1 for layout in node.mig)
        left = sum(max(0, count) for count in node.profiles().values())
        whole = node.cards  # says whole cards even of split ones
        share = json.dumps(
            [
                {
                    "type": "NVIDIA A800 80GB PCIe",
                    "migId": index if layout else -1,
                    "name": f"GPU_{index}",
                    "config": {profile: str(count) for profile, count in layout.items()},
                }
                for index, layout in enumerate(node.mig)
            ]
        )
    elif group.share == "vgpu":
        share = "vgpu"
    vgpu = group.share == "vgpu"
    return {
        "nodeId": f"id-{node.name}",
        "nodeName": node.name,
        "nodeIp": node.ip,
        "cpu": str(node.cores),
        "cpuTotal": node.cores,
        "cpuSurplus": cores,
        "memory": str(node.memory_gib),
        "memTotal": node.memory_gib,
        "memSurplus": round(memory, 2),
        "gpu": str(node.cards),
        "gpuTotal": total,
        "gpuSurplus": int(left),
        "gpuTotalOne": node.cards,
        "gpuAvailNum": int(whole),
        "gpuMemTotal": node.cards * node.card_memory_mib if vgpu else None,
        "gpuMemSurplus": int(cards * node.card_memory_mib) if vgpu else None,
        "gpuType": node.model if node.cards else None,
        "gpuInfo": [{"gpuProduct": node.model, "gpuMemory": node.card_memory_mib, "gpuCount": node.cards}]
        if node.cards
        else [],
        "gpuShare": share,
        "netParamTotal": 0,
        "netParamAvailNum": 0,
        "nodeStatus": node.status,
        "message": None,
        "groupName": group.name,
        "vgpuStatus": None,
    }


def _group(call: Call, group: Group) -> dict[str, Any]:
    nodes = [_node(group, node) for node in group.nodes]

    def total(key: str) -> Any:
        return round(sum(node[key] for node in nodes), 2)

    return {
        "id": group.id,
        "name": group.name,
        "resourceGroupKey": group.key,
        "gpuShare": group.share,
        "sysGroupNames": "amphatest",
        "nodeNames": ",".join(node.name for node in group.nodes),
        "clusterId": "2Iu96Nef",
        "autoScale": 0,
        "isHighNetwork": 0,
        "gpuType": group.vendor,
        "gpuProduct": None,
        "cpuTotal": total("cpuTotal"),
        "cpuSurplus": total("cpuSurplus"),
        "memTotal": total("memTotal"),
        "memSurplus": total("memSurplus"),
        "gpuTotal": total("gpuTotal"),
        "gpuSurplus": total("gpuSurplus"),
        "queuePodNum": sum(t.numbers for t in call.center.world.queue(group)),
        "noGpuNodeList": [],
        "rockParaIsOk": 1,
        "status": group.status,
        "resourceName": None,
        "osArch": group.arch,
        "createTime": naive(call.center.world.now()),
        "nodeList": nodes,
    }


async def groups(call: Call) -> Answer:
    center = call.center
    wanted = call.body["sysGroupId"]
    if call.wants(Fault.STALE_READ) and wanted in center.stale_groups:
        return e3(center.stale_groups[wanted], "获取资源组成功")
    found = [_group(call, g) for g in center.world.groups if wanted in g.departments]
    center.stale_groups[wanted] = found
    return e3(found, "获取资源组成功")


async def clusters(call: Call) -> Answer:
    nodes = [
        {"id": n.name, "nodeName": n.name, "ip": n.ip, "status": "DEPLOYED", "cpu": None, "memory": None}
        for g in call.center.world.groups
        for n in g.nodes
    ]
    record = {"id": "2Iu96Nef", "name": "test", "status": "DEPLOYED", "nodes": nodes, "nodeCount": len(nodes)}
    return e2({"records": [record], "total": 1, "size": call.body["size"], "current": 1, "pages": 1})


async def overview(call: Call) -> Answer:
    cards = sum(n.cards for g in call.center.world.groups for n in g.nodes)
    free = sum(n.free()[2] for g in call.center.world.groups for n in g.nodes)
    rate = f"{(cards - free) / cards * 100:.2f}" if cards else "0.00"
    return e2(
        [
            {
                "name": "GPU",
                "unit": "卡",
                "used": cards - free,
                "total": cards,
                "percentage": rate,
                "success": 0,
                "failed": 0,
            }
        ]
    )


async def specs(call: Call) -> Answer:
    shown: dict[str, list[dict[str, Any]]] = {"cpuSpecList": [], "gpuSpecList": []}
    for number_, spec in enumerate(call.center.specs, 61):
        gpu = spec["numberOfGpus"] > 0
        row = {
            "id": number_,
            "specType": "GPU" if gpu else "CPU",
            "gpuModel": None,
            "nodeType": None,
            "migType": None,
            "gpuMemory": None,
            "computility": None,
            "gpuShare": "none",
            **spec,
        }
        shown["gpuSpecList" if gpu else "cpuSpecList"].append(row)
    return e2(shown)


async def remains(call: Call) -> Answer:
    if call.body["userId"] != call.user:
        raise No("没有权限访问用户数据！")
    return e3({**call.center.quota, "isInitConfig": call.center.world.settings.quotas}, "获取剩余资源成功")


async def storage_remains(call: Call) -> Answer:
    words = "存储配额未开启-无限制"
    return e3(
        {"blockQuota": words, "blockRemain": words, "endTime": "无限制", "initConfig": False}, "查询成功"
    )


# ---------------------------------------------------------------- the tenant's rights


async def set_priority(call: Call) -> Answer:
    user = next((u for u, id in call.center.qos.items() if id == call.body["id"]), None)
    if user is None:
        raise No("fail")
    call.center.world.priority[user] = call.body["priority"]
    return e3(None)


async def stop_jobs(call: Call) -> Answer:
    world = call.center.world
    for task in list(world.tasks.values()):
        if task.user in call.body["userIds"] and not task.state.ended:
            world.stop(task)
    call.center.rooms.stop_of(call.body["userIds"])
    return e2(None)


async def metering(call: Call) -> Answer:
    world = call.center.world
    wanted = [r for at, r, user in world.records if at <= world.now() and user == call.body["userId"]]
    rows = []
    for record in sorted(wanted, key=lambda r: r["end_ms"], reverse=True):
        task, pod = record["task"], record["pod"]
        rows.append(
            {
                "jobDetailInfo": {
                    "username": call.account.name,
                    "groupName": "amphatest",
                    "jobId": pod.name,
                    "specId": task.body["resource"][0].get("specId"),
                    "jobRunTime": span(record["start_ms"], record["end_ms"]),
                    "nodeList": pod.node.name,
                    "cpuType": None,
                    "gpuType": pod.node.model,
                    "memoryType": None,
                    "cpuUsage": float(task.need.cores),
                    "gpuUsage": float(task.need.cards),
                    "memoryUsage": task.need.memory_gib * 1024.0,
                },
                "jobBasicInfo": {
                    "startTime": naive(record["start_ms"]),
                    "endTime": naive(record["end_ms"]),
                    "jobName": task.name,
                    "jobType": "AI任务式建模作业",
                },
            }
        )
    size = call.body["pageSize"]
    info = {
        "pageNum": call.body["pageNum"],
        "totalPage": -(-len(rows) // size),
        "pageSize": size,
        "totalNum": len(rows),
    }
    data = {"result": call.page(rows), "pageInfo": info}
    return {"status": 200, "data": data, "message": "查询作业计费信息成功！", "success": True}


METRICS = {"cpuUtilizationRate": ("CPU使用率", "%"), "gpuUtilizationRate": ("GPU使用率", "%")}


async def monitoring(call: Call) -> Answer:
    known = {p.name: p for t in call.center.world.tasks.values() for p in t.pods if p.started_ms is not None}
    pods = [known[name] for name in call.body["podNames"] if name in known]
    data: dict[str, dict[str, Any]] = {}
    for key, (title, unit) in METRICS.items():
        data[key] = {"title": title, "unit": unit, "values": {}}
        if pods:
            times = list(range(call.body["startTime"], call.body["endTime"], 15_000))
            data[key] = {
                "title": title,
                "unit": unit,
                "times": times,
                "values": [50.0] * len(times),
                "step": "15s",
            }
    return e2(data)


# ---------------------------------------------------------------- routes

PAGE: Fields = {"pageNum": number(), "pageSize": number()}
CLUSTERS: Fields = {"page": number(), "size": number(), "clusterName": text(), "tenantIdList": maybe(list)}

ROUTES = (
    Route("get_info", "GET", "/prod-api/getInfo", get_info, 1),
    Route(
        "user_list",
        "GET",
        "/prod-api/system/user/list",
        user_list,
        1,
        query=("pageNum", "pageSize"),
        roles=(SYS, TEN),
    ),
    Route(
        "quota_users",
        "POST",
        "/api/resource/quota/getUser",
        quota_users,
        3,
        {"quotaFlag": text(), "queryType": text("user")},
        roles=(SYS, TEN),
    ),
    Route(
        "groups",
        "POST",
        "/api/system/aiResourceGroup/findResourceGroupBySysGroupId",
        groups,
        3,
        {"sysGroupId": text()},
        roles=(USR,),
    ),
    Route("clusters", "POST", "/api/system/mce/findClusterListPage", clusters, 2, CLUSTERS, roles=(SYS,)),
    Route(
        "clusters_cloud",
        "POST",
        "/api/system/cce/findClusterListPage",
        clusters,
        2,
        CLUSTERS,
        roles=(SYS, TEN),
    ),
    Route(
        "overview",
        "POST",
        "/api/system/resource/overview",
        overview,
        2,
        {
            "granularity": number(1, 2, 3),
            "clusterType": text("AI", "HPC"),
            "clusterId": text(need=False),
            "tenantId": number(),
            "nodeIp": text(need=False),
            "nodeName": text(need=False),
        },
        roles=(SYS, TEN),
    ),
    Route(
        "specs",
        "POST",
        "/api/system/presetSpec/getSpecList",
        specs,
        2,
        {"specList": maybe(list)},
        roles=(USR,),
    ),
    Route("remains", "POST", "/api/system/config/getRemainResource", remains, 3, {"userId": text()}),
    Route(
        "storage_remains",
        "POST",
        "/api/resource/configRemake/getQuotaRemainResource",
        storage_remains,
        3,
        {"userId": text(), "uid": number()},
    ),
    Route(
        "set_priority",
        "POST",
        "/api/system/VolcanoQos/updateById",
        set_priority,
        3,
        {"id": number(), "priority": text("high", "middle", "low")},
        roles=(TEN,),
        effect=True,
    ),
    Route(
        "stop_jobs",
        "POST",
        "/api/kernel/api/job/stopJobsByUserIds",
        stop_jobs,
        2,
        {"type": number(1), "userIds": array()},
        roles=(TEN,),
        effect=True,
    ),
    Route(
        "metering",
        "POST",
        "/api/charge-manage/chargeStatistic/getUserJobDetails",
        metering,
        5,
        {"userId": text(), **PAGE},
    ),
    Route(
        "monitoring",
        "POST",
        "/api/monitor/monitor/getPodsAvgMonitoringInformation",
        monitoring,
        2,
        {"startTime": number(need=False), "endTime": number(need=False), "podNames": array()},
    ),
)
