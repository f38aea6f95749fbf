"""Many jobs through the real daemon at an emulated Ampha center whose calls go wrong: see tests/soak.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.emulators.ampha import Ampha, Execution, Settings, group, nodes
from tests.emulators.faults import Fault
from tests.soak import FAULTY, JOBS, SEED, SPEED, Site, in_background, soak

OPERATIONS = (
    *("login", "get_info", "groups", "remains", "image_items", "pods"),
    *("create_a", "create_b", "create_c", "list_a", "list_b", "detail_a", "detail_b"),
    *("stop_a", "stop_b", "stop_c", "delete_a", "delete_c"),
)
"""Every operation that the daemon uses."""


@dataclass(frozen=True, slots=True)
class Executed:
    """An execution, in the words of the soak."""

    name: str
    started_ms: int
    ended_ms: int | None
    exit_codes: tuple[int, ...]
    ended_by: str


class AmphaTruth:
    """What the emulator knows."""

    def __init__(self, center: Ampha) -> None:
        self._center = center
        self._world = center.world

    def executions(self) -> Sequence[Executed]:
        return [self._executed(each) for each in list(self._world.executions)]

    def _executed(self, each: Execution) -> Executed:
        itself = each.how in ("Succeeded", "Failed")
        code = int(each.how == "Failed")
        return Executed(each.name, each.started_ms, each.ended_ms, (code,), "itself" if itself else each.how)

    def alive(self) -> Sequence[str]:
        return [task.name for task in list(self._world.tasks.values()) if not task.state.ended]

    def remote(self, name: str) -> str | None:
        for task in list(self._world.tasks.values()):
            if task.name == name:
                kind = "llm" if task.store == "fineTune" else "to"
                return f"{'ct' if task.body['createWay'] == 'userDefined' else kind}:{task.id}"
        return None

    def repeated(self) -> Sequence[str]:
        created = Counter(
            seen.body["name"] for seen in list(self._center.seen) if seen.operation.startswith("create_")
        )
        return [f"{name} was created {count} times" for name, count in created.items() if count > 1]

    def complaints(self) -> Sequence[str]:
        return list(self._center.complained)

    def calm(self) -> None:
        self._center.faults.calm()


def center_of(center: Ampha, task_api: str) -> str:
    return f"""
[[centers]]
id = "hz-1"
name = "Hangzhou"
adapter = "ampha"
poll_interval_s = 1
max_in_flight = 64
[centers.connection]
base_url = "{center.url}"
task_api = "{task_api}"
timeout_s = 1
lookup_lag_s = 1
report_lag_s = 1
requests_per_s = 500
concurrency = 16
[centers.credentials]
username = "sbb"
password = "pw-user"
[[centers.prices]]
accelerator = "Nvidia/GPU/A800"
price = 12.5
"""


@contextmanager
def emulated() -> Iterator[Ampha]:
    """Sessions that end soon, lists that are late, and 5 % of the calls going wrong in every way."""
    settings = Settings(
        scale=SPEED,
        seed=SEED,
        session_s=5,
        create_s=(0.2, 2),
        list_lag_s=(0, 5),
        pull_s=(5, 30),
        refuse_duplicates=True,
    )
    with in_background(lambda: Ampha([group(nodes(4))], settings)) as center:
        center.faults.chance(FAULTY, list(Fault), OPERATIONS)
        yield center


@pytest.mark.parametrize(
    "task_api", ["trainOperator", "computationTask", "fineTune"] if JOBS > 40 else ["computationTask"]
)
def test_jobs_survive_a_faulty_platform(tmp_path: Path, task_api: str) -> None:
    with emulated() as center:
        site = Site(center_of(center, task_api), sizes=4, image="ai-common:v1.0.0")
        story = soak(tmp_path, site, AmphaTruth(center))
        kinds = Counter(occurred.fault for occurred in center.faults.occurred)
        print(f"{task_api}: {len(center.seen)} requests, faults {dict(kinds)}, held {len(story.held)}")
        assert sum(kinds.values()) >= len(center.seen) * FAULTY / 3
        assert len([e for e in center.world.executions if e.how == "Succeeded"]) >= JOBS / 3
