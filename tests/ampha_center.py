"""An emulated Ampha center with the adapter over it, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from adapters import ampha
from broker.adapter import Connection, Desk, RunRef, RunSpec, StatedPool
from broker.core.model import CenterId, JobId, NodeShape, RunId, Spec, SpecId
from tests.emulators.ampha import Ampha, Group, Settings, group, nodes
from tests.soak import in_background

NODE = NodeShape("X86", 128, 1024, "A800-PCIE-80GB", 8, 80)
QUICK: dict[str, Any] = {"scale": 1000.0, "pull_s": (1, 2), "ack_s": (1, 5)}
CREDENTIALS = {
    "username": "sbb",
    "password": "pw-user",
    "tenant_username": "zjm",
    "tenant_password": "pw-tenant",
    "system_username": "root",
    "system_password": "pw-system",
}


def options(center: Ampha, **more: Any) -> dict[str, Any]:
    """[centers.connection] for an emulated center."""
    return {
        "base_url": center.url,
        "timeout_s": 20.0,
        "requests_per_s": 10_000,
        "lookup_lag_s": 0,
        "report_lag_s": 0,
        **more,
    }


async def adapter_of(
    center: Ampha,
    *,
    pools: tuple[StatedPool, ...] = (),
    credentials: dict[str, str] | None = None,
    desk: Desk | None = None,
    **more: Any,
) -> ampha.Ampha:
    known = credentials or CREDENTIALS
    connection = Connection(CenterId("c"), "bk", options(center, **more), known, pools, desk)
    made = await ampha.connect(connection)
    assert isinstance(made, ampha.Ampha)
    return made


@asynccontextmanager
async def center_and_adapter(
    *,
    groups: list[Group] | None = None,
    settings: dict[str, Any] | None = None,
    folder: Path | None = None,
    **more: Any,
) -> AsyncIterator[tuple[Ampha, ampha.Ampha]]:
    """Both, the adapter closed first.  What the center complains of fails the test."""
    emulator = Ampha(groups or [group(nodes(2))], Settings(**{**QUICK, **(settings or {})}), folder=folder)
    async with emulator as center:
        adapter = await adapter_of(center, **more)
        try:
            yield center, adapter
        finally:
            await adapter.aclose()
        assert center.complained == []


@contextmanager
def beside_a_daemon(**settings: Any) -> Iterator[Ampha]:
    """A center of two nodes in a thread of its own.  What it complains of fails the test."""
    quick = Settings(**{"scale": 50, "pull_s": (1, 2), **settings})
    with in_background(lambda: Ampha([group(nodes(2))], quick)) as emulator:
        yield emulator
        assert emulator.complained == []


def run(
    name: str = "bkaaaaaaaaaa",
    *,
    command: str = "sleep 10; exit 0",
    pool: str = group([]).id,
    shape: NodeShape = NODE,
    nodes: int = 1,
    image: str = "ai-common:v1.0.0",
    **more: Any,
) -> RunSpec:
    return RunSpec(
        id=RunId(name),
        job=JobId(f"job-{name}"),
        attempt=1,
        native_pool=pool,
        spec=Spec(SpecId("s"), "s", shape),
        nodes=nodes,
        command=command,
        image=image,
        **{"env": (), "max_run_time_s": None, "stop_grace_s": 5, **more},
    )


async def submit(adapter: ampha.Ampha, spec: RunSpec) -> RunRef:
    return RunRef(spec.id, spec.job, await adapter.submit(spec), spec.nodes)
