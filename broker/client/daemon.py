"""The client's calls about the broker itself: its settings, health, rounds, audit and events, its API.

What belongs here: one method per call, which broker.client.Client has.  What does not: the exchange.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from broker.client.errors import EventsEnded
from broker.client.exchange import Exchange, Query

if TYPE_CHECKING:
    from broker.client.answers import AuditPage, HappenedEvent, Health, Info, Readiness, Rounds


class DaemonCalls(Exchange):
    """The part of the client that is about the broker itself."""

    def info(self) -> Info:
        return cast("Info", self._json("GET", "/broker/v1/info"))

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

    def rounds(self, limit: int = 50) -> Rounds:
        return cast("Rounds", self._json("GET", "/broker/v1/rounds", query={"limit": limit}))

    def audit(self, query: Query | None = None) -> AuditPage:
        return cast("AuditPage", self._json("GET", "/broker/v1/audit", query=query))

    def events(self, after: int | None = None) -> Iterator[HappenedEvent]:
        """What happens, for ever, from behind the event of number `after`, or from now on.

        EventsEnded when the broker ends the stream.
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self._opened("GET", "/broker/v1/events", headers=headers, answer_s=None) as answer:
            kind, data = "", ""
            for line in answer:
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data = value
                elif not name and data:
                    document = json.loads(data)
                    if kind:
                        raise EventsEnded(f"{kind}: {document['reason']}")
                    yield document
                    kind, data = "", ""
