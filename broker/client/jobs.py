"""The client's calls about jobs: training jobs and online services.

What belongs here: one method per call, which broker.client.Client has.  What does not: the exchange.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from broker.client.errors import Unreachable
from broker.client.exchange import STREAM_S, Exchange, Query, segment
from broker.client.reading import Whole, file_name, pieces

if TYPE_CHECKING:
    from broker.client.answers import (
        Explanation,
        Job,
        JobDetail,
        JobItem,
        JobPage,
        LogLink,
        ServiceDetail,
        ServiceLink,
        StopAnswer,
    )

Noun = Literal["trainjob", "onlineJob"]
"""Training jobs and online services have the same calls on paths of their own."""
TRAIN: Noun = "trainjob"
ONLINE: Noun = "onlineJob"


class JobCalls(Exchange):
    """The part of the client that is about jobs."""

    def create_job(
        self, request: Mapping[str, Any], *, key: str | None = None, noun: Noun = TRAIN
    ) -> JobItem:
        """Submit a job.  A lost answer is asked for again with the same key, so the job exists once."""
        headers = {"Idempotency-Key": key or secrets.token_hex(16)}
        try:
            answer = self._json("POST", f"/{noun}", body=request, headers=headers)
        except Unreachable:
            answer = self._json("POST", f"/{noun}", body=request, headers=headers)
        return cast("JobItem", answer)

    def jobs(self, query: Query | None = None, *, noun: Noun = TRAIN) -> JobPage:
        return cast("JobPage", self._json("GET", f"/{noun}", query=query))

    def all_jobs(self, query: Query, *, noun: Noun = TRAIN) -> Iterator[JobItem]:
        """Every job of a listing, page after page, oldest ids first so that new jobs shift nothing."""
        return cast("Iterator[JobItem]", self._items(f"/{noun}", {**query, "sort": "id"}))

    def job(self, job: str) -> JobDetail:
        return cast("JobDetail", self._json("GET", f"/broker/v1/jobs/{segment(job)}"))

    def train_job(self, job: str) -> Job:
        """A job as the standard shows it; `job` tells more."""
        return cast("Job", self._json("GET", f"/trainjob/{segment(job)}"))

    def log_link(
        self, job: str, task: str, *, content_type: str = "text/plain", noun: Noun = TRAIN
    ) -> LogLink:
        """A link that a browser opens without a token, for a few minutes; application/octet-stream
        makes it a download.  `noun` is onlineJob for a service."""
        where = f"/{noun}/{segment(job)}/tasks/{segment(task)}/logs/url"
        return cast("LogLink", self._json("GET", where, query={"contentType": content_type}))

    def explain(self, job: str, *, what_if: bool = True) -> Explanation:
        """`what_if`: also what would start it now, which costs the broker some rounds."""
        query: Query = {"whatIf": None if what_if else "false"}
        return cast("Explanation", self._json("GET", f"/broker/v1/jobs/{segment(job)}/explain", query=query))

    def stop_job(self, job: str, *, noun: Noun = TRAIN) -> StopAnswer:
        return cast("StopAnswer", self._json("POST", f"/{noun}/{segment(job)}/stop"))

    def delete_job(self, job: str, *, noun: Noun = TRAIN) -> None:
        self._json("DELETE", f"/{noun}/{segment(job)}")

    def service(self, job: str) -> ServiceDetail:
        return cast("ServiceDetail", self._json("GET", f"/{ONLINE}/{segment(job)}"))

    def service_link(self, job: str) -> ServiceLink:
        """A link that lets a browser in, for a moment."""
        return cast("ServiceLink", self._json("POST", f"/broker/v1/services/{segment(job)}/link"))

    def retry_job(self, job: str) -> JobItem:
        return cast("JobItem", self._json("POST", f"/broker/v1/jobs/{segment(job)}/retry"))

    def resolve_job(self, job: str, verdict: Mapping[str, Any]) -> Any:
        """`verdict` has one of neverRan (true), remote (native id) and ended (a final status)."""
        return self._json("POST", f"/broker/v1/jobs/{segment(job)}/resolve", body=verdict)

    def logs(self, job: str, *, task: str = "", node: int = 0, follow: bool = False) -> Iterator[bytes]:
        """The log of one node of one task (default: the newest), in pieces as they come.

        A broken connection is resumed where it broke, once per piece received.
        """
        path = f"/broker/v1/jobs/{segment(job)}/logs"
        offset, resumed = 0, False
        while True:
            query: Query = {"task": task or None, "node": node, "offset": offset, "follow": int(follow)}
            try:
                with self._opened("GET", path, query=query, answer_s=None if follow else STREAM_S) as answer:
                    for piece in pieces(answer):
                        offset, resumed = offset + len(piece), False
                        yield piece
                return
            except Unreachable:
                if resumed:
                    raise
                resumed = True

    def download(self, job: str, folder: Path) -> list[Path]:
        """Write the results of a job below `folder` and name the files; UnsafeArchive, OSError.

        Several results come as one archive, which is unpacked; a single one keeps its own name.
        """
        from broker.client.archive import safe_name, unpack

        with self._opened("GET", f"/trainjob/{segment(job)}/download", answer_s=STREAM_S) as answer:
            name = safe_name(file_name(answer) or job)
            folder.mkdir(parents=True, exist_ok=True)
            if name == f"{job}.tar.gz":  # the broker's, and not one that the job made
                return unpack(cast(IO[bytes], Whole(answer)), folder)
            part = folder / f".{name}.part"
            try:
                with part.open("wb") as file:
                    for piece in pieces(answer):
                        file.write(piece)
                part.replace(folder / name)
            finally:
                part.unlink(missing_ok=True)
            return [folder / name]
