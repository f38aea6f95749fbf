"""A CECSTACK center for tests: the emulated platform with a package, and the adapter over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import cecstack
from adapters.cecstack import Cecstack as Adapter
from broker.adapter import Connection, RemoteState, RunRef, RunSpec, Sighting, StatedPool
from broker.core.model import CenterId, JobId, NodeShape, RunId, Spec
from broker.core.resources import make_spec
from tests.emulators.cecstack import Cecstack, Site

PACKAGE = "AIDP-08ba092ac675457fb4ecf9e6a2ae97b4"
NODE = NodeShape("X86", 50, 200, "Nvidia/GPU/H800", 2, 80)
OPTIONS: Mapping[str, Any] = {"timeout_s": 20.0, "requests_per_s": 1000, "cpu_arch": "X86"}
ENDED = (RemoteState.SUCCEEDED, RemoteState.FAILED, RemoteState.STOPPED, RemoteState.GONE)
DEADLINE_S = 20.0
KEYS: Mapping[str, str] = {"access_key": "AK-1", "secret_key": "hush-hush"}
SERVICE: Mapping[str, Any] = {
    "model_id": 1,
    "vpc_id": "vpc-1",
    "subnet_id": "snet-1",
    "eip_id": "eip-1",
    "eip": "10.252.128.161",
}


def options(platform: Cecstack, **more: Any) -> dict[str, Any]:
    """The connection to a platform; an option that is None is left out."""
    known = {
        **OPTIONS,
        "endpoint": platform.url,
        "region": platform.site.region,
        "project_id": platform.project,
        **more,
    }
    return {name: value for name, value in known.items() if value is not None}


async def connect(platform: Cecstack, *, pools: Sequence[StatedPool] = (), **more: Any) -> Adapter:
    """The adapter over a platform that runs."""
    connection = Connection(CenterId("c"), "bk", options(platform, **more), KEYS, tuple(pools))
    adapter = await cecstack.connect(connection)
    assert isinstance(adapter, Adapter)
    return adapter


Center = tuple[Cecstack, Adapter]


@asynccontextmanager
async def center(
    folder: Path, *, site: Site | None = None, pools: Sequence[StatedPool] = (), **more: Any
) -> AsyncIterator[Center]:
    """A platform with one package of two H800 and a second of CPUs, and the adapter over it.

    What the platform complains of fails the test.
    """
    async with Cecstack(folder, site=site) as platform:
        platform.add(PACKAGE, cpu=50, memory_gib=200, gpus=2, product="H800", name="gpus")
        adapter = await connect(platform, pools=pools, **more)
        try:
            yield platform, adapter
        finally:
            await adapter.aclose()
        assert platform.complaints == []


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Center]:
    async with center(tmp_path) as found:
        yield found


def run_spec(number: int = 1, *, shape: NodeShape = NODE, **changes: Any) -> RunSpec:
    """A run on the package; its spec is a whole node."""
    spec: Spec = make_spec(shape)
    bare = RunSpec(
        id=RunId(f"bk{number:010d}"),
        job=JobId(f"job-{number}"),
        attempt=1,
        native_pool=PACKAGE,
        spec=spec,
        nodes=1,
        command="sleep 5",
        image="image.cestc.cn/x:1",
        env=(("GREETING", "hello"),),
        max_run_time_s=None,
        stop_grace_s=5,
    )
    return replace(bare, **changes)


def ref(run: RunSpec, remote: Any) -> RunRef:
    return RunRef(run.id, run.job, remote, run.nodes)


async def look(adapter: Adapter, run: RunRef) -> Sighting:
    return (await adapter.observe([run]))[run.id]


async def until(adapter: Adapter, run: RunRef, *states: RemoteState) -> Sighting:
    async with asyncio.timeout(DEADLINE_S):
        while (seen := await look(adapter, run)).state not in states:
            assert seen.state not in ENDED, f"expected {states}, got {seen}"
            await asyncio.sleep(0.01)
    return seen


async def created(adapter: Adapter, number: int = 1, **changes: Any) -> RunRef:
    run = run_spec(number, **changes)
    return ref(run, await adapter.submit(run))


async def started(adapter: Adapter, number: int = 1, **changes: Any) -> RunRef:
    run = await created(adapter, number, **changes)
    await adapter.start(run)
    return run


def sent(platform: Cecstack, operation: str) -> list[Any]:
    return [seen for seen in platform.seen if seen.operation == operation]
