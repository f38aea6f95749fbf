"""The examples as a user runs them: the data, the training as a process, the demonstration end to end."""

from __future__ import annotations

import csv
import importlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
IRIS = EXAMPLES / "iris"
TRAIN = [sys.executable, str(IRIS / "train.py")]
DEMO = [sys.executable, str(EXAMPLES / "demo.py")]
PROCESS_S = 60.0
DEMO_S = 120.0


# ---------------------------------------------------------------- the data


def flowers() -> list[list[str]]:
    with (IRIS / "iris.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm", "species"]
    return rows


def test_there_are_fifty_flowers_of_each_species() -> None:
    assert Counter(row[4] for row in flowers()) == {"setosa": 50, "versicolor": 50, "virginica": 50}


def test_the_values_are_fishers() -> None:
    rows = flowers()
    means = [statistics.fmean(float(row[i]) for row in rows) for i in range(4)]
    assert means == pytest.approx([5.843333, 3.057333, 3.758, 1.199333], abs=1e-6)
    # The two flowers that the UCI repository's file has wrong.
    assert rows[34][:4] == ["4.9", "3.1", "1.5", "0.2"]
    assert rows[37][:4] == ["4.9", "3.6", "1.4", "0.1"]


# ---------------------------------------------------------------- the training


def started(*options: object, **broker: object) -> subprocess.Popen[str]:
    """The training with BROKER_ variables and the bare environment of a job."""
    env = {f"BROKER_{name.upper()}": str(value) for name, value in broker.items()}
    env |= {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
    command = [*TRAIN, *map(str, options)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            output, _ = process.communicate(timeout=PROCESS_S)
        finally:
            process.kill()
    return process.returncode, output


def trained(folder: Path, *options: object, **broker: object) -> npt.NDArray[np.float64]:
    """The weights of a training that ends well, its output in `folder`."""
    code, output = ended(started(*options, output_dir=folder, **broker))
    assert code == 0, output
    return weights(folder)


def gang(folder: Path, count: int, *options: object, task: str) -> list[subprocess.Popen[str]]:
    """All nodes of a gang, node 0 last."""
    place: dict[str, object] = {"output_dir": folder, "node_count": count, "task_id": task}
    place["master_addr"] = "127.0.0.1"
    return [started(*options, **place, node_rank=rank) for rank in reversed(range(count))]


def weights(folder: Path) -> npt.NDArray[np.float64]:
    with np.load(folder / "model.npz") as model:
        return np.asarray(model["weights"])


def metrics(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return document


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_training_reaches_its_accuracy(tmp_path: Path, seed: int) -> None:
    trained(tmp_path / "untrained", "--seed", seed, "--epochs", 0)
    trained(tmp_path / "trained", "--seed", seed, "--epochs", 10_000)
    before, after = metrics(tmp_path / "untrained"), metrics(tmp_path / "trained")
    assert after["accuracy"] >= 0.9 > before["accuracy"]
    assert after["loss"] < 0.1 < before["loss"]


def test_a_seed_repeats_itself_and_another_does_not(tmp_path: Path) -> None:
    one, again, other = (
        trained(tmp_path / name, "--seed", seed, "--epochs", 500)
        for name, seed in (("one", 7), ("again", 7), ("other", 8))
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("count", [2, 3])
def test_a_gang_gets_what_one_process_gets(tmp_path: Path, count: int) -> None:
    alone = trained(tmp_path / "alone", "--seed", 4, "--epochs", 3000)
    nodes = gang(tmp_path / "gang", count, "--seed", 4, "--epochs", 3000, task=f"run-{count}-{os.getpid()}")
    for process in nodes:
        code, output = ended(process)
        assert code == 0, output
    np.testing.assert_allclose(weights(tmp_path / "gang"), alone, rtol=0, atol=1e-9)
    assert metrics(tmp_path / "gang")["nodes"] == count


def test_two_gangs_on_the_same_port_keep_apart(tmp_path: Path) -> None:
    port = free_port()
    folders = {seed: tmp_path / str(seed) for seed in (1, 2)}
    processes = [
        process
        for seed, folder in folders.items()
        for process in gang(folder, 2, "--seed", seed, "--epochs", 1000, "--port", port, task=f"run-{seed}")
    ]
    for process in processes:
        code, output = ended(process)
        assert code == 0, output
    for seed, folder in folders.items():
        alone = trained(tmp_path / f"alone-{seed}", "--seed", seed, "--epochs", 1000)
        np.testing.assert_allclose(weights(folder), alone, rtol=0, atol=1e-9)


def test_a_gang_ends_with_its_node(tmp_path: Path) -> None:
    other, first = gang(tmp_path, 2, "--epochs", 200_000, task=f"run-dies-{os.getpid()}")
    assert first.stdout is not None
    while "epoch" not in (line := first.stdout.readline()):
        assert line, "node 0 ended before the gang had met"
    other.kill()
    ended(other)
    code, output = ended(first)
    assert code == 1
    assert re.search(r"^(Connection\w*|BrokenPipe)Error", output, re.MULTILINE), output


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path: Path, count: int) -> None:
    options = ("--seed", 5, "--epochs", 20_000 // count)
    task = f"run-killed-{count}-{os.getpid()}"
    for process in gang(tmp_path / "whole", count, *options, task=task):
        assert ended(process)[0] == 0
    resumable = (*options, "--checkpoints", tmp_path / "checkpoints")
    processes = gang(tmp_path / "resumed", count, *resumable, task=task)
    deadline = time.monotonic() + PROCESS_S
    while not list(tmp_path.glob("checkpoints/state-*[0-9].npz")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.002)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    codes = [ended(process)[0] for process in processes]
    assert codes[-1] == -signal.SIGKILL  # node 0: the training was cut off, not finished

    for process in gang(tmp_path / "resumed", count, *resumable, task=task):
        code, output = ended(process)
        assert code == 0, output
        assert "resumed after epoch" in output
    np.testing.assert_array_equal(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    assert 0 < metrics(tmp_path / "resumed")["resumedAfterEpoch"] < 20_000 // count


# ---------------------------------------------------------------- the demonstration

JOBS = ("iris-slow", "iris-medium", "iris-fast", "iris-gang")


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEMO, *options], capture_output=True, text=True, timeout=DEMO_S + 60)


def check_report(output: str, folder: Path) -> None:
    """The table of the report: every job with its center, accuracy and cost, and the sum of the costs."""
    lines = [line.split() for line in output.splitlines() if line.startswith((*JOBS, "total"))]
    rows = {line[0]: line for line in lines}
    table = {name: rows[name] for name in JOBS}
    assert table["iris-gang"][1:4] == ["summit", "large", "2"]  # nodes of four cores are only there
    singles = Counter(table[name][1] for name in JOBS[:3])
    assert singles == {"harbor": 2, "summit": 1}  # the cheap center has two nodes
    assert sum(Decimal(row[-2]) for row in table.values()) == Decimal(rows["total"][-1])
    for name, row in table.items():
        measured = json.loads((folder / "results" / name / "metrics.json").read_text())
        assert row[-1] == f"{measured['accuracy']:.4f}"
        assert measured["accuracy"] >= 0.9
        assert measured["nodes"] == int(row[3])


def check_stopped(folder: Path) -> None:
    """Nothing listens any more where the daemon did."""
    config = (folder / "demo.toml").read_text()
    found = re.search(r'listen = "127\.0\.0\.1:(\d+)"', config)
    assert found
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=5).close()


def test_the_demo_runs_every_job_where_it_belongs(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    done = demo("--plain", "--keep", str(folder), "--timeout", str(DEMO_S))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in JOBS:
        assert re.search(rf"^{name}: SUCCEEDED at (harbor|summit)$", done.stdout, re.MULTILINE)
    check_report(done.stdout, folder)
    check_stopped(folder)


def test_the_demo_survives_a_crash_of_the_daemon_on_a_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    code, output = on_terminal(*DEMO, "--kill", "--keep", str(folder), "--timeout", str(DEMO_S))
    assert code == 0, output
    assert "killing the daemon (SIGKILL)" in output
    assert "the daemon is back after" in output
    assert "Every job ran once, and each of its nodes started once." in output
    check_report(output.split("ACCURACY")[1], folder)
    check_stopped(folder)


def on_terminal(*command: str) -> tuple[int, str]:
    """Exit code and output of a command whose output is a terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # what Linux says when the other side has closed
                break
            if not piece:
                break
            output += piece
        os.close(ours)
        code = process.wait(timeout=PROCESS_S)
    return code, output.decode(errors="replace")


def test_the_demo_gives_up_in_time_and_tells_where_to_look(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    done = demo("--plain", "--keep", str(folder), "--timeout", "0")
    assert done.returncode == 1
    assert "not all jobs ended in time" in done.stderr
    assert f"the daemon's log: {folder / 'daemon.log'}" in done.stderr
    check_stopped(folder)


def test_a_failed_training_fails_the_demo_and_its_log_is_shown(tmp_path: Path) -> None:
    copy, folder = tmp_path / "examples", tmp_path / "kept"
    shutil.copytree(EXAMPLES, copy)
    (copy / "iris" / "train.py").write_text('raise SystemExit("the flowers have withered")\n')
    command = [sys.executable, str(copy / "demo.py"), "--plain", "--keep", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEMO_S + 60)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("the flowers have withered") >= len(JOBS)
    for name in JOBS:
        assert f"{name} FAILED" in done.stderr
    check_stopped(folder)


def test_the_demo_wants_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = demo("--keep", str(tmp_path))
    assert done.returncode == 2
    assert "is not an empty folder" in done.stderr


def test_a_daemon_that_dies_early_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("demo_daemon")
    daemon = module.Daemon(tmp_path)
    with socket.create_server(("127.0.0.1", daemon.port)), pytest.raises(module.DemoFailed) as failed:
        daemon.start()
    assert f"the daemon ended with 1 on port {daemon.port}" in str(failed.value)
    assert "cannot listen" in str(failed.value)
