"""An adapter over an emulated AIHub, for its tests.

What belongs here: what the tests of the adapter share.  What does not: tests, and the emulator.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapters.aihub import Aihub, connect
from broker.adapter import Connection, RemoteState, RunRef, RunSpec, Sighting, StatedPool
from broker.core.model import CenterId, JobId, NodeShape, RunId, Spec, SpecId
from tests.emulators.aihub import S3_TOKEN, Cluster, Emulator, Node, Request, Storage, Switches, serve

NODE = NodeShape("X86", 32, 256, "Nvidia/GPU/A800", 2, 80)
HALF = NodeShape("X86", 16, 128, "Nvidia/GPU/A800", 1, 80)
NODES = (Node("ai-13-108", "192.168.13.108", 2), Node("ai-13-109", "192.168.13.109", 2))
CLUSTER = Cluster(29, "vc-a800-train", NODES)
POOL = StatedPool("29", NODE, 2)
LIVE = (RemoteState.PENDING, RemoteState.RUNNING)
DEADLINE_S = 20.0


def options_of(hub: Emulator, folder: Path, **changes: Any) -> dict[str, Any]:
    """[centers.connection]; a key that is changed to None is left out."""
    storage = str(folder / "storage" / "broker")
    options: dict[str, Any] = {
        **{f"{service}_url": url for service, url in hub.urls.items()},
        "ca_file": str(hub.ca_file),
        "project_id": 1,
        "storage_ids": [1],
        "timeout_s": 20.0,
        "requests_per_s": 1000.0,
        "concurrency": 16,
        "output": {"in_job": storage, "here": storage},
    }
    (folder / "storage" / "broker").mkdir(parents=True, exist_ok=True)
    return {key: value for key, value in (options | changes).items() if value is not None}


async def until(check: Callable[[], bool]) -> None:
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come true")


@dataclass(slots=True)
class Center:
    """An emulator and the adapter over it."""

    hub: Emulator
    adapter: Aihub
    connection: Connection
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def spec(self, command: str = "sleep 600", **changes: Any) -> RunSpec:
        name = f"bk-{next(self.numbers):010d}"
        shape = changes.pop("shape", NODE)
        made = RunSpec(
            id=RunId(name),
            job=JobId(f"job-{name}"),
            attempt=1,
            native_pool="29",
            spec=Spec(SpecId("s"), "s", shape),
            nodes=1,
            command=command,
            image="reg/pt:2.3",
            env=(("GREETING", "hello"),),
            max_run_time_s=None,
            stop_grace_s=5,
        )
        return replace(made, **changes)

    async def submit(self, command: str = "sleep 600", **changes: Any) -> RunRef:
        spec = self.spec(command, **changes)
        return RunRef(spec.id, spec.job, await self.adapter.submit(spec), spec.nodes)

    async def look(self, ref: RunRef) -> Sighting:
        return (await self.adapter.observe([ref]))[ref.id]

    async def running(self) -> RunRef:
        """A run that was submitted and runs."""
        ref = await self.submit()
        await self.see(ref, RemoteState.RUNNING)
        return ref

    async def see(self, ref: RunRef, *states: RemoteState) -> Sighting:
        """Look until the run is in one of `states`; fails when it ends otherwise or the deadline passes."""
        until = time.monotonic() + DEADLINE_S
        while (seen := await self.look(ref)).state not in states:
            assert seen.state in LIVE, f"expected {states}, ended as {seen}"
            assert time.monotonic() < until, f"expected {states}, still {seen}"
            await asyncio.sleep(0.02)
        return seen

    async def free_cards(self) -> int:
        pools = (await self.adapter.probe()).pools
        return sum(free.accelerators * free.nodes for pool in pools for free in pool.free)

    def asked(self, operation: str) -> list[Request]:
        """The requests of an operation that have arrived."""
        return [request for request in self.hub.requests if request.operation == operation]

    async def reopened(self) -> Aihub:
        """Another process: an adapter that knows nothing yet.  The first one is closed."""
        await self.adapter.aclose()
        made = await connect(self.connection)
        assert isinstance(made, Aihub)
        self.adapter = made
        return made


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    clusters: Sequence[Cluster] = (CLUSTER,),
    pools: tuple[StatedPool, ...] = (POOL,),
    switches: Switches | None = None,
    storages: Sequence[Storage] | None = None,
    speed: float = 200.0,
    complaints: bool = False,
    before: Callable[[Emulator], None] = lambda hub: None,
    **changes: Any,
) -> AsyncIterator[Center]:
    """A center whose requests are all as documented, unless `complaints`."""
    async with serve(folder, clusters, switches=switches, storages=storages, speed=speed) as hub:
        before(hub)
        connection = Connection(
            CenterId("sz-1"),
            "bk",
            options_of(hub, folder, **changes),
            {"username": "broker", "password": "open sesame", "s3_token": S3_TOKEN},
            pools,
        )
        adapter = await connect(connection)
        assert isinstance(adapter, Aihub)
        center = Center(hub, adapter, connection)
        try:
            yield center
        finally:
            await center.adapter.aclose()
        if not complaints:
            assert hub.complaints == []
