"""Accounts, keys, tenants, the audit and events with the real daemon and the real commands."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client, EventsEnded, RequestFailed
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center

REGISTRATION = """\
[auth]
registration = "open"
registration_tenant = "guests"
freeze_after_failures = 3
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[DaemonProcess]:
    with daemon(tmp_path, local_center(tmp_path, "here"), extra=REGISTRATION) as broker:
        yield broker


def done(broker: DaemonProcess, *words: str, text: str = "", **env: str) -> str:
    """What a command that ends well prints."""
    ran = broker.command(*words, text=text, env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def log_in(broker: DaemonProcess, name: str, password: str = PASSWORD) -> None:
    done(broker, "login", "--user", name, "--password-stdin", text=password)


def test_from_registering_to_a_job_by_a_key(running: DaemonProcess) -> None:
    registered = running.command("register", "--user", "zoe", "--password-stdin", text="pw-zoe")
    assert registered.returncode == 0, registered.stderr
    assert "zoe is an account of tenant guests" in registered.stderr
    again = running.command("register", "--user", "zoe", "--password-stdin", text="other")
    assert (again.returncode, again.stdout) == (1, "")
    assert "exists" in again.stderr
    log_in(running, "zoe", "pw-zoe")

    scopes = ("--scope", "jobs", "--scope", "read")
    key = done(running, "keys", "add", "ci", *scopes, "--application", "portal").strip()
    assert key.startswith("brk.")
    made = json.loads(
        done(running, "keys", "add", "2nd", "--scope", "read", "--json", "--expires", "2090-01-01")
    )
    assert made["expiresAt"] == "2090-01-01 23:59:59"
    listed = json.loads(done(running, "keys", "list", "--json"))
    assert [each["name"] for each in listed["items"]] == ["ci", "2nd"]
    table = done(running, "keys", "list")
    assert key not in table
    assert "portal" in table

    by_key = {"BROKER_TOKEN": key}
    spec = _spec(Client(running.url, key))
    done(running, "submit", "--name", "by-key", "--spec", spec, "--", "true", **by_key)
    assert "by-key" in done(running, "jobs", **by_key)
    refused = running.command("keys", "list", env=by_key)
    assert refused.returncode == 1
    assert "this needs a login" in refused.stderr

    done(running, "keys", "revoke", "2nd")
    done(running, "keys", "revoke", "--application", "portal")
    assert json.loads(done(running, "keys", "list", "--json")) == {"items": [], "totalSize": 0}
    gone = running.command("jobs", env=by_key)
    assert gone.returncode == 1
    assert "0101" in gone.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "add", "ci", "--scope", "all"),
        ("keys", "add", "ci"),
        ("keys", "revoke"),
        ("keys", "revoke", "k", "--application", "a"),
        ("register", "--password-stdin"),
        ("tenant", "add", "a b", "--on-store"),
        ("audit", "--last", "0"),
        ("user", "add", "a#b", "--role", "user", "--password-stdin"),
        ("user", "unfreeze", "a", "--config", "none.toml"),
    ],
)
def test_wrong_usage_is_told_without_a_broker(tmp_path: Path, words: tuple[str, ...]) -> None:
    broker = DaemonProcess(tmp_path, "")
    ran = broker.command(*words, text="p")
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""


def freeze_by_failures(broker: DaemonProcess, name: str) -> None:
    for _ in range(3):
        with pytest.raises(RequestFailed):
            Client(broker.url).login(name, "wrong")


def refusal(broker: DaemonProcess, name: str) -> str:
    try:
        Client(broker.url).login(name, PASSWORD)
    except RequestFailed as error:
        return error.code
    return ""


def test_a_frozen_operator_is_helped_with_the_daemon_running_and_stopped(running: DaemonProcess) -> None:
    config = ("--config", str(running.config))
    token = running.client("root")
    job = running.client("alice").create_job(
        {"jobName": "goes-on", "config": {"specId": _spec(token), "imageId": "local", "command": "sleep 60"}}
    )["metadata"]["id"]
    eventually("it runs", lambda: token.job(job)["status"] == "RUNNING")

    freeze_by_failures(running, "root")
    freeze_by_failures(running, "alice")
    assert (refusal(running, "root"), refusal(running, "alice")) == ("0103", "0103")
    done(running, "user", "unfreeze", "root", *config)
    eventually("root may log in again", lambda: refusal(running, "root") == "")
    assert running.client("root").job(job)["status"] == "RUNNING", "a frozen account's job goes on"

    log_in(running, "root")
    done(running, "user", "unfreeze", "alice")
    assert refusal(running, "alice") == ""
    running.client("alice").stop_job(job)
    freeze_by_failures(running, "root")
    assert running.stop() == 0

    nobody = running.command("user", "unfreeze", "nobody", *config)
    assert nobody.returncode == 1
    assert "there is no account named 'nobody'" in nobody.stderr
    done(running, "user", "unfreeze", "root", *config)
    done(running, "user", "password", "root", "--password-stdin", *config, text="another one")
    done(running, "tenant", "add", "vision", *config)
    running.start()
    log_in(running, "root", "another one")
    tenants = json.loads(done(running, "tenant", "list", "--json"))
    assert [each["id"] for each in tenants["items"]] == ["lab", "ops", "vision"]
    done(running, "tenant", "add", "speech")
    assert "speech" in done(running, "tenant", "list")
    entries = json.loads(done(running, "audit", "--actor", "command line", "--json"))
    kinds = [each["kind"] for each in reversed(entries["items"])]
    assert kinds[-4:] == ["account.unfrozen", "account.unfrozen", "account.password", "tenant.created"]
    shown = done(running, "audit", "--kind", "tenant", "--last", "1")
    assert shown.splitlines()[1].split()[2:5] == ["root", "tenant.created", "speech"]


