"""The real daemon as a process of its own, for end-to-end tests.

What belongs here: a configuration with local centers in a temporary folder, starting, waiting until
ready, killing.  Every wait is bounded and polls; nothing sleeps for a guess.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher

from broker.client import Client
from broker.core.model import Role
from broker.on_store import write_to_store
from broker.store import accounts
from tests.databases import database

PASSWORD = "correct horse"

PASSWORD_HASH = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
"""Says itself how cheap it is: the daemon checks it as any other, without a tenth of a second each."""

A800_POOL = """
[[centers.pools]]
native = "29"
arch = "X86"
cores = 128
memory_gib = 1024
accelerator = "Nvidia/GPU/A800"
accelerators = 8
accelerator_memory_gib = 80
nodes = 4
"""
"""Four nodes of eight A800."""

PATIENCE_S = 60
"""Bound of every wait; reached only when something is broken."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: str, check: Callable[[], Any], *, within_s: float = PATIENCE_S) -> Any:
    """The first true answer of `check`, asked again until `within_s` have passed."""
    end = time.monotonic() + within_s
    while not (found := check()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.05)
    return found


class DaemonProcess:
    """`broker serve --config` on a folder, whose store is of the test's kind (tests/databases.py).

    `centers` is TOML text of [[centers]].
    """

    def __init__(
        self,
        folder: Path,
        centers: str,
        *,
        extra: str = "",
        name: str = "bk",
        silent_after_s: int = 300,
        interval_s: float = 0.5,
        replica: str = "",
    ) -> None:
        """`replica`: this daemon is one of several on the folder's store, and has files of that name."""
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / f"broker{replica}.toml"
        self.log = folder / f"daemon{replica}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.program = [sys.executable, "-m", "broker"]
        self.config.write_text(
            f"""\
[server]
listen = "127.0.0.1:{self.port}"
public_url = "{self.url}"
name = "{name}"
[store]
url = "{database(folder)}"
data_dir = "{folder}/data"
[scheduler]
interval_s = {interval_s}
silent_after_s = {silent_after_s}
[submit]
image = "local"
{extra}
{centers}
"""
        )

    def command(
        self, *words: str, text: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One `broker` command as a user types it, with its own configuration folder."""
        settings = {"XDG_CONFIG_HOME": str(self.folder / "config"), "BROKER_URL": self.url, **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", "broker", *words],
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, **settings},
            check=False,
        )

    def add_user(self, name: str, *, role: Role = Role.USER, tenant: str = "lab") -> None:
        """What `broker user add` does, without a process of its own and a costly hash."""
        write_to_store(
            self.config,
            lambda tx: accounts.add_account(
                tx, name=name, tenant=tenant, role=role, password_hash=PASSWORD_HASH, actor="test"
            ),
        )

    def client(self, name: str) -> Client:
        token = Client(self.url).login(name, PASSWORD)
        return Client(self.url, token["token"])

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env={**os.environ, "A_SECRET_OF_THE_DAEMON": "hush"},
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
            return self.get("/readyz")[0] == 200

        eventually("the daemon is ready", ready)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON document of a GET without a token; status 0 when nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            return 0, None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(body)
        except ValueError:
            return answer.status, body.decode()

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def logged(self, action: str) -> bool:
        return f"action={action}" in self.log.read_text()


def local_center(
    folder: Path,
    id: str,
    *,
    cores: int = 4,
    nodes: int = 2,
    price: str = "1.0",
    poll_interval_s: float = 0.2,
    more: str = "",
) -> str:
    """TOML of one local center with a stated CPU pool."""
    return f"""
[[centers]]
id = "{id}"
name = "Center {id}"
adapter = "local"
poll_interval_s = {poll_interval_s}
{more}
[centers.connection]
work_dir = "{folder}/work-{id}"
[[centers.pools]]
native = "cpu"
arch = "X86"
cores = {cores}
memory_gib = 8
nodes = {nodes}
[[centers.prices]]
arch = "X86"
price = {price}
[[centers.images]]
id = "local"
"""


@contextmanager
def daemon(
    folder: Path,
    centers: str,
    *,
    extra: str = "",
    silent_after_s: int = 300,
    interval_s: float = 0.5,
    program: Sequence[str] | None = None,
) -> Iterator[DaemonProcess]:
    """A started daemon with the user alice and the operator root; ended whatever happens.  `program`
    takes the place of `python -m broker`."""
    running = DaemonProcess(
        folder, centers, extra=extra, silent_after_s=silent_after_s, interval_s=interval_s
    )
    if program is not None:
        running.program = list(program)
    running.add_user("alice")
    running.add_user("root", role=Role.OPERATOR, tenant="ops")
    running.start()
    try:
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.kill()
