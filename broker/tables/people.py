"""Tenants, accounts and logins."""

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
