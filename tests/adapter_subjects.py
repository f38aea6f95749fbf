"""Every adapter with what its platform needs, and how a run's behaviour is asked of it.

Here: the subjects of the contract of all adapters, and the fixtures that open them.  Not here: the
contract (test_adapter_contract.py).  A platform joins by a row in SUBJECTS: an adapter over two nodes of
4 cores, 8 GiB and 2 cards in the pool "a800", and how each Behaviour is asked of it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import pytest

from adapters import cecstack, fake, local, tai123
from broker.adapter import (
    Adapter,
    Connection,
    RemoteState,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
)
from broker.core.model import Accuracy, CenterId, JobId, NodeShape, RemoteId, RunId, Spec, SpecId
from tests.aihub_center import opened
from tests.ampha_center import center_and_adapter
from tests.daemon_process import DaemonProcess
from tests.emulators import ampha
from tests.emulators.aihub import Cluster, Node
from tests.emulators.cecstack import Cecstack
from tests.tai123_center import account_at, cards_center, end_jobs, other_broker

NODE = NodeShape("X86", 4, 8, "Nvidia/GPU/A800", 2, 80)
HALF = NodeShape("X86", 2, 4, "Nvidia/GPU/A800", 1, 80)
POOL = StatedPool("a800", NODE, 2)
LOG = b"hello\nworld\n"
RESULTS = {"model.bin": b"\x00weights", "eval/metrics.json": b"{}"}
LIVE = (RemoteState.PENDING, RemoteState.RUNNING)
DEADLINE_S = 20.0


class Behaviour(Enum):
    """What a run does: the only words in which the contract speaks of commands."""

    SUCCEED = "print LOG, leave RESULTS, end with 0"
    FAIL = "end with 3"
    STAY = "go on for much longer than the test"
    SAVE = "leave a checkpoint, then STAY"


@dataclass
class Subject:
    """An adapter under test.  `command`: how a behaviour is asked of the platform.

    `queues`: a full center takes a run and lets it wait.  `image`: one that the center has.
    `native`: how the pool is called.  `looks_late`: its idle figures are those of its own last look.
    `resumes`: a run can go on from an earlier one.
    """

    adapter: Adapter
    command: Callable[[RunSpec, Behaviour], str]
    tick: Callable[[], AsyncIterator[None]]
    numbers: itertools.count[int]
    queues: bool = False
    image: str = ""
    native: str = "a800"
    looks_late: bool = False
    resumes: bool = True

    def spec(
        self, behaviour: Behaviour, *, nodes: int = 1, shape: NodeShape = NODE, pool: str = ""
    ) -> RunSpec:
        name = f"bk{next(self.numbers):010d}"
        bare = RunSpec(
            id=RunId(name),
            job=JobId(f"job-{name}"),
            attempt=1,
            native_pool=pool or self.native,
            spec=Spec(SpecId("s"), "s", shape),
            nodes=nodes,
            command="",
            image=self.image,
            env=(("GREETING", "hello"),),
            max_run_time_s=None,
            stop_grace_s=5,
        )
        return replace(bare, command=self.command(bare, behaviour))

    async def submit(self, behaviour: Behaviour, *, nodes: int = 1, shape: NodeShape = NODE) -> RunRef:
        return await self.send(self.spec(behaviour, nodes=nodes, shape=shape))

    async def send(self, spec: RunSpec) -> RunRef:
        """Submit and, where these are two calls, start."""
        ref = RunRef(spec.id, spec.job, await self.adapter.submit(spec), spec.nodes)
        if self.adapter.traits.two_phase_create:
            assert (await self.adapter.observe([ref]))[ref.id].state is RemoteState.CREATED
            await self.adapter.start(ref)
        return ref

    async def whole_nodes(self) -> bool:
        """Whether the platform gives whole nodes only."""
        (pool,) = (await self.adapter.probe()).pools
        return [spec.shape for spec in pool.specs] == [NODE]

    async def see(self, ref: RunRef, *states: RemoteState) -> Sighting:
        """Look until the run is in one of `states`; fails when it ends otherwise or the deadline passes."""
        until = time.monotonic() + DEADLINE_S
        async for _ in self.tick():
            seen = (await self.adapter.observe([ref]))[ref.id]
            if seen.state in states:
                return seen
            assert seen.state in LIVE, f"expected {states}, ended as {seen}"
            assert time.monotonic() < until, f"expected {states}, still {seen}"
        raise AssertionError("the clock stopped")

    async def free_cards(self) -> int:
        pools = (await self.adapter.probe()).pools
        return sum(free.accelerators * free.nodes for pool in pools for free in pool.free)

    async def expect_free(self, cards: int) -> None:
        """So many cards are free; an estimate, from which our own runs are never subtracted, says 4.

        Where the platform itself only looks now and then, its figure is waited for.
        """
        exact = self.adapter.traits.idle is Accuracy.EXACT
        until = time.monotonic() + (DEADLINE_S if self.looks_late else 0)
        async for _ in self.tick():
            if (free := await self.free_cards()) == (cards if exact else 4):
                return
            assert time.monotonic() < until, f"expected {cards} free cards, there are {free}"


def never_submitted(subject: Subject) -> RunRef:
    spec = subject.spec(Behaviour.STAY)
    return RunRef(spec.id, spec.job, RemoteId(spec.id), spec.nodes)


SHELL = {
    Behaviour.SUCCEED: (
        "echo $GREETING; echo world; cd $BROKER_OUTPUT_DIR; mkdir -p eval;"
        " printf '\\000weights' >model.bin; printf '{}' >eval/metrics.json"
    ),
    Behaviour.FAIL: "exit 3",
    Behaviour.STAY: "sleep 600",
    Behaviour.SAVE: 'echo 1 >"$BROKER_CHECKPOINT_DIR/step"; sleep 600',
}


async def real_time() -> AsyncIterator[None]:
    while True:
        yield
        await asyncio.sleep(0.02)


@asynccontextmanager
async def local_subject(path: Path) -> AsyncIterator[Subject]:
    options = {"work_dir": str(path / "work")}
    adapter = await local.connect(Connection(CenterId("c"), "bk", options, pools=(POOL,)))
    subject = Subject(adapter, lambda _, b: SHELL[b], real_time, itertools.count(1))
    try:
        yield subject
    finally:
        for number in range(1, next(subject.numbers)):
            name = f"bk{number:010d}"
            ref = RunRef(RunId(name), JobId(f"job-{name}"), RemoteId(name), 1)
            await adapter.stop(ref, grace_s=0)
            await subject.see(ref, *(set(RemoteState) - set(LIVE)))
        await adapter.aclose()


@asynccontextmanager
async def fake_subject(path: Path) -> AsyncIterator[Subject]:
    scripts = {
        Behaviour.SUCCEED: fake.Script(queue_s=2, run_s=5, log=LOG, results=RESULTS),
        Behaviour.FAIL: fake.Script(exit_code=3, run_s=5),
        Behaviour.STAY: fake.Script(run_s=10**9, stop_s=2),
        Behaviour.SAVE: fake.Script(run_s=10**9, stop_s=2, checkpoint_s=5),
    }
    now_ms = [1_700_000_000_000]
    adapter = fake.Fake(CenterId("c"), lambda: now_ms[0], pools=[POOL])

    def command(spec: RunSpec, behaviour: Behaviour) -> str:
        adapter.script(scripts[behaviour], of=spec.id)
        return behaviour.value

    async def tick() -> AsyncIterator[None]:
        while True:
            yield
            now_ms[0] += 1000

    yield Subject(adapter, command, tick, itertools.count(1))


@asynccontextmanager
async def aihub_subject(path: Path) -> AsyncIterator[Subject]:
    cluster = Cluster(29, "vc", (Node("n1", "10.0.0.1", 2), Node("n2", "10.0.0.2", 2)), cpu=2, memory=4)
    async with opened(path, clusters=(cluster,), pools=(replace(POOL, native="29"),)) as center:
        command, numbers = lambda _, b: SHELL[b], itertools.count(1)
        yield Subject(center.adapter, command, real_time, numbers, queues=True, image="i", native="29")


@asynccontextmanager
async def cecstack_subject(path: Path) -> AsyncIterator[Subject]:
    (path / "shared").mkdir()
    shared = str(path / "shared")
    async with Cecstack(path / "platform", speed=1.0) as platform:
        platform.tasks.queue_s = 0.05
        platform.add("a800", cpu=4, memory_gib=8, gpus=2, product="A800", nodes=2)
        options = {
            "endpoint": platform.url,
            "region": platform.site.region,
            "project_id": platform.project,
            "output": {"in_job": shared, "here": shared},
            "requests_per_s": 1000,
        }
        adapter = await cecstack.connect(Connection(CenterId("c"), "bk", options, pools=(POOL,)))
        try:
            numbers = itertools.count(1)
            yield Subject(adapter, lambda _, b: SHELL[b], real_time, numbers, queues=True, image="i")
            assert platform.complaints == []
        finally:
            await adapter.aclose()


@asynccontextmanager
async def ampha_subject(path: Path) -> AsyncIterator[Subject]:
    machines = ampha.nodes(2, cores=4, memory_gib=8.5, cards=2)
    output = {"in_job": str(path / "shared"), "here": str(path / "shared")}
    (path / "shared").mkdir()
    async with center_and_adapter(
        groups=[ampha.Group("a800", "zone", machines)],
        settings={"execute": True},
        folder=path,
        pools=(POOL,),
        output=output,
    ) as (center, adapter):
        image = next(iter(center.image.versions))
        yield Subject(adapter, lambda _, b: SHELL[b], real_time, itertools.count(1), queues=True, image=image)


@asynccontextmanager
async def tai123_subject(far: FarBroker) -> AsyncIterator[Subject]:
    """An account of its own at one real broker, so that names are new there."""
    other, account = far.broker, await asyncio.to_thread(far.new_account)
    adapter = await tai123.connect(account_at(other, account))
    try:
        (pool,) = (await adapter.probe()).pools
        command, numbers = lambda _, b: SHELL[b], itertools.count(1)
        subject = Subject(
            adapter, command, real_time, numbers, queues=True, image="local", native=pool.native
        )
        subject.looks_late, subject.resumes = True, False
        yield subject
    finally:
        await asyncio.to_thread(end_jobs, other, account)
        await subject.expect_free(4)
        await adapter.aclose()


SUBJECTS: dict[str, Callable[[Path], AbstractAsyncContextManager[Subject]]] = {
    "local": local_subject,
    "fake": fake_subject,
    "aihub": aihub_subject,
    "cecstack": cecstack_subject,
    "ampha": ampha_subject,
}


class FarBroker:
    """A real broker, started once for the module, and accounts at it."""

    def __init__(self, broker: DaemonProcess) -> None:
        self.broker = broker
        self._numbers = itertools.count(1)

    def new_account(self) -> str:
        """Blocks, and needs a thread without a loop."""
        name = f"network-{next(self._numbers)}"
        self.broker.add_user(name)
        return name


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarBroker]:
    folder = tmp_path_factory.mktemp("far")
    with other_broker(folder, cards_center(folder)) as broker:
        yield FarBroker(broker)


@pytest.fixture(params=[*SUBJECTS, "tai123"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Subject]:
    if request.param == "tai123":
        return tai123_subject(request.getfixturevalue("far"))
    return SUBJECTS[request.param](tmp_path)


@pytest.fixture
async def subject(opening: AbstractAsyncContextManager[Subject]) -> AsyncIterator[Subject]:
    async with opening as subject:
        yield subject
