"""New jobs: those that are asked for at the same time are one unit of work.

What belongs here: reading what creates are judged by, once for all; what they may collide with, judged one
after another; and the rows of what is taken, each kind written by one statement.  What does not: the rules
of what can be taken (api/admission.py), which are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlmodel import Session

from broker.core.model import JobId, JobRequest, JobState, PublicStatus
from broker.store import datasets, runs
from broker.store.accounts import Caller
from broker.store.centers import CenterView
from broker.store.codec import request_to_json
from broker.store.grounds import Grounds, Owned, grounds
from broker.store.jobs import JobSummary, summary
from broker.store.rows import New
from broker.store.writer import Rejected, Tx
from broker.tables import Idempotency, Job, JobDataset, JobLabel, Run
from broker.tables.columns import table


class NameTaken(Rejected):
    """The account has a job of that name that is not deleted."""


class KeyReused(Rejected):
    """The idempotency key came with another body before."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is taken."""

    id: JobId
    name: str
    desc: str
    account: str
    tenant: str
    request: JobRequest
    class_key: str
    processor: str
    actor: str = ""
    estimated_micro: int | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """What a create is judged by.  Runs of `centers` are not counted.

    `expected_micro` is kept for all creates of the transaction: what those before were found to cost.
    """

    centers: Sequence[CenterView]
    image_centers: Collection[str]
    unusable_datasets: Sequence[str]
    expected_micro: dict[Hashable, int | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A create request: who asks, and what of it the store knows.

    `judge` makes the job of it, or raises a Rejected; it is called in the writer's thread, within the
    transaction, maybe twice.
    """

    caller: Caller
    name: str
    judge: Callable[[Admission], NewJob]
    image: str = ""
    datasets: Collection[str] = ()
    key: str = ""
    body_hash: str = ""


Keyed = dict[Owned, tuple[str, JobSummary]]
"""By account and idempotency key: the hash of the body that it came with, and the job as it is now."""

_JOB, _IDEMPOTENCY = table(Job), table(Idempotency)
_CREATED = (
    select(_IDEMPOTENCY.c.account_id, _IDEMPOTENCY.c.key, _IDEMPOTENCY.c.body_hash, *_JOB.c)
    .join_from(_IDEMPOTENCY, _JOB, _JOB.c.id == _IDEMPOTENCY.c.job_id)
    .where(_IDEMPOTENCY.c.job_id.in_(bindparam("jobs", expanding=True)))
)


def create_jobs(tx: Tx, asked: Sequence[Asked]) -> list[JobSummary | Rejected]:
    """Write jobs, each with its first run, its event and its idempotency key, judged one after another.

    A repeated key with the same body gives the earlier job with its present status.  What is refused is
    answered with NameTaken, KeyReused or what `judge` raises, and nothing of it is written.
    """
    tx.session.flush()  # what is read and written below knows nothing of changes that wait in the session
    facts = _facts(tx.session, asked)
    taken: list[tuple[Asked, NewJob]] = []
    rows: list[dict[str, Any]] = []
    answers: list[JobSummary | Rejected] = []
    for each in asked:
        try:
            made = facts.judged(each)
        except Rejected as refusal:
            answers.append(refusal)
            continue
        if isinstance(made, NewJob):
            taken.append((each, made))
            rows.append(_row(made, tx.now_ms))
            made = facts.add(each, _summary(made, tx.now_ms))
        answers.append(made)
    if taken:
        first_runs = runs.first_of((new.id for _, new in taken), facts.grounds.prefix, tx.now_ms)
        for _, new in taken:
            tx.event("job.created", job=new.id, actor=new.actor or new.account)
        tx.wake("cycle")
        tx.flush((Job, rows), (Run, first_runs), *_more(taken, tx.now_ms))
    return answers


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the creates of one transaction are judged by: what centers offer, and what they may collide with,
    which is ids of live jobs by account and name and earlier creates by their keys."""

    session: Session
    grounds: Grounds
    names: dict[Owned, str]
    keys: Keyed
    expected_micro: dict[Hashable, int | None] = field(default_factory=dict)

    def judged(self, asked: Asked) -> JobSummary | NewJob:
        """The earlier job of a repeated key, or a job to be made.  Raises Rejected."""
        account = asked.caller.id
        if asked.key and (before := self.keys.get((account, asked.key))) is not None:
            body_hash, job = before
            if body_hash == asked.body_hash:
                return job
            raise KeyReused(f'Idempotency-Key: "{asked.key}" came with another body (job {job.id})')
        new = asked.judge(self._admission(asked))
        if (other := self.names.get((account, asked.name))) is not None:
            raise NameTaken(f"you have a job named {asked.name!r} already ({other})")
        return new

    def _admission(self, asked: Asked) -> Admission:
        read = asked.datasets
        return Admission(
            centers=self.grounds.centers,
            image_centers=self.grounds.places.get(asked.image, ()),
            unusable_datasets=datasets.unusable(self.session, asked.caller, read) if read else (),
            expected_micro=self.expected_micro,
        )

    def add(self, asked: Asked, made: JobSummary) -> JobSummary:
        self.names[made.account, made.name] = made.id
        if asked.key:
            self.keys[made.account, asked.key] = asked.body_hash, made
        return made


def _facts(session: Session, asked: Sequence[Asked]) -> _Facts:
    connection = session.connection()
    images = {each.image for each in asked if each.image}
    names = [(each.caller.id, each.name) for each in asked]
    keys = [(each.caller.id, each.key) for each in asked if each.key]
    found = grounds(connection, images=images, names=names, keys=keys)
    return _Facts(
        session=session,
        grounds=found,
        names={name: job for name, job in zip(names, found.named, strict=True) if job is not None},
        keys=_keyed(connection, [job for job in found.keyed if job is not None]),
    )


def _keyed(connection: Connection, jobs: Sequence[str]) -> Keyed:
    rows = connection.execute(_CREATED, {"jobs": jobs}) if jobs else ()
    return {(row.account_id, row.key): (row.body_hash, summary(row)) for row in rows}


def _row(new: NewJob, now_ms: int) -> dict[str, Any]:
    request = new.request
    return {
        "id": new.id,
        "kind": request.kind.value,
        "name": new.name,
        "desc": new.desc,
        "account_id": new.account,
        "tenant_id": new.tenant,
        "state": JobState.QUEUED.value,
        "status": PublicStatus.PENDING.value,
        "tier": int(request.tier),
        "class_key": new.class_key,
        "request": request_to_json(request),
        "spec_id": request.spec.id if request.spec else "",
        "processor": new.processor,
        "created_ms": now_ms,
        "queued_ms": now_ms,
        "estimated_micro": new.estimated_micro,
    }


def _summary(new: NewJob, now_ms: int) -> JobSummary:
    return JobSummary(
        id=new.id,
        kind=new.request.kind,
        name=new.name,
        desc=new.desc,
        account=new.account,
        status=PublicStatus.PENDING,
        created_ms=now_ms,
        tier=int(new.request.tier),
    )


def _more(taken: Sequence[tuple[Asked, NewJob]], now_ms: int) -> tuple[New, ...]:
    """Labels, data sets and keys of new jobs, where they have some."""
    labels = [
        {"job_id": new.id, "key": key, "value": value}
        for _, new in taken
        for key, value in new.request.labels
    ]
    read = [{"job_id": new.id, "dataset_id": each} for _, new in taken for each in new.request.datasets]
    keys = [
        {
            "account_id": new.account,
            "key": asked.key,
            "body_hash": asked.body_hash,
            "job_id": new.id,
            "created_ms": now_ms,
        }
        for asked, new in taken
        if asked.key
    ]
    return (JobLabel, labels), (JobDataset, read), (Idempotency, keys)
