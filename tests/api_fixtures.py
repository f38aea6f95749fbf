"""The real API application over a real store for the tests of broker/api: `world` and what it offers."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aiohttp import ClientResponse, web, web_app
from aiohttp.test_utils import TestClient, TestServer
from argon2 import PasswordHasher

from broker.adapter import Image, Inventory, PoolReport
from broker.api.app import application
from broker.api.auth import token_hash
from broker.api.context import Context
from broker.core import events
from broker.core.events import Accepted, Placed
from broker.core.model import (
    Accuracy,
    CenterId,
    CenterState,
    FreeNodes,
    JobId,
    NodeShape,
    Price,
    RemoteId,
    Role,
    RunId,
)
from broker.core.problem import class_key
from broker.core.resources import load_catalogue, make_spec, spec_id
from broker.files import DataDirectory
from broker.store import accounts, centers, debts, keys, lease, runs
from broker.store.accounts import Caller
from broker.store.centers import CenterEntry
from broker.store.codec import spec_to_json
from broker.store.store import Store
from broker.store.writer import Tx
from broker.tables import Job, Run
from tests import sqlite_files
from tests.builders import policy_set
from tests.databases import CURRENT, database

Client = TestClient[web.Request, web.Application]

ZONE = ZoneInfo("Asia/Shanghai")
PREFIX = "bk"
HASHER = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
START_MS = 1_740_794_400_250  # 2025-03-01 10:00:00.250 in Shanghai

CATALOGUE = load_catalogue(
    """
[[accelerators]]
name = "Nvidia/GPU/A800"
memory_gib = [80]
fp16_tflops = 312
factor = 0.5

[[accelerators]]
name = "Huawei/NPU/Ascend910"
memory_gib = [32]
fp16_tflops = 256
"""
)

GPU_NODE = NodeShape("X86", 128, 1024, "Nvidia/GPU/A800", 8, 80)
NPU_NODE = NodeShape("ARM", 192, 768, "Huawei/NPU/Ascend910", 8, 32)
CPU_NODE = NodeShape("X86", 16, 64)
GPU_SPEC = make_spec(replace(GPU_NODE, cores=16, memory_gib=128, accelerators=1))
NPU_SPEC = make_spec(NPU_NODE)
CPU_SPEC_ID = spec_id(CPU_NODE)
GPU_INFO = {
    "cpu": {"arch": "X86", "cores": 16},
    "memory": {"size": 128, "unit": "GiB"},
    "processor": {"type": "GPU", "count": 1, "name": "Nvidia/GPU/A800", "memory": 80},
}
EXTRA_SPEC = replace(make_spec(replace(GPU_NODE, cores=24, memory_gib=100, accelerators=3)), name="3xA800")


@dataclass
class Clock:
    """Milliseconds that tests move by hand."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class World:
    """The application, its parts, and tokens of the accounts that exist."""

    client: Client
    store: Store
    files: DataDirectory
    clock: Clock
    context: Context
    epoch: int
    accounts: dict[str, Caller] = field(default_factory=dict)

    async def call(
        self, method: str, path: str, body: Any = None, *, as_: str | None = "alice", **kwargs: Any
    ) -> ClientResponse:
        headers = dict(kwargs.pop("headers", {}))
        if as_ is not None:
            headers["X-Auth-Token"] = token_of(as_)
        if body is not None:
            kwargs["data"] = json.dumps(body) if not isinstance(body, bytes) else body
        return await self.client.request(method, path, headers=headers, **kwargs)

    async def ok(self, method: str, path: str, body: Any = None, **kwargs: Any) -> Any:
        """The JSON of a 200."""
        answer = await self.call(method, path, body, **kwargs)
        data = await answer.json()
        assert answer.status == 200, data
        return data

    async def refused(self, method: str, path: str, body: Any = None, **kwargs: Any) -> tuple[int, str, str]:
        """(status, code, detail) of an error whose body is whole."""
        answer = await self.call(method, path, body, **kwargs)
        data = await answer.json()
        assert set(data) == {"errorCode", "errorMsg", "detail", "requestId"}, data
        assert data["requestId"] == answer.headers["X-Request-Id"]
        return answer.status, data["errorCode"], data["detail"]

    async def create(self, name: str = "job", *, as_: str = "alice", **config: Any) -> str:
        """The id of a new job."""
        data = await self.ok("POST", "/trainjob", create_body(name, **config), as_=as_)
        return str(data["metadata"]["id"])

    async def task(self, job: str, *, as_: str = "alice") -> str:
        """The newest task of a job."""
        data = await self.ok("GET", f"/broker/v1/jobs/{job}", as_=as_)
        return str(data["runs"][-1]["taskId"])

    async def place(self, job: str, center: str = "sz-1") -> str:
        """Give the job's new run a center, as a round does; the run's id."""
        run = await self.task(job, as_="root")
        await self.store.write(_place, run, center, self.epoch)
        return run

    async def advance(self, run: str, *events: events.Event) -> None:
        for event in events:
            await self.store.write(runs.advance, RunId(run), event, epoch=self.epoch)

    async def run_job(self, job: str, *events: events.Event) -> str:
        """Place the job, let the center accept it, then apply events."""
        run = await self.place(job)
        await self.advance(run, Accepted(self.clock(), RemoteId(f"r:{run}")), *events)
        return run

    async def settle(self, run: str) -> None:
        """Logs and results of the run have been collected."""
        await self.store.write(debts.settle, RunId(run), epoch=self.epoch, collect=True)

    async def poll(self, center: str, inventory: Inventory, prices: tuple[Price, ...] = ()) -> None:
        await _poll(self.store, center, inventory, self.epoch, prices)

    async def sql(self, op: Callable[[Tx], None]) -> None:
        await self.store.write(op)

    async def set_job(self, job: str, **values: Any) -> None:
        await self.store.write(_set_job, job, values)


