"""Accounts, tenants, tokens and who may see what.  API keys are in keys.py."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, true
from sqlmodel import Session, col, select

from broker.core.model import Role
from broker.store.paging import Paging
from broker.store.writer import Rejected, Tx
from broker.tables import Account, Job, Setting, Tenant, Token


class NameInUse(Rejected):
    """An account of that name exists."""


class NoSuchAccount(Rejected):
    """No account of that name, or one of a tenant that the caller does not keep."""


class StrongerAccount(Rejected):
    """The account has more rights than those whom the caller keeps."""


class TenantInUse(Rejected):
    """A tenant of that name exists."""


SORTS: Mapping[str, Any] = {"name": Account.name, "tenant": Account.tenant_id, "role": Account.role}
"""What accounts are listed by."""

KEY_SIGN = "#"
"""Between account and API key in the actor of an event; no name of an account has it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, and with which rights.  `key` is the API key that is used, "" for a login."""

    id: str
    name: str
    tenant: str
    role: Role
    vip: bool
    key: str = ""

    @property
    def may_use_vip(self) -> bool:
        return self.vip or self.role is not Role.USER

    @property
    def actor(self) -> str:
        """Who did it, as events have it: the account, and the key it was done with."""
        return f"{self.name}{KEY_SIGN}{self.key}" if self.key else self.name


@dataclass(frozen=True, slots=True)
class Login:
    """What a login attempt needs to know of an account."""

    caller: Caller
    password_hash: str
    frozen: bool
    failed_logins: int


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A token or API key as found: its caller, its end, and whether the account is frozen.

    `scopes` is what an API key may be used for, None for a login, which may everything its account
    may.  `expires_ms` is None for a key without an end; `used_ms` is the key's last noted use.
    """

    caller: Caller
    expires_ms: int | None
    frozen: bool
    scopes: frozenset[str] | None = None
    used_ms: int | None = None

    def ended(self, now_ms: int) -> bool:
        return self.expires_ms is not None and self.expires_ms <= now_ms


@dataclass(frozen=True, slots=True)
class LoginView:
    """A live login, as its owner sees it."""

    token_hash: str
    created_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant, and how many accounts it has."""

    id: str
    created_ms: int
    accounts: int


def caller_of(row: Account, key: str = "") -> Caller:
    return Caller(row.id, row.name, row.tenant_id, Role(row.role), row.vip, key)


def visible(caller: Caller) -> ColumnElement[bool]:
    """The jobs a caller may see: a user their own, a tenant-admin the tenant's, an operator all."""
    if caller.role is Role.OPERATOR:
        return true()
    if caller.role is Role.TENANT_ADMIN:
        return col(Job.tenant_id) == caller.tenant
    return col(Job.account_id) == caller.id


def add_tenant(tx: Tx, tenant: str, *, actor: str) -> None:
    """Create a tenant.  Raises TenantInUse."""
    if tx.session.get(Tenant, tenant) is not None:
        raise TenantInUse(f"a tenant named {tenant!r} exists")
    tx.session.add(Tenant(id=tenant, created_ms=tx.now_ms))
    tx.session.flush()
    tx.event("tenant.created", actor=actor, tenant=tenant)


def list_tenants(session: Session, only: str = "") -> list[TenantView]:
    """Every tenant, or one, by name."""
    query = (
        select(Tenant, func.count(col(Account.id)))
        .join(Account, col(Account.tenant_id) == col(Tenant.id), isouter=True)
        .group_by(col(Tenant.id))
        .order_by(col(Tenant.id))
    )
    if only:
        query = query.where(Tenant.id == only)
    return [TenantView(row.id, row.created_ms, count) for row, count in session.exec(query).all()]


def may_see(caller: Caller, *, account: str, tenant: str) -> bool:
    """Whether `visible` holds for a job of an account."""
    if caller.role is Role.USER:
        return account == caller.id
    return caller.role is Role.OPERATOR or tenant == caller.tenant


