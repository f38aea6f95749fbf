"""What a route is: all that serving, checking and describing it needs, said once.

What belongs here: the type.  What does not: the routes there are (app.py), and the document made
from them (openapi.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aiohttp.typedefs import Handler

from broker.api.fields import QueryField
from broker.api.models import Body


class Scope(StrEnum):
    """What an API key must have for a route; a login has all of them."""

    READ = "read"
    JOBS = "jobs"
    DATA = "data"
    ADMIN = "admin"
    LOGIN = "login"  # no key can have it: who got hold of one makes no further ones


@dataclass(frozen=True)
class Part:
    """A part of a multipart form.  `schema` is what its value is, `types` the media types it may have;
    `longest` counts the characters of a text, and a file has None."""

    name: str
    en: str
    zh: str
    schema: Mapping[str, Any]
    required: bool = False
    longest: int | None = None
    types: tuple[str, ...] = ("text/plain",)


@dataclass(frozen=True)
class Media:
    """An answer, or a body, that is no JSON document: one of some media types."""

    types: tuple[str, ...]
    en: str = ""
    zh: str = ""
    parts: tuple[Part, ...] = ()
    """Of a multipart form: all that it may have, each once."""


OCTETS = Media(("application/octet-stream",), "Bytes.", "字节流。")


@dataclass(frozen=True)
class Route:
    """`en` and `zh` are its summaries.

    `answer` is a TypedDict of broker.client.answers, a Media, or None: 204 and nothing.  `refusals` are
    codes of Annex B, with status 400, that follow neither from `body` nor from `query`; `calls_center`
    adds 500/0101 and `errors` further pairs of status and code.  `sent` is a body that is not JSON.
    `others` are further statuses of the answer, such as 503 of /readyz.
    """

    method: str
    path: str
    handler: Handler
    en: str
    zh: str
    body: type[Body] | None = None
    query: tuple[QueryField, ...] = ()
    answer: Any = None
    refusals: tuple[str, ...] = ()
    errors: tuple[tuple[int, str], ...] = ()
    calls_center: bool = False
    open: bool = False
    operators: bool = False
    scope: Scope | None = None
    sent: Media | None = None
    headers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Optional request headers, each with its meaning in English and Chinese."""
    others: tuple[int, ...] = ()
    example: Any = None
    """Of the body."""
    answer_example: Any = None

    @property
    def needs(self) -> Scope:
        """ADMIN where it is for operators, else READ for a GET and JOBS, unless it is stated."""
        if self.scope is not None:
            return self.scope
        if self.operators:
            return Scope.ADMIN
        return Scope.READ if self.method == "GET" else Scope.JOBS

    @property
    def codes(self) -> tuple[tuple[int, str], ...]:
        """Every (status, code) of Annex B that it can answer with, in their order."""
        wrong = {"0202", *self.refusals}  # 0202: an unknown query field
        if self.body is not None:
            wrong |= {"0201", "0203", "0204"}
        if self.sent is not None:
            wrong |= {"0201", "0204"}
        for each in self.query:
            wrong.update(each.codes)
        found = {(400, code) for code in wrong} | {(500, "0100"), *self.errors}
        if not self.open:
            found |= {(401, "0101"), (401, "0102"), (401, "0103")}
        if self.calls_center:
            found.add((500, "0101"))
        return tuple(sorted(found))
