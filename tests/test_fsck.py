"""Every invariant of `broker fsck`, broken in a real database and told; see broker/store/checks.py."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.fake import TRAITS
from broker.adapter import Connection, Lookup, RemoteState, RunRef, Sighting
from broker.companions import read_settings
from broker.core.model import CenterId, RunId
from broker.daemon import factories
from broker.fsck import check_centers, check_store
from broker.store import StoreUnavailable, checks
from broker.store.checks import INVARIANTS, Finding
from broker.store.read_only import look
from tests.daemon_process import DaemonProcess, daemon, eventually, local_center
from tests.harness import center, harness

LATER_MS = 10**15


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a job in every stage: waiting, sent, taken, running, ended, stopped, preempted."""
    folder = tmp_path_factory.mktemp("sound")

    async def fill() -> None:
        async with harness(folder, center("a", cards=8, nodes=2)) as broker:
            for name in ("done", "more"):
                await broker.submit(name, cards=1)
            await broker.round()
            await broker.pass_time(120)
            running = await broker.submit("running", cards=8)
            await broker.round()
            await broker.stop(await broker.submit("stopped", cards=8))
            await broker.submit("taken", cards=8)
            await broker.plan()
            await broker.send()
            await broker.submit("waits", cards=8)
            await broker.plan()
            assert (await broker.show(running)).runs[-1].state == "RUNNING"

    asyncio.run(fill())
    (found,) = folder.glob("*.db")
    return found


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "broker.db"
    with sqlite3.connect(sound) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    return copy


def findings(store: Path) -> list[Finding]:
    return look(f"sqlite:///{store}", lambda session: checks.check(session, LATER_MS))


def breaking(store: Path, *statements: str) -> None:
    """Change rows behind the broker's back, past keys and indexes."""
    connection = sqlite3.connect(store)
    try:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, f"nothing was changed: {statement}"
        connection.commit()
    finally:
        connection.close()


RUNNING = "(SELECT id FROM run WHERE state = 'RUNNING' LIMIT 1)"
ENDED = "(SELECT id FROM run WHERE state = 'SUCCEEDED' LIMIT 1)"
TAKEN = "(SELECT id FROM run WHERE state IN ('PENDING', 'RUNNING') ORDER BY id LIMIT 1)"
WAITING = "(SELECT id FROM job WHERE state = 'QUEUED' LIMIT 1)"
ACTIVE = "(SELECT id FROM job WHERE state = 'ACTIVE' LIMIT 1)"
DONE = "(SELECT id FROM job WHERE state = 'SUCCEEDED' LIMIT 1)"
BREAKS: dict[str, tuple[str, ...]] = {
    "one-live-run": (
        "DROP INDEX ix_run_one_live",
        f"UPDATE run SET job_id = (SELECT job_id FROM run WHERE id = {RUNNING}) WHERE state = 'NEW'",
    ),
    "job-without-run": (f"UPDATE run SET state = 'FAILED' WHERE id = {RUNNING}",),
    "ended-job-lives": (f"UPDATE job SET state = 'FAILED' WHERE id = {ACTIVE}",),
    "queued-job-placed": (f"UPDATE job SET state = 'ACTIVE' WHERE id = {WAITING}",),
    "run-without-center": (f"UPDATE run SET center_id = NULL WHERE id = {RUNNING}",),
    "run-without-remote": (f"UPDATE run SET remote_id = NULL WHERE id = {RUNNING}",),
    "unknown-state": (f"UPDATE run SET state = 'SLEEPING' WHERE id = {ENDED}",),
    "end-without-time": (f"UPDATE run SET ended_ms = NULL WHERE id = {ENDED}",),
    "status-differs": (f"UPDATE job SET status = 'RUNNING' WHERE id = {DONE}",),
    "attempts-differ": (f"UPDATE job SET attempts = 4 WHERE id = {DONE}",),
    "submission-without-intent": (f"UPDATE run SET state = 'SUBMITTING' WHERE id = {RUNNING}",),
    "intent-without-submission": (
        "INSERT INTO outbox (run_id, action, center_id, not_before_ms, not_after_ms, epoch)"
        f" VALUES ({RUNNING}, 'submit', 'a', 0, 0, 1)",
    ),
    "claim-forgotten": (
        f"UPDATE run SET state = 'SUBMITTING' WHERE id = {RUNNING}",
        "INSERT INTO outbox (run_id, action, center_id, not_before_ms, not_after_ms, epoch, claimed_ms)"
        " VALUES ((SELECT id FROM run WHERE state = 'SUBMITTING' LIMIT 1), 'submit', 'a', 0, 0, 999, 1)",
    ),
    "start-unexplained": (f"DELETE FROM event WHERE kind = 'run.changed' AND run_id = {ENDED}",),
    "stop-not-owed": (f"UPDATE run SET stop_reason = 'cancel', stop_since_ms = 1 WHERE id = {RUNNING}",),
    "debt-without-try": (f"UPDATE run SET collect_owed_ms = 1, owed_next_ms = NULL WHERE id = {ENDED}",),
    "try-without-debt": (f"UPDATE run SET owed_next_ms = 1 WHERE id = {RUNNING}",),
    "victim-of-nobody": (f"UPDATE run SET stop_for = {ENDED} WHERE id = {RUNNING}",),
    "archived-center-lives": ("UPDATE center SET archived_ms = 1",),
    "reservation-without-wait": (
        "INSERT INTO reservation (pool_id, slot, nodes, node_names, job_id, not_before_ms, expires_ms, why)"
        f" VALUES ('a/p', 1, 1, '[]', {DONE}, 0, 0, '')",
    ),
    "copy-overfull": (
        "INSERT INTO dataset (id, account_id, tenant_id, title, desc, labels, tags, bytes, md5, public,"
        " created_ms)"
        " SELECT 'd-1', id, tenant_id, 't', '', '', '', 5, '', 0, 0 FROM account LIMIT 1",
        "INSERT INTO copy (dataset_id, center_id, state, remote, bytes, bytes_done, message, used_ms,"
        " tries, next_ms) VALUES ('d-1', 'a', 'READY', 'r', 5, 6, '', 0, 0, 0)",
    ),
    "run-not-metered": (
        "DELETE FROM bill WHERE run_id = (SELECT run_id FROM meter ORDER BY ended_ms DESC LIMIT 1)",
        "DELETE FROM meter WHERE run_id = (SELECT run_id FROM meter ORDER BY ended_ms DESC LIMIT 1)",
        "UPDATE meter SET ended_ms = 1",
    ),
    "metered-alive": (f"UPDATE meter SET run_id = {RUNNING} WHERE run_id = {ENDED}",),
    "bill-differs": (f"DELETE FROM bill WHERE run_id = {ENDED}",),
    "spent-differs": ("UPDATE purse SET spent_micro = spent_micro + 1",),
    "events-with-gaps": ("DELETE FROM event WHERE seq = 3",),
    "events-misnumbered": ("UPDATE counter SET value = value + 1 WHERE name = 'events'",),
    "repeat-without-job": (
        "INSERT INTO idempotency (account_id, key, body_hash, job_id, created_ms)"
        " VALUES ('nobody', 'k', '', 'j-none', 0)",
    ),
    "index-missing": ("DROP INDEX ix_run_owed",),
    "row-missing": (f"UPDATE run SET job_id = 'j-none' WHERE id = {ENDED}",),
}


