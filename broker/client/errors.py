"""What a call may raise.

What belongs here: the errors of the client.  What does not: when they are raised (broker.client.exchange,
broker.client.reading) and how they are told to people (broker.cli.app).
"""

from __future__ import annotations


class Unreachable(Exception):
    """No answer of a broker: not there, cut off, or something else answers at this address."""


class RequestFailed(Exception):
    """The broker said no.

    `code` is the standard's error code, "" outside its table; `retry_after_s` is None or what the
    broker asked for.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        detail: str = "",
        request_id: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail or message or f"HTTP status {status}")
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class EventsEnded(Exception):
    """The broker ended a stream of events and said why; go on with `after` the last one seen."""
