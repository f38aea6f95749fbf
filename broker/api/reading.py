"""Reading requests: JSON bodies into models, query strings into values.

What belongs here: size, encoding, JSON, and turning many failures into the one that is told.  What
does not: which fields there are (models.py, fields.py and the handlers).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from aiohttp import web
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from broker import strict_json
from broker.api import times
from broker.api.context import CONTEXT
from broker.api.errors import RANK, ApiError, TooSlow, first, shown, unknown
from broker.api.fields import Choice, Flag, Moment, QueryField, Text, Texts, Whole
from broker.api.models import ANNEX, MAX_INTEGER_DIGITS, Body

B = TypeVar("B", bound=Body)

MAX_DEPTH = 64
"""Of arrays and objects in each other; no request has more than a handful."""
MAX_NAME = 80
"""Characters of a field's name that an answer repeats."""

HIDDEN = frozenset({"password", "old", "new", "value", "command"})
"""Fields whose values are never repeated in an answer."""

_WORDING: dict[str, tuple[str, str]] = {
    "missing": ("0203", "is required"),
    "int_type": ("0201", "must be an integer"),
    "int_parsing_size": ("0204", "is too large"),
    "string_type": ("0201", "must be a text"),
    "bool_type": ("0201", "must be true or false"),
    "list_type": ("0201", "must be a list"),
    "dict_type": ("0201", "must be an object"),
    "model_type": ("0201", "must be an object"),
    "number_type": ("0201", "must be a number"),
    "greater_than_equal": ("0204", "must be at least {ge}"),
    "less_than_equal": ("0204", "must be at most {le}"),
    "too_short": ("0204", "must have at least {min_length} entries"),
    "too_long": ("0204", "must have at most {max_length} entries"),
    "string_too_short": ("0204", "must have at least {min_length} characters"),
    "string_too_long": ("0204", "must have at most {max_length} characters"),
    "literal_error": ("0202", "must be {expected}"),
}
"""Pydantic's error types that the models can raise: code of Annex B and what would be right."""


# ---------------------------------------------------------------- bodies


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object of the body.  Raises ApiError 0204 when it is too large, else 0201."""
    text = _decoded(await read_bytes(request))
    try:
        data = strict_json.parse(text)
    except ValueError as error:
        raise ApiError("0201", f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ApiError("0201", f"the body must be a JSON object, not {shown(data)}")
    if "\\u" in text or text.count("{") + text.count("[") > MAX_DEPTH:  # else there is neither
        for path, value in _texts(data, ""):
            if _HALF_PAIR.search(value):
                raise ApiError("0201", f"{path or 'the body'}: half of a UTF-16 pair is not text")
    return data


async def read_body(request: web.Request, model: type[B]) -> B:
    """The body as a model.  Raises ApiError."""
    return parse(model, await read_object(request))


def parse(model: type[B], data: dict[str, Any]) -> B:
    """A JSON object as a model, or the one failure to tell.  Raises ApiError."""
    failures = [ApiError("0203", f"{path}: is required") for path in model.also_missing(data)]
    body: B | None = None
    try:
        body = model.model_validate(data)
    except ValidationError as error:
        # Worded is the one alone that may be told: there can be as many as a body has bytes.
        wrong = min(error.errors(include_url=False), key=lambda each: RANK.get(_code(each), len(RANK)))
        failures.append(_failure(model, wrong))
    told = first(failures)
    if told is not None:
        raise told
    assert body is not None
    return body


async def read_bytes(request: web.Request) -> bytes:
    """The body.  Raises ApiError 0204 when it is too large."""
    limit = request.app[CONTEXT].max_body_bytes
    body = b""
    if (length := request.content_length or 0) <= limit:
        # One that came with its header is not waited for.
        body = request.content.read_nowait() if request.content.is_eof() else await _arrived(request, limit)
    if max(length, len(body)) > limit:
        raise ApiError("0204", f"the body must have at most {limit} bytes (max_body_bytes)")
    return body


async def _arrived(request: web.Request, limit: int) -> bytes:
    """The body, or its first part when it is larger than `limit`."""
    body = bytearray()
    async with arriving(request):
        while len(body) <= limit and (chunk := await request.content.readany()):
            body += chunk
    return bytes(body)


@asynccontextmanager
async def arriving(request: web.Request) -> AsyncIterator[None]:
    """Something of the body is waited for, but not for longer than `stalled_s`.  Raises TooSlow."""
    within_s = request.app[CONTEXT].limits.stalled_s
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError:
        raise TooSlow(f"nothing more of the body came within {within_s:g} s (limits.stalled_s)") from None


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("0201", f"the body must be JSON in UTF-8; byte {error.start} is not") from error


_HALF_PAIR = re.compile("[\ud800-\udfff]")


def _texts(data: Any, path: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every text inside a document, keys included, with its path.  Raises ApiError for one too deep."""
    if depth > MAX_DEPTH:
        raise ApiError("0201", f"the body is nested more than {MAX_DEPTH} deep")
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield path, key
            yield from _texts(value, f"{path}.{key[:MAX_NAME]}" if path else key[:MAX_NAME], depth + 1)
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _texts(value, f"{path}[{index}]", depth + 1)


def _code(error: ErrorDetails) -> str:
    """The code of Annex B for one of Pydantic's errors."""
    kind = error["type"]
    if kind == "extra_forbidden":
        return "0202"
    return kind.removeprefix(ANNEX) if kind.startswith(ANNEX) else _WORDING[kind][0]


