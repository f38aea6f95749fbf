"""The client of the HTTP API against a server on a socket that says what a test tells it to say."""

from __future__ import annotations

import io
import json
import random
import socket
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client, RequestFailed, Unreachable
from broker.client.archive import UnsafeArchive, UnsafeFolder, entries, pack, safe_name, unpack
from tests.cli_stub import (
    Answer,
    Drop,
    Request,
    Stub,
    archive,
    created,
    project,
    refusal,
    served,
    stub,
    unused_url,
)

__all__ = ["stub"]


@pytest.fixture
def client(stub: Stub) -> Client:
    return Client(stub.url, "t-1")


# ---------------------------------------------------------------- one exchange


def test_a_request_carries_the_token_and_its_query(stub: Stub, client: Client) -> None:
    stub.on("GET", "/trainjob", {"items": [], "totalSize": 0})
    assert client.jobs({"label": ["a=1", "b=2"], "status": None, "page": 2})["totalSize"] == 0
    (request,) = stub.requests
    assert request.headers["x-auth-token"] == "t-1"
    assert request.query == {"label": ["a=1", "b=2"], "page": ["2"]}


def test_a_path_prefix_and_odd_ids_are_kept(stub: Stub) -> None:
    stub.on("GET", "/far/broker/v1/jobs/a%2Fb%3F", {"id": "a/b?"})
    assert Client(stub.url + "/far/").job("a/b?")["id"] == "a/b?"


def test_a_refusal_is_told_whole(stub: Stub, client: Client) -> None:
    stub.on("GET", "/centers", refusal("0204", "参数值超出允许范围", "pageSize is 0"))
    with pytest.raises(RequestFailed, match="pageSize is 0") as caught:
        client.centers()
    error = caught.value
    assert (error.status, error.code, error.message, error.request_id) == (
        400,
        "0204",
        "参数值超出允许范围",
        "r-1",
    )


def test_overload_tells_how_long_to_wait(stub: Stub, client: Client) -> None:
    body = json.dumps({"errorCode": "", "errorMsg": "busy"}).encode()
    stub.on("POST", "/trainjob/j/stop", Answer(503, body, {"Retry-After": "7"}))
    with pytest.raises(RequestFailed) as caught:
        client.stop_job("j")
    assert caught.value.retry_after_s == 7
    assert len(stub.requests) == 1


def test_nobody_there() -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        Client(unused_url()).me()


@pytest.mark.parametrize(
    "reply",
    [Answer(body=b"<html>hello"), Answer(body=b"[]"), Answer(502, b"<html>bad gateway")],
    ids=["html", "list", "proxy"],
)
def test_something_else_there(stub: Stub, client: Client, reply: Answer) -> None:
    stub.on("GET", "/centers", reply)
    with pytest.raises(Unreachable):
        client.centers()


def test_an_unknown_page_is_a_refusal(stub: Stub, client: Client) -> None:
    stub.on("GET", "/centers", Answer(404, b"not here"))
    with pytest.raises(RequestFailed, match="404"):
        client.centers()


