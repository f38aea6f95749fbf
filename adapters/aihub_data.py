"""Data sets, workflow runs, warehouse searches and evaluations of an AIHub.

Here: the calls of 数据集管理, S3 中转服务, 工作流管理 V2, 数据仓库 and 评测平台, and moving a data set in
steps.  Not here: who asks for them (aihub.py, aihub_commands.py).

A data set has no place in a training: jobs read the copy on the shared storage, where `output` is
set.  Registering it at the platform (relay, data set, version) is for the platform's other parts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import FormData

from adapters.aihub_services import Missing, NameTaken, Service, Services, WrongMethod
from adapters.output import Output
from adapters.staging import FOLDER, remove
from broker.adapter import CopyRef, CopySighting, CopyState, Refused, Unavailable, Unsupported

ZIP = 1  # upload_type of a zip file
MAX_VERSIONS = 100


class Data:
    """What one center does with data."""

    def __init__(self, services: Services, *, bucket: str, prefix: str, output: Output | None) -> None:
        self._services = services
        self._bucket = bucket
        self._prefix = prefix
        self._output = output
        self.run_method = "GET"

    # ------------------------------------------------------------ data sets

    @property
    def registers(self) -> bool:
        return self._services.has(Service.DATASET) and self._services.has(Service.S3)

    def place(self, dataset: str) -> str:
        """Where jobs find a data set, "" where they cannot."""
        return f"{self._output.in_job}/{FOLDER}/{dataset}" if self._output is not None else ""

    async def stage(self, copy: CopyRef) -> CopySighting:
        """One step: to the shared storage; through the relay; a data set; a version; ready.

        `remote` says how far it has come.  Each step looks before it acts, so a step that is made
        again after a lost answer makes nothing twice.
        """
        if self._output is None and not self.registers:
            raise Unsupported(
                "this center cannot take data sets: set output to a storage that jobs share with the"
                " broker, or dataset_url, s3_url and s3_token to register them at the platform"
            )
        if self._output is not None:
            await asyncio.to_thread(_copy, Path(copy.source), self._output.here / FOLDER, copy.dataset)
            if not self.registers:
                return CopySighting(CopyState.READY, self.place(copy.dataset), copy.bytes)
        name = f"{self._prefix}-{copy.dataset}"
        found = await self._newest(name)
        if found is not None and found.get("status") in (1, 2):
            return CopySighting(CopyState.MOVING, copy.remote, copy.bytes)
        if found is not None and found.get("status") == 3:
            ready = self.place(copy.dataset) or f"{name}/V{found.get('version')}"
            return CopySighting(CopyState.READY, ready, copy.bytes)
        if found is not None and copy.remote.startswith("version:"):
            said = found.get("message") or "no reason given"
            return CopySighting(CopyState.FAILED, message=f"the platform could not make {name}: {said}")
        return await self._next(copy, name, found)

    async def unstage(self, copy: CopyRef) -> None:
        """Off the shared storage.  Raises Unsupported where it is registered at the platform too."""
        if self._output is not None:
            await remove(self._output, copy.dataset)
        if self.registers:
            name = f"{self._prefix}-{copy.dataset}"
            raise Unsupported(f"the platform has no call to delete the data set {name}")

    async def _next(self, copy: CopyRef, name: str, found: Mapping[str, Any] | None) -> CopySighting:
        """The step that is due where there is no version under way and none that is ready."""
        if not copy.remote.startswith("s3:"):
            if copy.remote.startswith("version:"):  # made, and not to be seen yet
                return CopySighting(CopyState.MOVING, copy.remote, copy.bytes)
            path = await self._upload(Path(copy.source), f"{name}.zip")
            return CopySighting(CopyState.MOVING, f"s3:{path}", copy.bytes)
        path = copy.remote.removeprefix("s3:")
        dataset, _, rest = path.partition("|")
        if rest:
            number, path = int(dataset), rest
        elif found is not None:
            number = int(found["dataset_id"])
        else:
            made = await self.create_dataset(name)
            return CopySighting(CopyState.MOVING, f"s3:{made}|{path}", copy.bytes)
        version = await self.create_version(number, path)
        return CopySighting(CopyState.MOVING, f"version:{version}", copy.bytes)

    async def _upload(self, source: Path, key: str) -> str:
        """Pack a folder and send it through the relay (上传文件); its path there."""
        packed = await asyncio.to_thread(_packed, source)
        try:
            with await asyncio.to_thread(packed.open, "rb") as file:
                form = FormData()
                form.add_field("file", file, filename=key, content_type="application/zip")
                data = await self._services.upload(form, bucket=self._bucket, key=key)
        finally:
            await asyncio.to_thread(packed.unlink)
        path = data.get("path") if isinstance(data, dict) else None
        if not path:
            raise Unavailable("the S3 relay answered without a path")
        return str(path)

    async def create_dataset(self, name: str, description: str = "") -> int:
        """创建数据集."""
        body = {
            "name": name,
            "description": description,
            "tags": [],
            "cover_img": "",
            "create_by": await self._services.user_id(),
        }
        try:
            data = await self._services.act(Service.DATASET, "/datasets", "create_dataset", body)
        except NameTaken as taken:
            raise Refused(
                f"{taken}; the platform cannot tell the id of a data set without versions"
            ) from None
        return _id(data, "the data set")

    async def create_version(self, dataset: int, path: str, description: str = "") -> int:
        """上传并创建数据集版本, of a zip file; the id of the version, which is not its number."""
        body = {
            "upload_type": ZIP,
            "upload_path": path,
            "description": description,
            "dataset_id": dataset,
        }
        data = await self._services.act(Service.DATASET, "/dataset-versions-upload", "create_version", body)
        return _id(data, "the version")

    async def version(self, name: str) -> Mapping[str, Any]:
        """获取数据集版本信息 of <data set>/V<number>.  Raises Missing."""
        data = await self._services.read(
            Service.DATASET, "/dataset-versions-detail", "version", {"name": name}
        )
        if not isinstance(data, dict):
            raise Unavailable(f"the detail of {name} came without data")
        return data

    async def _newest(self, name: str) -> Mapping[str, Any] | None:
        """The last version of a data set: numbers count from 1, and no call tells how many there are."""
        newest: Mapping[str, Any] | None = None
        for number in range(1, MAX_VERSIONS):
            try:
                newest = await self.version(f"{name}/V{number}")
            except Missing:
                break
        return newest

    # ------------------------------------------------------------ workflow runs

    async def create_run(
        self, name: str, pipeline: int, version: int, params: Sequence[tuple[str, str]], description: str = ""
    ) -> int:
        """创建运行实例."""
        body = {
            "name": name,
            "description": description,
            "pipeline_id": pipeline,
            "pipeline_version_id": version,
            "params": [{"key": key, "value": value} for key, value in params],
        }
        return _id(await self._services.act(Service.WORKFLOW, "/runs", "create_run", body), "the run")

    async def run(self, number: int) -> Mapping[str, Any]:
        """获取运行实例信息: printed as POST, though every other reading call is GET.

        GET first; where the platform has no such method, POST, which is then kept to.
        """
        path = f"/runs/{number}"
        if self.run_method == "GET":
            try:
                return _shown(await self._services.read(Service.WORKFLOW, path, "run"))
            except WrongMethod:
                self.run_method = "POST"
        return _shown(await self._services.act(Service.WORKFLOW, path, "run_by_post"))

    # ------------------------------------------------------------ warehouse and evaluation

    async def create_search(self, body: Mapping[str, Any]) -> int:
        """创建数据查询任务."""
        data = await self._services.act(Service.WAREHOUSE, "/searches", "create_search", dict(body))
        return _id(data, "the search")

    async def search(self, number: int) -> Mapping[str, Any]:
        """获取数据查询任务信息.  Status 4 is an end too: the sample's loop does not know it."""
        return _shown(await self._services.read(Service.WAREHOUSE, f"/searches/{number}", "search"))

    async def import_evaluation(
        self, fields: Mapping[str, str], files: Mapping[str, tuple[str, AsyncIterator[bytes]]]
    ) -> int:
        """创建评测任务: imports results that are there already.

        The document describes dataset_name, id_dataset_name and gallery_dataset_name as the gallery,
        id and query sets in that order, against their names: they go by field name, unchanged.
        """
        form = FormData()
        for name, value in fields.items():
            form.add_field(name, value)
        form.add_field("user_id", str(await self._services.user_id()))
        for name, (filename, chunks) in files.items():
            form.add_field(name, chunks, filename=filename, content_type="application/octet-stream")
        data = await self._services.send(Service.EVALUATION, "import_result", form, "/import_result")
        return _id(data, "the evaluation")


def _id(data: Any, what: str) -> int:
    number = data.get("id") if isinstance(data, dict) else None
    if not isinstance(number, int) or number <= 0:
        raise Unavailable(f"{what} was answered without an id: whether it was made is unknown")
    return number


def _shown(data: Any) -> Mapping[str, Any]:
    """A detail for people: the text "null" stands for nothing."""
    if not isinstance(data, dict):
        raise Unavailable("the answer has no data")
    return {key: _without_nulls(value) for key, value in data.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return None if value == "null" else value


def _copy(source: Path, folder: Path, name: str) -> None:
    """A folder to the shared storage, whole or not at all; nothing where it is there already."""
    final = folder / name
    if final.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        shutil.copytree(source, fresh / name, symlinks=True)
        os.replace(fresh / name, final)
    except OSError as error:
        raise Unavailable(f"{final} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _packed(source: Path) -> Path:
    """A folder as a zip file of its own."""
    handle, name = tempfile.mkstemp(suffix=".zip", prefix="broker-")
    with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(source))
    return Path(name)
