"""End to end: the real daemon process, real commands, real jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client, RequestFailed
from tests.daemon_process import PASSWORD, DaemonProcess, daemon, eventually, local_center

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def request(name: str, command: str, *, spec: str, **config: Any) -> dict[str, Any]:
    return {"jobName": name, "config": {"specId": spec, "imageId": "local", "command": command, **config}}


def spec_of(client: Client, cores: int) -> str:
    """The id of the CPU spec with so many cores."""
    specs = client.specs()["resourceSpecs"]
    return next(str(s["resourceSpecId"]) for s in specs if s["cpu"]["cores"] == cores)


def create(client: Client, name: str, command: str, *, cores: int = 1, **config: Any) -> str:
    body = request(name, command, spec=spec_of(client, cores), **config)
    return str(client.create_job(body)["metadata"]["id"])


def wait(client: Client, job: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = dict(client.job(job))
        return found if found["status"] in ENDED else None

    found: dict[str, Any] = eventually(f"job {job} ends", ended)
    return found


def running(client: Client, job: str) -> None:
    eventually(f"job {job} runs", lambda: client.job(job)["status"] == "RUNNING")


def test_a_job_from_the_queue_api_to_its_results(tmp_path: Path) -> None:
    centers = local_center(tmp_path, "dear", price="9.0") + local_center(tmp_path, "cheap", price="0.5")
    with daemon(tmp_path, centers) as broker:
        alice = broker.client("alice")
        command = (
            'echo "hello from $BROKER_TASK_ID"; echo 42 > "$BROKER_OUTPUT_DIR/answer.txt";'
            ' env > "$BROKER_OUTPUT_DIR/env.txt"'
        )
        job = create(alice, "first", command)
        found = wait(alice, job)
        assert found["status"] == "SUCCEEDED", found
        (run,) = found["runs"]
        assert run["centerId"] == "cheap"
        files = {path.name: path.read_text() for path in alice.download(job, tmp_path / "results")}
        assert files["answer.txt"] == "42\n"
        assert "A_SECRET_OF_THE_DAEMON" not in files["env.txt"]
        assert b"".join(alice.logs(job)) == f"hello from {run['taskId']}\n".encode()


def test_a_gang_runs_as_several_processes(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        job = create(
            alice,
            "gang",
            'echo "$BROKER_NODE_RANK of $BROKER_NODE_COUNT" > "$BROKER_OUTPUT_DIR/$BROKER_NODE_RANK"',
            nodeCount=2,
        )
        assert wait(alice, job)["status"] == "SUCCEEDED"
        files = {path.name: path.read_text() for path in alice.download(job, tmp_path / "results")}
        assert files == {"0": "0 of 2\n", "1": "1 of 2\n"}


@pytest.mark.both_databases
def test_jobs_outlive_a_killed_daemon_and_run_once(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        marks = tmp_path / "marks"
        gate = tmp_path / "gate"
        command = f'echo "$BROKER_TASK_ID" >> {marks}; while [ ! -e {gate} ]; do sleep 0.1; done; echo done'
        jobs = [create(alice, f"job-{i}", command) for i in range(3)]
        for job in jobs:
            running(alice, job)
        broker.kill()
        # one ends while nobody watches: the gate opens before the daemon is back
        gate.touch()
        broker.start()
        alice = broker.client("alice")
        ended = [wait(alice, job) for job in jobs]
        assert [job["status"] for job in ended] == ["SUCCEEDED"] * 3
        assert all(len(job["runs"]) == 1 for job in ended)
        tasks = sorted(job["runs"][0]["taskId"] for job in ended)
        assert sorted(marks.read_text().split()) == tasks  # each ran once


@pytest.mark.both_databases
def test_sigterm_leaves_jobs_running_and_exits_0(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        gate = tmp_path / "gate"
        job = create(alice, "long", f"while [ ! -e {gate} ]; do sleep 0.1; done")
        running(alice, job)
        assert broker.stop() == 0
        assert broker.logged("stopped")
        broker.start()
        alice = broker.client("alice")
        gate.touch()
        assert wait(alice, job)["status"] == "SUCCEEDED"


def test_a_stop_kills_grandchildren(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        beat = tmp_path / "beat"
        job = create(
            alice, "tree", f"(while :; do date +%s%N > {beat}; sleep 0.1; done) & sleep 1000", stopGrace=1
        )
        running(alice, job)
        eventually("the grandchild beats", beat.exists)
        alice.stop_job(job)
        assert wait(alice, job)["status"] == "STOPPED"
        last = beat.read_text()
        # a live grandchild would write ten times a second
        with pytest.raises(AssertionError):
            eventually("another beat", lambda: beat.read_text() not in ("", last), within_s=1)


def test_a_command_that_cannot_start_fails_with_the_reason(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        found = wait(alice, create(alice, "typo", "no-such-program --help"))
        assert found["status"] == "FAILED"
        assert "no-such-program" in found["message"]
        assert found["runs"][0]["exitCode"] == 127


def test_explain_of_a_job_that_never_fits(tmp_path: Path) -> None:
    centers = local_center(tmp_path, "small", cores=2, nodes=1) + local_center(tmp_path, "large", cores=8)
    with daemon(tmp_path, centers) as broker:
        alice = broker.client("alice")
        body = request("big", "true", spec=spec_of(alice, 8), centerId=["small"])
        with pytest.raises(RequestFailed) as refused:  # offered nowhere among the candidates
            alice.create_job(body)
        assert refused.value.code == "0211"
        job = create(alice, "wide", "true", cores=8, nodeCount=5)

        def reasons() -> list[dict[str, Any]]:
            return list(alice.explain(job)["reasons"])  # type: ignore[arg-type]

        found = {reason["centerId"]: reason for reason in eventually("a reason", reasons)}
        assert (found["large"]["code"], found["large"]["need"], found["large"]["have"]) == (
            "gang_nodes",
            5,
            2,
        )
        assert (found["small"]["code"], found["small"]["need"], found["small"]["have"]) == (
            "cores_per_node",
            8,
            2,
        )
        shown = broker.command("login", "--user", "alice", "--password-stdin", text=PASSWORD)
        assert shown.returncode == 0, shown.stderr
        told = broker.command("explain", job)
        assert told.returncode == 0, told.stderr
        assert "gang_nodes" in told.stdout
        assert "small" in told.stdout


def test_a_second_daemon_on_the_same_store_is_refused(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        second = broker.command("serve", "--config", str(broker.config))
        assert second.returncode == 1
        assert "another broker runs on" in second.stderr


def test_five_errors_are_five_lines_and_exit_2(tmp_path: Path) -> None:
    config = tmp_path / "broken.toml"
    config.write_text(
        """\
