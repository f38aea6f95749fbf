"""The commands beside the daemon, and every client command against the real application and store."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from aiohttp import web

from broker.api.app import Context, application
from broker.config import find_config_file
from broker.core.model import Role
from broker.core.problem import class_key
from broker.core.resources import load_catalogue
from broker.files import DataDirectory
from broker.store import Store, accounts
from tests.builders import policy_set
from tests.cli_stub import Terminal, project, stub, terminal

__all__ = ["stub", "terminal"]


# ---------------------------------------------------------------- beside the daemon


def test_init_writes_a_configuration_that_checks(terminal: Terminal) -> None:
    assert terminal.run("init").returncode == 0
    file = terminal.home / "broker.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("mine")
    again = terminal.run("init")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert file.read_text() == "mine"
    assert terminal.run("init", "--force").returncode == 0
    checked = terminal.run("check-config", "--config", "broker.toml")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("ok: ")


def test_check_config_tells_every_error_with_its_line(terminal: Terminal) -> None:
    (terminal.home / "b.toml").write_text(
        '[server]\nlisten = 3\n\n[[centers]]\nid = "a"\nadapter = "aihubb"\n'
    )
    ran = terminal.run("check-config", "--config", "b.toml")
    assert (ran.returncode, ran.stdout) == (2, "")
    lines = ran.stderr.splitlines()
    assert lines[0].startswith("b.toml:2: server.listen: ")
    assert lines[1].startswith("b.toml:6: centers[0].adapter: ")


def test_an_account_is_added_without_a_daemon_and_only_once(terminal: Terminal) -> None:
    (terminal.home / "b.toml").write_text(
        f'[store]\nurl = "sqlite:///{terminal.home}/b.db"\ndata_dir = "{terminal.home}/data"\n'
    )
    words = ("user", "add", "bob", "--role", "operator", "--password-stdin", "--config", "b.toml")
    first = terminal.run(*words, stdin="a long password\n")
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    again = terminal.run(*words, stdin="a long password\n")
    assert again.returncode == 1
    assert "bob" in again.stderr


# ---------------------------------------------------------------- the real application


@dataclass
class Real:
    url: str
    store: Store


async def _served(folder: Path, ready: Callable[[Real], None], stop: asyncio.Event) -> None:
    files = DataDirectory(folder / "data")
    files.create()
    store = Store(f"sqlite:///{folder / 'b.db'}")
    await store.open()
    try:
        context = Context(
            store=store,
            files=files,
            catalogue=load_catalogue(find_config_file("accelerators.toml").read_text(encoding="utf-8")),
            class_key=lambda request, tenant: class_key(request, tenant),
            signing_key=b"k" * 32,
            ready=lambda: True,
            server_name="bk",
            public_url="http://127.0.0.1",
            timezone=ZoneInfo("Asia/Shanghai"),
            policies=policy_set,
        )
        await store.write(
            accounts.add_account,
            name="alice",
            tenant="default",
            role=Role.OPERATOR,
            password_hash=context.hasher.hash("a long password"),
            actor="test",
        )
        runner = web.AppRunner(application(context))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready(Real(f"http://127.0.0.1:{runner.addresses[0][1]}", store))
        await stop.wait()
        await runner.cleanup()
    finally:
        await store.close()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    """The application with its store, in a thread with a loop of its own."""
    folder = tmp_path / "real"
    folder.mkdir()
    started = threading.Event()
    found: list[Real] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def ready(one: Real) -> None:
        found.append(one)
        started.set()

    def serve() -> None:
        try:
            loop.run_until_complete(_served(folder, ready, stop))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait(30)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def test_the_real_application_understands_every_command(real: Real, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    terminal = Terminal(home, real.url, token="")

    def good(words: str, stdin: str = "") -> str:
        ran = terminal.run(*shlex.split(words), stdin=stdin)
        assert ran.returncode == 0, (words, ran.stderr)
        return ran.stdout

    def refused(words: str, code: str) -> None:
        ran = terminal.run(*shlex.split(words))
        assert (ran.returncode, ran.stdout) == (1, ""), words
        assert f"[{code} " in ran.stderr, ran.stderr

    refused("jobs", "0101")
    good("login --user alice --password-stdin", "a long password\n")
    assert json.loads(good("jobs --json")) == {"items": [], "totalSize": 0}
    for words in (
        "centers",
        "idle",
        "specs",
        "user list",
        "jobs --mine --label a=b --status running --limit 5",
    ):
        good(words)
    project(home / "p")
    refused("submit --spec none --image none --upload p -- true", "0211")
    refused("show nothing", "0240")
    refused("logs j-0", "0240")
    refused("download j-0 out", "0240")
    refused("explain j-0", "0240")
    refused("resolve j-0 --never-ran", "0240")
    good("stop --label a=b")
    for words in ("grant alice vip", "revoke alice vip"):
        good(f"user {words}")
    good("password --password-stdin", "a long password\nanother password\n")
    refused("jobs", "0101")  # a new password ends every login
    good("login --password-stdin", "another password\n")
    good("logout")
