"""Starts daemons by fork: a process that has loaded the broker once and is told which to start.

Reads one JSON document a line: {"config", "log", "record", "kill"}; answers `pid N`, and `exit N` when
that daemon has ended (negative: by a signal).  One daemon at a time.  The daemon itself is
`broker.daemon.serve`, as `broker serve` runs it; all that is added are the points.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

from broker import daemon
from tests.chaos import points

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with_parent() -> None:
    """Nothing is left behind by a test that was killed itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def child(order: dict[str, str]) -> int:
    die_with_parent()
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    random.seed()
    points.install(order["kill"], Path(order["record"]))
    return daemon.serve(Path(order["config"]))


def main() -> None:
    die_with_parent()
    for module in daemon.ADAPTERS.values():
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a process with threads must not fork"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(json.loads(line))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(f"pid {pid}", flush=True)
        print(f"exit {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)


if __name__ == "__main__":
    main()
