"""Unpacking a tar.gz that came from outside: only files and folders, all of them inside, within limits.

What belongs here: work for a thread on files.  What does not: requests, and what may be in an archive
(broker.tar).
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
from typing import BinaryIO, cast

from broker.files import OutsideDirectory, inside
from broker.tar import CHUNK, BadArchive, Forward, members

MAX_PADDING_BYTES = 1 << 20
"""After the last entry; more is something else that follows."""


class Abandoned(Exception):
    """Whoever wanted this has gone."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    files: int
    bytes: int


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
    stream = Forward(source)
    files = total = 0
    for member in members(stream, max_bytes=max_bytes):
        if abandoned.is_set():
            raise Abandoned
        total += member.size
        path = _checked(member, folder)
        if path is not None and member.isdir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif path is not None:
            files += 1
            _write(stream, member, path, abandoned)
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
        path = inside(folder, member.name)
        tarfile.data_filter(member, str(folder))
    except (OutsideDirectory, UnicodeEncodeError) as error:
        raise BadArchive(f"{member.name!r} may not be unpacked: {error}") from error
    except tarfile.FilterError as error:
        # its own text names the folder of this machine
        raise BadArchive(f"{member.name!r} may not be unpacked") from error
    return path


def _write(stream: Forward, member: tarfile.TarInfo, path: Path, abandoned: threading.Event) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = 0o700 if member.mode & 0o100 else 0o600
    left = member.size
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while left > 0:
            if abandoned.is_set():
                raise Abandoned
            chunk = stream.content(min(CHUNK, left))
            if not chunk:
                raise BadArchive(f"the archive ends inside {member.name!r}")
            file.write(chunk)
            left -= len(chunk)


def _drain(source: BinaryIO) -> None:
    """Read to the end, so that a cut or damaged stream is noticed; padding is short."""
    if len(source.read(MAX_PADDING_BYTES)) == MAX_PADDING_BYTES:
        raise BadArchive("more follows after the end of the archive")
