"""What every adapter must do, whatever its platform: one module over all of them.

Here: the contract of broker.adapter.Adapter as the broker's loops rely on it.  Not here: what only
one platform does (test_<adapter>.py).  A platform joins by a row in SUBJECTS: an adapter over two
nodes of 4 cores, 8 GiB and 2 cards in the pool "a800", and how each Behaviour is asked of it.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import pytest

from adapters import cecstack, fake, local, tai123
from broker.adapter import (
    Adapter,
    ArgumentKind,
    Connection,
    CopyRef,
    NoCapacity,
    RawAnswer,
    Refused,
    RemoteState,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
    Unsupported,
    commands_of,
    unstage_of,
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


async def test_probe_is_whole_and_sane(subject: Subject) -> None:
    inventory = await subject.adapter.probe()
    assert inventory.accuracy is subject.adapter.traits.idle
    assert inventory.as_of_ms > 1_600_000_000_000
    (pool,) = inventory.pools
    assert (pool.native, pool.shape, pool.nodes) == (subject.native, NODE, 2)
    assert sum(free.nodes for free in pool.free) == 2
    assert all((f.cores, f.memory_gib, f.accelerators) == (4, 8, 2) for f in pool.free)


async def test_success_is_seen_with_its_times(subject: Subject) -> None:
    seen = await subject.see(await subject.submit(Behaviour.SUCCEED), RemoteState.SUCCEEDED)
    assert seen.exit_code == 0
    assert seen.started_ms is not None
    assert seen.ended_ms is not None
    assert 1_600_000_000_000 < seen.started_ms <= seen.ended_ms


async def test_failure_is_seen_with_its_exit_code(subject: Subject) -> None:
    seen = await subject.see(await subject.submit(Behaviour.FAIL), RemoteState.FAILED)
    assert (seen.exit_code, seen.host_lost, seen.cannot_start, seen.evicted_by) == (3, False, False, "")
    assert "3" in seen.message


async def test_an_end_is_told_again_the_same(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.FAIL)
    seen = await subject.see(ref, RemoteState.FAILED)
    await subject.adapter.stop(ref, grace_s=1)
    assert (await subject.adapter.observe([ref]))[ref.id] == seen


async def test_find_by_name(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.STAY)
    assert await subject.adapter.find(ref.id) == ref.remote
    assert await subject.adapter.find(RunId("bkzzzzzzzzzz")) is None


async def test_the_same_id_starts_once(subject: Subject) -> None:
    spec = subject.spec(Behaviour.STAY)
    remotes = await asyncio.gather(*(subject.adapter.submit(spec) for _ in range(5)))
    assert len(set(remotes)) == 1
    if subject.adapter.traits.two_phase_create:
        await subject.see(await subject.send(spec), RemoteState.RUNNING)
    await subject.expect_free(2)


async def test_a_stop_ends_a_run(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.STAY)
    await subject.see(ref, RemoteState.RUNNING)
    await subject.adapter.stop(ref, grace_s=5)
    await subject.adapter.stop(ref, grace_s=5)
    seen = await subject.see(ref, RemoteState.STOPPED)
    assert seen.ended_ms is not None
    await subject.expect_free(4)


async def test_stop_and_delete_of_an_unknown_run_are_done(subject: Subject) -> None:
    ref = never_submitted(subject)
    await subject.adapter.stop(ref, grace_s=1)
    await subject.adapter.delete(ref)
    assert await subject.adapter.find(ref.id) is None


async def test_an_unknown_run_is_gone_and_hides_no_other(subject: Subject) -> None:
    unknown, known = never_submitted(subject), await subject.submit(Behaviour.STAY)
    seen = await subject.adapter.observe([unknown, known])
    assert seen[unknown.id].state is RemoteState.GONE
    assert seen[known.id].state in LIVE
    assert await subject.adapter.observe([]) == {}


async def test_logs_from_any_offset(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.SUCCEED)
    await subject.see(ref, RemoteState.SUCCEEDED)
    for offset in (0, 1, 6, len(LOG), len(LOG) + 5):
        assert b"".join([c async for c in subject.adapter.logs(ref, 0, offset)]) == LOG[offset:]
    assert [c async for c in subject.adapter.logs(ref, 7, 0)] == []
    unknown = never_submitted(subject)
    assert [c async for c in subject.adapter.logs(unknown, 0, 0)] == []


async def test_results(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.SUCCEED)
    await subject.see(ref, RemoteState.SUCCEEDED)
    found = {}
    async for result in subject.adapter.results(ref):
        found[result.path] = b"".join([chunk async for chunk in result.chunks])
        assert result.size == len(found[result.path])
    assert found == RESULTS
    unknown = never_submitted(subject)
    assert [r async for r in subject.adapter.results(unknown)] == []


async def test_a_checkpoint_is_seen(subject: Subject) -> None:
    """Where a run can go on from an earlier one, what has been saved is known: only the rest is lost."""
    assert subject.adapter.traits.resume is subject.resumes
    if not subject.resumes:
        return
    saving, other = await subject.submit(Behaviour.SAVE), await subject.submit(Behaviour.STAY)
    started = await subject.see(saving, RemoteState.RUNNING)
    await subject.see(other, RemoteState.RUNNING)
    until = time.monotonic() + DEADLINE_S
    async for _ in subject.tick():
        seen = await subject.adapter.observe([saving, other])
        if (saved_ms := seen[saving.id].checkpoint_ms) is not None:
            break
        assert time.monotonic() < until, f"no checkpoint: {seen}"
    assert started.started_ms is not None
    assert saved_ms is not None
    assert saved_ms // 1000 >= started.started_ms // 1000
    assert seen[other.id].checkpoint_ms is None
    for ref in (saving, other):
        await subject.adapter.stop(ref, grace_s=0)


async def test_a_deleted_run_is_gone(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.SUCCEED)
    await subject.see(ref, RemoteState.SUCCEEDED)
    await subject.adapter.delete(ref)
    await subject.adapter.delete(ref)
    assert (await subject.adapter.observe([ref]))[ref.id].state is RemoteState.GONE
    assert await subject.adapter.find(ref.id) is None


async def test_a_gang_of_two_nodes(subject: Subject) -> None:
    if not subject.adapter.traits.gang:
        with pytest.raises((Refused, Unsupported)):
            await subject.submit(Behaviour.SUCCEED, nodes=2)
        return
    ref = await subject.submit(Behaviour.SUCCEED, nodes=2)
    await subject.see(ref, RemoteState.SUCCEEDED)
    for node in (0, 1):
        assert b"".join([c async for c in subject.adapter.logs(ref, node, 0)]) == LOG


async def test_a_full_center_says_so_and_capacity_comes_back(subject: Subject) -> None:
    gang = subject.adapter.traits.gang
    first = [await subject.submit(Behaviour.STAY, nodes=2 if gang else 1) for _ in range(1 if gang else 2)]
    for ref in first:
        await subject.see(ref, RemoteState.RUNNING)
    await subject.expect_free(0)
    late = subject.spec(Behaviour.STAY)
    if subject.queues:
        waiting = await subject.send(late)
        await subject.see(waiting, RemoteState.PENDING)
    else:
        with pytest.raises(NoCapacity):
            await subject.adapter.submit(late)
        assert await subject.adapter.find(late.id) is None, "a refusal has no effect"
    for ref in first:
        await subject.adapter.stop(ref, grace_s=5)
        await subject.see(ref, RemoteState.STOPPED)
    if subject.queues:
        await subject.see(waiting, RemoteState.RUNNING)
    else:
        await subject.adapter.submit(late)
    await subject.expect_free(2)


async def test_slices_share_a_node(subject: Subject) -> None:
    if await subject.whole_nodes():
        with pytest.raises(Refused):
            await subject.submit(Behaviour.STAY, shape=HALF)
        return
    for left in (3, 2, 1):
        await subject.submit(Behaviour.STAY, shape=HALF)
        await subject.expect_free(left)
    if subject.adapter.traits.idle is Accuracy.EXACT:
        (pool,) = (await subject.adapter.probe()).pools
        assert sorted(free.accelerators for free in pool.free) == [0, 1], "best fit fills a node first"
    if subject.queues:
        await subject.see(await subject.submit(Behaviour.STAY), RemoteState.PENDING)
    else:
        with pytest.raises(NoCapacity):
            await subject.submit(Behaviour.STAY)


@pytest.mark.parametrize(
    ("shape", "nodes", "pool"),
    [
        (NODE, 3, ""),
        (NODE, 1, "h800"),
        (NodeShape("ARM", 1, 1), 1, ""),
        (NodeShape("X86", 5, 1), 1, ""),
        (NodeShape("X86", 1, 1, "Nvidia/GPU/A100", 1, 80), 1, ""),
        (NodeShape("X86", 1, 1, "Nvidia/GPU/A800", 1, 81), 1, ""),
    ],
)
async def test_what_never_fits_is_refused(subject: Subject, shape: NodeShape, nodes: int, pool: str) -> None:
    spec = subject.spec(Behaviour.STAY, shape=shape, nodes=nodes, pool=pool)
    with pytest.raises(Refused):
        await subject.adapter.submit(spec)
    assert await subject.adapter.find(spec.id) is None


async def test_concurrent_submissions_never_overfill(subject: Subject) -> None:
    specs = [subject.spec(Behaviour.STAY) for _ in range(6)]
    answers = await asyncio.gather(*map(subject.send, specs), return_exceptions=True)
    assert sum(isinstance(answer, NoCapacity) for answer in answers) == (0 if subject.queues else 4)
    refs = [answer for answer in answers if isinstance(answer, RunRef)]
    until = time.monotonic() + DEADLINE_S
    running = 0
    async for _ in subject.tick():
        seen = [sighting.state for sighting in (await subject.adapter.observe(refs)).values()]
        if (running := seen.count(RemoteState.RUNNING)) >= 2:
            break
        assert time.monotonic() < until, f"two should run: {seen}"
    assert running == 2
    await subject.expect_free(0)


# ---------------------------------------------------------------- for operators


async def test_the_doctor_finds_a_healthy_center_healthy(subject: Subject) -> None:
    checks = [check async for check in subject.adapter.checks()]
    assert [check for check in checks if not check.ok] == []
    assert checks
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.detail for check in checks), "a check says what it found"


async def test_the_catalogue_is_whole(subject: Subject) -> None:
    images = (await subject.adapter.catalogue()).images
    assert len({(image.id, image.arch) for image in images}) == len(images)
    assert all(image.id and image.native for image in images)


async def test_a_copy_that_is_not_there_is_removed(subject: Subject) -> None:
    """Where copies can be removed at all."""
    unstage = unstage_of(subject.adapter)
    assert unstage is not None
    copy = CopyRef("never-staged", subject.adapter.center, "/nowhere", 1)
    with suppress(Unsupported):
        await unstage(copy)


async def test_a_raw_call_answers_or_is_unsupported(subject: Subject) -> None:
    try:
        answer: RawAnswer | None = await subject.adapter.call("GET", "/no/such/path", None)
    except Unsupported:
        answer = None
    assert answer is None or answer.status >= 200
    with pytest.raises((Refused, Unsupported)):
        await subject.adapter.call("GET", "//elsewhere.example/", None)


async def test_vendor_commands_can_be_shown_and_given(subject: Subject) -> None:
    commands = commands_of(subject.adapter)
    assert len({command.name for command in commands}) == len(commands)
    for command in commands:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", command.name), command.name
        assert command.help, command.name
        names = [argument.name for argument in command.arguments]
        assert len(set(names)) == len(names)
        assert not {"center", "json", "help"} & set(names), "words of the command line itself"
        for argument in command.arguments:
            assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", argument.name), argument.name
            assert argument.help, f"{command.name} {argument.name}"
            assert not (argument.kind is ArgumentKind.FLAG and (argument.required or argument.many))
