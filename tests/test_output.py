"""Runs whose output goes to a shared storage: their commands in real shells, and reading it back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.output import NO_STORAGE, Output, command_line, environment
from broker.adapter import Connection, Refused, RunSpec, Unavailable
from broker.core.model import CenterId, JobId, NodeShape, RunId, Spec, SpecId

RUN = RunId("bkaaaaaaaaaa")
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


def argv(shell: str) -> list[str]:
    return ["busybox", "sh"] if shell == "busybox" else [shell]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """`in_job` is another name of the same folder, as it is at a center."""
    (tmp_path / "srv").mkdir()
    (tmp_path / "mnt x").symlink_to("srv")
    return Output(str(tmp_path / "mnt x"), tmp_path / "srv")


def spec(command: str, **more: Any) -> RunSpec:
    shape = NodeShape("X86", 1, 1)
    return RunSpec(
        id=RUN,
        job=JobId("job-1"),
        attempt=2,
        native_pool="a",
        spec=Spec(SpecId("s"), "s", shape),
        nodes=2,
        command=command,
        image="",
        env=more.pop("env", ()),
        max_run_time_s=None,
        stop_grace_s=1,
        **more,
    )


def line(output: Output | None, command: str, *, rank: str = "${RANK:-0}", **more: Any) -> str:
    run = spec(command, **more)
    return command_line(run, environment(run), output, rank=rank, master="${FIRST:-127.0.0.1}")


def ran(shell: str, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*argv(shell), "-c", text],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=20,
    )


def started(shell: str, text: str, path: str) -> subprocess.Popen[bytes]:
    program = shutil.which(argv(shell)[0])
    assert program is not None
    return subprocess.Popen([program, *argv(shell)[1:], "-c", text], env={"PATH": path})


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("shell", SHELLS)
async def test_output_results_and_exit_code_of_each_node(shell: str, output: Output) -> None:
    command = """echo "it's $BROKER_NODE_RANK of $BROKER_NODE_COUNT"
