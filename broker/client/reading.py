"""Reading an answer: its pieces, its JSON object, the name of a file that it is.

What belongs here: what is made of the bytes and headers of an answer.  What does not: sending the request
and the errors of a connection (broker.client.exchange).
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from broker.client.errors import RequestFailed, Unreachable

CHUNK = 1 << 16


class Whole:
    """A reader of an answer that never takes a broken connection for its end."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def read(self, size: int = -1) -> bytes:
        data = self._answer.read(size if size >= 0 else None)
        if not data and self._answer.length:
            raise http.client.IncompleteRead(b"", self._answer.length)
        return data


def pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1(CHUNK):
        yield piece
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)


def decoded(answer: http.client.HTTPResponse, url: str) -> dict[str, Any]:
    """The JSON object of an answer; {} when it has no body."""
    raw = answer.read()
    try:
        document = json.loads(raw) if raw else {}
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unreachable(f"what answers at {url} is not a broker: no JSON object came back")
    return document


def failure(answer: http.client.HTTPResponse, url: str) -> Exception:
    """The error of an answer that is not a good one."""
    try:
        body = json.loads(answer.read())
    except ValueError:
        body = None
    if not isinstance(body, dict) or "errorCode" not in body:
        if answer.status in (502, 503, 504):
            return Unreachable(f"the broker behind {url} cannot be reached: HTTP status {answer.status}")
        return RequestFailed(answer.status, "", "", detail=f"HTTP status {answer.status} {answer.reason}")
    wait = answer.headers.get("Retry-After", "")
    return RequestFailed(
        answer.status,
        str(body["errorCode"]),
        str(body.get("errorMsg", "")),
        detail=str(body.get("detail") or ""),
        request_id=str(body.get("requestId") or ""),
        retry_after_s=int(wait) if wait.isdecimal() else None,
    )


def file_name(answer: http.client.HTTPResponse) -> str:
    """The name in Content-Disposition, "" without one; the extended form of RFC 6266 goes first."""
    stated = answer.headers.get("Content-Disposition", "")
    extended = re.search(r"filename\*\s*=\s*UTF-8''([^;\s]+)", stated, re.IGNORECASE)
    if extended:
        return unquote(extended[1])
    plain = re.search(r'filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', stated, re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", plain[1] or plain[2] or "") if plain else ""
