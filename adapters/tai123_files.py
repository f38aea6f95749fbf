"""Logs, results and data sets of a T/AI 123.8 service.

Here: the bytes.  Not here: the jobs they belong to.  A broker of this kind gives logs node by node and
takes folders; of another service the log is one text that comes with the first node.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp
from yarl import URL

from adapters.http import CHUNK_BYTES, Request, file_chunks
from adapters.tai123_wire import JOBS, NotThere, Rejected, Wire, payload
from broker.adapter import CopyRef, CopySighting, CopyState, ResultFile, Unavailable
from broker.tar import BadArchive, Forward, TooLarge, members

T = TypeVar("T")

MAX_BYTES: Final = 100 << 30
"""Of one log, and of one job's results, packed as well as unpacked."""
_DATASETS: Final = "/datasets"
_PLAIN_NAME = re.compile(r'filename="?([^";]+)"?')
_CODED_NAME = re.compile(r"filename\*=(?:UTF-8|utf-8)''([^;]+)")
_NO_RESULTS: Final = ("0202", "0240")  # it left none; there is no such job


@dataclass(slots=True)
class _Disposition:
    name: str = ""

    def __call__(self, headers: Mapping[str, str]) -> None:
        told = headers.get("Content-Disposition", "")
        if path := headers.get("X-Result-Path", ""):
            self.name = unquote(path)
        elif coded := _CODED_NAME.search(told):
            self.name = unquote(coded[1]).rsplit("/", 1)[-1]
        elif plain := _PLAIN_NAME.search(told):
            self.name = plain[1].rsplit("/", 1)[-1]


class Files:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lengths: dict[str, int] = {}  # of the logs of tasks that write no more

    # ------------------------------------------------------------ logs

    async def broker_log(
        self, job: str, detail: Mapping[str, Any], node: int, offset: int
    ) -> AsyncIterator[bytes]:
        """One node's output over all tasks of a job: what was preempted there and began again goes on."""
        tasks = [run for run in detail.get("runs") or () if isinstance(run, dict) and run.get("centerId")]
        if any(node >= (run.get("nodeCount") or 1) for run in tasks):
            return
        before = 0
        for run in tasks:
            task, last = str(run.get("taskId")), run is tasks[-1]
            key = f"{task}/{node}"
            if not last and offset >= before + self._lengths.get(key, MAX_BYTES):
                before += self._lengths[key]
                continue
            # From its beginning where its length is not known yet: the tasks after it need it.
            known = last or key in self._lengths
            start = max(0, offset - before) if known else 0
            length = start
            async for chunk in self._task_log(job, task, node, start):
                skipped = max(0, offset - before - length)
                length += len(chunk)
                if rest := chunk[skipped:]:
                    yield rest
            if not last:
                before += self._lengths.setdefault(key, length)

    async def _task_log(self, job: str, task: str, node: int, offset: int) -> AsyncIterator[bytes]:
        request = Request(
            "logs",
            "GET",
            f"{self._wire.base}/broker/v1/jobs/{job}/logs",
            effect=False,
            query={"task": task, "node": node, "offset": offset},
            session=self._wire.session,
            transfer=True,
            max_bytes=MAX_BYTES,
        )
        async for chunk in self._wire.http.download(request, payload):
            yield chunk

    async def service_log(self, job: str, task: str, offset: int) -> AsyncIterator[bytes]:
        """§7.4.4: what the temporary link opens, which needs no token."""
        path = f"{JOBS}/{job}/tasks/{task}/logs/url"
        found = await self._wire.get("logs.url", path, {"contentType": "text/plain"})
        try:
            url = urljoin(f"{self._wire.base}/", str(found.get("logUrl") or ""))
        except ValueError:
            raise Unavailable(f"logUrl is {found.get('logUrl')!r}, expected a web address") from None
        if not found.get("logUrl") or urlsplit(url).scheme not in ("http", "https"):
            raise Unavailable(f"logUrl is {found.get('logUrl')!r}, expected a web address")
        if (host := _host(url)) != _host(self._wire.base):
            # Else it could have us read from anywhere, for anybody.
            raise Unavailable(f"logUrl leads to {host!r}, expected the center's own host")
        request = Request("logs", "GET", url, effect=False, transfer=True, max_bytes=MAX_BYTES)
        async for chunk in self._wire.http.download(request):
            if rest := chunk[offset:]:
                yield rest
            offset = max(0, offset - len(chunk))

    # ------------------------------------------------------------ results

    async def results(self, path: str, job: str) -> AsyncIterator[ResultFile]:
        """§7.4.7: one file as it is, or several in a tar.gz; whole here before any is given on."""
        told = _Disposition()
        request = Request(
            "results",
            "GET",
            f"{self._wire.base}{path}/{job}/download",
            effect=False,
            session=self._wire.session,
            transfer=True,
            max_bytes=MAX_BYTES,
        )
        with tempfile.TemporaryFile() as kept:
            try:
                async for chunk in self._wire.http.download(request, payload, any_type=True, headers=told):
                    await asyncio.to_thread(kept.write, chunk)
            except Rejected as no:
                if no.code in _NO_RESULTS:
                    return
                raise
            except NotThere:
                return
            if told.name == f"{job}.tar.gz":
                async for result in _unpacked(kept):
                    yield result
            else:
                size = await asyncio.to_thread(kept.tell)
                kept.seek(0)
                yield ResultFile(told.name or "result", size, _chunks(kept))

    # ------------------------------------------------------------ data sets

    async def stage(self, copy: CopyRef) -> CopySighting:
        """Upload a folder, privately; found by its title when it is there already."""
        if (there := await self._uploaded(copy)) is not None:
            return CopySighting(CopyState.READY, there, copy.bytes)
        source = Path(copy.source)
        files = await asyncio.to_thread(_regular, source)
        alone = len(files) == 1 and files[0].parent == source
        sent = await self._one_file(copy, files[0]) if alone else ""
        if not sent:
            sent = await self._folder(copy, files)
        return CopySighting(CopyState.READY, sent, copy.bytes)

    async def unstage(self, copy: CopyRef) -> None:
        there = copy.remote or await self._uploaded(copy)
        if not there:
            return
        try:
            await self._wire.delete("datasets.delete", f"{_DATASETS}/{there}")
        except Rejected as no:
            if await self._uploaded(copy) is not None:
                raise Unavailable(f"data set {there} is not removed: {no}") from no

    async def _uploaded(self, copy: CopyRef) -> str | None:
        """The id that a data set has there; an upload whose answer was lost is found here."""
        try:
            query = {"query": copy.dataset, "owner": "me"}
            async for row in self._wire.rows("datasets", _DATASETS, "datasets", query):
                if row.get("title") == copy.dataset and row.get("id"):
                    return str(row["id"])
        except NotThere:
            return copy.remote or None
        return None

    async def _one_file(self, copy: CopyRef, file: Path) -> str:
        """§7.3.6, checked there by its MD5; "" where there is no such call."""
        with file.open("rb") as opened:
            sum = await asyncio.to_thread(hashlib.file_digest, opened, _md5)
        size = (await asyncio.to_thread(file.stat)).st_size
        form = aiohttp.FormData()
        fields = {"md5": sum.hexdigest(), "title": copy.dataset, "size": str(size), "public": "false"}
        for name, value in fields.items():
            form.add_field(name, value)
        form.add_field("file", file_chunks(file, size=size), filename=file.name)
        url = f"{self._wire.base}{_DATASETS}/upload"
        request = Request("datasets.upload", "POST", url, effect=True, body=form, transfer=True)
        try:
            return await self._sent(request)
        except NotThere:
            return ""

    async def _folder(self, copy: CopyRef, files: list[Path]) -> str:
        """What the standard has no call for: a folder, as a tar.gz."""
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as packed:
            await asyncio.to_thread(_pack, Path(copy.source), files, packed)
            request = Request(
                "datasets.upload",
                "POST",
                f"{self._wire.base}/broker/v1/uploads",
                effect=True,
                query={"title": copy.dataset},
                body=file_chunks(Path(packed.name)),
                headers={"Content-Type": "application/gzip"},
                transfer=True,
            )
            return await self._sent(request)

    async def _sent(self, request: Request) -> str:
        found = await self._wire.json(request)
        if not isinstance(found.get("id"), str):
            raise Unavailable("the upload was answered without an id")
        return str(found["id"])


