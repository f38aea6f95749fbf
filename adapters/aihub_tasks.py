"""Trainings and quota tasks of an AIHub: what creates one, and what its detail says.

Here: bodies of creates (创建训练任务, 创建配额任务), remote ids, and the meaning of details and pods.
Not here: making the calls (aihub.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from adapters.aihub_services import Service
from adapters.values import utc_ms, whole
from broker.adapter import RemoteState, RunSpec, Sighting, StatedPool, Unavailable
from broker.core.model import RemoteId, Tier

UTC = ZoneInfo("UTC")  # every time is milliseconds since the epoch: no zone is read
LONG_S = 7 * 86_400
"""estimate_run_time of a run without a limit: the platform may plan with it or kill by it, so it is
generous and never 0."""
RANK = "${RANK:-${OMPI_COMM_WORLD_RANK:-0}}"
"""How a command finds out which instance it is: PyTorchJob sets the first, Open MPI the second."""
MASTER = "${MASTER_ADDR:-127.0.0.1}"

_STATES: Mapping[int, RemoteState] = {
    1: RemoteState.PENDING,
    2: RemoteState.RUNNING,
    3: RemoteState.SUCCEEDED,
    4: RemoteState.FAILED,
    5: RemoteState.STOPPED,
    6: RemoteState.RUNNING,  # 停止中, of quota tasks: it still holds its cards
}
_REMOTE = re.compile(r"(?:(trn|quo):)?([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class TaskId:
    """A training, or a quota task: a quota task is addressed by its own id and never by its mtp_id,
    because the quota scheduler may start anew what is stopped behind its back."""

    service: Service
    number: int

    @property
    def remote(self) -> RemoteId:
        return RemoteId(f"{'quo' if self.service is Service.QUOTA else 'trn'}:{self.number}")

    @property
    def path(self) -> str:
        kind = "tasks" if self.service is Service.QUOTA else "trainings"
        return f"/{kind}/{self.number}"

    @classmethod
    def read(cls, remote: str, usual: Service) -> TaskId | None:
        """An operator may leave the kind out: then it is of the usual service.  None: it is no id."""
        if (found := _REMOTE.fullmatch(remote)) is None:
            return None
        kind = {"trn": Service.TRAINING, "quo": Service.QUOTA}.get(found[1] or "", usual)
        return cls(kind, int(found[2]))


@dataclass(frozen=True, slots=True)
class Sku:
    """What one SKU of a virtual cluster is.  `cards` is told by details only."""

    cores: int
    memory_gib: int
    cards: int


@dataclass(frozen=True, slots=True)
class Fields:
    """What every create of a center has in common: keys of [centers.connection]."""

    project_id: int
    storage_ids: tuple[int, ...]
    category_id: int
    framework: str
    shm_gib: int | None
    per_instance: bool
    allow_preempt_kill: bool


def skus_per_node(run: RunSpec, pool: StatedPool, sku: Sku) -> int:
    """SKUs of one instance: by cards, or by cores and memory where the pool has no cards."""
    shape = run.spec.shape
    if pool.shape.accelerators:
        return max(1, -(-shape.accelerators // sku.cards))
    by_cores = -(-shape.cores // max(1, sku.cores))
    by_memory = -(-shape.memory_gib // max(1, sku.memory_gib))
    return max(1, by_cores, by_memory)


def body_of(
    run: RunSpec,
    *,
    cluster: int,
    skus: int,
    command: str,
    env: Sequence[tuple[str, str]],
    infiniband: bool,
    fields: Fields,
) -> dict[str, Any]:
    """What both kinds of task have in common; every documented field is sent."""
    return {
        "framework": fields.framework,
        "name": str(run.id),
        "description": f"{run.job}, attempt {run.attempt}",
        "command": command,
        "image": run.image,
        "virtual_cluster_id": cluster,
        "sku_cnt": skus if fields.per_instance else skus * run.nodes,
        "enable_ssh": False,
        "envs": [{"key": key, "value": value} for key, value in env],
        "storage_ids": list(fields.storage_ids),
        "instances": run.nodes,
        "use_ib_network": infiniband and run.nodes > 1,
        "always_pull_image": False,
        "shm": fields.shm_gib or max(1, run.spec.shape.memory_gib // 2),
        "category_id": fields.category_id,
        "project_id": fields.project_id,
        "estimate_run_time": run.max_run_time_s or LONG_S,
    }


def training_only(run: RunSpec, fields: Fields) -> dict[str, Any]:
    """The VIP fields, which trainings have and quota tasks must not."""
    if not run.vip:
        return {"is_vip": False, "preempt_policy": 1, "vip_node_names": []}
    policy = run.preempt_policy if fields.allow_preempt_kill else 1
    return {"is_vip": True, "preempt_policy": policy, "vip_node_names": list(run.vip_nodes)}


def quota_only(run: RunSpec) -> dict[str, Any]:
    """1 is low, 2 is high."""
    return {"priority": 2 if run.priority >= Tier.HIGH else 1}


# ---------------------------------------------------------------- details


def detail(data: Any, task: TaskId) -> Mapping[str, Any]:
    """A detail that can be read.  Raises Unavailable."""
    if not isinstance(data, dict) or "status" not in data:
        raise Unavailable(f"{task.remote}: the detail has no status")
    return data


def sighting(found: Mapping[str, Any], *, name: str, user_id: int | None, exit_code: int | None) -> Sighting:
    """What a detail says of our run `name`.

    A terminal task that somebody else stopped was evicted; so was one that is stopped and names
    nobody.  `user_id` is whose stops are ours: nobody's (None) where the run may have made way for a
    VIP job of the same account.  The platform has no exit code and no reason of a failure:
    `exit_code` is what the wrapper of the command left, if it could.
    """
    raw = _raw(found)
    if found.get("name") != name:
        return Sighting(RemoteState.UNKNOWN, raw=f"the task is named {found.get('name')!r}; {raw}")
    state = _STATES.get(whole(found.get("status"), "status") or 0)
    if state is None:
        return Sighting(RemoteState.UNKNOWN, raw=raw)
    started_ms = utc_ms(found.get("started_at"), "started_at", UTC)
    if state in (RemoteState.PENDING, RemoteState.RUNNING):
        return Sighting(state, started_ms=started_ms if state is RemoteState.RUNNING else None, raw=raw)
    ended_ms = utc_ms(found.get("finished_at"), "finished_at", UTC)
    times: dict[str, Any] = {"started_ms": started_ms, "ended_ms": ended_ms, "raw": raw}
    if state is RemoteState.SUCCEEDED:
        return Sighting(state, exit_code=0, **times)
    stopper = found.get("stop_op_user") or {}
    by = whole(stopper.get("id"), "stop_op_user.id") or 0
    if by not in (0, user_id):
        return Sighting(state, evicted_by=f"user {stopper.get('name') or by}", exit_code=exit_code, **times)
    if state is RemoteState.STOPPED:
        return Sighting(state, evicted_by="" if by else "the platform", exit_code=exit_code, **times)
    message = (
        f"the command ended with exit code {exit_code}"
        if exit_code
        else "the platform says that it failed, and gives no reason"
    )
    return Sighting(state, exit_code=exit_code or None, message=message, **times)


def _raw(found: Mapping[str, Any]) -> str:
    names = ("status", "mtp_id", "res_name", "cluster_partition", "stop_op_user")
    return ", ".join(f"{name} {found[name]!r}" for name in names if found.get(name))


def pods_of(data: Any) -> tuple[list[Mapping[str, Any]], int]:
    """One page of pods and how many there are in all."""
    if not isinstance(data, dict):
        raise Unavailable("the pods came without data")
    rows: list[Mapping[str, Any]] = [row for row in data.get("data") or () if isinstance(row, dict)]
    return rows, whole(data.get("total"), "total") or len(rows)
