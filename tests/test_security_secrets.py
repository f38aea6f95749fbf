"""Secrets at rest and in what is told: credentials of centers, tokens, keys, files and their modes.

What belongs here: real daemons and real files, looked through for secrets.  What does not: taking
secrets out of texts (test_redaction.py) and of the configuration's messages (test_config_values.py).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from broker.daemon import SIGNING_KEY, _lock
from broker.files import DataDirectory
from broker.store import accounts
from broker.store.schema import _copy
from broker.store.store import Store
from broker.tables import Setting
from tests.api_fixtures import World, world
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually
from tests.databases import database
from tests.emulators.tai123 import Service
from tests.raw_server import Answer, Arrived, answer, document, raw_server
from tests.tai123_center import center_at

__all__ = ["world"]

SECRET = 'Zebra-S3cret/+"& correct'
TOKEN = "tok-Giraffe-987654321"
FORMS = (
    SECRET,
    quote(SECRET, safe=""),
    quote_plus(SECRET),
    SECRET.replace('"', '\\"'),
    base64.b64encode(SECRET.encode()).decode(),
    base64.b64encode(f"network:{SECRET}".encode()).decode().rstrip("="),
    "Zebra-S3cret",
    TOKEN,
    "Giraffe",
)


def echo(status: int) -> Any:
    """A center that gives a session and answers everything else with what it was sent."""

    def answers(request: Arrived) -> Answer:
        if request.path == "/auth/tokens" and status != 403:
            return document({"token": TOKEN, "expiresAt": "2030-01-01 00:00:00"})
        headers = "".join(f"{name}: {value}\n" for name, value in request.headers.items())
        kind = "application/json" if status == 400 else "text/html"
        page = f"{request.method} {request.path}\n{headers}\n{request.body.decode()} {SECRET} {TOKEN}"
        if status == 400:
            return document({"errorCode": "0202", "errorMsg": page, "detail": page}, status=400)
        return answer(page, status=status, kind=kind)

    return answers


def below(folder: Path, pattern: str = "*") -> list[Path]:
    return [path for path in sorted(folder.rglob(pattern)) if path.is_file()]


def found_in(folder: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    """Where a form of the secrets stands below a folder."""
    return [
        f"{form!r} in {path.name}"
        for path in below(folder)
        if path.name not in but
        for form in FORMS
        if form.encode() in path.read_bytes()
    ]


# ---------------------------------------------------------------- credentials of centers


async def test_credentials_of_centers_are_nowhere_but_in_the_configuration(tmp_path: Path) -> None:
    """After centers that work, refuse, fail and echo all they were sent: not in the database, its log of
    writes, the daemon's log at its most talkative, nor in any answer."""
    async with (
        Service() as works,
        raw_server(echo(401)) as unauthorised,
        raw_server(echo(403)) as denies,
        raw_server(echo(500)) as fails,
        raw_server(echo(400)) as refuses,
    ):
        centers = "".join(
            (
                center_at(works.url, "works"),
                center_at(unauthorised.url, "unauthorised", password=SECRET),
                center_at(denies.url, "denies", password=SECRET),
                center_at(fails.url, "fails", password=SECRET),
                center_at(refuses.url, "refuses", password=SECRET),
            )
        )
        told = await asyncio.to_thread(_used, tmp_path, centers)
        assert all(len(each.requests) > 3 for each in (unauthorised, denies, fails, refuses))
        assert any(
            SECRET in each.body.decode() or SECRET in str(each.document)
            for each in fails.requests
            if each.body
        )
    assert [form for form in FORMS if form in told] == []
    assert len(told) > 1000
    assert "***" in told, "what the centers echoed was told, without the secrets"
    names = {path.name for path in below(tmp_path)}
    assert "daemon.log" in names
    assert any(name.endswith("-wal") for name in names), "the daemon was killed with its last writes in there"
    assert found_in(tmp_path, but=("broker.toml",)) == []
    assert found_in(tmp_path) != [], "the search finds what is there"


def _used(folder: Path, centers: str) -> str:
    """All that a daemon tells of its centers after they were used."""
    with daemon(folder, centers) as running:
        running.config.write_text(
            running.config.read_text().replace("[server]\n", '[server]\nlog_level = "debug"\n')
        )
        assert running.stop() == 0
        running.start()
        root, alice = running.client("root"), running.client("alice")

        def polled() -> bool:
            text = str(root.centers())
            return text.count("'connected': False") >= 4 and text.count("'connected': True") >= 1

        eventually("centers answered, each in its way", lambda: alice.specs()["resourceSpecs"] and polled())
        told = []
        spec = alice.specs()["resourceSpecs"][0]["resourceSpecId"]
        config = {"specId": spec, "imageId": "img-1", "command": "true"}
        job = alice.create_job({"jobName": "j", "config": config})["metadata"]["id"]
        eventually("it is sent", lambda: alice.job(job)["status"] != "PENDING")
        signed_in = running.command("login", "--user", "root", "--password-stdin", text=PASSWORD)
        assert signed_in.returncode == 0, signed_in.stderr
        for id in ("works", "unauthorised", "denies", "fails", "refuses"):
            for words in (("call", id, "GET", "/centers"), ("doctor", id), ("centers",)):
                done = running.command(*words)
                assert done.returncode != 2, done.stderr  # 2: not understood
                told += [done.stdout, done.stderr]
        told += [str(root.centers()), str(root.center_reports()), str(root.audit()), str(root.rounds())]
        told += [str(root.job(job)), root.metrics(), str(root.info())]
        running.kill()
    return "\n".join(told)


