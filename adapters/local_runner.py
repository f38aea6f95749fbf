"""One local run on disk: its directory, its supervisors, and what the directory says of it.

Here: everything that reads or writes below runs/<run_id>/, and the signals.  Not here: capacity and
the adapter protocol (local.py), as whom and in which environment a command runs (local_command.py),
how files are made (local_files.py).  All of it is short, synchronous file work that local.py calls from
a thread, one call at a time.

    spec.json        what was asked for; renamed into place last, so it makes the run exist
    env-<rank>       the command's environment, as shell assignments
    node-<rank>/     working directory and HOME; log: standard output and error
    output/          BROKER_OUTPUT_DIR of all ranks
    datasets/        BROKER_DATASETS_DIR: a link to each data set that the run names
    alive-<rank>     the supervisor's process id, believed only while the file is locked
    started-<rank>   made exclusively right before the command; its modification time is the start
    exit-<rank>      renamed into place at the end: exit code, end in ms, ended | stopped | lost, why
    stop-requested   when to kill in 1/100 s of /proc/uptime, when it was requested in ms
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from adapters.files import open_below
from adapters.local_command import PATH, Owner, environment_of, launcher
from adapters.local_files import make_dir, open_private, write_whole
from adapters.nodes import Held
from adapters.values import now_ms
from broker.adapter import RemoteState, RunSpec, Sighting
from broker.core.model import JobId, NodeShape, RunId

SUPERVISOR = Path(__file__).with_name("local_runner.sh")
_AS_ASKED = '. "$0" && exec /bin/sh -c "$1"'  # run as the job's user: $0 is env-<rank>, $1 the command
_CANNOT_START = (126, 127)  # of a shell: found but not executable, not found
_TAIL_BYTES = 4096

# Supervisors are children of this process until it dies, whichever adapter of it started them.
_children: list[subprocess.Popen[bytes]] = []
_children_lock = threading.Lock()


def reap() -> None:
    """Take the exit status of supervisors that have ended, so that none stays as a zombie."""
    with _children_lock:
        _children[:] = [child for child in _children if child.poll() is None]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class How(StrEnum):
    """How a node's part of a run came to its end."""

    ENDED = "ended"  # by itself
    STOPPED = "stopped"  # by a stop, or never started because of one
    LOST = "lost"  # the host's fault


@dataclass(frozen=True, slots=True)
class Rank:
    """What the directory says of one node of a run."""

    alive: bool
    started_ms: int | None
    code: int | None = None
    ended_ms: int | None = None
    how: How | None = None  # None: not ended
    why: str = ""  # only where there was no command to say it in the log


@dataclass(frozen=True, slots=True)
class Stored:
    """The content of spec.json."""

    id: RunId
    job: JobId
    pool: str
    shape: NodeShape
    on: tuple[int, ...]  # the pool's node of each rank
    command: str
    port: int | None
    stop_grace_s: int
    boot_id: str

    @property
    def held(self) -> Held:
        return Held(self.shape, self.on)


