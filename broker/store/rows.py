"""Many rows of a kind by one statement, for what many ask for at the same time.

What belongs here: the statement that writes new rows, parts of statements that tell rows as one document, all
or those under keys, and the condition that a column has one of many values.  What does not: which rows.  A
statement for each row costs more of a processor than the row costs the database, and gives the interpreter
away for each.

PostgreSQL is handed new rows as one JSON document, since its driver takes long over many parameters; SQLite
is handed parameters, since it takes long over JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from json import dumps
from typing import Any

from sqlalchemy import ARRAY, JSON, ColumnElement, Connection, String, func, insert, literal, select
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapped
from sqlmodel import SQLModel

from broker.tables.columns import table

MOST_PARAMETERS = 999
"""Of one statement: what SQLite takes however old it is."""

_ODD = re.compile(r"\\u(?:0000|d[89a-f])")
"""A NUL character, or half of a UTF-16 pair: PostgreSQL does not take them out of JSON."""


New = tuple[type[SQLModel], Sequence[Mapping[str, Any]]]
"""Rows of one table.  All name the same columns, with JSON's values; others have their default."""


def insert_rows(connection: Connection, *news: New) -> None:
    """Write rows, in order; what refers to rows of another table comes after them.

    Not for documents of any depth, or with numbers that JSON has not: databases refuse to read those.
    """
    written = [new for new in news if new[1]]
    if connection.dialect.name == "sqlite":
        for kind, rows in written:
            _insert_values(connection, kind, rows)
    elif (documents := in_json(written)) is None:
        for kind, rows in written:
            connection.execute(insert(table(kind)), [{**_defaults(kind), **row} for row in rows])
    elif written:
        connection.exec_driver_sql(insertion_of_documents(connection.dialect, shape(written)), documents)


Shape = tuple[tuple[type[SQLModel], tuple[str, ...]], ...]
"""Tables, and the columns that their new rows name."""


def shape(news: Sequence[New]) -> Shape:
    """Of rows, at least one of each table."""
    return tuple((kind, tuple(rows[0])) for kind, rows in news)


def in_json(news: Sequence[New]) -> tuple[str, ...] | None:
    """The rows of each table as JSON; None where PostgreSQL would not take them out of it."""
    documents = tuple(dumps(rows) for _, rows in news)
    return None if any(map(_ODD.search, documents)) else documents


@lru_cache
def insertion_of_documents(dialect: Dialect, news: Shape, counting: str = "") -> str:
    """One statement of PostgreSQL that writes the rows of all tables; a document of each is a parameter.

    `counting` is a statement that tells one row with a number, `value`, which is added to the first column
    of the last table's rows; its parameters come first.
    """
    *first, last = (
        _insertion_of_document(dialect, kind, given, counted=counting != "" and at == len(news))
        for at, (kind, given) in enumerate(news, 1)
    )
    before = [f"new_{at} AS ({statement})" for at, statement in enumerate(first)]
    if counting:
        before.insert(0, f"counted AS ({counting})")
    return f"WITH {', '.join(before)} {last}" if before else last


