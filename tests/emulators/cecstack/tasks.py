"""Tasks of the emulated CECSTACK: slm trainings (chapter 11) and maas tasks of five kinds (chapter 7).

What belongs here: their two-phase life, the queue for packages, and every execution as it truly was.
What does not: HTTP (server.py) and processes (processes.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.emulators.cecstack import wire
from tests.emulators.cecstack.packages import Package, Packages
from tests.emulators.cecstack.wire import Failure, may, must
from tests.emulators.processes import Container, Machine

KINDS: Final = ("pt", "sft", "dpo", "rw", "ppo")
ACTIVE: Final = ("Pending", "Running")
SLM = {
    **must(int, "projectId", "project_id"),
    **must(str, "name", "maas_task_type", "billing_mode", "images", "command", "spec_type"),
    **must(str, "resourceId", "node_selector", "expand"),
    **may(str, "label", "resource_id"),
}
MAAS = {
    **must(str, "jobname", "name", "label", "billing_mode", "spec_type", "node_selector", "resource_id"),
    **must(str, "framework", "framework_template", "ft_type", "level", "advanced_mode", "dataset_ids"),
    **must(str, "args", "framework_config"),
    **must(int, "storage_type", "workers", "aihub_id", "projectId", "maas"),
    **may(int, "project_id", "maas_task_parent_id", "lab_id"),
    **may(str, "resourceId", "bill_gui", "model_path", "model_type"),
}
CONTAINER = must(int, "project") | must(str, "name", "describe")


@dataclass(slots=True)
class Execution:
    """The ground truth of one execution of a task: when, by which request, and how it ended."""

    task: int
    name: str
    number: int  # of the task's executions, from 1
    by: int  # number of the request that asked for it
    started: float
    ended: float | None = None
    outcome: str = ""
    exit_code: int | None = None


@dataclass(slots=True)
class Task:
    id: int
    kind: str
    body: dict[str, Any]
    project: int
    package: Package
    workers: int
    created: float
    changed: float
    maas: int | None = None
    deleted: bool = False
    run_at: float | None = None
    run_by: int = 0
    runs: int = 0
    containers: list[Container] = field(default_factory=list)
    stopping: bool = False
    execution: Execution | None = None
    history: list[tuple[float, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.body["name"])

    @property
    def status(self) -> str:
        return self.history[-1][1]

    def status_at(self, at: float) -> str:
        """What the platform's tracking knows at a moment."""
        return next((status for since, status in reversed(self.history) if since <= at), "")