@pytest.mark.parametrize(
    "text",
    [
        f'password = "{SECRET[:12]}"\nextra = 1',
        f'password = {{ env = "NOT_SET", other = "{SECRET[:12]}" }}',
        f'password = [ "{SECRET[:12]}" ]',
        f'username = "u"\npassword = {{ value = "{SECRET[:12]}" }}',
    ],
)
def test_a_configuration_that_is_wrong_does_not_tell_its_secrets(tmp_path: Path, text: str) -> None:
    broken = DaemonProcess(
        tmp_path,
        center_at("http://c.example", "c", password=SECRET).split("[centers.credentials]")[0]
        + f"[centers.credentials]\n{text}\n",
    )
    done = broken.command("check-config", "--config", str(broken.config))
    assert done.returncode != 0
    assert "password" in done.stdout + done.stderr or "credentials" in done.stdout + done.stderr
    assert "Zebra" not in done.stdout + done.stderr


# ---------------------------------------------------------------- what the database keeps of people


async def test_tokens_and_keys_are_kept_as_hashes_and_looked_up_by_them(world: World, tmp_path: Path) -> None:
    """So no time of any comparison tells anything: who guesses cannot choose the hash."""
    made = await world.ok("POST", "/auth/apikeys", {"name": "ci", "scopes": ["read"]})
    login = {"authMethod": "password", "user": {"name": "alice", "password": "pw-alice"}}
    token = (await world.ok("POST", "/auth/tokens", login, as_=None))["token"]
    secrets = [made["key"], token]
    await world.store.close()
    files = below(tmp_path, "*.db*")
    assert files
    kept = b"".join(path.read_bytes() for path in files)
    for secret in secrets:
        assert secret.encode() not in kept
        assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept
    assert b"pw-alice" not in kept
    assert b"$argon2id$" in kept
    await world.store.open()


# ---------------------------------------------------------------- files


@pytest.fixture
def generous() -> Iterator[None]:
    """A umask that lets everybody read, as where an operator starts the daemon by hand."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.usefixtures("generous")
async def test_the_database_is_its_users_alone(tmp_path: Path) -> None:
    """It has the key that signs links and the hashes of passwords, and so has its log of writes."""
    folder = tmp_path / "open"
    await asyncio.to_thread(folder.mkdir)
    store = Store(f"sqlite:///{folder / 'broker.db'}")
    await store.open()
    await store.write(accounts.setting, "x", "y")
    assert {mode(path) for path in sorted(folder.iterdir())} == {"0o600"}
    assert len(list(folder.iterdir())) == 3
    await store.close()
    copy = folder / "broker.db.before-1"
    _copy(folder / "broker.db", copy)  # what an upgrade leaves
    assert mode(copy) == "0o600"


@pytest.mark.usefixtures("generous")
def test_what_is_kept_for_people_is_the_daemons_alone(tmp_path: Path) -> None:
    kept = DataDirectory(tmp_path / "a" / "data")
    kept.create()
    assert {mode(path) for path in kept.root.iterdir()} == {"0o700"}
    assert mode(kept.root) == "0o700"


@pytest.mark.usefixtures("generous")
def test_nobody_else_can_hold_the_lock(tmp_path: Path) -> None:
    """Who can open the file can lock it, and no daemon would start."""
    settings: Any = SimpleNamespace(store=SimpleNamespace(url=f"sqlite:///{tmp_path / 'b.db'}"))
    lock = _lock(settings)
    assert lock is not None
    assert mode(tmp_path / "b.db.lock") == "0o600"
    lock.close()


def test_check_config_warns_of_credentials_that_everybody_can_read(tmp_path: Path) -> None:
    made = DaemonProcess(tmp_path, center_at("http://c.example", "c", password=SECRET))
    for allowed, warned in ((0o644, True), (0o640, False), (0o600, False)):
        made.config.chmod(allowed)
        done = made.command("check-config", "--config", str(made.config))
        assert done.returncode == 0, done.stderr
        assert ("every user of this machine can read it" in done.stderr) is warned
        assert "Zebra" not in done.stdout + done.stderr
    elsewhere = made.config.read_text().replace(f"password = '{SECRET}'", 'password = { env = "PW" }')
    made.config.write_text(elsewhere)
    made.config.chmod(0o644)
    done = made.command("check-config", "--config", str(made.config), env={"PW": SECRET})
    assert (done.returncode, "warning" in done.stderr) == (0, False)


async def test_a_key_that_was_removed_is_drawn_anew(tmp_path: Path) -> None:
    """What an operator does after the database was lost to others: old links end."""
    store = Store(database(tmp_path))
    await store.open()
    try:
        assert await store.write(accounts.setting, SIGNING_KEY, "old") == "old"
        assert await store.write(accounts.setting, SIGNING_KEY, "new") == "old"
        await store.write(lambda tx: tx.session.delete(tx.session.get_one(Setting, SIGNING_KEY)))
        assert await store.write(accounts.setting, SIGNING_KEY, "new") == "new"
    finally:
        await store.close()
    assert (Setting.__tablename__, SIGNING_KEY) == ("setting", "signing_key")
