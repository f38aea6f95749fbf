"""Database files that need no migration: made once in a process, then copied.

What belongs here: files as the program itself leaves them.  What does not: tests of the migrations,
which start from nothing (test_store_rest.py).
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine

from broker.store import schema

NAME = "broker.db"


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / NAME
        engine = create_engine(f"sqlite:///{file}")
        schema.upgrade(engine, file)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        engine.dispose()
        return file.read_bytes()


def url(folder: Path, content: bytes = b"") -> str:
    """The URL of the database in a folder: what is there already, or a new one with this content, of
    the program's schema and empty where none is given."""
    file = folder / NAME
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content or _migrated())
    return f"sqlite:///{file}"
