"""The tai123 adapter over a service that knows the standard alone, and its parts.

What belongs here: what only this adapter does.  What does not: the contract (test_adapter_contract.py,
over a real broker) and whole daemons (test_tai123_daemon.py).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from adapters import tai123
from adapters.tai123 import Tai123
from adapters.tai123_capacity import Offer, behind_broker, priced
from adapters.tai123_files import Files
from adapters.tai123_jobs import with_data
from broker.adapter import (
    Connection,
    CopyRef,
    Denied,
    NoCapacity,
    PoolReport,
    Refused,
    RemoteState,
    RunRef,
    RunSpec,
    Unavailable,
    Unsupported,
)
from broker.core import hops
from broker.core.model import CenterId, FreeNodes, JobId, NodeShape, Price, RemoteId, RunId, Spec, SpecId
from broker.core.resources import make_spec
from tests.emulators.faults import Fault
from tests.emulators.tai123 import Job, Service, resources

NODE = NodeShape("X86", 4, 8, "Nvidia/GPU/A800", 2, 80)
HALF = NodeShape("X86", 2, 4, "Nvidia/GPU/A800", 1, 80)
OWN = "bk.0000000001"


@asynccontextmanager
async def opened(service: Service, **options: Any) -> AsyncIterator[Tai123]:
    known = {"base_url": service.url, "requests_per_s": 1000.0, "timeout_s": 5.0, **options}
    keys = {"username": "network", "password": "correct horse"}
    adapter = cast(Tai123, await tai123.connect(Connection(CenterId("up"), "bk", known, keys, broker=OWN)))
    try:
        yield adapter
    finally:
        await adapter.aclose()


@asynccontextmanager
async def both(**options: Any) -> AsyncIterator[tuple[Service, Tai123]]:
    async with Service() as service, opened(service, **options) as adapter:
        yield service, adapter


def run(name: str = "bk-0000000001", **more: Any) -> RunSpec:
    known: dict[str, Any] = {
        "id": RunId(name),
        "job": JobId("j-1"),
        "attempt": 1,
        "native_pool": "c1",
        "spec": Spec(SpecId("s"), "s", NODE),
        "nodes": 1,
        "command": "run it",
        "image": "img-44",
        "env": (),
        "max_run_time_s": None,
        "stop_grace_s": 30,
    }
    return RunSpec(**{**known, **more})


async def submitted(adapter: Tai123, name: str = "bk-0000000001", **more: Any) -> RunRef:
    spec = run(name, **more)
    return RunRef(spec.id, spec.job, await adapter.submit(spec), spec.nodes)


# ---------------------------------------------------------------- the standard alone


async def test_only_what_the_standard_has_is_sent() -> None:
    async with both() as (service, adapter):
        assert (adapter.traits.priority, adapter.traits.services, adapter.traits.logs) == (False, False, True)
        assert len((await adapter.catalogue()).images) == 45, "page by page, whatever a page holds"
        await submitted(adapter, env=(("WORD", "it's"),), labels=(("a", "b"),), max_run_time_s=60)
        (job,) = service.jobs.values()
        assert job.config == {
            "centerId": ["c1"],
            "specId": "whole",
            "nodeCount": 1,
            "imageId": "img-44",
            "command": "env 'WORD=it'\"'\"'s' sh -c 'run it'",
        }
        other = await submitted(adapter, "bk-0000000002", image="registry/pt:2")
        assert service.jobs[other.remote.removeprefix("job:")].config["imageUrl"] == "registry/pt:2"


async def test_whole_nodes_follow_from_what_was_offered() -> None:
    async with both() as (service, adapter):
        service.free = [(resources(2, 4, 1), "1")]  # one node is half used, the other whole
        (pool,) = (await adapter.probe()).pools
        assert (pool.native, pool.shape, pool.nodes) == ("c1", NODE, 2)
        assert pool.free == (FreeNodes(2, 4, 1, 1), FreeNodes(0, 0, 0, 1))
        assert {spec.id for spec in pool.specs} == {make_spec(NODE).id, make_spec(HALF).id}
        service.free = []
        (pool,) = (await adapter.probe()).pools
        assert (pool.nodes, pool.free) == (2, (FreeNodes(0, 0, 0, 2),))
        service.total = {"cpu": {}}
        assert "totalResource.memory is None" in (await adapter.probe()).quarantined[0][1]
        service.connected = False
        assert (await adapter.probe()).pools == ()


async def test_what_cannot_be_had_there_is_refused() -> None:
    async with both() as (service, adapter):
        odd = Spec(SpecId("x"), "x", replace(NODE, cores=3))
        for spec in (run(spec=odd), run(nodes=3), run(native_pool="c9")):
            with pytest.raises(Refused):
                await adapter.submit(spec)
        for spec in (run(port=80), run(datasets=(("d", "d1"),))):
            with pytest.raises(Unsupported):
                await adapter.submit(spec)
        with pytest.raises(Unsupported):
            await adapter.stage(CopyRef("d", CenterId("up"), "/nowhere", 1))
        for code, kind in (("0210", NoCapacity), ("0211", Refused), ("0202", Refused)):
            service.refuse = code, "because"
            with pytest.raises(kind, match=f"{code}: no: because"):
                await adapter.submit(run())
        assert service.jobs == {}


async def test_a_lost_create_is_found_by_its_name_and_never_made_twice() -> None:
    async with both() as (service, adapter):
        for number in range(70):
            service.jobs[f"o-{number}"] = Job(f"o-{number}", f"other-{number}", {})
        await adapter.probe()
        service.faults.plan("create", Fault.LOST_REPLY)
        with pytest.raises(Unavailable):
            await adapter.submit(run())
        there = await adapter.find(RunId("bk-0000000001"))
        assert there is not None
        assert await adapter.submit(run()) == there, "0208 is the job that is there"
        assert [job.name for job in service.jobs.values()].count("bk-0000000001") == 1
        service.faults.plan("list", Fault.GARBAGE)
        with pytest.raises(Unavailable):
            await adapter.find(RunId("bk-none"))
        assert await adapter.find(RunId("bk-none")) is None


async def test_an_expired_token_is_renewed_and_a_wrong_password_told() -> None:
    async with both() as (service, adapter):
        await adapter.probe()
        service.faults.plan("create", Fault.EXPIRED_SESSION)
        await submitted(adapter)
        assert len(service.jobs) == 1
        keys = {"username": "network", "password": "incorrect horse"}
        with pytest.raises(Denied, match="username or password are wrong"):
            await tai123.connect(Connection(CenterId("up"), "bk", {"base_url": service.url}, keys))


async def test_states_and_silence() -> None:
    async with both() as (service, adapter):
        refs = [await submitted(adapter, f"bk-000000000{n}") for n in range(7)]
        jobs = [service.jobs[ref.remote.removeprefix("job:")] for ref in refs]
        words = ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "UNKNOWN", "DREAMING")
        for job, word in zip(jobs, words, strict=True):
            job.status = word
        strange = RunRef(RunId("x"), JobId("j"), RemoteId("slm:3"), 1)
        gone = RunRef(RunId("y"), JobId("j"), RemoteId("job:none"), 1)
        for _ in range(2):  # by lists, and what is known from before
            seen = await adapter.observe([*refs, strange, gone])
            assert {ref.id: seen[ref.id].state for ref in refs if ref.id in seen} == {
                **{ref.id: RemoteState(word) for ref, word in zip(refs[:5], words[:5], strict=True)},
                refs[6].id: RemoteState.UNKNOWN,
            }, "UNKNOWN there is no news"
            assert seen[strange.id].state is seen[gone.id].state is RemoteState.GONE
        for ref, job in zip(refs[:3], jobs[:3], strict=True):
            one = await adapter.observe([ref])
            assert one[ref.id].state is RemoteState(job.status), "few are asked for one by one"
        service.faults.plan("show", Fault.DROPPED)
        with pytest.raises(Unavailable):
            await adapter.observe(refs[:1])


async def test_a_stop_and_a_deletion_mean_what_they_say() -> None:
    async with both() as (service, adapter):
        ref = await submitted(adapter)
        (job,) = service.jobs.values()
        with pytest.raises(Unavailable, match="deletion was refused"):
            await adapter.delete(ref)
        job.status = "UNKNOWN"
        with pytest.raises(Unavailable, match="stop was refused"):
            await adapter.stop(ref, grace_s=1)
        job.status = "RUNNING"
        await adapter.stop(ref, grace_s=1)
        await adapter.stop(ref, grace_s=1)
        assert job.status == "STOPPED"
        await adapter.delete(ref)
        await adapter.delete(ref)
        await adapter.stop(ref, grace_s=1)
        assert service.jobs == {}


def packed(**files: bytes) -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w:gz") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return into.getvalue()


async def results_of(adapter: Tai123, ref: RunRef) -> dict[str, bytes]:
    return {
        each.path: b"".join([chunk async for chunk in each.chunks]) async for each in adapter.results(ref)
    }


async def test_logs_and_results() -> None:
    async with both() as (service, adapter):
        ref = await submitted(adapter)
        (job,) = service.jobs.values()
        job.log = b"hello world\n"
        for offset in (0, 6, 100):
            log = b"".join([chunk async for chunk in adapter.logs(ref, 0, offset)])
            assert log == job.log[offset:], "its link opens without a token"
        assert [chunk async for chunk in adapter.logs(ref, 1, 0)] == []
        assert await results_of(adapter, ref) == {}
        for name, body in (("model.bin", b"\0weights"), ("metrics.json", b'{"loss": 1}'), ("empty", b"")):
            job.result = name, body
            assert await results_of(adapter, ref) == {name: body}
        job.result = f"{job.id}.tar.gz", packed(a=b"1", b=b"22")
        assert await results_of(adapter, ref) == {"a": b"1", "b": b"22"}, "and no link"
        job.result = f"{job.id}.tar.gz", packed(a=b"1" * 99999)[:-20]
        with pytest.raises(Unavailable, match=r"no whole tar\.gz"):
            await results_of(adapter, ref)


async def test_the_doctor_and_calls() -> None:
    async with both() as (service, adapter):
        checks = {check.name: check async for check in adapter.checks()}
        assert all(check.ok for check in checks.values())
        assert "a service of the standard" in checks["kind"].detail
        assert (await adapter.call("GET", "/centers", None)).status == 200
        service.faults.plan("centers", Fault.HTML_500)
        failed = [check.name async for check in adapter.checks() if not check.ok]
        assert failed == ["capacity"]


# ---------------------------------------------------------------- parts


def test_labels_of_a_job_that_is_passed_on() -> None:
    first = hops.passed_on((("team", "vision"),), "j-1", "a.0000000001")
    assert first == {"team": "vision", hops.ORIGIN_LABEL: "j-1", hops.HOPS_LABEL: "a.0000000001"}
    second = hops.passed_on(first.items(), "j-2", "b.0000000002")
    assert (second[hops.ORIGIN_LABEL], hops.hops_of(second)) == ("j-1", ("a.0000000001", "b.0000000002"))
    assert hops.why_not({}, "a.0000000001") == hops.why_not(second, "c.0000000003") == ""
    loop = hops.why_not(second, "renamed.0000000001")
    assert "a.0000000001 -> b.0000000002 -> renamed.0000000001" in loop, "known by its installation"
    many = hops.passed_on(((f"k{n}", "") for n in range(64)), "j", "a.0000000001")
    assert len(many) == hops.MAX_LABELS


def broker_pool(native: str, **more: Any) -> dict[str, Any]:
    return {
        "native": native,
        "node": resources(4, 8, 2),
        "splitPermille": 0,
        "nodeCount": "2",
        "accuracy": "exact",
        "observedAtMs": 1_700_000_000_000,
        "freeNodes": [{"resourceSpec": resources(4, 8, 2), "nodeCount": "1"}],
        **more,
    }


def test_pools_behind_a_broker() -> None:
    offers = {"c": [Offer("n", make_spec(NODE))]}
    rows = [
        broker_pool("part-a"),
        broker_pool("part-b", accuracy="estimated", observedAtMs=1_600_000_000_000),
        broker_pool("far@0000000007"),
        broker_pool("back@0000000007.0000000001"),
        broker_pool("deep@" + ".".join(f"{n:010d}" for n in range(10, 18))),
        broker_pool("odd", nodeCount="many"),
    ]
    known: dict[str, Any] = {"other": "0000000009", "own": "0000000001"}
    found = behind_broker([{"centerId": "c", "pools": rows}], offers, open_centers=["c"], **known)
    assert [(pool.native, pool.nodes, str(pool.accuracy)) for pool in found.pools] == [
        ("c@0000000009", 4, "estimated"),
        ("c@0000000009.0000000007", 2, "exact"),
    ]
    assert found.as_of_ms == 1_600_000_000_000
    reasons = [reason for _, reason in found.quarantined]
    assert ["leads back" in reasons[0], "too many" in reasons[1], "many" in reasons[2]] == [True] * 3
    shut = behind_broker([{"centerId": "c", "pools": rows[:1]}], offers, open_centers=[], **known)
    assert shut.pools[0].free == (FreeNodes(0, 0, 0, 2),), "one that takes no jobs has nothing free"


def test_prices_are_those_of_a_card() -> None:
    pool = PoolReport("c", NODE, 2, (), specs=(make_spec(HALF), make_spec(NODE)))
    flat: dict[str, dict[str, object]] = {
        make_spec(NODE).id: {"unitPrice": "25.00", "stated": True, "windows": []}
    }
    assert priced(pool, flat).prices == (Price(12_500_000),)
    window = {"days": ["mon"], "from": "08:00", "to": "22:30", "unitPrice": "30"}
    told = priced(pool, {make_spec(NODE).id: {"unitPrice": "25", "windows": [window]}})
    assert told.prices == (Price(15_000_000, frozenset({0}), 480, 1350),)
    assert priced(pool, {make_spec(NODE).id: {"unitPrice": "0", "stated": False}}).prices == ()


def test_a_command_finds_its_data_by_our_ids() -> None:
    assert with_data("run", ()) == "run"
    made = with_data("run", (("d-1", "d-9"),))
    assert '"$BROKER_DATASETS_DIR"/d-9 ' in made
    assert made.endswith("\nrun")


async def test_a_log_goes_on_over_the_tasks_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was preempted there and began again has one log here."""
    texts = {"t1": b"first\n", "t2": b"second\n"}
    files = Files(cast(Any, None))

    async def told(job: str, task: str, node: int, offset: int) -> AsyncIterator[bytes]:
        for at in range(offset, len(texts[task]), 4):
            yield texts[task][at : at + 4]

    monkeypatch.setattr(files, "_task_log", told)
    runs = [{"taskId": name, "centerId": "c", "nodeCount": 1} for name in texts]
    detail = {"runs": [*runs, {"taskId": "t3", "centerId": ""}]}
    whole = b"".join(texts.values())
    for offset in (8, 0, 3, 6, 13, 20):
        log = b"".join([chunk async for chunk in files.broker_log("j", detail, 0, offset)])
        assert log == whole[offset:]
    assert [chunk async for chunk in files.broker_log("j", detail, 1, 0)] == []
