"""Uploads of a folder as a private data set: `broker submit --upload`.

The body is counted while it is written; nothing is left behind unless the data set is recorded.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import threading
from pathlib import Path

from aiohttp import web

from broker.api import wire
from broker.api.context import CALLER, CONTEXT, to_the_end
from broker.api.errors import ApiError
from broker.api.fields import Text
from broker.api.reading import Query, arriving
from broker.api.routes import Media, Route, Scope
from broker.api.streaming import CHUNK
from broker.api.turns import TURN
from broker.api.unpack import Unpacked, unpack
from broker.client import answers
from broker.core.identity import base32
from broker.store import datasets
from broker.store.datasets import NewDataset
from broker.tar import BadArchive, TooLarge

MAX_TITLE = 255
UPLOAD_QUERY = (Text("title", "Name of the data set.", "数据集名称。", required=True, longest=MAX_TITLE),)
UNPACK_AT_ONCE = 2

UNPACKING = web.AppKey("unpacking", asyncio.Semaphore)
"""Unpacking takes a thread for long; the threads serve everybody."""


async def upload(request: web.Request) -> web.Response:
    """POST /broker/v1/uploads?title=NAME with a tar.gz as body"""
    context, caller = request.app[CONTEXT], request[CALLER]
    with Query(request) as query:
        title = query.text("title")
    dataset = f"d-{base32(context.clock(), 9)}{base32(secrets.randbits(30), 6)}"
    archive = context.files.incoming(f"{dataset}.tar.gz")
    folder = context.files.incoming(dataset)
    place = context.files.dataset(dataset)
    recorded = False
    try:
        await _receive(request, archive)
        unpacked = await _unpacked(request, archive, folder)
        await to_the_end(asyncio.to_thread(folder.rename, place))
        new = NewDataset(
            id=dataset,
            account=caller.id,
            tenant=caller.tenant,
            title=title,
            bytes=unpacked.bytes,
            actor=caller.actor,
        )
        writing = asyncio.ensure_future(context.store.write(datasets.add_dataset, new))
        try:
            await to_the_end(writing)
        finally:
            recorded = writing.exception() is None
    finally:
        # Not awaited in a thread: a cancelled request must not leave it undone.
        archive.unlink(missing_ok=True)
        if not recorded:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
    return wire.answer({"id": dataset, "bytes": unpacked.bytes, "files": unpacked.files})


async def _receive(request: web.Request, archive: Path) -> None:
    limit = request.app[CONTEXT].max_upload_bytes
    too_large = ApiError("0204", f"the body must have at most {limit} bytes (max_upload_bytes)")
    if (request.content_length or 0) > limit:
        raise too_large
    request[TURN].transfer()
    received = 0
    with await asyncio.to_thread(archive.open, "xb") as file:
        while True:
            async with arriving(request):
                chunk = await request.content.read(CHUNK)
            if not chunk:
                break
            received += len(chunk)
            if received > limit:
                raise too_large
            await asyncio.to_thread(file.write, chunk)


async def _unpacked(request: web.Request, archive: Path, folder: Path) -> Unpacked:
    """Unpack in a thread, and be sure that the thread has ended when this has."""
    abandoned = threading.Event()
    limit = request.app[CONTEXT].max_upload_bytes
    async with request.app[UNPACKING]:
        work = asyncio.ensure_future(
            asyncio.to_thread(unpack, archive, folder, max_bytes=limit, abandoned=abandoned)
        )
        try:
            return await asyncio.shield(work)
        except BadArchive as error:
            raise ApiError("0202", f"body: {error}") from error
        except TooLarge as error:
            raise ApiError("0204", f"body: {error}") from error
        finally:
            abandoned.set()
            await asyncio.wait([work])


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/broker/v1/uploads",
        upload,
        "Upload a tar.gz of a folder as a private data set",
        "上传文件夹的 tar.gz，作为私有数据集",
        query=UPLOAD_QUERY,
        sent=Media(("application/gzip",), "A tar.gz of a folder.", "文件夹的 tar.gz。"),
        answer=answers.Upload,
        scope=Scope.DATA,
    ),
)
