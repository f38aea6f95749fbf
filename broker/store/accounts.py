"""Accounts, tenants, tokens and who may see what."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, true
from sqlmodel import Session, col, select

from broker.core.model import Role
from broker.store.writer import Rejected, Tx
from broker.tables import Account, Job, Setting, Tenant, Token


class NameInUse(Rejected):
    """An account of that name exists."""


class NoSuchAccount(Rejected):
    """No account of that name."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, and with which rights."""

    id: str
    name: str
    tenant: str
    role: Role
    vip: bool

    @property
    def may_use_vip(self) -> bool:
        return self.vip or self.role is not Role.USER


@dataclass(frozen=True, slots=True)
class Login:
    """What a login attempt needs to know of an account."""

    caller: Caller
    password_hash: str
    frozen: bool
    failed_logins: int


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A token as found: its caller, its end, and whether the account is frozen."""

    caller: Caller
    expires_ms: int
    frozen: bool


def _caller(row: Account) -> Caller:
    return Caller(row.id, row.name, row.tenant_id, Role(row.role), row.vip)


def visible(caller: Caller) -> ColumnElement[bool]:
    """The jobs a caller may see: a user their own, a tenant-admin the tenant's, an operator all."""
    if caller.role is Role.OPERATOR:
        return true()
    if caller.role is Role.TENANT_ADMIN:
        return col(Job.tenant_id) == caller.tenant
    return col(Job.account_id) == caller.id


def add_account(tx: Tx, *, name: str, tenant: str, role: Role, password_hash: str, actor: str = "") -> Caller:
    """Create an account, and its tenant when it is new.  Raises NameInUse."""
    if tx.session.exec(select(Account).where(Account.name == name)).first() is not None:
        raise NameInUse(f"an account named {name!r} exists")
    if tx.session.get(Tenant, tenant) is None:
        tx.session.add(Tenant(id=tenant, created_ms=tx.now_ms))
        tx.session.flush()
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
    tx.event("account.created", actor=actor or name, data={"account": name, "role": role.value})
    return _caller(row)


def _account(tx: Tx, name: str) -> Account:
    row = tx.session.exec(select(Account).where(Account.name == name)).first()
    if row is None:
        raise NoSuchAccount(f"there is no account named {name!r}")
    return row


def set_vip(tx: Tx, name: str, vip: bool, *, actor: str) -> None:
    """Grant or revoke the right to VIP jobs.  Raises NoSuchAccount."""
    row = _account(tx, name)
    row.vip = vip
    tx.session.add(row)
    tx.event("account.granted" if vip else "account.revoked", actor=actor, data={"account": name})


def set_frozen(tx: Tx, name: str, frozen: bool, *, actor: str) -> None:
    """Freeze an account, or unfreeze it and forget its failed logins.  Raises NoSuchAccount."""
    row = _account(tx, name)
    row.frozen_ms = tx.now_ms if frozen else None
    row.failed_logins = 0
    tx.session.add(row)
    tx.event("account.frozen" if frozen else "account.unfrozen", actor=actor, data={"account": name})


def set_password(tx: Tx, name: str, password_hash: str, *, actor: str) -> None:
    """A new password; every login of the account ends.  Raises NoSuchAccount."""
    row = _account(tx, name)
    row.password_hash = password_hash
    tx.session.add(row)
    tx.session.execute(delete(Token).where(col(Token.account_id) == row.id))
    tx.event("account.password", actor=actor, data={"account": name})


def list_accounts(session: Session) -> list[dict[str, Any]]:
    """Name, tenant, role, vip and frozen of every account, by name."""
    rows = session.exec(select(Account).order_by(Account.name)).all()
    return [
        {
            "name": r.name,
            "tenant": r.tenant_id,
            "role": r.role,
            "vip": _caller(r).may_use_vip,
            "frozen": r.frozen_ms is not None,
        }
        for r in rows
    ]


def count_accounts(session: Session) -> int:
    return len(session.exec(select(Account.id)).all())


def find_login(session: Session, name: str) -> Login | None:
    row = session.exec(select(Account).where(Account.name == name)).first()
    if row is None:
        return None
    return Login(_caller(row), row.password_hash, row.frozen_ms is not None, row.failed_logins)


def record_failed_login(tx: Tx, account_id: str, freeze_after: int) -> None:
    """Count a wrong password; the account freezes at `freeze_after` in a row."""
    row = tx.session.get_one(Account, account_id)
    row.failed_logins += 1
    if row.failed_logins >= freeze_after and row.frozen_ms is None:
        row.frozen_ms = tx.now_ms
        tx.event("account.frozen", actor=row.name, data={"failedLogins": row.failed_logins})
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
    return LoginSession(_caller(account), token.expires_ms, account.frozen_ms is not None)


def remove_token(tx: Tx, token_hash: str) -> None:
    tx.session.execute(delete(Token).where(col(Token.hash) == token_hash))


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
