"""An emulated Ampha center at the real daemon, with the words that people type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.client import ONLINE
from tests.ampha_center import beside_a_daemon
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually
from tests.emulators.ampha import Ampha
from tests.emulators.ampha.server import GATEWAY
from tests.test_services_daemon import ask, token


@pytest.fixture
def center() -> Iterator[Ampha]:
    with beside_a_daemon(password_key=b"0123456789abcdef") as emulator:
        yield emulator


@pytest.fixture
def broker(tmp_path: Path, center: Ampha) -> Iterator[DaemonProcess]:
    text = f"""
[[centers]]
id = "hz-1"
name = "Hangzhou"
adapter = "ampha"
poll_interval_s = 1
[centers.connection]
base_url = "{center.url}"
password_mode = "aes-cbc"
password_key = "0123456789abcdef"
requests_per_s = 200
lookup_lag_s = 1
qos_ids = {{ 6 = 3 }}
online_services = "models"
service_gateway = "{center.url}{GATEWAY}"
[centers.credentials]
username = "sbb"
password = "pw-user"
tenant_username = "zjm"
tenant_password = "pw-tenant"
"""
    with daemon(tmp_path, text) as running:
        yield running


def test_a_job_and_its_operators(broker: DaemonProcess, center: Ampha) -> None:
    root = {"BROKER_TOKEN": str(broker.client("root").login("root", PASSWORD)["token"])}
    # 1. the doctor is content
    doctor = broker.command("doctor", "hz-1", "--json", env=root)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    checks = {check["name"]: check["detail"] for check in json.loads(doctor.stdout)["checks"]}
    assert "password_mode is aes-cbc" in checks["login as user"]
    assert checks["capacity"].startswith("1 pools with 2 nodes")
    # 2. a job runs, and its log comes back
    client = broker.client("alice")
    spec = eventually("specs", lambda: client.specs()["resourceSpecs"])[0]["resourceSpecId"]
    image = eventually("images", lambda: center.count("image_items")) and "ai-common:v1.0.0"
    config = {"specId": spec, "imageId": image, "command": "sleep 20; exit 0"}
    job = str(client.create_job({"jobName": "one", "config": config})["metadata"]["id"])
    eventually("it has succeeded", lambda: client.job(job)["status"] == "SUCCEEDED")
    run = client.job(job)["runs"][-1]["taskId"]
    vip = {"jobName": "two", "config": {**config, "isVip": True}}
    second = str(broker.client("root").create_job(vip)["metadata"]["id"])
    eventually("it has succeeded", lambda: broker.client("root").job(second)["status"] == "SUCCEEDED")
    assert [task.body["isUrgentTask"] for task in center.world.tasks.values()] == ["N", "Y"]
    # 3. what only this platform can do
    pods = broker.command("ampha", "pods", "--task", run, "--json", env=root)
    assert pods.returncode == 0, pods.stderr
    (pod,) = json.loads(pods.stdout)["result"]
    assert pod["status"] == 2
    priority = broker.command("ampha", "user-priority", "--user", "6", "--priority", "high", env=root)
    assert priority.returncode == 0, priority.stderr
    assert center.world.priority == {"6": "high"}
    metered = broker.command("ampha", "metering", "--json", env=root)
    assert metered.returncode == 0, metered.stderr
    refused = broker.command("ampha", "user-priority", "--user", "7", "--priority", "high", env=root)
    assert refused.returncode == 1
    assert "qos_ids" in refused.stderr
    # 4. a raw call, and nothing secret anywhere
    info = broker.command("call", "hz-1", "GET", "/prod-api/getInfo", env=root)
    assert info.returncode == 0, info.stderr
    told = info.stdout + broker.log.read_text()
    for secret in ("pw-user", "pw-tenant", "bcrypt", "secret-of-sbb", center.sealed("pw-user")):
        assert secret not in told


def test_a_service_of_the_queue(broker: DaemonProcess, center: Ampha) -> None:
    alice = broker.client("alice")
    spec = eventually("specs", lambda: alice.specs()["resourceSpecs"])[0]["resourceSpecId"]
    image = eventually("images", lambda: center.count("image_items")) and "ai-common:v1.0.0"
    model = [{"key": "AMPHA_MODEL", "value": "DeepSeek-14B/master"}]
    config = {"specId": spec, "imageId": image, "command": "none", "env": model, "port": 8000}
    made = alice.create_job({"jobName": "chat", "config": config}, noun=ONLINE)
    job = str(made["metadata"]["id"])
    eventually("it serves", lambda: alice.service(job)["status"] == "RUNNING")
    (room,) = center.rooms.services.values()
    # 1. its address answers, through the broker's own
    assert alice.job(job)["runs"][0]["address"] == f"{center.url}{GATEWAY}/{room.id}"
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    path, body = f"/services/{job}/v1/chat/completions", json.dumps(asked).encode()
    status, answer = ask(broker, path, token=token(alice), method="POST", body=body)
    assert (status, json.loads(answer)) == (200, {"model": "DeepSeek-14B/master", **asked})
    assert room.calls == 1
    # 2. it is stopped, and its cards are free
    alice.stop_job(job, noun=ONLINE)
    eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")
    assert center.count("stop_service") == 1
    assert [node.free()[2] for node in center.world.groups[0].nodes] == [8, 8]
    # 3. it is deleted there, too
    alice.delete_job(job, noun=ONLINE)
    eventually("it is gone there, too", lambda: center.rooms.services == {})
    assert center.count("delete_service") == 1
