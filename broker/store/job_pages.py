"""Pages of jobs: what a listing asks the database, built once for each kind of question.

What belongs here: the statements of a page and its total, and totals that are still true.  What does
not: single jobs (jobs.py).  A listing is asked again and again, so nothing is built or counted twice:
a statement is kept by the fields that are given, and a total by its question until the next event.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, bindparam, func, or_, select
from sqlmodel import Session

from broker.core.model import Role
from broker.store.accounts import Caller
from broker.store.jobs import SORTS, JobFilter, JobSummary, summary
from broker.store.journal import EVENTS
from broker.store.paging import Paging
from broker.tables import Counter, Job, JobLabel
from broker.tables.columns import table

MOST_TOTALS = 1000
TOTALS = "totals"
"""Where a session of the store's readers has its Totals."""

Question = tuple[Any, ...]
"""All that a total depends on: which fields are asked for, and how."""


JOB, LABEL = table(Job).c, table(JobLabel).c
SHOWN = tuple(
    JOB[name]
    for name in (
        *("id", "kind", "name", "desc", "account_id", "status"),
        *("created_ms", "ended_ms", "center_id", "tier"),
    )
)
"""The columns that `jobs.summary` reads."""


class Statements(NamedTuple):
    page: Select[Any]
    total: Select[Any]


def list_jobs(
    session: Session, caller: Caller, wanted: JobFilter, paging: Paging
) -> tuple[list[JobSummary], int]:
    """One page of the jobs a caller may see, and how many match in all."""
    given = _given(caller, wanted)
    statements = _statements(
        caller.role, frozenset(given), len(wanted.labels), paging.sort, paging.descending
    )
    connection = session.connection()
    where = {"size": paging.size, "start": (paging.page - 1) * paging.size}
    rows = connection.execute(statements.page, {**given, **where}).all()
    return [summary(row) for row in rows], _total(session, statements.total, given)


def _given(caller: Caller, wanted: JobFilter) -> dict[str, Any]:
    """What the statements are asked with; a field that is not given is not in them."""
    values: dict[str, Any] = {
        "account": caller.id if wanted.mine or caller.role is Role.USER else None,
        "tenant": caller.tenant if caller.role is Role.TENANT_ADMIN else None,
        "kind": wanted.kind.value if wanted.kind is not None else None,
        "status": wanted.status.value if wanted.status is not None else None,
        "center": wanted.center or None,
        "processor": wanted.processor.lower() or None,
        "after": wanted.created_after_ms,
        "before": wanted.created_before_ms,
        "query": _pattern(wanted.query) if wanted.query else None,
    }
    for at, (key, value) in enumerate(wanted.labels):
        values |= {f"label{at}": key, f"value{at}": value}
    return {name: value for name, value in values.items() if value is not None}


def _pattern(words: str) -> str:
    """A LIKE pattern of a text that may stand anywhere, with / before what LIKE would understand."""
    for special in "/%_":
        words = words.replace(special, f"/{special}")
    return f"%{words}%"


@lru_cache(maxsize=512)
def _statements(role: Role, given: frozenset[str], labels: int, sort: str, descending: bool) -> Statements:
    where = [JOB.deleted_ms.is_(None), *(each for name, each in _conditions().items() if name in given)]
    assert role is Role.OPERATOR or given & {"account", "tenant"}, "nobody else sees all jobs"
    for at in range(labels):
        labelled = select(LABEL.job_id).where(
            LABEL.key == bindparam(f"label{at}"), LABEL.value == bindparam(f"value{at}")
        )
        where.append(JOB.id.in_(labelled))
    key = JOB[SORTS[sort].key]
    keys = [key] if key is JOB.id else [key, JOB.id]
    page = select(*SHOWN).where(*where).order_by(*(each.desc() if descending else each for each in keys))
    return Statements(
        page.limit(bindparam("size")).offset(bindparam("start")),
        select(func.count()).select_from(table(Job)).where(*where),
    )


def _conditions() -> dict[str, ColumnElement[bool]]:
    words = func.lower(bindparam("query"))
    found = (func.lower(column).like(words, escape="/") for column in (JOB.name, JOB.desc))
    return {
        "account": JOB.account_id == bindparam("account"),
        "tenant": JOB.tenant_id == bindparam("tenant"),
        "kind": JOB.kind == bindparam("kind"),
        "status": JOB.status == bindparam("status"),
        "center": JOB.center_id == bindparam("center"),
        "processor": func.lower(JOB.processor) == bindparam("processor"),
        "after": JOB.created_ms >= bindparam("after"),
        "before": JOB.created_ms <= bindparam("before"),
        "query": or_(*found),
    }


# ---------------------------------------------------------------- totals

_LAST_EVENT = select(table(Counter).c.value).where(table(Counter).c.name == EVENTS)


class Totals:
    """How many jobs answered each question after a certain event.

    No job changes without an event (the leader's mirror lives on that), so what was counted after the
    last one is true until the next.
    """

    def __init__(self) -> None:
        self._kept: tuple[int, dict[Question, int]] = (-1, {})

    def get(self, after: int, question: Question) -> int | None:
        event, counted = self._kept
        return counted.get(question) if event == after else None

    def keep(self, after: int, question: Question, total: int) -> None:
        """Readers are threads: each event has a dictionary of its own, so none gets another's total."""
        event, counted = self._kept
        if event != after or len(counted) >= MOST_TOTALS:
            counted = {}
            self._kept = after, counted
        counted[question] = total


def _total(session: Session, counting: Select[Any], given: dict[str, Any]) -> int:
    connection = session.connection()
    after = connection.execute(_LAST_EVENT).scalar_one_or_none() or 0
    totals: Totals | None = session.info.get(TOTALS)
    question: Question = tuple(sorted(given.items()))
    kept = totals.get(after, question) if totals is not None else None
    if kept is not None:
        return kept
    total = int(connection.execute(counting, given).scalar_one())
    if totals is not None:
        totals.keep(after, question, total)
    return total
