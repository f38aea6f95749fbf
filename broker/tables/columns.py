"""Kinds of columns: moments, large integers, documents, texts of any length; and a row's table."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, Table, Text, TypeDecorator
from sqlmodel import Field, SQLModel

from broker.reports import storable


def ms(*, index: bool = False) -> Any:
    """Milliseconds since the epoch UTC, or None."""
    return Field(default=None, sa_type=BigInteger, index=index)


def int64(default: int = 0) -> Any:
    return Field(default=default, sa_type=BigInteger)


def json() -> Any:
    """A JSON document; an empty object where nothing is said."""
    return Field(default_factory=dict, sa_type=JSON)


class _Words(TypeDecorator[str]):
    """Text of any length, without what no database takes: some of it is what centers say."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


def text(default: str = "") -> Any:
    """Text of any length."""
    return Field(default=default, sa_type=_Words)


def table(row: type[SQLModel]) -> Table:
    """The table of a kind of row: what is read from it is plain, without an object for each row."""
    found: Table = row.__table__  # type: ignore[attr-defined]
    return found
