"""Data sets, warehouse searches, workflow runs, evaluations and stored objects of the emulated AIHub.

What belongs here: their states and what makes them fail.  What does not: HTTP (services.py).
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.emulators.aihub.platform import User, now_ms

STEP_S = 0.05
"""Real seconds that a data object spends in each of its states."""


class Rejected(Exception):
    """The platform refuses; the text is its msg."""


@dataclass(slots=True)
class Dataset:
    id: int
    asked: Mapping[str, Any]
    versions: list[Version] = field(default_factory=list)


@dataclass(slots=True)
class Version:
    id: int
    number: int
    asked: Mapping[str, Any]
    user: User
    born: float
    trouble: str
    size: int = 0
    count: int = 0


@dataclass(slots=True)
class Search:
    id: int
    asked: Mapping[str, Any]
    user: User
    born: float
    created_at: int


@dataclass(slots=True)
class PipelineRun:
    id: int
    asked: Mapping[str, Any]
    born: float
    created_at: int


def _status(born: float, trouble: bool) -> int:
    """1 waiting, 2 under way, 3 done, 4 failed: by age."""
    age = time.monotonic() - born
    if age < STEP_S:
        return 1
    if age < 2 * STEP_S:
        return 2
    return 4 if trouble else 3


class Data:
    """Everything that is not a task."""

    def __init__(self) -> None:
        self.datasets: dict[int, Dataset] = {}
        self.searches: dict[int, Search] = {}
        self.runs: dict[int, PipelineRun] = {}
        self.objects: dict[str, bytes] = {}  # by s3 path
        self.imported: list[tuple[dict[str, str], dict[str, bytes]]] = []
        self._last = 0

    def _id(self) -> int:
        self._last += 1
        return self._last

    # ------------------------------------------------------------ data sets

    def create_dataset(self, asked: Mapping[str, Any], user: User) -> int:
        if asked["create_by"] != user.id:
            raise Rejected("create_by 不是当前用户")
        dataset = Dataset(self._id(), asked)
        self.datasets[dataset.id] = dataset
        return dataset.id

    def create_version(self, asked: Mapping[str, Any], user: User) -> int:
        dataset = self.datasets.get(asked["dataset_id"])
        if dataset is None:
            raise Rejected("数据集不存在")
        trouble, size, count = self._read(asked)
        number = len(dataset.versions) + 1
        version = Version(self._id(), number, asked, user, time.monotonic(), trouble, size, count)
        dataset.versions.append(version)
        return version.id

    def _read(self, asked: Mapping[str, Any]) -> tuple[str, int, int]:
        """What is wrong with an upload, its bytes and files."""
        content = self.objects.get(asked["upload_path"])
        if asked["upload_type"] != 1:
            return "", 0, 0
        if content is None:
            return f"上传路径不存在: {asked['upload_path']}", 0, 0
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return "", len(content), len(archive.namelist())
        except zipfile.BadZipFile:
            return "不是 zip 文件", len(content), 0

    def version_detail(self, name: str) -> dict[str, Any]:
        for dataset in self.datasets.values():
            for version in dataset.versions:
                if f"{dataset.asked['name']}/V{version.number}" == name:
                    return _version_view(dataset, version)
        raise Rejected("数据集版本不存在")

    # ------------------------------------------------------------ searches and runs

    def create_search(self, asked: Mapping[str, Any], user: User) -> int:
        search = Search(self._id(), asked, user, time.monotonic(), now_ms())
        self.searches[search.id] = search
        return search.id

    def search_detail(self, id: int, url: str) -> dict[str, Any]:
        search = self.searches.get(id)
        if search is None:
            raise Rejected("查询任务不存在")
        trouble = "drop" in search.asked.get("sql", "")
        status = _status(search.born, trouble)
        found = [{"image_url": "http://img/1.jpg", "label": "cat", "score": 1, "box": [1, 1, 2, 2]}]
        return {
            "sql": "",
            "feature_lib_id": 0,
            "images": None,
            "keywords": "",
            "top_k": 0,
            "description": "",
            **search.asked,
            "id": search.id,
            "feature_lib_name": "",
            "status": status,
            "message": "sql 不允许" if status == 4 else "",
            "result_url": f"{url}/results/{search.id}.csv" if status == 3 else "",
            "results": found if status == 3 and search.asked["type"] != 1 else None,
            "created_at": search.created_at,
            "username": search.user.name,
        }

    def create_run(self, asked: Mapping[str, Any]) -> int:
        run = PipelineRun(self._id(), asked, time.monotonic(), now_ms())
        self.runs[run.id] = run
        return run.id

    def run_detail(self, id: int) -> dict[str, Any]:
        run = self.runs.get(id)
        if run is None:
            raise Rejected("运行实例不存在")
        status = _status(run.born, any(p["key"] == "fail" for p in run.asked["params"]))
        node = {
            "name": "n1",
            "params": {"input": "null", "output": "null"},
            "message": "",
            "status": status,
            "pod_name": "p-1",
            "started_at": run.created_at,
            "finished_at": 0,
            "dependencies": None,
        }
        return {
            "id": run.id,
            "name": run.asked["name"],
            "description": run.asked.get("description", ""),
            "duration": 0,
            "pipeline_id": run.asked["pipeline_id"],
            "pipeline_name": "pipe",
            "pipeline_version_id": run.asked["pipeline_version_id"],
            "pipeline_version_name": "v4",
            "started_at": run.created_at if status > 1 else 0,
            "finished_at": now_ms() if status > 2 else 0,
            "created_at": run.created_at,
            "status": status,
            "task_nodes": [node],
            "params": run.asked["params"],
        }

    # ------------------------------------------------------------ evaluations and objects

    def import_result(self, fields: dict[str, str], files: dict[str, bytes]) -> int:
        self.imported.append((fields, files))
        return self._id()

    def store(self, bucket: str, key: str, content: bytes) -> str:
        path = f"s3://{bucket}/{key}"
        self.objects[path] = content
        return path


def _version_view(dataset: Dataset, version: Version) -> dict[str, Any]:
    status = _status(version.born, bool(version.trouble))
    return {
        "id": version.id,
        "version": version.number,
        "dataset_id": dataset.id,
        "upload_path": version.asked["upload_path"],
        "upload_type": version.asked["upload_type"],
        "parent_version_id": version.asked.get("parent_version_id", 0),
        "description": version.asked.get("description", ""),
        "status": status,
        "message": version.trouble if status == 4 else "",
        "created_at": now_ms(),
        "user_id": version.user.id,
        "data_size": version.size,
        "data_count": version.count,
        "parquet_index_path": "",
    }