@pytest.mark.parametrize("url", ["127.0.0.1:8238", "ftp://x", "http://", "http://h:port"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError):
        Client(url)


def test_a_silent_server_is_given_up(stub: Stub) -> None:
    release = threading.Event()

    def silent(request: Request) -> dict[str, Any]:
        release.wait(10)
        return {}

    stub.on("GET", "/centers", silent)
    with pytest.raises(Unreachable, match="no answer in time"):
        Client(stub.url, answer_s=0.1).centers()
    assert len(stub.requests) == 1  # a time limit is not waited for twice
    release.set()


# ---------------------------------------------------------------- repeating


def test_a_broken_get_is_repeated_once(stub: Stub, client: Client) -> None:
    stub.on("GET", "/centers", Drop(), {"centers": [], "totalSize": 0})
    assert client.centers()["centers"] == []
    stub.on("GET", "/centers", Drop(), Drop(), {"centers": [], "totalSize": 0})
    with pytest.raises(Unreachable):
        client.centers()
    assert len(stub.requests) == 4


def test_a_broken_post_or_delete_is_never_repeated(stub: Stub, client: Client) -> None:
    for method, path, call in (
        ("POST", "/trainjob/j/stop", lambda: client.stop_job("j")),
        ("DELETE", "/trainjob/j", lambda: client.delete_job("j")),
        ("POST", "/broker/v1/jobs/j/retry", lambda: client.retry_job("j")),
    ):
        stub.on(method, path, Drop(), created())
        with pytest.raises(Unreachable):
            call()
        assert len(stub.sent(method, path)) == 1


def test_a_create_with_a_lost_answer_is_repeated_with_its_key(stub: Stub, client: Client) -> None:
    stub.on("POST", "/trainjob", Drop(), created())
    assert client.create_job({"jobName": "a", "config": {}})["metadata"]["id"] == "j-1"
    first, second = stub.sent("POST", "/trainjob")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] != ""
    assert first.body == second.body


def test_two_creates_have_two_keys(stub: Stub, client: Client) -> None:
    stub.on("POST", "/trainjob", created())
    client.create_job({"jobName": "a"})
    client.create_job({"jobName": "a"})
    assert len({request.headers["idempotency-key"] for request in stub.requests}) == 2


def test_a_refused_create_is_not_repeated(stub: Stub, client: Client) -> None:
    stub.on("POST", "/trainjob", refusal("0208", "训练作业名称已存在"))
    with pytest.raises(RequestFailed):
        client.create_job({"jobName": "a"})
    assert len(stub.requests) == 1


def test_all_pages_of_a_listing(stub: Stub, client: Client) -> None:
    jobs = [created(f"j-{i}") for i in range(5)]

    def page(request: Request) -> dict[str, Any]:
        start = (int(request.query["page"][0]) - 1) * 2
        return {"items": jobs[start : start + 2], "totalSize": 5}

    stub.on("GET", "/trainjob", page)
    assert [item["metadata"]["id"] for item in client.all_jobs({})] == [f"j-{i}" for i in range(5)]
    assert len(stub.requests) == 3


# ---------------------------------------------------------------- logs


def test_a_broken_log_goes_on_where_it_broke(stub: Stub, client: Client) -> None:
    text = b"0123456789"

    def part(request: Request) -> Answer:
        start = int(request.query["offset"][0])
        end = min(start + 4, len(text))
        return Answer(body=text[start:end], cut=len(text) - end)

    stub.on("GET", "/broker/v1/jobs/j/logs", part)
    assert b"".join(client.logs("j", task="t", node=1, follow=True)) == text
    assert [request.query["offset"] for request in stub.requests] == [["0"], ["4"], ["8"]]
    assert stub.requests[0].query == {"task": ["t"], "node": ["1"], "offset": ["0"], "follow": ["1"]}


def test_a_log_that_stays_broken_ends(stub: Stub, client: Client) -> None:
    stub.on("GET", "/broker/v1/jobs/j/logs", Answer(body=b"", cut=5))
    with pytest.raises(Unreachable, match="broke off"):
        list(client.logs("j"))
    assert len(stub.requests) == 2


# ---------------------------------------------------------------- downloads


def test_many_results_are_unpacked(stub: Stub, client: Client, tmp_path: Path) -> None:
    packed = archive(a=b"1", d__b=b"#!/bin/sh\n", d__last="b")
    stub.on("GET", "/trainjob/j-1/download", served(packed, "j-1.tar.gz"))
    folder = tmp_path / "out" / "deep"
    assert client.download("j-1", folder) == [folder / "a", folder / "d" / "b", folder / "d" / "last"]
    assert (folder / "a").read_bytes() == b"1"
    assert (folder / "d" / "last").read_bytes() == b"#!/bin/sh\n"
    assert (folder / "d" / "b").stat().st_mode & 0o100
    assert not (folder / "a").stat().st_mode & 0o100
    client.download("j-1", folder)  # once more over itself


