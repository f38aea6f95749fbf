"""Upload of a data set by the standard: one file in a multipart form, with its MD5 and size.

The file is counted and hashed while it goes to disk, in constant memory.  Fields may come in any order,
after the file too.  What can be refused at once is: what follows then is not read.  Nothing is left
behind unless the data set is recorded.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from broker.api import wire
from broker.api.context import CALLER, CONTEXT, to_the_end
from broker.api.errors import ApiError, first, shown, unknown
from broker.api.reading import arriving, no_query
from broker.api.routes import Media, Part, Route, Scope
from broker.api.turns import TURN
from broker.client import answers
from broker.core.identity import base32
from broker.store import datasets
from broker.store.datasets import NewDataset
from broker.telemetry import log

FILE = "file"
PARTS = (
    Part(
        "md5",
        "MD5 of the file, 32 hexadecimal digits.",
        "文件的 MD5，32 位十六进制数字。",
        {"type": "string", "pattern": "^[0-9A-Fa-f]{32}$"},
        required=True,
        longest=32,
    ),
    Part(
        "title",
        "Title of the data set.",
        "数据集名称。",
        {"type": "string", "minLength": 1, "maxLength": 255},
        required=True,
        longest=255,
    ),
    Part(
        "size",
        "Bytes of the file, at most server.max_upload_bytes.",
        "文件字节数，不超过 server.max_upload_bytes。",
        {"type": "integer", "minimum": 0},
        required=True,
        longest=18,
    ),
    Part(
        FILE,
        "The file; jobs find it under its own name.",
        "文件；作业按其原名读取。",
        {"type": "string", "contentMediaType": "application/octet-stream"},
        required=True,
        types=("application/octet-stream",),
    ),
    Part("desc", "Description.", "描述。", {"type": "string", "maxLength": 4096}, longest=4096),
    Part(
        "labels",
        "Categories, separated by commas.",
        "分类标签，以逗号分隔。",
        {"type": "string", "maxLength": 1024},
        longest=1024,
    ),
    Part(
        "public",
        "false: only for the owner, the tenant's admins and operators.",
        "false：仅所有者、租户管理员和运维可用。",
        {"type": "boolean", "default": True},
        longest=5,
    ),
)
"""What the form may have."""
LONGEST: Mapping[str, int] = {part.name: part.longest for part in PARTS if part.longest is not None}
"""The characters that each part may have, but for the file."""
REQUIRED = tuple(part.name for part in PARTS if part.required)
MAX_FIELD_BYTES = 64 << 10
"""Of a field that is not the file: more than any may have, so that its own limit is what is told."""
MAX_NAME_BYTES = 255
MAX_PARTS = 64
"""Of a form, those that are not known too: what is wrong with each is kept until the one to tell is found."""
BLOCK = 1 << 20
"""Bytes that are written and hashed at once, in a thread."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

_MD5 = re.compile(r"[0-9A-Fa-f]{32}", re.ASCII)
_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)
_PLAIN = ("", "binary", "8bit", "7bit")


@dataclass(slots=True)
class Form:
    """What has come so far.  `failures` are what is wrong with it, with the fields named in `wrong`."""

    texts: dict[str, str] = field(default_factory=dict)
    bytes: int | None = None
    md5: str = ""
    failures: list[ApiError] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    def fail(self, code: str, name: str, text: str) -> None:
        self.wrong.add(name)
        self.failures.append(ApiError(code, f"{name}: {text}"))

    @property
    def size(self) -> int | None:
        """What was declared, if that came already."""
        return int(self.texts["size"]) if "size" in self.texts else None

    def stop_here(self) -> None:
        """Raise what is known to be wrong."""
        told = first(self.failures)
        if told is not None:
            raise told


