"""Many new rows of a kind by one statement with one parameter.

What belongs here: the statement.  What does not: which rows.  A statement for each row, or a parameter for
each value, costs more of a processor than the rows cost the database, and gives the interpreter away for
each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from json import dumps
from typing import Any

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.engine import Dialect
from sqlmodel import SQLModel

from broker.tables.columns import table


def insert_rows(connection: Connection, kind: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, in order.  All name the same columns, with JSON's values; others have their default.

    No text may have a NUL character or half of a UTF-16 pair, which PostgreSQL does not take from JSON.
    """
    if rows:
        connection.execute(_insertion(connection.dialect, kind, tuple(rows[0])), {"rows": dumps(rows)})


@lru_cache
def _insertion(dialect: Dialect, kind: type[SQLModel], given: tuple[str, ...]) -> TextClause:
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
        if name not in given
    }
    quoted = dialect.identifier_preparer.quote_identifier
    into = quoted(table(kind).name)
    if dialect.name == "sqlite":
        values = [f"json_extract(value, '$.{name}')" for name in given]
        source = "json_each(:rows)"
    else:
        values = [quoted(name) for name in given]
        source = f"json_populate_recordset(NULL\\:\\:{into}, CAST(:rows AS json))"
    columns = ", ".join(quoted(name) for name in (*given, *defaults))
    taken = ", ".join((*values, *map(_literal, defaults.values())))
    return text(f"INSERT INTO {into} ({columns}) SELECT {taken} FROM {source}")


def _literal(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case int() if not isinstance(value, bool):
            return str(value)
        case str():
            return f"'{value}'"
        case dict() | list():
            return f"'{dumps(value)}'"
    raise TypeError(f"{value!r} is no default of a column that is known here")
