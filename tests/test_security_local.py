"""Local centers whose jobs are hostile: links, pipes and second names where the broker reads and writes.

What belongs here: what a job may put in place of a file of its own folder.  What does not: running jobs
(test_local.py).  As root, which CI is, some of these give away or show files of others.
"""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from adapters.local import Local
from adapters.local_command import Owner
from adapters.local_files import make_dir, open_private
from adapters.output import command_line
from broker.adapter import Refused, RemoteState, RunSpec, Sighting
from broker.core.model import JobId, RunId
from tests.test_local import adapter, end_of, log_of, ref, spec

__all__ = ["adapter"]

SECRET = "top-s3cret-of-the-broker"
TRICKY = "a'b\"c $(touch INJECTED) `touch INJECTED`; touch INJECTED #\n\\ $HOME && touch INJECTED"


async def ended(adapter: Local, run: RunSpec) -> Sighting:
    await adapter.submit(run)
    return await end_of(adapter, run)


def injected(folder: Path) -> list[Path]:
    return list(folder.rglob("INJECTED"))


# ---------------------------------------------------------------- what a job puts in place of its files


@pytest.mark.parametrize("trick", ["ln -sf {0} log", "mkfifo pipe && mv pipe log", "rm log"])
async def test_a_log_that_leads_elsewhere_is_told_by_no_message(
    adapter: Local, tmp_path: Path, trick: str
) -> None:
    """The last line of the log is the message of a run that cannot start; the job owns the log's name."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    node = tmp_path / "work" / "runs" / "bk-1" / "node-0"
    command = f"cd {node} && {trick.format(secret)}; exit 127"
    run = spec(command, name="bk-1")
    seen = await ended(adapter, run)
    assert seen.state is RemoteState.FAILED
    assert SECRET not in seen.message
    assert SECRET not in await log_of(adapter, run)


async def test_results_that_lead_elsewhere_are_left_out(adapter: Local, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    made = f"ln -s {secret} a; ln -s / b; mkfifo c; mkdir d; ln -s ../../../.. d/e; echo x >f"
    tricks = f'cd "$BROKER_OUTPUT_DIR"; {made}'
    run = spec(tricks)
    seen = await ended(adapter, run)
    assert seen.state is RemoteState.SUCCEEDED
    assert [result.path async for result in adapter.results(ref(run))] == ["f"]


def test_a_folder_that_has_become_a_link_gives_nothing_away(tmp_path: Path) -> None:
    """Between making a folder and giving it to the jobs' user another job of theirs may replace it."""
    victim = tmp_path / "victim"
    victim.write_text("x")
    before = victim.stat().st_uid, victim.stat().st_gid
    given: list[bool] = []

    class Swapped(type(Path())):  # type: ignore[misc]
        """A folder that is swapped as soon as it has been made."""

        def mkdir(self, *arguments: object, **more: object) -> None:
            os.symlink(victim, self)
            given.append(True)

    nobody = pwd.getpwnam("nobody")
    try:
        make_dir(Swapped(tmp_path / "folder"), Owner("nobody", nobody.pw_uid, nobody.pw_gid))
    except PermissionError:
        assert os.geteuid() != 0  # nobody else can give anything away
    assert given == [True]
    assert (victim.stat().st_uid, victim.stat().st_gid) == before


@pytest.mark.parametrize("trick", ["link", "pipe", "second name", "folder"])
def test_a_file_that_a_job_has_replaced_is_not_opened(tmp_path: Path, trick: str) -> None:
    victim, file = tmp_path / "victim", tmp_path / "log"
    victim.write_text("as it was")
    match trick:
        case "link":
            file.symlink_to(victim)
        case "pipe":
            os.mkfifo(file)
        case "second name":
            file.hardlink_to(victim)
        case "folder":
            file.mkdir()
    with pytest.raises(OSError) as no:
        open_private(file, os.O_WRONLY | os.O_APPEND)
    assert no.value.errno in (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EISDIR)
    assert victim.read_text() == "as it was"


# ---------------------------------------------------------------- what a job is asked to be


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "a b", "a\nb", "-rf", "a\0b"])
async def test_names_that_are_paths_are_refused(adapter: Local, tmp_path: Path, name: str) -> None:
    for run in (
        spec("true", id=RunId(name)),
        spec("true", job=JobId(name)),
        spec("true", datasets=((name, "/tmp"),)),
    ):
        with pytest.raises(Refused):
            await adapter.submit(run)
    assert os.listdir(tmp_path / "work" / "runs") == []


@pytest.mark.parametrize("key", ["A B", "A;touch x", "A\nB", "1A", "A=B", "", "PATH$(id)", "A-B"])
async def test_variables_that_a_shell_would_run_are_refused(adapter: Local, key: str) -> None:
    with pytest.raises(Refused):
        await adapter.submit(spec("true", env=((key, "1"),)))
    with pytest.raises(Refused):
        command_line(spec("true"), {key: "1"})


async def test_values_of_a_job_run_nothing(adapter: Local, tmp_path: Path) -> None:
    run = spec('printf %s "$TRICK"', env=(("TRICK", TRICKY),))
    seen = await ended(adapter, run)
    assert seen.state is RemoteState.SUCCEEDED
    assert await log_of(adapter, run) == TRICKY
    assert not injected(tmp_path)


def test_values_of_a_job_run_nothing_at_a_platform(tmp_path: Path) -> None:
    """What the adapters of platforms send as the command line, given to a real shell."""
    run = spec('printf %s "$TRICK"')
    line = command_line(run, {"TRICK": TRICKY})
    done = subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == TRICKY
    assert os.listdir(tmp_path) == []


async def test_nothing_of_the_daemons_environment_reaches_a_job(
    adapter: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CENTER_PASSWORD", SECRET)
    run = spec("env")
    await ended(adapter, run)
    assert SECRET not in await log_of(adapter, run)


# ---------------------------------------------------------------- who may read


async def test_what_a_run_leaves_is_its_users_alone(adapter: Local, tmp_path: Path) -> None:
    await ended(adapter, spec("echo x > made", name="bk-1", env=(("TOKEN", SECRET),)))
    run = tmp_path / "work" / "runs" / "bk-1"
    for path in (tmp_path / "work", run, run / "node-0", run / "output"):
        assert path.stat().st_mode & 0o077 == 0, path
    for name in ("env-0", "spec.json", "node-0/log", "node-0/made"):
        assert (run / name).stat().st_mode & 0o077 == 0, name
