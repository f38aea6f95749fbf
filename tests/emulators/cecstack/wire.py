"""How the emulated CECSTACK reads requests and writes answers: envelopes, strict fields, times.

What belongs here: the five envelopes of the document, failures in the forms seen in its relatives,
the fields each body must have, and local times as text.  What does not: what a call does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from aiohttp import web

BASE: Final = "/api/aidp"
SHANGHAI: Final = timezone(timedelta(hours=8))
UNKNOWN: Final = "未知"
UNKNOWN_HTML: Final = (
    '<svg class="icon" viewBox="0 0 1024 1024"><path d="M0 0z"></path></svg>&nbsp;&nbsp;未知'
)
SIGNATURE_LIFE_S: Final = 900


@dataclass(slots=True)
class Clock:
    """Emulated time, in seconds since the epoch: `speed` emulated seconds pass in each real one."""

    speed: float = 1.0
    began: float = field(default_factory=time.time)
    _from: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        return self.began + (time.monotonic() - self._from) * self.speed


@dataclass(slots=True)
class Seen:
    """One request as it came, in the order of `number`, which starts at 1.

    `done`: the emulator carried it out.  `spoilt`: the answer was not what it should have been.
    """

    number: int
    operation: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    text: str
    done: bool = False
    spoilt: bool = False

    @property
    def body(self) -> Any:
        return json.loads(self.text) if self.text else None


class Failure(Exception):
    """What the platform refuses; `status` is that of HTTP where failures use it."""

    def __init__(self, message: str, *, status: int = 422, code: str = "InvalidParameter") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


# ---------------------------------------------------------------- envelopes


def request_id(number: int) -> str:
    return f"{number:032x}"


def plain(number: int, data: Any, message: str = "成功") -> dict[str, Any]:
    """E2: the gateway's envelope around plain data."""
    return {"requestId": request_id(number), "code": "Success", "message": message, "data": data}


def inner(number: int, result: Any) -> dict[str, Any]:
    """E1: the gateway's envelope around the inner one."""
    return plain(number, {"code": "", "message": "success", "result": result, "status": 0})


def raw(number: int, result: Any) -> dict[str, Any]:
    """E3: the inner envelope alone."""
    return {"message": "success", "result": result, "status": 0}


def page_a(number: int, rows: list[Any], *, num: int, size: int) -> dict[str, Any]:
    """E4: pages counted from 1."""
    part = rows[(num - 1) * size : num * size]
    pages = -(-len(rows) // size)
    return plain(number, {"size": size, "current": num, "total": len(rows), "totalPage": pages, "list": part})


def page_b(rows: list[Any], *, page: int, size: int) -> dict[str, Any]:
    """E5: pages counted from 0."""
    return {"count": len(rows), "data": rows[page * size : (page + 1) * size]}


def failure(number: int, path: str, error: Failure, *, in_body: bool) -> web.Response:
    """A refusal.  `in_body`: HTTP says 200 and only the envelope tells."""
    if path.startswith(f"{BASE}/v1"):
        document: dict[str, Any] = {
            "requestId": request_id(number),
            "code": error.code,
            "message": str(error),
            "data": None,
        }
    else:
        document = {"message": str(error), "result": {}, "status": -1 if in_body else 1}
    return web.json_response(document, status=200 if in_body else error.status)


# ---------------------------------------------------------------- fields


@dataclass(frozen=True, slots=True)
class Need:
    """A field of a body: its JSON type, and whether it must be there."""

    kind: type | tuple[type, ...]
    required: bool = True


def must(kind: type, *names: str) -> dict[str, Need]:
    return {name: Need(kind) for name in names}


def may(kind: type | tuple[type, ...], *names: str) -> dict[str, Need]:
    return {name: Need(kind, required=False) for name in names}


def problems(body: Any, needs: Mapping[str, Need]) -> list[str]:
    """What is wrong with a body, as the document has it."""
    if not isinstance(body, dict):
        return [f"the body is {body!r}, not an object"]
    found = [f"{name} is missing" for name, need in needs.items() if need.required and name not in body]
    for name, value in body.items():
        need = needs.get(name)
        if need is None:
            found.append(f"{name} is not in the document")
            continue
        kinds = need.kind if isinstance(need.kind, tuple) else (need.kind,)
        if type(value) not in kinds:  # a boolean is no int here
            found.append(f"{name} is {value!r}, not of type {' or '.join(k.__name__ for k in kinds)}")
    return found


def json_text(name: str, text: str) -> list[str]:
    try:
        json.loads(text)
    except ValueError:
        return [f"{name} is {text!r}, not JSON in a string"]
    return []


# ---------------------------------------------------------------- times


def local(at: float | None) -> str:
    """ "2024-07-11 19:44:21", or the platform's word for not knowing."""
    return UNKNOWN if at is None else datetime.fromtimestamp(at, SHANGHAI).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, SHANGHAI).strftime("%Y-%m-%dT%H:%M:%S")


def elapsed(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    minutes = int(seconds) // 60
    return f"{minutes // 60:02d}小时{minutes % 60:02d}分钟"


# ---------------------------------------------------------------- signatures


def unsigned(seen: Seen, raw_query: str, secrets: Mapping[str, str]) -> Failure | None:
    """What is wrong with a signature, by a scheme of this emulator's own: the vendor's is not public.

    HMAC-SHA256 over five lines: method, path, sorted query, time in seconds, SHA-256 of the body.  The
    time is the true one: callers do not live at the emulated speed.
    """
    key = seen.headers.get("x-access-key", "")
    at = seen.headers.get("x-timestamp", "")
    secret = secrets.get(key)
    if secret is None:
        return Failure(f"unknown access key {key!r}", status=401, code="InvalidAccessKey")
    if not at.isdigit() or abs(time.time() - int(at)) > SIGNATURE_LIFE_S:
        return Failure(f"the signature of {at!r} has expired", status=401, code="SignatureExpired")
    pairs = sorted(parse_qsl(raw_query, keep_blank_values=True))
    query = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in pairs)
    digest = hashlib.sha256(seen.text.encode()).hexdigest()
    text = "\n".join((seen.method, seen.path, query, at, digest))
    good = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(good, seen.headers.get("x-signature", "")):
        return Failure("the signature does not match", status=401, code="SignatureDoesNotMatch")
    return None
