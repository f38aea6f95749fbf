"""The centers of a story and what they know better than the broker: they outlive the daemon.

Local centers, whose processes write their own record, and emulated platforms with a ground truth, calm
and with calls that go wrong.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import test_soak_aihub as aihub
from tests import test_soak_ampha as ampha
from tests import test_soak_cecstack as cecstack
from tests.daemon_process import local_center
from tests.emulators.aihub import Cluster, Node, Switches, serve
from tests.emulators.ampha import Ampha, Settings, group, nodes
from tests.emulators.faults import Fault
from tests.soak import SPEED, Executed, Site, Truth, Work, in_background

FAULTY = 0.04
"""Share of the calls that go wrong where they do."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a story plays on.  `large` is the index of the spec that fills a node, of which there are
    `room`; `unit_s` is an emulated second."""

    site: Site
    truth: Truth
    large: int
    room: int
    centers: int = 1
    unit_s: float = 1 / SPEED
    command: Callable[[Work], str] = lambda work: work.command


# ---------------------------------------------------------------- local


@dataclass(frozen=True, slots=True)
class Start:
    """An execution as its own process wrote it down."""

    name: str
    started_ms: int
    ended_ms: int | None
    exit_codes: tuple[int, ...]
    ended_by: str


class LocalTruth:
    """What the processes wrote: their start, their end, and whether another of the same job was alive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()

    def command(self, work: Work) -> str:
        """The work in a shell that holds a lock of its job as long as any of its processes lives."""
        here = self.folder
        return (
            f"exec 9>>{here}/job-$BROKER_JOB_ID.lock 8>>{here}/run-$BROKER_TASK_ID.lock\n"
            f'flock -n 9 || echo "$BROKER_TASK_ID while another ran" >>{here}/complaints\n'
            f'flock -n 8 || echo "$BROKER_TASK_ID twice at once" >>{here}/complaints\n'
            f'echo "start $BROKER_TASK_ID $(date +%s%3N)" >>{here}/record\n'
            f"sleep {work.run_s / SPEED}\n"
            f'echo "end $BROKER_TASK_ID $(date +%s%3N) {work.exit_code}" >>{here}/record\n'
            f"exit {work.exit_code}"
        )

    def executions(self) -> Sequence[Start]:
        """Those without an end of their own were stopped; when, nobody wrote: `complaints` has overlaps."""
        found: list[Start] = []
        for words in map(str.split, self._lines("record")):
            if words[0] == "start":
                started = int(words[2])
                found.append(Start(words[1], started, started, (), "a stop"))
                continue
            (at,) = [i for i, each in enumerate(found) if each.name == words[1] and each.ended_by == "a stop"]
            found[at] = Start(words[1], found[at].started_ms, int(words[2]), (int(words[3]),), "itself")
        return found

    def alive(self) -> Sequence[str]:
        return [path.stem[4:] for path in self.folder.glob("run-*.lock") if _held(path)]

    def remote(self, name: str) -> str | None:
        return name if list(self.folder.parent.glob(f"work-*/runs/{name}/spec.json")) else None

    def repeated(self) -> Sequence[str]:
        return ()

    def complaints(self) -> Sequence[str]:
        return self._lines("complaints")

    def calm(self) -> None:
        """Nothing goes wrong here."""

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


def _held(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def local(folder: Path, _seed: int) -> Iterator[Stage]:
    truth = LocalTruth(folder / "truth")
    centers = "".join(local_center(folder, name, nodes=1) for name in ("a", "b"))
    site = Site(centers, sizes=1, image="local", gangs=False)
    try:
        yield Stage(site, truth, large=-1, room=2, centers=2, command=truth.command)
    finally:
        end = time.monotonic() + 10  # a story that failed leaves processes: each ends by itself
        while truth.alive() and time.monotonic() < end:
            time.sleep(0.1)


# ---------------------------------------------------------------- emulated platforms


@contextmanager
def _aihub(folder: Path, seed: int, chance: float) -> Iterator[Stage]:
    cluster = Cluster(29, "vc-a800-train", tuple(Node(f"ai-{n}", f"10.0.0.{n}", 8) for n in (1, 2)))
    switches = Switches(token_s=60, expired="401")
    with in_background(lambda: serve(folder, [cluster], switches=switches, speed=SPEED, seed=seed)) as hub:
        hub.faults.chance(chance, list(Fault), aihub.operations())
        center = aihub.center_of(hub, folder, "quota").replace("nodes = 4", "nodes = 2")
        site = Site(center, sizes=4, image="pytorch", doubts_end=False)
        yield Stage(site, aihub.AihubTruth(hub), large=3, room=2)


@contextmanager
def _ampha(folder: Path, seed: int, chance: float) -> Iterator[Stage]:
    settings = Settings(
        scale=SPEED, seed=seed, session_s=60, create_s=(0.2, 2), list_lag_s=(0, 5), pull_s=(2, 5),
        refuse_duplicates=True,
    )  # fmt: skip
    with in_background(lambda: Ampha([group(nodes(2))], settings)) as center:
        center.faults.chance(chance, list(Fault), ampha.OPERATIONS)
        site = Site(ampha.center_of(center, "computationTask"), sizes=4, image="ai-common:v1.0.0")
        yield Stage(site, ampha.AmphaTruth(center), large=3, room=2)


@contextmanager
def _cecstack(folder: Path, seed: int, chance: float) -> Iterator[Stage]:
    with cecstack.emulated(folder) as platform:
        platform.faults.chance(chance, cecstack.KINDS, cecstack.OPERATIONS)
        center = cecstack.center_of(platform, folder)
        site = Site(center, sizes=2, image="pytorch", gangs=False, vips=False)
        yield Stage(site, cecstack.CecstackTruth(platform), large=1, room=6)


def _with(
    make: Callable[[Path, int, float], AbstractContextManager[Stage]], chance: float
) -> Callable[[Path, int], AbstractContextManager[Stage]]:
    return lambda folder, seed: make(folder, seed, chance)


STAGES: dict[str, Callable[[Path, int], AbstractContextManager[Stage]]] = {
    "local": local,
    "aihub": _with(_aihub, 0.0),
    "aihub-faulty": _with(_aihub, FAULTY),
    "ampha": _with(_ampha, 0.0),
    "ampha-faulty": _with(_ampha, FAULTY),
    "cecstack": _with(_cecstack, 0.0),
    "cecstack-faulty": _with(_cecstack, FAULTY),
}

__all__ = ["STAGES", "Executed", "Stage"]
