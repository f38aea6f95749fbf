"""Images, data sets, models and applications over HTTP."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from broker.adapter import Asset, AssetKind, CopyState, Image
from broker.core.events import SeenRunning
from broker.core.model import CenterId
from broker.store import assets, centers, copies, datasets
from broker.store.writer import Tx
from broker.tables import Copy, Dataset, Event
from tests.api_fixtures import START_MS, World, token_of, until, world

__all__ = ["world"]

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


# ---------------------------------------------------------------- upload


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


# ---------------------------------------------------------------- list


async def record(world: World, center: CenterId, **kinds: tuple[Asset, ...]) -> None:
    found = {AssetKind(kind): listed for kind, listed in kinds.items()}
    await world.store.write(assets.record_assets, center, found, epoch=world.epoch)


async def test_the_list_has_uploads_and_what_centers_have(world: World) -> None:
    mine = await uploaded(world, labels="nlp", desc="Wikipedia")
    await uploaded(world, title="secret", public="false")
    coco = Asset("/d/coco", "COCO", desc="pictures", labels="cv,detection", bytes=7, remote="/d/coco")
    await record(world, SZ, dataset=(coco, Asset("/d/x", "zh", id="x", remote="/d/x", owner="lab")))
    await record(world, GZ, dataset=(Asset("other", "zh", id="x", remote="r", bytes=9),))
    listed = await world.ok("GET", "/datasets?order=asc", as_="eve")
    told = [(each["title"], each["owner"], each["size"], each["centerIds"]) for each in listed["datasets"]]
    assert told == [
        ("COCO", "sz-1", 7, ["sz-1"]),
        ("zh", "gz-2", 9, ["gz-2", "sz-1"]),
        ("语料", "alice", len(DATA), []),
    ]
    assert listed["totalSize"] == 3
    own = listed["datasets"][0]["id"]
    assert "coco" not in own
    await record(world, SZ, dataset=())
    await record(world, SZ, dataset=(coco,))
    assert (await world.ok("GET", f"/datasets/{own}"))["title"] == "COCO"  # the id is stable
    shown = await world.ok("GET", "/datasets?owner=me")
    assert {each["title"] for each in shown["datasets"]} == {"语料", "secret"}
    assert (await world.ok("GET", "/datasets?owner=me", as_="eve"))["totalSize"] == 0
    for query, ids in (
        ("query=PICTURES", [own]),
        ("query=wiki", [mine]),
        ("query=%25", []),
        ("category=nlp", [mine]),
        ("category=Detection", [own]),
        ("category=detect", []),
        ("category=cv&query=coc", [own]),
    ):
        found = await world.ok("GET", f"/datasets?{query}")
        assert ([each["id"] for each in found["datasets"]], found["totalSize"]) == (ids, len(ids)), query


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("datasetName", "title"),
        ("title", "title"),
        ("id", "id"),
        ("owner", "owner"),
        ("size", "size"),
        ("createTime", "createTime"),
    ],
)
async def test_data_sets_are_sorted_and_paged(world: World, sort: str, key: str) -> None:
    for number, who in enumerate(("alice", "bob", "eve")):
        world.clock.now_ms += 5000
        await uploaded(world, b"x" * (9 - number), title=f"t{number}", as_=who)
    up = (await world.ok("GET", f"/datasets?sort={sort}&order=asc"))["datasets"]
    assert [each[key] for each in up] == sorted(each[key] for each in up)
    down = (await world.ok("GET", f"/datasets?sort={sort}"))["datasets"]
    assert down == up[::-1]
    second = await world.ok("GET", f"/datasets?sort={sort}&order=asc&pageSize=2&page=2")
    assert (second["datasets"], second["totalSize"]) == (up[2:], 3)
    assert (await world.ok("GET", "/datasets?page=9"))["datasets"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("pageSize=0", "0204"),
        ("pageSize=x", "0201"),
        ("page=0", "0204"),
        ("sort=colour", "0202"),
        ("order=up", "0202"),
        ("owner=you", "0202"),
        ("colour=red", "0202"),
        ("query=a&query=b", "0202"),
        ("query=%00", "0202"),
    ],
)
@pytest.mark.parametrize("path", ["/datasets", "/models", "/apps", "/resource/images"])
async def test_faults_of_listings(world: World, path: str, query: str, code: str) -> None:
    assert (await world.refused("GET", f"{path}?{query}"))[:2] == (400, code)


# ---------------------------------------------------------------- show, delete, use


async def test_unknown_and_foreign_data_sets_are_alike(world: World) -> None:
    private = await uploaded(world, public="false")
    for method in ("GET", "DELETE"):
        foreign = await world.refused(method, f"/datasets/{private}", as_="eve")
        unknown = await world.refused(method, "/datasets/d-none", as_="eve")
        assert foreign[:2] == unknown[:2] == (400, "0202")
        assert foreign[2].replace(private, "X") == unknown[2].replace("d-none", "X")
        assert (await world.refused(method, "/datasets/a%2Fb"))[:2] == (400, "0202")
        assert (await world.refused(method, f"/datasets/{private}?x=1"))[:2] == (400, "0202")


async def test_who_may_delete(world: World) -> None:
    made = await uploaded(world)
    for who in ("bob", "eve"):
        status, code, detail = await world.refused("DELETE", f"/datasets/{made}", as_=who)
        assert (status, code) == (400, "0202")
        assert "another account" in detail
    assert (await world.call("DELETE", f"/datasets/{made}", as_="carol")).status == 204
    await nothing_is_left(world)
    assert (await world.refused("DELETE", f"/datasets/{made}"))[:2] == (400, "0202")
    other = await uploaded(world)
    assert (await world.call("DELETE", f"/datasets/{other}", as_="root")).status == 204
    await record(world, SZ, dataset=(Asset("/d/x", "zh", id="x", remote="/d/x"),))
    assert "center's own" in (await world.refused("DELETE", "/datasets/x", as_="root"))[2]


async def test_a_data_set_in_use_stays(world: World) -> None:
    made = await uploaded(world)
    job = await world.create(datasetIds=[made], as_="bob")
    status, code, detail = await world.refused("DELETE", f"/datasets/{made}")
    assert (status, code) == (400, "0202")
    assert "has not ended" in detail
    await world.run_job(job, SeenRunning(world.clock()))
    assert (await world.refused("DELETE", f"/datasets/{made}"))[:2] == (400, "0202")
    other = await world.create("other", datasetIds=[made], as_="bob")
    await world.ok("POST", f"/trainjob/{other}/stop", as_="bob")
    assert (await world.refused("DELETE", f"/datasets/{made}"))[:2] == (400, "0202")
    await world.set_job(job, state="SUCCEEDED")
    assert (await world.call("DELETE", f"/datasets/{made}")).status == 204


async def test_copies_are_shown_and_outlive_a_deletion_until_they_are_removed(world: World) -> None:
    made = await uploaded(world)

    def copy(tx: Tx) -> None:
        assert copies.missing_copies(tx, SZ, [made])
        row = tx.session.get_one(Copy, (made, SZ))
        row.state, row.bytes_done, row.message = CopyState.MOVING.value, 5, "slow"
        tx.session.add(row)

    await world.sql(copy)
    shown = await world.ok("GET", f"/datasets/{made}")
    assert shown["copies"] == [
        {
            "centerId": "sz-1",
            "state": "MOVING",
            "size": len(DATA),
            "sizeDone": 5,
            "message": "slow",
            "usedTime": "2025-03-01 10:00:00",
        }
    ]
    assert (await world.call("DELETE", f"/datasets/{made}")).status == 204
    assert left_behind(world) == []
    assert (await world.refused("GET", f"/datasets/{made}"))[:2] == (400, "0202")
    assert (await world.refused("POST", "/trainjob", _body([made])))[:2] == (400, "0202")
    (work,) = await world.store.read(copies.due, world.clock())
    assert work.evicting
    await world.store.write(copies.record_removed, work.ref, epoch=world.epoch)
    await nothing_is_left(world)


def _body(ids: list[str]) -> dict[str, Any]:
    from tests.api_fixtures import create_body

    return create_body(datasetIds=ids)


async def test_a_data_set_that_goes_while_a_job_is_judged(world: World) -> None:
    made = await uploaded(world)
    await world.store.write(datasets.delete_dataset, world.accounts["alice"], made)
    with pytest.raises(datasets.NoSuchDataset):
        await world.store.write(datasets.name_for_job, "j-1", [made])


async def test_a_job_may_read_a_centers_own_data_if_jobs_can_be_given_it(world: World) -> None:
    await record(
        world, SZ, dataset=(Asset("/d/x", "zh", id="x", remote="/d/x"), Asset("9", "shown only", id="y"))
    )
    await world.create(datasetIds=["x"])
    status, code, detail = await world.refused("POST", "/trainjob", _body(["x", "y"]))
    assert (status, code) == (400, "0202")
    assert '"y"' in detail


# ---------------------------------------------------------------- models, apps


@pytest.mark.parametrize(("path", "kind"), [("models", "model"), ("apps", "app")])
async def test_models_and_apps_are_found_by_keyword_and_category(world: World, path: str, kind: str) -> None:
    bert = Asset("m/1", "BERT", desc="language model", labels="nlp", id="bert", owner="google")
    await record(world, SZ, **{kind: (bert, Asset("m/2", "ResNet", labels="cv"))})
    await record(world, GZ, **{kind: (bert,), "dataset": (Asset("d", "other kind", remote="d"),)})
    listed = await world.ok("GET", f"/{path}?order=asc")
    assert [each["title"] for each in listed[path]] == ["BERT", "ResNet"]
    assert listed["totalSize"] == 2
    assert listed[path][0] == {
        "id": "bert",
        "title": "BERT",
        "owner": "google",
        "desc": "language model",
        "labels": "nlp",
        "createTime": "2025-03-01 10:00:00",
        "centerIds": ["gz-2", "sz-1"],
    }
    for query, titles in (
        ("query=LANGUAGE", ["BERT"]),
        ("category=cv", ["ResNet"]),
        ("sort=id", ["ResNet", "BERT"]),
        ("sort=owner&order=asc&pageSize=1", ["BERT"]),
        ("sort=createTime", ["ResNet", "BERT"]),
    ):
        found = await world.ok("GET", f"/{path}?{query}")
        assert [each["title"] for each in found[path]] == titles, query


# ---------------------------------------------------------------- images


async def images(world: World, center: CenterId, *offered: Image) -> None:
    await world.store.write(centers.record_images, center, offered, epoch=world.epoch)


IMAGES = (
    Image("pytorch-2.3", "a:1", "PyTorch", "d", "X86", "GPU", "Ubuntu 22.04", "PyTorch 2.3", ("numpy",)),
    Image("mind", "a:2", "MindSpore", arch="ARM", processor="NPU", framework="MindSpore"),
    Image("plain", "a:3"),
)


async def test_each_logical_image_once(world: World) -> None:
    world.clock.now_ms += 60_000
    await images(world, SZ, *IMAGES)
    listed = await world.ok("GET", "/resource/images?order=asc")
    assert [each["imageId"] for each in listed["images"]] == ["mind", "plain", "pytorch-2.3"]
    assert listed["totalSize"] == 3
    assert listed["images"][2]["centerIds"] == ["gz-2", "sz-1"]
    at = await world.ok("GET", "/resource/images?order=asc&centerId=sz-1")
    assert at["images"][2] == {
        "imageId": "pytorch-2.3",
        "imageName": "PyTorch",
        "imageDesc": "d",
        "arch": "X86",
        "processor": "GPU",
        "operationSystem": "Ubuntu 22.04",
        "framework": "PyTorch 2.3",
        "createTime": "2025-03-01 10:01:00",
        "installedLib": ["numpy"],
        "centerIds": ["gz-2", "sz-1"],
    }
    natives = await world.store.read(centers.image_centers, "pytorch-2.3")
    assert natives == {"gz-2": "r.local/pt:2.3", "sz-1": "a:1"}
    for query, ids in (
        ("centerId=gz-2", ["pytorch-2.3"]),
        ("centerId=off", []),
        ("processor=npu", ["mind"]),
        ("processor=TPU", []),
        ("framework=mindspore", ["mind"]),
        ("framework=pytorch&centerId=sz-1", ["pytorch-2.3"]),
        ("framework=PyTorch%202.3&centerId=sz-1", ["pytorch-2.3"]),
        ("framework=PyTorch%202&centerId=sz-1", []),
        ("createAfter=2025-03-01%2010:01:00", ["mind", "plain"]),
        ("createBefore=2025-03-01%2010:00:00", ["pytorch-2.3"]),
        ("createAfter=2025-03-01&createBefore=2025-03-01", ["mind", "plain", "pytorch-2.3"]),
    ):
        found = await world.ok("GET", f"/resource/images?order=asc&{query}")
        assert [each["imageId"] for each in found["images"]] == ids, query


@pytest.mark.parametrize("sort", ["imageId", "imageName", "arch", "processor", "framework", "createTime"])
async def test_images_are_sorted(world: World, sort: str) -> None:
    for step, image in enumerate(IMAGES):
        world.clock.now_ms = START_MS + step * 1000
        await images(world, SZ, *IMAGES[: step + 1])
        del image
    up = (await world.ok("GET", f"/resource/images?sort={sort}&order=asc&centerId=sz-1"))["images"]
    assert [each[sort] for each in up] == sorted(each[sort] for each in up)
    down = (await world.ok("GET", f"/resource/images?sort={sort}&centerId=sz-1"))["images"]
    assert down == up[::-1]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("createAfter=2025-03-02&createBefore=2025-03-01", "0230"),
        ("createAfter=soon", "0202"),
        ("createBefore=", "0202"),
        ("centerId=none", "0210"),
        ("arch=X86", "0202"),
        ("createAfter=soon&page=0", "0204"),
    ],
)
async def test_faults_of_the_image_list(world: World, query: str, code: str) -> None:
    assert (await world.refused("GET", f"/resource/images?{query}"))[:2] == (400, code)