def test_a_sound_store_has_no_findings(store: Path) -> None:
    assert findings(store) == []


def test_every_invariant_has_a_test() -> None:
    assert {each.id for each in INVARIANTS} | {"index-missing", "row-missing"} == set(BREAKS)


@pytest.mark.parametrize("id", sorted(BREAKS))
def test_what_breaks_an_invariant_is_told(store: Path, id: str) -> None:
    breaking(store, *BREAKS[id])
    found = [each for each in findings(store) if each.id == id]
    assert found
    assert all(each.subject and each.detail and each.advice for each in found)


def test_a_damaged_file_is_told(store: Path) -> None:
    connection = sqlite3.connect(store)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_event_job'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with store.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)
    assert {each.id for each in findings(store)} == {"file-damaged"}


def test_looking_cannot_change_the_store(store: Path) -> None:
    from sqlalchemy import text

    with pytest.raises(StoreUnavailable, match="readonly"):
        look(f"sqlite:///{store}", lambda session: session.execute(text("DELETE FROM event")))


def test_a_database_of_another_schema_is_not_touched(store: Path) -> None:
    breaking(store, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(StoreUnavailable, match="at schema 0001, and this program reads schema"):
        findings(store)
    with pytest.raises(StoreUnavailable, match="no database"):
        look("sqlite:////nowhere/at-all.db", lambda session: None)


# ---------------------------------------------------------------- with centers, and as a command


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, str, str]]:
    """A daemon with one long job that was killed: the job lives on; its id and its run's."""
    folder = tmp_path_factory.mktemp("daemon")
    with daemon(folder, local_center(folder, "a")) as broker:
        alice = broker.client("alice")
        spec = eventually("specs", lambda: alice.specs()["resourceSpecs"])[0]["resourceSpecId"]
        config = {"specId": spec, "imageId": "local", "command": "sleep 300", "stopGrace": 0}
        job = str(alice.create_job({"jobName": "long", "config": config})["metadata"]["id"])
        eventually("it runs", lambda: alice.job(job)["status"] == "RUNNING")
        run = alice.job(job)["runs"][-1]["taskId"]
        checked = broker.command("fsck", "--config", str(broker.config), "--centers", "--json")
        told = json.loads(checked.stdout)
        assert (checked.returncode, told["findings"]) == (2, [])
        assert "held by another process" in told["notAsked"][0]["message"]
        beside = broker.command("fsck", "--config", str(broker.config))
        assert (beside.returncode, beside.stdout) == (0, "")
        broker.kill()
        yield broker, job, run
        breaking(
            folder / "broker.db", f"UPDATE run SET state = 'RUNNING', ended_ms = NULL WHERE id = '{run}'"
        )
        breaking(folder / "broker.db", f"UPDATE job SET state = 'ACTIVE', ended_ms = NULL WHERE id = '{job}'")
        broker.start()
        alice.stop_job(job)
        eventually("it has stopped", lambda: alice.job(job)["status"] == "STOPPED")