def among(connection: Connection, column: Mapped[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """Whether a column has one of many values, as one parameter: `in_` makes one of each."""
    if connection.dialect.name == "sqlite":
        each = func.json_each(dumps(values)).table_valued("value")
        return column.in_(select(each.c.value))
    return column == func.any(literal(list(values), ARRAY(String)))


def as_document(dialect: Dialect, kind: type[SQLModel], columns: Iterable[str]) -> str:
    """SELECT ... FROM a table: the text of a JSON list with a list for each row, in no order; a condition may
    follow."""
    quoted, types = _quoted(dialect), table(kind).c
    if dialect.name == "sqlite":  # has no kind of its own for JSON
        told = [f"json({quoted(c)})" if isinstance(types[c].type, JSON) else quoted(c) for c in columns]
        whole = f"json_group_array(json_array({', '.join(told)}))"
    else:
        whole = f"coalesce(json_agg(json_build_array({', '.join(map(quoted, columns))}))::text, '[]')"
    return f"SELECT {whole} FROM {quoted(table(kind).name)}"


def looked_up(
    dialect: Dialect, kind: type[SQLModel], by: tuple[str, ...], wanted: str, *, where: str = "true"
) -> str:
    """SELECT ...: the text of a JSON list, in no order, of [place, one column of the row there] for each key
    of a JSON list of keys, which is the parameter at this place; null where there is no row.

    `by` names the columns of a unique index of the rows `where` holds.  Each key is looked up in it by
    itself: with lists of values a database may go through all that have the first of them.
    """
    quoted = _quoted(dialect)
    if dialect.name == "sqlite":
        whole, given = "json_group_array(json_array(asked.key, ({})))", "json_extract(asked.value, '$[{}]')"
        keys = "json_each(?) AS asked"
    else:
        whole = "coalesce(json_agg(json_build_array(asked.at, ({})))::text, '[]')"
        given = "asked.value ->> {}"
        keys = "json_array_elements(%s::json) WITH ORDINALITY AS asked (value, at)"
    under = " AND ".join(f"{quoted(name)} = {given.format(i)}" for i, name in enumerate(by))
    row = f"SELECT {quoted(wanted)} FROM {quoted(table(kind).name)} WHERE {under} AND {where}"
    return f"SELECT {whole.format(row)} FROM {keys}"


def listed(dialect: Dialect) -> str:
    """SELECT ...: the texts of a JSON list, which is the parameter at this place."""
    if dialect.name == "sqlite":
        return "SELECT value FROM json_each(?)"
    return "SELECT json_array_elements_text(%s::json)"


def _insert_values(connection: Connection, kind: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    into, marks, conversions = _values_insertion(connection.dialect, kind, tuple(rows[0]))
    values = [
        value if to_sql is None else to_sql(value)
        for row in rows
        for to_sql, value in zip(conversions, row.values(), strict=True)
    ]
    width = len(conversions)
    most = MOST_PARAMETERS // width
    for begin in range(0, len(rows), most):
        count = min(most, len(rows) - begin)
        part = values[begin * width : (begin + count) * width]
        connection.exec_driver_sql(f"{into} VALUES {', '.join([marks] * count)}", tuple(part))


@lru_cache
def _defaults(kind: type[SQLModel]) -> dict[str, Any]:
    fields = kind.model_fields.items()
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in fields
        if not field.is_required()
    }


@lru_cache
def _insertion(dialect: Dialect, kind: type[SQLModel], given: tuple[str, ...]) -> tuple[str, str]:
    """INSERT INTO a table with all its columns, and the values of those that are not given."""
    defaults = {name: value for name, value in _defaults(kind).items() if name not in given}
    columns = ", ".join(map(_quoted(dialect), (*given, *defaults)))
    into = f"INSERT INTO {_quoted(dialect)(table(kind).name)} ({columns})"
    return into, "".join(f", {_literal(value)}" for value in defaults.values())


@lru_cache
def _values_insertion(
    dialect: Dialect, kind: type[SQLModel], given: tuple[str, ...]
) -> tuple[str, str, Sequence[Callable[[Any], Any] | None]]:
    """The statement, the marks of one row, and what makes each value one that the driver takes."""
    into, defaults = _insertion(dialect, kind, given)
    columns = table(kind).c
    read = [columns[name].type.dialect_impl(dialect).bind_processor(dialect) for name in given]
    return into, f"({', '.join('?' * len(given))}{defaults})", read


def _insertion_of_document(
    dialect: Dialect, kind: type[SQLModel], given: tuple[str, ...], *, counted: bool
) -> str:
    into, defaults = _insertion(dialect, kind, given)
    names = list(map(_quoted(dialect), given))
    types = [table(kind).c[name].type.compile(dialect=dialect) for name in given]
    read = ", ".join(f"{name} {type}" for name, type in zip(names, types, strict=True))
    source = f"json_to_recordset(%s::json) AS given ({read})"
    if counted:
        names[0], source = f"counted.value + {names[0]}", f"counted, {source}"
    return f"{into} SELECT {', '.join(names)}{defaults} FROM {source}"


def _quoted(dialect: Dialect) -> Callable[[str], str]:
    return dialect.identifier_preparer.quote_identifier


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
