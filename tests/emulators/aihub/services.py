"""The nine services of the emulated AIHub: one aiohttp server each, on a port of its own.

What belongs here: paths, tokens, envelopes and the strict reading of requests.  What does not: what
requests do (platform.py, data.py) and the shapes of answers (views.py).
"""

from __future__ import annotations

import base64
import email.policy
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.emulators.aihub import requests, views
from tests.emulators.aihub.data import Data, Rejected
from tests.emulators.aihub.platform import Platform, Switches, Task, User
from tests.emulators.faults import FAULT, Fault, Faults

SECRET = b"the platform's own"
S3_TOKEN = "s3-static-token"
SERVICES = (
    *("user", "tag", "training", "quota", "dataset", "workflow", "warehouse", "evaluation"),
    "s3",
)
WITH_EFFECT = frozenset(
    {
        *("create_training", "stop_training", "create_quota_task", "stop_quota_task", "create_dataset"),
        *("create_version", "create_run", "create_search", "import_result", "upload"),
    }
)
READS = frozenset(
    {
        *("clusters", "storages", "training", "training_pods", "quota_task", "quota_pods", "version"),
        *("run", "search"),
    }
)
ABOUT_A_TASK = frozenset({"training", "quota_task"})
ONLY = {
    Fault.STALE_READ: ABOUT_A_TASK,
    Fault.VANISHED_TASK: ABOUT_A_TASK,
    Fault.NODE_LOSS: ABOUT_A_TASK,
    Fault.DUPLICATE_NAME: {"create_training", "create_quota_task"},
    Fault.STOP_REFUSED: {"stop_training", "stop_quota_task"},
    Fault.EXPIRED_SESSION: (WITH_EFFECT | READS) - {"upload"},
}
USERS = (User(1, "broker", "open sesame"), User(2, "zhang", "another"))
NUMBER = web.RequestKey("number", int)
"""Of the request: its place in Emulator.requests, counted from 1."""


@dataclass(slots=True)
class Request:
    """One request as it arrived; `fault` is what became of it, filled in when that is known.

    `turned_away`: without a valid session, which proves to the caller that nothing was done.
    """

    operation: str
    method: str
    path: str
    body: Any
    fault: Fault | None = None
    turned_away: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    id: int
    name: str
    path: str
    permission: str = "rw"


