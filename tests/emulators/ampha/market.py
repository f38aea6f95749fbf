"""Assets and files of the emulated platform: images, data sets, models, algorithms; uploads (spec 4, 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.emulators.ampha.wire import (
    TEN,
    USR,
    Answer,
    Call,
    Fields,
    No,
    Route,
    array,
    e2,
    flag,
    number,
    text,
    thing,
)

if TYPE_CHECKING:
    from tests.emulators.ampha.world import World

HUB = "/api/market/datahub/"
DATASET, ALGORITHM, MODEL, IMAGE = 1, 2, 3, 4
CATEGORIES = {"dataset": DATASET, "algo": ALGORITHM, "model": MODEL, "image": IMAGE}
KIND_TAGS = {"1": DATASET, "2": ALGORITHM, "3": MODEL}


@dataclass
class Version:
    id: str
    name: str
    path: str
    show: str = ""
    done_ms: int = 0
    created_ms: int = 0
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # content, visible_ms


@dataclass
class Asset:
    id: str
    name: str
    category: int
    owner: str  # user id; "" for a preset one
    schema: int = 0  # 0 x86, 1 arm
    versions: dict[str, Version] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


class Market:
    """What is offered, and the private files of users."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.assets: dict[str, Asset] = {}
        self.chunks: dict[tuple[str, ...], dict[int, bytes]] = {}
        self.files: dict[str, dict[str, bytes]] = {}  # user id -> path -> content
        self.folders: dict[str, dict[str, int]] = {}  # user id -> folder -> made at

    def add(
        self, name: str, category: int, *, owner: str = "", version: str = "master", schema: int = 0
    ) -> Asset:
        asset = Asset(self.world.hex(), name, category, owner, schema)
        self.assets[asset.id] = asset
        self.version(asset, version)
        return asset

    def version(self, asset: Asset, name: str, *, takes_s: float = 0) -> Version:
        id, now = self.world.hex(), self.world.now()
        if asset.category == IMAGE:
            path = f"registry.example.com/ampha/{asset.name}:{name}"
        else:
            tail = "data" if asset.category == DATASET else ""
            path = f"/private/datahub/ampha/{asset.id}/{id}/{tail}"
        done = now + int(takes_s * 1000 / self.world.settings.scale)
        made = Version(id, name, path, f"{asset.name}/{name}", done, now)
        asset.versions[id] = made
        return made

    def later_ms(self) -> int:
        """When something acknowledged now will have happened."""
        takes = self.world.takes(self.world.settings.ack_s)
        return self.world.now() + int(takes * 1000 / self.world.settings.scale)


def _asset(call: Call, key: str = "id") -> Asset:
    asset = call.center.market.assets.get(call.body[key])
    if asset is None:
        raise No("数据不存在")
    return asset


def _version(call: Call) -> Version:
    version = _asset(call).versions.get(call.body["versionId"])
    if version is None:
        raise No("数据不存在")
    return version


def _visible(call: Call, category: int) -> list[Asset]:
    """Those the caller sees: preset ones and their own; scope 2: their own; 4: preset."""
    scope = call.body["scope"]
    return [
        a
        for a in call.center.market.assets.values()
        if a.category == category
        and (a.owner in ("", call.user) or scope == 1)
        and not (scope == 2 and a.owner != call.user)
        and not (scope == 4 and a.owner)
        and call.body.get("title", "") in a.name
        and call.body.get("schemaType", a.schema) == a.schema
    ]


def _items(category: int) -> Any:
    async def listed(call: Call) -> Answer:
        found = _visible(call, category)
        items = []
        for asset in call.page(found, number="current", size="size"):
            versions = [
                {"id": v.id, "name": v.name, "path": v.path, "showPath": v.show, "relationStatus": 1}
                for v in asset.versions.values()
            ]
            items.append(
                {
                    "id": asset.id,
                    "versionId": "*" if not asset.owner else versions[-1]["id"],
                    "name": asset.name,
                    "author": asset.owner or "preset",
                    "taskTags": [],
                    "versions": versions,
                    "storageMedium": 1201,
                    "storageMediumString": "文件系统",
                    "sourceType": 1101,
                    "isPreset": int(not asset.owner),
                    "relationStatus": 1,
                    **({"schemaType": asset.schema} if category == IMAGE else {}),
                }
            )
        return e2({"total": len(found), "items": items})

    return listed


