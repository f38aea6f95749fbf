"""Rows of the store and the indexes that keep its promises.

What belongs here: columns, keys, indexes.  What does not: any query (broker.store).  Rows never
leave the store.  Times are int64 milliseconds since the epoch UTC (`_ms`), money is int64
micro-CNY, states are the words of broker.core.model, documents are JSON.
"""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Column, Index, Text, text
from sqlmodel import Field, SQLModel

from broker.core.model import LIVE_RUN_STATES

_LIVE = "state IN (" + ", ".join(f"'{s.value}'" for s in sorted(LIVE_RUN_STATES)) + ")"


def _ms(*, index: bool = False) -> Any:
    return Field(default=None, sa_type=BigInteger, index=index)


def _int64(default: int = 0) -> Any:
    return Field(default=default, sa_type=BigInteger)


def _json() -> Any:
    return Field(default_factory=dict, sa_type=JSON)


def _text(default: str = "") -> Any:
    return Field(default=default, sa_type=Text)


class Counter(SQLModel, table=True):
    """One row per series; events take their numbers here inside the writing transaction."""

    name: str = Field(primary_key=True)
    value: int = _int64()


class Setting(SQLModel, table=True):
    """Facts of this installation: the name prefix, the key that signs links, the schema's origin."""

    name: str = Field(primary_key=True)
    value: str = _text()


class Lease(SQLModel, table=True):
    """Who leads.  `epoch` grows with every hand-over and fences every write of a leader (law 1)."""

    name: str = Field(primary_key=True)
    holder: str = ""
    epoch: int = _int64()
    expires_ms: int = _int64()


class Tenant(SQLModel, table=True):
    id: str = Field(primary_key=True)
    created_ms: int = _int64()


class Account(SQLModel, table=True):
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    tenant_id: str = Field(foreign_key="tenant.id", index=True)
    role: str
    vip: bool = False
    password_hash: str
    failed_logins: int = 0
    frozen_ms: int | None = _ms()
    created_ms: int = _int64()


class Token(SQLModel, table=True):
    """A login.  Only the SHA-256 of the token is kept; expired rows stay a while to answer 0102."""

    hash: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    expires_ms: int = _int64()
    created_ms: int = _int64()


class Center(SQLModel, table=True):
    """A center of the configuration with what the last poll said.

    `file_state` is the file's word, `operator_state` a command's; the more restrictive wins.
    `archived_ms`: gone from the file and nothing lives or is owed there.
    """

    id: str = Field(primary_key=True)
    name: str = ""
    province: str = ""
    city: str = ""
    desc: str = _text()
    adapter: str = ""
    file_state: str = "active"
    operator_state: str | None = None
    max_in_flight: int = 32
    health: str = "unknown"
    failures: int = 0
    error: str = _text()
    ok_ms: int | None = _ms()
    tried_ms: int | None = _ms()
    queue_length: int | None = None
    quarantined: Any = _json()
    traits: Any = _json()
    prices: Any = _json()
    created_ms: int = _int64()
    archived_ms: int | None = _ms()


class Pool(SQLModel, table=True):
    """core.model.Pool as last reported; `free`, `specs` and `prices` are lists."""

    id: str = Field(primary_key=True)
    center_id: str = Field(foreign_key="center.id", index=True)
    native: str
    arch: str
    cores: int
    memory_gib: int
    accelerator: str = ""
    accelerators: int = 0
    accelerator_memory_gib: int = 0
    card_permille: int = 1000
    split_permille: int = 0
    nodes: int
    free: Any = _json()
    specs: Any = _json()
    prices: Any = _json()
    as_of_ms: int = _int64()
    accuracy: str = "unknown"
    wait_s: int = 0
    wait_at_ms: int = _int64()


class Image(SQLModel, table=True):
    """An image as one center offers it; one logical id may stand at several centers."""

    center_id: str = Field(primary_key=True, foreign_key="center.id")
    id: str = Field(primary_key=True)
    native: str
    name: str = ""
    desc: str = _text()
    arch: str = ""
    processor: str = ""
    os: str = ""
    framework: str = ""
    installed_lib: Any = _json()
    created_ms: int = _int64()


