"""Logs: the standard's temporary link, what it opens, and the byte-wise reading of `logs -f`.

Logs are read from the data directory, where tracking copies them; for a live run a reader says that
it reads, and waits a moment for a fresh copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Generator, Sequence
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web

from broker.api import times, wire
from broker.api.context import CONTEXT, Context, shutting_down
from broker.api.errors import ApiError, shown
from broker.api.fields import Choice, Flag, Text, Whole
from broker.api.reading import Query
from broker.api.routes import Media, Route
from broker.api.streaming import CHUNK, attachment, file_bytes, open_stream, send
from broker.api.trainjob import read_job
from broker.client import answers
from broker.core.model import Kind, RunId, RunState, public_run_status
from broker.store import runs, views
from broker.store.jobs import JobView, RunView
from broker.store.views import RunLog

PLAIN, BINARY = "text/plain", "application/octet-stream"
WANTED_S = 60
FRESH_WAIT_S = 3.0
POLL_S = 0.1
FOLLOW_POLL_S = 0.3
MAX_OFFSET = 2**62

LINK_QUERY = (
    Choice(
        "contentType",
        "What the link gives: a page to read or a file. May be a header instead.",
        "链接的形式：预览或下载。也可在同名请求头中给出。",
        required=True,
        options=(PLAIN, BINARY),
    ),
)
OPEN_LINK_QUERY = (
    Text("contentType", "As in the link.", "与链接中相同。"),
    Whole("exp", "When the link ends, seconds.", "链接失效时间，秒。", least=0, most=MAX_OFFSET, default=0),
    Text("sig", "Signature of the link.", "链接的签名。"),
)
READ_QUERY = (
    Text("task", "Task; the newest by default.", "任务；默认为最新的一个。"),
    Whole("node", "Node, from 0.", "节点，从 0 开始。", least=0, most=2**31 - 1, default=0),
    Whole("offset", "First byte.", "起始字节。", least=0, most=MAX_OFFSET, default=0),
    Flag("follow", "Go on as it grows.", "持续输出。", also=("0", "1")),
)


# ---------------------------------------------------------------- the standard's link


async def link(request: web.Request) -> web.Response:
    """GET /trainjob/{id}/tasks/{taskId}/logs/url"""
    return await link_of(request, Kind.TRAIN)


async def link_of(request: web.Request, kind: Kind) -> web.Response:
    """A link to the log of a task of the job in the path."""
    context = request.app[CONTEXT]
    with Query(request) as query:
        content_type = query.text("contentType") or _content_type_header(request)
        if not content_type:
            query.fail("0203", "contentType", f"is required: {PLAIN} or {BINARY}")
        elif content_type not in (PLAIN, BINARY):
            query.fail("0202", "contentType", f"must be {PLAIN} or {BINARY}, not {shown(content_type)}")
    task = _task(await read_job(request, kind), request.match_info["taskId"])
    expires_s = context.clock() // 1000 + context.link_ttl_s
    signature = _signature(context, task.id, content_type, expires_s)
    fields = urlencode({"contentType": content_type, "exp": expires_s, "sig": signature})
    return wire.answer(
        {
            "logUrl": f"{context.public_url}/logs/{task.id}?{fields}",
            "expiresAt": times.written(expires_s * 1000, context.timezone),
        }
    )


def _content_type_header(request: web.Request) -> str:
    """The standard does not say where contentType travels; some clients use a header."""
    value = request.headers.get("contentType") or request.headers.get("Content-Type") or ""
    return value.partition(";")[0].strip().lower()


def _task(job: JobView, task: str) -> RunView:
    for run in job.runs:
        if run.id == task:
            return run
    raise ApiError("0241", f"taskId: job {job.id} has no task {shown(task)}")


def _signature(context: Context, task: str, content_type: str, expires_s: int) -> str:
    text = f"/logs/{task}\n{content_type}\n{expires_s}"
    return hmac.new(context.signing_key, text.encode(), hashlib.sha256).hexdigest()


async def open_link(request: web.Request) -> web.StreamResponse:
    """GET /logs/{taskId}: no token; the signature is the right to read."""
    context, task = request.app[CONTEXT], request.match_info["taskId"]
    with Query(request) as query:
        content_type, given = query.text("contentType"), query.text("sig")
        expires_s = query.whole("exp")
    right = _signature(context, task, content_type, expires_s)
    if not hmac.compare_digest(right.encode(), given.encode("utf-8", "replace")):
        raise ApiError("0101", "sig: the link was not made by this broker, or was changed", 401)
    if context.clock() >= expires_s * 1000:
        raise ApiError("0101", "exp: the link has expired; ask for a new one", 401)
    log = await context.store.read(views.run_log, RunId(task))
    if log is None:
        raise ApiError("0241", f"taskId: there is no task {shown(task)} any more")
    log = await _fresh(request, log)
    files = await asyncio.to_thread(_log_files, context.files.logs(log.run))
    disposition = "inline" if content_type == PLAIN else attachment(f"{log.run}.log")
    headers = {
        "Content-Type": f"{PLAIN}; charset=utf-8" if content_type == PLAIN else BINARY,
        "Content-Disposition": disposition,
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }
    return await send(request, headers, _whole_log(log, files))


def _log_files(folder: Path) -> list[tuple[int, Path]]:
    """(node, file) of every node that has a log."""
    if not folder.is_dir():
        return []
    found = [(int(path.stem), path) for path in folder.glob("*.log") if path.stem.isdigit()]
    return sorted(found)


def _whole_log(log: RunLog, files: Sequence[tuple[int, Path]]) -> Generator[bytes, None, None]:
    if not files:
        status = public_run_status(log.state)
        yield f"Task {log.run} is {status}; the broker has no output of it.\n".encode()
    for node, path in files:
        if log.nodes > 1 or len(files) > 1:
            yield f"==== node {node} ====\n".encode()
        yield from file_bytes(path, size=path.stat().st_size)


async def _fresh(request: web.Request, log: RunLog) -> RunLog:
    """Ask for a copy of a log that still grows, and wait a moment for it."""
    store = request.app[CONTEXT].store
    asked_ms = store.clock()
    if log.state.live and log.placed:
        await store.write(runs.want_logs, log.run, asked_ms + WANTED_S * 1000)
    deadline = asyncio.get_running_loop().time() + FRESH_WAIT_S
    while _stale(log, asked_ms) and asyncio.get_running_loop().time() < deadline:
        if await shutting_down(request, POLL_S):
            break
        seen = await store.read(views.run_log, log.run)
        log = log if seen is None else seen
    return log


def _stale(log: RunLog, asked_ms: int) -> bool:
    if log.state is RunState.RUNNING:
        return log.logs_copied_ms < asked_ms
    return not log.state.live and log.collect_owed


# ---------------------------------------------------------------- byte-wise reading


async def read(request: web.Request) -> web.StreamResponse:
    """GET /broker/v1/jobs/{id}/logs: one node's output from a byte offset, or as it grows."""
    context = request.app[CONTEXT]
    with Query(request) as query:
        task = query.text("task")
        node = query.whole("node")
        offset = query.whole("offset")
        follow = query.flag("follow")
    job = await read_job(request, None)
    run = _task(job, task) if task else _latest(job)
    if node >= job.request.nodes:
        raise ApiError("0204", f"node: must be 0 to {job.request.nodes - 1}, not {node}")
    log = await context.store.read(views.run_log, run.id)
    if log is None:
        raise ApiError("0241", f"taskId: there is no task {run.id} any more")
    path = context.files.log(run.id, node)
    headers = {"Content-Type": f"{PLAIN}; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    if follow:
        return await _follow(request, log, path, offset, headers)
    await _fresh(request, log)
    size = max(0, await asyncio.to_thread(_size, path) - offset)
    headers["X-Log-Offset"] = str(offset + size)
    return await send(request, headers, file_bytes(path, start=offset, size=size))


def _latest(job: JobView) -> RunView:
    """The newest run that got anywhere, else the first."""
    return next((run for run in reversed(job.runs) if run.center), job.runs[-1])


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_from(path: Path, offset: int) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK)


