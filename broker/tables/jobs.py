"""Jobs, their runs, calls on their way, and what happened."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Column, ColumnElement, Index, bindparam
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel, col

from broker.core.model import LIVE_RUN_STATES
from broker.tables.columns import int64, json, ms, text

_LIVE = "state IN (" + ", ".join(f"'{s.value}'" for s in sorted(LIVE_RUN_STATES)) + ")"

_ENDED = "ended_ms IS NOT NULL"


class Job(SQLModel, table=True):
    """What somebody asked for.

    `request` is core.model.JobRequest; `status`, `center_id`, `processor` and `spec_id` repeat what
    lists filter and sort by.  `class_key` is core.problem.class_key.  `version` grows with every
    change and guards it.  `kill_sets`, `last_kill_ms` and `preempted` are core.model.Kills.
    `estimated_micro`: what it was expected to cost where it was cheapest when it was submitted.
    """

    __table_args__: ClassVar[Any] = (
        # a name is free again once its job is deleted; both kinds share the names
        Index(
            "ix_job_live_name",
            "account_id",
            "name",
            unique=True,
            sqlite_where=sql("deleted_ms IS NULL"),
            postgresql_where=sql("deleted_ms IS NULL"),
        ),
        Index(
            "ix_job_queue",
            "tier",
            "queued_ms",
            "id",
            sqlite_where=sql("state = 'QUEUED'"),
            postgresql_where=sql("state = 'QUEUED'"),
        ),
        # lists are read and counted from these alone
        Index("ix_job_account", "account_id", "kind", "deleted_ms", "id"),
        Index("ix_job_tenant", "tenant_id", "kind", "deleted_ms", "id"),
        Index("ix_job_account_created", "account_id", "created_ms"),
    )
    id: str = Field(primary_key=True)
    kind: str
    name: str
    desc: str = text()
    account_id: str = Field(foreign_key="account.id")
    tenant_id: str = Field(foreign_key="tenant.id")
    state: str
    status: str
    version: int = 1
    tier: int
    class_key: str
    request: Any = json()
    spec_id: str = ""
    processor: str = ""
    center_id: str = ""
    created_ms: int = int64()
    queued_ms: int = int64()
    ended_ms: int | None = ms()
    stop_reason: str | None = None
    stop_since_ms: int | None = ms()
    attempts: int = 1
    retries_used: int = 0
    avoid: Any = Field(default_factory=list, sa_type=JSON)
    kill_sets: int = 0
    last_kill_ms: int | None = ms()
    preempted: int = 0
    message: str = text()
    deleted_ms: int | None = ms()
    estimated_micro: int | None = ms()


class JobLabel(SQLModel, table=True):
    """A label of a job, for searching; the request holds them too."""

    __table_args__: ClassVar[Any] = (Index("ix_joblabel_value", "key", "value"),)
    job_id: str = Field(primary_key=True, foreign_key="job.id")
    key: str = Field(primary_key=True)
    value: str


class Run(SQLModel, table=True):
    """One attempt at one center; northbound a task.

    Obligations outlive the run: `stop_owed_ms`, `collect_owed_ms` and `delete_owed_ms` are set when
    the debt arises and cleared when the center confirms; `owed_next_ms` is the next try.
    `logs_wanted_ms`: somebody reads the log until then, so it is copied as it grows.
    `watched_until_ms`: a run proven not to have arrived is looked for until then.
    `checkpoint_ms`: the newest checkpoint that was seen.  `stop_for`: the run for which this one is
    asked to end once that one's submission was taken (store/preemptors.py).  `tariff`: the prices of the
    whole run with their windows, as they were when it was placed; empty: `rate_micro_per_hour` always.
    """

    __table_args__: ClassVar[Any] = (
        # law 4: a second live run of a job cannot be written
        Index(
            "ix_run_one_live",
            "job_id",
            unique=True,
            sqlite_where=sql(_LIVE),
            postgresql_where=sql(_LIVE),
        ),
        Index(
            "ix_run_live_center",
            "center_id",
            "state",
            sqlite_where=sql(_LIVE),
            postgresql_where=sql(_LIVE),
        ),
        Index("ix_run_job", "job_id", "attempt"),
        # most of what is written has just begun, and is in no index of ends
        Index("ix_run_ended", "ended_ms", sqlite_where=sql(_ENDED), postgresql_where=sql(_ENDED)),
        Index(
            "ix_run_stop_owed",
            "center_id",
            sqlite_where=sql("stop_owed_ms IS NOT NULL"),
            postgresql_where=sql("stop_owed_ms IS NOT NULL"),
        ),
        Index(
            "ix_run_owed",
            "owed_next_ms",
            sqlite_where=sql("owed_next_ms IS NOT NULL"),
            postgresql_where=sql("owed_next_ms IS NOT NULL"),
        ),
        Index(
            "ix_run_watched",
            "watched_until_ms",
            sqlite_where=sql("watched_until_ms IS NOT NULL"),
            postgresql_where=sql("watched_until_ms IS NOT NULL"),
        ),
        Index(
            "ix_run_stop_for",
            "stop_for",
            sqlite_where=sql("stop_for IS NOT NULL"),
            postgresql_where=sql("stop_for IS NOT NULL"),
        ),
    )
    id: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="job.id")
    attempt: int
    state: str
    center_id: str | None = None
    pool_id: str | None = None
    native_pool: str = ""
    remote_id: str | None = None
    spec: Any = json()
    slot: int = 0
    nodes: int = 1
    rate_micro_per_hour: int = int64()
    tariff: Any = Field(default_factory=list, sa_type=JSON)
    placement: Any = json()
    stop_reason: str | None = None
    stop_since_ms: int | None = ms()
    not_after_ms: int = int64()
    lookup_lag_s: int = 0
    missing_ms: int | None = ms()
    start_sent_ms: int | None = ms()
    created_ms: int = int64()
    submitted_ms: int | None = ms()
    started_ms: int | None = ms()
    ended_ms: int | None = ms()
    lost_ms: int | None = ms()
    exit_code: int | None = None
    failure: str | None = None
    message: str = text()
    address: str = ""
    stop_owed_ms: int | None = ms()
    collect_owed_ms: int | None = ms()
    delete_owed_ms: int | None = ms()
    owed_next_ms: int | None = ms()
    owed_tries: int = 0
    logs_wanted_ms: int | None = ms()
    logs_copied_ms: int | None = ms()
    watched_until_ms: int | None = ms()
    checkpoint_ms: int | None = ms()
    stop_for: str | None = None


def run_lives() -> ColumnElement[bool]:
    """That a run is live, said word for word as the indexes of live runs say it.

    Where the states are parameters, SQLite does not know that such an index has all that is asked for,
    and looks through every run there ever was.
    """
    states = sorted(state.value for state in LIVE_RUN_STATES)
    return col(Run.state).in_(bindparam("live", states, expanding=True, literal_execute=True))


class Outbox(SQLModel, table=True):
    """A call with an effect that has not been made, or whose outcome is not recorded yet.

    The row is removed with its outcome.  `claimed_ms` is set, with the claimer's epoch, before the
    call; a claimed row is never sent again by anybody (law 1).
    """

    run_id: str = Field(primary_key=True, foreign_key="run.id")
    action: str  # submit | start
    center_id: str = Field(index=True)
    not_before_ms: int = int64()
    not_after_ms: int = int64()
    claimed_ms: int | None = ms()
    epoch: int = int64()


class Event(SQLModel, table=True):
    """What happened, numbered in commit order; also the audit log of changes by people.

    `actor` is who did it, "" for what the broker noticed by itself.  `tenant_id` is the tenant that an
    event without a job concerns; that of a job is the job's.
    """

    __table_args__: ClassVar[Any] = (
        Index("ix_event_job", "job_id", "seq"),
        Index(
            "ix_event_audit",
            "seq",
            sqlite_where=sql("actor <> '' AND actor <> 'broker'"),
            postgresql_where=sql("actor <> '' AND actor <> 'broker'"),
        ),
        Index(
            "ix_event_preempted",
            "at_ms",
            sqlite_where=sql("kind = 'run.preempted'"),
            postgresql_where=sql("kind = 'run.preempted'"),
        ),
    )
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    at_ms: int = Field(default=0, sa_type=BigInteger, index=True)
    kind: str
    job_id: str | None = None
    run_id: str | None = None
    center_id: str | None = None
    tenant_id: str | None = None
    actor: str = ""
    data: Any = json()


class Idempotency(SQLModel, table=True):
    """A create's key: written in the job's own transaction."""

    account_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    body_hash: str
    job_id: str = Field(index=True)
    created_ms: int = Field(default=0, sa_type=BigInteger, index=True)