echo aside >&2; echo "$X" >"$BROKER_OUTPUT_DIR/of-$BROKER_NODE_RANK"
mkdir -p "$BROKER_OUTPUT_DIR/sub"; echo c >"$BROKER_CHECKPOINT_DIR/ck"; exit $((BROKER_NODE_RANK + 3))"""
    text = line(output, command, env=(("X", "a 'quoted' $HOME\nvalue"),))
    for rank in (0, 1):
        assert await output.exit_code(RUN, rank) is None
        done = ran(shell, text, RANK=str(rank))
        assert (done.returncode, done.stdout, done.stderr) == (rank + 3, "", "")
        assert await output.exit_code(RUN, rank) == rank + 3
        log = f"it's {rank} of 2\naside\n".encode()
        assert await collected(output.logs(RUN, rank, 0)) == log
        assert await collected(output.logs(RUN, rank, 5)) == log[5:]
    found = {result.path: await collected(result.chunks) async for result in output.results(RUN)}
    assert found == dict.fromkeys(("of-0", "of-1"), b"a 'quoted' $HOME\nvalue\n")
    assert await collected(output.logs(RUN, 2, 0)) == b""
    await output.delete(RUN)
    await output.delete(RUN)
    assert os.listdir(output.here) == ["checkpoints"]
    assert (output.here / "checkpoints" / "job-1" / "ck").read_text() == "c\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("with_output", [True, False])
async def test_the_environment(shell: str, with_output: bool, output: Output) -> None:
    text = line(output if with_output else None, "env", env=(("BROKER_JOB_ID", "fake"), ("A", "1")), port=80)
    done = ran(shell, text, RANK="worker-1", FIRST="10.0.0.1")
    shown = (await collected(output.logs(RUN, 0, 0))).decode() if with_output else done.stdout
    expected = {
        "BROKER_JOB_ID=job-1",
        f"BROKER_TASK_ID={RUN}",
        "BROKER_ATTEMPT=2",
        "BROKER_NODE_COUNT=2",
        "BROKER_NODE_RANK=0",
        "BROKER_MASTER_ADDR=10.0.0.1",
        "BROKER_PORT=80",
        "A=1",
    }
    assert expected <= set(shown.splitlines())
    assert done.returncode == 0


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("setsid", [True, False])
async def test_a_stop_reaches_the_command(shell: str, setsid: bool, output: Output, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    path = os.environ["PATH"]
    if not setsid:
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("mkdir", "mv", "sleep", *(["busybox"] if shell == "busybox" else [])):
            found = shutil.which(name)
            assert found is not None
            (tools / name).symlink_to(found)
        path = str(tools)
    command = f'trap "echo saved; exit 7" TERM; echo up >{ready}; while :; do sleep 0.05; done'
    wrapper = started(shell, line(output, command), path)
    try:
        assert ready.read_text() == "up\n"
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.wait(10) == 7
    finally:
        wrapper.kill()
        wrapper.wait()
    assert (await collected(output.logs(RUN, 0, 0))).endswith(b"saved\n")
    assert await output.exit_code(RUN, 0) == 7


@pytest.mark.parametrize("shell", SHELLS)
def test_without_storage_the_command_does_not_run(shell: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = ran(shell, line(Output(str(blocked), tmp_path), f"touch {tmp_path}/ran"))
    assert done.returncode == NO_STORAGE
    assert "is the storage mounted?" in done.stderr
    assert not (tmp_path / "ran").exists()


async def test_links_that_lead_out_are_not_followed(output: Output, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("key")
    other = output.here / "bkbbbbbbbbbb"
    (other / "results").mkdir(parents=True)
    (other / "log-0").write_text("another's")
    (other / "results" / "r").write_text("another's")
    run = output.here / RUN
    (run / "results").mkdir(parents=True)
    (run / "log-0").symlink_to(secret / "key")
    (run / "log-1").symlink_to("../bkbbbbbbbbbb/log-0")
    os.mkfifo(run / "log-2")
    (run / "results" / "out").symlink_to(secret / "key")
    (run / "results" / "folder").symlink_to(secret)
    (run / "results" / "own").symlink_to("kept")
    (run / "results" / "kept").write_text("mine")
    for rank in (0, 1, 2):
        assert await collected(output.logs(RUN, rank, 0)) == b""
    assert [result.path async for result in output.results(RUN)] == ["kept", "own"]

    shutil.rmtree(run / "results")
    (run / "results").symlink_to(other / "results")
    assert [result.path async for result in output.results(RUN)] == []
    await output.delete(RUN)
    assert (other / "results" / "r").exists()
    run.symlink_to(other)
    assert await collected(output.logs(RUN, 0, 0)) == b""
    assert [result.path async for result in output.results(RUN)] == []
    await output.delete(RUN)
    assert (other / "log-0").exists()
    assert not run.is_symlink()


async def test_a_storage_that_is_not_mounted_is_no_empty_log(tmp_path: Path) -> None:
    output = Output("/mnt/x", tmp_path / "missing")
    with pytest.raises(Unavailable, match="mounted"):
        await collected(output.logs(RUN, 0, 0))
    assert not (await output.check()).ok
    assert (await Output("/mnt/x", tmp_path).check()).ok


def test_what_no_shell_can_take() -> None:
    run = spec("a", env=(("a-b", "1"),))
    with pytest.raises(Refused, match="a-b"):
        command_line(run, environment(run))
    for run in (spec("a\0b"), spec("a", env=(("X", "\0"),))):
        with pytest.raises(Refused, match="NUL"):
            command_line(run, environment(run))


def test_of_a_connection() -> None:
    options = {"output": {"in_job": "/mnt/x/", "here": "/srv/x"}}
    assert Output.of(Connection(CenterId("c"), "bk", options)) == Output("/mnt/x", Path("/srv/x"))
    assert Output.of(Connection(CenterId("c"), "bk")) is None
