"""Centers, their pools and images, as last reported."""

from typing import Any

from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, json, ms, text


class Center(SQLModel, table=True):
    """A center of the configuration with what the last poll said.

    `file_state` is the file's word, `operator_state` a command's; the more restrictive wins.
    `archived_ms`: gone from the file and nothing lives or is owed there.
    """

    id: str = Field(primary_key=True)
    name: str = ""
    province: str = ""
    city: str = ""
    desc: str = text()
    adapter: str = ""
    file_state: str = "active"
    operator_state: str | None = None
    max_in_flight: int = 32
    health: str = "unknown"
    failures: int = 0
    error: str = text()
    ok_ms: int | None = ms()
    tried_ms: int | None = ms()
    queue_length: int | None = None
    quarantined: Any = json()
    traits: Any = json()
    prices: Any = json()
    created_ms: int = int64()
    archived_ms: int | None = ms()


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
    free: Any = json()
    specs: Any = json()
    prices: Any = json()
    as_of_ms: int = int64()
    accuracy: str = "unknown"
    wait_s: int = 0
    wait_at_ms: int = int64()


class Image(SQLModel, table=True):
    """An image as one center offers it; one logical id may stand at several centers."""

    center_id: str = Field(primary_key=True, foreign_key="center.id")
    id: str = Field(primary_key=True)
    native: str
    name: str = ""
    desc: str = text()
    arch: str = ""
    processor: str = ""
    os: str = ""
    framework: str = ""
    installed_lib: Any = json()
    created_ms: int = int64()
