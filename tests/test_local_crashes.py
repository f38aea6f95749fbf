"""Local runs when something dies: the daemon, the machine, a supervisor; see test_local.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.local import Local
from broker.adapter import (
    RemoteState,
    Unavailable,
)
from broker.core.model import RunId
from tests.test_local import (
    adapter,
    end_of,
    local,
    ref,
    running,
    spec,
    until,
)

__all__ = ["adapter"]

# ---------------------------------------------------------------- crashes

CHILD = """
import asyncio, sys
from pathlib import Path
from tests.test_local import local, spec
async def main():
    adapter = await local(Path(sys.argv[1]))
    for run in (spec(sys.argv[2]), spec(sys.argv[3], name="bk0000000002")):
        await adapter.submit(run)
    print("submitted", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_runs_outlive_the_daemon_and_are_found_again(tmp_path: Path) -> None:
    """One run ends while no daemon is there, one goes on under the next; each ran once."""
    work, starts, go = tmp_path / "work", tmp_path / "starts", tmp_path / "go"
    quick = f"echo quick >>{starts}; until [ -e {go} ]; do sleep 0.05; done; exit 5"
    slow = f"echo slow >>{starts}; sleep 600"
    daemon = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", CHILD, str(work), quick, slow],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        assert await asyncio.to_thread(daemon.stdout.readline) == b"submitted\n"
        with pytest.raises(Unavailable, match="held by another process"):
            await local(work)
        await until(lambda: starts.exists() and len(starts.read_text().split()) == 2)
        daemon.kill()
        daemon.wait()
    go.touch()
    await until((work / "runs" / "bk0000000001" / "exit-0").exists)

    adapter = await local(work)
    first, second = spec(quick), spec(slow, name="bk0000000002")
    assert await adapter.find(second.id) == ref(second).remote
    assert await adapter.submit(second) == ref(second).remote
    seen = await adapter.observe([ref(first), ref(second)])
    assert (seen[first.id].state, seen[first.id].exit_code) == (RemoteState.FAILED, 5)
    assert seen[second.id].state is RemoteState.RUNNING
    await adapter.stop(ref(second), grace_s=5)
    assert (await end_of(adapter, second)).state is RemoteState.STOPPED
    assert sorted(starts.read_text().split()) == ["quick", "slow"]
    await adapter.aclose()


async def test_a_directory_without_spec_does_not_count(tmp_path: Path) -> None:
    half = tmp_path / "work" / "runs" / "bk0000000001"
    (half / "node-0").mkdir(parents=True)
    adapter = await local(tmp_path / "work")
    assert await adapter.find(RunId("bk0000000001")) is None
    assert not half.exists()
    assert list((tmp_path / "work" / "trash").iterdir()) == []
    await adapter.aclose()


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_half_started_gang_becomes_whole_unless_stopped(tmp_path: Path, stopped: bool) -> None:
    """The crash came after spec.json and the first rank; what never started has no trace."""
    work = tmp_path / "work"
    run = spec('echo "rank $BROKER_NODE_RANK" >>"$BROKER_OUTPUT_DIR/starts"', nodes=2)
    adapter = await local(work)
    await adapter.submit(run)
    await end_of(adapter, run)
    await adapter.aclose()
    folder = work / "runs" / run.id
    for name in ("started-1", "exit-1", "alive-1"):
        (folder / name).unlink()
    (folder / "output" / "starts").write_text("rank 0\n")
    if stopped:
        (folder / "stop-requested").write_text("0 0\n")

    adapter = await local(work)
    seen = await end_of(adapter, run)
    assert seen.state is (RemoteState.STOPPED if stopped else RemoteState.SUCCEEDED)
    expected = "rank 0\n" if stopped else "rank 0\nrank 1\n"
    assert (folder / "output" / "starts").read_text() == expected
    await adapter.aclose()


async def test_a_restarted_host_has_lost_its_runs(tmp_path: Path) -> None:
    work, run = tmp_path / "work", spec("sleep 600", nodes=2)
    adapter = await local(work)
    await adapter.submit(run)
    await until((work / "runs" / run.id / "started-1").exists)
    await adapter.stop(ref(run), grace_s=0)
    await end_of(adapter, run)
    await adapter.aclose()
    folder = work / "runs" / run.id
    for name in ("exit-0", "exit-1", "stop-requested"):
        (folder / name).unlink()
    stored = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**stored, "boot_id": "an earlier boot"}))

    adapter = await local(work)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.host_lost, seen.exit_code) == (RemoteState.FAILED, True, None)
    assert seen.message.startswith("host_restarted")
    assert sum(free.nodes for free in (await adapter.probe()).pools[0].free if free.cores) == 4
    await adapter.aclose()


async def test_a_killed_supervisor_leaves_no_process(adapter: Local, tmp_path: Path) -> None:
    run = spec(f"echo $$ >{tmp_path}/pid; exec sleep 600")
    await adapter.submit(run)
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    os.kill(int((tmp_path / "work" / "runs" / run.id / "alive-0").read_text()), signal.SIGKILL)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.host_lost) == (RemoteState.FAILED, True)
    assert seen.message.startswith("supervisor_lost")
    await until(lambda: not running(int((tmp_path / "pid").read_text())))


async def test_no_supervisor(adapter: Local, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("adapters.local_runner.SUPERVISOR", tmp_path / "nowhere.sh")
    run = spec("true")
    await adapter.submit(run)
    seen = await end_of(adapter, run)
    assert (seen.state, seen.cannot_start) == (RemoteState.FAILED, True)
    assert "nowhere.sh" in seen.message
