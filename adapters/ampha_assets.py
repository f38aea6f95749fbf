"""What an Ampha center stores: images, data sets, models, algorithms; files on their way there (4, 5).

Here: listing assets, and moving a data set in steps that may be repeated.  Not here: tasks that use
them.

A data set goes the way that has checksums and resumes (5): parts of each file into the user's private
files, joined there, imported into a version of the data set, and looked for until all sizes agree.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

import broker.adapter
from adapters.ampha_tasks import Data, Picture
from adapters.ampha_wire import Api, rows_of, total_of
from adapters.values import whole
from broker.adapter import (
    Argument,
    CopyRef,
    CopySighting,
    CopyState,
    Image,
    Unavailable,
    VendorCommand,
)

HUB = "/api/market/datahub/"
FILES = "/api/file/file/"
PAGE = 100
MAX_PAGES = 1000
PART_BYTES = 8 << 20
"""A part of a file; the document names no size."""
PARTS_PER_STEP = 16
"""Parts sent in one step of `stage`, so that each step is short and progress is seen."""
FOLDER = "broker-staging"
"""Folder among the user's private files for what is on its way."""
DATA_SET_TAG = "1"
PRIVATE = 1
ALL = 1
KINDS = {"images": "image", "datasets": "dataset", "models": "model", "algorithms": "algo"}
SCHEMAS = {0: "X86", 1: "ARM"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One version of an image, data set, model or algorithm."""

    id: str
    name: str
    version: str
    version_id: str
    path: str
    schema: int | None = None
    author: str = ""
    tags: tuple[str, ...] = ()

    @property
    def remote(self) -> str:
        """As a copy's remote text: everything a task must say of it."""
        return "|".join((self.id, self.version_id, self.name, self.version, self.path))


def data_of(remote: str) -> Data:
    """A data set from a copy's remote text.  Raises Unavailable."""
    parts = remote.split("|", 4)
    if len(parts) != 5:
        raise Unavailable(f"the copy is known here as {remote!r}, expected id|version id|name|version|path")
    id, version_id, name, version, path = parts
    return Data(path, id, name, version, version_id)


class Assets:
    """The asset and file calls of one center."""

    def __init__(self, api: Api, prefix: str) -> None:
        self._api = api
        self._prefix = prefix
        self._pictures: dict[str, Picture] = {}

    # ------------------------------------------------------------ lists

    async def listed(self, kind: str, *, title: str = "") -> list[Asset]:
        """All versions of "image", "dataset", "model" or "algo" assets that the user sees (4.1).

        Entries of `versions` are taken and never the item's own versionId, which may be "*".
        """
        found: list[Asset] = []
        for page in range(1, MAX_PAGES + 1):
            body = {"current": page, "size": PAGE, "scope": ALL, "taskTags": [], "title": title, "author": ""}
            answer = await self._api.ask(f"{kind}_list", f"{HUB}{kind}/get{kind.capitalize()}List", body)
            rows = rows_of(answer, f"{kind} list")
            for row in rows:
                found += _versions(row)
            total = total_of(answer, "total")
            if len(rows) < PAGE or (total is not None and page * PAGE >= total):
                return found
        raise Unavailable(f"the {kind} list has more than {MAX_PAGES} pages")

    async def images(self) -> tuple[Image, ...]:
        """Images by name and version; the center's own id is that of the version."""
        assets = await self.listed("image")
        self._pictures = {
            a.version_id: Picture(a.path, a.id, a.name, a.version, a.version_id) for a in assets
        }
        return tuple(
            Image(
                id=f"{a.name}:{a.version}",
                native=a.version_id,
                name=a.name,
                arch=SCHEMAS.get(a.schema, "") if a.schema is not None else "",
            )
            for a in assets
        )

    async def offered(self, kind: str) -> tuple[broker.adapter.Asset, ...]:
        """Data sets, models or algorithms, each version one, without what the broker brought there."""
        return tuple(
            broker.adapter.Asset(
                native=a.version_id,
                title=f"{a.name}:{a.version}",
                labels=",".join(a.tags),
                owner=a.author,
                remote=a.remote if kind == "dataset" else "",
            )
            for a in await self.listed(kind)
            if not a.name.startswith(f"{self._prefix}-")
        )

    async def picture(self, native: str) -> Picture | None:
        """An image by the center's id of its version, by its address, or as name:version or name/version."""
        for again in (False, True):
            for version_id, found in self._pictures.items():
                words = {f"{found.name}{sign}{found.version}" for sign in ":/"}
                if native in (version_id, found.path) or native in words:
                    return found
            if not again:
                await self.images()
        return None

    # ------------------------------------------------------------ what operators ask

    def commands(self) -> tuple[VendorCommand, ...]:
        kind = Argument("kind", "What to list.", required=True, choices=tuple(KINDS))
        return (
            VendorCommand(
                "assets",
                "Lists images, data sets, models or algorithms with their versions.",
                self.show,
                (kind, Argument("title", "Only those with this in their name.")),
            ),
            VendorCommand(
                "asset-files",
                "Lists the files of a version.",
                self.show_files,
                (
                    Argument("id", "The asset's id.", required=True),
                    Argument("version", "The version's id.", required=True),
                ),
            ),
        )

    async def show(self, given: Mapping[str, Any]) -> Any:
        found = await self.listed(KINDS[given["kind"]], title=given.get("title", ""))
        return [
            {"id": a.id, "name": a.name, "version": a.version, "versionId": a.version_id, "path": a.path}
            for a in found
        ]

    async def show_files(self, given: Mapping[str, Any]) -> Any:
        sizes = await self.files(given["id"], given["version"])
        return [{"path": path, "bytes": size} for path, size in sorted(sizes.items())]

    # ------------------------------------------------------------ data sets

    async def stage(self, copy: CopyRef) -> CopySighting:
        """One step of a copy: the first thing that is not done yet, as the center's own lists show it."""
        # 1. the data set, by its name, which is ours
        asset = await self._data_set(copy.dataset)
        # 2. what is there and what is not
        sizes = await asyncio.to_thread(_sizes, Path(copy.source))
        there = await self.files(asset.id, asset.version_id)
        missing = [path for path, size in sizes.items() if there.get(path) != size]
        done = sum(size for path, size in sizes.items() if there.get(path) == size)
        if not missing:
            return CopySighting(CopyState.READY, asset.remote, sum(sizes.values()))
        # 3. the next file's parts, or the import of a file that is whole
        budget = PARTS_PER_STEP
        for path in missing:
            sent, whole_now = await self._send(Path(copy.source), path, self._folder(copy), budget)
            budget -= sent
            if whole_now:
                await self._import(asset, path, self._folder(copy))
            if budget <= 0:
                break
        return CopySighting(CopyState.MOVING, asset.remote, done)

    def _folder(self, copy: CopyRef) -> str:
        return f"{FOLDER}/{_plain(copy.dataset)}"

    async def _data_set(self, dataset: str) -> Asset:
        """Our data set of that name, made when there is none."""
        name = f"{self._prefix}-{_plain(dataset)}"
        for asset in await self.listed("dataset", title=name):
            if asset.name == name:
                return asset
        body = {
            "authority": PRIVATE,
            "description": f"data set {dataset}",
            "name": name,
            "taskTags": [DATA_SET_TAG],
            "shareInfo": {"users": [], "groups": []},
        }
        await self._api.ask("create_dataset", HUB + "other/createDataHub", body, effect=True)
        for asset in await self.listed("dataset", title=name):
            if asset.name == name:
                return asset
        raise Unavailable(f"data set {name} was created and is not in the list yet")

    async def files(self, id: str, version_id: str, folder: str = "") -> dict[str, int]:
        """Sizes of all files of a version, by path."""
        found: dict[str, int] = {}
        for page in range(1, MAX_PAGES + 1):
            body = {"current": page, "size": PAGE, "currentPath": folder, "id": id, "versionId": version_id}
            answer = await self._api.ask("file_list", HUB + "data/queryFileList", body)
            rows = rows_of(answer, "file list")
            for row in rows:
                path = "/".join(part for part in (folder, str(row.get("fileName") or "")) if part)
                if whole(row.get("fileType"), "fileType") == 2:
                    found |= await self.files(id, version_id, path)
                else:
                    found[path] = whole(row.get("fileSize"), "fileSize") or 0
            total = total_of(answer, "total")
            if len(rows) < PAGE or (total is not None and page * PAGE >= total):
                return found
        raise Unavailable(f"{folder or 'the version'} has more than {MAX_PAGES} pages of files")

    async def _import(self, asset: Asset, path: str, folder: str) -> None:
        """Ask for one file to be taken over; acknowledged at once, done later (T32)."""
        inside = path.rpartition("/")[0]
        body = {
            "id": asset.id,
            "versionId": asset.version_id,
            "importPath": f"/{inside}" if inside else "",
            "sourceFiles": [f"{folder}/{path}"],
        }
        await self._api.ask("import", HUB + "data/importFiles", body, effect=True)

    async def _send(self, root: Path, path: str, folder: str, budget: int) -> tuple[int, bool]:
        """Parts of one file that are not there yet, at most `budget`; how many, and whether it is whole."""
        account = await self._api.account()
        source = root / path
        size, md5, parts = await asyncio.to_thread(_sums, source)
        inside, name = f"{folder}/{path}".rpartition("/")[::2]
        which = {"userId": account.id, "fileName": name, "fileMd5": md5, "currentPath": f"/{inside}/"}
        found = await self._api.ask("check_file", FILES + "checkFileExist", {**which, "fileSize": size})
        if not isinstance(found, Mapping):
            raise Unavailable("checkFileExist: the answer is no object")
        if whole(found.get("fileStatus"), "fileStatus") == 1:
            return 0, True
        there = {whole(c.get("index"), "chunk.index"): c.get("md5") for c in found.get("chunks") or []}
        left = [index for index, sum_ in enumerate(parts) if there.get(index) != sum_]
        for index in left[:budget]:
            await self._part(source, which, index, parts)
        if len(left) > budget:
            return budget, False
        body = {**which, "fileSize": size, "total": len(parts)}
        await self._api.ask("merge_file", FILES + "mergeFile", body, effect=True)
        return len(left), True

    async def _part(self, source: Path, which: Mapping[str, str], index: int, parts: list[str]) -> None:
        chunk = await asyncio.to_thread(_read, source, index)

        def form() -> aiohttp.FormData:
            made = aiohttp.FormData()
            fields = {
                **which,
                "chunkSize": str(len(chunk)),
                "chunkMd5": parts[index],
                "index": str(index),
                "total": str(len(parts)),
            }
            for name, value in fields.items():
                made.add_field(name, value)
            made.add_field("chunk", chunk, filename="chunk", content_type="application/octet-stream")
            return made

        await self._api.send_form("upload_part", FILES + "uploadFile", form)

    async def unstage(self, copy: CopyRef) -> None:
        """Remove the files of our data set, and what is on its way; its entry in the list stays empty, for
        deleting one is not documented (4.4)."""
        await self.clean(copy)
        name = f"{self._prefix}-{_plain(copy.dataset)}"
        for asset in await self.listed("dataset", title=name):
            if asset.name == name and (paths := sorted(await self.files(asset.id, asset.version_id))):
                body = {"id": asset.id, "versionId": asset.version_id, "filePaths": paths}
                await self._api.ask("delete_files", HUB + "data/deleteFiles", body, effect=True)

    async def clean(self, copy: CopyRef) -> None:
        """Remove what was on its way from the user's private files."""
        account = await self._api.account()
        body = {"sPath": [f"/{self._folder(copy)}"], "userId": account.id}
        await self._api.ask("clean", FILES + "deleteFileOrDictory", body, effect=True)


def _versions(row: Mapping[str, Any]) -> list[Asset]:
    schema = whole(row.get("schemaType"), "schemaType")
    found = []
    for version in row.get("versions") or []:
        usable = whole(version.get("relationStatus"), "relationStatus") != 0
        if usable and version.get("id") and version.get("path"):
            found.append(
                Asset(
                    id=str(row.get("id") or ""),
                    name=str(row.get("name") or ""),
                    version=str(version.get("name") or ""),
                    version_id=str(version["id"]),
                    path=str(version["path"]),
                    schema=schema,
                    author=str(row.get("author") or ""),
                    tags=tuple(str(tag) for tag in row.get("taskTags") or []),
                )
            )
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def _sums(path: Path) -> tuple[int, str, list[str]]:
    """Size, MD5 of the whole and of each part, which the platform asks for."""
    total, parts, size = hashlib.md5(usedforsecurity=False), [], 0
    with path.open("rb") as file:
        while chunk := file.read(PART_BYTES):
            total.update(chunk)
            parts.append(hashlib.md5(chunk, usedforsecurity=False).hexdigest())
            size += len(chunk)
    if not parts:
        parts.append(hashlib.md5(b"", usedforsecurity=False).hexdigest())
    return size, total.hexdigest(), parts


def _read(path: Path, index: int) -> bytes:
    with path.open("rb") as file:
        file.seek(index * PART_BYTES)
        return file.read(PART_BYTES)
