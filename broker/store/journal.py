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

from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import NoResultFound

from broker.store.notices import NOTIFY, notify
from broker.store.rows import New, in_json, insert_rows, insertion_of_documents, shape
from broker.tables import Counter, Event
from broker.tables.columns import table

EVENTS = "events"
"""The counter that numbers events, and who is woken when there are new ones."""

_COUNTER = table(Counter).name
_COUNT = f"UPDATE {_COUNTER} SET value = value + {{}} WHERE name = '{EVENTS}' RETURNING value"
_TAKE = text(_COUNT.format(":count"))
_TAKE_AND_TELL = (  # the notices as one value, since there is one row
    f"{_COUNT.format('%s')}, (SELECT json_agg({NOTIFY.format('told')}::text)"
    " FROM json_array_elements_text(%s::json) AS told)"
)
_APPEND = insert(table(Event))


def append(
    connection: Connection, events: Sequence[dict[str, Any]], *news: New, notices: Sequence[str] = ()
) -> None:
    """Write new rows, as `insert_rows` does, and events after them; notices leave with the commit.

    Raises NoResultFound when the database has lost its counter.
    """
    behind = [{"seq": seq, **event} for seq, event in enumerate(events, 1 - len(events))]  # the counter
    if behind and connection.dialect.name == "postgresql" and not any(event["data"] for event in events):
        written: list[New] = [*(new for new in news if new[1]), (Event, behind)]
        if (documents := in_json(written)) is not None:
            statement = insertion_of_documents(connection.dialect, shape(written), _TAKE_AND_TELL)
            done = connection.exec_driver_sql(statement, (len(behind), dumps(notices), *documents))
            if done.rowcount != len(behind):
                raise NoResultFound(f"no row of table {_COUNTER} counts the {EVENTS}")
            return
    _one_by_one(connection, behind, *news)
    notify(connection, notices)


def _one_by_one(connection: Connection, behind: Sequence[dict[str, Any]], *news: New) -> None:
    events: list[dict[str, Any]] = []
    if behind:
        last = connection.execute(_TAKE, {"count": len(behind)}).scalar_one()
        events = [{**event, "seq": last + event["seq"]} for event in behind]
    insert_rows(connection, *news, (Event, [event for event in events if not event["data"]]))
    if told := [event for event in events if event["data"]]:  # anything at all, of any depth
        connection.execute(_APPEND, told)
