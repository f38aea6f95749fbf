"""This installation: counters, settings, who leads."""

from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, text


class Counter(SQLModel, table=True):
    """One row per series; events take their numbers here inside the writing transaction."""

    name: str = Field(primary_key=True)
    value: int = int64()


class Setting(SQLModel, table=True):
    """Facts of this installation: the name prefix, the key that signs links, the schema's origin."""

    name: str = Field(primary_key=True)
    value: str = text()


class Lease(SQLModel, table=True):
    """Who leads.  `epoch` grows with every hand-over and fences every write of a leader (law 1)."""

    name: str = Field(primary_key=True)
    holder: str = ""
    epoch: int = int64()
    expires_ms: int = int64()