def _failure(model: type[Body], error: ErrorDetails) -> ApiError:
    path = _path(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return ApiError("0202", f"{path}: {unknown(str(error['loc'][-1]), model.known())}")
    if kind.startswith(ANNEX):
        code, text = kind.removeprefix(ANNEX), error["msg"]
        path = _path((*error["loc"], *filter(None, [context["field"]])))
    else:
        code, wording = _WORDING[kind]
        text = wording.format(**context)
    hidden = kind == "missing" or bool(context.get("field")) or not HIDDEN.isdisjoint(error["loc"])
    said = "" if hidden else f", not {shown(error['input'])}"
    return ApiError(code, f"{path}: {text}{said}" if path else f"{text}{said}")


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        name = f"[{part}]" if isinstance(part, int) else part[:MAX_NAME]
        path += name if isinstance(part, int) or not path else f".{name}"
    return path


# ---------------------------------------------------------------- queries

_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)

QUERY_FIELDS = web.AppKey("query_fields", Mapping[tuple[str, str], Mapping[str, QueryField]])
"""By method and path template: the query fields that each route declares, by name."""


def declared_fields(request: web.Request) -> Mapping[str, QueryField]:
    resource = request.match_info.route.resource
    assert resource is not None
    return request.app[QUERY_FIELDS][request.method, resource.canonical]


class Query:
    """The query string of one request, used as a context manager.

    Its fields are those that the route declares (fields.py).  A getter of a field that is wrong notes
    the failure and gives the default; the end of the block raises the failure to tell.
    """

    def __init__(self, request: web.Request) -> None:
        self._query = request.query
        self._fields = declared_fields(request)
        self.failures: list[ApiError] = []
        unknown_seen = False
        for name in dict.fromkeys(self._query):
            values = self._query.getall(name)
            if name not in self._fields:
                if not unknown_seen:  # of many the first is told
                    known = self._fields
                    text = unknown(name, known) if known else "no query is understood here"
                    self.fail("0202", name[:MAX_NAME], text)
                unknown_seen = True
            elif len(values) > 1 and not self._fields[name].repeated:
                self.fail("0202", name, "must be given once")
            elif any("\0" in value for value in values):
                self.fail("0202", name, "must not have a NUL character")

    def __enter__(self) -> Query:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told = first(self.failures)
        if error is None and told is not None:
            raise told

    def fail(self, code: str, name: str, text: str) -> None:
        self.failures.append(ApiError(code, f"{name}: {text}"))

    def has(self, name: str) -> bool:
        return name in self._query

    def text(self, name: str) -> str:
        """The text; "" when it is absent."""
        field = self._fields[name]
        text = self._query.get(name, "")
        if not isinstance(field, Text):
            return text
        if field.required and not text:
            self.fail("0203", name, "is required")
        elif field.longest is not None and len(text) > field.longest:
            self.fail("0204", name, f"must have at most {field.longest} characters, has {len(text)}")
        return text

    def texts(self, name: str) -> list[str]:
        assert isinstance(self._fields[name], Texts)
        return self._query.getall(name, [])

    def whole(self, name: str, *, most: int | None = None) -> int:
        """`most` where the limit is a setting; the default is never above it."""
        field = self._fields[name]
        assert isinstance(field, Whole)
        most = field.most if most is None else most
        assert most is not None
        default = min(field.default, most)
        text = self._query.get(name)
        if text is None:
            return default
        if not _WHOLE.fullmatch(text):
            self.fail("0201", name, f"must be an integer, not {shown(text)}")
            return default
        if len(text) > MAX_INTEGER_DIGITS:  # int() refuses thousands of them
            self.fail("0204", name, f"must be {field.least} to {most}, not a number of {len(text)} digits")
            return default
        if not field.least <= int(text) <= most:
            self.fail("0204", name, f"must be {field.least} to {most}, not {text}")
            return default
        return int(text)

    def flag(self, name: str) -> bool | None:
        """None when it is absent."""
        field = self._fields[name]
        assert isinstance(field, Flag)
        text = self._query.get(name)
        if text is None:
            return None
        words = {"false": False, "true": True}
        words.update({word: bool(at) for at, word in enumerate(field.also)})
        if text.lower() not in words:
            self.fail("0201", name, f"must be true or false, not {shown(text)}")
        return words.get(text.lower())

    def choice(self, name: str) -> str:
        field = self._fields[name]
        assert isinstance(field, Choice)
        text = self._query.get(name, field.default)
        if text not in field.options and name in self._query:
            self.fail("0202", name, f"must be one of {', '.join(field.options)}, not {shown(text)}")
            return field.default
        return text

    def moment(self, name: str, zone: ZoneInfo, *, last: bool) -> int | None:
        """Milliseconds; of a text that names a day or a second its first or its last one."""
        assert isinstance(self._fields[name], Moment)
        if not self.has(name):
            return None
        text = self.text(name)
        try:
            return times.bounds(text, zone)[last]
        except ValueError:
            self.fail("0202", name, f"must be a time such as 2025-03-01 18:00:00, not {shown(text)}")
            return None


def no_query(request: web.Request) -> None:
    """Raises ApiError 0202 when there is a query, which the route does not declare."""
    if request.query_string:
        with Query(request):
            pass