def unfrozen(session: Session, account: str) -> Caller | None:
    """An account by its id; None when there is none, or it is frozen."""
    row = session.get(Account, account)
    return None if row is None or row.frozen_ms is not None else caller_of(row)


def add_account(tx: Tx, *, name: str, tenant: str, role: Role, password_hash: str, actor: str = "") -> Caller:
    """Create an account, and its tenant when it is new.  Raises NameInUse."""
    if tx.session.exec(select(Account).where(Account.name == name)).first() is not None:
        raise NameInUse(f"an account named {name!r} exists")
    if tx.session.get(Tenant, tenant) is None:
        add_tenant(tx, tenant, actor=actor or name)
    row = Account(
        id=f"u-{secrets.token_hex(6)}",
        name=name,
        tenant_id=tenant,
        role=role.value,
        password_hash=password_hash,
        created_ms=tx.now_ms,
    )
    tx.session.add(row)
    tx.session.flush()
    data = {"account": name, "role": role.value}
    tx.event("account.created", actor=actor or name, tenant=tenant, data=data)
    return caller_of(row)


def _account(tx: Tx, name: str, keeper: Caller | None) -> Account:
    """The account that `keeper` changes: an operator, or the command line (None), changes every one, a
    tenant-admin the users of the own tenant, since a password that is set is a role that is taken.

    Raises NoSuchAccount, StrongerAccount.
    """
    row = tx.session.exec(select(Account).where(Account.name == name)).first()
    tenant = None if keeper is None or keeper.role is Role.OPERATOR else keeper.tenant
    if row is None or tenant not in (None, row.tenant_id):
        raise NoSuchAccount(f"there is no account named {name!r}")
    if tenant is not None and row.role != Role.USER.value:
        raise StrongerAccount(f"account {name!r} has role {row.role}; only an operator changes it")
    return row


def set_vip(tx: Tx, name: str, vip: bool, *, actor: str, keeper: Caller | None = None) -> None:
    """Grant or revoke the right to VIP jobs.  Raises NoSuchAccount, StrongerAccount."""
    row = _account(tx, name, keeper)
    row.vip = vip
    tx.session.add(row)
    kind = "account.granted" if vip else "account.revoked"
    tx.event(kind, actor=actor, tenant=row.tenant_id, data={"account": name})


def set_frozen(tx: Tx, name: str, frozen: bool, *, actor: str, keeper: Caller | None = None) -> None:
    """Freeze an account, or unfreeze it and forget its failed logins.

    Raises NoSuchAccount, StrongerAccount.
    """
    row = _account(tx, name, keeper)
    row.frozen_ms = tx.now_ms if frozen else None
    row.failed_logins = 0
    tx.session.add(row)
    kind = "account.frozen" if frozen else "account.unfrozen"
    tx.event(kind, actor=actor, tenant=row.tenant_id, data={"account": name})


def set_password(tx: Tx, name: str, password_hash: str, *, actor: str, keeper: Caller | None = None) -> None:
    """A new password; every login of the account ends, its API keys stay.

    Raises NoSuchAccount, StrongerAccount.
    """
    row = _account(tx, name, keeper)
    row.password_hash = password_hash
    tx.session.add(row)
    tx.session.execute(delete(Token).where(col(Token.account_id) == row.id))
    tx.event("account.password", actor=actor, tenant=row.tenant_id, data={"account": name})


def list_accounts(session: Session, wanted: Paging, tenant: str = "") -> tuple[list[dict[str, Any]], int]:
    """One page of all accounts, or of a tenant's, as `show_account` has them, and how many there are."""
    where = col(Account.tenant_id) == tenant if tenant else true()
    total = session.exec(select(func.count()).select_from(Account).where(where)).one()
    keys = (col(SORTS[wanted.sort]), col(Account.name))
    query = select(Account).where(where).order_by(*(key.desc() if wanted.descending else key for key in keys))
    rows = session.exec(query.limit(wanted.size).offset((wanted.page - 1) * wanted.size)).all()
    return [_shown(row) for row in rows], total


