"""The daemon of the demonstration: `broker serve` as a process of its own, and its death.

What belongs here: configuration, start, crash, stop, and the end of its log.  What does not: jobs.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).resolve().with_name("demo.toml")
LISTEN = "127.0.0.1:8238"  # in demo.toml; a free port takes its place
READY_S, STOP_S = 30.0, 15.0
TAIL_LINES = 15


class DemoFailed(Exception):
    """What was to be shown did not happen; the text says what happened instead."""


class Daemon:
    """`broker serve` as a process of its own, in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Write the configuration; nothing runs yet."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.config, self.log = folder / "demo.toml", folder / "daemon.log"
        text = CONFIG.read_text(encoding="utf-8")
        self.config.write_text(text.replace(LISTEN, f"127.0.0.1:{self.port}"), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def add_user(self, name: str, password: str) -> None:
        """An account with the role user; DemoFailed."""
        command = self._broker("user", "add", name, "--role", "user", "--password-stdin")
        try:
            done = subprocess.run(
                command, input=password + "\n", capture_output=True, text=True, timeout=READY_S
            )
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"broker user add has not ended after {READY_S:.0f} s") from error
        if done.returncode != 0:
            raise DemoFailed(f"broker user add ended with {done.returncode}: {done.stderr.strip()}")

    def start(self) -> None:
        """Start it and wait until every center has been asked; DemoFailed when it dies or takes too long."""
        with self.log.open("ab") as log:
            # A session of its own: an interrupt from the keyboard reaches only this script.
            self._process = subprocess.Popen(
                self._broker("serve"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_S
        while not self._ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"the daemon is not ready after {READY_S:.0f} s:\n{self.tail()}")
            time.sleep(0.05)

    def check(self) -> None:
        """DemoFailed when it has ended."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise DemoFailed(f"the daemon ended with {code} on port {self.port}:\n{self.tail()}")

    def kill(self) -> None:
        """End it as a crash would, with no time to tidy up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Ask it to end, and kill it when it does not; its exit code, 0 when none runs."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._process = None

    def tail(self) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines)

    def _broker(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "broker", *words, "--config", str(self.config)]

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
