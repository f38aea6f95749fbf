"""A look at the store that cannot change it, beside a daemon at work or without one.

What belongs here: opening it read only, at this program's schema.  What does not: any query.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from broker.store import schema
from broker.store.store import BUSY_S, database_file, driver_url
from broker.store.writer import StoreUnavailable

T = TypeVar("T")


def look(url: str, query: Callable[[Session], T]) -> T:
    """The answer of `query`, which sees one picture whatever is written meanwhile.

    Raises StoreUnavailable when the database is not there, cannot be read, or is not at this program's
    schema: nothing is brought there.
    """
    engine = _engine(url)
    try:
        with Session(engine) as session:
            if engine.dialect.name == "sqlite":
                session.execute(text("BEGIN"))
            at, wanted = schema.versions(session.connection())
            if at != wanted:
                raise StoreUnavailable(
                    f"the database is at schema {at}, and this program reads schema {wanted}: start the"
                    " daemon of this version once, which brings it there"
                )
            return query(session)
    except DBAPIError as error:
        shown = make_url(url).render_as_string(hide_password=True)
        raise StoreUnavailable(f"cannot read {shown!r}: {error.orig}") from error
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    own = driver_url(url)
    if make_url(own).get_backend_name() != "sqlite":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        return create_engine(own, execution_options=options)
    file = database_file(own)
    if file is None or not file.exists():
        raise StoreUnavailable(f"there is no database at {url!r}")

    def connect() -> Any:
        where = f"file:{quote(str(file))}?mode=ro"
        return sqlite3.connect(where, uri=True, timeout=BUSY_S, check_same_thread=False)

    return create_engine(own, creator=connect)
