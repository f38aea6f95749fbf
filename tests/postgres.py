"""A real PostgreSQL server for tests, started by them and gone with them.

What belongs here: one server per process that asks for one, with a database that has the newest schema
and copies of it.  What does not: what is asked of a database.  The binaries are those of the system
(Debian's package `postgresql`) or of the folder that BROKER_TEST_POSTGRESQL names; a cluster of the
system itself is never touched.  The server listens on a socket in a folder of its own alone, and does
not wait for the disk: what is tested is not whether PostgreSQL keeps what it has committed.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import create_engine

from broker.store.schema import upgrade

START_S = 60
USER = "broker"
TEMPLATE = "template_broker"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "log_min_messages": "fatal",
}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on"}
"""What SETTINGS has to be brought up to date with, before a server starts, where durable writes are timed."""


class NoPostgres(Exception):
    """There is no server to test with; the text says what to install."""


def _binaries() -> Path:
    """The folder of the newest server that is installed.  Raises NoPostgres."""
    named = os.environ.get("BROKER_TEST_POSTGRESQL")
    if named:
        found = [Path(named)]
    else:
        versions = Path("/usr/lib/postgresql").glob("*/bin")
        found = sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in found:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise NoPostgres(
        "these tests need the programs of a PostgreSQL server (initdb, postgres) and found none"
        f" {f'in {named}' if named else 'below /usr/lib/postgresql'}: install them (Debian:"
        " apt-get install postgresql), or name their folder in BROKER_TEST_POSTGRESQL"
    )


class Server:
    """A running server.  As root it runs as `nobody`: PostgreSQL refuses root."""

    def __init__(self) -> None:
        self.binaries = _binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="broker-pg-", dir="/tmp"))
        as_user: list[str] = []
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            as_user = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        # The server must not outlive tests that are killed.
        self._prefix = ["setpriv", *as_user, "--pdeathsig", "INT", "--"]
        self._program = self.binaries / "postgres"
        self._data = self.folder / "data"
        self._log = self.folder / "log"
        try:
            login = ["-U", USER, "-A", "trust"]
            shape = ["-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
            self._run([self.binaries / "initdb", "-D", self._data, *login, *shape])
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(
            [*self._prefix, *map(str, command)], capture_output=True, text=True, cwd=self.folder, check=False
        )
        if done.returncode != 0:
            raise NoPostgres(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")

    def start(self) -> None:
        settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        command = [self._program, "-D", self._data, "-k", self.folder, *settings]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, *map(str, command)], stdout=log, stderr=log, cwd=self.folder
            )
        end = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    told = f"the server does not start: {error}\n{self._log.read_text()}"
                    raise NoPostgres(told) from error
                time.sleep(0.02)

    def stop(self) -> None:
        """Ends connections and the server; the databases stay."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_S)

    def close(self) -> None:
        """Ends the server at once; nothing of it stays."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_S)
        shutil.rmtree(self.folder)

    def url(self, name: str) -> str:
        """The URL of a database, as `store.url` has it."""
        return f"postgresql://{USER}@/{name}?host={self.folder}"

    @cache  # noqa: B019 (the server lives as long as the process)
    def template(self) -> str:
        """The name of a database with the newest schema."""
        self.create(TEMPLATE)
        engine = create_engine(self.url(TEMPLATE).replace("postgresql:", "postgresql+psycopg:"))
        upgrade(engine, None)
        engine.dispose()
        return TEMPLATE

    def create(self, name: str, *, template: str = "template0") -> str:
        """A new database; its URL."""
        text = "CREATE DATABASE {} TEMPLATE {}"
        self._execute(sql.SQL(text).format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop(self, names: Iterable[str]) -> None:
        """Databases go, and with them the connections that are open."""
        for name in names:
            self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@cache
def server() -> Server:
    """The server of this process, started when first asked for.  Raises NoPostgres."""
    started = Server()
    atexit.register(started.close)
    return started
