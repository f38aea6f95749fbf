"""A CECSTACK center at the real daemon: a job from its submission to its log, and an operator's words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.client import ONLINE, Client
from tests.cecstack_center import SERVICE
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually
from tests.emulators.cecstack import Cecstack, Site
from tests.soak import in_background
from tests.test_soak_cecstack import PACKAGES, center_of


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Cecstack]:
    @asynccontextmanager
    async def serve() -> AsyncIterator[Cecstack]:
        site = Site(secrets={"AK-1": "hush-hush"})
        async with Cecstack(tmp_path / "platform", site=site) as platform:
            for native, (cores, memory_gib, cards) in PACKAGES.items():
                platform.add(native, cpu=cores, memory_gib=memory_gib, gpus=cards, product="H800", nodes=6)
            yield platform

    with in_background(serve) as platform:
        yield platform


def as_root(broker: DaemonProcess, *words: str) -> str:
    token = Client(broker.url).login("root", PASSWORD)["token"]
    done = broker.command(*words, env={"BROKER_TOKEN": token})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_and_an_operator(tmp_path: Path, platform: Cecstack) -> None:
    with daemon(tmp_path, center_of(platform, tmp_path)) as broker:
        alice = broker.client("alice")
        spec = eventually("specs are known", lambda: alice.specs()["resourceSpecs"])[0]
        config = {"specId": spec["resourceSpecId"], "imageId": "pytorch", "command": "echo hi; sleep 20"}
        job = alice.create_job({"jobName": "one", "config": config})["metadata"]["id"]
        eventually("it has succeeded", lambda: alice.job(job)["status"] == "SUCCEEDED")
        checks = as_root(broker, "doctor", "cd-1")
        assert "slm tasks are listed" in checks
        projects = json.loads(as_root(broker, "cecstack", "projects", "--json"))
        assert projects["result"][0]["name"] == "broker"
        answer = as_root(broker, "call", "cd-1", "GET", "/api/aidp/v1/resource/detail/AIDP-small")
        assert "restGpu" in answer
        assert "hush-hush" not in answer + checks + broker.log.read_text()
        assert platform.complaints == []


def test_a_service_of_the_queue(tmp_path: Path, platform: Cecstack) -> None:
    keys = "".join(f"{name} = {json.dumps(value)}\n" for name, value in SERVICE.items())
    center = center_of(platform, tmp_path).replace("timeout_s = 1\n", f"timeout_s = 1\n{keys}", 1)
    with daemon(tmp_path, center) as broker:
        alice = broker.client("alice")
        spec = eventually("specs are known", lambda: alice.specs()["resourceSpecs"])[0]
        config = {"specId": spec["resourceSpecId"], "imageId": "pytorch", "command": "serve", "port": 8080}
        made = alice.create_job({"jobName": "chat", "config": config}, noun=ONLINE)
        job = made["metadata"]["id"]
        eventually("it serves", lambda: alice.service(job)["status"] == "RUNNING")
        assert alice.service(job)["metadata"]["url"] == f"{broker.url}/services/{job}/"
        (record,) = platform.records.services.values()
        assert (record.body["command"], record.body["ports"]) == ("serve", "8080")
        alice.stop_job(job, noun=ONLINE)
        eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")
        alice.delete_job(job, noun=ONLINE)
        eventually("it is gone there, too", lambda: platform.records.services == {})
        assert platform.complaints == []
