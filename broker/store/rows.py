"""Many new rows of a kind by one statement with one parameter.

What belongs here: the statement.  What does not: which rows.  A statement for each row, or a parameter for
each value, costs more of a processor than the rows cost the database, and gives the interpreter away for
each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json import dumps
from typing import Any

from sqlalchemy import Connection, TextClause, insert, text
from sqlalchemy.engine import Dialect
from sqlmodel import SQLModel

from broker.tables.columns import table

_ODD = re.compile(r"\\u(?:0000|d[89a-f])")
"""A NUL character, or half of a UTF-16 pair: databases do not take them out of JSON."""


def insert_rows(connection: Connection, kind: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, in order.  All name the same columns, with JSON's values; others have their default.

    Not for documents of any depth, or with numbers that JSON has not: databases refuse to read those.
    """
    if not rows:
        return
    said = dumps(rows)
    if _ODD.search(said):
        connection.execute(insert(table(kind)), [{**_defaults(kind), **row} for row in rows])
    else:
        connection.execute(_insertion(connection.dialect, kind, tuple(rows[0])), {"rows": said})


@lru_cache
def _defaults(kind: type[SQLModel]) -> dict[str, Any]:
    fields = kind.model_fields.items()
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in fields
        if not field.is_required()
    }


@lru_cache
def _insertion(dialect: Dialect, kind: type[SQLModel], given: tuple[str, ...]) -> TextClause:
    defaults = {name: value for name, value in _defaults(kind).items() if name not in given}
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
