"""`broker submit` and `broker wait`: the request that is sent, and what becomes of it."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cli import display, wait
from broker.cli import request as cli_request
from broker.cli.app import WrongUsage
from broker.client import Client
from tests.cli_stub import Answer, Drop, Request, Stub, Terminal, created, detail, project, stub, terminal

__all__ = ["stub", "terminal"]


# ---------------------------------------------------------------- submit

BASE = ("submit", "--dry-run", "--name", "n", "--spec", "s", "--image", "i")


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("-- python train.py --lr 3", {"command": "python train.py --lr 3"}),
        ("python train.py --lr 3", {"command": "python train.py --lr 3"}),
        ("-- 'echo a; echo b'", {"command": "echo a; echo b"}),
        ("-- echo 'a b' $HOME", {"command": "echo 'a b' '$HOME'"}),
        ("--nodes 4", {"nodeCount": 4}),
        ("--center a --center b", {"centerId": ["a", "b"]}),
        ("--priority high", {"priority": "high"}),
        ("--vip --preempt-policy 2", {"isVip": True, "preemptPolicy": 2}),
        ("--no-preemptible", {"preemptible": False}),
        ("--estimate 2h --max-run-time 1d", {"estimatedRunTime": 7200, "maxRunTime": 86400}),
        ("--estimate 90 --stop-grace 90s", {"estimatedRunTime": 90, "stopGrace": 90}),
        ("--checkpoint-interval 15m --resumable", {"checkpointInterval": 900, "resumable": True}),
        ("--max-price 12.50", {"maxPrice": 12.5}),
        ("--max-price 20.00", {"maxPrice": 20}),
        ("--retries 2 --on-lost rerun", {"maxRetries": 2, "onLost": "rerun"}),
        ("--env A=1 --env B=x=y", {"env": [{"key": "A", "value": "1"}, {"key": "B", "value": "x=y"}]}),
        ("--label team=a --label run=", {"labels": {"team": "a", "run": ""}}),
        ("--dataset d1 --dataset d2", {"datasetIds": ["d1", "d2"]}),
    ],
)
def test_flags_become_the_request(terminal: Terminal, stub: Stub, words: str, config: dict[str, Any]) -> None:
    given_words = shlex.split(words)
    if "command" not in config:
        given_words += ["--", "true"]
        config = {"command": "true", **config}
    ran = terminal.run(*BASE, *given_words)
    assert ran.returncode == 0, ran.stderr
    expected = {"jobName": "n", "config": {"specId": "s", "imageId": "i", **config}}
    assert json.loads(ran.stdout) == expected
    assert stub.requests == []


def test_power_and_an_url_instead_of_spec_and_image(terminal: Terminal) -> None:
    ran = terminal.run(
        *("submit", "--dry-run", "--desc", "d", "--name", "n", "--min-power", "1.5P"),
        *("--image-url", "r.io/x:1", "--", "true"),
    )
    config = {"command": "true", "minComputingPower": 1_500_000_000_000_000, "imageUrl": "r.io/x:1"}
    assert json.loads(ran.stdout) == {"jobName": "n", "jobDesc": "d", "config": config}


JOB_FILE = """
jobName = "from-file"
jobDesc = "described"
[config]
specId = "s-file"
imageId = "i-file"
command = "python a.py"
maxRunTime = "2h"
estimatedRunTime = 60
nodeCount = 3
labels = { team = "a", kind = "file" }
[config.env]
A = "1"
B = "2"
"""


def test_flags_win_over_a_job_file(terminal: Terminal) -> None:
    (terminal.home / "job.toml").write_text(JOB_FILE)
    alone = json.loads(terminal.run("submit", "--dry-run", "--file", "job.toml").stdout)
    env = [{"key": "A", "value": "1"}, {"key": "B", "value": "2"}]
    assert alone == {
        "jobName": "from-file",
        "jobDesc": "described",
        "config": {
            "specId": "s-file",
            "imageId": "i-file",
            "command": "python a.py",
            "maxRunTime": 7200,
            "estimatedRunTime": 60,
            "nodeCount": 3,
            "labels": {"team": "a", "kind": "file"},
            "env": env,
        },
    }
    words = (
        "--name flag --nodes 1 --min-power 5T --image-url u --env B=3 --env C=4 --label kind=flag -- run b"
    )
    both = json.loads(terminal.run("submit", "--dry-run", "-f", "job.toml", *words.split()).stdout)
    assert both == {
        "jobName": "flag",
        "jobDesc": "described",
        "config": {
            "minComputingPower": 5 * 10**12,
            "imageUrl": "u",
            "command": "run b",
            "maxRunTime": 7200,
            "estimatedRunTime": 60,
            "nodeCount": 1,
            "labels": {"team": "a", "kind": "flag"},
            "env": [env[0], {"key": "B", "value": "3"}, {"key": "C", "value": "4"}],
        },
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("jobname = 'x'", "did you mean jobName?"),
        ("[config]\nnodecount = 2", "config.nodecount: there is no such field; did you mean nodeCount?"),
        ("config = 3", "must be a table"),
        ("[config]\nmaxRunTime = 'soon'", "config.maxRunTime: 'soon' is not a duration"),
        ("[config]\nestimatedRunTime = 2026-01-01", "dates and times"),
        ("[config]\nmaxPrice = nan", "maxPrice"),
        ("= 3", "is not a TOML file"),
    ],
)
def test_a_wrong_job_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(WrongUsage, match=told.replace("?", r"\?")):
        cli_request.read_job_file(file)


@pytest.mark.parametrize("text", ["", "soon", "1w", "-5", "1.5h", "2 h", "h", "٣s", "1h30m"])
def test_a_wrong_duration_is_told(text: str) -> None:
    with pytest.raises(WrongUsage, match="--estimate"):
        cli_request.seconds(text, of="--estimate")


@pytest.mark.parametrize("text", ["", "many", "0.3", "1K", "-1T", "1e999", "nan"])
def test_a_wrong_power_is_told(text: str) -> None:
    with pytest.raises(WrongUsage, match="--min-power"):
        cli_request.flops(text, of="--min-power")


@pytest.mark.parametrize("text", ["", "free", "-1", "nan", "inf", "0.0000001"])
def test_a_wrong_price_is_told(text: str) -> None:
    with pytest.raises(WrongUsage, match="--max-price"):
        cli_request.amount(text, of="--max-price")


@given(st.text())
def test_a_made_name_is_always_valid(command: str) -> None:
    name = cli_request.made_name(command)
    assert re.fullmatch(r"[0-9A-Za-z_-]{1,64}", name, re.ASCII), name


@pytest.mark.parametrize(
    ("command", "stem"),
    [
        ("python train.py --lr 3", "python-train"),
        ("/usr/bin/env bash ./run.sh", "env-bash"),
        ("sh -c 'echo a; echo b'", "sh"),
        ("", "job"),
        ("训练", "job"),
        ("'unbalanced quote", "quote"),
    ],
)
def test_a_made_name_recalls_the_command(command: str, stem: str) -> None:
    name = cli_request.made_name(command)
    assert name[:-6] == stem
    assert name[-6] == "-"


@pytest.mark.parametrize(
    "command", ["true", "false || echo ran", "echo ran; true", "echo ran # x", "true\necho ran"]
)
def test_nothing_runs_when_the_copy_fails(tmp_path: Path, command: str) -> None:
    line = cli_request.inside_copy("d-1", command)
    environ = {"PATH": os.environ["PATH"], "BROKER_DATASETS_DIR": str(tmp_path / "none")}
    ran = subprocess.run(
        ["/bin/sh", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode != 0
    assert ran.stdout == ""


def test_the_command_runs_in_a_copy_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sets" / "d-1").mkdir(parents=True)
    (tmp_path / "sets" / "d-1" / ".hidden").write_text("kept")
    (tmp_path / "work").mkdir()
    environ = {"PATH": os.environ["PATH"], "BROKER_DATASETS_DIR": str(tmp_path / "sets")}
    line = cli_request.inside_copy("d-1", "cat .hidden; echo changed > .hidden")
    ran = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=tmp_path / "work",
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "kept"
    assert (tmp_path / "sets" / "d-1" / ".hidden").read_text() == "kept"


def test_submit_prints_the_id_and_uses_the_brokers_image(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/broker/v1/info", {"submit": {"image": "default-image"}})
    stub.on("POST", "/trainjob", created("j-7"))
    ran = terminal.run("submit", "--spec", "s", "--", "python", "train.py")
    assert (ran.returncode, ran.stdout) == (0, "j-7\n")
    sent = stub.sent("POST", "/trainjob")[0].json
    assert sent["config"]["imageId"] == "default-image"
    assert sent["jobName"].startswith("python-train-")


def test_no_image_anywhere_is_wrong_usage(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/broker/v1/info", {"submit": {"image": ""}})
    ran = terminal.run("submit", "--spec", "s", "--", "true")
    assert ran.returncode == 2
    assert "--image" in ran.stderr
    assert not stub.sent("POST", "/trainjob")


def test_a_lost_answer_submits_one_job(terminal: Terminal, stub: Stub) -> None:
    made: dict[str, dict[str, Any]] = {}

    def create(request: Request) -> dict[str, Any]:
        return made.setdefault(request.headers["idempotency-key"], created(f"j-{len(made)}"))

    def create_and_lose(request: Request) -> Answer:
        create(request)
        return Answer(body=b"", cut=100)

    stub.on("POST", "/trainjob", create_and_lose, create)
    ran = terminal.run(*BASE[:1], *BASE[2:], "--", "true")
    assert (ran.returncode, ran.stdout) == (0, "j-0\n")
    assert len(made) == 1
    assert len(stub.requests) == 2


def test_an_upload_becomes_a_data_set_of_the_job(terminal: Terminal, stub: Stub) -> None:
    stub.on("POST", "/broker/v1/uploads", {"id": "d-5", "bytes": 10, "files": 2})
    stub.on("POST", "/trainjob", created())
    project(terminal.home / "p")
    ran = terminal.run(*BASE[:1], *BASE[2:], "--dataset", "d-1", "--upload", "p", "--", "python", "train.py")
    assert ran.returncode == 0, ran.stderr
    config = stub.sent("POST", "/trainjob")[0].json["config"]
    assert config["datasetIds"] == ["d-1", "d-5"]
    assert config["command"] == 'cp -R "$BROKER_DATASETS_DIR/d-5/." . && python train.py'


def test_an_upload_that_leaves_its_folder_is_wrong_usage(terminal: Terminal, stub: Stub) -> None:
    folder = project(terminal.home / "p")
    (folder / "leak").symlink_to("/etc/passwd")
    ran = terminal.run(*BASE[:1], *BASE[2:], "--upload", "p", "--", "true")
    assert ran.returncode == 2
    assert "leak" in ran.stderr
    assert stub.requests == []


# ---------------------------------------------------------------- waiting


def test_wait_is_0_only_if_all_succeeded(terminal: Terminal, stub: Stub) -> None:
    running, done = detail("j-1"), detail("j-1", "SUCCEEDED")
    stub.on("GET", "/broker/v1/jobs/j-1", running, running, done)
    stub.on("GET", "/broker/v1/jobs/j-2", detail("j-2", "FAILED", message="exit code 3"))
    alone = terminal.run("wait", "j-1")
    assert (alone.returncode, alone.stdout) == (0, "")
    both = terminal.run("wait", "j-1", "j-2", "--json")
    assert both.returncode == 1
    document = json.loads(both.stdout)
    assert [item["status"] for item in document["items"]] == ["SUCCEEDED", "FAILED"]
    assert "j-2 (name-j-2) FAILED at sz-1: exit code 3" in both.stderr


@pytest.mark.parametrize(("status", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_submit_and_wait(terminal: Terminal, stub: Stub, status: str, code: int) -> None:
    stub.on("POST", "/trainjob", created())
    stub.on("GET", "/broker/v1/jobs/j-1", detail(status="UNKNOWN"), detail(status=status))
    ran = terminal.run(*BASE[:1], *BASE[2:], "--wait", "--json", "--", "true")
    assert ran.returncode == code
    assert json.loads(ran.stdout)["status"] == status
    assert "UNKNOWN" in ran.stderr


def test_a_job_that_waits_says_why_and_an_interrupt_leaves_it(terminal: Terminal, stub: Stub) -> None:
    stub.on("GET", "/broker/v1/jobs/j-1", detail(status="PENDING", runs=[]))
    reason = {
        "centerId": "sz-1",
        "code": "capacity",
        "message": "needs 4",
        "need": 4,
        "have": 1,
        "unit": "slots",
    }
    stub.on(
        "GET",
        "/broker/v1/jobs/j-1/explain",
        {"id": "j-1", "status": "PENDING", "position": 3, "reasons": [reason], "placement": {}, "eta": None},
    )
    process = terminal.start("wait", "j-1")
    assert process.stderr is not None
    assert process.stderr.readline() == "j-1 (name-j-1) PENDING\n"
    assert process.stderr.readline() == "j-1 (name-j-1) PENDING: number 3 in the queue, sz-1: needs 4\n"
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "nothing was stopped" in rest
    assert not [request for request in stub.requests if request.method != "GET"]


def test_an_interrupt_whose_exception_was_lost_ends_the_wait(terminal: Terminal, stub: Stub) -> None:
    """Python drops what is raised while an object is being destroyed."""
    stub.on("GET", "/broker/v1/jobs/j-1", detail())
    waiting = wait._Waiting(Client(terminal.url, terminal.token))
    with pytest.raises(KeyboardInterrupt):
        waiting.interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        waiting.all(["j-1"])


def test_waiting_outlives_a_restart_of_the_broker(terminal: Terminal, stub: Stub) -> None:
    away = Drop()
    stub.on("GET", "/broker/v1/jobs/j-1", detail(), detail(), away, away, detail(status="SUCCEEDED"))
    ran = terminal.run("wait", "j-1")
    assert ran.returncode == 0
    assert "trying again" in ran.stderr


def test_the_live_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    screen = Screen()
    progress = display.Progress(screen)
    job: Any = detail(name="训练" * 30)
    progress.show(job, "x" * 100)
    line = screen.getvalue().removeprefix("\r\x1b[2K")
    assert "\n" not in line
    assert display.width(line) in (38, 39)
    progress.end(job)
    assert screen.getvalue().endswith("\r\x1b[2Kj-1 (" + "训练" * 30 + ") RUNNING at sz-1\n")
