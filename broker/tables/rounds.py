"""What rounds decide, and what is learned for them."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Index, Text
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, json, ms


class Deferral(SQLModel, table=True):
    """Why the jobs of a class wait, as the last round that looked at it said."""

    class_key: str = Field(primary_key=True)
    reasons: Any = json()
    at_ms: int = int64()


class Round(SQLModel, table=True):
    """One placement round: what it decided, how far from optimal that is, and how long it took."""

    id: int | None = Field(default=None, primary_key=True)
    started_ms: int = Field(default=0, sa_type=BigInteger, index=True)
    queued: int
    placed: int
    preempted: int
    objective_micro: int = int64()
    bound_micro: int = int64()
    solve_ms: float
    total_ms: float


class RunHistory(SQLModel, table=True):
    """core.estimates.History under one key; `written_ms` is when the row changed last."""

    key: str = Field(primary_key=True, sa_type=Text)
    durations: Any = json()
    ratios: Any = json()
    written_ms: int = Field(default=0, sa_type=BigInteger, index=True)


class Forecast(SQLModel, table=True):
    """When the first round that left a job waiting expected it to start, and when it did.

    `p50_s` and `p90_s` are seconds from `at_ms`; `center_id` and `spec_id` are where it started.
    """

    __table_args__: ClassVar[Any] = (
        Index(
            "ix_forecast_started",
            "started_ms",
            sqlite_where=sql("started_ms IS NOT NULL"),
            postgresql_where=sql("started_ms IS NOT NULL"),
        ),
    )
    job_id: str = Field(primary_key=True, foreign_key="job.id")
    at_ms: int = Field(default=0, sa_type=BigInteger, index=True)
    p50_s: int = int64()
    p90_s: int | None = Field(default=None, sa_type=BigInteger)
    started_ms: int | None = ms()
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
    not_before_ms: int = int64()
    expires_ms: int = int64()
    why: str = ""
