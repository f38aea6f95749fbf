"""What only the local center does: real processes, their supervisors, and crashes between the steps."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.local import Local, connect
from broker.adapter import (
    Connection,
    CopyRef,
    CopyState,
    Refused,
    RemoteState,
    RunRef,
    RunSpec,
    Sighting,
    StatedPool,
    Unavailable,
)
from broker.core.model import CenterId, JobId, NodeShape, RemoteId, RunId, Spec, SpecId

SHAPE = NodeShape("X86", 1, 1)
POOL = StatedPool("cpu", SHAPE, 4)
LIVE = (RemoteState.PENDING, RemoteState.RUNNING)
DEADLINE_S = 20.0


async def local(work: Path, **options: Any) -> Local:
    options = {"work_dir": str(work), **options}
    adapter = await connect(Connection(CenterId("c"), "bk", options, pools=(POOL,)))
    assert isinstance(adapter, Local)
    return adapter


def spec(command: str, *, name: str = "bk0000000001", nodes: int = 1, **changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "id": RunId(name),
        "job": JobId("job-1"),
        "attempt": 1,
        "native_pool": "cpu",
        "spec": Spec(SpecId("s"), "s", SHAPE),
        "nodes": nodes,
        "command": command,
        "image": "",
        "env": (),
        "max_run_time_s": None,
        "stop_grace_s": 1,
    }
    return RunSpec(**{**fields, **changes})


def ref(run: RunSpec) -> RunRef:
    return RunRef(run.id, run.job, RemoteId(run.id), run.nodes)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.02)


async def end_of(adapter: Local, run: RunSpec) -> Sighting:
    deadline = time.monotonic() + DEADLINE_S
    while (seen := (await adapter.observe([ref(run)]))[run.id]).state in LIVE:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.02)
    return seen


async def log_of(adapter: Local, run: RunSpec, node: int = 0) -> str:
    return b"".join([chunk async for chunk in adapter.logs(ref(run), node, 0)]).decode()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
async def adapter(tmp_path: Path) -> AsyncIterator[Local]:
    adapter = await local(tmp_path / "work")
    yield adapter
    for path in (tmp_path / "work" / "runs").iterdir():
        run = RunRef(RunId(path.name), JobId("job-1"), RemoteId(path.name), 1)
        await adapter.stop(run, grace_s=0)
        await end_of(adapter, spec("", name=path.name))
    await adapter.aclose()


# ---------------------------------------------------------------- ends


async def test_what_the_command_leaves_behind_ends_with_it(adapter: Local, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    run = spec(f"nohup sleep 600 & echo $! >{pids}; bash -mc 'sleep 600 & echo $! >>{pids}'; exit 0")
    await adapter.submit(run)
    assert (await end_of(adapter, run)).state is RemoteState.SUCCEEDED
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    assert not any(map(running, left))


async def test_a_stop_reaches_grandchildren_and_waits_for_them(adapter: Local, tmp_path: Path) -> None:
    """The shell in front ends at once; the process behind it has the grace to save."""
    saved = tmp_path / "saved"
    inner = (
        f"trap 'sleep 0.3; echo done >{saved}; exit 0' TERM; echo up >{saved}; while :; do sleep 0.05; done"
    )
    run = spec(f"bash -mc 'sleep 600 & echo $! >{tmp_path}/pid'; sh -c \"{inner}\"; true")
    await adapter.submit(run)
    await until(lambda: saved.exists() and saved.read_text() == "up\n")
    await adapter.stop(ref(run), grace_s=10)
    assert (await end_of(adapter, run)).state is RemoteState.STOPPED
    assert saved.read_text() == "done\n"
    assert not running(int((tmp_path / "pid").read_text()))


async def trapping(adapter: Local, action: str, up: Path) -> RunSpec:
    """A run that answers SIGTERM with `action`, and is up."""
    run = spec(f"trap '{action}' TERM; touch {up}; while :; do sleep 0.05; done")
    await adapter.submit(run)
    await until(up.exists)
    return run


async def test_exit_0_after_a_stop_is_not_success(adapter: Local, tmp_path: Path) -> None:
    run = await trapping(adapter, "exit 0", tmp_path / "up")
    await adapter.stop(ref(run), grace_s=10)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.exit_code) == (RemoteState.STOPPED, 0)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(
    adapter: Local, tmp_path: Path
) -> None:
    run = await trapping(adapter, "", tmp_path / "up")
    asked = time.monotonic()
    await adapter.stop(ref(run), grace_s=1)
    assert time.monotonic() - asked < 0.9, "a stop does not wait"
    assert (await end_of(adapter, run)).state is RemoteState.STOPPED
    assert time.monotonic() - asked >= 1


async def test_a_later_stop_may_shorten_the_grace(adapter: Local, tmp_path: Path) -> None:
    run = await trapping(adapter, "", tmp_path / "up")
    await adapter.stop(ref(run), grace_s=600)
    await adapter.stop(ref(run), grace_s=0)
    assert (await end_of(adapter, run)).state is RemoteState.STOPPED


async def test_a_machine_that_goes_down_is_not_the_jobs_failure(adapter: Local, tmp_path: Path) -> None:
    """At shutdown everything gets SIGTERM, and nobody asked for a stop."""
    run = await trapping(adapter, "exit 143", tmp_path / "up")
    os.killpg(int((tmp_path / "work" / "runs" / run.id / "alive-0").read_text()), signal.SIGTERM)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.host_lost) == (RemoteState.FAILED, True)


async def test_a_gang_fails_as_a_whole(adapter: Local) -> None:
    run = spec("[ $BROKER_NODE_RANK = 0 ] && exec sleep 600; exit 7", nodes=2)
    await adapter.submit(run)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.exit_code) == (RemoteState.FAILED, 7)
    assert seen.message == "node 1 ended with exit code 7"


async def test_an_end_by_signal_is_named(adapter: Local) -> None:
    run = spec("kill -9 $$")
    await adapter.submit(run)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.exit_code, seen.host_lost) == (RemoteState.FAILED, 137, False)
    assert "SIGKILL" in seen.message


@pytest.mark.parametrize(
    ("command", "words"),
    [("no-such-program --epochs 3", "no-such-program"), (": " + "x" * 200_000, "too long")],
    ids=["not there", "too long"],
)
async def test_a_command_that_cannot_start(adapter: Local, command: str, words: str) -> None:
    run = spec(command)
    await adapter.submit(run)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.cannot_start, seen.host_lost) == (RemoteState.FAILED, True, False)
    assert words in seen.message


async def test_no_supervisor_stays_as_a_zombie(adapter: Local, tmp_path: Path) -> None:
    run = spec("true")
    await adapter.submit(run)
    await end_of(adapter, run)
    pid = int((tmp_path / "work" / "runs" / run.id / "alive-0").read_text())
    deadline = time.monotonic() + DEADLINE_S
    while str(pid) in os.listdir("/proc"):
        assert time.monotonic() < deadline
        await adapter.observe([])
        await asyncio.sleep(0.01)


# ---------------------------------------------------------------- what a job finds


async def test_the_environment(adapter: Local, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BROKER_TOKEN", "secret of the daemon")
    odd = 'it\'s $HOME `date` "x"\nsecond line'
    env = (("ODD", odd), ("LD_LIBRARY_PATH", "/nowhere"), ("BROKER_OUTPUT_DIR", "/elsewhere"))
    run = spec(
        "env -0 >$BROKER_OUTPUT_DIR/env; pwd; grep SigIgn /proc/self/status",
        env=env,
        nodes=2,
        port=8080,
        attempt=3,
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as a daemon under nohup has it
    try:
        await adapter.submit(run)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (await end_of(adapter, run)).state is RemoteState.SUCCEEDED
    folder = tmp_path / "work" / "runs" / run.id
    found = dict(
        line.split("=", 1) for line in (folder / "output" / "env").read_text().split("\0") if "=" in line
    )
    rank = found["BROKER_NODE_RANK"]
    node = folder / f"node-{rank}"
    assert rank in ("0", "1")
    where, ignored = (await log_of(adapter, run, int(rank))).splitlines()
    assert where == str(node)
    # 1 to 31 are the signals a program knows; 32 is the C library's own, and whatever make starts
    # inherits it ignored.
    assert int(ignored.removeprefix("SigIgn:"), 16) & ((1 << 31) - 1) == 0
    expected = {
        "BROKER_JOB_ID": "job-1",
        "BROKER_TASK_ID": run.id,
        "BROKER_ATTEMPT": "3",
        "BROKER_NODE_COUNT": "2",
        "BROKER_MASTER_ADDR": "127.0.0.1",
        "BROKER_OUTPUT_DIR": str(folder / "output"),
        "BROKER_CHECKPOINT_DIR": str(tmp_path / "work" / "checkpoints" / "job-1"),
        "BROKER_DATASETS_DIR": str(folder / "datasets"),
        "BROKER_PORT": "8080",
        "ODD": odd,
        "LD_LIBRARY_PATH": "/nowhere",
        "HOME": str(node),
        "TMPDIR": str(node / "tmp"),
    }
    assert {name: found.get(name) for name in expected} == expected
    shells_own = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert set(found) - set(expected) - shells_own == {"PATH", "LANG", "BROKER_NODE_RANK"}


async def test_a_mebibyte_of_output_comes_whole_in_chunks(adapter: Local) -> None:
    run = spec("yes 0123456789abcde | head -c 1048576")
    await adapter.submit(run)
    await end_of(adapter, run)
    chunks = [chunk async for chunk in adapter.logs(ref(run), 0, 0)]
    assert b"".join(chunks) == b"0123456789abcde\n" * 65536
    assert max(map(len, chunks)) == 65536


async def test_results_never_lead_outside(adapter: Local, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    command = (
        f"cd $BROKER_OUTPUT_DIR; echo 1 >step-1; ln -s step-1 latest; ln -s {tmp_path}/secret out;"
        f" ln -s {tmp_path} folder; ln -s nowhere broken; mkfifo pipe"
    )
    run = spec(command)
    await adapter.submit(run)
    assert (await end_of(adapter, run)).state is RemoteState.SUCCEEDED
    assert [result.path async for result in adapter.results(ref(run))] == ["latest", "step-1"]


async def test_a_data_set_is_linked_not_copied(adapter: Local, tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    source.mkdir()
    (source / "part-1").write_text("data")
    copy = CopyRef("corpus-1", CenterId("c"), str(source), 4)
    for _ in range(2):
        staged = await adapter.stage(copy)
        assert (staged.state, staged.remote) == (CopyState.READY, str(source))
    run = spec(
        "cat $BROKER_DATASETS_DIR/corpus-1/part-1; ls $BROKER_DATASETS_DIR",
        datasets=(("corpus-1", staged.remote),),
    )
    await adapter.submit(run)
    await end_of(adapter, run)
    assert await log_of(adapter, run) == "datacorpus-1\n"
    missing = await adapter.stage(CopyRef("corpus-2", CenterId("c"), str(tmp_path / "none"), 4))
    assert missing.state is CopyState.FAILED


async def test_a_run_finds_the_data_sets_that_it_names_and_no_other(adapter: Local, tmp_path: Path) -> None:
    remotes = []
    for name in ("one", "two", "three"):
        source = tmp_path / name
        source.mkdir()
        seen = await adapter.stage(CopyRef(name, CenterId("c"), str(source), 0))
        remotes.append((name, seen.remote))
    run = spec("ls $BROKER_DATASETS_DIR", datasets=tuple(remotes[:2]), nodes=1)
    none = spec("ls -a $BROKER_DATASETS_DIR", name="bk0000000002")
    for each in (run, none):
        await adapter.submit(each)
        await end_of(adapter, each)
    assert await log_of(adapter, run) == "one\ntwo\n"
    assert await log_of(adapter, none) == ".\n..\n"
    for bad in (("x", str(tmp_path / "not there")), ("x", "one"), ("../x", str(tmp_path))):
        with pytest.raises(Refused, match="data set"):
            await adapter.submit(spec("true", name="bk0000000003", datasets=(bad,)))


async def test_a_data_set_is_removed_and_may_be_staged_again(adapter: Local, tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    source.mkdir()
    (source / "part-1").write_text("data")
    copy = CopyRef("corpus-1", CenterId("c"), str(source), 4)
    link = tmp_path / "work" / "datasets" / "corpus-1"
    for _ in range(2):
        await adapter.stage(copy)
        assert link.is_symlink()
        await adapter.unstage(copy)
        await adapter.unstage(copy)
        assert not link.is_symlink()
    assert (source / "part-1").read_text() == "data"


async def test_checkpoints_are_the_jobs_and_outlive_its_runs(adapter: Local) -> None:
    for attempt in (1, 2):
        run = spec("echo x >>$BROKER_CHECKPOINT_DIR/steps; cat $BROKER_CHECKPOINT_DIR/steps", attempt=attempt)
        await adapter.submit(run)
        await end_of(adapter, run)
        assert await log_of(adapter, run) == "x\n" * attempt
        await adapter.delete(ref(run))


# ---------------------------------------------------------------- capacity and options


async def test_a_live_run_is_not_deleted(adapter: Local) -> None:
    await adapter.submit(spec("sleep 600"))
    run = ref(spec(""))
    assert (await adapter.observe([run]))[run.id].state in LIVE
    with pytest.raises(Unavailable):
        await adapter.delete(run)


async def test_every_check_passes(adapter: Local) -> None:
    checks = [check async for check in adapter.checks()]
    assert len(checks) > 3
    assert [check for check in checks if not check.ok and check.name != "disk"] == []


async def test_without_stated_pools_the_machine_is_one(tmp_path: Path) -> None:
    options = {"work_dir": str(tmp_path / "work"), "cores": 3, "memory_gib": 5}
    adapter = await connect(Connection(CenterId("c"), "bk", options))
    (pool,) = (await adapter.probe()).pools
    assert (pool.native, pool.nodes, pool.shape.cores, pool.shape.memory_gib) == ("local", 1, 3, 5)
    await adapter.aclose()


async def test_run_as_separates_jobs_from_the_daemon() -> None:
    """As root: the job is another user, owns what it writes, and cannot touch its own record."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        if os.geteuid() != 0:
            with pytest.raises(ValueError, match="only root"):
                await local(Path(folder, "work"), run_as="nobody")
            return
        os.chmod(folder, 0o711)
        adapter = await local(Path(folder, "work"), run_as="nobody")
        command = (
            "id -un; touch $BROKER_OUTPUT_DIR/o $BROKER_CHECKPOINT_DIR/c $TMPDIR/t $HOME/h;"
            " echo again >>/dev/stdout; cat ../spec.json; rm -f ../started-0; kill -9 $PPID; exit 4"
        )
        run = spec(command, env=(("LD_PRELOAD", "/nowhere.so"),))
        await adapter.submit(run)
        seen = await end_of(adapter, run)
        log = await log_of(adapter, run)
        assert (seen.state, seen.exit_code, seen.host_lost) == (RemoteState.FAILED, 4, False)
        assert {"nobody", "again"} <= set(log.split())
        assert log.count("ermission denied") + log.count("not permitted") >= 2
        assert "boot_id" not in log
        written = [result.path async for result in adapter.results(ref(run))]
        assert written == ["o"]
        source = _closed_folder(Path(folder))
        copy = CopyRef("corpus-1", CenterId("c"), str(source), 4)
        seen_copy = await adapter.stage(copy)
        assert seen_copy.state is CopyState.READY
        reads = spec(
            "cat $BROKER_DATASETS_DIR/corpus-1/part-1",
            name="bk0000000002",
            datasets=(("corpus-1", seen_copy.remote),),
        )
        await adapter.submit(reads)
        await end_of(adapter, reads)
        assert await log_of(adapter, reads) == "data"
        await adapter.unstage(copy)
        assert os.listdir(Path(folder, "work", "datasets")) == []
        await adapter.aclose()


def _closed_folder(root: Path) -> Path:
    """A data set as the broker's own data directory has it: for the daemon's user only."""
    source = root / "closed" / "corpus"
    source.mkdir(parents=True, mode=0o700)
    (source / "part-1").write_text("data")
    (source / "part-1").chmod(0o600)
    (root / "closed").chmod(0o700)
    return source


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "work_dir is None"),
        ({"work_dir": "relative"}, "work_dir is 'relative'"),
        ({"cores": 0}, "cores is 0"),
        ({"memory_gib": "8"}, "memory_gib is '8'"),
        ({"run_as": "no such user"}, "run_as is 'no such user'"),
        ({"workdir": "/x"}, "workdir: unknown option"),
    ],
)
async def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    base = {"work_dir": str(tmp_path / "work")} if options else {}
    with pytest.raises(ValueError, match=words):
        await connect(Connection(CenterId("c"), "bk", {**base, **options}))