def _host(url: str) -> str | None:
    try:
        return URL(url).host
    except ValueError:
        return None


_md5 = partial(hashlib.md5, usedforsecurity=False)


def _regular(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Unavailable(f"the data set is not at {folder}")
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _pack(folder: Path, files: list[Path], into: IO[bytes]) -> None:
    with tarfile.open(fileobj=into, mode="w:gz", compresslevel=1) as archive:
        for path in files:
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
    into.flush()


async def _unpacked(packed: IO[bytes]) -> AsyncIterator[ResultFile]:
    """Plain files of a tar.gz, each to be read before the next one; what else is in it is left out."""
    packed.seek(0)
    with gzip.open(packed, "rb") as source:
        stream = Forward(cast(BinaryIO, source))
        entries = members(stream, max_bytes=MAX_BYTES)
        while (member := await asyncio.to_thread(_of_archive, next, entries, None)) is not None:
            if member.isreg() and not member.issparse():
                yield ResultFile(member.name, member.size, _content(stream, member))


async def _content(stream: Forward, member: tarfile.TarInfo) -> AsyncIterator[bytes]:
    left = member.size
    while left > 0:
        chunk = await asyncio.to_thread(_of_archive, stream.content, min(CHUNK_BYTES, left))
        if not chunk:
            raise Unavailable(f"the results end inside {member.name!r}")
        left -= len(chunk)
        yield chunk


def _of_archive(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` gives.  Raises Unavailable for an archive that is none."""
    try:
        return work(*arguments)
    except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError, OSError) as error:
        raise Unavailable(f"the results are no whole tar.gz: {error}") from error
    except (BadArchive, TooLarge) as error:
        raise Unavailable(f"the results cannot be unpacked: {error}") from error


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
