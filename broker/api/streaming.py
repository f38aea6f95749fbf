"""Bytes of files to clients, without holding them in memory and without blocking the loop."""

from __future__ import annotations

import asyncio
import os
import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from broker.api.context import REQUEST_ID, STARTED
from broker.api.turns import TURN

CHUNK = 256 << 10
_BLOCK = tarfile.BLOCKSIZE


class FileChanged(Exception):
    """A file became shorter while it was sent."""


def attachment(filename: str) -> str:
    """Content-Disposition by RFC 6266: a plain name for old clients and the real one in UTF-8."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%/' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


async def open_stream(request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
    """Send headers; from here on an error can only cut the connection.  Raises TooMany before."""
    request[TURN].transfer()
    response = web.StreamResponse(headers={**headers, "X-Request-Id": request[REQUEST_ID]})
    await response.prepare(request)
    request[STARTED] = True
    return response


async def send(
    request: web.Request, headers: dict[str, str], chunks: Generator[bytes, None, None]
) -> web.StreamResponse:
    """Send what a generator yields; each step of it runs in a thread.

    The generator is closed at the end, whatever ends it.
    """
    step: asyncio.Future[bytes] | None = None
    try:
        response = await open_stream(request, headers)
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, chunks, b""))
            # Shielded: a thread cannot be cancelled, and its generator not be closed while it runs.
            if not (chunk := await asyncio.shield(step)):
                break
            await response.write(chunk)
        await response.write_eof()
    finally:
        if step is None or step.done():
            chunks.close()
        else:
            step.add_done_callback(partial(_close_after, chunks))
    return response


def _close_after(chunks: Generator[bytes, None, None], last: asyncio.Future[bytes]) -> None:
    last.exception()  # nobody waits for it any more
    chunks.close()


def file_bytes(path: Path, *, size: int, start: int = 0) -> Generator[bytes, None, None]:
    """`size` bytes of a file from `start`; a file of which nothing is wanted need not exist.

    Raises FileChanged when there are fewer.
    """
    if size == 0:
        return
    with path.open("rb") as file:
        file.seek(start)
        while size > 0:
            chunk = file.read(min(CHUNK, size))
            if not chunk:
                raise FileChanged(f"{path.name} became shorter while it was sent")
            size -= len(chunk)
            yield chunk


def regular_files(folder: Path) -> list[Path]:
    """Every regular file below a folder, by path; links are left out, they could lead elsewhere."""
    found = []
    for parent, _, names in os.walk(folder):
        paths = (Path(parent, name) for name in names)
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def tar_gz(folder: Path, files: Sequence[Path]) -> Generator[bytes, None, None]:
    """A tar.gz of files below a folder, piece by piece."""
    packer = zlib.compressobj(wbits=31)
    for piece in _tar(folder, files):
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def _tar(folder: Path, files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        status = path.stat()
        member = tarfile.TarInfo(path.relative_to(folder).as_posix())
        member.size, member.mtime, member.mode = status.st_size, int(status.st_mtime), 0o644
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        yield from file_bytes(path, size=status.st_size)
        yield b"\0" * (-status.st_size % _BLOCK)
    yield b"\0" * (2 * _BLOCK)
