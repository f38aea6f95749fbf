"""Ports of this machine for the online services of local runs: no two services ever share one.

Here: choosing a port and remembering whose it is, for all local centers of this process.  Not here:
listening; the service does that, on the port that it finds in BROKER_PORT.
"""

from __future__ import annotations

import errno
import random
import socket
import threading
from pathlib import Path

RANGE = range(20_000, 32_768)
"""Where a port is chosen: below the ports that Linux gives to outgoing connections by itself."""
UNPRIVILEGED = 1024
"""The first port that any user may listen on."""

_TRIES = 1000

_lock = threading.Lock()
_ports: dict[Path, int] = {}


class NoPort(Exception):
    """None of the ports tried is free."""


def take(run: Path, wanted: int) -> int:
    """A port for the run in this directory: the one it wants where that is free, else another.

    Free: no live run of a local center has it, and nothing on this machine listens there.  Raises
    NoPort.
    """
    with _lock:
        for port in (wanted, *random.choices(RANGE, k=_TRIES)):
            if port >= UNPRIVILEGED and port not in _ports.values() and _nobody_listens(port):
                _ports[run] = port
                return port
    raise NoPort(f"none of {_TRIES} ports from {RANGE.start} to {RANGE.stop - 1} is free")


def keep(run: Path, port: int) -> None:
    """A run that was there before this process has this port."""
    with _lock:
        _ports[run] = port


def give_back(run: Path) -> None:
    """The run has ended, or is another process's from now on."""
    with _lock:
        _ports.pop(run, None)


def _nobody_listens(port: int) -> bool:
    """Whether a service could listen there now.

    As servers do, a port is taken that only waits for the last packets of a closed connection.
    """
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host, port))
                trial.listen(1)  # two may be bound to one port with SO_REUSEADDR, but only one listens
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT and error.errno != errno.EADDRNOTAVAIL:
                return False
    return True