async def upload(request: web.Request) -> web.Response:
    """POST /datasets/upload"""
    no_query(request)
    context, caller = request.app[CONTEXT], request[CALLER]
    dataset = f"d-{base32(context.clock(), 9)}{base32(secrets.randbits(30), 6)}"
    folder, place = context.files.incoming(dataset), context.files.dataset(dataset)
    recorded = False
    try:
        form = await _received(request, folder)
        await to_the_end(asyncio.to_thread(folder.rename, place))
        new = NewDataset(
            id=dataset,
            account=caller.id,
            tenant=caller.tenant,
            title=form.texts["title"],
            bytes=form.bytes or 0,
            desc=form.texts.get("desc", ""),
            labels=form.texts.get("labels", ""),
            md5=form.md5,
            public=form.texts.get("public", "true") == "true",
            actor=caller.actor,
        )
        writing = asyncio.ensure_future(context.store.write(datasets.add_dataset, new))
        try:
            await to_the_end(writing)
        finally:
            recorded = writing.exception() is None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.error("upload_without_room", dataset=dataset, error=str(error))
        detail = f"file: it cannot be stored: {error.strerror}"
        raise ApiError("0101", detail, 500) from error
    finally:
        if not recorded:
            # Not awaited in a thread: a cancelled request must not leave it undone.
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
    return wire.answer({"id": dataset})


async def _received(request: web.Request, folder: Path) -> Form:
    """The whole form, its file in a new folder, and everything right with it.  Raises ApiError."""
    limit = request.app[CONTEXT].max_upload_bytes
    if request.content_type != "multipart/form-data":
        raise ApiError("0201", f"the body must be multipart/form-data, not {request.content_type}")
    if (request.content_length or 0) > limit + len(LONGEST) * MAX_FIELD_BYTES:
        raise ApiError("0204", f"file: must have at most {limit} bytes (max_upload_bytes)")
    form = Form()
    try:
        reader = await request.multipart()
        request[TURN].transfer()
        parts = 0
        while (part := await _next_part(request, reader)) is not None:
            parts += 1
            if parts > MAX_PARTS:
                raise ApiError("0202", f"the body: must have at most {MAX_PARTS} parts")
            if not isinstance(part, BodyPartReader) or part.name is None:
                if request.content.at_eof():
                    raise ValueError("it ends inside the head of a part")
                raise ApiError("0202", "the body: each part must be a form field with a name")
            await _take(request, form, part, part.name, folder)
    except (ValueError, AssertionError, RuntimeError, HttpProcessingError) as error:
        # What aiohttp makes of a form that is cut off or no form.
        raise ApiError("0201", f"the body is not a whole multipart form: {error}") from error
    _judge(form)
    return form


async def _take(request: web.Request, form: Form, part: BodyPartReader, name: str, folder: Path) -> None:
    limit = request.app[CONTEXT].max_upload_bytes
    if name != FILE and name not in LONGEST:
        form.fail("0202", name[:64], unknown(name, (FILE, *LONGEST)))
    if name in form.texts or (name == FILE and form.bytes is not None):
        form.fail("0202", name, "must be given once")
        form.stop_here()
    if part.headers.get("Content-Transfer-Encoding", "").lower() not in _PLAIN:
        form.fail("0202", name[:64], "Content-Transfer-Encoding must be binary")
        form.stop_here()
    if name == FILE:
        form.stop_here()  # rather than after gigabytes
        await _take_file(request, form, part, folder)
        return
    raw = await _read_field(request, part, name)
    if name in LONGEST:
        _take_text(form, name, raw, is_file=part.filename is not None, limit=limit)


async def _read_field(request: web.Request, part: BodyPartReader, name: str) -> bytes:
    raw = bytearray()
    while chunk := await _read(request, part):
        raw += chunk
        if len(raw) > MAX_FIELD_BYTES:
            raise ApiError("0204", f"{name[:64]}: must have at most {LONGEST.get(name, 0)} characters")
    return bytes(raw)


async def _next_part(
    request: web.Request, reader: MultipartReader
) -> MultipartReader | BodyPartReader | None:
    """The head of the next part.  Raises TooSlow."""
    async with arriving(request):
        return await reader.next()


async def _read(request: web.Request, part: BodyPartReader, size: int = BodyPartReader.chunk_size) -> bytes:
    """What comes next of a part, b"" at its end.  Raises TooSlow."""
    async with arriving(request):
        return await part.read_chunk(size)


