"""Calls of the emulated CECSTACK about tasks and what they run on: packages, storage and projects.

What belongs here: chapters 4 to 7 (without evaluations), 9, 11 and 12.  What does not: what a task
does after its call (tasks.py).
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from tests.emulators.cecstack import records, tasks, wire
from tests.emulators.cecstack.desk import Desk, Route, not_there
from tests.emulators.cecstack.packages import BUY, LIST, RETURN, STORAGE_LIST
from tests.emulators.cecstack.tasks import KINDS, Task
from tests.emulators.cecstack.wire import Failure, Seen
from tests.emulators.faults import FAULT, Fault

STALE_S: Final = 4.0
"""How old a stale answer is, in emulated seconds."""


class TaskCalls:
    """See `routes`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        task = "/alpha/maas_task_modelview/{kind}/api"
        return [
            ("POST", "/v1/resource/list", "resource.list", self._packages),
            ("GET", "/v1/resource/detail/{id}", "resource.detail", self._package),
            ("POST", "/v1/resource", "resource.buy", self._buy),
            ("DELETE", "/v1/resource/{id}", "resource.giveback", self._return),
            ("POST", "/v1/storage/resource", "storage.buy", self._buy_storage),
            ("POST", "/v1/storage/resource/list", "storage.list", self._storage),
            ("GET", "/v1/project/page", "project.page", self._projects),
            ("POST", "/v1/project/insert", "project.insert", self._add_project),
            ("POST", "/v1/resource/project/related", "project.relate", self._relate),
            ("POST", "/v1/resource/project/unRelated", "project.unrelate", self._relate),
            ("DELETE", "/v1/project/delete", "project.delete", self._drop_project),
            ("POST", "/alpha/maas_modelview/{kind}/api/", "maas.create", self._add_container),
            ("DELETE", "/alpha/maas_modelview/{kind}/api/{id}", "maas.delete", self._drop_container),
            ("POST", f"{task}/", "task.create", self._add_task),
            ("GET", f"{task}/", "task.list", self._tasks),
            ("PUT", f"{task}/{{id}}", "task.edit", self._edit_task),
            ("GET", f"{task}/{{id}}", "task.detail", self._task),
            ("GET", f"{task}/maas_run/{{id}}", "task.run", self._run_task),
            ("GET", f"{task}/stop/{{id}}", "task.stop", self._stop_task),
        ]

    # ------------------------------------------------------------ packages

    async def _packages(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, LIST)
        rows = self._desk.packages.listed(self._desk.records.projects)
        return wire.page_a(seen.number, rows, num=body["pageNum"], size=body["pageSize"])

    async def _package(self, request: web.Request, seen: Seen) -> Any:
        id = request.match_info["id"]
        return wire.plain(seen.number, self._desk.packages.detail(id, self._desk.records.projects))

    async def _buy(self, request: web.Request, seen: Seen) -> Any:
        return wire.plain(seen.number, self._desk.packages.buy(self._desk.checked(seen, BUY), storage=False))

    async def _return(self, request: web.Request, seen: Seen) -> Any:
        self._desk.checked(seen, RETURN)
        return wire.plain(seen.number, self._desk.packages.give_back(request.match_info["id"]))

    async def _buy_storage(self, request: web.Request, seen: Seen) -> Any:
        return wire.plain(seen.number, self._desk.packages.buy(self._desk.checked(seen, BUY), storage=True))

    async def _storage(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, STORAGE_LIST)
        rows = [row for row in self._desk.packages.storage if row["name"] == body["name"]]
        return wire.page_a(seen.number, rows, num=body["pageNum"], size=body["pageSize"])

    # ------------------------------------------------------------ projects

    async def _projects(self, request: web.Request, seen: Seen) -> Any:
        page, size, _ = self._desk.paging(seen, related="str_relate", body_too=True)
        rows = self._desk.records.project_rows()
        return wire.plain(seen.number, wire.page_b(rows, page=page, size=size))

    async def _add_project(self, request: web.Request, seen: Seen) -> Any:
        self._desk.records.add_project(self._desk.checked(seen, records.PROJECT)["name"])
        return wire.plain(seen.number, True)

    async def _relate(self, request: web.Request, seen: Seen) -> Any:
        body = self._desk.checked(seen, records.RELATE)
        bind = seen.operation == "project.relate"
        changed = self._desk.packages.relate(body["resourceIds"], int(body["projectId"]), bind=bind)
        return wire.plain(seen.number, changed)

    async def _drop_project(self, request: web.Request, seen: Seen) -> Any:
        self._desk.records.drop_project(int(seen.query["id"]))
        return web.json_response(wire.plain(seen.number, True), status=500)  # as the sample has it

    # ------------------------------------------------------------ tasks

    def _kind(self, request: web.Request) -> str:
        kind = request.match_info["kind"]
        if kind not in ("slm", *KINDS):
            raise Failure("Not found", status=404)
        return kind

    def _asked(self, request: web.Request) -> Task:
        task = self._desk.tasks.get(self._kind(request), int(request.match_info["id"]))
        fault = request.get(FAULT)
        if fault is Fault.VANISHED_TASK:
            self._desk.tasks.vanish(task)
        elif fault is Fault.NODE_LOSS:
            self._desk.tasks.lose_node(task)
        return self._desk.tasks.get(task.kind, task.id)

    async def _add_container(self, request: web.Request, seen: Seen) -> Any:
        kind = request.match_info["kind"]
        if kind not in (*KINDS, "lab"):
            raise Failure("Not found", status=404)
        return wire.raw(
            seen.number, self._desk.tasks.container(kind, self._desk.checked(seen, tasks.CONTAINER))
        )

    async def _drop_container(self, request: web.Request, seen: Seen) -> Any:
        return wire.raw(seen.number, self._desk.tasks.drop_container(int(request.match_info["id"])))

    async def _add_task(self, request: web.Request, seen: Seen) -> Any:
        kind = self._kind(request)
        body = self._task_body(seen, kind)
        if request.get(FAULT) is Fault.DUPLICATE_NAME:
            raise Failure(f"name {body['name']} is in use", status=409)
        task = self._desk.tasks.create(kind, body)
        row = self._desk.tasks.record(task, at=self._desk.clock())
        for late in ("status", "final_status", "elapsed_time", "last_run_time", "percentage"):
            del row[late]  # a create does not answer with them
        return wire.inner(seen.number, row)

    def _task_body(self, seen: Seen, kind: str) -> dict[str, Any]:
        if kind == "slm":
            body = self._desk.checked(seen, tasks.SLM, "expand")
            if body["maas_task_type"] != "slm" or body["projectId"] != body["project_id"]:
                self._desk.complain(seen, "maas_task_type or project_id differs from what the path says")
            return body
        return self._desk.checked(seen, tasks.MAAS, "args", "framework_config", "dataset_ids")

    async def _edit_task(self, request: web.Request, seen: Seen) -> Any:
        kind = self._kind(request)
        task = self._desk.tasks.get(kind, int(request.match_info["id"]))
        self._desk.tasks.edit(task, self._task_body(seen, kind))
        return wire.inner(seen.number, self._desk.tasks.record(task, at=self._desk.clock()))

    def _row(self, task: Task, request: web.Request, *, related: bool) -> dict[str, Any]:
        stale = STALE_S if request.get(FAULT) is Fault.STALE_READ else 0.0
        row = self._desk.tasks.record(task, at=self._desk.clock() - stale, related=related)
        words = self._desk.site.unknown_words
        return {**row, "status": words.get(row["status"], row["status"])}

    async def _task(self, request: web.Request, seen: Seen) -> Any:
        if request.match_info["kind"] == "slm" and not self._desk.site.slm_detail:
            return not_there()
        row = self._row(self._asked(request), request, related=False)
        if request.match_info["kind"] != "slm":
            del row["final_status"]  # §7.4 has none
        return wire.raw(seen.number, row)

    async def _tasks(self, request: web.Request, seen: Seen) -> Any:
        kind = self._kind(request)
        if kind == "slm" and not self._desk.site.slm_list:
            return not_there()
        page, size, filters = self._desk.paging(seen, related="str_related")
        rows = self._desk.tasks.listed(kind, filters)
        active = [task for task in rows if task.status in tasks.ACTIVE]
        match request.get(FAULT):
            case Fault.VANISHED_TASK if active:
                self._desk.tasks.vanish(active[0])
                rows.remove(active[0])
            case Fault.NODE_LOSS if active:
                self._desk.tasks.lose_node(active[-1])
            case Fault.STALE_READ:
                rows = [task for task in rows if task.created <= self._desk.clock() - STALE_S]
        shown = [self._row(task, request, related=True) for task in rows]
        return wire.raw(seen.number, wire.page_b(shown, page=page, size=size))

    async def _run_task(self, request: web.Request, seen: Seen) -> Any:
        task = self._desk.tasks.get(self._kind(request), int(request.match_info["id"]))
        self._desk.tasks.run(task, by=seen.number)
        return wire.raw(seen.number, {})

    async def _stop_task(self, request: web.Request, seen: Seen) -> Any:
        task = self._desk.tasks.get(self._kind(request), int(request.match_info["id"]))
        if request.get(FAULT) is Fault.STOP_REFUSED:
            raise Failure(f"task {task.id} is being created", status=409)
        self._desk.tasks.stop(task)
        return wire.raw(seen.number, {})
