"""What the emulated AIHub does with tasks: queues, nodes, VIP, stops, pods, and the ground truth.

What belongs here: the behaviour of trainings and quota tasks behind their services.  What does not:
HTTP, tokens and the shape of answers (services.py, views.py), data (data.py).
"""

from __future__ import annotations

import asyncio
import random
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.emulators.processes import Container, Machine

WAITING, RUNNING, SUCCEEDED, FAILED, STOPPED, STOPPING = 1, 2, 3, 4, 5, 6
ENDED = (SUCCEEDED, FAILED, STOPPED)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class User:
    id: int
    name: str
    password: str


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    ip: str
    skus: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """A virtual cluster: nodes that hold a number of SKUs each.  `gpu` is cards per SKU."""

    id: int
    name: str
    nodes: tuple[Node, ...]
    cpu: int = 16
    memory: int = 128
    gpu: int = 1
    gpu_type: int = 1
    gpu_memory: int = 80
    network: int = 2


@dataclass(slots=True)
class Switches:
    """What the document leaves open, as one installation might do it.  Seconds are emulated."""

    token_s: float = 3600.0  # real seconds: clocks are not scaled
    expired: str = "401"  # or "code": HTTP 200 and a code
    per_instance: bool = True  # sku_cnt is that of an instance, not of the whole task
    stop_of_ended_fails: bool = True
    grace_s: float = 30.0
    start_s: float = 1.0  # from a task's turn to its pods
    victim_status: int = STOPPED
    victim_names_its_killer: bool = True  # stop_op_user of a victim is the VIP's owner
    lost_node_status: int = FAILED  # or WAITING: the task starts again elsewhere
    empty_nodes: bool = False  # whether node_tasks lists nodes that run nothing
    direct_stop_restarts: bool = True  # a quota task whose training is stopped directly goes back to 1
    run_detail: tuple[str, ...] = ("GET", "POST")
    says_msg: bool = True
    noise: bool = True  # null lists, unknown fields, finished_at absent
    stale_ms: int = 2000


@dataclass(slots=True)
class Execution:
    """Ground truth: one start of a task's command on all of its instances."""

    name: str
    task: str  # "training 101" or "quota 7"
    created_by: int  # number of the request
    started_ms: int
    ended_ms: int | None = None
    exit_codes: tuple[int, ...] = ()
    ended_by: str = ""  # "itself", "stop <request>", "preemption", "node loss"


@dataclass(slots=True)
class Pod:
    id: int
    name: str
    node: Node
    status: str = "Pending"
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0


@dataclass(slots=True)
class Task:
    """A training, and the quota task that it came from, if it did.  `id` is 0 before a dispatch."""

    asked: Mapping[str, Any]
    user: User
    created_by: int
    created_at: int
    id: int = 0
    quota_id: int = 0
    status: int = WAITING
    started_at: int = 0
    finished_at: int = 0
    stop_user: User | None = None
    stop_why: str = ""
    foreign: bool = False
    pods: list[Pod] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    execution: Execution | None = None
    history: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    earlier_mtp: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.asked["name"])

    @property
    def vip(self) -> bool:
        return bool(self.asked.get("is_vip"))

    @property
    def vip_nodes(self) -> tuple[str, ...]:
        return tuple(self.asked.get("vip_node_names") or ())

    @property
    def active(self) -> bool:
        """Whether it holds SKUs."""
        return bool(self.pods) and self.status not in ENDED


