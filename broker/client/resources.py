"""The client's calls about centers and what they have: specs, what is idle, a center's platform directly.

What belongs here: one method per call, which broker.client.Client has.  What does not: the exchange, and
prices (broker.client.money).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from broker.client.exchange import ANSWER_S, STREAM_S, Exchange, Query, segment
from broker.client.reading import pieces

if TYPE_CHECKING:
    from broker.client.answers import (
        CenterAnswer,
        CenterCommand,
        CenterPage,
        CenterReports,
        Check,
        CommandResult,
        Commands,
        Idle,
        SpecPage,
    )

CALL_S = 90.0  # a little more than the broker waits for a center


class ResourceCalls(Exchange):
    """The part of the client that is about centers and their resources."""

    def centers(self, query: Query | None = None) -> CenterPage:
        return cast("CenterPage", self._json("GET", "/centers", query=query))

    def specs(self, query: Query | None = None) -> SpecPage:
        return cast("SpecPage", self._json("GET", "/resource/specs", query=query))

    def idle(self, center: str | None = None) -> Idle:
        return cast("Idle", self._json("GET", "/resource/idle", query={"centerId": center}))

    def center_reports(self) -> CenterReports:
        return cast("CenterReports", self._json("GET", "/broker/v1/centers"))

    def command_center(self, center: str, command: str) -> CenterCommand:
        """`command` is drain or resume."""
        return cast("CenterCommand", self._json("POST", f"/broker/v1/centers/{segment(center)}/{command}"))

    def call_center(self, center: str, method: str, path: str, body: str | None = None) -> CenterAnswer:
        """What the center's platform answers, as it is; CALL_S for it."""
        call = {"method": method, "path": path, "body": body}
        where = f"/broker/v1/centers/{segment(center)}/call"
        return cast("CenterAnswer", self._json("POST", where, body=call, answer_s=CALL_S))

    def doctor(self, center: str) -> Iterator[Check]:
        """The checks of a center as they end: name, ok, detail."""
        with self._opened(
            "POST", f"/broker/v1/centers/{segment(center)}/doctor", answer_s=STREAM_S
        ) as answer:
            rest = b""
            for piece in pieces(answer):
                *lines, rest = (rest + piece).split(b"\n")
                yield from map(json.loads, lines)

    def center_commands(self, center: str) -> Commands:
        return cast("Commands", self._json("GET", f"/broker/v1/centers/{segment(center)}/commands"))

    def run_center_command(
        self, center: str, name: str, arguments: Mapping[str, Any], *, timeout_s: float
    ) -> CommandResult:
        where = f"/broker/v1/centers/{segment(center)}/commands/{segment(name)}"
        sent = {"arguments": dict(arguments)}
        return cast("CommandResult", self._json("POST", where, body=sent, answer_s=timeout_s + ANSWER_S))
