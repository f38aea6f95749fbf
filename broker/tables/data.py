"""Data sets and their copies at centers, and what centers list of their own."""

from typing import Any, ClassVar

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, ms, text


class Dataset(SQLModel, table=True):
    """Data that jobs read: uploaded here, below the data directory.  Private unless `public`.

    `tags` are the labels one by one, between commas and in lower case.  `deleted_ms`: hidden, and gone
    once no center owes the removal of its copy.
    """

    id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    title: str
    desc: str = text()
    labels: str = text()
    tags: str = text()
    bytes: int = int64()
    md5: str = ""
    public: bool = False
    created_ms: int = int64()
    deleted_ms: int | None = ms()


class Copy(SQLModel, table=True):
    """A data set at a center, or on its way there, or to be removed there (EVICTING).

    `tries` are steps in a row that failed; the next is made from `next_ms` on.
    """

    dataset_id: str = Field(primary_key=True, foreign_key="dataset.id")
    center_id: str = Field(primary_key=True, foreign_key="center.id")
    state: str = "WANTED"
    remote: str = ""
    bytes: int = int64()
    bytes_done: int = int64()
    message: str = text()
    used_ms: int = int64()
    tries: int = 0
    next_ms: int = int64()


class JobDataset(SQLModel, table=True):
    """A data set that a job reads; the request holds them too."""

    __table_args__: ClassVar[Any] = (Index("ix_jobdataset_dataset", "dataset_id"),)
    job_id: str = Field(primary_key=True, foreign_key="job.id")
    dataset_id: str = Field(primary_key=True)


class Asset(SQLModel, table=True):
    """A data set, model or application that a center has of its own; one logical id may stand at several
    centers.  `remote` is what a job there is told of it, `tags` as of a Dataset."""

    kind: str = Field(primary_key=True)
    center_id: str = Field(primary_key=True, foreign_key="center.id")
    id: str = Field(primary_key=True, index=True)
    native: str
    title: str
    desc: str = text()
    labels: str = text()
    tags: str = text()
    owner: str = ""
    bytes: int = int64()
    remote: str = text()
    created_ms: int = int64()
