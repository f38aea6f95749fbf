"""A real slurmctld behind a real slurmrestd, to set a figure of the daemon beside: `with slurmrestd(folder)`.

What belongs here: Debian's Slurm in a folder of its own, with one node that nobody runs, so that jobs are
taken and kept.  What does not: what is asked of it.  It keeps its state in files that it writes now and
then, and no database.  As root alone: slurmrestd wants to be another user than Slurm's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 30
VERSION = "v0.0.38"
SUBMIT = f"/slurm/{VERSION}/job/submit"
PROGRAMS = ("munged", "slurmctld", "slurmrestd", "scontrol")
PACKAGES = "munge slurmctld slurm-client slurmrestd slurm-wlm-jwt-plugin"
CONFIGURATION = """\
ClusterName=bench
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={folder}/jwt.key
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmctldDebug=error
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
MaxJobCount=1000000
NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=64 RealMemory=512000 State=UNKNOWN
PartitionName=batch Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """It cannot be started here; the text says why."""


@dataclass(frozen=True)
class Slurm:
    """`headers` are those of a request by root; `pids` of the two daemons that answer it."""

    port: int
    headers: str
    pids: tuple[int, ...]


@contextmanager
def slurmrestd(folder: Path) -> Iterator[Slurm]:
    """Raises NoSlurm."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise NoSlurm(f"{', '.join(missing)} not found (Debian: apt-get install {PACKAGES})")
    if os.geteuid() != 0:
        raise NoSlurm("Slurm is started as root alone")
    folder.chmod(0o755)  # slurmrestd runs as nobody
    (folder / "state").mkdir()
    for key in ("munge.key", "jwt.key"):
        (folder / key).touch(mode=0o400)
        (folder / key).write_bytes(os.urandom(128))
    control, rest = _free_port(), _free_port()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(port=control, folder=folder))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    with ExitStack() as stack:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        munge = ["munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in files.items())]
        stack.enter_context(_running(munge, environment))
        _until(lambda: (folder / "munge.socket").exists(), "munged")
        controller = stack.enter_context(_running(["slurmctld", "-D"], environment))
        _until(lambda: _control(environment, "ping").returncode == 0, "slurmctld")
        token = _control(environment, "token", "username=root", "lifespan=3600").stdout
        command = ["slurmrestd", "-a", "rest_auth/jwt", "-s", f"openapi/{VERSION}", "-u", "nobody"]
        command.append(f"127.0.0.1:{rest}")
        server = stack.enter_context(_running(command, {**environment, "SLURM_JWT": "daemon"}))
        _until(lambda: _listens(rest), "slurmrestd")
        secret = token.strip().removeprefix("SLURM_JWT=")
        headers = f"X-SLURM-USER-NAME: root\r\nX-SLURM-USER-TOKEN: {secret}\r\n"
        yield Slurm(rest, headers, (controller.pid, server.pid))


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _control(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def _until(ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > end:
            raise NoSlurm(f"{what} does not start")
        time.sleep(0.1)
