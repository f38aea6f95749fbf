"""What a daemon meets that is nobody's fault: a full disk, a locked or lost database, a clock that is set,
a center that does not answer in time.  It goes on or says plainly what is wrong, and recovers by itself.

Times are scaled down by what is injected into the daemon's process before it starts (`inject`).
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import sys
import tarfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from broker.client import Client, RequestFailed
from broker.store import checks
from broker.store.read_only import look
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center
from tests.emulators.ampha import Ampha, Settings, group, nodes
from tests.emulators.faults import Fault
from tests.soak import SPEED, in_background
from tests.test_soak_ampha import OPERATIONS, center_of


def started(folder: Path, inject: str = "pass", centers: str = "") -> AbstractContextManager[DaemonProcess]:
    program = [sys.executable, "-c", f"{inject}\nfrom broker.cli import main\nmain()"]
    return daemon(folder, centers or local_center(folder, "one"), program=program)


def create(client: Client, name: str, command: str, image: str = "local", spec: str = "") -> str:
    if not spec:
        spec = eventually("specs", lambda: client.specs()["resourceSpecs"])[0]["resourceSpecId"]
    config = {"specId": spec, "imageId": image, "command": command, "stopGrace": 1}
    return str(client.create_job({"jobName": name, "config": config}, key=name)["metadata"]["id"])


def comes_to(client: Client, job: str, status: str) -> None:
    eventually(f"{job} is {status}", lambda: client.job(job)["status"] == status)


def not_writable(broker: DaemonProcess) -> str:
    """What /readyz says of a store that takes no writes; the process itself is well."""

    def told() -> str:
        status, answer = broker.get("/readyz")
        return str(answer["store"]) if status == 503 and answer["store"] != "ok" else ""

    trouble = str(eventually("it is told", told))
    assert broker.get("/healthz")[0] == 200
    assert "broker_store_writable 0.0" in broker.get("/metrics")[1]
    return trouble


def writable_again(broker: DaemonProcess) -> None:
    broker.wait_ready()
    assert "broker_store_writable 1.0" in broker.get("/metrics")[1]
    eventually("it is logged", lambda: broker.logged("store_writable_again"))


def jumps_are_told(broker: DaemonProcess, count: int) -> None:
    eventually("it is told", lambda: broker.log.read_text().count("action=clock_jumped") == count)


def nothing_is_wrong(broker: DaemonProcess) -> None:
    found = look(f"sqlite:///{broker.folder}/broker.db", lambda s: checks.check(s, time.time_ns() // 10**6))
    assert found == []


def test_a_full_disk(tmp_path: Path) -> None:
    """No file of the daemon may grow: the database, its log of changes and the log of lines.

    A job ends meanwhile.
    """
    gate = tmp_path / "gate"
    with started(tmp_path) as broker:
        assert broker.process is not None
        alice = broker.client("alice")
        job = create(alice, "before", f"while [ ! -e {gate} ]; do sleep 0.1; done")
        comes_to(alice, job, "RUNNING")
        soft, hard = resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(RequestFailed) as refused:
            create(alice, "after", "true")
        assert refused.value.status == 503
        assert "disk" in not_writable(broker)
        gate.touch()
        assert alice.job(job)["status"] == "RUNNING"
        resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        writable_again(broker)
        comes_to(alice, job, "SUCCEEDED")
        comes_to(alice, create(alice, "after", "true"), "SUCCEEDED")
        lost = [line for line in broker.get("/metrics")[1].splitlines() if "log_lines_lost_total " in line]
        assert float(lost[-1].split()[-1]) > 0
        assert broker.stop() == 0
        nothing_is_wrong(broker)


def test_a_database_that_another_process_has_locked(tmp_path: Path) -> None:
    """For longer than a write waits."""
    with started(tmp_path, "import broker.store.store as s; s.BUSY_S = 0.5") as broker:
        alice = broker.client("alice")
        other = sqlite3.connect(tmp_path / "broker.db", isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RequestFailed) as refused:
            create(alice, "meanwhile", "true")
        assert refused.value.status == 503
        assert "locked" in not_writable(broker)
        assert broker.logged("store_not_writable")
        other.execute("ROLLBACK")
        other.close()
        writable_again(broker)
        comes_to(alice, create(alice, "meanwhile", "true"), "SUCCEEDED")
        assert broker.stop() == 0
        nothing_is_wrong(broker)


def test_a_database_file_that_is_away_or_another(tmp_path: Path) -> None:
    """Nothing is written into a file that nobody would find again."""
    file, away = tmp_path / "broker.db", tmp_path / "away.db"
    with started(tmp_path) as broker:
        alice = broker.client("alice")
        file.rename(away)
        assert "is gone" in not_writable(broker)
        with pytest.raises(RequestFailed) as refused:
            create(alice, "meanwhile", "true")
        assert refused.value.status == 503
        away.rename(file)
        writable_again(broker)
        comes_to(alice, create(alice, "meanwhile", "true"), "SUCCEEDED")
        shutil.copy(file, away)
        away.rename(file)
        assert "was replaced: restart the daemon" in not_writable(broker)


CLOCK = """
import os, time
real_ns, real = time.time_ns, time.time
def offset_s():
    try:
        return int(open({file!r}).read() or 0)
    except FileNotFoundError:
        return 0
