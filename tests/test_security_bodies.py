"""JSON from strangers, clients and centers alike: depth, numbers, many keys, keys twice, sizes.

What belongs here: that a body or an answer made to hurt is refused, at little cost.  What does not: what
each field may be (test_api_create.py and its neighbours).
"""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from adapters.http import MAX_ANSWER_BYTES, MAX_TOLD, Request
from adapters.values import number, parse_json
from broker.adapter import Asset, Catalogue, Image, Refused, RemoteState, Sighting, Unavailable
from broker.api.dataset_upload import MAX_PARTS
from broker.api.reading import MAX_DEPTH
from broker.core.model import CenterId, RemoteId, RunState
from broker.inventory import CATALOGUE_PERIOD_S
from broker.reports import MOST_MESSAGE, MOST_REMOTE, readable
from broker.tables import Asset as AssetRow
from broker.tables import Center, Event, Run
from broker.tables import Image as ImageRow
from tests.api_fixtures import World, create_body, token_of, world
from tests.harness import center, harness
from tests.http_center import call, collected, failing, opened
from tests.raw_server import Answer, Arrived, answer, document

__all__ = ["world"]

LOGIN: dict[str, Any] = {"authMethod": "password", "user": {"name": "alice", "password": "x"}}


def nested(depth: int) -> bytes:
    return b'{"jobName": ' + b"[" * depth + b"]" * depth + b"}"


# ---------------------------------------------------------------- from clients


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 930, 960, 990, 1010, 25_000])
async def test_a_body_nested_deeply_is_refused(world: World, depth: int) -> None:
    """At every depth: the parser, the look at each text and the wording each have limits of their own."""
    status, code, _ = await world.refused("POST", "/trainjob", nested(depth))
    assert (status, code) == (400, "0201")
    objects = b'{"a":' * depth + b"1" + b"}" * depth
    assert (await world.refused("POST", "/auth/tokens", objects, as_=None))[:2] == (400, "0201")


@pytest.mark.parametrize(
    "digits", ["9" * 5000, "1e999999999", "-1e999999999", "1" + "0" * 100, "1e-999999999"]
)
async def test_a_huge_number_is_refused(world: World, digits: str) -> None:
    body = json.dumps(create_body(nodeCount=7)).replace("7", digits).encode()
    assert (await world.refused("POST", "/trainjob", body))[0] == 400


