"""One call to a CECSTACK AI Space: its headers, its signature, its five envelopes and its two kinds of
pages (the document's chapter 1 and the tables of every call).

Here: what every call has in common.  Not here: any path, and what a payload means.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from yarl import URL

from adapters.http import Http, Request, Unintelligible, below, failure
from broker.adapter import AdapterError, Denied, RawAnswer, Refused, Unavailable

BASE: Final = "/api/aidp"
SECRET_LENGTH: Final = 8
"""A shorter value of a further header, such as "true", is no secret."""
PAGE_SIZE: Final = 100
MAX_PAGES: Final = 200
"""Of one listing; beyond that nothing can be said of what is not in it."""

Query = Sequence[tuple[str, str]]
Signer = Callable[[str, str, Query, bytes], Mapping[str, str]]
"""Method, path, query as sent and body in; headers out.

The vendor's algorithm stands in a document that is not public, so it is a part that can be replaced:
SIGNERS has what the key `signature` may name.
"""

_GONE = re.compile(r"not\s*found|does\s*not\s*exist|不存在|未找到", re.IGNORECASE)
_DENIED = re.compile(r"unauthori[sz]ed|forbidden|accessdenied|access ?key|signature", re.IGNORECASE)


class NotThere(Refused):
    """The platform says that what the call names does not exist."""


# ---------------------------------------------------------------- signatures


def unsigned(method: str, path: str, query: Query, body: bytes) -> Mapping[str, str]:
    return {}


def hmac_sha256(access_key: str, secret_key: str, clock: Callable[[], float] = time.time) -> Signer:
    """HMAC-SHA256, in hexadecimal, over five lines: method, path, query (sorted, percent-encoded), time
    in seconds since the epoch, SHA-256 of the body."""

    def sign(method: str, path: str, query: Query, body: bytes) -> Mapping[str, str]:
        at = str(int(clock()))
        pairs = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query))
        text = "\n".join((method, path, pairs, at, hashlib.sha256(body).hexdigest()))
        signature = hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()
        return {"x-access-key": access_key, "x-timestamp": at, "x-signature": signature}

    return sign


SIGNERS: Final[Mapping[str, Callable[[str, str], Signer]]] = {
    "none": lambda _access_key, _secret_key: unsigned,
    "hmac-sha256": hmac_sha256,
}


# ---------------------------------------------------------------- envelopes


def payload(status: int, document: Any) -> Any:
    """What an answer carries, whichever of the five envelopes it has.

    Judged by the body where it says Success: §9.3 shows that with HTTP 500.  Raises NotThere, Denied,
    Refused (the platform says no, which has no effect) and Unavailable (it says that it broke).
    """
    if not isinstance(document, dict):
        raise Unavailable(f"HTTP {status}: expected an object, got {str(document)[:200]}")
    outer, data = document.get("code"), document.get("data")
    inner = data if isinstance(data, dict) and "status" in data and "result" in data else document
    raw = inner.get("status") if "result" in inner else None
    said_no = (outer is not None and outer != "Success") or raw not in (None, 0, "0") or data is False
    said_yes = outer == "Success" or raw in (0, "0")
    if status < 400 and not said_no and not said_yes:
        raise Unavailable(f"HTTP {status}: no envelope of this platform: {str(document)[:200]}")
    if said_no or not said_yes:
        raise _failed(status, outer, inner.get("message") or document.get("message"), broke=status >= 500)
    return inner.get("result", data)


def _failed(status: int, code: Any, message: Any, *, broke: bool) -> AdapterError:
    words = " ".join(str(part) for part in (code, message) if part not in (None, "", "Success"))
    text = f"HTTP {status}: {words or 'a failure without a message'}"
    if status == 404 or _GONE.search(words):
        return NotThere(text)
    if status == 403 or (isinstance(code, str) and _DENIED.search(code)):
        return Denied(text)
    return failure(status, text) if broke or status >= 400 else Refused(text)


def uncertain(status: int, document: Any) -> Any:
    """The envelope of a call that must not be taken for undone too easily: a start.

    A no that came with HTTP 200 (status -1) may be the end of something that had begun.
    """
    try:
        return payload(status, document)
    except NotThere:
        raise
    except Refused as no:
        if 400 <= status < 500:
            raise
        raise Unavailable(str(no)) from None


# ---------------------------------------------------------------- calls


class Wire:
    """All calls of one center: region, signature and further headers are added here, nowhere else."""

    def __init__(
        self, http: Http, *, endpoint: str, region: str, sign: Signer, extra_headers: Mapping[str, str]
    ) -> None:
        self.http = http
        self.region = region
        self._endpoint = endpoint.rstrip("/")
        self._sign = sign
        self._extra = dict(extra_headers)

    def extra_values(self) -> list[str]:
        """What of the further headers may be a secret: they are hidden in the configuration too."""
        return [value for value in self._extra.values() if len(value) >= SECRET_LENGTH]

    async def call(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        effect: bool,
        query: Mapping[str, str | int] | None = None,
        document: Any = None,
        text: str | None = None,
        urgent: bool = False,
        envelope: Callable[[int, Any], Any] = payload,
    ) -> Any:
        """The payload of an answer.  `path` begins after /api/aidp.  Raises adapter errors.

        `effect` says whether the call changes anything: many do by GET.  The body is `document`, or
        `text` as it is.
        """
        # requestInfo, the region once more, is in some tables and not in others: it is always sent.
        pairs = [(name, str(value)) for name, value in {**(query or {}), "requestInfo": self.region}.items()]
        written = text or ("" if document is None else json.dumps(document, ensure_ascii=False))
        body = written.encode()
        request = self._request(operation, method, BASE + path, pairs, body, effect=effect, urgent=urgent)
        return await self.http.json(request, envelope)

    async def raw(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        """An operator's call: the path from the host on, with its query; the region is added to it."""
        url = below(self._endpoint, path)
        pairs = parse_qsl(url.raw_query_string, keep_blank_values=True)
        if not any(name == "requestInfo" for name, _ in pairs):
            pairs.insert(0, ("requestInfo", self.region))
        request = self._request("call", method, url.raw_path, pairs, body or b"", effect=True, urgent=False)
        return await self.http.raw(request)

    def _request(
        self, operation: str, method: str, path: str, query: Query, body: bytes, *, effect: bool, urgent: bool
    ) -> Request:
        text = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
        headers = {
            **self._extra,
            "x-regionid": self.region,
            "Content-Type": "application/json",  # also where there is no body
            "Cache-Control": "no-store",
            **self._sign(method, path, query, body),
        }
        url = URL(f"{self._endpoint}{path}{'?' if text else ''}{text}", encoded=True)
        return Request(
            operation, method, url, effect=effect, body=body or None, headers=headers, urgent=urgent
        )

    # ------------------------------------------------------------ pages

    async def rows(
        self, operation: str, path: str, *, related: str, filters: Sequence[Mapping[str, Any]] = ()
    ) -> AsyncIterator[dict[str, Any]]:
        """Every row of a listing with `form_data`, whose pages are counted from 0.

        Raises Unavailable when there are more than can be read: what is not in the rows may be there.
        """
        seen = 0
        for page in range(MAX_PAGES):
            form = {"page": page, "page_size": PAGE_SIZE, related: 1, "filters": list(filters)}
            query = {"form_data": json.dumps(form, ensure_ascii=False, separators=(",", ":"))}
            answer = await self.call(operation, "GET", path, effect=False, query=query)
            rows, count = _listed(answer, "data", "count", operation)
            for row in rows:
                yield row
            seen += len(rows)
            if not rows or seen >= count:
                return
        raise Unavailable(f"{operation}: more than {MAX_PAGES * PAGE_SIZE} rows; delete what is old there")

    async def packages(self) -> AsyncIterator[dict[str, Any]]:
        """§4.3, whose pages are counted from 1."""
        seen = 0
        for page in range(1, MAX_PAGES + 1):
            document = {"pageSize": PAGE_SIZE, "pageNum": page, "specType": "compute"}
            path = "/v1/resource/list"
            answer = await self.call("resource.list", "POST", path, effect=False, document=document)
            rows, total = _listed(answer, "list", "total", "resource.list")
            for row in rows:
                yield row
            seen += len(rows)
            if not rows or seen >= total:
                return
        raise Unavailable(f"resource.list: more than {MAX_PAGES * PAGE_SIZE} packages")


def _listed(answer: Any, rows: str, count: str, operation: str) -> tuple[list[dict[str, Any]], int]:
    found = answer.get(rows) if isinstance(answer, dict) else None
    total = answer.get(count) if isinstance(answer, dict) else None
    if not isinstance(found, list) or not isinstance(total, int) or isinstance(total, bool):
        raise Unavailable(f"{operation}: expected {rows} and {count}, got {str(answer)[:200]}")
    if not all(isinstance(row, dict) for row in found):
        raise Unavailable(f"{operation}: expected objects in {rows}, got {str(found)[:200]}")
    return found, total


def absent(error: AdapterError) -> bool:
    """Whether an error says that this installation has no such call: no route, or not by that method.

    A 404 in an envelope is about the thing, one in HTML about the path.
    """
    return isinstance(error, Unintelligible) and error.status in (404, 405)