class Job(SQLModel, table=True):
    """What somebody asked for.

    `request` is core.model.JobRequest; `status`, `center_id`, `processor` and `spec_id` repeat what
    lists filter and sort by.  `class_key` is core.problem.class_key.  `version` grows with every
    change and guards it.  `kill_sets`, `last_kill_ms` and `preempted` are core.model.Kills.
    """

    __table_args__: ClassVar[Any] = (
        # a name is free again once its job is deleted; both kinds share the names
        Index(
            "ix_job_live_name",
            "account_id",
            "name",
            unique=True,
            sqlite_where=text("deleted_ms IS NULL"),
            postgresql_where=text("deleted_ms IS NULL"),
        ),
        Index(
            "ix_job_queue",
            "tier",
            "queued_ms",
            "id",
            sqlite_where=text("state = 'QUEUED'"),
            postgresql_where=text("state = 'QUEUED'"),
        ),
        Index("ix_job_account", "account_id", "id"),
        Index("ix_job_tenant", "tenant_id", "id"),
        Index("ix_job_account_created", "account_id", "created_ms"),
        Index("ix_job_ended", "ended_ms"),
    )
    id: str = Field(primary_key=True)
    kind: str
    name: str
    desc: str = _text()
    account_id: str = Field(foreign_key="account.id")
    tenant_id: str = Field(foreign_key="tenant.id")
    state: str
    status: str
    version: int = 1
    tier: int
    class_key: str
    request: Any = _json()
    spec_id: str = ""
    processor: str = ""
    center_id: str = ""
    created_ms: int = _int64()
    queued_ms: int = _int64()
    ended_ms: int | None = _ms()
    stop_reason: str | None = None
    stop_since_ms: int | None = _ms()
    attempts: int = 1
    retries_used: int = 0
    avoid: Any = Field(default_factory=list, sa_type=JSON)
    kill_sets: int = 0
    last_kill_ms: int | None = _ms()
    preempted: int = 0
    message: str = _text()
    deleted_ms: int | None = _ms()


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
    asked to end once that one's submission was taken (store/preemptors.py).
    """

    __table_args__: ClassVar[Any] = (
        # law 4: a second live run of a job cannot be written
        Index(
            "ix_run_one_live",
            "job_id",
            unique=True,
            sqlite_where=text(_LIVE),
            postgresql_where=text(_LIVE),
        ),
        Index(
            "ix_run_live_center",
            "center_id",
            "state",
            sqlite_where=text(_LIVE),
            postgresql_where=text(_LIVE),
        ),
        Index("ix_run_job", "job_id", "attempt"),
        Index("ix_run_ended", "ended_ms"),
        Index(
            "ix_run_owed",
            "owed_next_ms",
            sqlite_where=text("owed_next_ms IS NOT NULL"),
            postgresql_where=text("owed_next_ms IS NOT NULL"),
        ),
        Index(
            "ix_run_watched",
            "watched_until_ms",
            sqlite_where=text("watched_until_ms IS NOT NULL"),
            postgresql_where=text("watched_until_ms IS NOT NULL"),
        ),
        Index(
            "ix_run_stop_for",
            "stop_for",
            sqlite_where=text("stop_for IS NOT NULL"),
            postgresql_where=text("stop_for IS NOT NULL"),
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
    spec: Any = _json()
    slot: int = 0
    nodes: int = 1
    rate_micro_per_hour: int = _int64()
    placement: Any = _json()
    stop_reason: str | None = None
    stop_since_ms: int | None = _ms()
    not_after_ms: int = _int64()
    lookup_lag_s: int = 0
    missing_ms: int | None = _ms()
    start_sent_ms: int | None = _ms()
    created_ms: int = _int64()
    submitted_ms: int | None = _ms()
    started_ms: int | None = _ms()
    ended_ms: int | None = _ms()
    lost_ms: int | None = _ms()
    exit_code: int | None = None
    failure: str | None = None
    message: str = _text()
    address: str = ""
    stop_owed_ms: int | None = _ms()
    collect_owed_ms: int | None = _ms()
    delete_owed_ms: int | None = _ms()
    owed_next_ms: int | None = _ms()
    owed_tries: int = 0
    logs_wanted_ms: int | None = _ms()
    logs_copied_ms: int | None = _ms()
    watched_until_ms: int | None = _ms()
    checkpoint_ms: int | None = _ms()
    stop_for: str | None = None


class Outbox(SQLModel, table=True):
    """A call with an effect that has not been made, or whose outcome is not recorded yet.

    The row is removed with its outcome.  `claimed_ms` is set, with the claimer's epoch, before the
    call; a claimed row is never sent again by anybody (law 1).
    """

    run_id: str = Field(primary_key=True, foreign_key="run.id")
    action: str  # submit | start
    center_id: str = Field(index=True)
    not_before_ms: int = _int64()
    not_after_ms: int = _int64()
    claimed_ms: int | None = _ms()
    epoch: int = _int64()


class Event(SQLModel, table=True):
    """What happened, numbered in commit order; also the audit log of changes by people."""

    __table_args__: ClassVar[Any] = (
        Index("ix_event_job", "job_id", "seq"),
        Index(
            "ix_event_preempted",
            "at_ms",
            sqlite_where=text("kind = 'run.preempted'"),
            postgresql_where=text("kind = 'run.preempted'"),
        ),
    )
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    at_ms: int = Field(default=0, sa_type=BigInteger, index=True)
    kind: str
    job_id: str | None = None
    run_id: str | None = None
    center_id: str | None = None
    actor: str = ""
    data: Any = _json()


class Idempotency(SQLModel, table=True):
    """A create's key: written in the job's own transaction."""

    account_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    body_hash: str
    job_id: str = Field(index=True)
    created_ms: int = Field(default=0, sa_type=BigInteger, index=True)


class Deferral(SQLModel, table=True):
    """Why the jobs of a class wait, as the last round that looked at it said."""

    class_key: str = Field(primary_key=True)
    reasons: Any = _json()
    at_ms: int = _int64()


class Round(SQLModel, table=True):
    """One placement round: what it decided, how far from optimal that is, and how long it took."""

    id: int | None = Field(default=None, primary_key=True)
    started_ms: int = Field(default=0, sa_type=BigInteger, index=True)
    queued: int
    placed: int
    preempted: int
    objective_micro: int = _int64()
    bound_micro: int = _int64()
    solve_ms: float
    total_ms: float


class RunHistory(SQLModel, table=True):
    """core.estimates.History under one key; `written_ms` is when the row changed last."""

    key: str = Field(primary_key=True, sa_type=Text)
    durations: Any = _json()
    ratios: Any = _json()
    written_ms: int = Field(default=0, sa_type=BigInteger, index=True)


class Forecast(SQLModel, table=True):
    """When the first round that left a job waiting expected it to start, and when it did.

    `p50_s` and `p90_s` are seconds from `at_ms`; `center_id` and `spec_id` are where it started.
    """

    __table_args__: ClassVar[Any] = (
        Index(
            "ix_forecast_started",
            "started_ms",
            sqlite_where=text("started_ms IS NOT NULL"),
            postgresql_where=text("started_ms IS NOT NULL"),
        ),
    )
    job_id: str = Field(primary_key=True, foreign_key="job.id")
    at_ms: int = Field(default=0, sa_type=BigInteger, index=True)
    p50_s: int = _int64()
    p90_s: int | None = Field(default=None, sa_type=BigInteger)
    started_ms: int | None = _ms()
    center_id: str = ""
    spec_id: str = ""


class Reservation(SQLModel, table=True):
    """core.model.Reservation: the only way to hold capacity."""

    id: int | None = Field(default=None, primary_key=True)
    pool_id: str = Field(index=True)
    slot: int
    nodes: int
    node_names: Any = Field(default_factory=list, sa_type=JSON)
    job_id: str = Field(foreign_key="job.id", unique=True)
    not_before_ms: int = _int64()
    expires_ms: int = _int64()
    why: str = ""


class Dataset(SQLModel, table=True):
    """Data that jobs read: uploaded here, below the data directory.  Private unless `public`."""

    id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    title: str
    desc: str = _text()
    labels: str = _text()
    bytes: int = _int64()
    md5: str = ""
    public: bool = False
    created_ms: int = _int64()


class Copy(SQLModel, table=True):
    """A data set at a center, or on its way there."""

    dataset_id: str = Field(primary_key=True, foreign_key="dataset.id")
    center_id: str = Field(primary_key=True, foreign_key="center.id")
    state: str = "WANTED"
    remote: str = ""
    bytes: int = _int64()
    bytes_done: int = _int64()
    message: str = _text()
    used_ms: int = _int64()
