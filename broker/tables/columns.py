"""Kinds of columns: moments, large integers, documents, texts of any length; and a row's table."""

from functools import lru_cache
from json import dumps
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Insert,
    Table,
    Text,
    false,
    insert,
    literal_column,
    null,
    true,
)
from sqlmodel import Field, SQLModel


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


def table(row: type[SQLModel]) -> Table:
    """The table of a kind of row: what is read from it is plain, without an object for each row."""
    found: Table = row.__table__  # type: ignore[attr-defined]
    return found


@lru_cache
def insertion(row: type[SQLModel], given: tuple[str, ...]) -> Insert:
    """An insert of new rows without objects, which gives values for these columns; the defaults of all others
    stand in the statement."""
    fields = row.model_fields.items()
    defaults = {
        name: _literal(field.get_default(call_default_factory=True))
        for name, field in fields
        if name not in given
    }
    return insert(table(row)).values(defaults)


def _literal(value: Any) -> ColumnElement[Any]:
    match value:
        case None:
            return null()
        case bool():
            return true() if value else false()
        case int():
            return literal_column(str(value))
        case str():
            return literal_column(f"'{value}'")
        case dict() | list():
            return literal_column(f"'{dumps(value)}'")
    raise TypeError(f"{value!r} is no default of a column")
