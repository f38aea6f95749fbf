"""New jobs: those that are asked for at the same time are one unit of work.

What belongs here: reading what creates are judged by, once for all; what they may collide with, judged one
after another; and the rows of what is taken, each kind written by one statement.  What does not: whether a
request can be taken (api/admission.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, insert, select
from sqlmodel import Session

from broker.core.model import JobId, JobRequest, JobState, PublicStatus
from broker.store import centers, datasets, runs
from broker.store.accounts import Caller
from broker.store.centers import CenterView
from broker.store.codec import request_to_json
from broker.store.datasets import NoSuchDataset
from broker.store.jobs import JobSummary, summary
from broker.store.writer import Rejected, Tx
from broker.tables import Idempotency, Job, JobDataset, JobLabel
from broker.tables.columns import plain, table


class NameTaken(Rejected):
    """The account has a job of that name that is not deleted."""


class KeyReused(Rejected):
    """The idempotency key came with another body before."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated create request.  `id` is chosen outside: the write may run twice."""

    id: JobId
    name: str
    desc: str
    account: str
    tenant: str
    request: JobRequest
    class_key: str
    processor: str
    idempotency_key: str = ""
    body_hash: str = ""
    actor: str = ""
    estimated_micro: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for a job, and what of the request the store knows."""

    caller: Caller
    image: str
    datasets: Collection[str]
    key: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a create is judged by.  Runs of `centers` are not counted.  `earlier` is the job of a repeated
    key, with its body's hash."""

    centers: Sequence[CenterView]
    image_centers: Collection[str]
    unusable_datasets: Sequence[str]
    earlier: tuple[str, JobSummary] | None


Keyed = dict[tuple[str, str], tuple[str, JobSummary]]
"""By account and idempotency key: the hash of the body that it came with, and the job as it is now."""

_JOB, _IDEMPOTENCY = table(Job), table(Idempotency)
# By two lists, not one of pairs, for which SQLite would walk through the whole index; what is found beside
# the pairs that are asked for is no harm.
_NAMED = (
    select(_JOB.c.account_id, _JOB.c.name, _JOB.c.id)
    .where(_JOB.c.account_id.in_(bindparam("accounts", expanding=True)))
    .where(_JOB.c.name.in_(bindparam("names", expanding=True)))
    .where(_JOB.c.deleted_ms.is_(None))
)
_KEYED = (
    select(_IDEMPOTENCY.c.account_id, _IDEMPOTENCY.c.key, _IDEMPOTENCY.c.body_hash, *_JOB.c)
    .join_from(_IDEMPOTENCY, _JOB, _JOB.c.id == _IDEMPOTENCY.c.job_id)
    .where(_IDEMPOTENCY.c.account_id.in_(bindparam("accounts", expanding=True)))
    .where(_IDEMPOTENCY.c.key.in_(bindparam("names", expanding=True)))
)


def admissions(session: Session, asked: Sequence[Asked]) -> list[Admission]:
    """Everything that creates are judged by."""
    known = centers.list_centers(session, counts=False)
    images = centers.places_of(session, {each.image for each in asked if each.image})
    earlier = _keyed(session, [(each.caller.id, each.key) for each in asked if each.key])
    return [
        Admission(
            centers=known,
            image_centers=images.get(each.image, ()),
            unusable_datasets=datasets.unusable(session, each.caller, each.datasets) if each.datasets else (),
            earlier=earlier.get((each.caller.id, each.key)),
        )
        for each in asked
    ]


def _keyed(session: Session, keys: Sequence[tuple[str, str]]) -> Keyed:
    found = session.execute(_KEYED, _lists(keys)) if keys else ()
    return {(row.account_id, row.key): (row.body_hash, summary(row)) for row in found}


