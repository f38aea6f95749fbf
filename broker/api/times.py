"""Times of the wire: read in several forms, written in one, both in the configured zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STAMP = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<hour>\d{2}:\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,6}))?)?"
    r"(?P<zone>Z|[+ -]\d{2}:?\d{2})?)?",
    re.ASCII,
)
_STAMP_LENGTH = len("yyyy-MM-dd HH:mm:ss")
_DIGITS = re.compile(r"\d{1,14}", re.ASCII)


def written(ms: int | None, zone: ZoneInfo) -> str:
    """``yyyy-MM-dd HH:mm:ss``; "" for no time."""
    return "" if ms is None else _written(ms // 1000, zone)


@lru_cache(maxsize=4096)  # answers name the same few moments again and again
def _written(second: int, zone: ZoneInfo) -> str:
    return str(datetime.fromtimestamp(second, zone))[:_STAMP_LENGTH]  # without the zone's offset


def bounds(text: str, zone: ZoneInfo) -> tuple[int, int]:
    """The first and last millisecond that a text names: of a day, a minute, a second or itself.

    Understood: ``yyyy-MM-dd``, ``yyyy-MM-dd HH:mm:ss``, ISO 8601 with T, fraction and zone, and
    digits since the epoch: seconds, or milliseconds from twelve digits on.  In a query a zone's plus
    sign may have become a space.  Raises ValueError.
    """
    if _DIGITS.fullmatch(text):
        return (int(text), int(text)) if len(text) >= 12 else (int(text) * 1000, int(text) * 1000 + 999)
    found = _STAMP.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a time")
    day, hour, second, fraction, offset = found.group("day", "hour", "second", "fraction", "zone")
    stamp = f"{day}T{hour or '00:00'}:{second or '00'}.{(fraction or '').ljust(6, '0')}"
    try:
        if offset is None:
            moment = datetime.fromisoformat(stamp).replace(tzinfo=zone)
        else:
            moment = datetime.fromisoformat(stamp + offset.replace(" ", "+"))
        start = (moment - _EPOCH) // timedelta(milliseconds=1)
        if hour is None and moment.date() < date.max:
            # a day has 23 to 25 hours where clocks change
            end = (moment + timedelta(days=1) - _EPOCH) // timedelta(milliseconds=1) - 1
            return start, end
    except OverflowError as error:
        raise ValueError(f"{text!r} is out of range") from error
    span_ms = _DAY_MS if hour is None else 60_000 if second is None else 1000 if fraction is None else 1
    return start, start + span_ms - 1
