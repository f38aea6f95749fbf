"""A CECSTACK center at the real daemon: a job from its submission to its log, and an operator's words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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


def serving(platform: Cecstack, folder: Path) -> str:
    """The center's configuration, set up for services."""
    keys = "".join(f"{name} = {json.dumps(value)}\n" for name, value in SERVICE.items())
    return center_of(platform, folder).replace("timeout_s = 1\n", f"timeout_s = 1\n{keys}", 1)


def service_of(alice: Client, **more: Any) -> str:
    """The id of a service that has been created."""
    spec = eventually("specs are known", lambda: alice.specs()["resourceSpecs"])[0]
    config = {"specId": spec["resourceSpecId"], "imageId": "pytorch", "command": "serve", "port": 8080}
    made = alice.create_job({"jobName": "chat", "config": {**config, **more}}, noun=ONLINE)
    return str(made["metadata"]["id"])


def test_a_service_of_the_queue(tmp_path: Path, platform: Cecstack) -> None:
    with daemon(tmp_path, serving(platform, tmp_path)) as broker:
        alice = broker.client("alice")
        job = service_of(alice)
        eventually("it serves", lambda: alice.service(job)["status"] == "RUNNING")
        assert alice.service(job)["metadata"]["url"] == f"{broker.url}/services/{job}/"
        (record,) = platform.records.services.values()
        assert (record.body["command"], record.body["ports"]) == ("serve", "8080")
        alice.stop_job(job, noun=ONLINE)
        eventually("it has stopped", lambda: alice.service(job)["status"] == "STOPPED")
        alice.delete_job(job, noun=ONLINE)
        eventually("it is gone there, too", lambda: platform.records.services == {})
        assert platform.complaints == []


def test_a_service_that_goes_offline_by_itself_is_started_again(tmp_path: Path, platform: Cecstack) -> None:
    with daemon(tmp_path, serving(platform, tmp_path)) as broker:
        alice = broker.client("alice")
        job = service_of(alice, maxRetries=1)
        eventually("it serves", lambda: alice.service(job)["status"] == "RUNNING")
        (first,) = platform.records.services
        platform.records.take_offline(first)
        eventually("another is made", lambda: len(platform.records.services) == 2)
        eventually("it serves again", lambda: alice.service(job)["status"] == "RUNNING")
        ended, serves = alice.job(job)["runs"]
        assert (ended["status"], serves["status"]) == ("FAILED", "RUNNING")
        platform.records.take_offline(max(platform.records.services))
        eventually("its retries are spent", lambda: alice.service(job)["status"] == "FAILED")
        assert "no longer started" in alice.job(job)["runs"][-1]["message"]
        assert platform.complaints == []