@dataclass(slots=True)
class Emulator:
    """One AIHub installation.  `urls` by service; `requests`, `complaints` are what arrived."""

    platform: Platform
    data: Data
    faults: Faults
    switches: Switches
    storages: Sequence[Storage]
    users: Mapping[str, User] = field(default_factory=lambda: {user.name: user for user in USERS})
    urls: dict[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    logins: int = 0
    issued: set[str] = field(default_factory=set)  # tokens that are still honoured

    # ------------------------------------------------------------ tokens

    def token(self, user: User) -> str:
        """A JWT, HS256, that ends after `token_s`."""
        self.logins += 1
        claims = {"id": user.id, "exp": time.time() + self.switches.token_s, "jti": self.logins}
        head = f"{_b64(json.dumps({'alg': 'HS256', 'typ': 'JWT'}))}.{_b64(json.dumps(claims))}"
        token = f"{head}.{_b64(hmac.new(SECRET, head.encode(), hashlib.sha256).digest())}"
        self.issued.add(token)
        return token

    def user_of(self, request: web.Request) -> User | None:
        """Whose token a request carries, if it is valid."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or token not in self.issued:
            return None
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if claims["exp"] <= time.time():
            return None
        return next((user for user in self.users.values() if user.id == claims["id"]), None)

    # ------------------------------------------------------------ envelopes

    def ok(self, data: Any = None) -> web.Response:
        body: dict[str, Any] = {"code": 0}
        if self.switches.says_msg:
            body["msg"] = ""
        if data is not None:
            body["data"] = data
        return web.json_response(body)

    def no(self, code: int, msg: str) -> web.Response:
        """A failure: HTTP 200, a code, no data."""
        return web.json_response({"code": code, "msg": msg} if self.switches.says_msg else {"code": code})

    def expired(self) -> web.Response:
        if self.switches.expired == "401":
            return web.json_response({"code": 401, "msg": "token 已过期"}, status=401)
        return web.json_response({"code": 10401, "msg": "token 已过期，请重新登录"})

    # ------------------------------------------------------------ reading requests

    def complain(self, request: web.Request, *texts: str) -> None:
        self.complaints.extend(f"{request.method} {request.path}: {text}" for text in texts)

    async def body(self, request: web.Request) -> Any:
        """The JSON body; None when there is none or it is no JSON."""
        if request.content_type != "application/json":
            self.complain(request, f"content type {request.content_type!r}, expected application/json")
        try:
            return json.loads(await request.read())
        except ValueError:
            self.complain(request, "the body is no JSON")
            return None

    def doomed(self, request: web.Request, fault: Fault) -> bool:
        return request.get(FAULT) is fault


def _b64(value: str | bytes) -> str:
    raw = value.encode() if isinstance(value, str) else value
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# ---------------------------------------------------------------- handlers


class Handlers:
    """What each operation answers."""

    def __init__(self, emulator: Emulator) -> None:
        self._e = emulator

    async def login(self, request: web.Request) -> web.StreamResponse:
        body = await self._e.body(request)
        if wrong := requests.faults_of(body, requests.LOGIN):
            self._e.complain(request, *wrong)
            return self._e.no(400, "参数错误")
        user = self._e.users.get(body["username"])
        if user is None or user.password != body["password"]:
            return self._e.no(10002, "用户名或密码错误")
        return self._e.ok({"id": user.id, "token": self._e.token(user)})

    async def clusters(self, request: web.Request, user: User) -> web.StreamResponse:
        query = request.query
        if query.get("module_type") not in ("1", "2") or query.get("user_id") != str(user.id):
            self._e.complain(request, f"query is {dict(query)}")
            return self._e.no(400, "参数错误")
        return self._e.ok({"data": [views.cluster_row(c) for c in self._e.platform.clusters.values()]})

    async def storages(self, request: web.Request, user: User) -> web.StreamResponse:
        if request.query_string:
            self._e.complain(request, f"query {request.query_string!r}, expected none")
        rows = [
            {
                "id": s.id,
                "name": s.name,
                "path": s.path,
                "server_path": "/data1/model_training_platform",
                "server_host": "192.168.13.160",
                "server_type": "nfs",
                "permission": s.permission,
                "description": "",
            }
            for s in self._e.storages
        ]
        return self._e.ok({"data": rows})

    # ------------------------------------------------------------ tasks

    def create(self, *, quota: bool) -> Callable[[web.Request, User], Awaitable[web.StreamResponse]]:
        fields = requests.QUOTA if quota else requests.TRAINING

        async def handler(request: web.Request, user: User) -> web.StreamResponse:
            body = await self._e.body(request)
            if wrong := requests.faults_of(body, fields):
                self._e.complain(request, *wrong)
                return self._e.no(400, "参数错误: " + "; ".join(wrong))
            known = {s.id for s in self._e.storages}
            if body["virtual_cluster_id"] not in self._e.platform.clusters:
                return self._e.no(20001, "虚拟集群不存在")
            if not set(body["storage_ids"]) <= known:
                return self._e.no(20002, "存储不存在")
            if self._e.doomed(request, Fault.DUPLICATE_NAME):
                return self._e.no(20003, "任务名称已存在")
            task = self._e.platform.create(body, user=user, request=request[NUMBER], quota=quota)
            return self._e.ok({"id": task.quota_id if quota else task.id})

        return handler

    def _task(self, request: web.Request, *, quota: bool) -> Task | None:
        tasks = self._e.platform.quota if quota else self._e.platform.trainings
        task = tasks.get(int(request.match_info["id"]))
        if task is not None and self._e.doomed(request, Fault.NODE_LOSS) and task.active:
            self._e.platform.lose_node(task.pods[0].node.name)
            self._e.platform.find_node(task.pods[0].node.name)
        return None if self._e.doomed(request, Fault.VANISHED_TASK) else task

    def detail(self, *, quota: bool) -> Callable[[web.Request, User], Awaitable[web.StreamResponse]]:
        view = views.quota_task if quota else views.training

        async def handler(request: web.Request, user: User) -> web.StreamResponse:
            task = self._task(request, quota=quota)
            if task is None:
                return self._e.no(20004, "任务不存在")
            stale = self._e.doomed(request, Fault.STALE_READ)
            return self._e.ok(view(self._e.platform, task, stale=stale))

        return handler

    def pods(self, *, quota: bool) -> Callable[[web.Request, User], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request, user: User) -> web.StreamResponse:
            task = self._task(request, quota=quota)
            if task is None:
                return self._e.no(20004, "任务不存在")
            try:
                size, number = int(request.query["page_size"]), int(request.query["page_num"])
            except (KeyError, ValueError):
                self._e.complain(request, f"query is {dict(request.query)}")
                return self._e.no(400, "参数错误")
            return self._e.ok(views.pod_page(task, size=size, number=number, quota=quota))

        return handler

    def stop(self, *, quota: bool) -> Callable[[web.Request, User], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request, user: User) -> web.StreamResponse:
            if await request.read():
                self._e.complain(request, "a stop has no body")
            task = self._task(request, quota=quota)
            if task is None:
                return self._e.no(20004, "任务不存在")
            if self._e.doomed(request, Fault.STOP_REFUSED):
                return self._e.no(20005, "任务创建中，暂不能停止")
            if task.status in (3, 4, 5) and self._e.switches.stop_of_ended_fails:
                return self._e.no(20006, "任务已结束")
            directly = not quota and bool(task.quota_id)
            self._e.platform.stop(task, user=user, request=request[NUMBER], directly=directly)
            return self._e.ok()

        return handler

    # ------------------------------------------------------------ data

    async def create_dataset(self, request: web.Request, user: User) -> web.StreamResponse:
        return await self._made(request, requests.DATASET, lambda b: self._e.data.create_dataset(b, user))

    async def create_version(self, request: web.Request, user: User) -> web.StreamResponse:
        return await self._made(request, requests.VERSION, lambda b: self._e.data.create_version(b, user))

    async def create_run(self, request: web.Request, user: User) -> web.StreamResponse:
        return await self._made(request, requests.RUN, self._e.data.create_run)

    async def create_search(self, request: web.Request, user: User) -> web.StreamResponse:
        body = await self._e.body(request)
        kind = body.get("type") if isinstance(body, dict) else None
        fields = requests.SEARCHES.get(kind, {}) if isinstance(kind, int) else {}
        return await self._made(request, fields, lambda b: self._e.data.create_search(b, user))

    async def _made(
        self, request: web.Request, fields: Mapping[str, requests.Check], make: Callable[[Any], int]
    ) -> web.StreamResponse:
        body = await self._e.body(request)
        if wrong := requests.faults_of(body, fields):
            self._e.complain(request, *wrong)
            return self._e.no(400, "参数错误: " + "; ".join(wrong))
        return self._said(lambda: {"id": make(body)})

    def _said(self, make: Callable[[], Any]) -> web.Response:
        try:
            return self._e.ok(make())
        except Rejected as no:
            return self._e.no(30001, str(no))

    async def version(self, request: web.Request, user: User) -> web.StreamResponse:
        return self._said(lambda: self._e.data.version_detail(request.query.get("name", "")))

    async def search(self, request: web.Request, user: User) -> web.StreamResponse:
        number, url = int(request.match_info["id"]), self._e.urls["warehouse"]
        return self._said(lambda: self._e.data.search_detail(number, url))

    async def run(self, request: web.Request, user: User) -> web.StreamResponse:
        if request.method not in self._e.switches.run_detail:
            raise web.HTTPMethodNotAllowed(request.method, self._e.switches.run_detail)
        return self._said(lambda: self._e.data.run_detail(int(request.match_info["id"])))

    async def import_result(self, request: web.Request, user: User) -> web.StreamResponse:
        fields, files = await _form(request)
        wanted = (*requests.EVALUATION_FIELDS, *requests.EVALUATION_FILES)
        if wrong := [name for name in wanted if not (fields.get(name) or files.get(name))]:
            self._e.complain(request, *(f"{name} is missing" for name in wrong))
            return self._e.no(400, "参数错误")
        if fields["model_type"] not in ("3", "4", "5") or fields["user_id"] != str(user.id):
            return self._e.no(40001, "参数错误")
        return self._e.ok({"id": self._e.data.import_result(fields, files)})

    async def upload(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            self._e.complain(request, "the JWT was sent to the S3 relay")
        if request.headers.get("Token") != S3_TOKEN:
            return web.json_response({"code": 403})
        bucket, key = request.query.get("bucket"), request.query.get("key")
        _, files = await _form(request)
        if not bucket or not key or set(files) != {"file"}:
            self._e.complain(request, f"query {dict(request.query)}, files {sorted(files)}")
            return web.json_response({"code": 400})
        path = self._e.data.store(bucket, key, files["file"])
        return web.json_response(
            {"code": 0, "data": {"path": path, "url": f"{self._e.urls['s3']}/get/{bucket}/{key}"}}
        )

    async def download(self, request: web.Request) -> web.StreamResponse:
        path = f"s3://{request.match_info['bucket']}/{request.match_info['key']}"
        content = self._e.data.objects.get(path)
        return web.Response(body=content) if content is not None else web.Response(status=404)

    async def csv(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="object_name\na\n", content_type="text/csv")


async def _form(request: web.Request) -> tuple[dict[str, str], dict[str, bytes]]:
    """Text fields and files of a multipart form, whose body others have read already."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for part in BytesParser(policy=email.policy.HTTP).parsebytes(head + await request.read()).iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if part.get_filename() is None:
            fields[name] = content.decode()
        else:
            files[name] = content
    return fields, files
