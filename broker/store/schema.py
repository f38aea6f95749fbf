"""The schema's way from version to version, by Alembic.

A database that is older is upgraded when the store opens; SQLite's file is copied beside itself
first, because its schema changes cannot all be rolled back.  A database that is newer than this
program is refused.

Alembic is loaded only where there is something to upgrade: it takes a tenth of a daemon's start.  So the
number that a step's file begins with is its revision.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent.parent / "migrations"


class SchemaTooNew(Exception):
    """The database was written by a newer version of the broker."""


def configuration() -> Config:
    """Alembic's configuration; there is no ini file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def versions(connection: Connection) -> tuple[str | None, str | None]:
    """The version that the database is at, None for an empty one, and this program's."""
    known = inspect(connection).has_table("alembic_version")
    at = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() if known else None
    return at, steps()[-1]


def steps() -> list[str]:
    """Every version that this program knows, the oldest first."""
    return sorted(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def upgrade(engine: Engine, file: Path | None) -> None:
    """Bring the database to this program's version.

    Raises SchemaTooNew, sqlalchemy.exc.DBAPIError, OSError.
    """
    with engine.connect() as connection:
        current, head = versions(connection)
    if current == head:
        return
    if current is not None and current not in steps():
        raise SchemaTooNew(
            f"the database is at schema {current}, which this version (schema {head}) does not know:"
            " run the newer version, or restore the copy made before its upgrade"
        )
    if current is not None and file is not None:
        _copy(file, file.with_name(f"{file.name}.before-{head}"))
    from alembic import command

    config = configuration()
    # On PostgreSQL this takes the turn of whoever writes (store.py): of several daemons that start together
    # the first brings the schema up to date, and the others find it so.
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # loading the steps may take a while
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _copy(file: Path, copy: Path) -> None:
    copy.touch(mode=0o600)  # no wider than the file, whatever the umask
    with sqlite3.connect(file) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