class Tasks:
    """All tasks of an account.  A second run of an active task starts it anew, as its relatives do."""

    def __init__(self, clock: Callable[[], float], packages: Packages, machine: Machine) -> None:
        self.all: dict[int, Task] = {}
        self.containers: dict[int, dict[str, Any]] = {}  # level 1: maas id -> record
        self.executions: list[Execution] = []
        self.clock = clock
        self.queue_s = 2.0  # between a run and its start at the earliest
        self.status_lag_s = 0.0
        self.grace_s = 5.0
        self.recipe_s = 30.0  # how long a maas task takes
        self.rerun_is_error = False
        self.status_form = "plain"  # or "html": status empty, final_status as HTML
        self._packages = packages
        self._machine = machine
        self._next = 1
        self._closed = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._lives: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ records

    def container(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Level 1: a large-model task that others are created in."""
        id, self._next = self._next, self._next + 1
        self.containers[id] = {"id": id, "type": kind, **body}
        return {"describe": body["describe"], "id": id, "name": body["name"], "project": body["project"]}

    def drop_container(self, id: int) -> dict[str, Any]:
        record = self.containers.pop(id, None)
        if record is None:
            raise Failure(f"maas {id} does not exist", status=404)
        return {**record, "describe": f"{record['describe']}(废弃)", "run_id": None}

    def create(self, kind: str, body: dict[str, Any]) -> Task:
        maas = body.get("maas")
        if kind != "slm" and maas not in self.containers:
            raise Failure(f"maas {maas} does not exist", status=404)
        resource = body.get("resourceId") or body.get("resource_id")
        project = body["projectId"]
        package = self._packages.usable(str(resource), project)
        now = self.clock()
        id, self._next = self._next, self._next + 1
        task = Task(id, kind, body, project, package, body.get("workers", 1), now, now, maas)
        task.history.append((now, ""))
        self.all[id] = task
        return task

    def edit(self, task: Task, body: dict[str, Any]) -> None:
        if task.status in ACTIVE:
            raise Failure(f"task {task.id} is {task.status}")
        task.body, task.changed = body, self.clock()

    def get(self, kind: str, id: int) -> Task:
        task = self.all.get(id)
        if task is None or task.deleted or task.kind != kind:
            raise Failure("Not found", status=404)
        return task

    def listed(self, kind: str, filters: list[dict[str, Any]]) -> list[Task]:
        """Those of a kind that are not deleted, newest first."""
        rows = [t for t in self.all.values() if t.kind == kind and not t.deleted]
        for wanted in filters:
            match wanted:
                case {"col": "maas", "opr": "rel_o_m", "value": str(value)}:
                    rows = [t for t in rows if str(t.maas) == value]
                case {"col": "name", "opr": "eq", "value": str(value)}:
                    rows = [t for t in rows if t.name == value]
                case _:
                    raise Failure(f"filter {wanted!r} is not understood", status=400)
        return rows[::-1]

    def record(self, task: Task, *, at: float, related: bool = False) -> dict[str, Any]:
        """A task as detail shows it, or a list with `str_related`; `at`: as the tracking knew it then."""
        status = task.status_at(at - self.status_lag_s)
        running = task.execution if status not in ("", "Pending") else None
        ended = running.ended if running is not None else None
        spent = (ended or at) - running.started if running is not None else None
        shape = task.package
        gpu = f"{shape.gpus}({shape.product})" if shape.gpus else "0"
        maas = self.containers.get(task.maas or 0, {})
        if self.status_form == "html":
            shown = {"status": "", "final_status": f"<b>{status}</b>" if status else wire.UNKNOWN_HTML}
        else:
            shown = {"status": status, "final_status": status or wire.UNKNOWN_HTML}
        return {
            **{k: v for k, v in task.body.items() if k not in ("projectId", "resourceId", "jobname")},
            **shown,
            "id": task.id,
            "maas_task_type": task.kind,
            "maas": maas.get("name", "") if related else {**maas, "status": ""},
            "maas_id": task.maas,
            "project_id": task.project,
            "resource_id": shape.resource_id,
            "resource_cpu": str(shape.cpu),
            "resource_gpu": gpu,
            "resource_memory": f"{shape.memory_gib}G",
            "workers": task.workers,
            "retry": 0,
            "advanced_mode": "close",
            "batch_size": 4,
            "epoch": 3,
            "exclusive": "",
            "output_dir": f"/mnt/workspace/maas/{task.kind}/{task.maas}/{task.id}" if task.maas else "",
            "volume_mount": "kubeflow-user-workspace(pvc):/mnt",
            "elapsed_time": wire.elapsed(spent),
            "percentage": "--",
            "last_run_time": wire.local(running.started if running is not None else None),
            "lock_status": 0,
            "created_on": wire.iso(task.created),
            "changed_on": wire.iso(task.changed),
        }

    # ------------------------------------------------------------ life

    def run(self, task: Task, *, by: int) -> None:
        """Queue the task; an active one is ended first and starts from zero."""
        if task.status in ACTIVE:
            if self.rerun_is_error:
                raise Failure(f"task {task.id} is {task.status} already")
            self._end(task, "Terminated", None)
        task.run_at, task.run_by = self.clock(), by
        task.runs += 1
        self._say(task, "Pending")
        self._later(self.queue_s, self.turn)

    def stop(self, task: Task) -> None:
        """Of a task that was never run nothing changes; one that runs has its grace."""
        if task.status == "Pending":
            self._end(task, "Terminated", None)
        elif task.status == "Running" and not task.stopping:
            task.stopping = True
            if not task.containers:  # it is being started this moment
                self._end(task, "Terminated", None)
            for container in task.containers:
                life = asyncio.get_running_loop().create_task(container.stop(self.grace_s))
                self._lives.add(life)
                life.add_done_callback(self._lives.discard)

    def delete(self, task: Task) -> dict[str, Any]:
        if task.status in ACTIVE:
            self._end(task, "Terminated", None)
        task.deleted = True
        return {**self.record(task, at=self.clock()), "is_deleted": "true", "run_id": f"run-{task.id}"}

    def vanish(self, task: Task) -> None:
        """It is gone and runs no more, and nobody was told."""
        self.delete(task)

    def lose_node(self, task: Task) -> None:
        """The node under a running task dies."""
        if task.status == "Running":
            self._end(task, "Failed", None)

    def turn(self) -> None:
        """Start what waits and fits, in the order in which it was asked for."""
        if self._closed:
            return
        now = self.clock()
        waiting = [t for t in self.all.values() if t.status == "Pending" and t.run_at is not None]
        for task in sorted(waiting, key=lambda t: (t.run_at or 0, t.run_by)):
            package = task.package
            if now < (task.run_at or 0) + self.queue_s or package.free < task.workers:
                continue
            if package.ends is not None and package.ends <= now:
                self._say(task, "Failed")
                continue
            package.used += task.workers
            task.stopping = False
            number = sum(e.task == task.id for e in self.executions) + 1
            task.execution = Execution(task.id, task.name, number, task.run_by, now)
            self.executions.append(task.execution)
            self._say(task, "Running")
            life = asyncio.get_running_loop().create_task(self._live(task, task.execution))
            self._lives.add(life)
            life.add_done_callback(self._lives.discard)

    async def _live(self, task: Task, execution: Execution) -> None:
        env = {}
        command = f"sleep {self.recipe_s}"
        if task.kind == "slm":
            envs = json.loads(task.body["expand"])["trainWorkArgs"]["envs"]
            env = {each["key"]: each["value"] for each in envs}
            command = task.body["command"]
        container = await self._machine.start(f"{task.id}-{execution.number}", command, env)
        if execution.ended is not None or self._closed:  # ended while it was being started
            container.kill()
        task.containers = [container]
        code = await container.wait()
        if execution.ended is None:
            itself = "Failed" if code else "Succeeded"
            self._end(task, "Terminated" if task.stopping else itself, code)

    def _end(self, task: Task, status: str, exit_code: int | None) -> None:
        now = self.clock()
        execution = task.execution
        if task.status == "Running" and execution is not None:
            execution.ended, execution.outcome, execution.exit_code = now, status, exit_code
            task.package.used -= task.workers
            for container in task.containers:
                container.kill()
            task.containers = []
        self._say(task, status)
        self._later(0, self.turn)

    def _say(self, task: Task, status: str) -> None:
        task.history.append((self.clock(), status))
        task.changed = self.clock()

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            then()

        # a little more, so that the emulated time has really passed
        delay = self._machine.real_s(seconds) + 0.001
        timer = asyncio.get_running_loop().call_later(delay, fire)
        self._timers.add(timer)

    async def aclose(self) -> None:
        """Everything that runs is killed."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        for task in self.all.values():
            for container in task.containers:
                container.kill()
        while self._lives:
            await asyncio.wait(set(self._lives))
