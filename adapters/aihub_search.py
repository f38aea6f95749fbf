"""Finding the task that a create with a lost answer may have left at an AIHub.

Here: what can be looked at, and what has been.  Not here: what a finding leads to (broker.track).

The platform has no list.  Two things can show that a task of a run's unique name is there:

* node_tasks, which name what occupies nodes; their ids are text and may be a training's or a quota
  task's (配额任务), so the detail of that id has the last word
* the details of ids near those that are known: ids are whole numbers per service, and a create that
  arrived got one soon after the highest id known then

A match of the exact name proves it; no match proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.aihub_services import Service, Services
from adapters.aihub_tasks import TaskId, detail
from broker.adapter import Denied, Refused
from broker.core.model import RemoteId, RunId

AHEAD = 8
"""Ids looked at beyond the highest known one."""
BACK = 64
"""Ids looked at below it when it is not known where the search for a run begins: after a restart."""
AT_ONCE = 16
"""Details read in one search."""
AGAIN_S = 5.0
"""An id beyond the highest known one that nobody had is not asked for again before this."""
GAP_S = 60.0
"""And one below it."""
REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a create went, and the highest id known there when it left."""

    service: Service
    floor: int


class Search:
    """What is known of a center's ids.  `learn` is told every detail that is read; `usual` is where
    jobs that are not VIP go."""

    def __init__(
        self,
        services: Services,
        learn: Callable[[TaskId, Mapping[str, Any]], None],
        *,
        usual: Service,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._learn = learn
        self._usual = usual
        self._clock = clock
        self._sent: dict[RunId, Sent] = {}
        self._names: dict[TaskId, str] = {}
        self._tasks: dict[str, TaskId] = {}
        self._nobody: dict[TaskId, float] = {}  # when an id was asked for and nobody had it
        self._highest: dict[Service, int] = {}

    def sent(self, run: RunId, service: Service) -> None:
        """A create leaves now."""
        self._sent[run] = Sent(service, self._highest.get(service, 0))
        trim(self._sent)

    def known(self, task: TaskId, name: str) -> None:
        """A task and its name, however they became known."""
        self._names[task] = name
        self._nobody.pop(task, None)
        self._highest[task.service] = max(task.number, self._highest.get(task.service, 0))
        if name:
            self._tasks[name] = task
        trim(self._names)
        trim(self._tasks)

    def named(self, run: RunId) -> TaskId | None:
        """The task of a run, where it has become known."""
        return self._tasks.get(run)

    async def find(self, run: RunId, services: Sequence[Service], ids: Collection[str]) -> RemoteId | None:
        """Look for a run.  `ids`: those under which node_tasks name it.  Raises adapter errors."""
        if (known := self.named(run)) is not None:
            return known.remote
        sent = self._sent.get(run)
        wanted = [sent.service] if sent is not None else list(services)
        for service in wanted:
            for id in ids:
                if id.isdecimal() and await self._is(TaskId(service, int(id)), run):
                    return TaskId(service, int(id)).remote
        for service in wanted:
            if (near := await self._near(run, service, sent)) is not None:
                return near.remote
        return None

    async def _near(self, run: RunId, service: Service, sent: Sent | None) -> TaskId | None:
        reads = 0
        for number in self._candidates(service, sent.floor if sent is not None else 0):
            task = TaskId(service, number)
            if task in self._names or not self._due(task):
                continue
            if await self._is(task, run):
                return task
            reads += 1
            if reads == AT_ONCE:
                break
        return None

    def _candidates(self, service: Service, floor: int) -> Iterator[int]:
        """Ids to look at, the likeliest first.  Nothing, where nothing is known of the service's ids."""
        if not (known := self._highest.get(service, 0)):
            return
        number = (floor or known) + 1
        while number <= self._highest[service] + AHEAD:  # which grows as ids become known
            yield number
            number += 1
        if not floor:
            yield from range(known - 1, max(0, known - BACK), -1)

    def _due(self, task: TaskId) -> bool:
        """Whether to ask for an id (again): one below the highest known that nobody has is a gap."""
        asked = self._nobody.get(task)
        pause_s = AGAIN_S if task.number > self._highest.get(task.service, 0) else GAP_S
        return asked is None or self._clock() - asked >= pause_s

    async def _is(self, task: TaskId, run: RunId) -> bool:
        """Whether the task of this id has the run's name."""
        operation = "search_quota_task" if task.service is Service.QUOTA else "search_training"
        try:
            found = detail(await self._services.read(task.service, task.path, operation), task)
        except (Refused, Denied):  # there is none, or it is somebody else's that may not be seen
            self._nobody[task] = self._clock()
            trim(self._nobody)
            return False
        self._learn(task, found)
        name = str(found.get("name"))
        if task.service is Service.TRAINING and self._usual is Service.QUOTA and not found.get("is_vip"):
            name = ""  # the training behind a quota task: that one is what we made
        self.known(task, name)
        return name == run


def trim(remembered: dict[Any, Any]) -> None:
    """Forget the oldest beyond REMEMBERED."""
    while len(remembered) > REMEMBERED:
        remembered.pop(next(iter(remembered)))