[server]
listen = 8238
timezon = "UTC"

[[centers]]
id = "a"
adapter = "locl"

[[centers]]
id = "a"
adapter = "local"
poll_interval_s = -1
[centers.connection]
work_dir = "/tmp/x"
"""
    )
    broker = DaemonProcess(tmp_path, "")
    for words in (("check-config", "--config", str(config)), ("serve", "--config", str(config))):
        done = broker.command(*words)
        assert done.returncode == 2
        lines = done.stderr.strip().splitlines()
        assert [line.split(": ")[0].removeprefix(f"{config}:") for line in lines] == [
            "2",
            "3",
            "7",
            "10",
            "12",
        ]


def test_sighup_adds_a_center_and_refuses_a_broken_file(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice = broker.client("alice")
        before = broker.config.read_text()
        broker.config.write_text(before + local_center(tmp_path, "two", cores=16))
        broker.hang_up()
        eventually(
            "center two has reported",
            lambda: any(c["centerId"] == "two" and c["connected"] for c in alice.centers()["centers"]),
        )
        job = create(alice, "there", "true", cores=16)
        assert wait(alice, job)["runs"][0]["centerId"] == "two"
        broker.config.write_text(before + "\n[nonsense]\n")
        broker.hang_up()
        eventually("the reload is refused", lambda: broker.logged("reload_refused"))
        assert broker.get("/healthz")[0] == 200


QUOTA = """
[policies.fit]
[policies.priority]
[policies.quota]
[[policies.quota.shares]]
tenant = "lab"
ceiling = 1
"""


def test_a_policy_file_with_errors_is_told_by_line_and_changes_nothing(tmp_path: Path) -> None:
    cards = 'accelerator = "Nvidia/GPU/A800"\naccelerators = 4\naccelerator_memory_gib = 80\n'
    center = local_center(tmp_path, "one").replace("memory_gib = 8\n", f"memory_gib = 8\n{cards}")
    policy = tmp_path / "policy.toml"
    policy.write_text(QUOTA)
    with daemon(tmp_path, center) as broker:
        alice = broker.client("alice")
        first = create(alice, "first", "sleep 600")
        running(alice, first)
        second = create(alice, "second", "sleep 600")

        def held_back() -> bool:
            return [r["code"] for r in alice.explain(second)["reasons"]] == ["quota"]

        eventually("the quota holds it back", held_back)
        broken = "[policies.fit]\n[policies.priority]\n[policies.vip]\nbonus = 99999999999999\nbonuss = 1\n"
        policy.write_text(f"{broken}weight = 0\n")
        broker.hang_up()
        eventually("the reload is refused", lambda: broker.logged("reload_refused"))
        told = broker.log.read_text()
        assert f"{policy}:5: policies.vip.bonuss" in told
        assert f"{policy}:6: policies.vip.weight" in told
        done = broker.command("check-config", "--config", str(broker.config))
        assert done.returncode == 2
        assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [f"{policy}:5", f"{policy}:6"]
        policy.write_text("[policies.fit]\n[policies.vip]\nbonus = 99999999999999\n")
        done = broker.command("check-config", "--config", str(broker.config))
        assert done.returncode == 2
        assert "policy.toml:3: policies.vip.bonus: must be at most 8796093022208" in done.stderr
        third = create(alice, "third", "sleep 600")
        eventually("a round was made since", lambda: alice.explain(third)["reasons"])
        assert held_back()  # by the policies that were in force before
        policy.write_text(QUOTA.replace("ceiling = 1", "ceiling = 3"))
        broker.hang_up()
        running(alice, second)
        for job in (first, second, third):  # or they outlive the test
            alice.stop_job(job)
            wait(alice, job)


def test_an_adapter_that_is_not_built_is_shown_disconnected(tmp_path: Path) -> None:
    other = """
