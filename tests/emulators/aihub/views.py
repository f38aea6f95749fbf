"""How the emulated AIHub shows its objects: the shapes of the document, with its noise.

What belongs here: answers, field by field.  What does not: what they are about (platform.py).
"""

from __future__ import annotations

from typing import Any

from tests.emulators.aihub.platform import (
    ENDED,
    STOPPING,
    Cluster,
    Platform,
    Pod,
    Task,
    User,
    now_ms,
    state_of,
)

GPU_TYPES = {1: "A800", 2: "4090", 3: "3090", 4: "2080", 5: "未知"}
CATEGORIES = {1: "训练", 2: "推理", 3: "调试", 4: "特别"}
STORAGE_FIELDS = (
    *("id", "name", "path", "server_path", "server_host", "server_type", "permission"),
    "description",
)
CREATED_MS = 1_721_382_073_775


def cluster_row(cluster: Cluster) -> dict[str, Any]:
    """One row of select-clusters: cards per SKU and the number of SKUs are not told."""
    return {
        "id": cluster.id,
        "name": cluster.name,
        "uuid": f"5-0-{cluster.id}",
        "sku": {
            "id": cluster.id + 1000,
            "description": "",
            "cpu": cluster.cpu,
            "memory": cluster.memory,
            "gpu_type": cluster.gpu_type,
            "gpu_memory": cluster.gpu_memory,
            "network": cluster.network,
            "created_at": CREATED_MS,
        },
        "created_at": CREATED_MS,
    }


def _user(user: User | None) -> dict[str, Any]:
    return {"id": user.id, "name": user.name} if user is not None else {"id": 0, "name": ""}


def _as_of(platform: Platform, task: Task, *, stale: bool) -> dict[str, Any]:
    """The changing part of a task, now or as it was `stale_ms` ago."""
    if not stale:
        return state_of(task)
    then = now_ms() - platform.switches.stale_ms
    past = [state for at, state in task.history if at <= then]
    return past[-1] if past else task.history[0][1]


def _common(platform: Platform, task: Task, state: dict[str, Any]) -> dict[str, Any]:
    asked, cluster = task.asked, platform.clusters[task.asked["virtual_cluster_id"]]
    noise = platform.switches.noise
    view: dict[str, Any] = {
        "framework": asked["framework"],
        "name": asked["name"],
        "description": asked.get("description", ""),
        "command": asked.get("command", ""),
        "image": asked.get("image", ""),
        "virtual_cluster": {
            "id": cluster.id,
            "name": cluster.name,
            "gpu_type": GPU_TYPES[cluster.gpu_type],
            "label": "",
            "sku": {"cpu": cluster.cpu, "gpu": cluster.gpu, "memory": cluster.memory},
        },
        "sku_cnt": asked["sku_cnt"],
        "enable_ssh": asked.get("enable_ssh", False),
        "envs": asked.get("envs") or (None if noise else []),
        "storages": None if noise else [],
        "instances": asked["instances"],
        "created_at": task.created_at,
        "username": task.user.name,
        "user_id": task.user.id,
        "namespace": f"live-training-{task.user.id}",
        "res_name": f"u-{task.user.id}-{task.id}" if task.id else "",
        "use_ib_network": asked.get("use_ib_network", False),
        "category": {"id": asked["category_id"], "name": CATEGORIES[asked["category_id"]]},
        "project": {"id": asked["project_id"], "name": "p", "description": ""},
        "avg_gpu_util": 0,
        "estimate_run_time": asked["estimate_run_time"],
        "stop_op_user": _user(state["stop_op_user"]),
    }
    if noise:
        view["queue_hint"] = "not in the document"
    return view


def training(platform: Platform, task: Task, *, stale: bool = False) -> dict[str, Any]:
    """data of GET trainings/{id}."""
    state = _as_of(platform, task, stale=stale)
    status = 2 if state["status"] == STOPPING else state["status"]  # 停止中 is the quota service's word
    view = _common(platform, task, state) | {
        "id": task.id,
        "status": status,
        "always_pull_image": task.asked.get("always_pull_image", False),
        "shm": task.asked.get("shm", 0),
        "started_at": state["started_at"],
        "finished_at": state["finished_at"],
        "is_vip": task.vip,
        "cluster_partition": "vip" if task.vip else "",
        "preempt_policy": task.asked["preempt_policy"] if task.vip else 0,
        "vip_node_names": list(task.vip_nodes) or None,
        "use_new_log": True,
    }
    if platform.switches.noise and not view["finished_at"]:
        del view["finished_at"]
    return view


def quota_task(platform: Platform, task: Task, *, stale: bool = False) -> dict[str, Any]:
    """data of GET tasks/{id}, without the fields that the sample lacks where `noise` is on."""
    state = _as_of(platform, task, stale=stale)
    view = _common(platform, task, state) | {
        "id": task.quota_id,
        "priority": task.asked["priority"],
        "mtp_id": state["mtp_id"],
        "status": state["status"],
        "is_vip": False,
        "cluster_partition": "",
        "preempt_policy": 0,
        "vip_node_names": None,
        "started_at": state["started_at"],
        "finished_at": state["finished_at"],
    }
    view["virtual_cluster"]["node_tasks"] = node_tasks(
        platform, platform.clusters[task.asked["virtual_cluster_id"]]
    )
    if not platform.switches.noise:
        view |= {
            "always_pull_image": task.asked["always_pull_image"],
            "shm": task.asked["shm"],
            "use_new_log": True,
        }
    elif not view["started_at"]:
        del view["started_at"], view["finished_at"]
    return view


def node_tasks(platform: Platform, cluster: Cluster) -> list[dict[str, Any]]:
    """What runs on the nodes of a cluster; ids are text, and those of trainings."""
    rows = []
    for node in cluster.nodes:
        tasks = [
            {
                "id": str(task.id),
                "name": task.name,
                "sku_cnt": platform.skus(task) * sum(pod.node.name == node.name for pod in task.pods),
                "category_name": CATEGORIES[task.asked["category_id"]],
                "project_name": "p",
                "estimate_run_time": task.asked["estimate_run_time"],
                "actual_run_time": (now_ms() - task.started_at) // 1000 if task.started_at else 0,
                "username": task.user.name,
            }
            for task in platform.tasks
            if task.active and any(pod.node.name == node.name for pod in task.pods)
        ]
        if tasks or platform.switches.empty_nodes:
            rows.append({"node_name": node.name, "node_ip": node.ip, "tasks": tasks})
    return rows


def pod_page(task: Task, *, size: int, number: int, quota: bool) -> dict[str, Any]:
    """data of …/pods."""
    rows = [_pod(task, pod, quota=quota) for pod in task.pods]
    page = rows[(number - 1) * size : number * size]
    return {"total": len(rows), "page_size": size, "page_num": number, "data": page or None}


def _pod(task: Task, pod: Pod, *, quota: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": pod.id,
        "namespace": f"live-training-{task.user.id}",
        "name": pod.name,
        "status": pod.status,
        "created_at": pod.created_at,
        "started_at": pod.started_at,
        "host_ip": pod.node.ip,
        "node_name": pod.node.name,
        "ssh_port": 0,
        "ssh_info": "",
    }
    if quota:
        end = pod.finished_at if task.status in ENDED else now_ms()
        return row | {"duration": (end - pod.started_at) // 1000 if pod.started_at else 0}
    return row | {"finished_at": pod.finished_at, "use_new_log": True}