def _take_text(form: Form, name: str, raw: bytes, *, is_file: bool, limit: int) -> None:
    """A field that is not the file, judged by itself."""
    if is_file:
        form.fail("0201", name, "must be a text, not a file")
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        form.fail("0201", name, "must be a text in UTF-8")
        return
    if name in REQUIRED and not text:
        return  # as if it were not there
    if name == "size" and not _WHOLE.fullmatch(text):
        form.fail("0201", name, f"must be an integer, the bytes of the file, not {shown(text)}")
    elif name == "public" and text not in ("true", "false"):
        form.fail("0201", name, f"must be true or false, not {shown(text)}")
    elif len(text) > LONGEST[name]:
        form.fail("0204", name, f"must have at most {LONGEST[name]} characters, has {len(text)}")
    elif name == "size" and not 0 <= int(text) <= limit:
        form.fail("0204", name, f"must be 0 to {limit} (max_upload_bytes), not {text}")
    elif name == "md5" and not _MD5.fullmatch(text):
        form.fail("0202", name, f"must be 32 hexadecimal digits, not {shown(text)}")
    elif "\0" in text:
        form.fail("0202", name, "must not have a NUL character")
    form.texts[name] = text


async def _take_file(request: web.Request, form: Form, part: BodyPartReader, folder: Path) -> None:
    """Write the file, counted and hashed; ends as soon as it is longer than it may be."""
    if part.filename is None:
        form.fail("0201", FILE, "must be a file: the part has no filename")
        form.stop_here()
    declared, limit = form.size, request.app[CONTEXT].max_upload_bytes
    path = folder / _file_name(part.filename or "")
    await to_the_end(asyncio.to_thread(folder.mkdir, 0o700))
    digest, received, block = hashlib.md5(usedforsecurity=False), 0, bytearray()
    # Unbuffered: a block is written at once, and closing writes nothing that could fail unnoticed.
    with await to_the_end(asyncio.to_thread(path.open, "xb", 0)) as file:

        def keep(data: bytes) -> None:
            digest.update(data)
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]

        while chunk := await _read(request, part, BLOCK):
            received += len(chunk)
            if received > limit:
                raise ApiError("0204", f"file: must have at most {limit} bytes (max_upload_bytes)")
            if declared is not None and received > declared:
                raise ApiError("0202", f"size: {declared} bytes were declared and more have come")
            block += chunk
            if len(block) >= BLOCK:
                await to_the_end(asyncio.to_thread(keep, bytes(block)))
                block.clear()
        if block:
            await to_the_end(asyncio.to_thread(keep, bytes(block)))
        await to_the_end(asyncio.to_thread(os.fsync, file.fileno()))
    form.bytes, form.md5 = received, digest.hexdigest()


def _judge(form: Form) -> None:
    """What can be told only of the whole.  Raises ApiError."""
    came = {*form.texts, *form.wrong, *([FILE] if form.bytes is not None else [])}
    for name in REQUIRED:
        if name not in came:
            form.fail("0203", name, "is required")
    form.stop_here()
    if form.size != form.bytes:
        raise ApiError("0202", f"size: {form.size} bytes were declared, {form.bytes} have come")
    if form.texts["md5"].lower() != form.md5:
        raise ApiError("0202", f"md5: {form.texts['md5']} was declared, the file's is {form.md5}")


def _file_name(stated: str) -> str:
    """A client's file name as one plain, visible component; what jobs find in the data set's folder."""
    last = stated.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if c.isprintable()).lstrip(".").strip()
    while len(kept.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        kept = kept[:-1]
    return kept.encode("utf-8", "replace").decode() or "data"


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/datasets/upload",
        upload,
        "Upload a file as a data set",
        "上传文件，作为数据集",
        sent=Media(
            ("multipart/form-data",),
            "A form with one file; its parts may come in any order, each once.",
            "含一个文件的表单；各部分顺序任意，每项一次。",
            PARTS,
        ),
        answer=answers.DatasetUpload,
        refusals=("0203",),
        errors=((500, "0101"),),
        scope=Scope.DATA,
    ),
)
