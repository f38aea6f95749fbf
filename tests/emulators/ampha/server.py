"""The HTTP face of the emulated platform: login, sessions, roles, and every route of the package.

Use `async with Ampha(groups) as center`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.emulators.ampha import files, market, office, orders, pods, rooms, tasks
from tests.emulators.ampha.operations import Operations
from tests.emulators.ampha.parts import Group, Node, Settings
from tests.emulators.ampha.wire import (
    NOT_LOGGED_IN,
    SYS,
    TEN,
    USR,
    Account,
    Call,
    No,
    Route,
    Seen,
    complaints,
    e1,
    jwt,
)
from tests.emulators.ampha.world import World
from tests.emulators.faults import FAULT, Fault, Faults

ROUTES: tuple[Route, ...] = tuple(
    route for module in (tasks, pods, market, files, office, orders, rooms) for route in module.ROUTES
)
LOGIN = "/prod-api/login"
GATEWAY = "/gateway"
"""Where services are reached, by whom they are asked without a session."""
TICK_S = 0.02
SPECS: list[dict[str, Any]] = [
    {
        "specId": "894f9bf7c8784294b361595cfb2e0267",
        "specName": "CPU：1核 1GB",
        "cpuCoresNumber": 1,
        "memorySize": 1,
        "numberOfGpus": 0,
    },
    {
        "specId": "2abfc822be2d448d95dd2178d1421f9b",
        "specName": "GPU：2*Nvidia/A800-PCIE-80GB | CPU：8核 32GB",
        "cpuCoresNumber": 8,
        "memorySize": 32,
        "numberOfGpus": 2,
    },
    {
        "specId": "c068c210-a905-417e-980d-72eb771f0b81",
        "specName": "GPU：Nvidia/A800-PCIE-80GB 1*1g.10gb | CPU：2核 8GB",
        "cpuCoresNumber": 2,
        "memorySize": 8,
        "numberOfGpus": 1,
        "gpuShare": "mig",
        "migType": "1g.10gb",
    },
    {
        "specId": "5d1e8f4bb6c94ad5a2f1c7d3e9f0a1b2",
        "specName": "GPU：1*Nvidia/A800-PCIE-80GB 显存：32302MB  算力：10% | CPU：4核 16GB",
        "cpuCoresNumber": 4,
        "memorySize": 16,
        "numberOfGpus": 1,
        "gpuShare": "vgpu",
        "gpuMemory": 32302,
        "computility": 10,
    },
]


class Ampha:
    """One center.  `complained` must stay empty: it lists every request that breaks the document."""

    def __init__(self, groups: list[Group], settings: Settings | None = None, *, folder: Any = None) -> None:
        self.world = World(settings or Settings(), groups, folder)
        self.market = market.Market(self.world)
        self.rooms = rooms.Rooms(self.world)
        self.faults = Faults(seed=self.world.settings.seed)
        self.accounts = {
            "sbb": Account(6, "sbb", "pw-user", USR),
            "zjm": Account(38, "zjm", "pw-tenant", TEN),
            "root": Account(1, "root", "pw-system", SYS),
        }
        self.qos = {"6": 3}  # user id -> id of its priority
        self.specs = SPECS
        self.quota: dict[str, Any] = {
            "remainCpu": 100000,
            "remainMemory": 100000,
            "remainVgpu": 1000,
            "remainMig": 1000,
            "remainJobNum": 1000,
            "remainGpu": 10000,
            "startTime": "2023-10-23 00:00:00",
            "endTime": "2099-11-30 23:59:59",
        }
        self.orders: dict[str, dict[str, Any]] = {}
        self.sftp_password = "sftp-secret"
        self.stale_ms = 3000
        self.stale_groups: dict[str, Any] = {}
        self.seen: list[Seen] = []
        self.complained: list[str] = []
        self.logins = 0
        self.operations: Operations | None = None  # asked before a task of a preset spec is created
        self.stumble = ""  # creations are done, and answered with this failure
        self.moved: dict[str, str] = {}  # printed path -> where this installation has it
        self.ended: dict[str, float] = {}  # token -> when it ends (monotonic)
        self.image = self.market.add("ai-common", market.IMAGE, version="v1.0.0")
        self.algorithm = self.market.add("script", market.ALGORITHM)
        self.model = self.market.add("DeepSeek-14B", market.MODEL)
        self._runner: web.AppRunner | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.url = ""

    def complain(self, operation: str, what: str) -> None:
        self.complained.append(f"{operation}: {what}")

    def count(self, operation: str) -> int:
        return sum(seen.operation == operation for seen in self.seen)

    # ------------------------------------------------------------ serving

    async def __aenter__(self) -> Ampha:
        app = web.Application(middlewares=[self.faults.middleware], client_max_size=1 << 26)
        app.router.add_post(LOGIN, self._login, name="login")
        for route in ROUTES:
            path = self.moved.get(route.path, route.path)
            app.router.add_route(route.method, path, self._handler(route), name=route.name)
        app.router.add_post(GATEWAY + "/{id}/v1/chat/completions", self._chat, name="chat")
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._ticking = asyncio.create_task(self._tick(), name="world")
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def _tick(self) -> None:
        """What happens by itself happens though nobody asks."""
        while True:
            self.world.advance()
            await asyncio.sleep(TICK_S)

    async def __aexit__(self, *_: object) -> None:
        assert self._ticking is not None
        self._ticking.cancel()
        await asyncio.wait([self._ticking])
        self.world.close()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _unknown(self, request: web.Request) -> web.Response:
        return self._no(No("Not Found", code=404), 2)

    async def _chat(self, request: web.Request) -> web.Response:
        """What a service that runs answers: which model was asked what."""
        room = self.rooms.services.get(request.match_info["id"])
        if room is None or room.status != 1:
            raise web.HTTPNotFound
        room.calls += 1
        model = room.body["modelServerVersions"][0]["modelInfo"]
        return web.json_response({"model": model, "messages": (await request.json())["messages"]})

    def _no(self, no: No, envelope: int) -> web.Response:
        status = no.code if self.world.settings.real_statuses and no.code in (401, 404, 500) else 200
        return web.json_response(no.body(envelope), status=status)

    def _handler(self, route: Route) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.world.advance()
            account = self._session(request)
            if account is None or request.get(FAULT) is Fault.EXPIRED_SESSION:
                if account is not None:
                    self.expire(account)
                return self._no(No(NOT_LOGGED_IN.format(request.path), code=401), 1)
            try:
                if route.roles and account.role not in route.roles:
                    raise No("没有权限访问用户数据！")
                call = await self._call(route, request, account)
                self.seen.append(
                    Seen(self.world.now(), route.name, account.name, call.body, dict(request.query))
                )
                self._check(route, call)
                answer = await route.do(call)
            except No as no:
                return self._no(no, route.envelope)
            return answer if isinstance(answer, web.Response) else web.json_response(answer)

        return handle

    async def _call(self, route: Route, request: web.Request, account: Account) -> Call:
        call = Call(self, request, route.name, account, {})
        if request.content_type.startswith("multipart/"):
            call.raw = dict(await request.post())
            chunk = call.raw.get("chunk")
            if isinstance(chunk, web.FileField):
                call.raw["chunk"] = chunk.file.read()
        elif body := await request.read():
            try:
                call.raw = json.loads(body)
            except ValueError as error:
                raise No(f"JSON parse error: {error}") from None
            if isinstance(call.raw, dict):
                call.body = call.raw
        return call

    def _check(self, route: Route, call: Call) -> None:
        """Complain of a request that breaks the document, and refuse it as a platform would."""
        wrong = []
        if route.fields is not None:
            wrong += complaints(call.raw, route.fields)
            if call.request.content_type != "application/json":
                wrong.append(f"Content-Type is {call.request.content_type}")
        query = set(call.request.query)
        wrong += [f"query lacks {name}" for name in route.query if name not in query]
        wrong += [f"query has {name}" for name in query - {*route.query, *route.optional}]
        if wrong:
            self.complained += [f"{route.name}: {what}" for what in wrong]
            raise No("请正确传入参数！")

    # ------------------------------------------------------------ sessions

    async def _login(self, request: web.Request) -> web.Response:
        self.logins += 1
        body = await request.json()
        account = self.accounts.get(body.get("username", ""))
        if account is None or body.get("password") != self.sealed(account.password):
            return self._no(No("用户不存在/密码错误"), 1)
        if self.world.settings.one_session:
            account.tokens.clear()
        token = jwt(account, self.world.settings.session_s, self.logins)
        account.tokens.add(token)
        self.ended[token] = time.monotonic() + self.world.settings.session_s
        return web.json_response(e1(token=token))

    def sealed(self, password: str) -> str:
        """A password as it must arrive (1.8): upper-case hex, without the IV."""
        settings = self.world.settings
        if not settings.password_key:
            return password
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.padding import PKCS7

        padder = PKCS7(128).padder()
        padded = padder.update(password.encode()) + padder.finalize()
        mode: Any = modes.ECB() if settings.password_ecb else modes.CBC(settings.password_iv)
        seal = Cipher(algorithms.AES(settings.password_key), mode).encryptor()
        return str((seal.update(padded) + seal.finalize()).hex().upper())

    def _session(self, request: web.Request) -> Account | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or time.monotonic() > self.ended.get(token, 0):
            return None
        return next((a for a in self.accounts.values() if token in a.tokens), None)

    def expire(self, account: Account | None = None) -> None:
        """The sessions of an account, or of all, are no longer valid."""
        for each in [account] if account else self.accounts.values():
            each.tokens.clear()


def nodes(
    count: int, *, cores: int = 128, memory_gib: float = 1024, cards: int = 8, **more: Any
) -> list[Node]:
    """Machines of one shape."""
    return [
        Node(f"gpu{number}", f"10.99.232.{number}", cores, memory_gib, cards, **more)
        for number in range(1, count + 1)
    ]


def group(machines: list[Node], *, name: str = "zone1", **more: Any) -> Group:
    """A resource group whose id is a function of its name."""
    return Group(f"{name.encode().hex():0<32}"[:32], name, machines, **more)
