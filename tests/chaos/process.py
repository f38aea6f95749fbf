"""A daemon that is killed at the points it was told, one after the other, and restarted each time.

What belongs here: the launcher's other end, the restarts, and clients that bear an absence.  What does
not: what clients ask for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from broker.client import Client, RequestFailed, Unreachable
from tests.chaos.points import ROOT
from tests.daemon_process import DaemonProcess, eventually

PATIENCE_S = 300
"""Bound of every wait; stories are told many at a time."""
SETTINGS = """[scheduler]
lease_s = 3
policy = "policy.toml"
"""
POLICY = (ROOT / "config" / "policy.toml").read_text()
SOON = POLICY.replace("min_run_time_s = 600 ", "min_run_time_s = 0 ").replace(
    "cool_down_s = 600 ", "cool_down_s = 1 "
)


class Launcher:
    """The process that forks daemons.  Use: `with Launcher() as launcher`."""

    def __enter__(self) -> Launcher:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.launcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, **order: str) -> int:
        """The pid of a new daemon; the one before it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer("pid")

    def wait(self) -> int:
        """The exit code of the daemon; blocks until it has ended."""
        return self._answer("exit")

    def _answer(self, kind: str) -> int:
        assert self._process.stdout is not None
        word, number = self._process.stdout.readline().split()
        assert word == kind
        return int(number)


class KilledDaemon(DaemonProcess):
    """`kills` are the points of the first, second … start; later starts live on."""

    def __init__(self, folder: Path, centers: str, *, launcher: Launcher, kills: Sequence[str]) -> None:
        super().__init__(folder, centers)
        text = self.config.read_text().replace(
            "[scheduler]\ninterval_s = 0.5\n", SETTINGS + "interval_s = 0.2\n"
        )
        assert SETTINGS in text
        self.config.write_text(text)
        (folder / "policy.toml").write_text(SOON)
        self.record = folder / "points.txt"
        self.killed = 0
        self.code: int | None = None  # how it ended by itself
        self._launcher = launcher
        self._kills = list(kills)
        self._planned = len(kills)
        self._last = False
        self._pid = 0
        self._ended = threading.Event()

    def start(self) -> None:
        self._launch()
        self._minder = threading.Thread(target=self._mind, name="minder")
        self._minder.start()

    def _launch(self) -> None:
        kill = self._kills.pop(0) if self._kills and not self._last else ""
        orders = {"config": self.config, "log": self.log, "record": self.record}
        self._pid = self._launcher.start(kill=kill, **{key: str(path) for key, path in orders.items()})

    def _mind(self) -> None:
        while (code := self._launcher.wait()) == -signal.SIGKILL and not self._ended.is_set():
            self.killed += 1
            self._launch()
        self.code = code
        self._ended.set()

    def alive(self) -> None:
        """Raises AssertionError when it has ended otherwise than by a kill of the plan."""
        assert not self._ended.is_set(), f"the daemon ended with {self.code}:\n{self.log.read_text()[-5000:]}"

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.alive()
            return self.get("/readyz")[0] == 200

        eventually("the daemon is ready", ready, within_s=PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM, when all kills have happened but the last; the exit code.  That one may be on the way to
        the end, and is followed by another start and end; or it never happens."""
        end = time.monotonic() + PATIENCE_S
        while self.killed < self._planned - 1:
            self.alive()
            assert time.monotonic() < end, f"killed {self.killed} times, not {self._planned}"
            time.sleep(0.02)
        self._last = True
        while not self._ended.is_set():
            assert time.monotonic() < end, f"it did not end:\n{self.log.read_text()[-5000:]}"
            pid = self._pid
            if self.get("/readyz")[0] != 200:
                time.sleep(0.02)
                continue
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
            while pid == self._pid and not self._ended.wait(0.02):
                assert time.monotonic() < end, f"it did not end:\n{self.log.read_text()[-5000:]}"
        self._minder.join()
        assert self.code is not None
        return self.code

    def end(self) -> None:
        """However the story went."""
        self._last = True
        if not self._ended.is_set():
            self._ended.set()
            while self._minder.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
                self._minder.join(0.05)

    def client(self, name: str) -> Client:
        patient: Client = PatientClient(self, super().client).logged_in(name)
        return patient


def whole(answer: Any) -> Any:
    """The answer itself; one that is asked for page by page is read to its end."""
    return list(answer) if isinstance(answer, Iterator) else answer


class PatientClient:
    """Asks again while nobody answers, as a person would: what was done before the answer was lost may be
    refused the second time, which is as good."""

    def __init__(self, daemon: KilledDaemon, login: Callable[[str], Client]) -> None:
        self._daemon = daemon
        self._login = login

    def logged_in(self, name: str) -> Any:
        self._client = self._patiently(lambda: self._login(name), again_is_done=False)
        return self

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._patiently(
                lambda: whole(method(*args, **kwargs)), again_is_done=name == "resolve_job"
            )

        return call

    def _patiently(self, ask: Callable[[], Any], *, again_is_done: bool) -> Any:
        end = time.monotonic() + PATIENCE_S
        asked = 0
        while True:
            try:
                return ask()
            except Unreachable:
                self._daemon.alive()
                assert time.monotonic() < end, "nobody answers"
                asked += 1
                time.sleep(0.05)
            except RequestFailed:
                if asked and again_is_done:
                    return None
                raise
