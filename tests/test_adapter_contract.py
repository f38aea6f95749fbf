"""What every adapter must do, whatever its platform: one module over all of them.

Here: the contract of broker.adapter.Adapter as the broker's loops rely on it.  Not here: the adapters
that it runs over (adapter_subjects.py), and what only one platform does (test_<adapter>.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress

import pytest

from broker.adapter import (
    ArgumentKind,
    CopyRef,
    NoCapacity,
    RawAnswer,
    Refused,
    RemoteState,
    RunRef,
    Unsupported,
    commands_of,
    unstage_of,
)
from broker.core.model import Accuracy, NodeShape, RunId
from tests.adapter_subjects import (
    DEADLINE_S,
    HALF,
    LIVE,
    LOG,
    NODE,
    RESULTS,
    Behaviour,
    Subject,
    far,
    never_submitted,
    opening,
    subject,
)

__all__ = ["far", "opening", "subject"]


async def test_probe_is_whole_and_sane(subject: Subject) -> None:
    inventory = await subject.adapter.probe()
    assert inventory.accuracy is subject.adapter.traits.idle
    assert inventory.as_of_ms > 1_600_000_000_000
    (pool,) = inventory.pools
    assert (pool.native, pool.shape, pool.nodes) == (subject.native, NODE, 2)
    assert sum(free.nodes for free in pool.free) == 2
    assert all((f.cores, f.memory_gib, f.accelerators) == (4, 8, 2) for f in pool.free)


async def test_success_is_seen_with_its_times(subject: Subject) -> None:
    seen = await subject.see(await subject.submit(Behaviour.SUCCEED), RemoteState.SUCCEEDED)
    assert seen.exit_code == 0
    assert seen.started_ms is not None
    assert seen.ended_ms is not None
    assert 1_600_000_000_000 < seen.started_ms <= seen.ended_ms


async def test_failure_is_seen_with_its_exit_code(subject: Subject) -> None:
    seen = await subject.see(await subject.submit(Behaviour.FAIL), RemoteState.FAILED)
    assert (seen.exit_code, seen.host_lost, seen.cannot_start, seen.evicted_by) == (3, False, False, "")
    assert "3" in seen.message


async def test_an_end_is_told_again_the_same(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.FAIL)
    seen = await subject.see(ref, RemoteState.FAILED)
    await subject.adapter.stop(ref, grace_s=1)
    assert (await subject.adapter.observe([ref]))[ref.id] == seen


async def test_find_by_name(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.STAY)
    assert await subject.adapter.find(ref.id) == ref.remote
    assert await subject.adapter.find(RunId("bkzzzzzzzzzz")) is None


async def test_the_same_id_starts_once(subject: Subject) -> None:
    spec = subject.spec(Behaviour.STAY)
    remotes = await asyncio.gather(*(subject.adapter.submit(spec) for _ in range(5)))
    assert len(set(remotes)) == 1
    if subject.adapter.traits.two_phase_create:
        await subject.see(await subject.send(spec), RemoteState.RUNNING)
    await subject.expect_free(2)


async def test_a_stop_ends_a_run(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.STAY)
    await subject.see(ref, RemoteState.RUNNING)
    await subject.adapter.stop(ref, grace_s=5)
    await subject.adapter.stop(ref, grace_s=5)
    seen = await subject.see(ref, RemoteState.STOPPED)
    assert seen.ended_ms is not None
    await subject.expect_free(4)


async def test_stop_and_delete_of_an_unknown_run_are_done(subject: Subject) -> None:
    ref = never_submitted(subject)
    await subject.adapter.stop(ref, grace_s=1)
    await subject.adapter.delete(ref)
    assert await subject.adapter.find(ref.id) is None


async def test_an_unknown_run_is_gone_and_hides_no_other(subject: Subject) -> None:
    unknown, known = never_submitted(subject), await subject.submit(Behaviour.STAY)
    seen = await subject.adapter.observe([unknown, known])
    assert seen[unknown.id].state is RemoteState.GONE
    assert seen[known.id].state in LIVE
    assert await subject.adapter.observe([]) == {}


async def test_logs_from_any_offset(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.SUCCEED)
    await subject.see(ref, RemoteState.SUCCEEDED)
    for offset in (0, 1, 6, len(LOG), len(LOG) + 5):
        assert b"".join([c async for c in subject.adapter.logs(ref, 0, offset)]) == LOG[offset:]
    assert [c async for c in subject.adapter.logs(ref, 7, 0)] == []
    unknown = never_submitted(subject)
    assert [c async for c in subject.adapter.logs(unknown, 0, 0)] == []


async def test_results(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.SUCCEED)
    await subject.see(ref, RemoteState.SUCCEEDED)
    found = {}
    async for result in subject.adapter.results(ref):
        found[result.path] = b"".join([chunk async for chunk in result.chunks])
        assert result.size == len(found[result.path])
    assert found == RESULTS
    unknown = never_submitted(subject)
    assert [r async for r in subject.adapter.results(unknown)] == []


async def test_a_checkpoint_is_seen(subject: Subject) -> None:
    """Where a run can go on from an earlier one, what has been saved is known: only the rest is lost."""
    assert subject.adapter.traits.resume is subject.resumes
    if not subject.resumes:
        return
    saving, other = await subject.submit(Behaviour.SAVE), await subject.submit(Behaviour.STAY)
    started = await subject.see(saving, RemoteState.RUNNING)
    await subject.see(other, RemoteState.RUNNING)
    until = time.monotonic() + DEADLINE_S
    async for _ in subject.tick():
        seen = await subject.adapter.observe([saving, other])
        if (saved_ms := seen[saving.id].checkpoint_ms) is not None:
            break
        assert time.monotonic() < until, f"no checkpoint: {seen}"
    assert started.started_ms is not None
    assert saved_ms is not None
    assert saved_ms // 1000 >= started.started_ms // 1000
    assert seen[other.id].checkpoint_ms is None
    for ref in (saving, other):
        await subject.adapter.stop(ref, grace_s=0)


async def test_a_deleted_run_is_gone(subject: Subject) -> None:
    ref = await subject.submit(Behaviour.SUCCEED)
    await subject.see(ref, RemoteState.SUCCEEDED)
    await subject.adapter.delete(ref)
    await subject.adapter.delete(ref)
    assert (await subject.adapter.observe([ref]))[ref.id].state is RemoteState.GONE
    assert await subject.adapter.find(ref.id) is None


async def test_a_gang_of_two_nodes(subject: Subject) -> None:
    if not subject.adapter.traits.gang:
        with pytest.raises((Refused, Unsupported)):
            await subject.submit(Behaviour.SUCCEED, nodes=2)
        return
    ref = await subject.submit(Behaviour.SUCCEED, nodes=2)
    await subject.see(ref, RemoteState.SUCCEEDED)
    for node in (0, 1):
        assert b"".join([c async for c in subject.adapter.logs(ref, node, 0)]) == LOG


async def test_a_full_center_says_so_and_capacity_comes_back(subject: Subject) -> None:
    gang = subject.adapter.traits.gang
    first = [await subject.submit(Behaviour.STAY, nodes=2 if gang else 1) for _ in range(1 if gang else 2)]
    for ref in first:
        await subject.see(ref, RemoteState.RUNNING)
    await subject.expect_free(0)
    late = subject.spec(Behaviour.STAY)
    if subject.queues:
        waiting = await subject.send(late)
        await subject.see(waiting, RemoteState.PENDING)
    else:
        with pytest.raises(NoCapacity):
            await subject.adapter.submit(late)
        assert await subject.adapter.find(late.id) is None, "a refusal has no effect"
    for ref in first:
        await subject.adapter.stop(ref, grace_s=5)
        await subject.see(ref, RemoteState.STOPPED)
    if subject.queues:
        await subject.see(waiting, RemoteState.RUNNING)
    else:
        await subject.adapter.submit(late)
    await subject.expect_free(2)


async def test_slices_share_a_node(subject: Subject) -> None:
    if await subject.whole_nodes():
        with pytest.raises(Refused):
            await subject.submit(Behaviour.STAY, shape=HALF)
        return
    for left in (3, 2, 1):
        await subject.submit(Behaviour.STAY, shape=HALF)
        await subject.expect_free(left)
    if subject.adapter.traits.idle is Accuracy.EXACT:
        (pool,) = (await subject.adapter.probe()).pools
        assert sorted(free.accelerators for free in pool.free) == [0, 1], "best fit fills a node first"
    if subject.queues:
        await subject.see(await subject.submit(Behaviour.STAY), RemoteState.PENDING)
    else:
        with pytest.raises(NoCapacity):
            await subject.submit(Behaviour.STAY)


@pytest.mark.parametrize(
    ("shape", "nodes", "pool"),
    [
        (NODE, 3, ""),
        (NODE, 1, "h800"),
        (NodeShape("ARM", 1, 1), 1, ""),
        (NodeShape("X86", 5, 1), 1, ""),
        (NodeShape("X86", 1, 1, "Nvidia/GPU/A100", 1, 80), 1, ""),
        (NodeShape("X86", 1, 1, "Nvidia/GPU/A800", 1, 81), 1, ""),
    ],
)
async def test_what_never_fits_is_refused(subject: Subject, shape: NodeShape, nodes: int, pool: str) -> None:
    spec = subject.spec(Behaviour.STAY, shape=shape, nodes=nodes, pool=pool)
    with pytest.raises(Refused):
        await subject.adapter.submit(spec)
    assert await subject.adapter.find(spec.id) is None


async def test_concurrent_submissions_never_overfill(subject: Subject) -> None:
    specs = [subject.spec(Behaviour.STAY) for _ in range(6)]
    answers = await asyncio.gather(*map(subject.send, specs), return_exceptions=True)
    assert sum(isinstance(answer, NoCapacity) for answer in answers) == (0 if subject.queues else 4)
    refs = [answer for answer in answers if isinstance(answer, RunRef)]
    until = time.monotonic() + DEADLINE_S
    running = 0
    async for _ in subject.tick():
        seen = [sighting.state for sighting in (await subject.adapter.observe(refs)).values()]
        if (running := seen.count(RemoteState.RUNNING)) >= 2:
            break
        assert time.monotonic() < until, f"two should run: {seen}"
    assert running == 2
    await subject.expect_free(0)


# ---------------------------------------------------------------- for operators


async def test_the_doctor_finds_a_healthy_center_healthy(subject: Subject) -> None:
    checks = [check async for check in subject.adapter.checks()]
    assert [check for check in checks if not check.ok] == []
    assert checks
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.detail for check in checks), "a check says what it found"


async def test_the_catalogue_is_whole(subject: Subject) -> None:
    images = (await subject.adapter.catalogue()).images
    assert len({(image.id, image.arch) for image in images}) == len(images)
    assert all(image.id and image.native for image in images)


async def test_a_copy_that_is_not_there_is_removed(subject: Subject) -> None:
    """Where copies can be removed at all."""
    unstage = unstage_of(subject.adapter)
    assert unstage is not None
    copy = CopyRef("never-staged", subject.adapter.center, "/nowhere", 1)
    with suppress(Unsupported):
        await unstage(copy)


async def test_a_raw_call_answers_or_is_unsupported(subject: Subject) -> None:
    try:
        answer: RawAnswer | None = await subject.adapter.call("GET", "/no/such/path", None)
    except Unsupported:
        answer = None
    assert answer is None or answer.status >= 200
    with pytest.raises((Refused, Unsupported)):
        await subject.adapter.call("GET", "//elsewhere.example/", None)


async def test_vendor_commands_can_be_shown_and_given(subject: Subject) -> None:
    commands = commands_of(subject.adapter)
    assert len({command.name for command in commands}) == len(commands)
    for command in commands:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", command.name), command.name
        assert command.help, command.name
        names = [argument.name for argument in command.arguments]
        assert len(set(names)) == len(names)
        assert not {"center", "json", "help"} & set(names), "words of the command line itself"
        for argument in command.arguments:
            assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", argument.name), argument.name
            assert argument.help, f"{command.name} {argument.name}"
            assert not (argument.kind is ArgumentKind.FLAG and (argument.required or argument.many))