class LocalRun:
    """A run whose spec.json exists."""

    def __init__(self, path: Path, stored: Stored, owner: Owner | None) -> None:
        self.path = path
        self.stored = stored
        self.owner = owner
        self.final: Sighting | None = None  # an end is written once, so it is read once

    @classmethod
    def load(cls, path: Path, owner: Owner | None) -> LocalRun:
        """The run in `path`.  Raises OSError or ValueError when spec.json cannot be read."""
        fields = json.loads((path / "spec.json").read_text())
        try:
            shape = NodeShape(**fields.pop("shape"))
            stored = Stored(**{**fields, "shape": shape, "on": tuple(fields["on"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path / 'spec.json'} is not a local run's: {error}") from None
        return cls(path, stored, owner)

    @classmethod
    def create(
        cls,
        path: Path,
        spec: RunSpec,
        on: tuple[int, ...],
        *,
        shared: Mapping[str, str],
        owner: Owner | None,
    ) -> LocalRun:
        """Everything but the processes.  `shared`: variables that are the same for all ranks.

        Raises OSError; then nothing of the run is left.
        """
        stored = Stored(
            id=spec.id,
            job=spec.job,
            pool=spec.native_pool,
            shape=spec.spec.shape,
            on=on,
            command=spec.command,
            port=spec.port,
            stop_grace_s=spec.stop_grace_s,
            boot_id=boot_id(),
        )
        path.mkdir()
        try:
            path.chmod(0o711 if owner else 0o700)
            make_dir(path / "output", owner)
            make_dir(path / "datasets", owner)
            for dataset, place in spec.datasets:
                (path / "datasets" / dataset).symlink_to(place)
            for rank in range(spec.nodes):
                node = path / f"node-{rank}"
                make_dir(node, owner)
                make_dir(node / "tmp", owner)
                env = environment_of(spec, path, rank, shared)
                text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
                with open_private(path / f"env-{rank}", os.O_WRONLY, owner) as file:
                    file.write(text.encode(errors="surrogateescape"))
            write_whole(path / "spec.json", json.dumps(asdict(stored)))
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return cls(path, stored, owner)

    @property
    def nodes(self) -> int:
        return len(self.stored.on)

    # ------------------------------------------------------------ starting

    def start_missing(self) -> None:
        """Start each rank that nothing has started yet, unless a stop came first.

        Called once when the run is created and once by every daemon that takes the directory over,
        and safe at any time: the supervisor itself makes `started` exclusively.
        """
        if self._stop() is not None or self.stored.boot_id != boot_id():
            return
        for rank in range(self.nodes):
            seen = self._rank(rank)
            if seen.started_ms is None and seen.how is None and not seen.alive:
                self._start(rank)

    def _start(self, rank: int) -> None:
        argv = ["/bin/sh", str(SUPERVISOR), str(self.path), str(rank), *launcher(self.owner)]
        argv += ["/bin/sh", "-c", _AS_ASKED, str(self.path / f"env-{rank}"), self.stored.command]
        node = self.path / f"node-{rank}"
        try:
            with (
                open_private(node / "log", os.O_WRONLY | os.O_APPEND, self.owner) as log,
                open_private(self.path / f"alive-{rank}", os.O_RDWR | os.O_TRUNC) as alive,
            ):
                # The lock is taken here and inherited: there is no moment in which a supervisor
                # exists and the file is not locked.
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                child = subprocess.Popen(
                    argv,
                    stdin=alive,
                    stdout=log,
                    stderr=log,
                    cwd=node,
                    env={"PATH": PATH, "LANG": "C"},
                    start_new_session=True,
                    umask=0o077,
                )
        except OSError as error:
            # Too long a command is the job's fault; no process, memory or disk left is the host's.
            how = How.ENDED if error.errno == errno.E2BIG else How.LOST
            self._write_exit(rank, 126, how, f"the supervisor cannot start: {error}")
            return
        with _children_lock:
            _children.append(child)

    # ------------------------------------------------------------ looking

    def look(self) -> Sighting | None:
        """What the run is now; None when its directory is gone.

        Also ends what must not go on: the other ranks of a gang that has failed, and processes
        that outlived their supervisor.
        """
        if self.final is not None:
            return self.final
        if not (self.path / "spec.json").exists():
            return None
        ranks = [self._settled(rank) for rank in range(self.nodes)]
        stop = self._stop()
        failed = [r for r in ranks if r.how and self._failed(r, stop)]
        if any(r.how is None for r in ranks):
            if failed and stop is None:
                self.stop(self.stored.stop_grace_s)
            return self._live(ranks)
        self.final = self._end(ranks, failed)
        return self.final

    def _live(self, ranks: list[Rank]) -> Sighting:
        starts = [r.started_ms for r in ranks if r.started_ms is not None]
        if len(starts) < len(ranks):
            return Sighting(RemoteState.PENDING, message="not all nodes have started")
        port = self.stored.port
        address = "" if port is None else f"http://127.0.0.1:{port}"
        return Sighting(RemoteState.RUNNING, started_ms=max(starts), address=address)

    def _end(self, ranks: list[Rank], failed: list[Rank]) -> Sighting:
        started_ms = max((r.started_ms for r in ranks if r.started_ms is not None), default=None)
        ended_ms = max((r.ended_ms for r in ranks if r.ended_ms is not None), default=None)
        if failed:
            first = min(failed, key=lambda r: (r.how is How.LOST, r.ended_ms or 0))
            rank = ranks.index(first)
            lost = first.how is How.LOST
            cannot_start = not lost and first.code in _CANNOT_START
            message = first.why or f"node {rank} ended with {_exit_text(first.code or 0)}"
            if cannot_start:
                message = first.why or self._last_line(rank) or message
            return Sighting(
                RemoteState.FAILED,
                started_ms=started_ms,
                ended_ms=ended_ms,
                exit_code=None if lost else first.code,
                host_lost=lost,
                cannot_start=cannot_start,
                message=message,
            )
        stopped = any(r.how is How.STOPPED or r.code for r in ranks)
        return Sighting(
            RemoteState.STOPPED if stopped else RemoteState.SUCCEEDED,
            started_ms=started_ms,
            ended_ms=ended_ms,
            exit_code=next((r.code for r in ranks if r.code), 0),
        )

    @staticmethod
    def _failed(rank: Rank, stop: tuple[int, int] | None) -> bool:
        """Whether this rank's end makes the run fail: not when it came after a stop."""
        if rank.how is How.ENDED:
            return rank.code != 0 and (stop is None or (rank.ended_ms or 0) < stop[1])
        return rank.how is How.LOST

    def _rank(self, rank: int) -> Rank:
        # Alive before exit: the supervisor writes its exit and then lets go of the lock, so "not
        # alive, and no exit" read in this order is the truth.
        alive = self._supervisor(rank) is not None
        started_ms = None
        with contextlib.suppress(FileNotFoundError):
            started_ms = (self.path / f"started-{rank}").stat().st_mtime_ns // 1_000_000
        try:
            end = (self.path / f"exit-{rank}").read_text().split(maxsplit=3)
        except FileNotFoundError:
            return Rank(alive, started_ms)
        if len(end) < 3:  # a power cut can leave an empty file: the host's loss, as without one
            return Rank(alive, started_ms)
        return Rank(alive, started_ms, int(end[0]), int(end[1]), How(end[2]), " ".join(end[3:]))

    def _settled(self, rank: int) -> Rank:
        """The rank as it is, with an end where it can have no other future."""
        seen = self._rank(rank)
        if seen.alive or seen.how:
            return seen
        same_boot = self.stored.boot_id == boot_id()
        if seen.started_ms is None:
            if self._stop() is not None:
                return Rank(False, None, how=How.STOPPED)
            if same_boot:  # start_missing() has been called and the supervisor came to nothing
                self._write_exit(rank, 126, How.ENDED, "")
                return self._rank(rank)
        elif same_boot and self._kill_orphans(rank):
            return seen  # the next look finds none
        why = f"supervisor_lost: the supervisor of node {rank} ended without a word"
        if not same_boot:
            why = "host_restarted: the machine was restarted under this run"
        return Rank(False, seen.started_ms, how=How.LOST, why=why)

    def _last_line(self, rank: int) -> str:
        folder = self.path / f"node-{rank}"  # the job's own: the log's name may lead anywhere by now
        fd = open_below(os.path.realpath(folder), folder / "log")
        if fd is None:
            return "no log"
        with os.fdopen(fd, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read(_TAIL_BYTES).decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    # ------------------------------------------------------------ stopping

    def stop(self, grace_s: int) -> None:
        """Write the request down, then tell the supervisors; they enforce the grace themselves.

        Asked twice, the earlier kill and the first moment of asking hold.
        """
        kill_at, at_ms = _uptime_cs() + grace_s * 100, now_ms()
        earlier = self._stop()
        if earlier is not None:
            kill_at, at_ms = min(kill_at, earlier[0]), min(at_ms, earlier[1])
        write_whole(self.path / "stop-requested", f"{kill_at} {at_ms}\n")
        self.signal_stop()

    def signal_stop(self) -> None:
        """Wake the supervisors if a stop is written down."""
        if self._stop() is None:
            return
        for rank in range(self.nodes):
            pid = self._supervisor(rank)
            if not pid:
                continue
            with _process(pid) as process:
                # Still locked after the process was taken hold of: it is the one that wrote `pid`.
                if process is not None and self._supervisor(rank) == pid:
                    signal.pidfd_send_signal(process, signal.SIGTERM)

    def _stop(self) -> tuple[int, int] | None:
        """(kill at uptime in 1/100 s, requested at ms), or None."""
        try:
            kill_at, at_ms = (self.path / "stop-requested").read_text().split()
        except FileNotFoundError:
            return None
        return int(kill_at), int(at_ms)

    def _supervisor(self, rank: int) -> int | None:
        """Process id of the live supervisor, 0 while it has not written it yet, None when none lives."""
        try:
            with (self.path / f"alive-{rank}").open("rb") as alive:
                try:
                    fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = alive.read()
                    return int(text) if text.endswith(b"\n") else 0
                # By hand: a process forked at this moment has a copy of the descriptor until its exec.
                fcntl.flock(alive, fcntl.LOCK_UN)
        except FileNotFoundError:
            pass
        return None

    def _kill_orphans(self, rank: int) -> int:
        """Kill what a dead supervisor left in its session; how many processes there were.

        Both the session and the run's name in the process's environment must match: the number of
        a session that has ended may have been given away.
        """
        text = (self.path / f"alive-{rank}").read_text()
        if not text.endswith("\n"):  # a supervisor that never wrote it never started anything
            return 0
        mark = f"BROKER_TASK_ID={self.stored.id}".encode()
        found = 0
        for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
            with _process(pid) as process, contextlib.suppress(OSError):
                if process is None or os.getsid(pid) != int(text):
                    continue
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    found += 1
        return found

    def _write_exit(self, rank: int, code: int, how: How, why: str) -> None:
        write_whole(self.path / f"exit-{rank}", f"{code} {now_ms()} {how} {why}\n")


# ---------------------------------------------------------------- processes


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """A descriptor of a process, which cannot come to mean another one; None when there is none."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            yield fd
    finally:
        os.close(fd)


def _uptime_cs() -> int:
    """Hundredths of a second since boot, by the clock that the supervisor reads."""
    return int(Path("/proc/uptime").read_text().split()[0].replace(".", ""))


def _exit_text(code: int) -> str:
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"exit code {code} ({signal.Signals(code - 128).name})"
    return f"exit code {code}"