async def _follow(
    request: web.Request, log: RunLog, path: Path, offset: int, headers: dict[str, str]
) -> web.StreamResponse:
    """Send what is there and what comes, until the run has ended and its log is whole, the client
    has left or the server shuts down."""
    store, loop = request.app[CONTEXT].store, asyncio.get_running_loop()
    response = await open_stream(request, {**headers, "X-Accel-Buffering": "no"})
    said_at = float("-inf")
    while True:
        whole = not log.state.live and not log.collect_owed
        if log.state.live and log.placed and loop.time() - said_at > WANTED_S / 2:
            await store.write(runs.want_logs, log.run, store.clock() + WANTED_S * 1000)
            said_at = loop.time()
        while chunk := await asyncio.to_thread(_read_from, path, offset):
            await response.write(chunk)
            offset += len(chunk)
        # `whole` was read before the file: nothing was added in between.
        if whole or request.transport is None or request.transport.is_closing():
            break
        if await shutting_down(request, FOLLOW_POLL_S):
            break
        seen = await store.read(views.run_log, log.run)
        if seen is None:
            break
        log = seen
    await response.write_eof()
    return response


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/trainjob/{id}/tasks/{taskId}/logs/url",
        link,
        "A signed link to the log of a task",
        "获取训练任务日志的临时链接",
        query=LINK_QUERY,
        answer=answers.LogLink,
        refusals=("0240", "0241"),
    ),
    Route(
        "GET",
        "/logs/{taskId}",
        open_link,
        "What a signed link to a log opens",
        "打开日志临时链接",
        query=OPEN_LINK_QUERY,
        answer=Media(("text/plain", "application/octet-stream"), "The log of all nodes.", "全部节点的日志。"),
        refusals=("0241",),
        errors=((401, "0101"),),
        open=True,
    ),
    Route(
        "GET",
        "/broker/v1/jobs/{id}/logs",
        read,
        "Output of one node, from a byte on or as it grows",
        "读取某一节点的输出，可从指定字节开始或持续读取",
        query=READ_QUERY,
        answer=Media(("text/plain",), "The output.", "节点输出。"),
        refusals=("0240", "0241"),
    ),
)
