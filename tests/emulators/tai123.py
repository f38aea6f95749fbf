"""A service that knows T/AI 123.8 and nothing else, as a local server.

What belongs here: the calls of Annex A as the text has them; what is not in it is refused.  What does
not: a broker of this kind, which the tests start for real.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

from tests.emulators.faults import FAULT, Fault, Faults

CAP = 20
"""Rows of a page at most, whatever is asked for; the standard allows it."""
CONFIG = {"centerId", "specId", "nodeCount", "imageId", "imageUrl", "command"}


def resources(cores: int, memory: int, cards: int = 0, name: str = "Nvidia/GPU/A800") -> dict[str, Any]:
    return {
        "cpu": {"arch": "X86", "cores": cores},
        "memory": {"size": memory, "unit": "GiB"},
        "processor": {
            "type": "GPU" if cards else "",
            "count": cards,
            "name": name if cards else "",
            "memory": 80 if cards else 0,
        },
    }


@dataclass
class Job:
    id: str
    name: str
    config: Mapping[str, Any]
    status: str = "RUNNING"
    log: bytes = b""
    result: tuple[str, bytes] | None = None


@dataclass
class Service:
    """One account, one center with two nodes of two cards; a job takes what its test says."""

    url: str = ""
    faults: Faults = field(default_factory=Faults)
    jobs: dict[str, Job] = field(default_factory=dict)
    free: list[tuple[dict[str, Any], str]] = field(default_factory=lambda: [(resources(4, 8, 2), "2")])
    total: dict[str, Any] = field(default_factory=lambda: resources(8, 16, 4))
    connected: bool = True
    tokens: set[str] = field(default_factory=set)
    refuse: tuple[str, str] | None = None  # the next create: code and text
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Service:
        app = web.Application(middlewares=[self.faults.middleware, self._authenticate])
        add = app.router.add_route
        add("POST", "/auth/tokens", self._login, name="login")
        add("GET", "/centers", self._centers, name="centers")
        add("GET", "/resource/specs", self._specs, name="specs")
        add("GET", "/resource/idle", self._idle, name="idle")
        add("GET", "/resource/images", self._images, name="images")
        add("GET", "/datasets", self._datasets, name="datasets")
        add("POST", "/trainjob", self._create, name="create")
        add("GET", "/trainjob", self._list, name="list")
        add("GET", "/trainjob/{id}", self._show, name="show")
        add("GET", "/trainjob/{id}/tasks/{task}/logs/url", self._log_url, name="log")
        add("POST", "/trainjob/{id}/stop", self._stop, name="stop")
        add("DELETE", "/trainjob/{id}", self._delete, name="delete")
        add("GET", "/trainjob/{id}/download", self._download, name="download")
        add("GET", "/open/{id}", self._open, name="open")
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    # ------------------------------------------------------------ answers

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.get(FAULT) is Fault.EXPIRED_SESSION:
            self.tokens.clear()
        path = request.path
        if path not in ("/auth/tokens",) and not path.startswith("/open/"):
            if request.headers.get("X-Auth-Token") not in self.tokens:
                return _error("0101", "who are you", 401)
        elif "X-Auth-Token" in request.headers and path.startswith("/open/"):
            return _error("0101", "a token was given away", 401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _login(self, request: web.Request) -> web.Response:
        given = await request.json()
        if given["user"] != {"name": "network", "password": "correct horse"}:
            return _error("0101", "", 401)
        token = f"t{next(self._numbers)}"
        self.tokens = {token}
        return web.json_response({"token": token, "expiresAt": "2030-01-01 00:00:00"})

    def _page(self, request: web.Request, key: str, rows: list[Any], *more: str) -> web.Response:
        if unknown := set(request.query) - {"page", "pageSize", "sort", "order", *more}:
            return _error("0202", f"unknown: {sorted(unknown)}")
        size = min(int(request.query.get("pageSize", 50)), CAP)
        first = (int(request.query.get("page", 1)) - 1) * size
        return web.json_response({key: rows[first : first + size], "totalSize": len(rows)})

    async def _centers(self, request: web.Request) -> web.Response:
        return self._page(request, "centers", [{"centerId": "c1", "connected": self.connected}])

    async def _specs(self, request: web.Request) -> web.Response:
        rows = [
            {"resourceSpecId": "half", "resourceSpecName": "half a node", **resources(2, 4, 1)},
            {"resourceSpecId": "whole", "resourceSpecName": "a node", **resources(4, 8, 2)},
        ]
        return self._page(request, "resourceSpecs", rows, "centerId")

    async def _idle(self, request: web.Request) -> web.Response:
        nodes = [{"resourceSpec": spec, "nodeCount": count} for spec, count in self.free]
        center = {"centerId": "c1", "totalResource": self.total, "nodeResources": nodes}
        return web.json_response({"centerResources": [center]})

    async def _images(self, request: web.Request) -> web.Response:
        rows = [{"imageId": f"img-{n}", "imageName": "pytorch", "arch": "X86"} for n in range(45)]
        return self._page(request, "images", rows)

    async def _datasets(self, request: web.Request) -> web.Response:
        row = {"id": "d1", "title": "coco", "owner": "admin", "size": 5, "desc": "", "labels": "cv"}
        return self._page(request, "datasets", [row], "query")

    async def _create(self, request: web.Request) -> web.Response:
        given = await request.json()
        if self.refuse is not None:
            (code, text), self.refuse = self.refuse, None
            return _error(code, text)
        config = given["config"]
        if unknown := set(config) - CONFIG:
            return _error("0202", f"unknown: {sorted(unknown)}")
        if any(job.name == given["jobName"] for job in self.jobs.values()):
            return _error("0208", given["jobName"])
        job = Job(f"t-{next(self._numbers)}", given["jobName"], config)
        self.jobs[job.id] = job
        return web.json_response(_item(job))

    async def _list(self, request: web.Request) -> web.Response:
        status = request.query.get("status", "")
        rows = [_item(job) for job in self.jobs.values() if status in ("", job.status)]
        return self._page(request, "items", rows, "status")

    def _job(self, request: web.Request) -> Job:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            raise web.HTTPBadRequest(
                text='{"errorCode":"0240","errorMsg":"no such job"}', content_type="application/json"
            )
        return job

    async def _show(self, request: web.Request) -> web.Response:
        job = self._job(request)
        return web.json_response({**_item(job), "tasks": [{"taskId": f"{job.id}-0", "centerId": "c1"}]})

    async def _log_url(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if request.query.get("contentType") != "text/plain":
            return _error("0203", "contentType")
        return web.json_response({"logUrl": f"/open/{job.id}"})

    async def _open(self, request: web.Request) -> web.Response:
        return web.Response(body=self._job(request).log, content_type="text/plain")

    async def _stop(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if job.status not in ("PENDING", "RUNNING"):
            return _error("0202", job.status)
        job.status = "STOPPED"
        return web.json_response({"id": job.id, "status": "STOPPED", "stoppedTime": "2025-03-01 10:00:00"})

    async def _delete(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if job.status in ("PENDING", "RUNNING"):
            return _error("0202", job.status)
        del self.jobs[job.id]
        return web.Response(status=204)

    async def _download(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if job.result is None:
            return _error("0202", "no result")
        name, body = job.result
        disposition = f'attachment; filename="{name}"'
        kind = "application/json" if name.endswith(".json") else "application/octet-stream"
        return web.Response(body=body, content_type=kind, headers={"Content-Disposition": disposition})


def _item(job: Job) -> dict[str, Any]:
    return {
        "metadata": {"id": job.id, "name": job.name, "desc": "", "createTime": "", "userId": "u"},
        "status": job.status,
    }


def _error(code: str, text: str, status: int = 400) -> web.Response:
    return web.json_response({"errorCode": code, "errorMsg": "no", "detail": text}, status=status)
