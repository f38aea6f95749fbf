"""Tenants, accounts, logins and API keys."""

from typing import Any, ClassVar

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from broker.tables.columns import int64, ms


class Tenant(SQLModel, table=True):
    id: str = Field(primary_key=True)
    created_ms: int = int64()


class Account(SQLModel, table=True):
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    tenant_id: str = Field(foreign_key="tenant.id", index=True)
    role: str
    vip: bool = False
    password_hash: str
    failed_logins: int = 0
    frozen_ms: int | None = ms()
    created_ms: int = int64()


class Token(SQLModel, table=True):
    """A login.  Only the SHA-256 of the token is kept; expired rows stay a while to answer 0102."""

    hash: str = Field(primary_key=True)
    account_id: str = Field(foreign_key="account.id", index=True)
    expires_ms: int = int64()
    created_ms: int = int64()


class ApiKey(SQLModel, table=True):
    """A key that acts for an account within its scopes, for an application or for a script.

    Only the SHA-256 of the secret is kept.  `expires_ms` is None for one without an end, `used_ms` is
    noted at most once an hour.  A revoked key is removed; the event log keeps that it was.
    """

    __table_args__: ClassVar[Any] = (UniqueConstraint("account_id", "name"),)
    id: str = Field(primary_key=True)
    hash: str = Field(unique=True)
    account_id: str = Field(foreign_key="account.id")
    name: str
    application: str = ""
    scopes: Any = Field(default_factory=list, sa_type=JSON)
    created_ms: int = int64()
    expires_ms: int | None = ms()
    used_ms: int | None = ms()
