"""Data sets in the world of the API's tests: forms that upload them, what is stored, what centers list."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sqlmodel import select

from broker.adapter import Asset, AssetKind
from broker.core.model import CenterId
from broker.store import assets
from broker.tables import Dataset
from tests.api_fixtures import World, token_of

SZ, GZ = CenterId("sz-1"), CenterId("gz-2")
DATA = b"line of data\n" * 1000


def digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


Fields = list[tuple[str, Any]]


def fields_of(data: bytes = DATA, **changes: Any) -> Fields:
    """The fields of a good form; None takes one out."""
    whole = {"md5": digest(data), "title": "语料", "size": str(len(data)), **changes, "file": data}
    return [(name, value) for name, value in whole.items() if value is not None]


def form_of(fields: Fields, filename: str | None = "data.bin") -> bytes:
    """A form byte by byte: what a client would not send is sent too.  Only bytes of `file` are a file."""
    body = b""
    for name, value in fields:
        is_file = name == "file" and isinstance(value, bytes)
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if is_file else "")
        content = value if isinstance(value, bytes) else value.encode()
        body += f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--b--\r\n"


FORM = "multipart/form-data; boundary=b"


async def post(world: World, form: bytes, kind: str = FORM, *, as_: str = "alice") -> tuple[int, Any]:
    headers = {"X-Auth-Token": token_of(as_), "Content-Type": kind}
    answer = await world.client.post("/datasets/upload", data=form, headers=headers)
    return answer.status, await answer.json()


async def uploaded(world: World, data: bytes = DATA, *, as_: str = "alice", **changes: Any) -> str:
    status, body = await post(world, form_of(fields_of(data, **changes)), as_=as_)
    assert status == 200, body
    return str(body["id"])


def left_behind(world: World) -> list[Path]:
    folders = (world.files.root / "incoming", world.files.root / "datasets")
    return [path for folder in folders for path in folder.rglob("*")]


async def stored(world: World) -> list[Dataset]:
    return list(await world.store.read(lambda session: session.exec(select(Dataset)).all()))


async def nothing_is_left(world: World) -> None:
    assert left_behind(world) == []
    assert await stored(world) == []


async def record(world: World, center: CenterId, **kinds: tuple[Asset, ...]) -> None:
    found = {AssetKind(kind): listed for kind, listed in kinds.items()}
    await world.store.write(assets.record_assets, center, found, epoch=world.epoch)
