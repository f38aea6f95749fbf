"""Private files of the emulated platform's users: folders, uploads in parts with checksums (spec 5)."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.emulators.ampha.market import BOTH
from tests.emulators.ampha.wire import (
    Answer,
    Call,
    Fields,
    No,
    Route,
    array,
    e3,
    maybe,
    naive,
    number,
    text,
)


def _own(call: Call, user: str) -> dict[str, bytes]:
    if user != call.user:
        raise No("没有权限访问用户数据！")
    return call.center.market.files.setdefault(user, {})


def _path(folder: str, name: str) -> str:
    return "/".join(part for part in (folder.strip("/"), name) if part)


async def add_folder(call: Call) -> Answer:
    _own(call, call.body["userId"])
    folder = _path(call.body.get("parentPath") or "", call.body["folderName"])
    made = call.center.market.folders.setdefault(call.user, {})
    made.setdefault(folder, call.center.world.now())
    return e3(None, "文件上传成功")


async def delete_own(call: Call) -> Answer:
    own = _own(call, call.body["userId"])
    folders = call.center.market.folders.setdefault(call.user, {})
    for gone in call.body["sPath"]:
        wanted = gone.strip("/")
        for path in [p for p in own if p == wanted or p.startswith(wanted + "/")]:
            del own[path]
        for folder in [f for f in folders if f == wanted or f.startswith(wanted + "/")]:
            del folders[folder]
    return e3(None, "删除成功")


async def folder_info(call: Call) -> Answer:
    own = _own(call, call.body["userId"])
    folders = call.center.market.folders.get(call.user, {})
    inside = call.body["path"].strip("/")
    names: dict[str, tuple[bool, int]] = {}
    for path in [*own, *(f + "/." for f in folders)]:
        if inside and not path.startswith(inside + "/"):
            continue
        name, _, more = path[len(inside) :].strip("/").partition("/")
        if name != ".":
            names[name] = (bool(more), len(own.get(path, b"")))
    rows = [
        {
            "fileName": name,
            "fileSize": f"{size / 1024:.2f}KB",
            "isDirectory": "1" if folder else "0",
            "filePath": inside,
            "parentPath": "/hpai/aios3.0",
            "updateTime": naive(call.center.world.now()),
            "fileSizeBytes": size,
            "lastModifyTime": folders.get(_path(inside, name), call.center.world.now()),
        }
        for name, (folder, size) in sorted(names.items())
        if call.body["fileName"] in name
    ]
    first = call.body["requestBegin"] - 1
    return e3(rows[first : first + call.body["requestFileAccount"]])


def _parts(call: Call, user: str, path: str, md5: str) -> dict[int, bytes]:
    return call.center.market.chunks.setdefault((user, path, md5), {})


async def check_file(call: Call) -> Answer:
    body = call.body
    own = _own(call, body["userId"])
    path = _path(body["currentPath"], body["fileName"])
    there = own.get(path)
    if there is not None and hashlib.md5(there).hexdigest() == body["fileMd5"]:
        return e3({"fileStatus": 1, "chunks": []})
    parts = _parts(call, body["userId"], path, body["fileMd5"])
    listed = [{"index": i, "md5": hashlib.md5(part).hexdigest()} for i, part in sorted(parts.items())]
    return e3({"fileStatus": 2, "chunks": listed})


async def upload_part(call: Call) -> Answer:
    form = call.raw
    _own(call, form["userId"])
    if hashlib.md5(form["chunk"]).hexdigest() != form["chunkMd5"] or len(form["chunk"]) != int(
        form["chunkSize"]
    ):
        raise No("分片校验失败")
    path = _path(form["currentPath"], form["fileName"])
    _parts(call, form["userId"], path, form["fileMd5"])[int(form["index"])] = form["chunk"]
    return e3(None)


async def merge_file(call: Call) -> Answer:
    body = call.body
    own, path = _own(call, body["userId"]), _path(body["currentPath"], body["fileName"])
    parts = _parts(call, body["userId"], path, body["fileMd5"])
    content = b"".join(parts[i] for i in sorted(parts))
    good = hashlib.md5(content).hexdigest() == body["fileMd5"] and len(content) == body["fileSize"]
    if sorted(parts) != list(range(body["total"])) or not good:
        raise No("文件合并失败")
    own[path] = content
    return e3(None)


async def sftp(call: Call) -> Answer:
    secret = call.center.sftp_password
    return e3({"username": "u", "password": secret, "protocol": "sftp", "address": "", "port": "222"})


OWN: Fields = {
    "userId": text(),
    "isPublic": maybe(bool),
    "currentPath": text(),
    "fileName": text(),
    "fileMd5": text(),
    "fileSize": number(),
}
FOLDER: Fields = {
    "fileName": text(),
    "path": text(),
    "requestBegin": number(),
    "requestFileAccount": number(),
    "userId": text(),
}


def _file(name: str, path: str, do: Any, fields: Fields | None, **more: Any) -> Route:
    return Route(name, "POST", "/api/file/" + path, do, 3, fields, roles=BOTH, **more)


ROUTES = (
    _file(
        "add_folder",
        "file/addFolder",
        add_folder,
        {"folderName": text(), "parentPath": text(need=False), "userId": text(), "publicUserId": maybe(str)},
        effect=True,
    ),
    _file(
        "delete_own",
        "file/deleteFileOrDictory",
        delete_own,
        {"sPath": array(), "userId": text(), "publicUserId": maybe(str)},
        effect=True,
    ),
    _file("folder_info", "file/getFolderInfo", folder_info, FOLDER),
    _file("check_file", "file/checkFileExist", check_file, OWN),
    _file("upload_part", "file/uploadFile", upload_part, None, effect=True),
    _file("merge_file", "file/mergeFile", merge_file, {**OWN, "total": number()}, effect=True),
    _file(
        "sftp",
        "user/queryUserInfo",
        sftp,
        {"userId": text(), "svcType": text("sftp"), "isPublic": maybe(bool)},
    ),
)
