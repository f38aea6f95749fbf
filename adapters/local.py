"""Real processes on this machine, as one center.

Here: the adapter protocol and exact capacity.  Not here: one run's directory and processes
(local_runner.py, and local_runner.sh, the supervisor that each node of a run has), its command
(local_command.py), the ports of online services (local_ports.py).

`work_dir` belongs to one daemon at a time, held by a lock on work_dir/lock:

    runs/<run_id>/         see local_runner.py; without spec.json it does not count and is removed
    checkpoints/<job_id>/  BROKER_CHECKPOINT_DIR: the same for all attempts, kept when a run is deleted
    datasets/<dataset>     each staged data set: a link to it, with run_as a copy that the jobs' user reads
    trash/                 what is being deleted

Commands run by /bin/sh -c on the machine itself: images are ignored.  A daemon that takes `work_dir`
over starts the ranks that nothing has started yet, unless a stop was requested, so a half-started
gang becomes whole.  A process that leaves its session (setsid) is not stopped with its run.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import platform
import pwd
import re
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from adapters import local_ports
from adapters.checkpoints import Checkpoints
from adapters.files import content, results_below
from adapters.local_command import PATH, Owner, launcher
from adapters.local_files import make_dir
from adapters.local_runner import LocalRun, boot_id, reap
from adapters.nodes import Held, histogram, misfit, pack, rooms
from adapters.output import Output
from adapters.staging import remove, step
from adapters.values import now_ms
from broker.adapter import (
    Adapter,
    Catalogue,
    Check,
    Connection,
    CopyRef,
    CopySighting,
    CopyState,
    Inventory,
    Lookup,
    NoCapacity,
    PoolReport,
    RawAnswer,
    Refused,
    RemoteState,
    ResultFile,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
    Traits,
    Unavailable,
    Unsupported,
)
from broker.core.model import Accuracy, NodeShape, RemoteId, RunId

T = TypeVar("T")

TRAITS = Traits(
    gang=True,
    resume=True,
    logs=True,
    results=True,
    services=True,
    address=True,
    any_image_url=True,
    idle=Accuracy.EXACT,
    lookup=Lookup.FIND_BY_NAME,
    max_batch=1000,
    look_pause_s=0.5,
)
MIN_FREE_BYTES = 1 << 30  # below this `broker doctor` complains
_ARCHES = {"x86_64": "X86", "amd64": "X86", "aarch64": "ARM", "arm64": "ARM"}
_OPTIONS = ("work_dir", "cores", "memory_gib", "run_as")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a directory; never "..", never a path
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LIVE = (RemoteState.PENDING, RemoteState.RUNNING, RemoteState.UNKNOWN)


async def connect(connection: Connection) -> Adapter:
    """The adapter over `connection.options["work_dir"]`, made if it is not there.

    Raises ValueError for an option that cannot be meant, Unavailable when another process holds the
    directory or it cannot be read.
    """
    settings = Settings.read(connection)
    try:
        return await asyncio.to_thread(Local, connection, settings)
    except OSError as error:
        raise Unavailable(f"work_dir {settings.work_dir}: {error}") from error


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a local center, checked."""

    work_dir: Path
    pools: Mapping[str, StatedPool]
    owner: Owner | None

    @classmethod
    def read(cls, connection: Connection) -> Settings:
        options = connection.options
        for key in options:
            if key not in _OPTIONS:
                raise ValueError(f"{key}: unknown option of a local center, expected {', '.join(_OPTIONS)}")
        work_dir = options.get("work_dir")
        if not isinstance(work_dir, str | os.PathLike) or not Path(work_dir).is_absolute():
            raise ValueError(f"work_dir is {work_dir!r}, expected an absolute path")
        machine = NodeShape(
            arch=_ARCHES.get(platform.machine().lower(), platform.machine().upper()),
            cores=_whole(options, "cores", len(os.sched_getaffinity(0))),
            memory_gib=_whole(options, "memory_gib", _memory_gib()),
        )
        pools: dict[str, StatedPool] = {}
        for pool in connection.pools or (StatedPool("local", machine, 1),):
            if pool.native in pools:
                raise ValueError(f"pools: native {pool.native!r} is stated twice, expected one pool of each")
            if pool.nodes < 1:
                raise ValueError(f"pools: nodes of {pool.native!r} is {pool.nodes}, expected at least 1")
            pools[pool.native] = pool
        return cls(Path(work_dir), pools, _owner(options.get("run_as")))


def _whole(options: Mapping[str, Any], key: str, default: int) -> int:
    value = options.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}, expected a whole number of at least 1")
    return value


