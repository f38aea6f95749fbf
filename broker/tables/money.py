"""What runs have cost, what is billed for it, and what tenants may spend.

Bill lines and ledger entries are never changed: what turns out otherwise is a further row.
"""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Index
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, ms, text


class Meter(SQLModel, table=True):
    """What one ended run cost, written with its end.

    `started_ms` and `ended_ms` are core.charges.own_span, `rates` its segments.  `interrupted`: who
    ended it, "" where it ended by itself or by its owner's word.  `center_micro` is what the center's
    own record comes to and `center_spans` that record; `owed_next_ms` is when the center is asked next.
    """

    __table_args__: ClassVar[Any] = (
        Index("ix_meter_job", "job_id"),
        Index(
            "ix_meter_owed",
            "owed_next_ms",
            sqlite_where=sql("owed_next_ms IS NOT NULL"),
            postgresql_where=sql("owed_next_ms IS NOT NULL"),
        ),
    )
    run_id: str = Field(primary_key=True, foreign_key="run.id")
    job_id: str = Field(foreign_key="job.id")
    account_id: str
    tenant_id: str
    center_id: str
    spec_id: str = ""
    nodes: int = 1
    started_ms: int | None = ms()
    ended_ms: int | None = ms()
    rates: Any = Field(default_factory=list, sa_type=JSON)
    estimated_micro: int = int64()
    measured_micro: int = int64()
    interrupted: str = ""
    billed: bool = False
    center_spans: Any = Field(default=None, sa_type=JSON, nullable=True)
    center_micro: int | None = ms()
    center_at_ms: int | None = ms()
    owed_next_ms: int | None = ms()
    owed_tries: int = 0


class Bill(SQLModel, table=True):
    """A bill line: whole fen in micro-CNY, rounded once.

    `id` is the run's for its one line, and the run's with "-c" for the one correction after the
    center's record.  `day` is the local day of `created_ms`; `seconds` are of the run, 0 in a correction.
    """

    __table_args__: ClassVar[Any] = (
        Index("ix_bill_account", "account_id", "created_ms"),
        Index("ix_bill_tenant", "tenant_id", "created_ms"),
        Index("ix_bill_job", "job_id"),
    )
    id: str = Field(primary_key=True)
    kind: str  # run | correction
    run_id: str = Field(foreign_key="run.id")
    job_id: str = Field(foreign_key="job.id")
    account_id: str = Field(foreign_key="account.id")
    tenant_id: str = Field(foreign_key="tenant.id")
    center_id: str
    spec_id: str = ""
    nodes: int = 1
    started_ms: int | None = ms()
    ended_ms: int | None = ms()
    seconds: int = int64()
    amount_micro: int = int64()
    day: str = Field(default="", index=True)
    created_ms: int = Field(default=0, sa_type=BigInteger, index=True)


class Purse(SQLModel, table=True):
    """core.charges.Purse of a tenant; it moves in the transaction of every bill line and entry."""

    tenant_id: str = Field(primary_key=True, foreign_key="tenant.id")
    spent_micro: int = int64()
    month: str = ""
    month_micro: int = int64()
    budget_micro: int | None = ms()
    per_month: bool = False
    base_micro: int = int64()
    balance_micro: int | None = ms()


class LedgerEntry(SQLModel, table=True):
    """What somebody added to a tenant's balance, or took from it; `balance_micro` is after it."""

    __table_args__: ClassVar[Any] = (Index("ix_ledgerentry_tenant", "tenant_id", "id"),)
    id: int | None = Field(default=None, primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    amount_micro: int = int64()
    balance_micro: int = int64()
    note: str = text()
    actor: str = ""
    at_ms: int = int64()


class UserLink(SQLModel, table=True):
    """A user of a center's platform who is an account here; `native` is the platform's id."""

    center_id: str = Field(primary_key=True, foreign_key="center.id")
    native: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    created_ms: int = int64()
