"""Data sets and their copies at centers."""

from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, text


class Dataset(SQLModel, table=True):
    """Data that jobs read: uploaded here, below the data directory.  Private unless `public`."""

    id: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    title: str
    desc: str = text()
    labels: str = text()
    bytes: int = int64()
    md5: str = ""
    public: bool = False
    created_ms: int = int64()


class Copy(SQLModel, table=True):
    """A data set at a center, or on its way there."""

    dataset_id: str = Field(primary_key=True, foreign_key="dataset.id")
    center_id: str = Field(primary_key=True, foreign_key="center.id")
    state: str = "WANTED"
    remote: str = ""
    bytes: int = int64()
    bytes_done: int = int64()
    message: str = text()
    used_ms: int = int64()
