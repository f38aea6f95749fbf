"""Stories of jobs through the whole leader, on scripted centers."""

from dataclasses import replace
from pathlib import Path

from adapters.fake import TRAITS, Fault, Script
from broker.adapter import Lookup
from broker.core.model import CenterId, OnLost, RemoteId
from broker.store import rounds
from broker.telemetry import BOUND, GAP, OBJECTIVE
from tests.harness import center, harness


async def test_a_job_runs_at_the_cheaper_center(tmp_path: Path) -> None:
    async with harness(tmp_path, center("dear", price="20"), center("cheap", price="5")) as broker:
        job = await broker.submit("train", cards=4)
        await broker.round()
        await broker.expect(job, "RUNNING", at="cheap")
        await broker.pass_time(60)
        await broker.expect(job, "SUCCEEDED", at="cheap", attempts=1)
        view = await broker.show(job)
        assert view.runs[0].cost_micro == 4 * 5_000_000 // 60  # four cards for a minute
        assert len(broker.executions(job)) == 1


async def test_a_lost_reply_is_not_sent_again(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.fail("submit", Fault.LOST_REPLY)
        job = await broker.submit()
        await broker.round()
        assert (await broker.show(job)).runs[0].state == "DOUBT"
        await broker.expect(job, "PENDING")
        await broker.pass_time(200)
        await broker.expect(job, "SUCCEEDED", attempts=1)
        assert len(broker.executions(job)) == 1
        broker.never_twice_at_once()


async def test_a_dropped_request_is_sent_again_only_after_two_looks(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.fail("submit", Fault.DROPPED)
        job = await broker.submit()
        await broker.pass_time(400)
        await broker.expect(job, "SUCCEEDED", attempts=2)
        looks = [call.at_ms for call in fake.calls if call.name == "find"]
        assert len(looks) >= 2
        broker.never_twice_at_once()


async def test_a_restart_between_claim_and_outcome_doubts(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        job = await broker.submit()
        await broker.plan()
        await broker.restart()
        await broker.poll()
        await broker.pass_time(120)
        await broker.expect(job, "SUCCEEDED", attempts=1)
        assert len(broker.executions(job)) == 1


async def test_logs_and_results_are_kept(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(log=b"hello\n", results={"out/model.bin": b"weights"}))
        job = await broker.submit()
        await broker.round()
        await broker.pass_time(61)
        run = (await broker.show(job)).runs[0].id
        assert broker.files.log(run, 0).read_bytes() == b"hello\n"
        assert (broker.files.results(run) / "out/model.bin").read_bytes() == b"weights"


async def test_a_silent_center_makes_runs_unknown_and_they_come_back(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="50")) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.script(Script(run_s=2000))
        job = await broker.submit(on_lost=OnLost.WAIT)
        await broker.round()
        await broker.expect(job, "RUNNING", at="a")
        fake.silence(broker.clock(), broker.clock() + 900_000)
        await broker.pass_time(600)
        await broker.expect(job, "UNKNOWN", attempts=1)
        await broker.pass_time(400)
        await broker.expect(job, "RUNNING", attempts=1)
        await broker.pass_time(1100)
        await broker.expect(job, "SUCCEEDED", attempts=1)


async def test_a_user_stop_beats_everything(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=5000, stop_s=3))
        job = await broker.submit()
        await broker.round()
        await broker.stop(job)
        await broker.expect(job, "RUNNING")
        await broker.pass_time(20)
        await broker.expect(job, "STOPPED", attempts=1)


async def test_a_daemon_that_dies_around_its_calls_runs_every_job_once(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", nodes=4)) as broker:
        made = [await broker.submit(cards=8, nodes=n) for n in (1, 1, 2)]
        await broker.plan()
        await broker.crash("record")  # the center has them, and nobody knows
        for job in made:
            assert [run.state for run in (await broker.show(job)).runs] == ["DOUBT"]
        await broker.pass_time(150)
        for job in made:
            await broker.expect(job, "SUCCEEDED", attempts=1)
            assert len(broker.executions(job)) == 1
        late = await broker.submit()
        await broker.plan()
        await broker.crash("call")  # claimed, and never sent
        await broker.pass_time(200)
        await broker.expect(late, "SUCCEEDED", attempts=2)
        assert len(broker.executions(late)) == 1
        broker.never_twice_at_once()


async def test_a_preempted_job_runs_again_and_pays_nothing(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script_next(Script(run_s=5000, stop_s=8))
        job = await broker.submit(max_retries=1)
        await broker.round()
        await broker.preempt(job)
        await broker.pass_time(120)
        await broker.expect(job, "SUCCEEDED", attempts=2)
        assert (await broker.show(job)).retries_used == 0
        broker.never_twice_at_once()


async def test_a_user_stop_overrides_a_preemption(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=5000, stop_s=8))
        job = await broker.submit()
        await broker.round()
        await broker.preempt(job)
        await broker.stop(job)
        await broker.pass_time(30)
        await broker.expect(job, "STOPPED", attempts=1)


async def test_an_operator_settles_a_doubt(tmp_path: Path) -> None:
    unsearchable = replace(TRAITS, lookup=Lookup.NEITHER)
    async with harness(tmp_path, center("a", traits=unsearchable)) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.fail("submit", Fault.LOST_REPLY, Fault.DROPPED)
        arrived, dropped = await broker.submit(), await broker.submit()
        await broker.pass_time(300)
        runs = {job: (await broker.show(job)).runs for job in (arrived, dropped)}
        assert [[run.state for run in each] for each in runs.values()] == [["DOUBT"], ["DOUBT"]]
        there = {job for job in runs if broker.executions(job)}
        for job, (run,) in runs.items():
            if job in there:
                await broker.resolve(job, remote=RemoteId(run.id))
            else:
                await broker.resolve(job, never_ran=True)
        await broker.pass_time(200)
        for job in runs:
            await broker.expect(job, "SUCCEEDED", attempts=1 if job in there else 2)
            assert len(broker.executions(job)) == 1


async def test_where_looking_proves_only_that_a_run_is_there_nothing_found_ends_no_doubt(
    tmp_path: Path,
) -> None:
    evidence = replace(TRAITS, lookup=Lookup.EVIDENCE)
    async with harness(tmp_path, center("a", traits=evidence)) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.fail("submit", Fault.LOST_REPLY, Fault.DROPPED)
        arrived, dropped = await broker.submit(), await broker.submit()
        await broker.pass_time(3600, step_s=60)
        there = arrived if broker.executions(arrived) else dropped
        lost = dropped if there is arrived else arrived
        await broker.expect(there, "SUCCEEDED", attempts=1)
        (run,) = (await broker.show(lost)).runs
        assert run.state == "DOUBT"
        assert len([call for call in fake.calls if call.name == "find"]) > 10
        await broker.resolve(lost, never_ran=True)
        await broker.pass_time(200)
        await broker.expect(lost, "SUCCEEDED", attempts=2)


async def test_a_round_is_kept_with_its_bound(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=1)) as broker:
        for _ in range(3):
            await broker.submit(cards=4)
        await broker.round()
        (made,) = await broker.store.read(rounds.last_rounds, 10)
        assert (made.queued, made.placed, made.preempted) == (3, 2, 0)
        assert 0 < made.bound_micro <= made.objective_micro
        assert 0 <= made.gap < 1
        assert 0 < made.solve_ms <= made.total_ms
        told = [next(iter(gauge.collect())).samples[0].value for gauge in (OBJECTIVE, BOUND, GAP)]
        assert told == [made.objective_micro, made.bound_micro, made.gap]


async def test_a_placement_tells_what_the_other_centers_were(tmp_path: Path) -> None:
    centers = center("cheap", price="5"), center("dear", price="20"), center("small", cards=2)
    async with harness(tmp_path, *centers) as broker:
        job = await broker.submit(cards=4)
        await broker.round()
        (run,) = (await broker.show(job)).runs
        assert run.center == "cheap"
        dear, small = run.placement["alternatives"]
        assert (dear["centerId"], dear["rateMicroPerHour"], dear["reason"]) == ("dear", 80_000_000, None)
        # an hour at its price, nobody waits there; the tie-break adds less than a thousandth of a fen
        assert dear["weighedCostMicro"] // 10 == 8_000_000
        assert small["rateMicroPerHour"] is None
        assert (small["reason"]["code"], small["reason"]["need"], small["reason"]["have"]) == (
            "cards_per_node",
            4,
            2,
        )