def _lists(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    return {"accounts": list({account for account, _ in pairs}), "names": [name for _, name in pairs]}


def create_jobs(tx: Tx, news: Sequence[NewJob]) -> list[JobSummary | Rejected]:
    """Write jobs, each with its first run, its event and its idempotency key, judged one after another.

    A repeated key with the same body gives the earlier job with its present status.  What is refused is
    answered with NameTaken, KeyReused or NoSuchDataset, and nothing of it is written.
    """
    tx.session.flush()  # what is read and written below knows nothing of changes that wait in the session
    known = _known(tx.session, news)
    rows: list[dict[str, Any]] = []
    answers: list[JobSummary | Rejected] = []
    taken: list[NewJob] = []
    for new in news:
        found = known.judge(new)
        if found is None:
            rows.append(row := _row(new, tx.now_ms))
            taken.append(new)
            found = summary(SimpleNamespace(**row))
            known.add(new, found)
        answers.append(found)
    if taken:
        tx.session.execute(insert(_JOB), rows)
        runs.insert_first(tx, [new.id for new in taken])
        _insert_more(tx, taken)
        for new in taken:
            tx.event("job.created", job=new.id, actor=new.actor or new.account)
        tx.wake("cycle")
    return answers


@dataclass(frozen=True, slots=True)
class _Known:
    """What creates may collide with: ids of live jobs by account and name, earlier creates by their keys, and
    the data sets that went since they were looked at."""

    names: dict[tuple[str, str], str]
    keys: Keyed
    gone: Collection[str]

    def judge(self, new: NewJob) -> JobSummary | Rejected | None:
        """The earlier job of a repeated key, or a refusal; None for a job to be made."""
        if new.idempotency_key and (before := self.keys.get((new.account, new.idempotency_key))):
            body_hash, job = before
            if body_hash == new.body_hash:
                return job
            return KeyReused(
                f"Idempotency-Key {new.idempotency_key!r} was used with another body (job {job.id})"
            )
        if (other := self.names.get((new.account, new.name))) is not None:
            return NameTaken(f"you have a job named {new.name!r} already ({other})")
        if missing := [dataset for dataset in new.request.datasets if dataset in self.gone]:
            return NoSuchDataset(f"there is no data set {missing[0]!r} any more")
        return None

    def add(self, new: NewJob, made: JobSummary) -> None:
        self.names[new.account, new.name] = new.id
        if new.idempotency_key:
            self.keys[new.account, new.idempotency_key] = new.body_hash, made


def _known(session: Session, news: Sequence[NewJob]) -> _Known:
    names = session.execute(_NAMED, _lists([(new.account, new.name) for new in news]))
    read = {dataset for new in news for dataset in new.request.datasets}
    return _Known(
        names={(account, name): job for account, name, job in names},
        keys=_keyed(session, [(new.account, new.idempotency_key) for new in news if new.idempotency_key]),
        gone=datasets.gone(session, read) if read else (),
    )


def _row(new: NewJob, now_ms: int) -> dict[str, Any]:
    request = new.request
    return plain(
        Job,
        id=new.id,
        kind=request.kind.value,
        name=new.name,
        desc=new.desc,
        account_id=new.account,
        tenant_id=new.tenant,
        state=JobState.QUEUED.value,
        status=PublicStatus.PENDING.value,
        tier=int(request.tier),
        class_key=new.class_key,
        request=request_to_json(request),
        spec_id=request.spec.id if request.spec else "",
        processor=new.processor,
        created_ms=now_ms,
        queued_ms=now_ms,
        estimated_micro=new.estimated_micro,
    )


def _insert_more(tx: Tx, news: Sequence[NewJob]) -> None:
    """Labels, data sets and keys of new jobs, where they have some."""
    labels = [
        {"job_id": new.id, "key": key, "value": value} for new in news for key, value in new.request.labels
    ]
    read = [{"job_id": new.id, "dataset_id": each} for new in news for each in new.request.datasets]
    keys = [
        {
            "account_id": new.account,
            "key": new.idempotency_key,
            "body_hash": new.body_hash,
            "job_id": new.id,
            "created_ms": tx.now_ms,
        }
        for new in news
        if new.idempotency_key
    ]
    for kind, rows in ((JobLabel, labels), (JobDataset, read), (Idempotency, keys)):
        if rows:
            tx.session.execute(insert(table(kind)), rows)
