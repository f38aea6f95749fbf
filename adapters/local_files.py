"""Files and folders that a local center makes: whose they are and who may read them.

Here: making and writing one.  Not here: what is in them (local_runner.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from adapters.local_command import Owner


def make_dir(path: Path, owner: Owner | None) -> None:
    """A directory that only its owner enters; one that is there already is left as it is."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)


def open_private(path: Path, flags: int, owner: Owner | None = None) -> IO[bytes]:
    """A file made 0600 and, where given, its owner's: a job may open its /dev/stdout again by name.

    Links are not followed: other ranks of the job may already be writing beside it.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if owner is not None:
        os.fchown(fd, owner.uid, owner.gid)
    return os.fdopen(fd, "r+b" if flags & os.O_RDWR else "wb")


def write_whole(path: Path, text: str) -> None:
    """The whole file or none of it, on disk when this returns."""
    new = path.with_name(f"{path.name}.new")
    with open_private(new, os.O_WRONLY | os.O_TRUNC) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