def show_account(session: Session, name: str) -> dict[str, Any]:
    """Name, tenant, role, vip and frozen of an account.  Raises NoSuchAccount."""
    row = session.exec(select(Account).where(Account.name == name)).first()
    if row is None:
        raise NoSuchAccount(f"there is no account named {name!r}")
    return _shown(row)


def _shown(row: Account) -> dict[str, Any]:
    return {
        "name": row.name,
        "tenant": row.tenant_id,
        "role": row.role,
        "vip": caller_of(row).may_use_vip,
        "frozen": row.frozen_ms is not None,
    }


def count_accounts(session: Session) -> int:
    return len(session.exec(select(Account.id)).all())


def find_login(session: Session, name: str) -> Login | None:
    row = session.exec(select(Account).where(Account.name == name)).first()
    if row is None:
        return None
    return Login(caller_of(row), row.password_hash, row.frozen_ms is not None, row.failed_logins)


def record_failed_login(tx: Tx, account_id: str, freeze_after: int) -> None:
    """Count a wrong password; the account freezes at `freeze_after` in a row."""
    row = tx.session.get_one(Account, account_id)
    row.failed_logins += 1
    if row.failed_logins >= freeze_after and row.frozen_ms is None:
        row.frozen_ms = tx.now_ms
        data = {"account": row.name, "failedLogins": row.failed_logins}
        tx.event("account.frozen", actor=row.name, tenant=row.tenant_id, data=data)
    tx.session.add(row)


def add_token(tx: Tx, account_id: str, token_hash: str, expires_ms: int) -> None:
    """Record a login and forget earlier failures."""
    row = tx.session.get_one(Account, account_id)
    if row.failed_logins:
        row.failed_logins = 0
        tx.session.add(row)
    tx.session.add(Token(hash=token_hash, account_id=account_id, expires_ms=expires_ms, created_ms=tx.now_ms))


def find_token(session: Session, token_hash: str) -> LoginSession | None:
    query = (
        select(Token, Account)
        .join(Account, col(Account.id) == col(Token.account_id))
        .where(Token.hash == token_hash)
    )
    found = session.exec(query).first()
    if found is None:
        return None
    token, account = found
    return LoginSession(caller_of(account), token.expires_ms, account.frozen_ms is not None)


def list_logins(session: Session, account: str, now_ms: int) -> list[LoginView]:
    """The logins of an account that have not ended."""
    query = select(Token).where(Token.account_id == account).where(col(Token.expires_ms) > now_ms)
    return [LoginView(t.hash, t.created_ms, t.expires_ms) for t in session.exec(query).all()]


def remove_tokens(tx: Tx, caller: Caller, token_hash: str, *, others: bool) -> None:
    """End the login of a token, or every other one of its account."""
    own = delete(Token).where(col(Token.account_id) == caller.id)
    ended = own.where(col(Token.hash) != token_hash if others else col(Token.hash) == token_hash)
    count = tx.session.execute(ended).rowcount  # type: ignore[attr-defined]
    data = {"account": caller.name, "logins": count, "others": others}
    tx.event("account.logout", actor=caller.actor, tenant=caller.tenant, data=data)


def sweep_tokens(tx: Tx, expired_before_ms: int) -> int:
    """Remove tokens that expired before a moment; returns how many."""
    result = tx.session.execute(delete(Token).where(col(Token.expires_ms) < expired_before_ms))
    return int(result.rowcount)  # type: ignore[attr-defined]


def setting(tx: Tx, name: str, default: str) -> str:
    """The stored value of a setting; `default` is stored and returned when there is none."""
    row = tx.session.get(Setting, name)
    if row is None:
        row = Setting(name=name, value=default)
        tx.session.add(row)
    return row.value


def replace_setting(tx: Tx, name: str, value: str) -> None:
    tx.session.merge(Setting(name=name, value=value))
