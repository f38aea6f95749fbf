"""Files and folders that a local center makes: whose they are and who may read them.

Here: making and writing one.  Not here: what is in them (local_runner.py).
"""

from __future__ import annotations

import errno
import os
import stat
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
        # Not through a link: where the folder it is in is the owner's too, it may be one by now.
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def open_private(path: Path, flags: int, owner: Owner | None = None) -> IO[bytes]:
    """A file made 0600 and, where given, its owner's: a job may open its /dev/stdout again by name.

    Links are not followed, a second name of another file and what is no file are not opened: other
    ranks of the job may already be writing beside it.  Raises OSError.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.EINVAL, "not a plain file of one name", str(path))
        os.set_blocking(fd, True)
        if owner is not None:
            os.fchown(fd, owner.uid, owner.gid)
    except OSError:
        os.close(fd)
        raise
    return os.fdopen(fd, "r+b" if flags & os.O_RDWR else "wb")


def write_whole(path: Path, text: str) -> None:
    """The whole file or none of it, on disk when this returns."""
    new = path.with_name(f"{path.name}.new")
    with open_private(new, os.O_WRONLY | os.O_TRUNC) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