class Platform:
    """All tasks of one installation."""

    def __init__(
        self, clusters: Iterable[Cluster], *, machine: Machine, switches: Switches, seed: int = 0
    ) -> None:
        self.clusters = {cluster.id: cluster for cluster in clusters}
        self.switches = switches
        self.machine = machine
        self.tasks: list[Task] = []
        self.trainings: dict[int, Task] = {}
        self.quota: dict[int, Task] = {}
        self.executions: list[Execution] = []
        self.lost_nodes: set[str] = set()
        self._random = random.Random(seed)
        self._ids = {"training": 100, "quota": 6, "pod": 390}
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    # ------------------------------------------------------------ what clients ask

    def create(self, asked: Mapping[str, Any], *, user: User, request: int, quota: bool) -> Task:
        """A new task; the same name again makes another one."""
        task = Task(asked, user, request, now_ms())
        if quota:
            task.quota_id = self._next("quota")
            self.quota[task.quota_id] = task
        else:
            self._dispatch_as_training(task)
        self.tasks.append(task)
        self._note(task)
        self.schedule()
        return task

    def foreign(
        self, cluster: int, *, name: str, user: User, sku_cnt: int, instances: int = 1, estimate_s: int = 3600
    ) -> Task:
        """Somebody else's training, which runs until it is stopped; it starts no process."""
        asked = {
            "name": name,
            "virtual_cluster_id": cluster,
            "sku_cnt": sku_cnt,
            "instances": instances,
            "framework": "PyTorchJob",
            "estimate_run_time": estimate_s,
            "category_id": 1,
            "project_id": 9,
        }
        task = Task(asked, user, 0, now_ms(), foreign=True)
        self._dispatch_as_training(task)
        self.tasks.append(task)
        self._note(task)
        self.schedule()
        return task

    def stop(self, task: Task, *, user: User, request: int, directly: bool = False) -> None:
        """A stop that was asked for.  `directly`: of the training behind a quota task."""
        if task.status in ENDED or task.stop_why:
            return
        task.stop_user, task.stop_why = user, f"stop {request}"
        if directly and task.quota_id and self.switches.direct_stop_restarts:
            task.stop_why = f"restart {request}"
        if not task.pods:
            self._end(task, STOPPED)
            return
        if task.quota_id:
            task.status = STOPPING
            self._note(task)
        self._take_down(task)

    def forget(self, task: Task) -> None:
        """The platform loses a task: its processes end and nobody knows it any more."""
        for container in task.containers:
            container.kill()
        self.trainings.pop(task.id, None)
        self.quota.pop(task.quota_id, None)

    def lose_node(self, name: str) -> None:
        """A node dies with what runs on it."""
        self.lost_nodes.add(name)
        for task in list(self.tasks):
            if task.active and any(pod.node.name == name for pod in task.pods):
                task.stop_why = "node loss"
                for container in task.containers:
                    container.kill()
                if task.foreign:
                    self._end(task, FAILED)

    def find_node(self, name: str) -> None:
        """A node comes back."""
        self.lost_nodes.discard(name)
        self.schedule()

    # ------------------------------------------------------------ queue and nodes

    def used(self, cluster: Cluster) -> dict[str, int]:
        """SKUs in use on each node."""
        used = dict.fromkeys((node.name for node in cluster.nodes), 0)
        for task in self.tasks:
            if task.active and task.asked["virtual_cluster_id"] == cluster.id:
                for pod in task.pods:
                    used[pod.node.name] += self.skus(task)
        return used

    def skus(self, task: Task) -> int:
        """SKUs of one instance."""
        count, instances = int(task.asked["sku_cnt"]), int(task.asked["instances"])
        return count if self.switches.per_instance else -(-count // instances)

    def schedule(self) -> None:
        """Start what may start: VIP first, then quota priority, then in order of creation."""
        if self._closed:
            return
        blocked: set[int] = set()
        for task in sorted((t for t in self.tasks if t.status == WAITING and not t.pods), key=_turn):
            cluster = self.clusters[task.asked["virtual_cluster_id"]]
            if cluster.id in blocked:
                continue
            if (nodes := self._place(task, cluster)) is not None:
                self._begin(task, nodes)
                continue
            if task.vip and task.asked.get("preempt_policy") == 2:
                self._make_room(task, cluster)
            if not task.vip_nodes:
                blocked.add(cluster.id)  # first come, first served

    def _place(self, task: Task, cluster: Cluster) -> list[Node] | None:
        free = {node.name: node.skus for node in cluster.nodes if node.name not in self.lost_nodes}
        for name, used in self.used(cluster).items():
            if name in free:
                free[name] -= used
        if not task.vip:
            for name in self._reserved():
                free.pop(name, None)
        elif task.vip_nodes:
            free = {name: left for name, left in free.items() if name in task.vip_nodes}
        need = self.skus(task)
        chosen: list[Node] = []
        by_name = {node.name: node for node in cluster.nodes}
        for _ in range(int(task.asked["instances"])):
            fitting = [(left, name) for name, left in free.items() if left >= need]
            if not fitting:
                return None
            _, best = min(fitting)
            free[best] -= need
            chosen.append(by_name[best])
        return chosen

    def _reserved(self) -> set[str]:
        return {name for t in self.tasks if t.vip and t.status not in ENDED for name in t.vip_nodes}

    def _make_room(self, vip: Task, cluster: Cluster) -> None:
        """Kill running low-priority tasks, the youngest first, until the VIP task would fit."""
        lower = [
            t
            for t in self.tasks
            if t.active
            and not t.vip
            and t.stop_why == ""
            and t.asked["virtual_cluster_id"] == cluster.id
            and (not vip.vip_nodes or any(pod.node.name in vip.vip_nodes for pod in t.pods))
        ]
        needed = self.skus(vip) * int(vip.asked["instances"])
        for victim in sorted(lower, key=lambda t: -t.started_at):
            if needed <= 0:
                break
            needed -= self.skus(victim) * len(victim.pods)
            victim.stop_why = "preemption"
            victim.stop_user = vip.user if self.switches.victim_names_its_killer else None
            if victim.foreign:
                self._end(victim, self.switches.victim_status)
            else:
                self._take_down(victim)

    # ------------------------------------------------------------ a task's life

    def _dispatch_as_training(self, task: Task) -> None:
        task.id = self._next("training")
        self.trainings[task.id] = task

    def _begin(self, task: Task, nodes: list[Node]) -> None:
        if not task.id:
            self._dispatch_as_training(task)
        tail = "".join(self._random.choices(string.ascii_lowercase, k=5))
        task.pods = [
            Pod(self._next("pod"), f"u-{task.user.id}-{task.id}-{rank}-{tail}", node, created_at=now_ms())
            for rank, node in enumerate(nodes)
        ]
        self._note(task)
        run = asyncio.get_running_loop().create_task(self._run(task))
        self._running.add(run)
        run.add_done_callback(self._running.discard)

    async def _run(self, task: Task) -> None:
        """One execution, from its pods to its end."""
        await asyncio.sleep(self.machine.real_s(self.switches.start_s))
        if self._closed:
            return
        if task.stop_why == "node loss":
            self._wait_again(task)  # nothing has started: its pods are made elsewhere
            return
        if task.stop_why or task.status in ENDED:
            self._after(task, ())
            return
        if not task.foreign:
            for rank in range(len(task.pods)):
                task.containers.append(await self._container(task, rank))
        task.status, task.started_at = RUNNING, now_ms()
        for pod in task.pods:
            pod.status, pod.started_at = "Running", task.started_at
        self._note(task)
        if task.foreign:
            return
        task.execution = Execution(
            task.name,
            f"quota {task.quota_id}" if task.quota_id else f"training {task.id}",
            task.created_by,
            task.started_at,
        )
        self.executions.append(task.execution)
        self._take_down_if_asked(task)
        self._after(task, await self._codes(task))

    async def _codes(self, task: Task) -> tuple[int, ...]:
        """Exit codes by rank; the first failure ends the others."""
        waits = [asyncio.ensure_future(container.wait()) for container in task.containers]
        for done in asyncio.as_completed(waits):
            if await done != 0:
                for container in task.containers:
                    container.kill()
        return tuple(wait.result() for wait in waits)

    async def _container(self, task: Task, rank: int) -> Container:
        env = {each["key"]: each["value"] for each in task.asked["envs"] or ()}
        if task.asked["framework"] == "PyTorchJob":
            env |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(task.pods)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "23456",
            }
        return await self.machine.start(task.pods[rank].name, task.asked["command"], env)

    def _take_down_if_asked(self, task: Task) -> None:
        """A stop can come while the processes are being made."""
        if task.stop_why:
            self._take_down(task)

    def _take_down(self, task: Task) -> None:
        if not task.containers:
            if task.foreign:
                self._end(task, STOPPED)
            return  # _run sees why before it starts anything
        grace_s = self.machine.real_s(self.switches.grace_s)
        for container in task.containers:
            ending = asyncio.get_running_loop().create_task(container.stop(grace_s))
            self._running.add(ending)
            ending.add_done_callback(self._running.discard)

    def _after(self, task: Task, codes: tuple[int, ...]) -> None:
        """What becomes of a task whose processes have ended, or were never made."""
        if task.execution is not None:
            task.execution.ended_ms, task.execution.exit_codes = now_ms(), codes
            task.execution.ended_by = task.stop_why or "itself"
        why, switches = task.stop_why, self.switches
        if self._closed:
            return
        if why.startswith("stop"):
            self._end(task, STOPPED)
        elif why == "preemption":
            self._end(task, switches.victim_status)
        elif why.startswith("restart") or (why == "node loss" and switches.lost_node_status == WAITING):
            self._wait_again(task)
        elif why == "node loss":
            self._end(task, FAILED)
        else:
            self._end(task, SUCCEEDED if not any(codes) else FAILED)

    def _end(self, task: Task, status: int) -> None:
        ended_ms = task.execution.ended_ms if task.execution is not None else None
        task.status, task.finished_at = status, ended_ms or now_ms()
        for pod in task.pods:
            pod.finished_at = task.finished_at
            pod.status = {SUCCEEDED: "Succeeded", FAILED: "Failed"}.get(status, "Deleted")
        self._note(task)
        self.schedule()

    def _wait_again(self, task: Task) -> None:
        task.pods, task.containers, task.execution = [], [], None
        task.status, task.started_at, task.stop_why, task.stop_user = WAITING, 0, "", None
        if task.quota_id:
            task.earlier_mtp.append(task.id)
            task.id = 0
        self._note(task)
        self.schedule()

    # ------------------------------------------------------------ the rest

    def _next(self, what: str) -> int:
        self._ids[what] += 1
        return self._ids[what]

    def _note(self, task: Task) -> None:
        """Keep what a stale read shows later."""
        task.history.append((now_ms(), state_of(task)))

    async def aclose(self) -> None:
        """End every process, and wait until they have ended: what is left open would be told later."""
        self._closed = True
        while self._running:
            for task in self.tasks:
                for container in task.containers:
                    container.kill()
            await asyncio.wait(self._running, timeout=0.05)


def state_of(task: Task) -> dict[str, Any]:
    """What changes in a task's life."""
    return {
        "status": task.status,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "mtp_id": task.id,
        "stop_op_user": task.stop_user,
    }


def _turn(task: Task) -> tuple[bool, int, int, int]:
    return (not task.vip, -int(task.asked.get("priority", 1)), task.created_at, task.created_by)