async def _poll(
    store: Store, center: str, inventory: Inventory, epoch: int, prices: tuple[Price, ...] = ()
) -> None:
    await store.write(
        centers.record_inventory,
        CenterId(center),
        inventory,
        epoch=epoch,
        traits={"gang": True},
        prices=[(pool, prices) for pool in inventory.pools],
    )


def _place(tx: Tx, run: str, center: str, epoch: int) -> None:
    row = tx.session.get_one(Run, run)
    row.pool_id, row.native_pool = f"{center}/gpu", "gpu"
    row.spec, row.slot, row.rate_micro_per_hour = spec_to_json(GPU_SPEC), 1, 12_500_000
    row.placement = {"pool": f"{center}/gpu", "slot": 1}
    tx.session.add(row)
    runs.advance(tx, RunId(run), Placed(tx.now_ms, CenterId(center)), epoch=epoch)


def _set_job(tx: Tx, job: str, values: dict[str, Any]) -> None:
    row = tx.session.get_one(Job, JobId(job))
    for name, value in values.items():
        setattr(row, name, value)
    tx.session.add(row)


def token_of(account: str) -> str:
    """With the look of one that was drawn."""
    return f"token-of-{account}".ljust(43, "-")


def noted_lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of tokens and API keys that the store is asked for from now on."""
    asked: list[str] = []
    for module, name in ((accounts, "find_token"), (keys, "find_key")):
        real = getattr(module, name)

        def noting(session: Any, given: str, real: Any = real) -> Any:
            asked.append(given)
            return real(session, given)

        monkeypatch.setattr(module, name, noting)
    return asked


def create_body(name: str = "job", **config: Any) -> dict[str, Any]:
    """A create request; a config value of None takes the field out."""
    values = {"specId": GPU_SPEC.id, "imageUrl": "img.example/pt:2.3", "command": "bash run.sh", **config}
    return {"jobName": name, "config": {key: value for key, value in values.items() if value is not None}}


def entry(center: str, name: str, state: CenterState = CenterState.ACTIVE) -> CenterEntry:
    return CenterEntry(
        id=CenterId(center),
        name=name,
        province="广东",
        city="深圳",
        desc="",
        adapter="fake",
        account=center,
        state=state,
        max_in_flight=32,
    )


def gpu_pool(*free: FreeNodes) -> PoolReport:
    return PoolReport(native="gpu", shape=GPU_NODE, nodes=4, free=free)


ENTRIES = (
    entry("sz-1", "深圳一号"),
    entry("gz-2", "Guangzhou"),
    entry("off", "Switched off", CenterState.INACTIVE),
    entry("new", "Never polled"),
)

SZ_FREE = (FreeNodes(128, 1024, 8, 2), FreeNodes(64, 512, 3, 1), FreeNodes(10, 100, 0, 1))


async def _account(tx_store: Store, name: str, tenant: str, role: Role) -> Caller:
    caller = await tx_store.write(
        accounts.add_account, name=name, tenant=tenant, role=role, password_hash=HASHER.hash(f"pw-{name}")
    )
    await tx_store.write(accounts.add_token, caller.id, token_hash(token_of(name)), START_MS + 10**12)
    return caller


class LikeTheDaemon(TestServer):
    """A handler goes on when its client goes away: aiohttp's own test server cancels it."""

    async def _make_runner(self, **settings: Any) -> web.AppRunner:
        return web.AppRunner(self.app, **{**settings, "handler_cancellation": False})


