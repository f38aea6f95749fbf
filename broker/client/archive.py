"""Folders to tar.gz streams and back, without ever leaving the folder.

What belongs here: what of a folder is sent, and what of an archive is written.  What does not:
the connection (broker.client).
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

LEFT_OUT = frozenset({".git", "__pycache__"})


class UnsafeFolder(ValueError):
    """A folder that cannot be sent; the text names the entry."""


class UnsafeArchive(ValueError):
    """An archive that is damaged or would write outside its folder; the text names the entry."""


class Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Something of a folder: where it is, and its name in the archive."""

    path: Path
    name: str


def entries(folder: Path) -> list[Entry]:
    """Everything of `folder` in order, but version control and caches; UnsafeFolder.

    A symbolic link must point to something inside the folder, which is sent in its place.
    """
    if not folder.is_dir():
        raise UnsafeFolder(f"{folder} is not a folder")
    found: list[Entry] = []
    try:
        _walk(found, "", (folder.resolve(),))
    except OSError as error:
        raise UnsafeFolder(f"{error.filename} cannot be read: {error.strerror}") from error
    return found


def _walk(found: list[Entry], prefix: str, inside: tuple[Path, ...]) -> None:
    """Note what is in the last folder of `inside`, which is the real path from the root down to it."""
    for name in sorted(os.listdir(inside[-1])):
        if name in LEFT_OUT:
            continue
        path = inside[-1] / name
        if path.is_symlink():
            path = _target(path, inside)
        if not (path.is_file() or path.is_dir()):
            raise UnsafeFolder(f"{path} is neither a file nor a folder; remove it or move it away")
        found.append(Entry(path, prefix + name))
        if path.is_dir():
            _walk(found, f"{prefix}{name}/", (*inside, path))


def _target(link: Path, inside: tuple[Path, ...]) -> Path:
    """What a link points to, below the root and not around a folder that it is in."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise UnsafeFolder(
            f"{link} is a link to {os.readlink(link)}, which is not there; remove it"
        ) from error
    if not target.is_relative_to(inside[0]):
        raise UnsafeFolder(f"{link} is a link to {target}, outside the folder; copy what it points to")
    if any(each.is_relative_to(target) for each in inside):
        raise UnsafeFolder(f"{link} is a link to {target}, which it is in; remove it")
    return target


def pack(contents: Sequence[Entry], sink: Sink) -> None:
    """Write a tar.gz of files and folders to `sink`; nothing in it tells who owned them."""
    with tarfile.open(fileobj=cast(IO[bytes], sink), mode="w|gz", format=tarfile.PAX_FORMAT) as archive:
        archive.dereference = True  # two names of one file become two files
        for entry in contents:
            archive.add(entry.path, entry.name, recursive=False, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(stream: IO[bytes], folder: Path) -> list[Path]:
    """Write the files of a tar.gz below `folder` and name them; UnsafeArchive.

    Links are made last, so that nothing is written through one.  Modes keep only the execute bit.
    """
    files: list[Path] = []
    links: list[tuple[Path, str]] = []
    root = folder.resolve()
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                path = _inside(root, member.name)
                if member.issym():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    links.append((path, member.linkname))
                else:
                    _write(archive, member, path, root)
                if not member.isdir():
                    files.append(folder / path.relative_to(root))
    except tarfile.TarError as error:
        raise UnsafeArchive(f"the archive is damaged: {error}") from error
    _make_links(links, root)
    return files


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link of an earlier download would lead elsewhere
    if member.islnk():
        shutil.copyfile(_inside(root, member.linkname), path)
        return
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        raise UnsafeArchive(f"{member.name!r} is neither a file, a folder nor a link")
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file)
    if member.mode & 0o100:
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o444) >> 2)  # executable for whom it is readable


def _make_links(links: Sequence[tuple[Path, str]], root: Path) -> None:
    for path, target in links:
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    # Only now: a link may go through others.
    outside = [path for path, _ in links if not path.resolve().is_relative_to(root)]
    for path in outside:
        path.unlink()
    if outside:
        raise UnsafeArchive(f"{outside[0]} was a link to something outside {root}; it was removed")


def _inside(root: Path, name: str) -> Path:
    """`root` / `name`, if that is inside; UnsafeArchive otherwise.  `root` is free of links."""
    pure = PurePosixPath(name)
    path = root.joinpath(*pure.parts)
    parent = path.parent if pure.parts else path
    if pure.is_absolute() or ".." in pure.parts or not parent.resolve().is_relative_to(root):
        raise UnsafeArchive(f"{name!r} would be written outside {root}; the rest was not unpacked")
    return path


def safe_name(name: str) -> str:
    """A file name from a server as one plain, visible component."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(char for char in last if char.isprintable()).lstrip(".").strip()
    return kept or "result"
