"""What the daemon tells systemd of itself: sd_notify(3).

What belongs here: the messages and how they are sent.  What does not: when (daemon.py).  Without
NOTIFY_SOCKET, which only a supervisor sets, nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable

__all__ = ["alive", "ready", "reloading", "stopping", "watched"]


def ready(status: str) -> None:
    """The API answers; `status` is what `systemctl status` shows."""
    _tell("READY=1", f"STATUS={status}")


def reloading() -> None:
    """A new configuration is being read; `ready` ends it."""
    _tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    _tell("STOPPING=1")


def alive() -> None:
    """Feeds the watchdog: this process waits, and that is all it has to do."""
    _tell("WATCHDOG=1")


def watched(once: Callable[[], Awaitable[float | None]]) -> Callable[[], Awaitable[float | None]]:
    """`once`, feeding the watchdog whenever it ends.

    A pass that fails counts: it is tried again, and what it failed for (a database that is away) is
    not mended by a new process.  A pass that never ends is what the watchdog is for.
    """

    async def and_tell() -> float | None:
        try:
            return await once()
        finally:
            alive()

    return and_tell


def _tell(*assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.connect(address)
            end.send("\n".join(assignments).encode())
    except OSError:  # the supervisor went away: it is not the daemon's to end for that
        return
