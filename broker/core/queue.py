"""The waiting jobs of a class, as two columns.

What belongs here: an immutable sequence of QueuedJob that changes by making another one, at the cost
of what changed and one copy; and a stretch of its ids, at no cost.  What does not: which class a job
belongs to (broker.mirror).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from broker.core.model import JobId, QueuedJob

IntArray = npt.NDArray[np.int64]


class JobQueue(Sequence[QueuedJob]):
    """Jobs in queue order: by time, then by id.

    `ids` and `queued_ms` are its columns; neither may be written to.  Equal to any sequence of the
    same jobs.
    """

    __slots__ = ("ids", "queued_ms")

    def __init__(self, jobs: Iterable[QueuedJob] = ()) -> None:
        """The jobs, which must be in queue order already."""
        jobs = tuple(jobs)
        self.ids: Sequence[JobId] = [job.id for job in jobs]
        self.queued_ms: IntArray = np.fromiter((job.queued_ms for job in jobs), dtype=np.int64)

    def changed(self, gone: Iterable[QueuedJob], come: Iterable[QueuedJob]) -> JobQueue:
        """Without the jobs `gone`, which must be here, and with those of `come`, in any order."""
        ids, times = list(self.ids), self.queued_ms
        at = self._places(tuple(gone))
        for i in reversed(at):
            del ids[i]
        new = sorted((job.queued_ms, job.id) for job in come)
        # Stretches of what stays, then what is new: one copy for both.
        kept = [times[i:j] for i, j in zip([0, *(i + 1 for i in at)], [*at, len(times)], strict=True)]
        latest = kept[-1][-1] if len(kept[-1]) else times[-1] if len(times) else -1
        if new and new[0][0] > latest:
            ids += [job for _, job in new]
            kept.append(np.array([at for at, _ in new], dtype=np.int64))
            new = []
        times = np.concatenate(kept)
        if new:
            new = sorted([*zip(times.tolist(), ids, strict=True), *new])
            ids, times = [job for _, job in new], np.array([at for at, _ in new], dtype=np.int64)
        made = JobQueue.__new__(JobQueue)
        made.ids, made.queued_ms = ids, times
        return made

    def _places(self, gone: Sequence[QueuedJob]) -> list[int]:
        """Where these jobs stand, ascending."""
        if not gone:
            return []
        at: list[int] = self.queued_ms.searchsorted([job.queued_ms for job in gone]).tolist()
        for n, job in enumerate(gone):
            while self.ids[at[n]] != job.id:  # several jobs of one millisecond
                at[n] += 1
        return sorted(at)

    @overload
    def __getitem__(self, index: int) -> QueuedJob: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[QueuedJob]: ...
    def __getitem__(self, index: int | slice) -> QueuedJob | Sequence[QueuedJob]:
        if isinstance(index, slice):
            return tuple(map(QueuedJob, self.ids[index], self.queued_ms[index].tolist()))
        return QueuedJob(self.ids[index], int(self.queued_ms[index]))

    def __iter__(self) -> Iterator[QueuedJob]:
        return map(QueuedJob, self.ids, self.queued_ms.tolist())

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JobQueue):
            return self.ids == other.ids and np.array_equal(self.queued_ms, other.queued_ms)
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def __repr__(self) -> str:
        return f"JobQueue({list(self)!r})"


class Span(Sequence[JobId]):
    """The ids of jobs that stand one after the other in a queue: `of[first:last]`, not copied.

    Equal to any sequence of the same ids.
    """

    __slots__ = ("first", "last", "of")

    def __init__(self, of: Sequence[JobId], first: int, last: int) -> None:
        """`of` are the ids of a JobQueue, which never change; 0 <= first <= last <= len(of)."""
        self.of, self.first, self.last = of, first, last

    @overload
    def __getitem__(self, index: int) -> JobId: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[JobId]: ...
    def __getitem__(self, index: int | slice) -> JobId | Sequence[JobId]:
        if isinstance(index, slice):
            return self.of[self.first : self.last][index]
        return self.of[range(self.first, self.last)[index]]

    def __iter__(self) -> Iterator[JobId]:
        return iter(self.of[self.first : self.last])

    def __len__(self) -> int:
        return self.last - self.first

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Span({list(self)!r})"


def as_queue(jobs: Sequence[QueuedJob]) -> JobQueue:
    """`jobs` as columns; a queue is given back as it is."""
    return jobs if isinstance(jobs, JobQueue) else JobQueue(jobs)