def _memory_gib() -> int:
    return max(1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30)


def _owner(run_as: Any) -> Owner | None:
    if run_as is None:
        return None
    if os.geteuid() != 0:
        raise ValueError(f"run_as is {run_as!r}, expected nothing: only root can run as another user")
    try:
        user = pwd.getpwnam(run_as)
    except (KeyError, TypeError):
        raise ValueError(f"run_as is {run_as!r}, expected the name of a user of this machine") from None
    return Owner(user.pw_name, user.pw_uid, user.pw_gid)


class Local:
    """One directory and its runs.

    Everything that changes or judges runs is done in a thread under one mutex: a call whose caller
    has given up still does all of its work, and two submissions never see the same free slot.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        """Take the directory over.  Blocks; raises as `connect` does, and OSError."""
        self.center = connection.center
        self.traits = TRAITS
        self._settings = settings
        self._dir = settings.work_dir
        self._mutex = threading.Lock()
        self._runs: dict[RunId, LocalRun] = {}
        self._checkpoints = Checkpoints()
        mode = 0o711 if settings.owner else 0o700  # the jobs' user passes through, and sees no names
        if not self._dir.exists():
            self._dir.mkdir(parents=True)
            self._dir.chmod(mode)
        self._lock_fd = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in ("runs", "checkpoints", "datasets", "trash"):
                (self._dir / name).mkdir(exist_ok=True)
                (self._dir / name).chmod(mode)  # whatever the umask is
            if trouble := self._trial():
                raise ValueError(trouble)
            self._take_over()
        except BlockingIOError:
            os.close(self._lock_fd)
            raise Unavailable(f"work_dir {self._dir} is held by another process") from None
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _take_over(self) -> None:
        for path in sorted((self._dir / "runs").iterdir()):
            if not (path / "spec.json").exists():
                self._to_trash(path)
                continue
            try:
                run = LocalRun.load(path, self._settings.owner)
            except ValueError as error:
                raise Unavailable(f"{error}; move the directory away to go on without it") from None
            self._runs[run.stored.id] = run
            if run.stored.port is not None:
                local_ports.keep(run.path, run.stored.port)
            run.start_missing()
            run.signal_stop()
        self._empty_trash()

    def _trial(self) -> str:
        """Why a command cannot be run in work_dir, by trying one; "" when it can."""
        owner = self._settings.owner
        who = f"run_as is {owner.name!r}" if owner else "no run_as"
        argv = [*launcher(owner), "/bin/sh", "-c", 'cd -- "$0/runs"', str(self._dir)]
        done = subprocess.run(argv, env={"PATH": PATH}, capture_output=True, text=True, timeout=10)
        if done.returncode == 0:
            return ""
        return f"work_dir is {str(self._dir)!r} ({who}): a command cannot run there: {done.stderr.strip()}"

    # ------------------------------------------------------------ capacity

    async def probe(self) -> Inventory:
        """Every pool, minus exactly what our runs hold that have not ended."""
        return await self._work(self._probe)

    def _probe(self) -> Inventory:
        live = self._live()
        as_of_ms = now_ms()
        pools = tuple(
            PoolReport(
                name, pool.shape, pool.nodes, histogram(rooms(pool.shape, pool.nodes, _held(live, name)))
            )
            for name, pool in self._settings.pools.items()
        )
        return Inventory(as_of_ms, Accuracy.EXACT, pools, queue_length=0)

    def _live(self) -> list[LocalRun]:
        reap()
        live = []
        for run in [run for run in self._runs.values() if run.final is None]:
            seen = self._look(run)
            if seen is not None and seen.state in _LIVE:
                live.append(run)
        return live

    async def runs(self) -> Collection[RunId]:
        """The names of all runs that live here."""
        return await self._work(lambda: [run.stored.id for run in self._live()])

    def _look(self, run: LocalRun) -> Sighting | None:
        """None when it is gone.  One directory that cannot be read does not hide the others."""
        try:
            seen = run.look()
        except (OSError, ValueError) as error:
            return Sighting(RemoteState.UNKNOWN, message=f"{run.path}: {error}")
        if seen is None:
            del self._runs[run.stored.id]
        if run.stored.port is not None and (seen is None or seen.state not in _LIVE):
            local_ports.give_back(run.path)
        return seen

    # ------------------------------------------------------------ a run's life

    async def submit(self, run: RunSpec) -> RemoteId:
        """Create the run's directory and start its supervisors; an id that is there is answered only."""
        return await self._work(lambda: self._submit(run))

    def _submit(self, spec: RunSpec) -> RemoteId:
        if spec.id not in self._runs:
            self._check(spec)
            on = self._place(spec, self._live())
            path = self._dir / "runs" / spec.id
            checkpoints = self._dir / "checkpoints" / spec.job
            shared = {"BROKER_CHECKPOINT_DIR": str(checkpoints)}
            try:
                if path.exists():  # the rest of a creation that failed
                    self._to_trash(path)
                make_dir(checkpoints, self._settings.owner)
                if spec.port is not None:
                    spec = replace(spec, port=local_ports.take(path, spec.port))
                run = LocalRun.create(path, spec, on, shared=shared, owner=self._settings.owner)
            except local_ports.NoPort as error:
                raise NoCapacity(str(error)) from error
            except OSError as error:
                local_ports.give_back(path)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise NoCapacity(f"no disk space for {path}: {error.strerror}") from error
                raise
            self._runs[spec.id] = run
            run.start_missing()
        return RemoteId(spec.id)

    def _check(self, spec: RunSpec) -> None:
        """Raises Refused for what can never run here."""
        for field, name in (("run id", spec.id), ("job id", spec.job)):
            if not _NAME.fullmatch(name):
                raise Refused(f"{field} is {name!r}, expected letters, digits, '.', '_' and '-'")
        for key, value in spec.env:
            if not _VARIABLE.fullmatch(key):
                raise Refused(f"env name is {key!r}, expected letters, digits and '_' (a shell drops others)")
            if "\0" in value:
                raise Refused(f"env value of {key} has a NUL character, expected text without")
        for dataset, place in spec.datasets:
            if not _NAME.fullmatch(dataset):
                raise Refused(f"data set {dataset!r} cannot be the name of a file")
            if not place.startswith("/") or not os.path.exists(place):
                raise Refused(f"data set {dataset!r} is at {place!r}, which is no existing absolute path")
        if not spec.command.strip() or "\0" in spec.command:
            raise Refused(f"command is {spec.command!r}, expected text for /bin/sh -c")
        pool = self._settings.pools.get(spec.native_pool)
        if pool is None:
            raise Refused(f"pool is {spec.native_pool!r}, expected one of {sorted(self._settings.pools)}")
        if why := misfit(spec.spec.shape, pool.shape):
            raise Refused(f"pool {pool.native!r}: {why}")
        if (
            spec.nodes < 1
            or pack(pool.shape, rooms(pool.shape, pool.nodes, ()), spec.spec.shape, spec.nodes) is None
        ):
            raise Refused(f"pool {pool.native!r}: nodes is {spec.nodes}, more than it can ever hold")

    def _place(self, spec: RunSpec, live: list[LocalRun]) -> tuple[int, ...]:
        pool = self._settings.pools[spec.native_pool]
        on = pack(
            pool.shape, rooms(pool.shape, pool.nodes, _held(live, pool.native)), spec.spec.shape, spec.nodes
        )
        if on is None:
            raise NoCapacity(f"pool {pool.native!r} has no room for {spec.nodes} x {spec.spec.name}")
        return on

    async def start(self, run: RunRef) -> None:
        raise Unsupported("a local run starts when it is submitted")

    async def find(self, run: RunId) -> RemoteId | None:
        return await self._work(lambda: RemoteId(run) if run in self._runs else None)

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        """Every run asked for, from its directory; a run without one is GONE."""
        return await self._work(lambda: self._observe(runs))

    def _observe(self, runs: Collection[RunRef]) -> dict[RunId, Sighting]:
        reap()
        seen = {}
        for ref in runs:
            run = self._runs.get(ref.id)
            found = (run and self._look(run)) or Sighting(RemoteState.GONE)
            newest_ms = self._checkpoints.newest_ms(self._dir / "checkpoints" / ref.job)
            seen[ref.id] = replace(found, checkpoint_ms=newest_ms)
        return seen

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        """SIGTERM now, SIGKILL to what is left of the session after `grace_s`; both by the supervisor."""
        await self._work(lambda: self._stop(run.id, grace_s))

    def _stop(self, id: RunId, grace_s: int) -> None:
        run = self._runs.get(id)
        if run is not None and (seen := self._look(run)) and seen.state in _LIVE:
            run.stop(grace_s)

    async def delete(self, run: RunRef) -> None:
        """Remove the directory of an ended run.  Raises Unavailable for a live one: stop it first."""
        await self._work(lambda: self._delete(run.id))
        await asyncio.to_thread(self._empty_trash)  # outside the mutex: it may be large

    def _delete(self, id: RunId) -> None:
        run = self._runs.get(id)
        if run is None or (seen := self._look(run)) is None:
            return
        if seen.state in _LIVE:
            raise Unavailable(f"run {id} is {seen.state}, expected an ended one")
        if run.path.exists():
            self._to_trash(run.path)
        del self._runs[id]

    def _to_trash(self, path: Path) -> None:
        path.rename(self._dir / "trash" / f"{path.name}.{time.monotonic_ns()}")

    def _empty_trash(self) -> None:
        for path in (self._dir / "trash").iterdir():
            shutil.rmtree(path, ignore_errors=True)  # what is left is tried again at the next call

    # ------------------------------------------------------------ files

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        """Standard output and error of one rank, in chunks of 64 KiB; nothing where there is none."""
        if run.id not in self._runs:
            return
        folder = self._dir / "runs" / run.id / f"node-{node}"
        async for chunk in content(folder, "log", offset):
            yield chunk

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        """The files below output/, in order of their paths; a link that leads outside is left out."""
        if run.id not in self._runs:
            return
        root = self._dir / "runs" / run.id / "output"
        for result in await asyncio.to_thread(results_below, root):
            yield result

    async def stage(self, copy: CopyRef) -> CopySighting:
        """Nothing is copied where jobs run as the daemon's user: they get a link to the source."""
        if self._settings.owner is None:
            return await asyncio.to_thread(self._stage, copy)
        await asyncio.to_thread(self._drop_link, copy)
        seen = await step(Output(str(self._dir), self._dir), copy)
        if seen.state is CopyState.READY:
            await asyncio.to_thread(_let_read, Path(seen.remote))
        return seen

    async def unstage(self, copy: CopyRef) -> None:
        """Remove a link or copy; runs that were started with a link to the source keep it."""
        await asyncio.to_thread(self._drop_link, copy)
        await remove(Output(str(self._dir), self._dir), copy.dataset)

    def _drop_link(self, copy: CopyRef) -> None:
        link = self._dir / "datasets" / copy.dataset
        if _NAME.fullmatch(copy.dataset) and link.is_symlink():
            link.unlink()

    def _stage(self, copy: CopyRef) -> CopySighting:
        source = Path(copy.source)
        if not _NAME.fullmatch(copy.dataset):
            return CopySighting(CopyState.FAILED, message=f"{copy.dataset!r} cannot be the name of a file")
        if not source.is_absolute() or not source.exists():
            return CopySighting(CopyState.FAILED, message=f"{source} is not an existing absolute path")
        link = self._dir / "datasets" / copy.dataset
        if not link.is_symlink() or link.readlink() != source:
            new = link.with_name(f".{link.name}.{threading.get_ident()}")
            new.unlink(missing_ok=True)
            new.symlink_to(source)
            new.replace(link)
        return CopySighting(CopyState.READY, remote=str(source), bytes_done=copy.bytes)

    # ------------------------------------------------------------ the rest

    async def catalogue(self) -> Catalogue:
        return Catalogue()

    async def checks(self) -> AsyncIterator[Check]:
        free = shutil.disk_usage(self._dir).free
        yield Check("disk", free >= MIN_FREE_BYTES, f"{free >> 20} MiB free in {self._dir}")
        writable = os.access(self._dir / "runs", os.W_OK | os.X_OK)
        yield Check("work_dir", writable, f"{self._dir / 'runs'} is {'' if writable else 'not '}writable")
        trouble = await asyncio.to_thread(self._trial)
        yield Check("commands", not trouble, trouble or "/bin/sh, env and the jobs' user work")
        yield Check("boot id", True, await asyncio.to_thread(boot_id))
        runs = await self._work(self._live)
        yield Check("runs", True, f"{len(runs)} live")

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        raise Unsupported("a local center has no interface to call")

    async def aclose(self) -> None:
        """Let go of the directory; runs go on."""
        await self._work(self._let_go)

    def _let_go(self) -> None:
        for run in self._runs.values():
            local_ports.give_back(run.path)
        if self._lock_fd >= 0:
            # By hand: a process forked at this moment has a copy of the descriptor until its exec.
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = -1

    async def _work(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread under the mutex.  Trouble with the disk is Unavailable."""

        def locked() -> T:
            with self._mutex:
                return work()

        try:
            return await asyncio.to_thread(locked)
        except OSError as error:
            raise Unavailable(f"work_dir {self._dir}: {error}") from error


def _let_read(folder: Path) -> None:
    """Files and folders that the jobs' user can read, whatever the umask is."""
    for parent, _, names in os.walk(folder):
        os.chmod(parent, 0o755)
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444)


def _held(live: list[LocalRun], pool: str) -> list[Held]:
    return [run.stored.held for run in live if run.stored.pool == pool]
