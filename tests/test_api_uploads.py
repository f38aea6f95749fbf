"""Uploads: a folder as tar.gz becomes a private data set, or nothing is left of it."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from broker.store import datasets
from broker.tables import Dataset
from tests.api_fixtures import World, token_of, until, world

__all__ = ["world"]


def tar_gz(*entries: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for build in entries:
            build(tar)
    return buffer.getvalue()


def entry(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> Callable[[tarfile.TarFile], None]:
    def build(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(data)
        tar.addfile(member, io.BytesIO(data))

    return build


def left_behind(world: World) -> list[Path]:
    folders = (world.files.root / "incoming", world.files.root / "datasets")
    return [path for folder in folders for path in folder.rglob("*")]


async def datasets_of(world: World) -> list[str]:
    return list(await world.store.read(lambda session: session.exec(select(Dataset.id)).all()))


async def test_an_upload_becomes_a_private_data_set(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "空").mkdir(parents=True)
    (source / "a" / "b.txt").write_bytes(os.urandom(600_000))
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    body = tar_gz(lambda tar: tar.add(source, arcname="."))
    answer = await world.ok("POST", "/broker/v1/uploads?title=我的", body)
    made = answer["id"]
    assert answer == {"id": made, "bytes": 600_010, "files": 2}
    place = world.files.dataset(made)
    assert (place / "a" / "b.txt").read_bytes() == (source / "a" / "b.txt").read_bytes()
    assert (place / "a" / "空").is_dir()
    assert os.access(place / "run.sh", os.X_OK)
    assert list((world.files.root / "incoming").iterdir()) == []
    await world.create(datasetIds=[made])
    assert await world.store.read(datasets.unusable, world.accounts["bob"], [made]) == [made]
    assert (await world.refused("POST", "/trainjob", {"jobName": "b", "config": {}}, as_="bob"))[1] == "0203"


def pax_header(records: bytes) -> bytes:
    """Further facts about the member that follows."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    return header.tobuf() + records + b"\0" * (-len(records) % 512)


def pax_size(size: str) -> bytes:
    """A member that claims a size."""
    record = f" size={size}\n"
    return pax_header(f"{len(record) + 2}{record}".encode()) + tarfile.TarInfo("a").tobuf()


BIG = 1_000_001
BAD_ARCHIVES: list[tuple[bytes, str]] = [
    (tar_gz(entry("../evil", b"x")), "0202"),
    (tar_gz(entry("a/../../evil", b"x")), "0202"),
    (tar_gz(entry("/tmp/evil", b"x")), "0202"),
    (tar_gz(entry("..", kind=tarfile.DIRTYPE)), "0202"),
    (tar_gz(entry("l", kind=tarfile.SYMTYPE, link="/etc")), "0202"),
    (tar_gz(entry("l", kind=tarfile.SYMTYPE, link="here")), "0202"),
    (tar_gz(entry("l", kind=tarfile.LNKTYPE, link="/etc/passwd")), "0202"),
    (tar_gz(entry("fifo", kind=tarfile.FIFOTYPE)), "0202"),
    (tar_gz(entry("dev", kind=tarfile.CHRTYPE)), "0202"),
    (tar_gz(entry("a", b"1"), entry("a", b"2")), "0202"),
    (tar_gz(entry("a", b"1"), entry("a/b", b"2")), "0202"),
    (tar_gz(entry("n" * 300, b"1")), "0202"),
    (tar_gz(entry("bomb", b"\0" * BIG)), "0204"),
    (gzip.compress(pax_size("-512") * 2000), "0202"),
    (gzip.compress(pax_header(b"") * 5000), "0202"),
    (tar_gz(*(entry(f"b{i}", b"\0" * 100_000) for i in range(11))), "0204"),
    (gzip.compress(b"\0" * 50_000_000), "0202"),
    (gzip.compress(tarfile.TarInfo("x").tobuf()[:-1]), "0202"),
    (tar_gz(entry("a", b"x" * 9000))[:-60], "0202"),
    (b"not gzip", "0202"),
    (b"", "0202"),
    (os.urandom(BIG), "0204"),
]


@pytest.mark.parametrize(("body", "code"), BAD_ARCHIVES, ids=range(len(BAD_ARCHIVES)))
async def test_bad_archives_leave_nothing(world: World, body: bytes, code: str) -> None:
    status, found, detail = await world.refused("POST", "/broker/v1/uploads?title=t", body)
    assert (status, found) == (400, code), detail
    assert detail.startswith(("body: ", "the body "))
    assert left_behind(world) == []
    assert await datasets_of(world) == []
    assert not (world.files.root / "evil").exists()


async def test_a_header_that_claims_gigabytes_is_not_believed(world: World) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    body = gzip.compress(header.tobuf() + b"\0" * 20_000)
    answer = await world.refused("POST", "/broker/v1/uploads?title=t", body)
    assert answer[:2] == (400, "0202")
    assert left_behind(world) == []


async def test_too_many_entries(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.tar.MAX_ENTRIES", 20)
    body = tar_gz(*(entry(f"e{i}") for i in range(21)))
    assert (await world.refused("POST", "/broker/v1/uploads?title=t", body))[:2] == (400, "0204")
    assert left_behind(world) == []


async def test_an_upload_without_a_length_is_counted(world: World) -> None:
    async def endless() -> Any:
        for _ in range(30):
            yield os.urandom(100_000)

    headers = {"X-Auth-Token": token_of("alice")}
    answer = await world.client.post("/broker/v1/uploads?title=t", data=endless(), headers=headers)
    assert (answer.status, (await answer.json())["errorCode"]) == (400, "0204")
    assert left_behind(world) == []


async def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    host, port = world.client.host, world.client.port
    _, writer = await asyncio.open_connection(host, port)
    token = token_of("alice")
    head = f"POST /broker/v1/uploads?title=t HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n"
    writer.write(head.encode() + b"Content-Length: 9000\r\n\r\n" + b"x" * 100)
    await writer.drain()

    async def begun() -> bool:
        return left_behind(world) != []

    async def cleaned() -> bool:
        return left_behind(world) == []

    await until(begun)
    writer.close()
    await until(cleaned)
    assert await datasets_of(world) == []


@pytest.mark.parametrize(
    ("query", "code"),
    [("", "0203"), ("?title=", "0203"), (f"?title={'t' * 256}", "0204"), ("?title=t&x=1", "0202")],
)
async def test_faults_of_an_upload(world: World, query: str, code: str) -> None:
    answer = await world.refused("POST", f"/broker/v1/uploads{query}", tar_gz(entry("a", b"1")))
    assert answer[:2] == (400, code)
    assert left_behind(world) == []
