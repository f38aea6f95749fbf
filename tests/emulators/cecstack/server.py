"""The emulated CECSTACK as a server: what every request goes through, and the log of all of them.

What belongs here: listening, the log, region, signature and headers, failures as answers.  What does
not: what a call does (task_calls.py, service_calls.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from aiohttp import web

from tests.emulators.cecstack import wire
from tests.emulators.cecstack.desk import SEEN, Answer, Desk, Site
from tests.emulators.cecstack.packages import Package, Packages
from tests.emulators.cecstack.records import Records
from tests.emulators.cecstack.service_calls import ServiceCalls
from tests.emulators.cecstack.task_calls import TaskCalls
from tests.emulators.cecstack.tasks import Task, Tasks
from tests.emulators.cecstack.wire import BASE, Clock, Failure, Seen
from tests.emulators.faults import FAULT, Fault, Faults
from tests.emulators.processes import Machine

ONLY: Final = {
    Fault.STALE_READ: ("task.list", "task.detail"),
    Fault.VANISHED_TASK: ("task.list", "task.detail"),
    Fault.NODE_LOSS: ("task.list", "task.detail"),
    Fault.DUPLICATE_NAME: ("task.create",),
    Fault.STOP_REFUSED: ("task.stop",),
    Fault.EXPIRED_SESSION: (),
}
WITH_REQUEST_INFO: Final = frozenset(
    {
        *("resource.list", "storage.list", "resource.giveback", "service.debug"),
        *("project.insert", "project.relate", "project.unrelate", "project.delete"),
        *(f"evaluation.{word}" for word in ("save", "start", "stop", "delete", "detail")),
    }
)
"""Operations whose text in the document has requestInfo; so have those of maas tasks but the run."""


class Cecstack:
    """`async with Cecstack(folder) as platform`: a server at `platform.url` until the end.

    A project and a package may be there from the start; see `add`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        speed: float = 20.0,
        seed: int = 0,
        site: Site | None = None,
        began: float | None = None,
    ) -> None:
        self.site = site or Site()
        self.clock = Clock(speed) if began is None else Clock(speed, began)
        self.faults = Faults(seed=seed, slow_s=0.2, only=ONLY)
        self.packages = Packages(self.clock, self.site.region)
        self.tasks = Tasks(self.clock, self.packages, Machine(folder, speed=speed))
        self.records = Records(self.clock, self.packages)
        self.project = self.records.add_project("broker")
        self._desk = Desk(self.site, self.clock, self.packages, self.tasks, self.records)
        self.seen: list[Seen] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    @property
    def complaints(self) -> list[str]:
        """Requests that differ from the document, each with its number and what is wrong."""
        return self._desk.complaints

    def add(self, resource_id: str, **facts: Any) -> Package:
        """A package that is associated with the project."""
        return self.packages.add(resource_id, projects={self.project}, **facts)

    def task(self, name: str) -> Task:
        (task,) = [t for t in self.tasks.all.values() if t.name == name]
        return task

    async def __aenter__(self) -> Cecstack:
        app = web.Application(middlewares=[self._log, self.faults.middleware, self._gate])
        for method, path, operation, answer in (
            *TaskCalls(self._desk).routes(),
            *ServiceCalls(self._desk).routes(),
        ):
            app.router.add_route(method, BASE + path, self._answering(answer), name=operation)
        for path in ("/alpha/maas_task_modelview/{kind}/api", "/alpha/maas_modelview/{kind}/api"):
            app.router.add_route("*", BASE + path, self._slash)
        for path in ("/alpha/images_modelview/api", "/v1/inferenceservice_modelview/api"):
            app.router.add_route("*", BASE + path, self._slash)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.tasks.aclose()
        if self._runner is not None:
            await self._runner.cleanup()

    # ------------------------------------------------------------ what every request goes through

    @web.middleware
    async def _log(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        seen = Seen(
            number=len(self.seen) + 1,
            operation=request.match_info.route.name or "",
            method=request.method,
            path=request.path,
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            text=(await request.read()).decode(),
        )
        self.seen.append(seen)
        request[SEEN] = seen
        answer = await handler(request)
        seen.spoilt = FAULT in request
        return answer

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        seen = request[SEEN]
        try:
            if not seen.operation:
                return await handler(request)
            self._admit(seen, request)
            return await handler(request)
        except Failure as error:
            seen.done = False
            in_body = self.site.failures_in_body
            return wire.failure(seen.number, seen.path, error, in_body=in_body)

    def _admit(self, seen: Seen, request: web.Request) -> None:
        if seen.headers.get("x-regionid") != self.site.region:
            self._desk.complain(seen, f"x-regionid is {seen.headers.get('x-regionid')!r}")
            raise Failure("unknown region", status=400)
        if self.site.secrets is not None:
            raw = request.rel_url.raw_query_string
            if error := wire.unsigned(seen, raw, self.site.secrets):
                raise error
        if request.get(FAULT) is Fault.EXPIRED_SESSION:
            raise Failure("the signature has expired", status=401, code="SignatureExpired")
        if seen.headers.get("content-type") != "application/json":
            self._desk.complain(seen, f"content-type is {seen.headers.get('content-type')!r}")
        if "requestInfo" in seen.query and seen.query["requestInfo"] != self.site.region:
            self._desk.complain(seen, f"requestInfo is {seen.query['requestInfo']!r}")
        documented = seen.operation in WITH_REQUEST_INFO or (
            seen.operation.startswith("task.") and "/slm/" not in seen.path and seen.operation != "task.run"
        )
        if documented and "requestInfo" not in seen.query:
            self._desk.complain(seen, "requestInfo is missing")

    def _answering(self, answer: Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            seen = request[SEEN]
            document = await answer(request, seen)
            seen.done = True
            if isinstance(document, web.StreamResponse):
                return document
            return web.json_response(document)

        return handle

    async def _slash(self, request: web.Request) -> web.StreamResponse:
        self._desk.complain(request[SEEN], "a collection without its slash")
        return web.Response(status=self.site.redirect, headers={"Location": f"{request.path}/"})
