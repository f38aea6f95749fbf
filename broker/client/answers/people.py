"""Accounts, logins, keys, tenants and what they did."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from broker.client.answers.money import Balance


class Token(TypedDict):
    token: str
    expiresAt: str


class Me(TypedDict):
    id: str
    name: str
    tenant: str
    role: str
    vip: bool
    balance: Balance


class Account(TypedDict):
    name: str
    tenant: str
    role: str
    vip: bool
    frozen: bool


class AccountPage(TypedDict):
    items: list[Account]
    totalSize: int


class Registered(TypedDict):
    userId: str
    name: str
    tenant: str
    role: str


class LoginItem(TypedDict):
    """`current`: the one that asks."""

    createTime: str
    expiresAt: str
    current: bool


class LoginPage(TypedDict):
    items: list[LoginItem]
    totalSize: int


class ApiKey(TypedDict):
    """`application` and the last two are "" where there is none.  The last use is noted once an hour."""

    id: str
    name: str
    application: str
    scopes: list[str]
    createTime: str
    expiresAt: str
    lastUsedTime: str


class NewApiKey(ApiKey):
    """`key` is the secret, which is never shown again."""

    key: str


class ApiKeyPage(TypedDict):
    items: list[ApiKey]
    totalSize: int


class Application(TypedDict):
    """What `keys` keys of an application may, together."""

    application: str
    scopes: list[str]
    keys: int
    createTime: str
    lastUsedTime: str


class ApplicationPage(TypedDict):
    items: list[Application]
    totalSize: int


class Tenant(TypedDict):
    id: str
    createTime: str
    accounts: int


class TenantPage(TypedDict):
    items: list[Tenant]
    totalSize: int


class HappenedEvent(TypedDict):
    """`actor` is the account that did it, with `apiKey` where a key was used; "" where nobody did."""

    id: int
    time: str
    timeMs: int
    kind: str
    actor: str
    apiKey: str
    jobId: str
    taskId: str
    centerId: str
    data: dict[str, Any]


class AuditEntry(HappenedEvent):
    tenant: str


class AuditPage(TypedDict):
    items: list[AuditEntry]
    totalSize: int
