"""POST /datasets/upload: what is kept of a good form, and that nothing is of a bad one."""

from __future__ import annotations

import asyncio
import errno

import pytest
from sqlmodel import select

from broker.tables import Event
from tests.api_fixtures import World, token_of, until, world
from tests.dataset_uploads import (
    DATA,
    FORM,
    Fields,
    digest,
    fields_of,
    form_of,
    left_behind,
    nothing_is_left,
    post,
    uploaded,
)

__all__ = ["world"]


async def test_an_upload_is_public_and_whole(world: World) -> None:
    made = await uploaded(world, desc="文本", labels="nlp, text")
    assert (world.files.dataset(made) / "data.bin").read_bytes() == DATA
    assert list((world.files.root / "incoming").iterdir()) == []
    shown = await world.ok("GET", f"/datasets/{made}", as_="eve")
    assert shown == {
        "id": made,
        "title": "语料",
        "owner": "alice",
        "size": len(DATA),
        "desc": "文本",
        "labels": "nlp, text",
        "public": True,
        "createTime": "2025-03-01 10:00:00",
        "centerIds": [],
        "md5": digest(DATA),
        "copies": [],
    }
    (event,) = await world.store.read(
        lambda session: session.exec(select(Event).where(Event.kind == "dataset.created")).all()
    )
    assert event.actor == "alice"


async def test_fields_may_come_in_any_order(world: World) -> None:
    fields = fields_of(md5=digest(DATA).upper())
    for order in (fields, fields[::-1], fields[2:] + fields[:2]):
        status, body = await post(world, form_of(order))
        assert status == 200, body


async def test_an_upload_may_be_private_or_empty(world: World) -> None:
    private = await uploaded(world, public="false")
    assert (await world.refused("GET", f"/datasets/{private}", as_="bob"))[:2] == (400, "0202")
    assert (await world.ok("GET", f"/datasets/{private}", as_="carol"))["public"] is False
    empty = await uploaded(world, b"")
    assert (world.files.dataset(empty) / "data.bin").read_bytes() == b""


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\data\\\\train.csv", "train.csv"),
        ("..", "data"),
        (".hidden", "hidden"),
        ("数据.tar", "数据.tar"),
        ("n" * 400, "n" * 255),
    ],
)
async def test_the_file_keeps_its_name_and_stays_inside(world: World, stated: str, kept: str) -> None:
    status, body = await post(world, form_of(fields_of(), filename=stated))
    assert status == 200, body
    assert [path.name for path in world.files.dataset(body["id"]).iterdir()] == [kept]


BAD: list[tuple[Fields, str, str]] = [
    # missing, and empty is missing
    (fields_of(md5=None), "0203", "md5: "),
    (fields_of(title=None), "0203", "title: "),
    (fields_of(size=None), "0203", "size: "),
    (fields_of()[:-1], "0203", "file: "),
    ([], "0203", "md5: "),
    (fields_of(title=""), "0203", "title: "),
    (fields_of(md5=""), "0203", "md5: "),
    (fields_of(size=""), "0203", "size: "),
    # wrong type
    (fields_of(size="many"), "0201", "size: "),
    (fields_of(size="1.5"), "0201", "size: "),
    (fields_of(size="0x10"), "0201", "size: "),
    (fields_of(size="１２"), "0201", "size: "),
    (fields_of(public="perhaps"), "0201", "public: "),
    (fields_of(title=b"\xff\xfe"), "0201", "title: "),
    ([*fields_of()[:-1], ("file", "a text")], "0201", "file: "),
    # out of range
    (fields_of(size="-1"), "0204", "size: "),
    (fields_of(size="10737418240"), "0204", "size: "),
    (fields_of(size="9" * 30), "0204", "size: "),
    (fields_of(title="t" * 256), "0204", "title: "),
    (fields_of(desc="d" * 4097), "0204", "desc: "),
    (fields_of(labels="l" * 1025), "0204", "labels: "),
    (fields_of(desc="d" * 70_000), "0204", "desc: "),
    (fields_of(md5="0" * 33), "0204", "md5: "),
    (fields_of(b"x" * 1_000_001), "0204", "size: "),
    # a value that is not possible
    (fields_of(md5="0" * 32), "0202", "md5: "),
    (fields_of(md5="g" * 32), "0202", "md5: "),
    (fields_of(size="1"), "0202", "size: "),
    (fields_of(size=str(len(DATA) + 1)), "0202", "size: "),
    (fields_of(title="a\0b"), "0202", "title: "),
    ([("colour", "red"), *fields_of()], "0202", "colour: "),
    ([*fields_of(), ("colour", "red")], "0202", "colour: "),
    ([*fields_of(), ("title", "again")], "0202", "title: "),
    ([*fields_of(), ("file", DATA)], "0202", "file: "),
    # several faults: the first of the order of the standard
    ([("colour", "red"), *fields_of(size="many", md5="g")[:-1]], "0203", "file: "),
    ([*fields_of(size="many", md5="g")[:-1], ("file", DATA)], "0201", "size: "),
]


