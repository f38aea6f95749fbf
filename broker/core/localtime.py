"""Moments by the local clock of a zone: what price windows, days and months of bills go by.

What belongs here: arithmetic of moments that are given.  What does not: asking what time it is.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def local(ms: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + timedelta(milliseconds=ms)).astimezone(zone)


def minute_of_week(ms: int, zone: ZoneInfo) -> int:
    """Local minute of the week, Monday 00:00 is 0."""
    at = local(ms, zone)
    return at.weekday() * 24 * 60 + at.hour * 60 + at.minute


def day(ms: int, zone: ZoneInfo) -> str:
    """The local day: ``yyyy-MM-dd``."""
    return local(ms, zone).date().isoformat()


def month(ms: int, zone: ZoneInfo) -> str:
    """The local month: ``yyyy-MM``."""
    return day(ms, zone)[:7]
