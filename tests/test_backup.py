"""What docs/operations.md says of backup and restore, done: a store that is in use, and one made of it."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
from sqlmodel import select

from broker.store import Store, accounts, audit
from broker.tables import Job
from tests import postgres
from tests.databases import database
from tests.harness import Harness, center, harness

JOBS = 20
DOC = Path(__file__).parent.parent / "docs" / "operations.md"


async def work(broker: Harness) -> None:
    for number in range(JOBS):
        await broker.submit(f"job-{number}")
    await broker.round()


async def is_whole(url: str) -> None:
    """A daemon's store opens, knows the jobs, and numbers its events on."""
    store = Store(url)
    await store.open()
    try:
        assert await store.read(accounts.count_accounts) == 1
        jobs = await store.read(lambda session: session.exec(select(Job.state)).all())
        assert len(jobs) == JOBS
        assert "ACTIVE" in jobs
        newest = await store.read(audit.newest)
        await store.write(lambda tx: tx.event("after"))
        assert await store.read(audit.newest) == newest + 1
    finally:
        await store.close()


@pytest.mark.parametrize("way", [".backup", "VACUUM INTO"])
async def test_a_sqlite_file_in_use(tmp_path: Path, way: str) -> None:
    """The statement of VACUUM INTO as documented; `.backup` is the shell's word for SQLite's own call."""
    assert way in DOC.read_text()
    copy = tmp_path / "copy.db"
    async with harness(tmp_path, center("a")) as broker:
        await work(broker)
        with sqlite3.connect(tmp_path / "broker.db") as source:
            if way == ".backup":
                with sqlite3.connect(copy) as target:
                    source.backup(target)
                target.close()
            else:
                source.execute(f"VACUUM INTO '{copy}'")
        source.close()
    await is_whole(f"sqlite:///{copy}")


@pytest.mark.on_postgresql
async def test_a_postgresql_database_in_use(tmp_path: Path) -> None:
    """The documented commands, with the names of this test's server in place of the document's."""
    server = postgres.server()
    text = re.search(r"^pg_dump .*\n(?:createdb .*\n)pg_restore .*$", DOC.read_text(), re.M)
    assert text is not None
    dump, create, restore = text[0].splitlines()
    document = "postgresql://broker@db.example/broker"
    target = f"restored_{os.getpid()}"
    async with harness(tmp_path, center("a")) as broker:
        await work(broker)
        run(dump.replace(document, database(tmp_path)), tmp_path)
    run(re.sub(r" broker$", f" {target}", create), tmp_path)
    try:
        run(restore.replace(document, server.url(target)), tmp_path)
        await is_whole(server.url(target))
    finally:
        server.drop([target])


def run(command: str, folder: Path) -> None:
    server = postgres.server()
    settings = {"PGHOST": str(server.folder), "PGUSER": postgres.USER}
    path = f"{server.binaries}:{os.environ['PATH']}"
    environment = {**os.environ, **settings, "PATH": path}
    subprocess.run(command, shell=True, cwd=folder, check=True, env=environment)