async def test_ten_thousands_of_keys_cost_one_wording(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be compared with every name that is known, and one alone is told."""
    worded = []
    compared = difflib.get_close_matches

    def counted(*arguments: Any, **more: Any) -> Any:
        worded.append(arguments[0])
        return compared(*arguments, **more)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    many = {f"k{i}": 1 for i in range(10_000)}
    for path, body, who in (("/auth/tokens", LOGIN, None), ("/trainjob", create_body(), "alice")):
        status, code, detail = await world.refused("POST", path, {**body, **many}, as_=who)
        assert (status, code) == (400, "0202")
        assert detail.startswith("k0: not a known field")
    query = "&".join(f"k{i}=1" for i in range(700))
    assert (await world.refused("GET", f"/trainjob?{query}"))[:2] == (400, "0202")
    assert len(worded) == 3


async def test_a_key_of_a_hundred_thousand_characters_is_not_repeated(world: World) -> None:
    status, code, detail = await world.refused("POST", "/trainjob", {**create_body(), "k" * 100_000: 1})
    assert (status, code) == (400, "0202")
    assert len(detail) < 300


async def test_a_key_that_is_there_twice_is_refused(world: World) -> None:
    body = json.dumps(create_body())[:-1] + ', "jobName": "other"}'
    status, code, detail = await world.refused("POST", "/trainjob", body.encode())
    assert (status, code) == (400, "0201")
    assert "'jobName' is there twice" in detail
    many = "{" + ",".join(f'"k{i}":1' for i in range(15_000)) + ',"k14999":1}'
    assert (await world.refused("POST", "/trainjob", many.encode()))[:2] == (400, "0201")


async def test_a_body_is_counted_whatever_its_header_says(world: World) -> None:
    async def endless() -> Any:
        for _ in range(1000):
            yield b" " * 1000

    assert (await world.refused("POST", "/trainjob", b" " * 200_001))[:2] == (400, "0204")
    token = {"X-Auth-Token": token_of("alice")}
    found = await world.client.post("/trainjob", data=endless(), headers=token)
    assert (found.status, (await found.json())["errorCode"]) == (400, "0204")
    bomb = zlib.compress(b" " * 50_000_000)
    assert len(bomb) < 200_000
    squeezed = {"Content-Encoding": "deflate"}
    assert (await world.refused("POST", "/trainjob", bomb, headers=squeezed))[:2] == (400, "0204")


async def test_a_form_has_so_many_parts_and_no_more(world: World) -> None:
    part = '--b\r\nContent-Disposition: form-data; name="x{}"\r\n\r\n1\r\n'
    form = "".join(part.format(i) for i in range(MAX_PARTS + 1)) + "--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    status, code, detail = await world.refused("POST", "/datasets/upload", form.encode(), headers=headers)
    assert (status, code) == (400, "0202")
    assert f"at most {MAX_PARTS} parts" in detail


# ---------------------------------------------------------------- from centers


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"n": ' + "9" * 5000 + "}",
        '{"n": 1e99999999999999999999}',
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
    ],
    ids=["arrays", "objects", "digits", "exponent", "NaN", "twice"],
)
async def test_an_answer_that_is_a_bomb_is_an_answer_that_cannot_be_read(text: str) -> None:
    async with opened(answer(text)) as (server, made):
        with pytest.raises(Unavailable):
            await made.json(call(server.url), lambda _status, found: found)


def test_a_million_keys_of_a_center_are_looked_at_once() -> None:
    """The one that is twice was looked for by counting each: hours for an answer within the limit."""
    text = "{" + ",".join(f'"k{i}":1' for i in range(300_000)) + ',"k299999":1}'
    with pytest.raises(ValueError, match="'k299999' is there twice"):
        parse_json(text.encode())


def test_a_number_of_a_center_with_a_huge_exponent_is_never_written_out() -> None:
    for text in ("1e999999999", "-1e400", "1e-999999999"):
        with pytest.raises(Unavailable):
            number(parse_json(text.encode()), "price")


async def test_an_answer_of_gigabytes_is_cut_off() -> None:
    """Nothing of it is kept beyond the limit, and the connection is closed: it cannot go on sending."""

    def endless(_request: Arrived) -> Answer:
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
            + b" " * (MAX_ANSWER_BYTES + (1 << 20))
        )

    async with opened(endless) as (server, made):
        text = await failing(made, call(server.url), Unavailable)
        assert f"more than {MAX_ANSWER_BYTES} bytes" in text
        assert len(server.requests) == 1


async def test_an_answer_that_unpacks_to_gigabytes_is_cut_off() -> None:
    bomb = gzip.compress(b" " * (MAX_ANSWER_BYTES * 4))
    assert len(bomb) < 1 << 20
    packed = answer("", headers={"Content-Encoding": "gzip"}).replace(
        b"Content-Length: 0", f"Content-Length: {len(bomb)}".encode()
    )
    async with opened(packed + bomb) as (server, made):
        assert f"more than {MAX_ANSWER_BYTES} bytes" in await failing(made, call(server.url), Unavailable)


async def test_a_header_of_megabytes_is_refused() -> None:
    async with opened(answer("{}", headers={"X": "y" * (2 << 20)})) as (server, made):
        await failing(made, call(server.url), Unavailable)


async def test_a_download_has_its_own_limit() -> None:
    async with opened(answer(b"x" * 100_000, kind="application/octet-stream")) as (server, made):
        request = Request("file", "GET", f"{server.url}/f", effect=False, max_bytes=50_000)
        with pytest.raises(Unavailable, match="more than 50000 bytes"):
            await collected(made.download(request))


# ---------------------------------------------------------------- what is kept of a center's words

NOW_MS = 1_740_794_400_000


def test_what_a_center_says_of_a_run_is_cut_to_what_is_kept() -> None:
    seen = readable(
        Sighting(
            RemoteState.FAILED,
            started_ms=10**25,
            ended_ms=NOW_MS + 2 * 86_400_000,
            exit_code=10**30,
            evicted_by="x" * 10**6,
            address="http://" + "a" * 10**6,
            message="m" * 10**6,
            checkpoint_ms=-5,
        ),
        NOW_MS,
    )
    assert (seen.started_ms, seen.ended_ms, seen.exit_code, seen.checkpoint_ms) == (None, None, None, None)
    assert seen.address == ""
    assert len(seen.message) == MOST_MESSAGE + 1
    assert len(seen.evicted_by) <= 255
    told = Sighting(RemoteState.FAILED, NOW_MS - 5, NOW_MS + 1000, 137, message="m", address="http://a")
    assert readable(told, NOW_MS) == told


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["\0", "\ud800"])
async def test_a_run_ends_whatever_its_center_says_of_it(tmp_path: Path, odd: str) -> None:
    """A text that no database takes must not keep the run, and those looked at with it, as they were."""
    said = f"a line\nof {odd}"
    failed = Sighting(RemoteState.FAILED, message=said, address=said)
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.round()
        run = (await broker.show(job)).runs[0].id
        with patch.object(broker.fakes[CenterId("a")], "observe", return_value={run: failed}):
            await broker.look()
        (row,) = await broker.rows(Run, id=run)
        assert (row.state, row.message) == (RunState.FAILED.value, "a line\nof ?")


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["\0", "\ud800"])
async def test_a_refusal_is_recorded_whatever_its_words(tmp_path: Path, odd: str) -> None:
    refusal = Refused(f"no {odd}")
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        with patch.object(broker.fakes[CenterId("a")], "submit", side_effect=refusal):
            await broker.round()
        (first, *_) = (await broker.show(job)).runs
        assert (first.state, first.message) == (RunState.FAILED, "no ?")
        with patch.object(broker.fakes[CenterId("a")], "probe", side_effect=refusal):
            await broker.poll()
        assert [row.error for row in await broker.rows(Center)] == ["Refused: no ?"]
        told = [event.data.get("message") for event in await broker.rows(Event, kind="run.changed")]
        assert "no ?" in told


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["\0", "\ud800", "x" * MOST_REMOTE])
async def test_no_run_is_kept_under_a_name_that_is_none(tmp_path: Path, odd: str) -> None:
    """It is in doubt until its center tells one that can be kept; whoever looks for it goes on."""
    name = RemoteId(f"job:{odd}")
    async with harness(tmp_path, center("a")) as broker:
        fake, job = broker.fakes[CenterId("a")], await broker.submit()
        with patch.object(fake, "submit", return_value=name), patch.object(fake, "find", return_value=name):
            await broker.pass_time(1200, step_s=600)
            (row,) = await broker.rows(Run, job_id=job)
            assert (row.state, row.remote_id) == (RunState.DOUBT.value, None)
        with patch.object(fake, "find", return_value=RemoteId("job:1")):
            await broker.look()
        (row,) = await broker.rows(Run, job_id=job)
        assert row.remote_id == "job:1"


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["\0", "\ud800"])
async def test_a_catalogue_is_kept_whatever_its_words(tmp_path: Path, odd: str) -> None:
    images = [Image("cuda", "1", name=f"cuda {odd}"), Image(f"odd{odd}", "2"), Image("none", f"3{odd}")]
    datasets = [Asset("1", f"title {odd}", id="data", labels=f"a,{odd}"), Asset(f"2{odd}", "odd")]
    listed = Catalogue(images=tuple(images), datasets=tuple(datasets))
    async with harness(tmp_path, center("a")) as broker:
        broker.clock.now_ms += CATALOGUE_PERIOD_S * 1000
        with patch.object(broker.fakes[CenterId("a")], "catalogue", return_value=listed):
            await broker.poll()
        assert [(row.id, row.name) for row in await broker.rows(ImageRow)] == [("cuda", "cuda ?")]
        assert [(row.id, row.title, row.labels) for row in await broker.rows(AssetRow)] == [
            ("data", "title ?", "a,?")
        ]


async def test_an_error_of_megabytes_is_told_in_a_line() -> None:
    words = "no " * 10**6
    refusal = document({"code": 9, "msg": words}, status=400)
    async with opened(refusal) as (server, made):
        text = await failing(made, call(server.url, "POST", effect=True), Refused)
        assert len(text) <= MAX_TOLD + 1
        assert text.startswith("no no no")
