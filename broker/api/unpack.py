"""Unpacking a tar.gz that came from outside: only files and folders, all of them inside, within limits.

What belongs here: work for a thread on files.  What does not: requests.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from broker.files import OutsideDirectory, inside

MAX_ENTRIES = 100_000
MAX_HEADER_BYTES = 1 << 20
CHUNK = 256 << 10


class BadArchive(Exception):
    """Not a tar.gz, or one with something that may not be unpacked; the text names it."""


class TooLarge(Exception):
    """More entries or bytes than allowed."""


class Abandoned(Exception):
    """Whoever wanted this has gone."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    files: int
    bytes: int


class _Forward:
    """A decompressed stream for tarfile that only goes forward.

    tarfile goes back by one byte, to see that the last one was there.  A read is never larger than
    a header may be: sizes in headers are the sender's word and would be allocated at once.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._at = 0
        self._last = b""
        self._back = False

    def tell(self) -> int:
        return self._at - self._back

    def seek(self, to: int) -> int:
        if to == self._at - 1 and self._last:
            self._back = True
            return to
        self._back = False
        if to < self._at:
            raise BadArchive("the archive points back into itself")
        while self._at < to and self.read(min(CHUNK, to - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise BadArchive(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are read")
        before = self._last if self._back and size else b""
        self._back = self._back and not size
        data = self._source.read(size - len(before))
        self._at += len(data)
        self._last = data[-1:] or self._last
        return before + data


def unpack(archive: Path, folder: Path, *, max_bytes: int, abandoned: threading.Event) -> Unpacked:
    """Unpack into a new folder; on any error the folder is gone.

    Raises BadArchive, TooLarge, Abandoned, OSError.
    """
    folder.mkdir(mode=0o700)
    try:
        with gzip.open(archive, "rb") as source:
            return _unpack(cast(BinaryIO, source), folder, max_bytes, abandoned)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadArchive(f"not a tar.gz: {error}") from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if error.errno in (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise BadArchive(f"a name in it cannot be used: {error.strerror}") from error
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(source: BinaryIO, folder: Path, max_bytes: int, abandoned: threading.Event) -> Unpacked:
    stream = _Forward(source)
    entries = files = total = 0
    with tarfile.open(fileobj=cast(Any, stream), mode="r:", errorlevel=2) as tar:
        for member in tar:
            if abandoned.is_set():
                raise Abandoned
            if member.size < 0:
                raise BadArchive(f"{member.name!r} has a size of {member.size}")
            entries += 1
            total += member.size
            if entries > MAX_ENTRIES:
                raise TooLarge(f"the archive has more than {MAX_ENTRIES} entries")
            if total > max_bytes:
                raise TooLarge(f"the archive unpacks to more than {max_bytes} bytes")
            path = _checked(member, folder)
            if path is not None and member.isdir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif path is not None:
                files += 1
                _write(stream, member, path, abandoned)
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would remember all of them
    _drain(source)
    return Unpacked(files=files, bytes=total)


def _checked(member: tarfile.TarInfo, folder: Path) -> Path | None:
    """Where an entry goes; None for the folder itself."""
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise BadArchive(f"{member.name!r} is neither a plain file nor a folder")
    if member.isdir() and member.name.rstrip("/") in ("", "."):
        return None
    try:
        member.name.encode()
        tarfile.data_filter(member, str(folder))
        return inside(folder, member.name)
    except (OutsideDirectory, tarfile.FilterError, UnicodeEncodeError) as error:
        raise BadArchive(f"{member.name!r} may not be unpacked: {error}") from error


def _write(stream: _Forward, member: tarfile.TarInfo, path: Path, abandoned: threading.Event) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = 0o700 if member.mode & 0o100 else 0o600
    left = member.size
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while left > 0:
            if abandoned.is_set():
                raise Abandoned
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise BadArchive(f"the archive ends inside {member.name!r}")
            file.write(chunk)
            left -= len(chunk)


def _drain(source: BinaryIO) -> None:
    """Read to the end, so that a cut or damaged stream is noticed; padding is short."""
    if len(source.read(MAX_HEADER_BYTES)) == MAX_HEADER_BYTES:
        raise BadArchive("more follows after the end of the archive")
