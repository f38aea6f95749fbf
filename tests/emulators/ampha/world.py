"""The computing side of an emulated Ampha center: groups of nodes, tasks, pods, and what really ran.

What belongs here: capacity, the queue, the life of a task, the ground truth.  What does not: paths,
envelopes and spellings (the other modules of the package).  The clock is the real one; every
duration that the platform itself takes is divided by `Settings.scale`.

Commands are understood as far as `sleep 20` and `exit 3`.  With `Settings.execute` they are run by
/bin/sh instead.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import re
import string
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.emulators.ampha.parts import Execution, Group, Need, Node, Pod, Settings, State, Task

START_MS = 1_700_000_000_000
RESOURCE_GROUP_DOWN = (
    "该任务资源组不可用，建议新建任务重新选择资源组后将checkpoint文件拷贝至输出目录下进行恢复"
)


class World:
    """All groups and tasks of a center.  Call `advance()` before looking at anything."""

    def __init__(self, settings: Settings, groups: list[Group], folder: Path | None = None) -> None:
        self.settings = settings
        self.groups = groups
        self.tasks: dict[str, Task] = {}
        self.executions: list[Execution] = []
        self.gone: list[Task] = []  # deleted or vanished
        self.records: list[tuple[int, dict[str, Any], str]] = []  # metering: visible_ms, record, user
        self.priority: dict[str, str] = {}  # user id -> high, middle, low
        self.random = random.Random(settings.seed)
        self._folder = folder
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._now: int | None = None

    # ------------------------------------------------------------ time

    def now(self) -> int:
        """Milliseconds: the moment an event happens, else the real clock."""
        return self._now if self._now is not None else int(time.time() * 1000)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """`seconds` of the platform's own time from now."""
        at = self.now() + int(seconds * 1000 / self.settings.scale)
        heapq.heappush(self._heap, (at, next(self._numbers), act))

    def takes(self, span: tuple[float, float]) -> float:
        return self.random.uniform(*span)

    def advance(self) -> None:
        """Carry out all that should have happened by now."""
        real = int(time.time() * 1000)
        while self._heap and self._heap[0][0] <= real:
            at, _, act = heapq.heappop(self._heap)
            self._now = at
            act()
        self._now = None
        if self.settings.execute:
            self._reap()

    def hex(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def letters(self, count: int) -> str:
        return "".join(self.random.choice(string.ascii_lowercase + string.digits) for _ in range(count))

    # ------------------------------------------------------------ tasks

    def create(self, body: dict[str, Any], store: str, user: str, group: Group, by: str) -> Task:
        """A new task at the end of the queue."""
        item = body["resource"][0]
        gpu = item.get("gpuResource") or {}
        need = Need(
            cores=item["cpuNumber"],
            memory_gib=item.get("memory", 0),
            cards=gpu.get("gpuNum", 0),
            share=gpu.get("gpuShare", "none"),
            profile=gpu.get("migRes", ""),
            card_memory_mib=gpu.get("gpuMem", 0),
            percent=gpu.get("gpuCores", 100) or 100,
        )
        name = body["name"]
        if self.settings.suffix_names:
            name += "-" + self.letters(8)
        lag_ms = int(self.takes(self.settings.list_lag_s) * 1000 / self.settings.scale)
        now = self.now()
        task = Task(
            id=self.hex(),
            uid=self.uuid(),
            name=name,
            store=store,
            body=body,
            user=user,
            group=group,
            need=need,
            numbers=item["numbers"],
            created_ms=now,
            visible_ms=now + lag_ms,
            by=by,
            seq=next(self._numbers),
        )
        self.tasks[task.id] = task
        self._to(task, State.PENDING)
        self.schedule()
        return task

    def _to(self, task: Task, state: State) -> None:
        task.state, task.since_ms = state, self.now()
        task.history.append((self.now(), state))

    def _in(self, task: Task, seconds: float, act: Callable[[], None]) -> None:
        """Like `later`, unless the task has gone on to another life by then."""
        epoch = task.epoch
        self.later(seconds, lambda: act() if task.epoch == epoch and task.id in self.tasks else None)

    def queue(self, group: Group) -> list[Task]:
        """Waiting tasks of a group in the order in which they are served."""
        ranks = {"high": 0, "middle": 1, "low": 2}
        waiting = [t for t in self.tasks.values() if t.group is group and t.state is State.PENDING]
        return sorted(
            waiting,
            key=lambda t: (
                not (t.urgent and self.settings.urgent_jumps),
                ranks[self.priority.get(t.user, "middle")],
                t.seq,
            ),
        )

    def schedule(self) -> None:
        """Start the heads of the queues while all their instances fit."""
        for group in self.groups:
            for task in self.queue(group):
                nodes = self.places(task)
                if nodes is None:
                    break  # the queue is first in, first out
                self._place(task, nodes)

    def places(self, task: Task) -> list[Node] | None:
        """A node for each instance, or None."""
        if task.group.status != 1:
            return None
        chosen: list[Node] = []
        try:
            for _ in range(task.numbers):
                fitting = [n for n in task.group.nodes if n.status == 1 and self._fits(n, task)]
                if not fitting:
                    return None
                node = min(fitting, key=lambda n: (n.free()[2], n.free()[0], n.name))
                node.used.append((task.id, task.need))
                chosen.append(node)
        finally:
            for node in chosen:
                node.used.remove((task.id, task.need))
        return chosen

    @staticmethod
    def _fits(node: Node, task: Task) -> bool:
        need = task.need
        cores, memory, cards = node.free()
        if cores < need.cores or memory < need.memory_gib:
            return False
        if need.share == "mig":
            return node.profiles().get(need.profile, 0) >= need.cards
        if need.share == "vgpu":
            return cards >= need.cards * need.percent / 100 and node.card_memory_mib >= need.card_memory_mib
        return cards >= need.cards

    def _place(self, task: Task, nodes: list[Node]) -> None:
        prefix = "to" if task.store == "trainOperator" else "llm"
        squeezed = re.sub(r"[^a-z0-9]", "", task.name.lower())
        stem = f"{prefix}-{self.letters(8)}{squeezed}{self.letters(4)}"
        kinds = [str(i.get("nodeType", "Node")).lower() for i in task.body["resource"]]
        first = "master" if kinds == ["master"] else "worker"
        self._to(task, State.CREATING)
        image = str(task.body.get("image", ""))
        slowest = self.settings.cached_pull_s
        for rank, node in enumerate(nodes):
            node.used.append((task.id, task.need))
            kind, number = (first, 0) if rank == 0 else ("worker", rank - (first == "master"))
            pod = Pod(self.hex(), self.uuid(), f"{stem}-{kind}-{number}", node, kind, rank)
            pod.events.append((self.now(), f"Successfully assigned default/{pod.name} to {node.name}"))
            pod.events.append((self.now(), f'Pulling image "{image}"'))
            if image not in node.images:
                slowest = max(slowest, self.takes(self.settings.pull_s))
                node.images.add(image)
            task.pods.append(pod)
        self._in(task, slowest, lambda: self._run(task))

    def _run(self, task: Task) -> None:
        self._to(task, State.RUNNING)
        task.started_ms = self.now()
        task.execution = Execution(task.id, task.name, task.by, self.now())
        self.executions.append(task.execution)
        for pod in task.pods:
            if pod.ended_ms is None:
                pod.started_ms, pod.status = self.now(), 1
                for word in (
                    "Successfully pulled image",
                    "Created container pytorch",
                    "Started container pytorch",
                ):
                    pod.events.append((self.now(), word))
                pod.lines.append("start")
        if self.settings.execute:
            self._launch(task)
            return
        failed = task.says("exit", 0) != 0
        self._in(task, task.says("sleep", 60), lambda: self._finish(task, failed))

    def _finish(self, task: Task, failed: bool) -> None:
        if failed and task.body.get("autoRecovery") == 1 and task.retries < 3:
            task.retries += 1
            self._close(task, "restarted")
            task.epoch += 1
            self._free(task)
            task.pods.clear()
            self._to(task, State.PENDING)
            self.schedule()
            return
        self.end(task, State.FAILED if failed else State.SUCCEEDED)

    def _close(self, task: Task, how: str) -> None:
        if task.execution is not None:
            task.execution.ended_ms, task.execution.how = self.now(), how
            task.execution = None

    def _free(self, task: Task) -> None:
        for node in task.group.nodes:
            node.used = [(id, need) for id, need in node.used if id != task.id]

    def end(self, task: Task, state: State, reason: str = "") -> None:
        """The task ends here and now; what it had is free."""
        if task.state.ended:
            return
        ran = task.state is State.RUNNING
        self._to(task, state)
        self._close(task, reason or state.value)
        task.ended_ms = self.now()
        task.epoch += 1
        self._free(task)
        for pod in task.pods:
            if pod.ended_ms is None:
                self._kill(pod)
                pod.ended_ms = self.now()
                pod.status = {State.SUCCEEDED: 2}.get(state, 3)
                pod.reason = reason or ("Error" if state is State.FAILED else "")
            if ran:
                self._meter(task, pod)
        self.schedule()

    def stop(self, task: Task) -> None:
        """A stop was asked for: the task ends some seconds later."""
        task.stops += 1
        if task.stopping:
            return
        task.stopping = True
        if task.state is State.PENDING:
            self.end(task, State.TERMINATED)
            return
        for pod in task.pods:
            if pod.process is not None and pod.process.poll() is None:
                pod.process.terminate()
        self._in(task, self.takes(self.settings.stop_s), lambda: self.end(task, State.TERMINATED))

    def resume(self, task: Task, by: str) -> None:
        """A stopped or failed task goes on from its checkpoint, as itself."""
        task.epoch += 1
        task.by, task.stopping, task.ended_ms = by, False, None
        task.pods = []
        task.seq = next(self._numbers)
        self._to(task, State.PENDING)
        self.schedule()

    def forget(self, task: Task, how: str = "deleted") -> None:
        """It is not in any list any more, and does not run."""
        if not task.state.ended:
            self.end(task, State.TERMINATED, reason=how)
        self.tasks.pop(task.id, None)
        self.gone.append(task)

    def lose_node(self, node: Node, *, for_s: float = 120) -> None:
        """A machine dies under whatever runs on it; it comes back by itself."""
        node.status = 3
        self.later(for_s, lambda: self._back(node))
        for id in {id for id, _ in node.used}:
            if id in self.tasks:
                self.end(self.tasks[id], State.FAILED, reason="NodeLost")

    def _back(self, node: Node) -> None:
        node.status = 1
        self.schedule()

    def _meter(self, task: Task, pod: Pod) -> None:
        """A metering record, some time after the end."""
        if pod.started_ms is None or pod.ended_ms is None:
            return
        record = {"task": task, "pod": pod, "start_ms": pod.started_ms, "end_ms": pod.ended_ms}
        delay_ms = int(self.takes(self.settings.metering_s) * 1000 / self.settings.scale)
        self.records.append((self.now() + delay_ms, record, task.user))

    # ------------------------------------------------------------ real commands

    def _launch(self, task: Task) -> None:
        assert self._folder is not None, "commands that are run need a folder for their output"
        for pod in task.pods:
            pod.out = self._folder / f"{pod.name}.log"
            variables = {
                "PATH": os.environ["PATH"],
                "RANK": str(pod.rank),
                "WORLD_SIZE": str(task.numbers),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "23456",
                "HOSTNAME": pod.name,
                **{v["name"]: v["value"] for v in task.body.get("variable", [])},
            }
            with pod.out.open("wb") as out:
                pod.process = subprocess.Popen(
                    ["/bin/sh", "-c", task.body["command"]],
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    env=variables,
                    cwd=self._folder,
                    start_new_session=True,
                )

    def _reap(self) -> None:
        for task in [t for t in self.tasks.values() if t.state is State.RUNNING]:
            codes = [pod.process.poll() for pod in task.pods if pod.process is not None]
            if task.stopping:
                if all(code is not None for code in codes):
                    self.end(task, State.TERMINATED)
            elif any(codes):
                self.end(task, State.FAILED)
            elif codes and all(code == 0 for code in codes):
                self.end(task, State.SUCCEEDED)

    @staticmethod
    def _kill(pod: Pod) -> None:
        """As a container ends: with everything in it."""
        if pod.process is None or pod.process.poll() is not None:
            return
        first = psutil.Process(pod.process.pid)
        stopped: dict[int, psutil.Process] = {}
        found = [first]
        while new := [process for process in found if process.pid not in stopped]:
            for process in new:  # or it starts another one meanwhile
                stopped[process.pid] = process
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            found = first.children(recursive=True)
        for process in stopped.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        pod.process.wait()

    def close(self) -> None:
        """End whatever still runs as a process."""
        for task in self.tasks.values():
            for pod in task.pods:
                self._kill(pod)

    # ------------------------------------------------------------ what tests read

    def lines(self, pod: Pod, task: Task) -> list[str]:
        """A pod's log so far."""
        if pod.out is not None:
            text = pod.out.read_text(errors="replace") if pod.out.exists() else ""
            return text.split("\n")[: text.count("\n") + (not text.endswith("\n") and bool(text))]
        grown = list(pod.lines)
        if pod.started_ms is not None:
            end = pod.ended_ms or self.now()
            steps = int((end - pod.started_ms) / 1000 * self.settings.scale)
            grown += [f"step {number}" for number in range(1, min(steps, 5000) + 1)]
        return grown

    def alive(self) -> Iterator[Execution]:
        return (e for e in self.executions if e.ended_ms is None)
