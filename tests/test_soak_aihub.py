"""Many jobs through the real daemon at an emulated AIHub whose calls go wrong: see tests/soak.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon_process import A800_POOL
from tests.emulators.aihub import (
    S3_TOKEN,
    Cluster,
    Emulator,
    Execution,
    Node,
    Switches,
    serve,
)
from tests.emulators.faults import Fault
from tests.soak import FAULTY, JOBS, SEED, SPEED, Site, in_background, soak

NODES = tuple(Node(f"ai-{n}", f"10.0.0.{n}", 8) for n in range(1, 5))
CREATES = ("create_training", "create_quota_task")
CLUSTER = Cluster(29, "vc-a800-train", NODES)


class AihubTruth:
    """What the emulator knows."""

    def __init__(self, hub: Emulator) -> None:
        self._hub = hub

    def executions(self) -> Sequence[Execution]:
        return list(self._hub.platform.executions)

    def alive(self) -> Sequence[str]:
        return [task.name for task in self._hub.platform.tasks if task.status in (1, 2, 6)]

    def remote(self, name: str) -> str | None:
        for task in self._hub.platform.tasks:
            if task.name == name:
                return f"quo:{task.quota_id}" if task.quota_id else f"trn:{task.id}"
        return None

    def repeated(self) -> Sequence[str]:
        """Creates are named; only one that was turned away for want of a session may come again."""
        arrived: dict[str, list[str]] = {}
        for request in self._hub.requests:
            if request.operation in CREATES and not request.turned_away:
                arrived.setdefault(request.body["name"], []).append(str(request.fault))
        return [f"{name} was created with {faults}" for name, faults in arrived.items() if len(faults) > 1]

    def complaints(self) -> Sequence[str]:
        return list(self._hub.complaints)

    def calm(self) -> None:
        self._hub.faults.calm()


def center_of(hub: Emulator, folder: Path, mode: str) -> str:
    urls = "\n".join(f'{service}_url = "{url}"' for service, url in hub.urls.items())
    storage = folder / "storage" / "broker"
    storage.mkdir(parents=True, exist_ok=True)
    return f"""
[[centers]]
id = "sz-1"
name = "Shenzhen"
adapter = "aihub"
poll_interval_s = 1
max_in_flight = 64
[centers.connection]
{urls}
ca_file = "{hub.ca_file}"
mode = "{mode}"
project_id = 1
storage_ids = [1]
timeout_s = 1
requests_per_s = 500
concurrency = 16
output = {{ in_job = "{storage}", here = "{storage}" }}
[centers.credentials]
username = "broker"
password = "open sesame"
s3_token = "{S3_TOKEN}"
{A800_POOL}
[[centers.prices]]
accelerator = "Nvidia/GPU/A800"
price = 12.5
[[centers.images]]
id = "pytorch"
native = "reg/pt:2.3"
"""


@contextmanager
def emulated(folder: Path) -> Iterator[Emulator]:
    """An installation with sessions that end soon; 5 % of the calls go wrong, in every way."""
    switches = Switches(token_s=5, expired="401")
    with in_background(lambda: serve(folder, [CLUSTER], switches=switches, speed=SPEED, seed=SEED)) as hub:
        hub.faults.chance(FAULTY, list(Fault), [name for name in operations() if name])
        yield hub


def operations() -> list[str]:
    """Every operation that the daemon uses."""
    return [
        *("login", "clusters", "storages", "training", "training_pods", "create_training", "stop_training"),
        *("quota_task", "quota_pods", "create_quota_task", "stop_quota_task"),
    ]


@pytest.mark.parametrize("mode", ["quota", "training"] if JOBS > 40 else ["quota"])
def test_jobs_survive_a_faulty_platform(tmp_path: Path, mode: str) -> None:
    """VIP jobs are trainings in both modes."""
    with emulated(tmp_path) as hub:
        site = Site(center_of(hub, tmp_path, mode), sizes=4, image="pytorch", doubts_end=False)
        story = soak(tmp_path, site, AihubTruth(hub))
        kinds = Counter(occurred.fault for occurred in hub.faults.occurred)
        print(f"{mode}: {len(hub.requests)} requests, faults {dict(kinds)}, held {len(story.held)}")
        assert sum(kinds.values()) >= len(hub.requests) * FAULTY / 3
