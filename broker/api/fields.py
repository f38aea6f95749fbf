"""Query fields: what may stand in a query string, declared once.

What belongs here: names, types, bounds, words and meanings, and their JSON Schema.  Requests are
validated from these declarations (reading.Query) and the OpenAPI document is made from them
(openapi.py).  What does not: which route has which (app.py and the handlers' modules).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class QueryField:
    """`en` and `zh` say what it means."""

    name: str
    en: str = ""
    zh: str = ""
    required: bool = False
    repeated: ClassVar[bool] = False

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of Annex B that a wrong value is refused with."""
        return ("0203",) if self.required else ()

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Text(QueryField):
    """Any text without a NUL character; "" counts as absent."""

    longest: int | None = None

    @property
    def codes(self) -> tuple[str, ...]:
        return (*super().codes, *(("0204",) if self.longest is not None else ()))

    def schema(self) -> dict[str, Any]:
        least = {"minLength": 1} if self.required else {}
        most = {} if self.longest is None else {"maxLength": self.longest}
        return {"type": "string", **least, **most}


@dataclass(frozen=True)
class Texts(QueryField):
    """A text that may come more than once."""

    repeated: ClassVar[bool] = True

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}


@dataclass(frozen=True, kw_only=True)
class Whole(QueryField):
    """An integer; a `most` of None is a setting, which the handler knows."""

    least: int
    most: int | None
    default: int

    @property
    def codes(self) -> tuple[str, ...]:
        return (*super().codes, "0201", "0204")

    def schema(self) -> dict[str, Any]:
        most = {} if self.most is None else {"maximum": self.most}
        return {"type": "integer", "minimum": self.least, **most, "default": self.default}


@dataclass(frozen=True, kw_only=True)
class Flag(QueryField):
    """true or false in any letter case; `also`: further spellings in the order false, true."""

    also: tuple[str, ...] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        return (*super().codes, "0201")

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"} if not self.also else {"enum": [True, False, *map(int, self.also)]}


@dataclass(frozen=True, kw_only=True)
class Choice(QueryField):
    """One of some words, in their letter case."""

    options: tuple[str, ...]
    default: str = ""

    def schema(self) -> dict[str, Any]:
        default = {"default": self.default} if self.default else {}
        return {"type": "string", "enum": list(self.options), **default}


@dataclass(frozen=True)
class Order(QueryField):
    """The standard types it Boolean and gives it the values desc and asc; paging.paging reads it."""

    def schema(self) -> dict[str, Any]:
        words = "|".join(_any_case(word) for word in ("desc", "asc", "true", "false"))
        return {"type": "string", "pattern": f"^({words})$", "default": "desc"}


def _any_case(word: str) -> str:
    return "".join(f"[{letter.lower()}{letter.upper()}]" for letter in word)


@dataclass(frozen=True)
class Moment(QueryField):
    """A time as docs/api.md has them, read in the broker's time zone."""

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "examples": ["2025-03-01 18:00:00"]}


def paged(sorts: Sequence[str], *, default: str) -> tuple[QueryField, ...]:
    """The fields of a listing that has pages and an order; paging.paging reads them."""
    return (
        Whole("pageSize", "Entries of a page.", "每页条数。", least=1, most=None, default=50),
        Whole("page", "Page, from 1.", "页码，从 1 开始。", least=1, most=LAST_PAGE, default=1),
        Choice("sort", "Sorted by.", "排序字段。", options=tuple(sorts), default=default),
        Order("order", "desc (or true) or asc (or false).", "desc（或 true）或 asc（或 false）。"),
    )


LAST_PAGE = 2**31 - 1

PERIOD: tuple[QueryField, ...] = (
    Moment("createAfter", "Created then or later.", "创建时间不早于。"),
    Moment("createBefore", "Created then or earlier.", "创建时间不晚于。"),
)
"""Bounds of the time of creation, both inclusive; paging.period reads them."""

OWNER = Choice("owner", "me: one's own only.", "me：仅本人的。", options=("me",))
