"""Many jobs through the real daemon at an emulated CECSTACK whose calls go wrong: see tests/soak.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.cecstack_tasks import remote_id
from tests.emulators.cecstack import Cecstack, Site
from tests.emulators.cecstack.tasks import Execution
from tests.emulators.faults import TRANSPORT, Fault
from tests.soak import FAULTY, SEED, SPEED, in_background, soak
from tests.soak import Site as SoakSite

PACKAGES = {"AIDP-small": (8, 32, 1), "AIDP-large": (64, 512, 8)}
OPERATIONS = (
    *("resource.list", "project.page", "task.list", "task.detail"),
    *("task.create", "task.run", "task.stop"),
)
KINDS = (*TRANSPORT, Fault.STALE_READ, Fault.VANISHED_TASK, Fault.NODE_LOSS, Fault.STOP_REFUSED)
"""No sessions end here: every request is signed; and a name is never refused as taken but by a defect."""


@dataclass(frozen=True, slots=True)
class Executed:
    """An execution in the words of the soak."""

    name: str
    started_ms: int
    ended_ms: int | None
    exit_codes: tuple[int, ...]
    ended_by: str

    @classmethod
    def of(cls, execution: Execution) -> Executed:
        code = execution.exit_code
        itself = execution.outcome in ("Succeeded", "Failed") and code is not None
        return cls(
            execution.name,
            int(execution.started * 1000),
            None if execution.ended is None else int(execution.ended * 1000),
            () if code is None else (code,),
            "itself" if itself else execution.outcome,
        )


class CecstackTruth:
    """What the emulator knows."""

    def __init__(self, platform: Cecstack) -> None:
        self._platform = platform

    def executions(self) -> Sequence[Executed]:
        return [Executed.of(execution) for execution in list(self._platform.tasks.executions)]

    def alive(self) -> Sequence[str]:
        tasks = list(self._platform.tasks.all.values())
        return [task.name for task in tasks if task.status in ("Pending", "Running")]

    def remote(self, name: str) -> str | None:
        for task in list(self._platform.tasks.all.values()):
            if task.name == name:
                return remote_id("slm", task.id)
        return None

    def repeated(self) -> Sequence[str]:
        """A name is created once, and a task is run once: a start that was not carried out may come
        again, and is not counted."""
        seen = list(self._platform.seen)
        names = Counter(s.body["name"] for s in seen if s.operation == "task.create")
        runs = Counter(s.path for s in seen if s.operation == "task.run" and s.done)
        return [what for what, count in (*names.items(), *runs.items()) if count > 1]

    def complaints(self) -> Sequence[str]:
        return list(self._platform.complaints)

    def calm(self) -> None:
        self._platform.faults.calm()


def center_of(platform: Cecstack, folder: Path) -> str:
    storage = folder / "storage"
    storage.mkdir(exist_ok=True)
    pools = "".join(
        f"""
[[centers.pools]]
native = "{native}"
arch = "X86"
cores = {cores}
memory_gib = {memory_gib}
accelerator = "Nvidia/GPU/H800"
accelerators = {cards}
accelerator_memory_gib = 80
nodes = 6
"""
        for native, (cores, memory_gib, cards) in PACKAGES.items()
    )
    return f"""
[[centers]]
id = "cd-1"
name = "Chengdu"
adapter = "cecstack"
poll_interval_s = 1
max_in_flight = 64
[centers.connection]
endpoint = "{platform.url}"
region = "{platform.site.region}"
project_id = {platform.project}
signature = "hmac-sha256"
timeout_s = 1
lookup_lag_s = 1
requests_per_s = 500
concurrency = 16
output = {{ in_job = "{storage}", here = "{storage}" }}
[centers.credentials]
access_key = "AK-1"
secret_key = "hush-hush"
{pools}
[[centers.images]]
id = "pytorch"
native = "reg/pt:2.3"
"""


@contextmanager
def emulated(folder: Path) -> Iterator[Cecstack]:
    """An installation with two packages; 5 % of the calls go wrong, in every way."""

    @asynccontextmanager
    async def serve():  # type: ignore[no-untyped-def]
        site = Site(secrets={"AK-1": "hush-hush"})
        async with Cecstack(folder / "platform", speed=SPEED, seed=SEED, site=site) as platform:
            for native, (cores, memory_gib, cards) in PACKAGES.items():
                platform.add(native, cpu=cores, memory_gib=memory_gib, gpus=cards, product="H800", nodes=6)
            platform.faults.chance(FAULTY, KINDS, OPERATIONS)
            yield platform

    with in_background(serve) as platform:
        yield platform


def test_jobs_survive_a_faulty_platform(tmp_path: Path) -> None:
    with emulated(tmp_path) as platform:
        site = SoakSite(center_of(platform, tmp_path), sizes=2, image="pytorch", gangs=False, vips=False)
        story = soak(tmp_path, site, CecstackTruth(platform))
        kinds = Counter(occurred.fault for occurred in platform.faults.occurred)
        print(f"{len(platform.seen)} requests, faults {dict(kinds)}, held {sorted(story.held)}")
        assert sum(kinds.values()) >= len(platform.seen) * FAULTY / 3
        assert not story.held, "what is in doubt here can be looked up"
