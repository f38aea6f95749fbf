"""API keys, and the applications that hold them.

An application is a name under which keys of an account are kept together: what acts for the account,
and what its owner can take that right from again.  A key without an application is the owner's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from broker.store.accounts import Caller, LoginSession, caller_of
from broker.store.writer import Rejected, Tx
from broker.tables import Account, ApiKey

MOST_KEYS = 100
"""Of one account."""

USED_EVERY_MS = 3_600_000
"""The last use of a key is noted this coarsely, so that a busy key costs no writes."""


class KeyNameTaken(Rejected):
    """The account has a key of that name."""


class TooManyKeys(Rejected):
    """The account has as many keys as one may have."""


class NoSuchKey(Rejected):
    """The account has no such key."""


class NoSuchApplication(Rejected):
    """No key of the account belongs to an application of that name."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """`id` and `hash`, the SHA-256 of the secret, are made outside: the write may run twice."""

    id: str
    hash: str
    name: str
    application: str
    scopes: tuple[str, ...]
    expires_ms: int | None


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as its owner sees it.  `used_ms` is its last noted use."""

    id: str
    name: str
    application: str
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int | None
    used_ms: int | None


@dataclass(frozen=True, slots=True)
class ApplicationView:
    """What may act for an account: all that its keys which have not expired may."""

    name: str
    scopes: tuple[str, ...]
    keys: int
    created_ms: int
    used_ms: int | None


def add_key(tx: Tx, caller: Caller, new: NewKey) -> KeyView:
    """Give an account a key.  Raises KeyNameTaken, TooManyKeys."""
    own = select(func.count()).select_from(ApiKey).where(ApiKey.account_id == caller.id)
    if tx.session.exec(own.where(ApiKey.name == new.name)).one():
        raise KeyNameTaken(f"name: there is an API key named {new.name!r}")
    if tx.session.exec(own).one() >= MOST_KEYS:
        raise TooManyKeys(f"an account has at most {MOST_KEYS} API keys; revoke one first")
    row = ApiKey(
        id=new.id,
        hash=new.hash,
        account_id=caller.id,
        name=new.name,
        application=new.application,
        scopes=list(new.scopes),
        created_ms=tx.now_ms,
        expires_ms=new.expires_ms,
    )
    tx.session.add(row)
    tx.session.flush()
    _tell(tx, "key.created", caller, [row])
    return _view(row)


def list_keys(session: Session, account: str) -> list[KeyView]:
    """The keys of an account, those that have expired too."""
    query = select(ApiKey).where(ApiKey.account_id == account).order_by(col(ApiKey.id))
    return [_view(row) for row in session.exec(query).all()]


def list_applications(session: Session, account: str, now_ms: int) -> list[ApplicationView]:
    """What may act for an account at `now_ms`, by name."""
    held: dict[str, list[KeyView]] = {}
    for key in list_keys(session, account):
        if key.application and (key.expires_ms is None or key.expires_ms > now_ms):
            held.setdefault(key.application, []).append(key)
    return [
        ApplicationView(
            name=name,
            scopes=tuple(sorted({scope for key in keys for scope in key.scopes})),
            keys=len(keys),
            created_ms=min(key.created_ms for key in keys),
            used_ms=max((key.used_ms for key in keys if key.used_ms is not None), default=None),
        )
        for name, keys in sorted(held.items())
    ]


def revoke_key(tx: Tx, caller: Caller, key: str) -> None:
    """Take a key back.  Raises NoSuchKey, for one of another account too."""
    row = tx.session.get(ApiKey, key)
    if row is None or row.account_id != caller.id:
        raise NoSuchKey(f"there is no API key {key!r}")
    _tell(tx, "key.revoked", caller, [row])
    tx.session.delete(row)


def revoke_application(tx: Tx, caller: Caller, application: str) -> None:
    """Take every key of an application back.  Raises NoSuchApplication."""
    own = select(ApiKey).where(ApiKey.account_id == caller.id).where(ApiKey.application == application)
    rows = tx.session.exec(own.where(ApiKey.application != "")).all()
    if not rows:
        raise NoSuchApplication(f"there is no application {application!r}")
    _tell(tx, "key.revoked", caller, rows)
    for row in rows:
        tx.session.delete(row)


def find_key(session: Session, key_hash: str) -> LoginSession | None:
    query = (
        select(ApiKey, Account)
        .join(Account, col(Account.id) == col(ApiKey.account_id))
        .where(ApiKey.hash == key_hash)
    )
    found = session.exec(query).first()
    if found is None:
        return None
    key, account = found
    return LoginSession(
        caller_of(account, key.id),
        key.expires_ms,
        account.frozen_ms is not None,
        scopes=frozenset(key.scopes),
        used_ms=key.used_ms,
    )


def note_use(tx: Tx, key: str) -> None:
    """The key was used now; one that was revoked meanwhile is none any more."""
    row = tx.session.get(ApiKey, key)
    if row is not None:
        row.used_ms = tx.now_ms
        tx.session.add(row)


def sweep_keys(tx: Tx, expired_before_ms: int) -> int:
    """Remove keys that expired before a moment; returns how many."""
    result = tx.session.execute(delete(ApiKey).where(col(ApiKey.expires_ms) < expired_before_ms))
    return int(result.rowcount)  # type: ignore[attr-defined]


def _tell(tx: Tx, kind: str, caller: Caller, keys: Iterable[ApiKey]) -> None:
    for key in keys:
        data = {
            "account": caller.name,
            "key": key.id,
            "name": key.name,
            "application": key.application,
            "scopes": list(key.scopes),
        }
        tx.event(kind, actor=caller.actor, tenant=caller.tenant, data=data)


def _view(row: ApiKey) -> KeyView:
    return KeyView(
        id=row.id,
        name=row.name,
        application=row.application,
        scopes=tuple(row.scopes),
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        used_ms=row.used_ms,
    )
