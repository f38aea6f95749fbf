"""The interpreter under a daemon that answers while rounds run in a thread.

What belongs here: how often threads take turns, and when cycles of garbage are looked for.  What does
not: anything that knows what the daemon does.

A round makes some hundred thousand objects of which few are in cycles and most are gone when it ends.
Looking for cycles among them again and again holds the GIL for tens of milliseconds each time, so it is
put off until the round has ended; and what a daemon that is up keeps (its queue, its pools) is not looked
through but once an hour.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL_S = 0.0005
"""A thread that wants the interpreter waits at most so long for one that runs Python code."""

_lock = threading.Lock()
_rounds = 0


def take_turns() -> None:
    """Short turns for the threads of this process."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


@contextmanager
def no_collection() -> Iterator[None]:
    """Cycles are not looked for meanwhile, in any thread; of several at a time the last one ends it."""
    global _rounds
    with _lock:
        _rounds += 1
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _rounds -= 1
            if not _rounds:
                gc.enable()


def collect_and_keep() -> int:
    """Look through everything, and leave what lives out of later looks; how many objects were garbage.

    Holds the GIL for a second per some ten million objects.
    """
    gc.unfreeze()
    found = gc.collect()
    gc.freeze()
    return found
