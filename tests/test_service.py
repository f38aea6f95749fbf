"""The service: its unit file as systemd judges it, and what the daemon tells systemd."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import service
from tests.daemon_process import PATIENCE_S, DaemonProcess, local_center

CONFIG = Path(__file__).parent.parent / "config"
UNIT = CONFIG / "broker.service"
LOCAL_CENTER = CONFIG / "systemd" / "local-center.conf"


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit file, with a program that is on this machine."""
    program = Path(sys.executable).with_name("broker")
    assert program.exists(), "install the project into this environment"
    (tmp_path / "broker.service").write_text(UNIT.read_text().replace("/usr/local/bin/broker", str(program)))
    return tmp_path / "broker.service"


def test_systemd_has_nothing_to_say_about_the_unit(unit: Path) -> None:
    # Unknown keys only warn, with exit code 0: silence is what counts.
    found = analyze("verify", "--man=no", str(unit))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_nor_with_the_settings_for_local_centers(unit: Path) -> None:
    more = unit.with_name("broker.service.d")
    more.mkdir()
    (more / "local-center.conf").write_text(LOCAL_CENTER.read_text())
    found = analyze("verify", "--man=no", str(unit))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_sandbox_is_tight(unit: Path) -> None:
    found = analyze("security", "--offline=true", "--threshold=20", str(unit))
    assert found.returncode == 0, found.stdout
    exposure = re.search(r"Overall exposure level for broker.service: ([\d.]+)", found.stdout)
    assert exposure is not None, found.stdout
    assert float(exposure[1]) <= 2.0


def test_a_check_that_fails_is_seen(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=process", "KilMode=process"))
    assert "KilMode" in analyze("verify", "--man=no", str(unit)).stderr


def test_user_and_folders(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    for kind in ("sysusers", "tmpfiles"):
        (etc / f"{kind}.d").mkdir(parents=True)
        source = CONFIG / "systemd" / f"broker.{kind}.conf"
        (etc / f"{kind}.d" / "broker.conf").write_text(source.read_text())
    found = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", "broker.conf"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert re.search(r"^broker:.*:/var/lib/broker:/usr/sbin/nologin$", (etc / "passwd").read_text(), re.M)
    found = subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "broker.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert (etc / "broker" / "credentials").stat().st_mode & 0o777 == 0o700


# ---------------------------------------------------------------- the daemon and its supervisor


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that systemd would listen at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def until(end: socket.socket, message: bytes) -> list[bytes]:
    """What was told, up to the first that begins with `message`."""
    told = [end.recv(4096)]
    while not told[-1].startswith(message):
        told.append(end.recv(4096))
    return told


def test_the_daemon_tells_its_supervisor(tmp_path: Path, supervisor: socket.socket) -> None:
    daemon = DaemonProcess(tmp_path, local_center(tmp_path, "here"))
    daemon.start()
    assert daemon.process is not None
    try:
        told = until(supervisor, b"READY=1")
        assert told[-1] == f"READY=1\nSTATUS=at {daemon.url}, 1 centers".encode()
        for _ in range(3):
            until(supervisor, b"WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        until(supervisor, b"RELOADING=1\nMONOTONIC_USEC=")
        until(supervisor, b"READY=1")
        daemon.process.terminate()
        until(supervisor, b"STOPPING=1")
        assert daemon.process.wait(PATIENCE_S) == 0
    finally:
        daemon.kill()


def test_the_watchdogs_signal_leaves_every_stack(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, local_center(tmp_path, "here"))
    daemon.start()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(PATIENCE_S) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.log.read_text()


async def test_a_pass_that_never_ends_does_not_feed_the_watchdog(supervisor: socket.socket) -> None:
    supervisor.setblocking(False)

    async def hangs() -> None:
        await asyncio.Event().wait()

    turning = asyncio.ensure_future(service.watched(hangs)())
    await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        supervisor.recv(4096)
    turning.cancel()
    await asyncio.wait([turning])


async def test_a_pass_that_fails_does(supervisor: socket.socket) -> None:
    async def fails() -> None:
        raise OSError("the database is away")

    with pytest.raises(OSError, match="away"):
        await service.watched(fails)()
    assert supervisor.recv(4096) == b"WATCHDOG=1"


def test_a_supervisor_that_went_away_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    service.stopping()


def test_check_config_warns_of_local_centers_without_a_user(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, local_center(tmp_path, "here"))
    found = daemon.command("check-config", "--config", str(daemon.config))
    assert found.returncode == 0
    assert "warning: whoever may submit to the local center here has the rights" in found.stderr
    if os.getuid() == 0:
        daemon.config.write_text(
            daemon.config.read_text().replace(
                "[centers.connection]", '[centers.connection]\nrun_as = "nobody"'
            )
        )
        assert "warning" not in daemon.command("check-config", "--config", str(daemon.config)).stderr
