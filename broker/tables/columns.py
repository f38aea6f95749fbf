"""Kinds of columns: moments, large integers, documents, texts of any length."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Text
from sqlmodel import Field


def ms(*, index: bool = False) -> Any:
    """Milliseconds since the epoch UTC, or None."""
    return Field(default=None, sa_type=BigInteger, index=index)


def int64(default: int = 0) -> Any:
    return Field(default=default, sa_type=BigInteger)


def json() -> Any:
    """A JSON document; an empty object where nothing is said."""
    return Field(default_factory=dict, sa_type=JSON)


def text(default: str = "") -> Any:
    """Text of any length."""
    return Field(default=default, sa_type=Text)
