"""What a job left behind: the download of the standard."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from aiohttp import web

from broker.api.context import CONTEXT, shutting_down
from broker.api.errors import ApiError
from broker.api.reading import no_query
from broker.api.routes import OCTETS, Route
from broker.api.streaming import attachment, file_bytes, regular_files, send, tar_gz
from broker.api.trainjob import read_job
from broker.core.model import PublicStatus
from broker.store.jobs import JobView

COLLECT_WAIT_S = 10.0
POLL_S = 0.1


async def download(request: web.Request) -> web.StreamResponse:
    """GET /trainjob/{id}/download: one file as it is, several as a tar.gz, of the newest run that
    has any."""
    no_query(request)
    job = await _collected(request)
    files = request.app[CONTEXT].files
    for run in reversed(job.runs):
        folder = files.results(run.id)
        found = await asyncio.to_thread(regular_files, folder)
        if len(found) == 1:
            size = found[0].stat().st_size
            headers = _headers(found[0].name)
            headers["Content-Length"] = str(size)
            headers["X-Result-Path"] = quote(found[0].relative_to(folder).as_posix())
            return await send(request, headers, file_bytes(found[0], size=size))
        if found:
            return await send(request, _headers(f"{job.id}.tar.gz"), tar_gz(folder, found))
    if job.status is PublicStatus.UNKNOWN:
        raise ApiError("0101", f"job {job.id} is UNKNOWN: its center does not give its results", 500)
    raise ApiError("0202", f"job {job.id} is {job.status} and left no result files")


def _headers(filename: str) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Disposition": attachment(filename)}


async def _collected(request: web.Request) -> JobView:
    """The job once its newest run's results are here.  Raises ApiError 0202, 500/0101."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + COLLECT_WAIT_S
    while True:
        job = await read_job(request)
        if job.status in (PublicStatus.PENDING, PublicStatus.RUNNING):
            raise ApiError("0202", f"job {job.id} is {job.status}; results are there when it has ended")
        newest = job.runs[-1]
        if not newest.collect_owed:
            return job
        if loop.time() >= deadline or await shutting_down(request, POLL_S):
            center = newest.center_name or newest.center
            raise ApiError("0101", f"center {center} has not given the results of task {newest.id} yet", 500)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/trainjob/{id}/download",
        download,
        "Results: one file as it is, several as a tar.gz",
        "下载结果：单个文件原样返回，多个文件打包为 tar.gz",
        answer=OCTETS,
        refusals=("0240",),
        calls_center=True,
    ),
)
