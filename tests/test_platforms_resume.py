"""A resumable job at each vendor platform, through the real daemon: what it has saved is known, a VIP job
displaces it, and it goes on from there.

Here: what only the whole shows, for all of them alike.  Not here: how evidence is found and what it is
worth (test_checkpoints.py), one platform's own way to resume (test_ampha.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.client import Client
from broker.core.claims import Claims
from broker.core.policy import victims
from tests.builders import claim, request
from tests.daemon_process import daemon, eventually
from tests.emulators.aihub import Cluster, Node
from tests.emulators.aihub import serve as serve_aihub
from tests.emulators.ampha import Ampha, Settings, group, nodes
from tests.emulators.cecstack import Cecstack, Site
from tests.soak import ENDED, in_background
from tests.test_checkpoints import COUNTING, POLICY, last
from tests.test_soak_aihub import center_of as aihub_center
from tests.test_soak_ampha import center_of as ampha_center
from tests.test_soak_cecstack import center_of as cecstack_center

SPEED = 20.0


@contextmanager
def aihub(folder: Path) -> Iterator[tuple[str, str]]:
    cluster = Cluster(29, "vc", (Node("ai-1", "10.0.0.1", 8),))
    with in_background(lambda: serve_aihub(folder, [cluster], speed=SPEED)) as hub:
        yield aihub_center(hub, folder, "training").replace("nodes = 4", "nodes = 1"), "pytorch"
        assert hub.complaints == []


@contextmanager
def cecstack(folder: Path) -> Iterator[tuple[str, str]]:
    @asynccontextmanager
    async def serve() -> AsyncIterator[Cecstack]:
        site = Site(secrets={"AK-1": "hush-hush"})
        # At true speed: this emulator's clock is scaled too, and files have the true time.
        async with Cecstack(folder / "platform", speed=1.0, site=site) as platform:
            platform.tasks.queue_s = 0.05
            platform.add("AIDP-large", cpu=64, memory_gib=512, gpus=8, product="H800", nodes=1)
            yield platform

    with in_background(serve) as platform:
        text = cecstack_center(platform, folder).replace("nodes = 6", "nodes = 1")
        yield text, "pytorch"
        assert platform.complaints == []


@contextmanager
def ampha(folder: Path) -> Iterator[tuple[str, str]]:
    settings = Settings(scale=SPEED, pull_s=(1, 2), execute=True)
    storage = folder / "storage"
    storage.mkdir()
    with in_background(lambda: Ampha([group(nodes(1))], settings, folder=folder)) as center:
        output = f'output = {{ in_job = "{storage}", here = "{storage}" }}\n[centers.credentials]'
        yield (
            ampha_center(center, "trainOperator").replace("[centers.credentials]", output),
            "ai-common:v1.0.0",
        )
        assert center.complained == []


PLATFORMS: dict[str, Callable[[Path], Any]] = {"aihub": aihub, "cecstack": cecstack, "ampha": ampha}


def create(client: Client, name: str, command: str, image: str, **more: Any) -> str:
    """A job on the largest spec: a whole node."""
    specs = eventually("specs", lambda: client.specs()["resourceSpecs"])
    largest = max(specs, key=lambda s: int(s["processor"]["count"]))["resourceSpecId"]
    config = {"specId": largest, "imageId": image, "command": command, "stopGrace": 1, **more}
    return str(client.create_job({"jobName": name, "config": config})["metadata"]["id"])


def known_ms(folder: Path, job: str) -> tuple[int, int] | None:
    """Start and newest checkpoint of a job's run, as the store has them."""
    connection = sqlite3.connect(f"file:{folder}/broker.db?mode=ro", uri=True, timeout=10)
    try:
        query = "SELECT started_ms, checkpoint_ms FROM run WHERE job_id = ? AND state = 'RUNNING'"
        row = connection.execute(query, (job,)).fetchone()
    finally:
        connection.close()
    return None if row is None or None in row else (int(row[0]), int(row[1]))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_displaced_job_goes_on_from_what_it_saved(platform: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    with PLATFORMS[platform](tmp_path) as (center, image), daemon(tmp_path, center) as broker:
        alice, root = broker.client("alice"), broker.client("root")
        lower = create(alice, "lower", COUNTING, image, resumable=True)
        # 1. what it has saved is known, and only the time since then would be lost
        started_ms, saved_ms = eventually("a checkpoint was seen", lambda: known_ms(tmp_path, lower))
        assert alice.explain(lower)["placement"]["checkpointTime"]
        resumable = request(1, resumable=True)
        seen = replace(claim(started_ms=started_ms), checkpoint_ms=saved_ms, request=resumable)
        now_ms = saved_ms + 60_000
        columns = victims([seen], Claims.of([seen]).columns, np.zeros(1, dtype=np.int64), now_ms)
        assert columns.lost_s.tolist() == [60]
        # 2. a VIP job displaces it
        (steps,) = tmp_path.rglob(f"checkpoints/{lower}/step")
        before = int(eventually("a step is whole", lambda: steps.exists() and steps.read_text()))
        first = create(root, "first", "sleep 1", image, isVip=True, preemptPolicy=2)
        eventually("the VIP job has run", lambda: root.job(first)["status"] == "SUCCEEDED")
        # 3. it goes on, and ends
        (steps.parent / "enough").touch()
        eventually("it has ended", lambda: alice.job(lower)["status"] in ENDED)
        found = alice.job(lower)
        assert (found["status"], found["retriesUsed"]) == ("SUCCEEDED", 0)
        assert [run["state"] for run in found["runs"]] == ["STOPPED", "SUCCEEDED"]
        files = {path.name: path.read_text() for path in alice.download(lower, tmp_path / "results")}
        assert int(files["began"]) >= before > 0
        assert last(alice, lower)["checkpointTime"]