@dataclass(frozen=True)
class There:
    """What the store of a world has from its beginning."""

    epoch: int
    accounts: dict[str, Caller]


async def _populate(store: Store) -> There:
    """Five accounts in three tenants and four centers, two of them polled."""
    await store.write(accounts.replace_setting, runs.PREFIX, PREFIX)
    epoch = await store.write(lease.acquire, "test", 10**6)
    assert epoch is not None
    await store.write(centers.configure, ENTRIES)
    made = {
        name: await _account(store, name, tenant, role)
        for name, tenant, role in (
            ("alice", "lab", Role.USER),
            ("bob", "lab", Role.USER),
            ("carol", "lab", Role.TENANT_ADMIN),
            ("eve", "other", Role.USER),
            ("root", "ops", Role.OPERATOR),
        )
    }
    cpu = PoolReport(native="cpu", shape=CPU_NODE, nodes=2, free=(FreeNodes(16, 64, 0, 1),))
    npu = PoolReport(native="npu", shape=NPU_NODE, nodes=2, free=(), specs=(NPU_SPEC,))
    await _poll(
        store, "sz-1", Inventory(START_MS, Accuracy.EXACT, (gpu_pool(*SZ_FREE), cpu), queue_length=5), epoch
    )
    await _poll(store, "gz-2", Inventory(START_MS, Accuracy.ESTIMATED, (gpu_pool(), npu)), epoch)
    image = Image(id="pytorch-2.3", native="r.local/pt:2.3", arch="X86", processor="GPU")
    await store.write(centers.record_images, CenterId("gz-2"), [image], epoch=epoch)
    return There(epoch, made)


_POPULATED: list[tuple[bytes, There]] = []
"""The file of a store that has been populated once, and what is there."""


async def _populated(clock: Clock) -> tuple[bytes, There]:
    if not _POPULATED:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(sqlite_files.url(Path(folder)), clock=clock)
            await store.open()
            there = await _populate(store)
            await store.close()
            _POPULATED.append(((Path(folder) / sqlite_files.NAME).read_bytes(), there))
    return _POPULATED[0]


async def open_world(folder: Path, **settings: Any) -> World:
    """A store with five accounts and four centers (see _populate), and the application over it."""
    clock = Clock()
    if CURRENT.postgresql:
        store = Store(database(folder), clock=clock)
        await store.open()
        there = await _populate(store)
    else:
        content, there = await _populated(clock)
        store = Store(sqlite_files.url(folder, content), clock=clock)
        await store.open()
    files = DataDirectory(folder / "data")
    files.create()
    values: dict[str, Any] = {
        "store": store,
        "files": files,
        "catalogue": CATALOGUE,
        "class_key": class_key,
        "signing_key": b"k" * 32,
        "ready": lambda: True,
        "server_name": PREFIX,
        "public_url": "http://broker.example",
        "timezone": ZONE,
        "policies": policy_set,
        "max_body_bytes": 200_000,
        "max_upload_bytes": 1_000_000,
        "token_ttl_s": 3600,
        "freeze_after": 3,
        "submit_image": "img.example/default",
        "extra_specs": (EXTRA_SPEC,),
        "own_hosts": lambda _center: frozenset({"127.0.0.1"}),
        "clock": clock,
        "hasher": HASHER,
    }
    context = Context(**{**values, **settings})
    client: Client = TestClient(LikeTheDaemon(application(context)))
    await client.start_server()
    return World(client, store, files, clock, context, there.epoch, dict(there.accounts))


async def close_world(world: World) -> None:
    await world.client.close()
    await world.store.close()
    # aiohttp's cache of handlers would keep the last thousand applications, each with its store: hundreds
    # of MB, through which every full garbage collection of the tests to come would go
    web_app._cached_build_middleware.cache_clear()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    opened = await open_world(tmp_path)
    yield opened
    await close_world(opened)


async def together(*calls: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*calls))


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Wait for something that happens by itself."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
