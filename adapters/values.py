"""Reading what platforms write: strict JSON, numbers in strings, blanks, local times without a zone; and
the time that it is here.

Here: what more than one platform writes the same way.  Not here: any platform's fields.  A value that
is none of these raises Unavailable with the field's name: the answer cannot be relied on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from broker import strict_json
from broker.adapter import Unavailable

Clock = Callable[[], int]
"""Milliseconds since the epoch."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


BLANKS = frozenset({"", "-", "--", "null", "None", "未知", "无限制"})
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[ T](\d{2}:\d{2}:\d{2})(?:[.,](\d{1,9}))?\s*(Z|[+-]\d{2}:?\d{2})?", re.ASCII
)
_MOST_DIGITS = 30


def number(value: Any, field: str) -> Decimal | None:
    """A number, also in a string; None for a blank."""
    if value is None or (isinstance(value, str) and value.strip() in BLANKS):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
            raise InvalidOperation
        found = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        raise Unavailable(f"{field} is {value!r}, expected a number") from None
    if not found.is_finite() or abs(found.adjusted()) > _MOST_DIGITS:
        raise Unavailable(f"{field} is {value!r}, expected a number of at most {_MOST_DIGITS} digits")
    return found


def whole(value: Any, field: str) -> int | None:
    """A whole number, also in a string or with a fraction of nought; None for a blank."""
    found = number(value, field)
    if found is None:
        return None
    if found != found.to_integral_value():
        raise Unavailable(f"{field} is {value!r}, expected a whole number")
    return int(found)


def utc_ms(value: Any, field: str, zone: ZoneInfo) -> int | None:
    """A time as UTC milliseconds; None for a blank and for 0.

    Milliseconds since the epoch as they are, or text such as "2024-06-25 16:37:08.5", in `zone` unless
    it states an offset.
    """
    if not isinstance(value, str) or value.strip() in BLANKS or value.strip().isdecimal():
        return whole(value, field) or None
    if (found := _TIME.fullmatch(value.strip())) is None:
        raise Unavailable(f'{field} is {value!r}, expected a time such as "2024-06-25 16:37:08"')
    day, time, fraction, offset = found.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{time}{offset or ''}")
        at = at if at.tzinfo is not None else at.replace(tzinfo=zone)
        seconds = int(at.astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        raise Unavailable(f"{field} is {value!r}, expected a time that exists") from None
    return seconds * 1000 + int((fraction or "").ljust(3, "0")[:3])


def parse_json(body: bytes) -> Any:
    """A document in UTF-8, read strictly.  Raises ValueError."""
    return strict_json.parse(body.decode("utf-8-sig"))
