"""One story: jobs that succeed, fail, are stopped and preempted, while their daemon is killed.

What belongs here: the jobs, what is true at the end beyond tests/soak.py, and which kills a seed means.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.client import Client
from broker.companions import read_settings
from broker.core.model import Role
from broker.daemon import factories
from broker.fsck import check_centers, check_store
from broker.store.checks import Finding
from tests.chaos.process import PATIENCE_S, KilledDaemon, Launcher
from tests.chaos.sites import STAGES, Stage
from tests.daemon_process import DaemonProcess, eventually
from tests.soak import ENDED, Soak, Work

POINTS = 150
"""A kill is at one of the first so many points of a start."""


@dataclass(frozen=True, slots=True)
class Plot:
    """What makes a story: `python -m tests.chaos --site S --seed N --kill … --kill …` tells it again."""

    site: str
    seed: int
    kills: tuple[str, ...]

    @property
    def command(self) -> str:
        kills = " ".join(f"--kill '{kill}'" for kill in self.kills)
        return f"python -m tests.chaos --site {self.site} --seed {self.seed} {kills}"


@dataclass(frozen=True, slots=True)
class Told:
    """How it went.  `passed` are the points that were numbered, `died` those at which it was killed."""

    killed: int
    passed: frozenset[str]
    died: tuple[str, ...]


def kills_of(seed: int, count: int) -> tuple[str, ...]:
    """Numbers of points, smaller ones more often: a start that ends early passes no others."""
    draw = random.Random(seed)
    return tuple(str(int(draw.triangular(1, POINTS, POINTS / 3))) for _ in range(count))


def works(stage: Stage, seed: int) -> list[Work]:
    """The low jobs fill the center; one job of every other kind; the VIP job comes last."""
    draw = random.Random(seed)

    def work(name: str, *, size: int = 0, run_s: int = 0, **more: object) -> Work:
        # high jobs are nobody's victims: a failure while a stop is under way counts as stopped
        plain = {"exit_code": 0, "retries": 0, "priority": "high", "vip": False, "stopped": "", "nodes": 1}
        return Work(name=name, size=size, run_s=run_s or draw.randint(2, 12), **(plain | more))  # type: ignore[arg-type]

    low = [
        work(f"low-{n}", size=stage.large, run_s=draw.randint(20, 50), priority="low")
        for n in range(min(stage.room, 3))
    ]
    others = [
        work("quick"),
        work("fails", exit_code=3, retries=1),
        work("unwanted", stopped="waiting"),
        work("stopped", run_s=2400, stopped="running"),
    ]
    if stage.site.gangs:
        others.append(work("gang", nodes=2))
    draw.shuffle(others)
    if stage.site.vips:
        others.append(work("vip", size=stage.large, vip=True))
    return low + others


@dataclass
class Chaos(Soak):
    """A soak whose daemon dies."""

    stage: Stage = field(kw_only=True)
    stopped: set[str] = field(default_factory=set, kw_only=True)

    def _submit(self, client: Client) -> None:
        specs = self._specs(client)
        eventually("images are known", lambda: self._image_known(client), within_s=self.patience_s)
        low = [work.name for work in self.works if work.priority == "low"]
        for work in self.works:
            if work.name not in low:
                self._until_runs(client, low)
            config = {
                "specId": specs[work.size],
                "imageId": self.image,
                "command": self.stage.command(work),
                "nodeCount": work.nodes,
                "maxRetries": work.retries,
                "stopGrace": 1,
                **({"isVip": True, "preemptPolicy": 2} if work.vip else {"priority": work.priority}),
            }
            body = {"jobName": work.name, "config": config}
            self.jobs[work.name] = str(client.create_job(body, key=work.name)["metadata"]["id"])

    def _image_known(self, client: Client) -> bool:
        """Specs and images come with the same poll, in transactions of their own."""
        return any(image["imageId"] == self.image for image in client.images()["images"])

    def _until_runs(self, client: Client, names: Sequence[str]) -> None:
        """Until one of them has a node, so that there is somebody to preempt."""
        end = time.monotonic() + 5  # in doubt, or kept away from its center: then the story goes on without
        while time.monotonic() < end:
            if {self._statuses(client)[name] for name in names} & {"RUNNING", *ENDED}:
                return
            time.sleep(0.1)

    def _stop(self, client: Client, name: str) -> bool:
        if not super()._stop(client, name):
            return False
        self.stopped.add(name)
        return True

    def _stuck(self, name: str) -> bool:
        """A doubt that looking ends is waited for."""
        if self.doubts_end and self._state(name) == "DOUBT":
            return False
        return super()._stuck(name)

    def _waits_long(self, name: str) -> bool:
        (row,) = self._rows(
            "SELECT state, json_array_length(avoid) AS away FROM job WHERE id = ?", self.jobs[name]
        )
        return bool(row["state"] == "QUEUED" and row["away"] >= self.stage.centers)

    def _check(self, final: dict) -> None:  # type: ignore[type-arg]
        super()._check(final)
        for work in self.works:  # a stop that was taken for a job that would go on is carried out
            if work.stopped == "running" and work.name in self.stopped:
                assert final[work.name]["status"] in ("STOPPED", "FAILED"), final[work.name]
        count = self._rows("SELECT count(*) AS n FROM job")[0]["n"]
        assert count == len(self.works), f"{len(self.works)} jobs were submitted, the store has {count}"
        for table, which in (
            ("outbox", ""),
            ("reservation", ""),
            ("run", "WHERE stop_for IS NOT NULL OR stop_owed_ms IS NOT NULL"),
            ("lease", "WHERE holder <> ''"),
        ):
            left = [tuple(row) for row in self._rows(f"SELECT * FROM {table} {which}")]
            assert not left, f"{table} {which}: {left}"


def tell(plot: Plot, folder: Path, launcher: Launcher, template: Path) -> Told:
    """The whole story in an empty folder.  Raises AssertionError when something is not as it must be."""
    shutil.copy(template, folder / "broker.db")
    with STAGES[plot.site](folder, plot.seed) as stage:
        broker = KilledDaemon(folder, stage.site.center, launcher=launcher, kills=plot.kills)
        broker.start()
        try:
            story = Chaos(
                broker,
                stage.truth,
                works(stage, plot.seed),
                stage.site.image,
                stage.site.doubts_end,
                patience_s=PATIENCE_S,
                stage=stage,
            )
            story.run()
            findings = check(broker.config)
            assert not findings, "\n".join(map(str, findings))
        finally:
            broker.end()
        lines = broker.record.read_text().splitlines()
    passed = {line.split(" ", 1)[1].rpartition("#")[0] for line in lines if not line.startswith("killed")}
    died = tuple(line.split(" ", 1)[1] for line in lines if line.startswith("killed"))
    return Told(broker.killed, frozenset(passed), died)


def check(config: Path) -> list[Finding]:
    """What `broker fsck --centers` finds, now that the daemon has ended."""
    settings, _, _ = read_settings(config, {})
    there = asyncio.run(check_centers(settings, factories()))
    assert not there.silent, there.silent
    return [*check_store(settings).findings, *there.findings]


def make_template(folder: Path) -> Path:
    """A store with the accounts that every story has: hashing passwords takes a while."""
    made = DaemonProcess(
        folder,
        '[[centers]]\nid = "a"\nname = "A"\nadapter = "local"\n[centers.connection]\nwork_dir = "/nowhere"\n',
    )
    made.add_user("alice")
    made.add_user("root", role=Role.OPERATOR, tenant="ops")
    return folder / "broker.db"
