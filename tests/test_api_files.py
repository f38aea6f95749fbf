"""Logs and results: links, byte-wise reading, following, downloads."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from yarl import URL

from broker.core.events import SeenRunning, SeenSucceeded, WentSilent
from broker.core.model import RunId
from broker.store import runs
from broker.tables import Run
from tests.api_fixtures import START_MS, World, close_world, open_world, together, until, world

__all__ = ["world"]

PLAIN = "contentType=text/plain"


def write_log(world: World, run: str, text: bytes, node: int = 0) -> None:
    path = world.files.log(run, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(text)


async def finished(world: World, name: str = "job", **config: Any) -> tuple[str, str]:
    """A job that succeeded and whose log and results were collected."""
    job = await world.create(name, **config)
    run = await world.run_job(job, SeenRunning(START_MS), SeenSucceeded(START_MS))
    await world.settle(run)
    return job, run


async def log_link(world: World, job: str, run: str, query: str = PLAIN, **kwargs: Any) -> str:
    answer = await world.ok("GET", f"/trainjob/{job}/tasks/{run}/logs/url?{query}", **kwargs)
    assert set(answer) == {"logUrl", "expiresAt"}
    url = urlsplit(answer["logUrl"])
    assert (url.scheme, url.netloc, url.path) == ("http", "broker.example", f"/logs/{run}")
    assert {key for key, _ in parse_qsl(url.query)} == {"contentType", "exp", "sig"}
    return f"{url.path}?{url.query}"


# ---------------------------------------------------------------- the standard's link


async def test_a_log_link_opens_in_a_browser_without_a_token(world: World) -> None:
    job, run = await finished(world)
    write_log(world, run, "训练\nline 2\n".encode())
    answer = await world.call("GET", await log_link(world, job, run), as_=None)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Disposition"] == "inline"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert await answer.text() == "训练\nline 2\n"
    link = await log_link(world, job, run, "contentType=application/octet-stream")
    answer = await world.call("GET", link, as_=None)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert (
        answer.headers["Content-Disposition"]
        == f"attachment; filename=\"{run}.log\"; filename*=UTF-8''{run}.log"
    )
    assert await answer.read() == "训练\nline 2\n".encode()


async def test_logs_of_several_nodes_have_headings(world: World) -> None:
    job, run = await finished(world, nodeCount=11)
    for node in (10, 2, 0):
        write_log(world, run, f"n{node}\n".encode(), node)
    text = await (await world.call("GET", await log_link(world, job, run), as_=None)).text()
    assert text == "n0\n".join(["==== node 0 ====\n", "==== node 2 ====\nn2\n==== node 10 ====\nn10\n"])


async def test_without_a_log_the_link_explains_itself(world: World) -> None:
    job = await world.create()
    run = await world.task(job)
    answer = await world.call("GET", await log_link(world, job, run), as_=None)
    assert await answer.text() == f"Task {run} is PENDING; the broker has no output of it.\n"


@pytest.mark.parametrize(
    ("query", "headers", "taken"),
    [
        ("", {"contentType": "text/plain"}, "text/plain"),
        ("", {"Content-Type": "text/plain; charset=utf-8"}, "text/plain"),
        ("", {"contentType": "text/plain", "Content-Type": "application/json"}, "text/plain"),
        ("", {"contentType": "text/plain", "Content-Type": "application/octet-stream"}, "text/plain"),
        (
            "contentType=application/octet-stream",
            {"contentType": "text/plain", "Content-Type": "text/plain"},
            "application/octet-stream",
        ),
    ],
)
async def test_content_type_may_travel_in_a_header(
    world: World, query: str, headers: dict[str, str], taken: str
) -> None:
    job = await world.create()
    link = await log_link(world, job, await world.task(job), query, headers=headers)
    assert dict(parse_qsl(urlsplit(link).query))["contentType"] == taken


@pytest.mark.parametrize(
    ("path", "headers", "code", "field"),
    [
        ("{job}/tasks/{run}/logs/url", {}, "0203", "contentType"),
        ("{job}/tasks/{run}/logs/url?contentType=text/html", {}, "0202", "contentType"),
        ("{job}/tasks/{run}/logs/url", {"Content-Type": "application/json"}, "0202", "contentType"),
        (f"{{job}}/tasks/bk-0/logs/url?{PLAIN}", {}, "0241", "taskId"),
        (f"{{job}}/tasks/..%2F{{run}}/logs/url?{PLAIN}", {}, "0241", "taskId"),
        (f"j-nope/tasks/{{run}}/logs/url?{PLAIN}", {}, "0240", "there is no job"),
    ],
)
async def test_faults_of_a_log_url(
    world: World, path: str, headers: dict[str, str], code: str, field: str
) -> None:
    job = await world.create()
    target = "/trainjob/" + path.format(job=job, run=await world.task(job))
    status, found, detail = await world.refused("GET", URL(target, encoded=True), headers=headers)  # type: ignore[arg-type]
    assert (status, found) == (400, code)
    assert detail.startswith(field)


async def test_a_foreign_task_is_no_task_of_ones_own_job(world: World) -> None:
    own, foreign = await world.create(), await world.create("foreign", as_="eve")
    task = await world.task(foreign, as_="eve")
    for path in (
        f"/trainjob/{own}/tasks/{{}}/logs/url?contentType=text/plain",
        f"/broker/v1/jobs/{own}/logs?task={{}}",
    ):
        answer, unknown = [await world.refused("GET", path.format(each)) for each in (task, "bk-none")]
        assert answer[:2] == unknown[:2] == (400, "0241")
        assert answer[2].replace(task, "") == unknown[2].replace("bk-none", "")


async def test_a_link_ends_after_five_minutes(world: World) -> None:
    job, run = await finished(world)
    answer = await world.ok("GET", f"/trainjob/{job}/tasks/{run}/logs/url?{PLAIN}")
    assert answer["expiresAt"] == "2025-03-01 10:05:00"
    link = await log_link(world, job, run)
    world.clock.now_ms += 299_000
    assert (await world.call("GET", link, as_=None)).status == 200
    world.clock.now_ms += 1_000
    assert (await world.refused("GET", link, as_=None))[:2] == (401, "0101")


async def test_a_link_ends_when_the_settings_say(tmp_path: Path) -> None:
    world = await open_world(tmp_path, link_ttl_s=7)
    try:
        job, run = await finished(world)
        link = await log_link(world, job, run)
        world.clock.now_ms += 6_000
        assert (await world.call("GET", link, as_=None)).status == 200
        world.clock.now_ms += 1_000
        assert (await world.refused("GET", link, as_=None))[:2] == (401, "0101")
    finally:
        await close_world(world)


async def test_a_changed_link_opens_nothing(world: World) -> None:
    job, run = await finished(world)
    _, other = await finished(world, "other")
    link = await log_link(world, job, run)
    for forged in (
        link.replace(run, other),
        link.replace("text%2Fplain", "application%2Foctet-stream"),
        link.replace("exp=174", "exp=184"),
        link[:-1] + ("0" if link[-1] != "0" else "1"),
        link.partition("&sig=")[0],
        link.partition("&sig=")[0] + "&sig=%E5%AD%97",
        f"/logs/{run}",
        "/logs/..%2F..%2Fbroker.db",
    ):
        assert (await world.refused("GET", forged, as_=None))[:2] == (401, "0101"), forged


async def test_the_link_of_a_deleted_job_leads_nowhere(world: World) -> None:
    job, run = await finished(world)
    link = await log_link(world, job, run)
    await world.call("DELETE", f"/trainjob/{job}")
    assert (await world.refused("GET", link, as_=None))[:2] == (400, "0241")


async def wanted_until(world: World, run: str) -> int | None:
    """Until when somebody wants the log."""
    return await world.store.read(lambda session: session.get_one(Run, run).logs_wanted_ms)


async def wanted(world: World, run: str) -> int:
    """The same, once somebody does."""

    async def known() -> bool:
        return await wanted_until(world, run) is not None

    await until(known)
    return await wanted_until(world, run) or 0


async def test_a_live_log_is_asked_for_and_waited_for(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS))
    write_log(world, run, b"old\n")
    link = await log_link(world, job, run)

    async def track() -> None:
        assert await wanted(world, run) == START_MS + 60_000
        write_log(world, run, b"new\n")
        world.clock.now_ms += 1
        await world.store.write(runs.touch_logs, RunId(run), epoch=world.epoch)

    began = time.monotonic()
    answer, _ = await together(world.call("GET", link, as_=None), track())
    assert await answer.text() == "old\nnew\n"
    assert time.monotonic() - began < 2.5


async def test_a_live_log_that_nobody_copies_is_given_as_it_is(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS))
    write_log(world, run, b"old\n")
    answer = await world.call("GET", await log_link(world, job, run), as_=None)
    assert await answer.text() == "old\n"


# ---------------------------------------------------------------- reading bytes, following


async def test_reading_on_from_an_offset(world: World) -> None:
    job, run = await finished(world, nodeCount=2)
    write_log(world, run, b"0123456789")
    write_log(world, run, b"other", 1)
    path = f"/broker/v1/jobs/{job}/logs"
    for query, text, following in (
        ("", b"0123456789", "10"),
        ("?offset=4", b"456789", "10"),
        ("?offset=10", b"", "10"),
        ("?offset=99", b"", "99"),
        (f"?node=1&task={run}", b"other", "5"),
        ("?follow=0&offset=9", b"9", "10"),
        ("?follow=false&offset=9", b"9", "10"),
    ):
        answer = await world.call("GET", path + query)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert (await answer.read(), answer.headers["X-Log-Offset"]) == (text, following)


async def test_a_job_without_a_log_reads_as_nothing(world: World) -> None:
    job = await world.create()
    answer = await world.call("GET", f"/broker/v1/jobs/{job}/logs")
    assert (answer.status, await answer.read(), answer.headers["X-Log-Offset"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("node=x", "0201"),
        ("node=1", "0204"),
        ("offset=-1", "0204"),
        ("follow=2", "0201"),
        ("task=bk-0", "0241"),
        ("nodes=1", "0202"),
    ],
)
async def test_faults_of_reading_a_log(world: World, query: str, code: str) -> None:
    job, _ = await finished(world)
    assert (await world.refused("GET", f"/broker/v1/jobs/{job}/logs?{query}"))[:2] == (400, code)


async def test_following_ends_when_the_run_has_ended_and_its_log_is_whole(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS))
    write_log(world, run, b"one,")
    answer = await world.call("GET", f"/broker/v1/jobs/{job}/logs?follow=1&offset=2")
    assert "X-Log-Offset" not in answer.headers
    assert await answer.content.readexactly(2) == b"e,"
    assert await wanted(world, run) == START_MS + 60_000
    write_log(world, run, b"two,")
    assert await answer.content.readexactly(4) == b"two,"
    await world.advance(run, SeenSucceeded(START_MS))
    write_log(world, run, b"three")
    assert await answer.content.readexactly(5) == b"three"
    assert not answer.content.at_eof()
    await world.settle(run)
    assert await asyncio.wait_for(answer.content.read(), 5) == b""


async def test_following_ends_at_once_at_shutdown(world: World) -> None:
    job = await world.create()
    await world.run_job(job, SeenRunning(START_MS))
    answer = await world.call("GET", f"/broker/v1/jobs/{job}/logs?follow=1")
    began = time.monotonic()
    await world.client.server.close()
    assert time.monotonic() - began < 1
    assert await answer.content.read() == b""


# ---------------------------------------------------------------- results


def write_result(world: World, run: str, path: str, data: bytes) -> None:
    target = world.files.results(run) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


async def test_one_result_comes_as_it_is(world: World) -> None:
    job, run = await finished(world)
    write_result(world, run, "sub/模型 1.bin", b"\0weights" * 100_000)
    answer = await world.call("GET", f"/trainjob/{job}/download")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Length"] == "800000"
    assert answer.headers["Content-Disposition"] == (
        "attachment; filename=\"__ 1.bin\"; filename*=UTF-8''%E6%A8%A1%E5%9E%8B%201.bin"
    )
    assert await answer.read() == b"\0weights" * 100_000


async def test_several_results_come_as_a_tar_gz(world: World) -> None:
    job, run = await finished(world)
    files = {"a.txt": b"a", "sub/模型.bin": os.urandom(700_000), "empty": b"", "x" * 120 + "/y": b"deep"}
    for path, data in files.items():
        write_result(world, run, path, data)
    (world.files.results(run) / "link").symlink_to("/etc/passwd")
    answer = await world.call("GET", f"/trainjob/{job}/download")
    assert f'filename="{job}.tar.gz"' in answer.headers["Content-Disposition"]
    with tarfile.open(fileobj=io.BytesIO(await answer.read()), mode="r:gz") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert found == files


async def test_results_of_the_newest_run_that_has_any(world: World) -> None:
    job, run = await finished(world)
    write_result(world, run, "one", b"1")
    fresh = await world.ok("POST", f"/broker/v1/jobs/{job}/retry")
    assert (await world.refused("GET", f"/trainjob/{fresh['metadata']['id']}/download"))[:2] == (400, "0202")
    assert await (await world.call("GET", f"/trainjob/{job}/download")).read() == b"1"


async def test_no_results_and_no_end_are_0202(world: World) -> None:
    done, _ = await finished(world)
    assert "no result files" in (await world.refused("GET", f"/trainjob/{done}/download"))[2]
    waiting = await world.create("waiting")
    running = await world.create("running")
    await world.run_job(running, SeenRunning(START_MS))
    for job, status in ((waiting, "PENDING"), (running, "RUNNING")):
        answer = await world.refused("GET", f"/trainjob/{job}/download")
        assert answer[:2] == (400, "0202")
        assert status in answer[2]


async def test_results_of_an_unknown_job_are_tried(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS), WentSilent(START_MS))
    assert (await world.refused("GET", f"/trainjob/{job}/download"))[:2] == (500, "0101")
    write_result(world, run, "one", b"1")
    assert (await world.call("GET", f"/trainjob/{job}/download")).status == 200


async def test_results_on_their_way_are_waited_for(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS), SeenSucceeded(START_MS))

    async def collect() -> None:
        await asyncio.sleep(0.3)
        write_result(world, run, "one", b"1")
        await world.settle(run)

    answer, _ = await together(world.call("GET", f"/trainjob/{job}/download"), collect())
    assert await answer.read() == b"1"


async def test_results_that_do_not_come_are_the_adapters_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.api.results.COLLECT_WAIT_S", 0.2)
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS), SeenSucceeded(START_MS))
    status, code, detail = await world.refused("GET", f"/trainjob/{job}/download")
    assert (status, code) == (500, "0101")
    assert run in detail