def _spec(client: Client) -> str:
    found: list[Any] = eventually("specs", lambda: client.specs()["resourceSpecs"])
    return str(found[0]["resourceSpecId"])


def test_other_logins_are_ended(running: DaemonProcess) -> None:
    log_in(running, "alice")
    other = running.client("alice")
    assert other.logins()["totalSize"] == 2
    done(running, "logout", "--others")
    with pytest.raises(RequestFailed) as refused:
        other.me()
    assert (refused.value.status, refused.value.code) == (401, "0101")
    done(running, "jobs")


def test_the_client_knows_every_call(running: DaemonProcess) -> None:
    root, alice = running.client("root"), running.client("alice")
    assert Client(running.url).register("yan", "pw")["tenant"] == "guests"
    assert root.create_account("dan", "pw", tenant="lab")["tenant"] == "lab"
    assert root.create_tenant("speech")["accounts"] == 0
    assert {each["id"] for each in root.all_tenants()} == {"guests", "lab", "ops", "speech"}
    assert root.tenants({"pageSize": 1})["totalSize"] == 4
    listed = [each["name"] for each in root.all_accounts()]
    assert listed == sorted(listed)
    assert {"alice", "dan", "root", "yan"} <= set(listed)
    first = root.accounts({"pageSize": 1, "order": "asc"})
    assert (first["items"][0]["name"], first["totalSize"]) == (listed[0], len(listed))
    key = alice.create_key("k", ["read"], application="app")
    assert Client(running.url, key["key"]).me()["name"] == "alice"
    assert alice.keys()["items"][0]["id"] == key["id"]
    assert alice.applications()["items"][0]["application"] == "app"
    alice.revoke_application("app")
    second = alice.create_key("k", ["read"])
    alice.revoke_key(second["id"])
    assert list(alice.all_keys()) == []
    alice.end_other_logins()
    assert root.audit({"kind": "key.revoked"})["totalSize"] == 2


def test_events_come_as_they_happen_and_end_with_the_daemon(running: DaemonProcess) -> None:
    alice = running.client("alice")
    seen: list[Any] = []
    ended: list[Exception] = []

    def listen() -> None:
        try:
            for event in alice.events(after=0):
                seen.append(event)  # noqa: PERF402  # it is looked at meanwhile
        except EventsEnded as error:
            ended.append(error)

    listener = threading.Thread(target=listen)
    listener.start()
    body = {"jobName": "j", "config": {"specId": _spec(alice), "imageId": "local", "command": "true"}}
    job = running.client("alice").create_job(body)["metadata"]["id"]
    eventually("its end", lambda: any(each["kind"] == "job.succeeded" for each in seen))
    assert {each["jobId"] for each in seen} == {job}
    assert [each["id"] for each in seen] == sorted(each["id"] for each in seen)
    again = alice.events(after=seen[0]["id"])
    assert next(again)["id"] == seen[1]["id"]
    again.close()  # type: ignore[attr-defined]
    assert running.stop() == 0
    listener.join(20)
    assert not listener.is_alive()
    assert [str(each) for each in ended] == ["end: the broker shuts down"]


def test_a_page_and_a_proxy_as_the_file_says(tmp_path: Path) -> None:
    server = DaemonProcess(
        tmp_path, local_center(tmp_path, "here"), extra="[limits]\nlogin_failure_burst = 2\n"
    )
    text = server.config.read_text()
    server.config.write_text(
        text.replace(
            "[store]",
            'cors_origins = ["https://portal.example"]\ntrusted_proxies = ["127.0.0.1"]\n[store]',
            1,
        )
    )
    server.add_user("alice")
    server.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/healthz", headers={"Origin": "https://portal.example"})
        answer = connection.getresponse()
        assert answer.read()
        assert answer.getheader("Access-Control-Allow-Origin") == "https://portal.example"

        def attempt(address: str) -> int:
            body = json.dumps({"authMethod": "password", "user": {"name": address, "password": "no"}})
            connection.request("POST", "/auth/tokens", body, {"X-Forwarded-For": address})
            refused = connection.getresponse()
            refused.read()
            return refused.status

        assert [attempt("192.0.2.1") for _ in range(3)] == [401, 401, 429]
        assert attempt("192.0.2.2") == 401
        connection.close()
        assert server.stop() == 0
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
