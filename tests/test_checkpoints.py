"""Evidence of checkpoints: what is looked at, what it is worth, and a real job that goes on from one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.checkpoints import Checkpoints, newest_change_ms
from broker.client import Client
from broker.core.claims import Claims
from broker.core.model import Claim
from broker.core.policy import victims
from broker.track import newer_checkpoint_ms
from tests.builders import NOW_MS, claim, request
from tests.daemon_process import daemon, eventually, local_center
from tests.test_daemon import create, wait


def write(path: Path, at_s: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("state")
    os.utime(path, (at_s, at_s))


def test_the_newest_file_at_any_depth_counts(tmp_path: Path) -> None:
    assert newest_change_ms(tmp_path) is None  # a folder that was made is no checkpoint
    assert newest_change_ms(tmp_path / "none") is None
    write(tmp_path / "old", 1000)
    write(tmp_path / "step-2" / "rank-0" / "weights", 3000)
    write(tmp_path / "step-1" / "weights", 2000)
    assert newest_change_ms(tmp_path) == 3_000_000


def test_links_lead_nowhere_and_a_loop_ends(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside / "passwd", 5000)
    folder = tmp_path / "job"
    write(folder / "own", 1000)
    (folder / "file").symlink_to(outside / "passwd")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    assert newest_change_ms(folder) == 1_000_000


def test_no_more_is_looked_at_than_said(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number}", 1000 + number)
    write(tmp_path / "deep" / "newest", 9000)
    assert newest_change_ms(tmp_path, entries=21) in range(1_019_000, 1_020_000)
    assert newest_change_ms(tmp_path, entries=22) == 9_000_000


def test_a_folder_is_not_looked_at_again_at_once(tmp_path: Path) -> None:
    often, seldom = Checkpoints(period_s=0), Checkpoints(period_s=3600)
    assert (often.newest_ms(tmp_path), seldom.newest_ms(tmp_path)) == (None, None)
    write(tmp_path / "state", 1000)
    assert (often.newest_ms(tmp_path), seldom.newest_ms(tmp_path)) == (1_000_000, None)


@pytest.mark.parametrize(
    ("known", "seen", "news"),
    [
        (None, NOW_MS, NOW_MS),
        (None, NOW_MS + 1, None),
        (NOW_MS - 5, NOW_MS - 6, None),
        (NOW_MS - 5, NOW_MS - 5, None),
        (NOW_MS - 5, NOW_MS - 4, NOW_MS - 4),
        (None, 0, None),
        (None, None, None),
    ],
)
def test_only_the_past_is_evidence_and_only_the_newer_is_news(
    known: int | None, seen: int | None, news: int | None
) -> None:
    assert newer_checkpoint_ms(known, seen, NOW_MS) == news


def running(**changes: Any) -> Claim:
    """A run of an hour ago that says it writes a checkpoint every minute."""
    made = claim(started_ms=NOW_MS - 3_600_000)
    return replace(made, request=request(1, resumable=True, checkpoint_interval_s=60), **changes)


@pytest.mark.parametrize(
    ("what", "lost_s"),
    [
        (running(checkpoint_ms=NOW_MS - 5_000), 5),
        (running(checkpoint_ms=NOW_MS - 1_800_000), 1800),  # what is seen counts, not what was said
        (running(checkpoint_ms=NOW_MS - 9_000_000), 3600),  # of an earlier attempt: nothing since the start
        (running(), 60),
        (replace(running(), request=request(1, resumable=True)), 3600),
        (replace(running(), request=request(1)), 3600),
        (running(started_ms=None), 0),
    ],
)
def test_evidence_then_the_stated_interval_then_the_start(what: Claim, lost_s: int) -> None:
    columns = victims([what], Claims.of([what]).columns, np.zeros(1, dtype=np.int64), NOW_MS)
    assert columns.lost_s.tolist() == [lost_s]


# ---------------------------------------------------------------- a real job

POLICY = """
[policies.fit]
[policies.cost]
[policies.priority]
[policies.vip]
[policies.preemption]
min_run_time_s = 0
"""
COUNTING = (
    'cd "$BROKER_CHECKPOINT_DIR"; n=$(cat step 2>/dev/null || echo 0);'
    ' echo "$n" >"$BROKER_OUTPUT_DIR/began";'
    ' until [ -e enough ]; do n=$((n + 1)); echo "$n" >new; mv new step; sleep 0.1; done'
)


def test_a_job_that_a_vip_job_displaced_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    with daemon(tmp_path, local_center(tmp_path, "one", nodes=1)) as broker:
        alice, root = broker.client("alice"), broker.client("root")
        lower = create(alice, "lower", COUNTING, cores=4, resumable=True, stopGrace=1)
        eventually("a checkpoint was seen", lambda: "checkpointTime" in last(alice, lower))
        assert alice.explain(lower)["placement"]["checkpointTime"]
        steps = tmp_path / "work-one" / "checkpoints" / lower / "step"
        eventually("a step is whole", steps.exists)  # what was seen may have been one in the making
        before = int(steps.read_text())
        first = create(root, "first", "sleep 1", cores=4, isVip=True, preemptPolicy=2)
        assert wait(root, first)["status"] == "SUCCEEDED"
        (steps.parent / "enough").touch()
        found = wait(alice, lower)
        assert found["status"] == "SUCCEEDED"
        assert found["retriesUsed"] == 0
        assert [run["state"] for run in found["runs"]] == ["STOPPED", "SUCCEEDED"]
        assert found["runs"][0]["taskId"] != found["runs"][1]["taskId"]
        files = {path.name: path.read_text() for path in alice.download(lower, tmp_path / "results")}
        assert int(files["began"]) >= before > 0


def last(client: Client, job: str) -> dict[str, Any]:
    runs: list[Any] = client.job(job)["runs"]
    return dict(runs[-1])