def test_one_result_keeps_its_name(stub: Stub, client: Client, tmp_path: Path) -> None:
    stub.on("GET", "/trainjob/j-1/download", served(b"weights", "model.bin"))
    assert client.download("j-1", tmp_path) == [tmp_path / "model.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_one_result_that_is_an_archive_stays_one(stub: Stub, client: Client, tmp_path: Path) -> None:
    packed = archive(a=b"1")
    stub.on("GET", "/trainjob/j-1/download", served(packed, "model.tar.gz"))
    assert client.download("j-1", tmp_path) == [tmp_path / "model.tar.gz"]
    assert (tmp_path / "model.tar.gz").read_bytes() == packed


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ('filename="../../etc/passwd"', "passwd"),
        ('filename="..\\\\x"', "x"),
        ('filename="/"', "result"),
        ('filename=".."', "result"),
        ('filename=".bashrc"', "bashrc"),
        ("filename=plain.txt", "plain.txt"),
        ("filename=\"x\"; filename*=UTF-8''%E7%BB%93%E6%9E%9C.txt", "结果.txt"),
        ("filename*=UTF-8''..%2F..%2Fup", "up"),
        ("", "j-1"),
    ],
)
def test_a_servers_name_stays_in_the_folder(
    stub: Stub, client: Client, tmp_path: Path, stated: str, name: str
) -> None:
    folder = tmp_path / "in"
    answer = Answer(body=b"x", headers={"Content-Disposition": f"attachment; {stated}"})
    stub.on("GET", "/trainjob/j-1/download", answer)
    assert client.download("j-1", folder) == [folder / name]
    assert list(tmp_path.rglob("*")) == [folder, folder / name]


def test_a_result_that_breaks_off_leaves_nothing(stub: Stub, client: Client, tmp_path: Path) -> None:
    stub.on("GET", "/trainjob/j-1/download", Answer(body=b"half", cut=4))
    with pytest.raises(Unreachable, match="broke off"):
        client.download("j-1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_breaks_off_is_no_success(stub: Stub, client: Client, tmp_path: Path) -> None:
    packed = archive(a=b"1" * 5000)
    answer = served(packed[:-20], "j-1.tar.gz")
    answer.cut = 20
    stub.on("GET", "/trainjob/j-1/download", answer)
    with pytest.raises((Unreachable, UnsafeArchive)):
        client.download("j-1", tmp_path)


@pytest.mark.parametrize(
    "packed",
    [
        archive(UP__out=b"x"),
        archive(a__UP__UP__out=b"x"),
        archive(**{"/tmp/computing-broker-out": b"x"}),
        archive(out="/etc/passwd"),
        archive(out="../elsewhere"),
        archive(d__up="..", d__far="up/../.."),
    ],
    ids=["parent", "deep-parent", "absolute", "absolute-link", "link", "link-through-link"],
)
def test_an_archive_that_leaves_the_folder_is_refused(tmp_path: Path, packed: bytes) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(UnsafeArchive):
        unpack(io.BytesIO(packed), folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert all(path.resolve().is_relative_to(folder.resolve()) for path in folder.rglob("*"))


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "kept").write_bytes(b"old")
    (folder / "d").symlink_to(outside)
    (folder / "kept").symlink_to(outside / "kept")
    with pytest.raises(UnsafeArchive):
        unpack(io.BytesIO(archive(d__x=b"new")), folder)
    unpack(io.BytesIO(archive(kept=b"new")), folder)
    assert (folder / "kept").read_bytes() == b"new"
    assert not (folder / "kept").is_symlink()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"kept": b"old"}