async def create_asset(call: Call) -> Answer:
    kinds = [KIND_TAGS[tag] for tag in call.body["taskTags"] if tag in KIND_TAGS]
    if len(kinds) != 1:
        raise No("资源类型标签错误")
    asset = call.center.market.add(call.body["name"], kinds[0], owner=call.user)
    return e2({"id": asset.id, "versionId": next(iter(asset.versions))}, "创建成功！")


async def create_image(call: Call) -> Answer:
    market = call.center.market
    asset = market.add(call.body["name"], IMAGE, owner=call.user, schema=call.body["schemaType"])
    return e2({"id": asset.id, "versionId": next(iter(asset.versions))}, "创建成功！")


async def create_model(call: Call) -> Answer:
    asset = call.center.market.add(call.body["name"], MODEL, owner=call.user)
    return e2({"id": asset.id, "versionId": next(iter(asset.versions))})


async def create_version(call: Call) -> Answer:
    call.center.market.version(_asset(call), call.body["name"], takes_s=2)
    return e2("创建版本中，请稍等")


async def version_list(call: Call) -> Answer:
    now = call.center.world.now()
    asset = _asset(call)
    rows = [
        {
            "id": v.id,
            "dataId": asset.id,
            "name": v.name,
            "createdAt": v.created_ms,
            "createStatus": int(v.done_ms <= now),
        }
        for v in asset.versions.values()
    ]
    return e2({"total": len(rows), "rows": call.page(rows, number="current", size="size")})


async def info(call: Call) -> Answer:
    asset, version = _asset(call), _version(call)
    return e2({"id": asset.id, "name": asset.name, "versionId": version.id, "versionName": version.name})


# ---------------------------------------------------------------- files of assets


async def upload_chunk(call: Call) -> Answer:
    """Acknowledged at once; the file appears later, when all chunks of a submission are there."""
    form = call.raw
    market = call.center.market
    asset = market.assets.get(form["id"])
    version = asset.versions.get(form["versionId"]) if asset else None
    if version is None:
        raise No("数据不存在")
    key = (form["submitId"], form["filePath"])
    chunks = market.chunks.setdefault(key, {})
    chunk = form["chunk"]
    if len(chunk) != int(form["chunkSize"]):
        call.center.complain(call.operation, f"chunkSize is {form['chunkSize']}, the chunk has {len(chunk)}")
    chunks[int(form["index"])] = chunk
    if len(chunks) == int(form["total"]):
        content = b"".join(chunks[i] for i in sorted(chunks))
        path = "/".join(part for part in (form["currentPath"].strip("/"), form["filePath"]) if part)
        version.files[path] = (content, market.later_ms())
    return {"code": 0, "data": "文件上传中，请等待", "message": "success", "success": True}


async def import_files(call: Call) -> Answer:
    market, version = call.center.market, _version(call)
    own = market.files.get(call.user, {})
    for source in call.body["sourceFiles"]:
        wanted = source.strip("/")
        found = {p: c for p, c in own.items() if p == wanted or p.startswith(wanted + "/")}
        if not found:
            raise No("数据不存在")
        root = wanted.rpartition("/")[0]
        for path, content in found.items():
            inside = path[len(root) :].strip("/")
            to = "/".join(part for part in (call.body["importPath"].strip("/"), inside) if part)
            version.files[to] = (content, market.later_ms())
    return {"code": 0, "data": "文件导入中，请等待", "message": "success", "success": True}


async def delete_files(call: Call) -> Answer:
    version = _version(call)
    for path in call.body["filePaths"]:
        version.files.pop(path.strip("/"), None)
    return {"code": 0, "data": "删除成功", "success": True}


async def file_list(call: Call) -> Answer:
    version, now = _version(call), call.center.world.now()
    inside = call.body["currentPath"].strip("/")
    rows: dict[str, dict[str, Any]] = {}
    for path, (content, visible_ms) in sorted(version.files.items()):
        if visible_ms > now or not path.startswith(inside):
            continue
        rest = path[len(inside) :].strip("/")
        name, _, more = rest.partition("/")
        rows[name] = {
            "fileName": name,
            "fileType": 2 if more else 1,
            "symbolicLink": 1,
            "fileSize": 4096 if more else len(content),
            "updateTime": visible_ms,
            "filePath": f"{inside}/{name}".strip("/"),
        }
    listed = list(rows.values())
    return e2({"total": len(listed), "rows": call.page(listed, number="current", size="size")})


