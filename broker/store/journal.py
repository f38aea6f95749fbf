"""The end of the event log: what a transaction appends to it, and with what the other processes are woken.

What belongs here: the numbers of events and the statements that write them.  What does not: which events
there are (Tx.event), and what a wake-up is (notices.py).

Numbers are taken from a counter row inside the transaction, so number order is commit order, on PostgreSQL
too: the row lock is held until the commit.  There each statement is a way to the server and back, which
costs more than the statement, so counter, rows, events and notices are one where they can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from typing import Any

from sqlalchemy import Connection, bindparam, insert, update
from sqlalchemy.exc import NoResultFound

from broker.store.notices import NOTIFY, notify
from broker.store.rows import New, as_documents, insert_rows, insertion_of_documents, shape
from broker.tables import Counter, Event
from broker.tables.columns import table

EVENTS = "events"
"""The counter that numbers events, and who is woken when there are new ones."""

_COUNTER = table(Counter)
_TAKE = (
    update(_COUNTER)
    .where(_COUNTER.c.name == EVENTS)
    .values(value=_COUNTER.c.value + bindparam("count"))
    .returning(_COUNTER.c.value)
)
_TAKE_AND_TELL = (
    f"UPDATE {_COUNTER.name} SET value = value + %s WHERE name = '{EVENTS}'"
    f" RETURNING value, (SELECT json_agg({NOTIFY.format('payload')}::text)"
    " FROM json_array_elements_text(%s::json) AS payload)"
)
_APPEND = insert(table(Event))


def append(
    connection: Connection, events: Sequence[dict[str, Any]], *news: New, notices: Sequence[str] = ()
) -> None:
    """Write new rows, as `insert_rows` does, and events after them; notices leave with the commit.

    Raises NoResultFound when the database has lost its counter.
    """
    plain = [{"seq": back, **event} for back, event in enumerate(events, 1 - len(events))]
    if plain and connection.dialect.name == "postgresql" and not any(event["data"] for event in events):
        written: list[New] = [*(new for new in news if new[1]), (Event, plain)]
        if (documents := as_documents(written)) is not None:
            statement = insertion_of_documents(connection.dialect, shape(written), _TAKE_AND_TELL)
            written_events = connection.exec_driver_sql(statement, (len(plain), dumps(notices), *documents))
            if written_events.rowcount != len(plain):
                raise NoResultFound(f"no row of table {_COUNTER.name} counts the {EVENTS}")
            return
    _one_by_one(connection, plain, *news)
    notify(connection, notices)


def _one_by_one(connection: Connection, events: Sequence[dict[str, Any]], *news: New) -> None:
    if events:
        last = connection.execute(_TAKE, {"count": len(events)}).scalar_one()
        for event in events:
            event["seq"] += last
    insert_rows(connection, *news, (Event, [event for event in events if not event["data"]]))
    if told := [event for event in events if event["data"]]:  # anything at all, of any depth
        connection.execute(_APPEND, told)
