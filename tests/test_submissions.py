"""What a platform is told of a job with its submission: its rank, the nodes it wants, and what to go on from.

Here: what dispatch makes of a platform's traits.  Not here: who is sent first (test_preemptor_first.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from adapters.fake import TRAITS, Script
from broker.adapter import RunSpec, Traits
from broker.core.model import RemoteId, Snapshot, Tier
from broker.store import feed
from broker.tables import Run
from tests import builders
from tests.harness import Harness, center, harness
from tests.test_preemption_stories import LONG, events, use, vip_job
from tests.test_preemptor_first import A, broker, crowd, last_run, record

__all__ = ["broker"]

# ---------------------------------------------------------------- what the platform is told


async def sent(
    tmp_path: Path, traits: Traits, *, allow: bool = False, **request: Any
) -> tuple[RunSpec, Harness]:
    """The submission of a VIP job at an idle center with these traits."""
    connection = {"allow_preempt_kill": True} if allow else {}
    async with harness(tmp_path, center("a", traits=traits, connection=connection)) as broker:
        specs = await submissions(broker)
        await vip_job(broker, **request)
        await broker.round()
        (spec,) = specs
        return spec, broker


async def submissions(broker: Harness) -> list[RunSpec]:
    """Collects what center `a` is sent from now on."""
    fake, specs = broker.fakes[A], list[RunSpec]()
    real = fake.submit

    async def spy(run: RunSpec) -> RemoteId:
        specs.append(run)
        return await real(run)

    patch.object(fake, "submit", spy).start()
    return specs


@pytest.fixture(autouse=True)
def unpatched() -> Any:
    yield
    patch.stopall()


PLAIN = (False, 1, (), int(Tier.NORMAL))


@pytest.mark.parametrize(
    ("traits", "allow", "told"),
    [
        ({}, False, PLAIN),
        ({}, True, PLAIN),
        ({"priority": True}, True, (False, 1, (), int(Tier.VIP))),
        ({"vip_wait": True}, True, (True, 1, (), int(Tier.NORMAL))),
        ({"vip_flag": True}, True, (True, 1, (), int(Tier.NORMAL))),
        ({"vip_wait": True, "vip_kill": True}, False, (True, 1, (), int(Tier.NORMAL))),
        ({"vip_wait": True, "vip_kill": True}, True, (True, 2, (), int(Tier.NORMAL))),
        ({"vip_kill": True}, False, PLAIN),
        ({"vip_kill": True}, True, (True, 2, (), int(Tier.NORMAL))),
        ({"node_hold": True}, False, (False, 1, ("n1",), int(Tier.NORMAL))),
    ],
)
async def test_a_platform_is_told_what_it_can_act_on(
    tmp_path: Path, traits: dict[str, Any], allow: bool, told: tuple[Any, ...]
) -> None:
    nodes = ("n1",) if traits.get("node_hold") else ()
    spec, _ = await sent(tmp_path, replace(TRAITS, **traits), allow=allow, vip_nodes=nodes)
    assert (spec.vip, spec.preempt_policy, spec.vip_nodes, spec.priority) == told


async def test_a_platform_does_not_kill_beside_the_victims_of_the_round(tmp_path: Path) -> None:
    traits = replace(TRAITS, vip_wait=True, vip_kill=True)
    connection = {"allow_preempt_kill": True}
    async with harness(tmp_path, center("a", traits=traits, connection=connection)) as broker:
        broker.fakes[A].script(LONG)
        use(broker)
        await crowd(broker)
        specs = await submissions(broker)
        first = await vip_job(broker)
        await broker.pass_time(20)
        await broker.expect(first, "RUNNING")
        assert [(spec.job, spec.vip, spec.preempt_policy) for spec in specs][:1] == [(first, True, 1)]
        assert len(await events(broker, "run.preempted")) == 1


async def test_what_a_platform_kills_by_itself_queues_again_for_nothing(tmp_path: Path) -> None:
    """Nobody here may be stopped for long enough; the platform makes room as its operator allows."""
    traits = replace(TRAITS, vip_wait=True, vip_kill=True)
    connection = {"allow_preempt_kill": True}
    async with harness(tmp_path, center("a", nodes=1, traits=traits, connection=connection)) as broker:
        use(broker)
        broker.fakes[A].script(Script(run_s=7200, evict_s=50, evicted_by="a VIP job"))
        lower = await broker.submit(cards=8, max_retries=0, estimated_run_time_s=7200)
        await broker.round()
        broker.fakes[A].script(Script(run_s=7200))
        specs = await submissions(broker)
        await broker.pass_time(10)
        first = await vip_job(broker)
        await broker.round()
        assert [(spec.job, spec.vip, spec.preempt_policy) for spec in specs] == [(first, True, 2)]
        await broker.pass_time(60)
        await broker.expect(first, "RUNNING", attempts=1)
        view = await broker.show(lower)
        assert (view.status, view.retries_used, len(view.runs)) == ("PENDING", 0, 2)
        assert view.runs[0].failure == "evicted"
        assert "a VIP job" in view.runs[0].message
        assert (await record(broker, lower)).preempted == 0
        assert await events(broker, "run.preempted") == []
        broker.never_twice_at_once()


# ---------------------------------------------------------------- going on


async def test_a_victim_goes_on_from_the_run_whose_checkpoint_was_seen(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", nodes=1)) as broker:
        use(broker)
        broker.fakes[A].script(Script(run_s=7200, checkpoint_s=30))
        lower = await broker.submit(cards=8, resumable=True, estimated_run_time_s=7200)
        await broker.round()
        await broker.pass_time(100)
        begun = await last_run(broker, lower)
        row = (await broker.rows(Run, id=begun))[0]
        assert row.checkpoint_ms == (row.started_ms or 0) + 30_000  # kept again when it is much newer
        (claim,) = (await picture(broker)).claims
        assert claim.checkpoint_ms == row.checkpoint_ms
        broker.fakes[A].script(Script(run_s=60))
        first = await vip_job(broker)
        await broker.plan()
        await broker.send()
        specs = await submissions(broker)
        await broker.pass_time(120)
        await broker.expect(first, "SUCCEEDED")
        row = (await broker.rows(Run, id=begun))[0]
        assert row.checkpoint_ms == (row.started_ms or 0) + 90_000  # the last word of a run that ends
        assert [(spec.job, spec.resume_from) for spec in specs] == [(first, None), (lower, begun)]


async def test_the_evidence_of_a_job_that_cannot_go_on_is_not_counted(broker: Harness) -> None:
    broker.fakes[A].script(Script(run_s=7200, checkpoint_s=5))
    job = await broker.submit()
    await broker.round()
    await broker.pass_time(20)
    assert (await broker.show(job)).runs[0].checkpoint_ms is not None
    (claim,) = (await picture(broker)).claims
    assert claim.checkpoint_ms is None


async def picture(broker: Harness) -> Snapshot:
    """What a round would look at now."""
    await broker.mirror.refresh(broker.store)
    world = await broker.store.read(feed.world, broker.clock())
    accelerators = dict(builders.ACCELERATORS)
    return broker.mirror.snapshot(world, now_ms=broker.clock(), minute_of_week=0, accelerators=accelerators)


async def test_a_job_that_cannot_go_on_is_not_asked_to(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", nodes=1, traits=replace(TRAITS, resume=False))) as broker:
        use(broker)
        broker.fakes[A].script(LONG)
        lower = await broker.submit(cards=8, resumable=True)
        await broker.round()
        await broker.preempt(lower)
        specs = await submissions(broker)
        await broker.pass_time(30)
        assert [(spec.attempt, spec.resume_from) for spec in specs] == [(2, None)]


@pytest.mark.parametrize("seen", [0, -5, 2**62, 1.5, float("nan"), True, "yesterday"])
async def test_a_checkpoint_of_the_future_or_of_no_time_is_no_evidence(tmp_path: Path, seen: Any) -> None:
    from adapters import fake

    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(LONG)
        job = await broker.submit()
        await broker.round()
        with patch.object(fake._Run, "checkpoint", lambda _run, _now: seen):
            await broker.pass_time(20)
        await broker.expect(job, "RUNNING")
        assert (await broker.show(job)).runs[0].checkpoint_ms is None