async def download_url(call: Call) -> Answer:
    body = call.body
    if body["filePath"].strip("/") not in _version(call).files:
        raise No("数据不存在")
    path = f"/api/aiosFile/downloadTenant/{body['id']}/{body['versionId']}/{body['filePath'].strip('/')}"
    return e2({"tempUrl": path})


async def download(call: Call) -> Answer:
    part = call.request.match_info
    asset = call.center.market.assets.get(part["asset"])
    version = asset.versions.get(part["version"]) if asset else None
    found = version.files.get(part["file"]) if version else None
    if found is None:
        raise No("数据不存在")
    return web.Response(body=found[0], content_type="application/octet-stream")


# ---------------------------------------------------------------- routes

ITEMS: Fields = {
    "current": number(),
    "size": number(),
    "scope": number(1, 2, 3, 4),
    "taskTags": array(),
    "author": text(need=False),
    "title": text(need=False),
    "schemaType": number(0, 1, need=False),
}
SHARE = thing({"users": array(), "groups": array()}, need=False)
NEW: Fields = {
    "authority": number(1, 2, 3),
    "description": text(),
    "name": text(),
    "taskTags": array(),
    "schemaType": number(0, 1, need=False),
    "shareInfo": SHARE,
}
NEW_MODEL: Fields = {
    "name": text(),
    "authority": number(1, 2, 3),
    "taskTags": array(),
    "sourceFile": text(),
    "description": text(need=False),
    "shareInfo": SHARE,
}
NEW_VERSION: Fields = {
    "id": text(),
    "name": text(),
    "description": text(),
    "parentVersionId": text(),
    "category": number(1, 2, 3, 4),
}
WHICH: Fields = {"id": text(), "versionId": text()}
PAGED: Fields = {"current": number(), "size": number()}
BOTH = (USR, TEN)


def _hub(name: str, path: str, do: Any, fields: Fields | None, **more: Any) -> Route:
    return Route(name, "POST", HUB + path, do, 2, fields, roles=BOTH, **more)


ROUTES = (
    *(
        _hub(f"{word}_items", f"{word}/get{word.capitalize()}List", _items(category), ITEMS)
        for word, category in CATEGORIES.items()
    ),
    _hub("create_asset", "other/createDataHub", create_asset, NEW, effect=True),
    _hub(
        "create_image_asset",
        "image/createDataHub",
        create_image,
        {**NEW, "schemaType": number(0, 1)},
        effect=True,
    ),
    _hub("create_model_asset", "model/create", create_model, NEW_MODEL, effect=True),
    *(
        _hub(f"{word}_create_version", f"{word}/createVersion", create_version, NEW_VERSION, effect=True)
        for word in CATEGORIES
    ),
    *(
        _hub(
            f"{word}_versions",
            f"{word}/queryVersionList",
            version_list,
            {"id": text(), **PAGED, "full": flag(need=False)},
        )
        for word in CATEGORIES
    ),
    *(_hub(f"{word}_info", f"{word}/queryInfo", info, WHICH) for word in CATEGORIES),
    _hub("upload_chunk", "data/uploadFile", upload_chunk, None, effect=True),
    _hub(
        "import_files",
        "data/importFiles",
        import_files,
        {**WHICH, "importPath": text(), "sourceFiles": array()},
        effect=True,
    ),
    _hub("delete_files", "data/deleteFiles", delete_files, {**WHICH, "filePaths": array()}, effect=True),
    _hub("file_list", "data/queryFileList", file_list, {**WHICH, **PAGED, "currentPath": text()}),
    _hub("download_url", "data/queryFileDownloadUrl", download_url, {**WHICH, "filePath": text()}),
    Route(
        "download",
        "GET",
        "/api/aiosFile/downloadTenant/{asset}/{version}/{file:.+}",
        download,
        2,
        roles=BOTH,
    ),
)