[[centers]]
id = "far"
adapter = "slurm"
[centers.connection]
url = "http://127.0.0.1:1"
[centers.credentials]
token = "x"
"""
    with daemon(tmp_path, local_center(tmp_path, "one") + other) as broker:
        status, document = broker.get("/readyz")
        assert status == 200
        (far,) = [c for c in document["centers"] if c["centerId"] == "far"]
        assert "slurm" in far["error"]
        alice = broker.client("alice")
        (shown,) = [c for c in alice.centers()["centers"] if c["centerId"] == "far"]
        assert shown["connected"] is False


def test_metrics_and_health(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        assert broker.get("/healthz") == (200, {"status": "ok"})
        status, text = broker.get("/metrics")
        assert status == 200
        assert 'broker_center_up{center="one"} 1.0' in text


def test_the_embedded_default_runs_a_job(tmp_path: Path) -> None:
    """`broker serve` without a file: its password is printed once, and a job runs here."""
    log = tmp_path / "log"
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "broker", "serve"], stderr=out, env=env)
    try:
        url = "http://127.0.0.1:8238"
        found = eventually("the password", lambda: re.search(r"password (\S+)", log.read_text()))
        eventually("it listens", lambda: "action=started" in log.read_text())

        def command(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
            words_ = [sys.executable, "-m", "broker", *words]
            return subprocess.run(
                words_, input=text, capture_output=True, text=True, env=env, timeout=60, check=False
            )

        login = command("login", "--url", url, "--user", "admin", "--password-stdin", text=found[1])
        assert login.returncode == 0, login.stderr
        eventually("specs", lambda: json.loads(command("specs", "--json").stdout)["totalSize"] > 0)
        spec = json.loads(command("specs", "--json").stdout)["resourceSpecs"][0]["resourceSpecId"]
        done = command("submit", "--spec", spec, "--wait", "--", "echo", "hello")
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_user_added_while_the_daemon_runs_can_log_in(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        words = ["user", "add", "bob", "--role", "user", "--password-stdin"]
        done = broker.command(*words, "--config", str(broker.config), text=PASSWORD)
        assert done.returncode == 0, done.stderr
        assert broker.client("bob").me()["role"] == "user"
        again = broker.command(*words, "--config", str(broker.config), text=PASSWORD)
        assert again.returncode == 1
        assert "bob" in again.stderr


def test_a_removed_center_with_live_runs_is_told_and_comes_back(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one"), extra="") as broker:
        alice = broker.client("alice")
        gate = tmp_path / "gate"
        job = create(alice, "left", f"while [ ! -e {gate} ]; do sleep 0.1; done")
        running(alice, job)
        assert broker.stop() == 0
        whole = broker.config.read_text()
        broker.config.write_text(whole[: whole.index("[[centers]]")])
        broker.start()
        eventually("the operator is told", lambda: broker.logged("center_removed_with_live_runs"))
        assert broker.stop() == 0
        broker.config.write_text(whole)
        gate.touch()
        broker.start()
        assert wait(broker.client("alice"), job)["status"] == "SUCCEEDED"


def test_check_config_reads_the_policy_file_too(tmp_path: Path) -> None:
    broker = DaemonProcess(tmp_path, "")
    (tmp_path / "policy.toml").write_text("[policies.fit]\n\n[policies.cost]\nweigth = 2\n[policies.cots]\n")
    done = broker.command("check-config", "--config", str(broker.config))
    assert done.returncode == 2
    file = tmp_path / "policy.toml"
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [f"{file}:4", f"{file}:5"]


def test_an_operator_asks_a_center_through_the_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        token = Client(broker.url).login("root", PASSWORD)["token"]
        checked = broker.command("doctor", "one", env={"BROKER_TOKEN": token})
        assert checked.returncode == 0, checked.stderr
        assert "ok    work_dir: " in checked.stdout
        refused = broker.command("call", "one", "GET", "/", env={"BROKER_TOKEN": token})
        assert refused.returncode == 1
        assert "no interface to call" in refused.stderr
