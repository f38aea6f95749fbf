"""Waiting for jobs to end, with their progress on stderr.

What belongs here: the polling loop and what interrupts it.  What does not: how progress looks
(broker.cli.display).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from broker.cli.app import Code, notice
from broker.cli.display import Progress
from broker.client import Client, RequestFailed, Unreachable

if TYPE_CHECKING:
    from broker.client.answers import Explanation, JobDetail

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

FIRST_POLL_S, LONGEST_POLL_S, SLOWER = 0.1, 2.0, 1.3
EXPLAIN_AFTER_S, EXPLAIN_EVERY_S = 2.0, 5.0
PATIENCE_S = 60.0
"""How long a broker may be away while a job of it is awaited: a restart must not end the wait."""


def follow(client: Client, jobs: Sequence[str]) -> list[JobDetail]:
    """Wait until all have ended; their details in the order given.

    The broker has just answered for these jobs.  An interrupt leaves them running and ends the
    command with 130.  Raises Unreachable when the broker stays away.
    """
    waiting = _Waiting(client)
    before = signal.signal(signal.SIGINT, waiting.interrupt)
    try:
        return waiting.all(jobs)
    except KeyboardInterrupt:
        waiting.progress.close()
        left = [job for job in jobs if job not in waiting.ended]
        notice(f"not waiting any more; nothing was stopped. Go on with: broker wait {' '.join(left)}")
        raise typer.Exit(Code.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)
        waiting.progress.close()


class _Waiting:
    def __init__(self, client: Client) -> None:
        self.interrupted = False
        self.progress = Progress()
        self.ended: dict[str, JobDetail] = {}
        self._client = client
        self._pending_since: dict[str, float] = {}
        self._why: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._seen_at = time.monotonic()  # when the broker last answered

    def interrupt(self, _signal: int, _frame: FrameType | None) -> NoReturn:
        """What comes while an object is being destroyed is lost with its exception, so it is kept, too."""
        self.interrupted = True
        raise KeyboardInterrupt

    def all(self, jobs: Sequence[str]) -> list[JobDetail]:
        pause_s = FIRST_POLL_S
        while True:
            asked_to_wait_s = 0.0
            for job in dict.fromkeys(jobs):
                if job not in self.ended:
                    asked_to_wait_s = max(asked_to_wait_s, self._look(job))
            if all(job in self.ended for job in jobs):
                return [self.ended[job] for job in jobs]
            if self.interrupted:
                raise KeyboardInterrupt
            time.sleep(max(pause_s, asked_to_wait_s))
            pause_s = min(pause_s * SLOWER, LONGEST_POLL_S)

    def _look(self, job: str) -> float:
        """Ask for one job; seconds that the broker asks for before the next call."""
        try:
            detail = self._client.job(job)
            why = self._why_pending(detail)
        except RequestFailed as error:
            if error.status not in (429, 503):
                raise
            return error.retry_after_s or 1
        except Unreachable as error:
            if time.monotonic() - self._seen_at > PATIENCE_S:
                raise
            self.progress.say(f"{error}; trying again")
            return 2.0
        self._seen_at = time.monotonic()
        if detail["status"] in ENDED:
            self.ended[job] = detail
            self.progress.end(detail)
        else:
            self.progress.show(detail, why)
        return 0.0

    def _why_pending(self, job: JobDetail) -> str:
        """What a job waits for, once it has waited a while."""
        now = time.monotonic()
        if job["status"] != "PENDING":
            self._pending_since.pop(job["id"], None)
            return ""
        if now - self._pending_since.setdefault(job["id"], now) < EXPLAIN_AFTER_S:
            return ""
        if now - self._asked.get(job["id"], -EXPLAIN_EVERY_S) >= EXPLAIN_EVERY_S:
            self._asked[job["id"]] = now
            self._why[job["id"]] = in_short(self._client.explain(job["id"], what_if=False))
        return self._why.get(job["id"], "")


def in_short(explanation: Explanation) -> str:
    """Why a job waits, in one line: its place in the queue and the first center that only needs time."""
    reasons = explanation.get("reasons", [])
    position = explanation.get("position")
    texts = [] if position is None else [f"number {position} in the queue"]
    if reasons:
        # The codes of capacity come closest to a start; the others say what stands in the way.
        nearest = next((each for each in reasons if each["code"].startswith("capacity")), reasons[0])
        texts.append(f"{nearest['centerId']}: {nearest['message']}")
    return ", ".join(texts)
