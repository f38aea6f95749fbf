"""Archives and names from strangers: what becomes a path, what an archive may cost.

What belongs here: uploads of clients, results of hostile centers, and the names in both.  What does not:
uploads that are meant well (test_api_uploads.py).
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adapters.files import results_below
from adapters.tai123_files import _unpacked
from broker import tar
from broker.adapter import ResultFile, RunRef, Traits, Unavailable
from broker.api.dataset_upload import _file_name
from broker.api.streaming import attachment
from broker.api.unpack import unpack
from broker.client import archive as client_archive
from broker.collect import Collect, TooMuch
from broker.core.model import JobId, RemoteId, RunId
from broker.files import DataDirectory, OutsideDirectory, inside
from broker.logs import append_log
from broker.tar import MAX_HEADER_BYTES, BadArchive, TooLarge
from tests.api_fixtures import World, world

__all__ = ["world"]

NAMES_OUTSIDE = ("../x", "a/../../x", "/etc/x", "a/../..", "..", "", ".", "a\0b", "//x", "./../x")
RUN = RunRef(RunId("bk-1"), JobId("j-1"), RemoteId("r-1"), 1)


def packed(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], raw: bytes = b"") -> bytes:
    """A tar.gz; `raw` stands before its entries."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for each in members:
            member, content = each if isinstance(each, tuple) else (each, b"")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw + plain.getvalue())


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def extended(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header as it stands in a tar, whatever its content is."""
    member = tarfile.TarInfo("pax")
    member.type, member.size = kind, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size += 1
    return str(size).encode() + rest


def unpacked(tmp_path: Path, data: bytes, *, max_bytes: int = 1 << 30) -> Path:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "in" / "folder"
    archive.write_bytes(data)
    folder.parent.mkdir(exist_ok=True)
    unpack(archive, folder, max_bytes=max_bytes, abandoned=threading.Event())
    return folder


# ---------------------------------------------------------------- names that become paths


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_name_that_leads_outside_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutsideDirectory):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a\\..\\b", "C:\\x", "..a", "a..", "a/b/c", "~root", "$(id)", "-rf"])
def test_other_names_stay_inside(tmp_path: Path, name: str) -> None:
    path = inside(tmp_path, name)
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert path != tmp_path


@pytest.mark.parametrize(
    "stated",
    [
        "../../etc/passwd",
        "..\\..\\x",
        "/etc/passwd",
        ".ssh",
        "..",
        "",
        "a\0b",
        "a\r\nb",
        "x" * 9999,
        "\u202ea",
    ],
)
def test_the_file_name_of_a_form_is_one_plain_component(stated: str) -> None:
    for made in (_file_name(stated), client_archive.safe_name(stated)):
        assert made
        assert not set(made) & set("/\\\0\r\n")
        assert not made.startswith(".")
    assert len(_file_name(stated).encode()) <= 255


@pytest.mark.parametrize(
    "member",
    [
        entry("../out"),
        entry("/abs"),
        entry("a/../../out"),
        entry("link", tarfile.SYMTYPE, "/etc"),
        entry("hard", tarfile.LNKTYPE, "../../etc/passwd"),
        entry("device", tarfile.CHRTYPE),
        entry("block", tarfile.BLKTYPE),
        entry("fifo", tarfile.FIFOTYPE),
        entry("x" * 300),
    ],
    ids=lambda member: member.name[:10],
)
def test_an_upload_with_more_than_files_is_refused_and_leaves_nothing(
    tmp_path: Path, member: tarfile.TarInfo
) -> None:
    with pytest.raises(BadArchive) as refusal:
        unpacked(tmp_path, packed((entry("first"), b"1"), member))
    assert str(tmp_path) not in str(refusal.value), "where things lie here is told to nobody"
    assert os.listdir(tmp_path / "in") == []
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", "in"]


def test_nothing_is_written_through_a_link_of_the_same_upload(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    trick = packed(entry("d", tarfile.SYMTYPE, str(tmp_path / "victim")), (entry("d/x"), b"hurt"))
    with pytest.raises(BadArchive):
        unpacked(tmp_path, trick)
    assert os.listdir(tmp_path / "victim") == []


def test_modes_of_an_upload_give_nobody_anything(tmp_path: Path) -> None:
    member = entry("run")
    member.mode = 0o6777
    folder = unpacked(tmp_path, packed((member, b"x")))
    assert (folder / "run").stat().st_mode & 0o7777 == 0o700
    assert folder.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_download_of_results_writes_nowhere_else(tmp_path: Path, kind: bytes) -> None:
    """The client's side: what it unpacks comes from a server."""
    target = tmp_path / "victim"
    target.write_text("as it was")
    folder = tmp_path / "out"
    folder.mkdir()
    for trick in (
        packed(entry("x", kind, str(target)), (entry("x"), b"hurt")),
        packed((entry("../victim"), b"hurt")),
        packed((entry(str(target)), b"hurt")),
    ):
        with suppress(client_archive.UnsafeArchive):
            client_archive.unpack(io.BytesIO(trick), folder)
        assert target.read_text() == "as it was"


# ---------------------------------------------------------------- what an archive may cost


def test_an_upload_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    bomb = packed((entry("zeros"), b"\0" * 20_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(TooLarge):
        unpacked(tmp_path, bomb, max_bytes=10_000_000)
    many = packed(*[(entry(f"f{i}"), b"\0" * 1000) for i in range(100)])
    with pytest.raises(TooLarge):
        unpacked(tmp_path, many, max_bytes=50_000)


def test_a_bomb_inside_an_upload_stays_packed(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    folder = unpacked(tmp_path, packed((entry("bomb.gz"), bomb)), max_bytes=len(bomb))
    assert (folder / "bomb.gz").read_bytes() == bomb


def test_an_upload_of_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_ENTRIES", 50)
    with pytest.raises(TooLarge):
        unpacked(tmp_path, packed(*[entry(f"d{i}", tarfile.DIRTYPE) for i in range(51)]))


HEADERS = {
    "a size that is not there": extended(b"")[:124] + b"77777777777\0" + extended(b"")[136:],
    "keys that overlap": extended(b"2 " * 5000 + b"=" + b"\n"),
    "a record of length nought": extended(b"0 a=b\n"),
    "a record beyond the end": extended(b"99999 a=b\n"),
    "thousands of digits": extended(record("comment", "1" * 8000)),
    "a megabyte": extended(record("comment", "x" * (1 << 20))),
    "a global header": extended(record("path", "/etc/x"), tarfile.XGLTYPE),
    "many global headers": b"".join(
        extended(record("comment", f"{i}" + "x" * 2000), tarfile.XGLTYPE) for i in range(20)
    ),
    "a long name of megabytes": extended(b"n" * (2 << 20), tarfile.GNUTYPE_LONGNAME),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_costs_is_refused(tmp_path: Path, header: bytes) -> None:
    """Of 16 KiB tarfile alone can make hundreds of megabytes of keys, or seconds of matching."""
    with pytest.raises(BadArchive):
        unpacked(tmp_path, packed((entry("x"), b"1"), raw=header))


def test_headers_as_programs_write_them_are_read(tmp_path: Path) -> None:
    git = extended(record("comment", "0" * 40), tarfile.XGLTYPE)
    long = "d" * 200 + "/" + "数据" * 40
    folder = unpacked(tmp_path, packed((entry(long), b"1"), (entry("x"), b"2"), raw=git))
    assert (folder / long).read_bytes() == b"1"
    assert len(git) < MAX_HEADER_BYTES


def test_headers_of_all_entries_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_HEADERS_BYTES", 20 * tarfile.BLOCKSIZE)
    with pytest.raises(TooLarge):
        unpacked(tmp_path, packed(*[entry(f"d{i}", tarfile.DIRTYPE) for i in range(30)]))


async def test_an_upload_that_is_a_bomb_is_refused_over_http(world: World) -> None:
    bomb = packed((entry("zeros"), b"\0" * 2_000_000))
    refused = await world.refused("POST", "/broker/v1/uploads?title=b", bomb)
    assert refused[:2] == (400, "0204")
    refused = await world.refused("POST", "/broker/v1/uploads?title=b", packed(entry("../x")))
    assert refused[:2] == (400, "0202")
    for name in ("datasets", "incoming"):
        assert os.listdir(world.files.root / name) == []


# ---------------------------------------------------------------- results of a hostile center


async def results_of(data: bytes) -> list[tuple[str, bytes]]:
    return [
        (result.path, b"".join([chunk async for chunk in result.chunks]))
        async for result in _unpacked(io.BytesIO(data))
    ]


async def test_results_that_another_broker_packs_are_plain_files() -> None:
    tricks = packed(
        (entry("good"), b"1"),
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard", tarfile.LNKTYPE, "good"),
        entry("device", tarfile.CHRTYPE),
        (entry("last"), b"2"),
    )
    assert await results_of(tricks) == [("good", b"1"), ("last", b"2")]


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
async def test_results_with_a_header_that_costs_are_no_results(header: bytes) -> None:
    with pytest.raises(Unavailable):
        await results_of(packed((entry("x"), b"1"), raw=header))


@pytest.mark.parametrize("cut", [30, 100, 5000])
async def test_results_that_are_cut_off_are_no_results(cut: int) -> None:
    with pytest.raises(Unavailable):
        await results_of(packed((entry("x"), os.urandom(100_000)))[:-cut])


class Hostile:
    """A center that gives what a test says."""

    traits: ClassVar[Traits] = Traits(logs=True, results=True)

    def __init__(self, files: Iterable[tuple[str, int]] = (), log: int = 0) -> None:
        self._files = list(files)
        self._log = log

    async def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        for name, size in self._files:
            yield ResultFile(name, size, self._bytes(size))

    async def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        async for chunk in self._bytes(self._log - offset):
            yield chunk

    async def _bytes(self, size: int) -> AsyncIterator[bytes]:
        while size > 0:
            yield b"x" * min(1000, size)
            size -= 1000


@pytest.fixture
def kept(tmp_path: Path) -> DataDirectory:
    made = DataDirectory(tmp_path / "data", max_log_bytes=5500, max_result_bytes=10_000)
    made.create()
    return made


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def collected(kept: DataDirectory, center: Any) -> None:
    collect = Collect(store=None, lease=None, connections=None, files=kept)  # type: ignore[arg-type]
    fresh = kept.incoming("results-bk-1")
    await collect._save_all(center, RUN, fresh)


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
async def test_a_result_whose_name_leads_outside_is_not_written(
    kept: DataDirectory, tmp_path: Path, name: str
) -> None:
    with pytest.raises(OSError, match="leaves its folder"):
        await collected(kept, Hostile([(name, 10)]))
    assert files_below(tmp_path) == []


async def test_results_are_cut_off_at_a_limit(kept: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    await collected(kept, Hostile([("a", 4000), ("b/c", 6000)]))
    with pytest.raises(TooMuch, match="max_result_bytes"):
        await collected(kept, Hostile([("a", 4000), ("c", 6001)]))
    with pytest.raises(TooMuch):
        await collected(kept, Hostile([("endless", 1 << 60)]))
    monkeypatch.setattr("broker.collect.MAX_RESULT_FILES", 3)
    with pytest.raises(TooMuch, match="3 files"):
        await collected(kept, Hostile([(f"f{i}", 0) for i in range(4)]))


async def test_a_log_is_cut_off_at_a_limit(kept: DataDirectory) -> None:
    file = kept.log("bk-1", 0)
    center: Any = Hostile(log=1 << 60)
    assert await append_log(center, RUN, 0, file, most=kept.max_log_bytes) == 5500
    assert file.stat().st_size == 5500
    assert await append_log(center, RUN, 0, file, most=kept.max_log_bytes) == 0
    short: Any = Hostile(log=700)
    assert await append_log(short, RUN, 0, kept.log("bk-2", 0), most=kept.max_log_bytes) == 700


def test_results_of_a_job_lead_nowhere_else(tmp_path: Path) -> None:
    """What jobs leave in a folder that they share with the broker: links, pipes, names of any kind."""
    folder, secret = tmp_path / "output", tmp_path / "secret"
    (folder / "sub").mkdir(parents=True)
    secret.write_text("s3cret")
    (folder / "good").write_text("g")
    (folder / "link").symlink_to(secret)
    (folder / "sub" / "up").symlink_to("../../secret")
    (folder / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    assert [result.path for result in results_below(folder)] == ["good"]


# ---------------------------------------------------------------- names that go into a header


@pytest.mark.parametrize(
    "name", ['a"; x=y', "a\r\nSet-Cookie: b=1", "a\nb", "数据.bin", "%0d%0a", "a\\b", "\x7f"]
)
def test_the_name_of_a_download_is_one_header(name: str) -> None:
    made = attachment(name)
    assert made.isascii()
    assert made.isprintable()
    assert made.count('"') == 2