@pytest.mark.parametrize("name", ["a", "结果.bin", "x y"])
def test_a_harmless_name_stays(name: str) -> None:
    assert safe_name(name) == name


# ---------------------------------------------------------------- uploads


def test_a_folder_is_sent_whole(stub: Stub, client: Client, tmp_path: Path) -> None:
    stub.on("POST", "/broker/v1/uploads", {"id": "d-1", "bytes": 9, "files": 4})
    folder = project(tmp_path / "p")
    assert client.upload(folder, "my job")["id"] == "d-1"
    (request,) = stub.requests
    assert request.query == {"title": ["my job"]}
    assert request.headers["content-type"] == "application/gzip"
    assert request.headers["x-auth-token"] == "t-1"
    back = tmp_path / "back"
    back.mkdir()
    unpack(io.BytesIO(request.body), back)
    names = sorted(str(path.relative_to(back)) for path in back.rglob("*"))
    assert names == [
        "also",
        "also/big",
        "also/link",
        "data",
        "data/big",
        "data/link",
        "hard",
        "run.sh",
        "train.py",
    ]
    assert (back / "data" / "big").read_bytes() == (folder / "data" / "big").read_bytes()
    assert (back / "run.sh").stat().st_mode & 0o100
    assert not (back / "data" / "link").is_symlink()
    assert (back / "data" / "link").read_text() == (back / "hard").read_text() == "print(1)\n"
    with tarfile.open(fileobj=io.BytesIO(request.body)) as tar:
        members = tar.getmembers()
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
    assert all(member.isreg() or member.isdir() for member in members)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../outside", "data/../../outside", "missing", "leak", ".", "../p"]
)
def test_a_folder_with_a_link_out_of_it_is_not_sent(
    stub: Stub, client: Client, tmp_path: Path, target: str
) -> None:
    folder = project(tmp_path / "p")
    (tmp_path / "outside").write_text("secret")
    (folder / "leak").symlink_to(target)
    with pytest.raises(UnsafeFolder, match="leak"):
        client.upload(folder, "x")
    assert stub.requests == []


def test_links_that_lead_in_circles_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(f"../{other}")
    with pytest.raises(UnsafeFolder, match="which it is in"):
        entries(tmp_path)


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFolder, match="is not a folder"):
        entries(tmp_path / "none")


def test_a_refused_upload_is_told_and_not_repeated(stub: Stub, client: Client, tmp_path: Path) -> None:
    stub.on("POST", "/broker/v1/uploads", refusal("0204", "参数值超出允许范围", "more than 10 bytes"))
    with pytest.raises(RequestFailed, match="more than 10 bytes"):
        client.upload(project(tmp_path / "p"), "x")
    assert len(stub.requests) == 1


def test_an_upload_refused_in_its_middle_is_told(tmp_path: Path) -> None:
    """A server that answers and closes while megabytes are still on their way."""
    folder = tmp_path / "p"
    folder.mkdir()
    with (folder / "big").open("wb") as file:
        file.write(random.Random(1).randbytes(8 << 20))
    answer = refusal("0204", "参数值超出允许范围", "too big")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1 << 16)
                length = f"Content-Length: {len(answer.body)}\r\n"
                peer.sendall(f"HTTP/1.1 400 Bad Request\r\n{length}\r\n".encode() + answer.body)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 16):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(RequestFailed, match="too big"):
            Client(f"http://127.0.0.1:{server.getsockname()[1]}").upload(folder, "x")
        thread.join()


def test_packing_and_unpacking_are_inverse(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    (folder / "empty" / "deep").mkdir(parents=True)
    (folder / "长名字").write_bytes(b"x" * 10_000)
    out = io.BytesIO()
    pack(entries(folder), out)
    back = tmp_path / "b"
    back.mkdir()
    unpack(io.BytesIO(out.getvalue()), back)
    assert (back / "empty" / "deep").is_dir()
    assert (back / "长名字").read_bytes() == b"x" * 10_000
