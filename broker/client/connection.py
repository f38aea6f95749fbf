"""A connection with one time limit for connecting and another for the rest.

What belongs here: the two kinds, plain and over TLS.  What does not: what is sent (broker.client.exchange).
"""

from __future__ import annotations

import http.client
import socket


class Connection(http.client.HTTPConnection):
    """Has one time limit for connecting and another for everything after; knows if an answer began."""

    later_s: float | None = None
    answered = False

    def connect(self) -> None:
        super().connect()
        _settle(self.sock, self.later_s)


class SecureConnection(http.client.HTTPSConnection):
    """The same over TLS; certificates as the system, SSL_CERT_FILE and SSL_CERT_DIR say."""

    later_s: float | None = None
    answered = False

    def connect(self) -> None:
        super().connect()
        _settle(self.sock, self.later_s)


def _settle(sock: socket.socket, timeout: float | None) -> None:
    sock.settimeout(timeout)
    # Without a time limit only keep-alive notices that the other side is gone.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
