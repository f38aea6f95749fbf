"""Sending a body piece by piece over an open connection.

What belongs here: the pieces.  What does not: opening connections and reading answers (broker.client).
"""

from __future__ import annotations

import http.client


class SendBroken(Exception):
    """The other side stopped reading."""


class ChunkedBody:
    """A file to write to that sends what it is given as one chunk each."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> int:
        if data:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))
        return len(data)

    def end(self) -> None:
        self._send(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        send(self._connection, data)


def send(connection: http.client.HTTPConnection, data: bytes) -> None:
    try:
        connection.send(data)
    except OSError as error:
        raise SendBroken from error
