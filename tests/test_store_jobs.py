"""Jobs in the store: names, keys, lists, who sees what, places in the queue, stops and deletions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from adapters.fake import Script
from broker.core.identity import job_id
from broker.core.model import CenterId, JobId, Kind, PublicStatus, Role, RunState, TenantId, Tier
from broker.core.problem import class_key
from broker.store import Rejected, creates, jobs
from broker.store.creates import Admission, KeyReused, NameTaken, NewJob
from broker.store.job_pages import list_jobs
from broker.store.jobs import (
    JobFilter,
    JobSummary,
    NoSuchJob,
    WrongState,
)
from broker.store.paging import Paging
from broker.tables import Idempotency, Job, Outbox, Run
from tests.builders import request
from tests.harness import Harness, asked_for, center, harness

pytestmark = pytest.mark.both_databases


class Declined(Rejected):
    pass


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path, center("a")) as broker:
        yield broker


async def new_job(broker: Harness, number: int, name: str, **changes: Any) -> NewJob:
    caller = await broker.caller("alice")
    wanted = request(1)
    facts: dict[str, Any] = {
        "id": job_id(broker.clock(), number.to_bytes(4, "big")),
        "name": name,
        "desc": "",
        "account": caller.id,
        "tenant": caller.tenant,
        "request": wanted,
        "class_key": class_key(wanted, TenantId(caller.tenant)),
        "processor": "GPU",
    }
    return NewJob(**{**facts, **changes})


async def page(
    broker: Harness, by: str = "alice", paging: Paging | None = None, **wanted: Any
) -> tuple[list[str], int]:
    """Names of one page of a list, and how many match."""
    caller = await broker.caller(by)
    paging = paging or Paging(sort="name", descending=False)
    found, total = await broker.store.read(list_jobs, caller, JobFilter(**wanted), paging)
    return [job.name for job in found], total


# ---------------------------------------------------------------- names and keys


async def test_of_many_jobs_of_one_name_one_is_made(broker: Harness) -> None:
    news = [await new_job(broker, i, "train") for i in range(20)]
    made = await asyncio.gather(*(broker.create(new) for new in news), return_exceptions=True)
    assert len([m for m in made if isinstance(m, JobSummary)]) == 1
    refusals = [m for m in made if isinstance(m, NameTaken)]
    assert len(refusals) == 19
    assert "a job named 'train' already" in str(refusals[0])


async def test_a_name_is_free_for_others_and_again_once_its_job_is_deleted(broker: Harness) -> None:
    first = await broker.submit("train")
    await broker.submit("train", by="bob")
    await broker.stop(first)
    with pytest.raises(NameTaken):
        await broker.submit("train")
    await broker.delete(first)
    assert await broker.submit("train") != first


async def test_a_free_name_is_found(broker: Harness) -> None:
    account = (await broker.caller()).id
    await broker.submit("train")
    await broker.submit("train-2")
    await broker.submit("x" * 64)
    assert await broker.store.read(jobs.free_name, account, "train") == "train-3"
    assert await broker.store.read(jobs.free_name, account, "new") == "new"
    assert await broker.store.read(jobs.free_name, account, "x" * 64) == "x" * 56 + "-2"


async def test_a_repeated_key_gives_the_same_job_with_its_present_status(broker: Harness) -> None:
    keyed: dict[str, Any] = {"key": "k", "body_hash": "h"}
    first = await broker.create(await new_job(broker, 1, "train"), **keyed)
    await broker.stop(first.id)
    again = await broker.create(await new_job(broker, 2, "train"), **keyed)
    assert (again.id, again.status) == (first.id, PublicStatus.STOPPED)
    other = await new_job(broker, 3, "train")
    with pytest.raises(KeyReused, match=first.id):
        await broker.create(other, key="k", body_hash="other")
    await broker.delete(first.id)
    deleted = await broker.create(await new_job(broker, 4, "train"), **keyed)
    assert deleted.id == first.id  # a late repetition must not run the work again
    bob = await broker.caller("bob")
    theirs = await new_job(broker, 5, "train", account=bob.id)
    assert (await broker.create(theirs, **keyed)).id != first.id


async def test_a_key_repeated_at_once_makes_one_job(broker: Harness) -> None:
    keyed: dict[str, Any] = {"key": "k", "body_hash": "h"}
    news = [await new_job(broker, i, "train") for i in range(10)]
    made = await asyncio.gather(*(broker.create(new, **keyed) for new in news))
    assert len({m.id for m in made}) == 1
    assert len(await broker.rows(Run)) == 1


async def test_of_creates_that_wait_together_each_has_its_own_answer(broker: Harness) -> None:
    def no(_facts: Admission) -> NewJob:
        raise Declined("not this one")

    labelled = request(1, labels=(("a", "b"),))
    asked = [
        asked_for(await new_job(broker, 1, "one"), key="k", body_hash="h"),
        replace(asked_for(await new_job(broker, 2, "two")), judge=no),
        asked_for(await new_job(broker, 3, "one")),
        asked_for(await new_job(broker, 4, "other"), key="k", body_hash="h"),
        asked_for(await new_job(broker, 5, "five"), key="k", body_hash="another"),
        asked_for(await new_job(broker, 6, "six", request=labelled)),
    ]
    one, two, taken, again, reused, six = await broker.store.write(creates.create_jobs, asked)
    assert isinstance(one, JobSummary)
    assert isinstance(two, Declined)
    assert isinstance(taken, NameTaken)
    assert one.id in str(taken)
    assert again == one
    assert isinstance(reused, KeyReused)
    assert isinstance(six, JobSummary)
    assert {job.id for job in await broker.rows(Job)} == {one.id, six.id}
    assert {run.job_id for run in await broker.rows(Run)} == {one.id, six.id}
    assert (await page(broker, labels=(("a", "b"),)))[0] == ["six"]
    assert [key.job_id for key in await broker.rows(Idempotency)] == [one.id]


@pytest.mark.parametrize("odd", ["a 'b' \"c\" \\ % : ? {} \t\n 作业 \u2028 $.id", "😀"])
async def test_what_is_written_together_comes_back_as_it_was(broker: Harness, odd: str) -> None:
    wanted = request(1, command=odd, env=(("A", odd),), labels=(("k", odd), ("l", "")))
    rich = await new_job(broker, 1, "rich", desc=odd, request=wanted, estimated_micro=2**62)
    plain = await new_job(broker, 2, "plain", estimated_micro=None)
    await broker.store.write(creates.create_jobs, [asked_for(rich), asked_for(plain, key=odd)])
    first = await broker.show(rich.id)
    assert (first.desc, first.request, first.estimated_micro) == (odd, wanted, 2**62)
    assert (await broker.show(plain.id)).estimated_micro is None
    assert (await page(broker, labels=(("k", odd), ("l", ""))))[0] == ["rich"]
    assert [key.key for key in await broker.rows(Idempotency)] == [odd]
    for row, default in ((Job, Job.model_fields), (Run, Run.model_fields)):
        for name in ("version", "avoid", "attempts", "stop_reason", "message", "tariff", "placement", "slot"):
            if name in default:
                expected = default[name].get_default(call_default_factory=True)
                assert {repr(getattr(each, name)) for each in await broker.rows(row)} == {repr(expected)}


async def test_a_create_that_the_database_refuses_undoes_no_other(broker: Harness) -> None:
    news = [
        await new_job(broker, 1, "one"),
        await new_job(broker, 2, "two", account="nobody"),
        await new_job(broker, 3, "three"),
    ]
    made = await asyncio.gather(*map(broker.create, news), return_exceptions=True)
    assert [isinstance(each, JobSummary) for each in made] == [True, False, True]
    assert isinstance(made[1], IntegrityError)
    assert sorted((await page(broker))[0]) == ["one", "three"]


# ---------------------------------------------------------------- lists


async def test_lists_are_filtered(broker: Harness) -> None:
    await broker.submit("plain")
    await broker.submit("labelled", labels=(("team", "nlp"), ("size", "big")))
    await broker.submit("service", kind=Kind.ONLINE)
    placed = await broker.submit("placed_100%", labels=(("team", "nlp"),))
    created_ms = (await broker.show(placed)).created_ms
    assert (await page(broker, labels=(("team", "nlp"),)))[0] == ["labelled", "placed_100%"]
    assert (await page(broker, labels=(("team", "nlp"), ("size", "big"))))[0] == ["labelled"]
    assert (await page(broker, kind=Kind.ONLINE))[0] == ["service"]
    assert (await page(broker, query="PLAIN"))[0] == ["plain"]
    assert (await page(broker, query="0%"))[0] == ["placed_100%"]
    assert (await page(broker, query="%"))[0] == ["placed_100%"]
    assert (await page(broker, processor="gpu"))[1] == 4
    assert (await page(broker, processor="NPU"))[1] == 0
    broker.clock.now_ms += 1000
    await broker.submit("later")
    assert (await page(broker, created_after_ms=created_ms + 1))[0] == ["later"]
    assert (await page(broker, created_before_ms=created_ms))[1] == 4
    await broker.round()
    assert (await page(broker, center="a"))[1] == 5
    assert (await page(broker, status=PublicStatus.RUNNING))[1] == 5
    assert (await page(broker, status=PublicStatus.FAILED))[1] == 0


async def test_pages_cover_a_list_once_in_every_order(broker: Harness) -> None:
    names = [f"job-{i:02}" for i in range(23)]
    for i, name in enumerate(names):
        if i % 3 == 0:
            broker.clock.now_ms += 1000
        await broker.submit(name)
    for sort in jobs.SORTS:
        for descending in (False, True):
            seen: list[str] = []
            for number in range(1, 5):
                part, total = await page(broker, paging=Paging(number, 7, sort, descending))
                assert total == 23
                seen += part
            assert sorted(seen) == names
            if sort in ("id", "name", "createTime"):
                assert seen == (names[::-1] if descending else names)
    assert await page(broker, paging=Paging(5, 7)) == ([], 23)


async def test_who_sees_which_jobs(broker: Harness) -> None:
    await broker.caller("ann", role=Role.USER, tenant="lab")
    await broker.caller("boss", role=Role.TENANT_ADMIN, tenant="lab")
    await broker.caller("eve", role=Role.USER, tenant="elsewhere")
    mine = await broker.submit("ann's", by="ann")
    await broker.submit("boss's", by="boss")
    theirs = await broker.submit("eve's", by="eve")
    assert (await page(broker, "ann"))[0] == ["ann's"]
    assert (await page(broker, "boss"))[0] == ["ann's", "boss's"]
    assert (await page(broker, "boss", mine=True))[0] == ["boss's"]
    assert (await page(broker, "eve"))[0] == ["eve's"]
    assert (await page(broker, "alice"))[1] == 3
    assert (await page(broker, "alice", mine=True))[1] == 0
    for by, job in (("eve", mine), ("boss", theirs), ("ann", theirs)):
        with pytest.raises(NoSuchJob):
            await broker.store.read(jobs.show_job, await broker.caller(by), job, None, broker.clock())
        with pytest.raises(NoSuchJob):
            await broker.stop(job, by=by)
    await broker.stop(mine, by="boss")
    with pytest.raises(NoSuchJob):  # a training job is not an online one
        await broker.store.read(jobs.show_job, await broker.caller("ann"), mine, Kind.ONLINE, broker.clock())


async def test_places_in_the_queue(broker: Harness) -> None:
    async def position(job: JobId) -> int | None:
        return await broker.store.read(jobs.queue_position, await broker.show(job))

    low = await broker.submit(tier=Tier.LOW)
    first, second = await broker.submit(), await broker.submit()
    broker.clock.now_ms += 1000
    third, high = await broker.submit(), await broker.submit(tier=Tier.HIGH)
    assert [await position(j) for j in (high, first, second, third, low)] == [1, 2, 3, 4, 5]
    await broker.stop(high)
    assert [await position(j) for j in (high, first, low)] == [None, 1, 4]


# ---------------------------------------------------------------- stop and delete


async def test_a_stop_before_the_claim_ends_at_once_and_nothing_is_sent(broker: Harness) -> None:
    job = await broker.submit()
    await broker.plan()
    assert len(await broker.rows(Outbox)) == 1
    await broker.stop(job)
    await broker.expect(job, "STOPPED", attempts=1)
    assert await broker.rows(Outbox) == []
    await broker.stop(job)  # a stopped job is answered as it is
    await broker.round()
    assert broker.executions(job) == []


async def test_an_ended_job_cannot_be_stopped(broker: Harness) -> None:
    job = await broker.submit()
    await broker.round()
    await broker.pass_time(61)
    with pytest.raises(WrongState, match="is SUCCEEDED") as refusal:
        await broker.stop(job)
    assert refusal.value.status is PublicStatus.SUCCEEDED


async def test_a_deleted_job_is_hidden_and_its_remains_are_owed_to_the_end(broker: Harness) -> None:
    fake = broker.fakes[CenterId("a")]
    fake.script(Script(log=b"hello\n"))
    job = await broker.submit("train")
    await broker.round()
    with pytest.raises(WrongState, match="is RUNNING; stop it first"):
        await broker.delete(job)
    await broker.pass_time(60)
    await broker.delete(job)
    with pytest.raises(NoSuchJob):
        await broker.show(job)
    assert await page(broker) == ([], 0)
    (run,) = await broker.rows(Run)
    assert run.delete_owed_ms is not None
    await broker.round()
    (run,) = await broker.rows(Run)
    assert (run.delete_owed_ms, run.owed_next_ms) == (None, None)
    assert [call.name for call in fake.calls].count("delete") == 1


async def test_a_lost_job_can_be_deleted_and_its_run_is_stopped_and_not_collected(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="50")) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.script(Script(run_s=50_000, log=b"secret\n"))
        job = await broker.submit()
        await broker.round()
        fake.silence(broker.clock(), broker.clock() + 400_000)
        await broker.pass_time(390, step_s=30)
        await broker.expect(job, "UNKNOWN")
        run = (await broker.show(job)).runs[0].id
        await broker.delete(job)
        await broker.pass_time(700, step_s=20)
        (row,) = await broker.rows(Run)
        assert row.state == RunState.STOPPED
        assert (row.stop_owed_ms, row.collect_owed_ms, row.delete_owed_ms) == (None, None, None)
        assert row.owed_next_ms is None
        assert not broker.files.logs(run).exists()
        assert [e.end_ms is not None for e in fake.executions] == [True]