time.time_ns = lambda: real_ns() + offset_s() * 10**9
time.time = lambda: real() + offset_s()
"""


def test_a_clock_that_jumps_by_an_hour_and_back(tmp_path: Path) -> None:
    """A run goes on over both jumps and is not run again; what comes after each is done."""
    offset, gate = tmp_path / "offset", tmp_path / "gate"
    with started(tmp_path, CLOCK.format(file=str(offset))) as broker:
        long = create(
            broker.client("alice"), "long", f"echo started; while [ ! -e {gate} ]; do sleep 0.1; done"
        )
        comes_to(broker.client("alice"), long, "RUNNING")
        for number, seconds in enumerate((3600, 0), start=1):
            offset.write_text(str(seconds))
            jumps_are_told(broker, number)
            broker.wait_ready()
            alice = broker.client("alice")  # a login may have ended with the hour
            comes_to(alice, create(alice, f"quick-{number}", "true"), "SUCCEEDED")
            unwanted = create(alice, f"unwanted-{number}", "sleep 300")
            comes_to(alice, unwanted, "RUNNING")
            alice.stop_job(unwanted)
            comes_to(alice, unwanted, "STOPPED")
            assert alice.job(long)["status"] == "RUNNING"
        gate.touch()
        comes_to(alice, long, "SUCCEEDED")
        assert len(alice.job(long)["runs"]) == 1
        assert "broker_clock_jumps_total 2.0" in broker.get("/metrics")[1]
        assert broker.stop() == 0
        nothing_is_wrong(broker)


def test_a_center_that_does_not_answer_in_time(tmp_path: Path) -> None:
    """Every call to it hangs until the daemon gives up (after a second here); the other one goes on."""
    settings = Settings(scale=SPEED, seed=1, create_s=(0, 0.1), list_lag_s=(0, 0.1), pull_s=(0, 0.1))
    with in_background(lambda: Ampha([group(nodes(1))], settings)) as platform:
        centers = local_center(tmp_path, "one") + center_of(platform, "computationTask")
        with started(tmp_path, centers=centers) as broker:
            alice = broker.client("alice")

            def spec(accelerators: bool) -> str:
                rows = alice.specs()["resourceSpecs"]
                ids = sorted(str(row["resourceSpecId"]) for row in rows)
                return next((each for each in ids if each.startswith("nvidia") is accelerators), "")

            there = eventually("its specs", lambda: spec(True))
            job = create(alice, "before", "sleep 200", image="ai-common:v1.0.0", spec=there)
            comes_to(alice, job, "RUNNING")
            platform.faults.chance(1.0, [Fault.HANG], OPERATIONS)
            late = create(alice, "meanwhile", "sleep 20", image="ai-common:v1.0.0", spec=there)
            comes_to(alice, create(alice, "here", "true", spec=spec(False)), "SUCCEEDED")
            eventually(
                "its health is told",
                lambda: 'broker_center_up{center="hz-1"} 0.0' in broker.get("/metrics")[1],
            )
            assert broker.get("/healthz")[0] == 200
            platform.faults.calm()
            eventually(
                "it is back", lambda: 'broker_center_up{center="hz-1"} 1.0' in broker.get("/metrics")[1]
            )
            comes_to(alice, job, "SUCCEEDED")
            # sent once, or proven not to have arrived and kept away from there for a while
            assert alice.job(late)["status"] in ("PENDING", "RUNNING", "SUCCEEDED")
            names = [each.name for each in platform.world.executions]
            assert len(names) == len(set(names))
            assert set(names) <= {run["taskId"] for each in (job, late) for run in alice.job(each)["runs"]}
            assert broker.stop() == 0
            nothing_is_wrong(broker)


def test_an_upload_under_way_is_finished_before_the_daemon_ends(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a")
        entry.size = 100_000
        archive.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    body = packed.getvalue()
    with started(tmp_path) as broker:
        assert broker.process is not None
        token = Client(broker.url).login("alice", PASSWORD)["token"]
        head = (
            "POST /broker/v1/uploads?title=t HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"X-Auth-Token: {token}\r\nContent-Length: {len(body)}\r\nContent-Type: application/gzip\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", broker.port), timeout=60) as connection:
            connection.sendall(head.encode() + body[:50_000])
            eventually("it arrives", lambda: any((tmp_path / "data" / "incoming").iterdir()))
            broker.process.send_signal(signal.SIGTERM)
            eventually("it is told to end", lambda: broker.logged("stopping"))
            connection.sendall(body[50_000:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert broker.process.wait(60) == 0
        made = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
        assert (tmp_path / "data" / "datasets" / made / "a").stat().st_size == entry.size
        assert list((tmp_path / "data" / "incoming").iterdir()) == []
        nothing_is_wrong(broker)
