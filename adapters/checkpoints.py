"""Evidence of checkpoints: when something in a job's BROKER_CHECKPOINT_DIR was last written.

What belongs here: looking at a folder that the broker and its jobs share, cheaply and at most so
often.  What does not: where that folder is, which local.py and output.py know, and what follows.

A file that is being written counts: nobody here knows a job's format, and what is half written is
renamed into place by the jobs that mind.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from adapters.output import Output
from broker.adapter import RunRef, Sighting
from broker.core.model import RunId

PERIOD_S = 5.0
"""A folder is looked at again after so long at the earliest."""
MOST_ENTRIES = 1000
"""Files and folders of one folder that are looked at, the upper levels first."""
_KEPT = 4096


class Checkpoints:
    """Remembers what each folder was found to have."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._seen: dict[Path, tuple[float, int | None]] = {}

    def newest_ms(self, folder: Path) -> int | None:
        """newest_change_ms(folder), at most `period_s` old."""
        now = time.monotonic()
        looked_at, found = self._seen.get(folder, (float("-inf"), None))
        if now - looked_at < self._period_s:
            return found
        if len(self._seen) > _KEPT:
            self._seen = {f: seen for f, seen in self._seen.items() if now - seen[0] < self._period_s}
        self._seen[folder] = (now, newest_change_ms(folder))
        return self._seen[folder][1]


class SharedCheckpoints:
    """Of all jobs of a center, on the storage that they share with the broker; None: there is none."""

    def __init__(self, output: Output | None, period_s: float = PERIOD_S) -> None:
        self._output = output
        self._folders = Checkpoints(period_s)

    async def added(
        self, runs: Collection[RunRef], seen: Mapping[RunId, Sighting]
    ) -> Mapping[RunId, Sighting]:
        """What was seen of runs, with the newest checkpoint of each one's job."""
        if self._output is None:
            return seen
        return await asyncio.to_thread(self._added, self._output, runs, seen)

    def _added(
        self, output: Output, runs: Collection[RunRef], seen: Mapping[RunId, Sighting]
    ) -> Mapping[RunId, Sighting]:
        return {
            ref.id: replace(seen[ref.id], checkpoint_ms=self._folders.newest_ms(output.checkpoints(ref.job)))
            for ref in runs
            if ref.id in seen
        }


def newest_change_ms(folder: Path, *, entries: int = MOST_ENTRIES) -> int | None:
    """Milliseconds since the epoch at which a regular file below `folder` was last written; None when
    there is none, or nothing can be read.

    Links are not followed: a job may put anything there.
    """
    newest_ns: int | None = None
    folders, left = deque([os.fspath(folder)]), entries
    while folders:
        try:
            with os.scandir(folders.popleft()) as found:
                for entry in found:
                    if left == 0:
                        return _ms(newest_ns)
                    left -= 1
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(facts.st_mode):
                        folders.append(entry.path)
                    elif stat.S_ISREG(facts.st_mode):
                        newest_ns = max(newest_ns or 0, facts.st_mtime_ns)
        except OSError:  # gone meanwhile, or not ours to read: no evidence
            continue
    return _ms(newest_ns)


def _ms(ns: int | None) -> int | None:
    return None if ns is None else ns // 1_000_000
