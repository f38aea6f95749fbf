"""The calls that no command needs: a job as the standard has it, log links, reports, the API itself.

What belongs here and what does not: as in broker.client, whose Client has these methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from broker.client.people import EventsEnded, PeopleCalls, Query

if TYPE_CHECKING:
    from broker.client.answers import CenterReports, Health, Job, LogLink, Readiness, Rounds

__all__ = ["EventsEnded", "FurtherCalls", "Query"]


class FurtherCalls(PeopleCalls):
    """What Client can do beyond what the commands ask of it."""

    def train_job(self, job: str) -> Job:
        """A job as the standard shows it; `job` of Client tells more."""
        return cast("Job", self._json("GET", f"/trainjob/{quote(job, safe='')}"))

    def log_link(
        self, job: str, task: str, *, content_type: str = "text/plain", noun: str = "trainjob"
    ) -> LogLink:
        """A link that a browser opens without a token, for a few minutes; application/octet-stream
        makes it a download.  `noun` is onlineJob for a service."""
        where = f"/{noun}/{quote(job, safe='')}/tasks/{quote(task, safe='')}/logs/url"
        return cast("LogLink", self._json("GET", where, query={"contentType": content_type}))

    def rounds(self, limit: int = 50) -> Rounds:
        return cast("Rounds", self._json("GET", "/broker/v1/rounds", query={"limit": limit}))

    def center_reports(self) -> CenterReports:
        return cast("CenterReports", self._json("GET", "/broker/v1/centers"))

    def health(self) -> Health:
        return cast("Health", self._json("GET", "/healthz"))

    def readiness(self) -> Readiness:
        """RequestFailed with status 503 until the broker is ready."""
        return cast("Readiness", self._json("GET", "/readyz"))

    def metrics(self) -> str:
        """Prometheus text."""
        with self._opened("GET", "/metrics") as answer:
            return answer.read().decode()

    def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return cast("dict[str, Any]", self._json("GET", "/openapi.json"))
