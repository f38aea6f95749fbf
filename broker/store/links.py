"""Which users of centers' platforms are which accounts here."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, col, select

from broker.core.model import CenterId
from broker.store.accounts import NoSuchAccount
from broker.store.centers import NoSuchCenter
from broker.store.writer import Rejected, Tx
from broker.tables import Account, Center, UserLink


class LinkTaken(Rejected):
    """The platform's user is another account's."""


class NoSuchLink(Rejected):
    """The account has no such user there."""


@dataclass(frozen=True, slots=True)
class Link:
    center: CenterId
    native: str
    created_ms: int


def link(tx: Tx, name: str, center: CenterId, native: str, *, actor: str) -> None:
    """A user of a center's platform is this account; saying it again changes nothing.

    Raises NoSuchAccount, NoSuchCenter, LinkTaken.
    """
    account = _account(tx.session, name)
    row = tx.session.get(Center, center)
    if row is None or row.archived_ms is not None:
        raise NoSuchCenter(f"centerId: there is no center {center!r}")
    known = tx.session.get(UserLink, (center, native))
    if known is not None:
        if known.account_id == account.id:
            return
        other = tx.session.get_one(Account, known.account_id).name
        raise LinkTaken(f"user: {native!r} of center {center!r} is account {other!r}; unlink that first")
    tx.session.add(UserLink(center_id=center, native=native, account_id=account.id, created_ms=tx.now_ms))
    tx.session.flush()
    _event(tx, "account.linked", account, center, native, actor)


def unlink(tx: Tx, name: str, center: CenterId, native: str, *, actor: str) -> None:
    """Raises NoSuchAccount, NoSuchLink."""
    account = _account(tx.session, name)
    known = tx.session.get(UserLink, (center, native))
    if known is None or known.account_id != account.id:
        raise NoSuchLink(f"user: {native!r} of center {center!r} is not linked to account {name!r}")
    tx.session.delete(known)
    tx.session.flush()
    _event(tx, "account.unlinked", account, center, native, actor)


def _event(tx: Tx, kind: str, account: Account, center: str, native: str, actor: str) -> None:
    data = {"account": account.name, "user": native}
    tx.event(kind, center=center, tenant=account.tenant_id, actor=actor, data=data)
    tx.wake("desk")


def links_of(session: Session, name: str) -> list[Link]:
    """An account's users at centers.  Raises NoSuchAccount."""
    query = (
        select(UserLink)
        .where(UserLink.account_id == _account(session, name).id)
        .order_by(col(UserLink.center_id), col(UserLink.native))
    )
    return [Link(CenterId(r.center_id), r.native, r.created_ms) for r in session.exec(query).all()]


def _account(session: Session, name: str) -> Account:
    row = session.exec(select(Account).where(Account.name == name)).first()
    if row is None:
        raise NoSuchAccount(f"there is no account named {name!r}")
    return row
