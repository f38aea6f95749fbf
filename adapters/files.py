"""What jobs wrote, where a job may put a link in place of anything.

Here: bytes of regular files that are really below a folder, and the removal of one.  Not here: which
folder.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from broker.adapter import ResultFile, Unavailable

CHUNK_BYTES = 64 * 1024


def open_below(root: str, path: str | Path) -> int | None:
    """A descriptor of a regular file whose place, links resolved, is below `root`; else None.

    `root` has no links in it.  The place of what was opened is looked at, not the name: a job may swap
    names at any moment.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    place = os.path.realpath(f"/proc/self/fd/{fd}")
    if os.path.isfile(f"/proc/self/fd/{fd}") and place.startswith(f"{root}/"):
        return fd
    os.close(fd)
    return None


async def content(
    folder: Path, path: str, offset: int = 0, *, root: str | None = None, size: int | None = None
) -> AsyncIterator[bytes]:
    """`folder`/`path` from a byte offset to `size`, or to its end as it is now; nothing where it is not.

    `root` is what it must be below: `folder` itself unless given.  Raises Unavailable when `size` is
    stated and the file is no longer there.
    """
    fd = await asyncio.to_thread(_open, folder, path, root)
    if fd is None:
        if size is not None:
            raise Unavailable(f"{folder / path} is no longer there")
        return
    try:
        end = os.fstat(fd).st_size if size is None else size
        while offset < end:
            chunk = await asyncio.to_thread(os.pread, fd, min(CHUNK_BYTES, end - offset), offset)
            if not chunk:
                return
            yield chunk
            offset += len(chunk)
    finally:
        os.close(fd)


def _open(folder: Path, path: str, root: str | None) -> int | None:
    return open_below(os.path.realpath(folder) if root is None else root, folder / path)


def results_below(folder: Path, *, root: str | None = None) -> list[ResultFile]:
    """The regular files below `folder`, in order of their paths; a link that leads outside is left out.

    Blocks; to be called in a thread.
    """
    limit = os.path.realpath(folder) if root is None else root
    found = []
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here, name)
            fd = open_below(limit, path)
            if fd is not None:
                found.append((path.relative_to(folder).as_posix(), os.fstat(fd).st_size))
                os.close(fd)
    return [
        ResultFile(
            os.fsencode(path).decode(errors="replace"), size, content(folder, path, root=limit, size=size)
        )
        for path, size in sorted(found)
    ]


def discard(folder: Path) -> None:
    """Remove a folder with all that is in it; nothing where it is not, and of a link the link only.

    Blocks.  Raises Unavailable when it cannot be removed.
    """
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)  # follows no link below it either
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Unavailable(f"{folder} cannot be removed: {error.strerror or error}") from error
