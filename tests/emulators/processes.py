"""Containers of an emulated platform: real processes of this machine, with time scaled.

What belongs here: starting a command, ending it as a container runtime does (SIGTERM to the first
process, SIGKILL to all after the grace), and the scale of time.  What does not: queues, states and
the ground truth, which each emulator keeps.

With a `speed` of 20 a job that says `sleep 60` is done after 3 s: a `sleep` that divides comes first
in its PATH.  Clocks tell the true time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SLEEP = """#!/bin/sh
exec /bin/sleep "$(awk -v s="$1" 'BEGIN { printf "%.3f", s / {speed} }')"
"""


class Machine:
    """Where containers run: a folder for their working directories, and the scale of time."""

    def __init__(self, folder: Path, *, speed: float) -> None:
        self.speed = speed
        self._folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir(parents=True, exist_ok=True)
        sleep = self._bin / "sleep"
        sleep.write_text(SLEEP.replace("{speed}", str(speed)))
        sleep.chmod(0o755)

    def real_s(self, emulated_s: float) -> float:
        """How long an emulated duration takes."""
        return emulated_s / self.speed

    async def start(self, name: str, command: str, env: Mapping[str, str]) -> Container:
        """`command` by /bin/sh in a folder of its own; `env` is all that it finds in its environment."""
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            command,
            cwd=folder,
            env={"PATH": f"{self._bin}:/usr/bin:/bin", "HOME": str(folder), **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return Container(process)


class Container:
    """One command under way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def wait(self) -> int:
        """The exit code; 128 + n after signal n.  What the command left behind is killed."""
        code = await self._process.wait()
        self.kill()
        return code if code >= 0 else 128 - code

    async def stop(self, grace_s: float) -> None:
        """End it within `grace_s` real seconds; returns when it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL to everything of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
