"""One request and its answer.

What belongs here: what every call of the client goes through.  What does not: the calls
(broker.client.jobs and its neighbours).

Repeating: a POST or DELETE is never sent twice, but for a create (broker.client.jobs).  A GET is repeated
once when the connection breaks.
Timeouts, in seconds: CONNECT_S for a connection, ANSWER_S between two pieces of an answer,
STREAM_S for a large answer to begin; a log that is followed may be silent for ever.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from broker import __version__
from broker.client.connection import Connection, SecureConnection
from broker.client.errors import Unreachable
from broker.client.reading import decoded, failure
from broker.client.sending import SendBroken

CONNECT_S = 5.0
ANSWER_S = 30.0
STREAM_S = 600.0

BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
"""What a broken connection raises; a local file raises none of them."""

Query = Mapping[str, str | int | Sequence[str] | None]
"""Parameters of a URL; None is left out, a list is repeated."""


def segment(text: str) -> str:
    """One segment of a path, whatever its characters."""
    return quote(text, safe="")


class Exchange:
    """`url` is the broker's address, a path prefix included; ValueError if it is no http(s) URL."""

    def __init__(self, url: str, token: str = "", *, answer_s: float = ANSWER_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL like http://127.0.0.1:8238")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._answer_s = answer_s

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
    ) -> Any:
        """The JSON object of the answer; {} when it has no body."""
        payload = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        sent = (
            dict(headers or {}) if body is None else {"Content-Type": "application/json", **(headers or {})}
        )
        for last in (method != "GET", True):
            try:
                with self._opened(
                    method,
                    path,
                    query=query,
                    payload=payload,
                    headers=sent,
                    answer_s=answer_s or self._answer_s,
                ) as answer:
                    return decoded(answer, self.url)
            except Unreachable as error:
                if last or isinstance(error.__cause__, TimeoutError):
                    raise
        raise AssertionError("the last try returns or raises")

    def _items(self, path: str, query: Query) -> Iterator[Any]:
        """Everything of a listing, page after page, in an order in which what is new comes last."""
        page = seen = 0
        while True:
            page += 1
            answer = self._json("GET", path, query={**query, "order": "asc", "page": page})
            yield from answer["items"]
            seen += len(answer["items"])
            if not answer["items"] or seen >= answer["totalSize"]:
                return

    def _send(
        self,
        path: str,
        headers: Mapping[str, str],
        write: Callable[[http.client.HTTPConnection], None],
        query: Query | None = None,
    ) -> dict[str, Any]:
        """POST a body that `write` sends, piece by piece (broker.client.sending)."""
        connection = self._connection(STREAM_S)
        with closing(connection):
            try:
                connection.connect()
                connection.putrequest("POST", self._target(path, query))
                for header, value in self._headers(headers).items():
                    connection.putheader(header, value)
                connection.endheaders()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error
            with suppress(SendBroken):  # a refusal may have been sent before it was closed: read it
                write(connection)
            return decoded(self._answer_of(connection), self.url)

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        payload: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = ANSWER_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and have its good answer to read; no `answer_s`: it may be silent for ever."""
        connection = self._connection(answer_s)
        with closing(connection):
            try:
                connection.request(method, self._target(path, query), payload, self._headers(headers or {}))
                yield self._answer_of(connection)
            except BROKEN as error:
                raise self._unreachable(error) from error
            except OSError as error:
                if connection.answered:
                    raise  # of a local file that the answer is written to
                raise self._unreachable(error) from error

    def _answer_of(self, connection: Connection | SecureConnection) -> http.client.HTTPResponse:
        """The answer, if it is a good one; RequestFailed or Unreachable otherwise."""
        try:
            answer = connection.getresponse()
            connection.answered = True
            if answer.status < 300:
                return answer
            raise failure(answer, self.url)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _connection(self, timeout: float | None) -> Connection | SecureConnection:
        kind: type[Connection | SecureConnection] = SecureConnection if self._secure else Connection
        connection = kind(self._host, self._port, timeout=CONNECT_S)
        connection.later_s = timeout
        return connection

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"User-Agent": f"broker/{__version__}", "Accept": "*/*", **more}
        if self._token:
            headers["X-Auth-Token"] = self._token
        return headers

    def _target(self, path: str, query: Query | None) -> str:
        stated = {name: value for name, value in (query or {}).items() if value is not None}
        return self._prefix + path + (f"?{urlencode(stated, doseq=True)}" if stated else "")

    def _unreachable(self, error: Exception) -> Unreachable:
        if isinstance(error, TimeoutError):
            why = "no answer in time"
        elif isinstance(error, http.client.IncompleteRead):
            why = "the answer broke off"
        else:
            why = str(error) or type(error).__name__
        return Unreachable(f"the broker at {self.url} cannot be reached: {why}")
