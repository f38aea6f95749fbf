"""Several real daemons on one PostgreSQL: one leads, the others serve and take over.

What belongs here: kills, pauses and orderly ends of leaders under work, against what really ran.  How a
lease changes hands, step by step, is in test_store_rest.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.client import RequestFailed
from broker.core.model import Role
from tests.daemon_process import DaemonProcess, eventually, local_center
from tests.test_daemon import create, running, wait

pytestmark = pytest.mark.on_postgresql

LEASE_S = 2


@contextmanager
def replicas(folder: Path, count: int, centers: str) -> Iterator[list[DaemonProcess]]:
    """So many started daemons on one store; ended whatever happens."""
    made = [DaemonProcess(folder, centers, replica=f"-{number}") for number in range(count)]
    for each in made:
        text = each.config.read_text()
        each.config.write_text(text.replace("[scheduler]\n", f"[scheduler]\nlease_s = {LEASE_S}\n"))
    made[0].add_user("alice")
    made[0].add_user("root", role=Role.OPERATOR, tenant="ops")
    try:
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            if each.process is not None and each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                each.kill()


def leaders(daemons: list[DaemonProcess]) -> list[DaemonProcess]:
    """Those that say that they lead; nobody is asked who has been killed."""
    alive = [each for each in daemons if each.process is not None and each.process.poll() is None]
    answers = [(each, each.get("/readyz")[1]) for each in alive]
    return [each for each, told in answers if isinstance(told, dict) and told["leads"]]


def leader(daemons: list[DaemonProcess]) -> DaemonProcess:
    """The one that leads, waited for.  Answers are not of one moment: two may say so while it changes."""

    def only() -> DaemonProcess | None:
        found = leaders(daemons)
        return found[0] if len(found) == 1 else None

    found: DaemonProcess = eventually("one daemon leads", only)
    return found


def test_a_killed_leader_is_followed_and_nothing_runs_twice(tmp_path: Path) -> None:
    marks, gate = tmp_path / "marks", tmp_path / "gate"
    command = f'echo "$BROKER_TASK_ID" >> {marks}; while [ ! -e {gate} ]; do sleep 0.1; done'
    with replicas(tmp_path, 3, local_center(tmp_path, "one", nodes=8)) as daemons:
        jobs: list[str] = []
        for turn in range(2):
            first = leader(daemons)
            others = [each for each in daemons if each is not first and each.process is not None]
            standby = next(each for each in others if each.process.poll() is None)  # type: ignore[union-attr]
            alice = standby.client("alice")  # a standby takes jobs, and its notice wakes the leader
            jobs += [create(alice, f"job-{turn}-{i}", command) for i in range(3)]
            running(alice, jobs[-1])
            jobs.append(create(alice, f"late-{turn}", command))
            first.kill()
            leader([each for each in daemons if each is not first])
        survivor = leader(daemons)
        alice = survivor.client("alice")
        for job in jobs:
            running(alice, job)
        gate.touch()
        ended = [wait(alice, job) for job in jobs]
        assert [job["status"] for job in ended] == ["SUCCEEDED"] * len(jobs)
        began = marks.read_text().split()
        assert len(began) == len(set(began)) == len(jobs), "each job ran once"
        assert all(sum(run["taskId"] in began for run in job["runs"]) == 1 for job in ended)


def test_a_leader_that_is_stopped_and_wakes_is_a_standby(tmp_path: Path) -> None:
    with replicas(tmp_path, 2, local_center(tmp_path, "one")) as daemons:
        first = leader(daemons)
        (second,) = [each for each in daemons if each is not first]
        assert first.process is not None
        first.process.send_signal(signal.SIGSTOP)
        eventually("the standby leads", lambda: leaders([second]))
        time.sleep(LEASE_S)  # longer than the lease, whoever took it
        first.process.send_signal(signal.SIGCONT)
        eventually("the first knows", lambda: first.logged("lease_lost"))
        eventually("the first serves", lambda: first.get("/readyz")[0] == 200)
        assert leaders(daemons) == [second]
        job = create(first.client("alice"), "after", "true")
        assert wait(second.client("alice"), job)["status"] == "SUCCEEDED"
        second.kill()
        assert leader([first]) is first  # and leads again when it is its turn


def test_an_orderly_end_hands_over_at_once_and_a_standby_says_what_it_cannot(tmp_path: Path) -> None:
    with replicas(tmp_path, 2, local_center(tmp_path, "one")) as daemons:
        first = leader(daemons)
        (second,) = [each for each in daemons if each is not first]
        assert "broker_leader 1.0" in str(first.get("/metrics")[1])
        assert "broker_leader 0.0" in str(second.get("/metrics")[1])
        assert first.get("/readyz")[1]["leader"] == second.get("/readyz")[1]["leader"]
        with pytest.raises(RequestFailed, match="this daemon is a standby"):
            second.client("root").call_center("one", "GET", "/")
        reader = second.client("alice")
        done = create(reader, "read-at-the-standby", 'echo told; echo 42 > "$BROKER_OUTPUT_DIR/answer.txt"')
        assert wait(reader, done)["status"] == "SUCCEEDED"
        assert b"".join(reader.logs(done)) == b"told\n"
        (answer,) = reader.download(done, tmp_path / "results")
        assert answer.read_text() == "42\n"
        assert first.stop() == 0
        leader(daemons)
        job = create(second.client("alice"), "after", "true")
        assert wait(second.client("alice"), job)["status"] == "SUCCEEDED"
        assert second.stop() == 0
