"""The emulated AIHub itself: it must be able to complain, or tests over it prove nothing."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.aihub_center import CLUSTER, until
from tests.emulators.aihub import USERS, Emulator, Switches, serve

TRAININGS = "/model-training-platform/api/v1/trainings"
TASKS = "/quota-schedule-management/api/v1/tasks"
TASK: dict[str, Any] = {
    "framework": "PyTorchJob",
    "name": "t",
    "description": "",
    "command": "sleep 60",
    "image": "reg/pt:2.3",
    "virtual_cluster_id": 29,
    "sku_cnt": 2,
    "enable_ssh": False,
    "envs": [{"key": "x", "value": "y"}],
    "storage_ids": [1],
    "instances": 1,
    "use_ib_network": False,
    "always_pull_image": False,
    "shm": 8,
    "category_id": 1,
    "project_id": 1,
    "estimate_run_time": 600,
}
TRAINING = TASK | {"is_vip": False, "preempt_policy": 1, "vip_node_names": []}
QUOTA = TASK | {"priority": 1}


class Caller:
    """A client that sends what it is told."""

    def __init__(self, hub: Emulator, session: aiohttp.ClientSession) -> None:
        self.hub = hub
        self._session = session
        self.headers: dict[str, str] = {}

    async def call(self, method: str, service: str, path: str, **more: Any) -> tuple[int, Any]:
        url = f"{self.hub.urls[service]}{path}"
        async with self._session.request(method, url, headers=self.headers, **more) as answer:
            return answer.status, await answer.json()

    async def log_in(self) -> None:
        account = {"username": "broker", "password": "open sesame"}
        _, answer = await self.call("POST", "user", "/api/v1/auth/login", json=account)
        self.headers = {"Authorization": f"Bearer {answer['data']['token']}"}


@asynccontextmanager
async def caller(folder: Path, switches: Switches | None = None) -> AsyncIterator[Caller]:
    emulated = serve(folder, [CLUSTER], switches=switches, speed=200)
    async with emulated as hub, aiohttp.ClientSession() as session:
        made = Caller(hub, session)
        await made.log_in()
        yield made


@pytest.mark.parametrize("name", sorted(set(TRAINING) - {"description"}))
async def test_each_field_of_a_training_is_missed(tmp_path: Path, name: str) -> None:
    async with caller(tmp_path) as client:
        body = {key: value for key, value in TRAINING.items() if key != name}
        _, answer = await client.call("POST", "training", TRAININGS, json=body)
        assert answer["code"] != 0
        assert client.hub.complaints == [f"POST {TRAININGS}: {name} is missing"]
        assert client.hub.platform.tasks == []


@pytest.mark.parametrize(
    ("service", "path", "body"),
    [
        ("training", TRAININGS, TRAINING | {"sku_cnt": "2"}),
        ("training", TRAININGS, TRAINING | {"is_vip": 0}),
        ("training", TRAININGS, TRAINING | {"framework": "MpiJobMpiRun"}),
        ("training", TRAININGS, TRAINING | {"envs": {"x": "y"}}),
        ("training", TRAININGS, TRAINING | {"preempt_policy": 0}),
        ("training", TRAININGS, TRAINING | {"priority": 1}),
        ("training", TRAININGS, TRAINING | {"estimate_run_time": 0}),
        ("quota", TASKS, QUOTA | {"is_vip": False}),
        ("quota", TASKS, QUOTA | {"priority": 3}),
        ("quota", TASKS, TASK),
    ],
)
async def test_a_field_of_another_type_or_value_is_complained_of(
    tmp_path: Path, service: str, path: str, body: dict[str, Any]
) -> None:
    async with caller(tmp_path) as client:
        _, answer = await client.call("POST", service, path, json=body)
        assert answer["code"] != 0
        assert "data" not in answer
        assert len(client.hub.complaints) == 1


async def test_what_else_is_complained_of(tmp_path: Path) -> None:
    async with caller(tmp_path) as client:
        await client.call("POST", "training", TRAININGS, json=TRAINING)
        await client.call("GET", "training", f"{TRAININGS}/101/pods")
        await client.call("GET", "training", "/model-training-platform/api/v1/storages", json={})
        await client.call("POST", "training", f"{TRAININGS}/101/stop", json={})
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(b"x"), filename="x")
        await client.call("POST", "s3", "/upload?bucket=b&key=k", data=form, ssl=False)
        client.headers = {}
        status, _ = await client.call("GET", "training", f"{TRAININGS}/101")
        assert status == 401
        wrong = [complaint.partition(": ")[2] for complaint in client.hub.complaints]
        assert wrong == [
            "query is {}",
            "a GET has no body",
            "a stop has no body",
            "the JWT was sent to the S3 relay",
            "no Authorization header",
        ]


async def test_two_creates_of_one_name_are_two_tasks(tmp_path: Path) -> None:
    async with caller(tmp_path) as client:
        answers = [await client.call("POST", "training", TRAININGS, json=TRAINING) for _ in range(2)]
        assert [answer["data"]["id"] for _, answer in answers] == [101, 102]


async def test_a_quota_task_stopped_behind_its_back_starts_again(tmp_path: Path) -> None:
    """Why the adapter never stops the training behind a quota task."""
    async with caller(tmp_path) as client:
        await client.call("POST", "quota", TASKS, json=QUOTA)
        (task,) = client.hub.platform.tasks
        await until(lambda: task.status == 2)
        first = task.id
        await client.call("POST", "training", f"{TRAININGS}/{first}/stop")
        await until(lambda: len(client.hub.platform.executions) == 2)
        assert task.id != first
        _, shown = await client.call("GET", "quota", f"{TASKS}/{task.quota_id}")
        assert shown["data"]["mtp_id"] == task.id


@pytest.mark.parametrize("style", ["401", "code"])
async def test_a_session_ends(tmp_path: Path, style: str) -> None:
    async with caller(tmp_path, Switches(token_s=0.05, expired=style)) as client:
        await asyncio.sleep(0.1)
        status, answer = await client.call("GET", "training", f"{TRAININGS}/1")
        assert (status, answer["code"]) == ((401, 401) if style == "401" else (200, 10401))


async def test_a_wrong_service_knows_no_path_of_another(tmp_path: Path) -> None:
    async with caller(tmp_path) as client:
        url = f"{client.hub.urls['tag']}{TRAININGS}/1"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 404


async def test_named_nodes_are_kept_free_for_a_vip_task(tmp_path: Path) -> None:
    async with caller(tmp_path) as client:
        platform = client.hub.platform
        first = platform.foreign(29, name="first", user=USERS[1], sku_cnt=2)
        node = first.pods[0].node.name
        vip = TRAINING | {"name": "vip", "is_vip": True, "vip_node_names": [node]}
        await client.call("POST", "training", TRAININGS, json=vip)
        others = [platform.foreign(29, name=f"o{n}", user=USERS[1], sku_cnt=2) for n in range(2)]
        assert [bool(other.pods) for other in others] == [True, False], "one node is left for others"
        platform.stop(first, user=USERS[1], request=0)
        (task,) = [task for task in platform.tasks if task.name == "vip"]
        assert [pod.node.name for pod in task.pods] == [node]
        assert not others[1].pods
