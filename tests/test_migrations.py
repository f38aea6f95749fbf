"""From every step of the schema, with data in every table, to the newest: nothing is lost, and what comes
out is what the tables say.  The first release has not been made: each step may be somebody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Connection, Float, Integer, MetaData, Table, create_engine, select
from sqlmodel import SQLModel

from broker.store import Store
from broker.store.schema import configuration, steps
from tests.databases import database

pytestmark = pytest.mark.both_databases

STEPS = [step.revision for step in ScriptDirectory.from_config(configuration()).walk_revisions()][::-1]


def engine_url(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:", 1)


def value(column: Any) -> Any:
    """Something that the column takes, and that is not its default."""
    if column.foreign_keys:
        (key,) = column.foreign_keys
        return value(key.column)
    kind = column.type
    if isinstance(kind, JSON):
        return {"kept": [1, "二"]}
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, Integer | Float):
        return 7
    return "x"


def fill(connection: Connection) -> dict[str, dict[str, Any]]:
    """One row in every table that has none; all rows by table."""
    found = MetaData()
    found.reflect(connection)
    rows: dict[str, dict[str, Any]] = {}
    for table in found.sorted_tables:
        if table.name == "alembic_version":
            continue
        if connection.execute(select(table)).first() is None:
            connection.execute(
                table.insert().values({column.name: value(column) for column in table.columns})
            )
        rows[table.name] = dict(connection.execute(select(table)).mappings().first() or {})
    return rows


@pytest.mark.parametrize("step", STEPS)
async def test_a_store_of_any_step_comes_to_the_newest_with_its_data(tmp_path: Path, step: str) -> None:
    url = database(tmp_path, empty=True)
    engine, config = create_engine(engine_url(url)), configuration()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, step)
        before = fill(connection)
    store = Store(url)
    await store.open()
    await store.close()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == STEPS[-1]
        assert compare_metadata(context, SQLModel.metadata) == []
        for name, row in before.items():
            table = Table(name, MetaData(), autoload_with=connection)
            after = dict(connection.execute(select(table)).mappings().one())
            kept = {column: after[column] for column in row if column in after}
            assert kept == row, name
    engine.dispose()


def test_a_step_is_known_by_the_name_of_its_file() -> None:
    assert steps() == STEPS


def test_the_steps_are_one_after_the_other() -> None:
    assert [f"{number:04}" for number in range(1, len(STEPS) + 1)] == STEPS