@pytest.mark.parametrize(("fields", "code", "detail"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("file_first", [False, True])
async def test_bad_uploads_leave_nothing(
    world: World, fields: Fields, code: str, detail: str, file_first: bool
) -> None:
    if file_first:
        fields = sorted(fields, key=lambda each: each[0] != "file")
    status, body = await post(world, form_of(fields))
    assert (status, body["errorCode"]) == (400, code), body
    if not file_first:
        assert body["detail"].startswith(detail), body
    await nothing_is_left(world)


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"{}", "application/json", "0201"),
        (b"", "multipart/form-data", "0201"),
        (b"", FORM, "0201"),
        (b"--b\r\n", FORM, "0201"),
        (b"nonsense", FORM, "0201"),
        (b"--b--\r\n", FORM, "0203"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nxx\r\n--b--\r\n", FORM, "0202"),
        (b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\nxx\r\n--b--\r\n", FORM, "0202"),
        (b"--b\r\nh: " + b"v" * 20_000 + b"\r\n\r\nxx\r\n--b--\r\n", FORM, "0201"),
        (b'--b\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n' + b"c" * 99, FORM, "0201"),
        (form_of(fields_of()).replace(b"filename", b"other"), FORM, "0201"),
        (form_of(fields_of()), f"{FORM}{'b' * 100}", "0201"),
    ],
)
async def test_what_is_no_form_is_refused(world: World, body: bytes, kind: str, code: str) -> None:
    status, answer = await post(world, body, kind)
    assert (status, answer["errorCode"]) == (400, code), answer
    await nothing_is_left(world)


async def test_a_coded_part_is_refused(world: World) -> None:
    coded = form_of(fields_of()).replace(b"data.bin", b'data.bin"\r\nContent-Transfer-Encoding: "base64')
    coded = coded.replace(b': "base64"', b": base64")
    status, answer = await post(world, coded)
    assert (status, answer["errorCode"]) == (400, "0202"), answer
    await nothing_is_left(world)


def head(world: World, *, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /datasets/upload HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token_of('alice')}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n{framing}\r\n\r\n"
    ).encode()


def raw_form(size: str = str(len(DATA))) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'
        for n, v in fields_of(size=size)[:-1]
    ]
    opening = '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return "".join([*parts, opening]).encode()


async def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    large = b"x" * 500_000  # what comes is looked at only when more has come
    for body in (raw_form(str(len(large))) + large[:300_000], raw_form()[:60]):
        _, writer = await asyncio.open_connection(world.client.host, world.client.port)
        writer.write(head(world, length=900_000) + body)
        await writer.drain()
        if len(body) > 5000:

            async def begun() -> bool:
                return left_behind(world) != []

            await until(begun)
        writer.close()

        async def cleaned() -> bool:
            return left_behind(world) == []

        await until(cleaned)
    await nothing_is_left(world)


async def test_a_form_that_ends_before_its_last_boundary_is_refused(world: World) -> None:
    body = raw_form() + DATA
    for cut in (body, body + b"\r\n--b", body[:-5000]):
        status, answer = await post(world, cut)
        assert (status, answer["errorCode"]) == (400, "0201"), answer
    await nothing_is_left(world)


async def test_ten_gigabytes_are_refused_before_they_come(world: World) -> None:
    reader, writer = await asyncio.open_connection(world.client.host, world.client.port)
    writer.write(head(world, length=10 << 30) + raw_form())
    await writer.drain()
    status = await asyncio.wait_for(reader.readline(), 10)
    assert b" 400 " in status
    text = await asyncio.wait_for(reader.readuntil(b"}"), 10)
    assert b'"errorCode": "0204"' in text
    writer.close()
    await nothing_is_left(world)


async def test_a_file_is_counted_as_it_comes(world: World) -> None:
    """Without a length, and with none declared before it: it ends at the limit."""
    reader, writer = await asyncio.open_connection(world.client.host, world.client.port)
    writer.write(head(world, length=None))
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    for piece in (start, *[b"x" * 100_000] * 15):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    await writer.drain()
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
    assert b'"errorCode": "0204"' in await asyncio.wait_for(reader.readuntil(b"}"), 10)
    writer.close()
    await nothing_is_left(world)


async def test_a_full_disk_is_the_adapter_layers_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def no_sync(_fd: int) -> None:
        raise full

    monkeypatch.setattr("broker.api.dataset_upload.os.fsync", no_sync)
    status, answer = await post(world, form_of(fields_of()))
    assert (status, answer["errorCode"], answer["errorMsg"]) == (500, "0101", "适配器服务异常")
    assert "No space left" in answer["detail"]
    await nothing_is_left(world)


async def test_an_upload_needs_a_token_and_takes_no_query(world: World) -> None:
    headers = {"Content-Type": FORM}
    answer = await world.call("POST", "/datasets/upload", form_of(fields_of()), as_=None, headers=headers)
    assert answer.status == 401
    answer = await world.call("POST", "/datasets/upload?x=1", form_of(fields_of()), headers=headers)
    assert (answer.status, (await answer.json())["errorCode"]) == (400, "0202")
    await nothing_is_left(world)
