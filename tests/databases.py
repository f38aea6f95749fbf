"""Which database a test's store is: a SQLite file in the test's folder, or a database of a real
PostgreSQL.

A module whose tests are to run on both says `pytestmark = pytest.mark.both_databases`; each of its tests
then runs twice, but for those that look at SQLite's own: `pytest.mark.sqlite_only(why)`.  Whoever makes a
store asks `database(folder)` for its URL, and gets the same database for the same folder as long as the
test lasts.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from tests import postgres, sqlite_files

KINDS = ("sqlite", "postgresql")


class Databases:
    """The databases of the running test."""

    def __init__(self) -> None:
        self._kind = KINDS[0]
        self._made: dict[Path, str] = {}

    @property
    def postgresql(self) -> bool:
        return self._kind == "postgresql"

    def begin(self, kind: str) -> None:
        if kind == "postgresql":
            postgres.server().template()  # without a server the test fails here, and says so
        self._kind = kind

    def end(self) -> None:
        if self._made:
            postgres.server().drop(self._made.values())
        self._made.clear()
        self._kind = KINDS[0]

    def url(self, folder: Path, *, empty: bool = False) -> str:
        """The store's URL.  Unless `empty`, the database has the newest schema already."""
        if not self.postgresql:
            return f"sqlite:///{folder / sqlite_files.NAME}" if empty else sqlite_files.url(folder)
        server = postgres.server()
        if folder not in self._made:
            name = f"test_{uuid4().hex}"
            server.create(name, template="template0" if empty else server.template())
            self._made[folder] = name
        return server.url(self._made[folder])


CURRENT = Databases()


def database(folder: Path, *, empty: bool = False) -> str:
    """The URL of the store that the running test keeps in a folder."""
    return CURRENT.url(folder, empty=empty)
