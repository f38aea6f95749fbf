"""An AIHub center end to end: the real daemon, real commands of users and operators, the emulated platform.

Here: what only the whole shows.  Not here: many jobs under faults (test_soak_aihub.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from broker.client import Client
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually
from tests.emulators.aihub import Cluster, Emulator, Node, serve
from tests.emulators.faults import Fault
from tests.soak import ENDED, in_background
from tests.test_emulator_aihub import TRAINING
from tests.test_soak_aihub import center_of

CLUSTER = Cluster(29, "vc", (Node("ai-1", "10.0.0.1", 8), Node("ai-2", "10.0.0.2", 8)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, Emulator]]:
    """One daemon for all tests: starting it is what costs."""
    folder = tmp_path_factory.mktemp("site")
    with in_background(lambda: serve(folder, [CLUSTER], speed=20.0)) as hub:
        with daemon(folder, center_of(hub, folder, "training")) as broker:
            yield broker, hub
        assert hub.complaints == []


def operator(broker: DaemonProcess) -> dict[str, str]:
    """The environment of an operator's shell."""
    return {"BROKER_TOKEN": Client(broker.url).login("root", PASSWORD)["token"]}


def answer(broker: DaemonProcess, env: dict[str, str], *words: str) -> Any:
    done = broker.command(*words, "--json", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def events(broker: DaemonProcess, kind: str) -> list[dict[str, Any]]:
    connection = sqlite3.connect(f"file:{broker.folder}/broker.db?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT data FROM event WHERE kind = ? ORDER BY seq", (kind,)).fetchall()
    finally:
        connection.close()
    return [json.loads(data) for (data,) in rows]


def test_operators_reach_the_platform_through_the_daemon(site: tuple[DaemonProcess, Emulator]) -> None:
    broker, hub = site
    env = operator(broker)
    checks = answer(broker, env, "doctor", "sz-1")
    assert checks["ok"], checks
    assert {"login", "virtual clusters", "reading: sku_cnt"} <= {c["name"] for c in checks["checks"]}
    shown = answer(broker, env, "call", "sz-1", "GET", "/model-training-platform/api/v1/storages")
    assert shown["status"] == 200
    start = ("workflow-start", "--name", "r1", "--pipeline", "1", "--version", "4", "--param", "x=y")
    number = answer(broker, env, "aihub", *start)["result"]["id"]
    run = answer(broker, env, "aihub", "workflow-run", "--id", str(number))["result"]
    assert run["params"] == [{"key": "x", "value": "y"}]
    refused = broker.command("aihub", "workflow-run", "--id", "999", env=env)
    assert refused.returncode == 1
    assert "运行实例不存在" in refused.stderr
    assert [event["command"] for event in events(broker, "center.command")] == [
        *("workflow-start", "workflow-run", "workflow-run")
    ]
    assert "open sesame" not in broker.log.read_text() + refused.stderr + json.dumps(checks)
    assert not any(token in broker.log.read_text() for token in hub.issued)


def spec_of(client: Client, cards: int) -> str:
    """The spec with so many cards, which have 16 cores each."""
    specs = eventually("specs", lambda: client.specs()["resourceSpecs"])
    return next(str(s["resourceSpecId"]) for s in specs if s["cpu"]["cores"] == 16 * cards)


def create(client: Client, name: str, command: str, *, cards: int = 1) -> str:
    config = {"specId": spec_of(client, cards), "imageId": "pytorch", "command": command}
    return str(client.create_job({"jobName": name, "config": config})["metadata"]["id"])


def ended(client: Client, job: str) -> str:
    def last() -> str:
        status = str(client.job(job)["status"])
        return status if status in ENDED else ""

    return str(eventually(f"job {job} ends", last))


def as_zhang(hub: Emulator, service: str, path: str, body: Any, token: str = "") -> Any:
    """A call by another user of the platform."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = Request(hub.urls[service] + path, json.dumps(body).encode(), headers)
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)["data"]


def test_what_the_platform_kills_for_somebody_else_runs_again(
    site: tuple[DaemonProcess, Emulator],
) -> None:
    broker, hub = site
    alice = broker.client("alice")
    job = create(alice, "victim", "sleep 40; echo $BROKER_ATTEMPT", cards=8)
    eventually("it runs", lambda: alice.job(job)["status"] == "RUNNING")
    account = {"username": "zhang", "password": "another"}
    token = as_zhang(hub, "user", "/api/v1/auth/login", account)["token"]
    vip = TRAINING | {"command": "sleep 20", "sku_cnt": 8, "instances": 2}
    vip |= {"is_vip": True, "preempt_policy": 2}
    as_zhang(hub, "training", "/model-training-platform/api/v1/trainings", vip, token)
    assert ended(alice, job) == "SUCCEEDED"
    first, second = alice.job(job)["runs"]
    assert (first["state"], second["state"]) == ("FAILED", "SUCCEEDED")
    assert "evicted by user zhang" in first["message"]
    assert alice.job(job)["config"].get("maxRetries", 0) == 0
    assert b"".join(alice.logs(job)) == b"2\n"


def test_a_lost_create_is_found_or_held_until_an_operator_settles_it(
    site: tuple[DaemonProcess, Emulator],
) -> None:
    broker, hub = site
    alice, root = broker.client("alice"), broker.client("root")
    known = {execution.name for execution in hub.platform.executions}

    def submit(name: str) -> str:
        return create(alice, name, "echo $BROKER_ATTEMPT; sleep 20")

    first = submit("first")
    assert ended(alice, first) == "SUCCEEDED"
    assert b"".join(alice.logs(first)) == b"1\n"
    hub.faults.plan("create_training", Fault.LOST_REPLY)
    assert ended(alice, submit("arrived")) == "SUCCEEDED"
    hub.faults.plan("create_training", Fault.DROPPED)
    dropped = submit("dropped")
    eventually("in doubt", lambda: any(r["state"] == "DOUBT" for r in alice.job(dropped)["runs"]))
    looks = sum(request.operation == "search_training" for request in hub.requests)
    eventually("looked for", lambda: sum(r.operation == "training" for r in hub.requests) > looks + 3)
    assert alice.job(dropped)["status"] == "PENDING"
    assert len({execution.name for execution in hub.platform.executions} - known) == 2
    root.resolve_job(dropped, {"neverRan": True})
    (run, again) = alice.job(dropped)["runs"]
    assert (run["state"], again["state"]) == ("FAILED", "NEW")
    alice.stop_job(dropped)
    assert ended(alice, dropped) == "STOPPED"