def differences(broker: DaemonProcess) -> list[Finding]:
    settings, _, _ = read_settings(broker.config, {})
    report = asyncio.run(check_centers(settings, factories()))
    assert report.asked == (CenterId("a"),)
    return list(report.findings)


def test_store_and_center_agree(ended: tuple[DaemonProcess, str, str]) -> None:
    broker, _, _ = ended
    assert differences(broker) == []
    settings, _, _ = read_settings(broker.config, {})
    assert check_store(settings).findings == ()


def test_a_run_that_only_the_store_knows(ended: tuple[DaemonProcess, str, str]) -> None:
    broker, _, run = ended
    file = broker.folder / "broker.db"
    breaking(file, f"UPDATE run SET remote_id = 'bk-0000000000', id = 'bk-0000000000' WHERE id = '{run}'")
    told = {(each.id, each.subject) for each in differences(broker)}
    breaking(file, f"UPDATE run SET remote_id = '{run}', id = '{run}' WHERE id = 'bk-0000000000'")
    assert told == {("run-unknown-there", "bk-0000000000"), ("orphan", run)}


def test_a_run_that_ended_here_and_goes_on_there(ended: tuple[DaemonProcess, str, str]) -> None:
    broker, _, run = ended
    file = broker.folder / "broker.db"
    breaking(file, f"UPDATE run SET state = 'FAILED', ended_ms = {10**15} WHERE id = '{run}'")
    assert [(each.id, each.subject) for each in differences(broker)] == [("orphan", run)]
    breaking(file, f"UPDATE run SET remote_id = NULL WHERE id = '{run}'")
    (by_name,) = differences(broker)
    breaking(
        file, f"UPDATE run SET remote_id = '{run}', state = 'RUNNING', ended_ms = NULL WHERE id = '{run}'"
    )
    assert (by_name.id, by_name.subject) == ("orphan", run)
    assert f"has it as {run}" in by_name.detail


class Saying:
    """A center that says the same of each run."""

    traits = replace(TRAITS, lookup=Lookup.NEITHER)

    def __init__(self, state: RemoteState) -> None:
        self._state = state

    async def observe(self, runs: Collection[RunRef]) -> dict[RunId, Sighting]:
        return {ref.id: Sighting(self._state) for ref in runs}

    async def aclose(self) -> None: ...


@pytest.mark.parametrize(
    ("said", "start_may_leave", "told"),
    [
        (RemoteState.CREATED, False, []),
        (RemoteState.CREATED, True, ["orphan"]),
        (RemoteState.PENDING, False, ["orphan"]),
        (RemoteState.UNKNOWN, False, []),
        (RemoteState.STOPPED, True, []),
    ],
)
def test_what_was_only_created_is_nothing_at_work(
    ended: tuple[DaemonProcess, str, str], said: RemoteState, start_may_leave: bool, told: list[str]
) -> None:
    """Some platforms call it created for ever; while a start of ours may be on its way it is an orphan."""
    broker, _, run = ended
    file = broker.folder / "broker.db"
    last_ms = 10**15 if start_may_leave else 1
    breaking(file, f"UPDATE run SET state = 'STOPPED', ended_ms = {10**15} WHERE id = '{run}'")
    breaking(file, f"UPDATE run SET not_after_ms = {last_ms} WHERE id = '{run}'")
    settings, _, _ = read_settings(broker.config, {})

    async def opened(_connection: Connection) -> Any:
        return Saying(said)

    report = asyncio.run(check_centers(settings, {"local": opened}))
    breaking(file, f"UPDATE run SET state = 'RUNNING', ended_ms = NULL WHERE id = '{run}'")
    assert [each.id for each in report.findings] == told


def test_the_command_tells_what_it_found(ended: tuple[DaemonProcess, str, str]) -> None:
    broker, job, _ = ended
    file = broker.folder / "broker.db"
    breaking(file, f"UPDATE job SET attempts = 7 WHERE id = '{job}'")
    told = broker.command("fsck", "--config", str(broker.config), "--centers")
    breaking(file, f"UPDATE job SET attempts = 1 WHERE id = '{job}'")
    assert told.returncode == 1
    assert told.stdout.startswith(f"attempts-differ {job}: attempts is 7, the last run is 1 of 1\n    ")
    assert "1 finding, centers asked: a" in told.stderr
    assert broker.command("fsck", "--config", "missing.toml").returncode == 2


def test_a_data_set_without_its_files(ended: tuple[DaemonProcess, str, str]) -> None:
    broker, _, _ = ended
    file = broker.folder / "broker.db"
    breaking(file, BREAKS["copy-overfull"][0])
    settings, _, _ = read_settings(broker.config, {})
    told = [(each.id, each.subject) for each in check_store(settings).findings]
    breaking(file, "DELETE FROM dataset")
    assert told == [("data-set-without-files", "d-1")]
