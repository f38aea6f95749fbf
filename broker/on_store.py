"""Changes of the store of a configuration without the daemon, or beside it.

For the first account, and for when nobody can log in who may.  What belongs here: getting at the
store.  What does not: the changes themselves (broker.store).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from argon2 import PasswordHasher

from broker.companions import read_settings
from broker.core.model import Role
from broker.store import Store, Tx, accounts

COMMAND_LINE = "command line"
"""Actor of these changes."""

T = TypeVar("T")


def write_to_store(config: Path | None, change: Callable[[Tx], T]) -> T:
    """One change of the store of a configuration; a running daemon sees it within a second.

    Raises ConfigError, StoreUnavailable and what `change` raises.
    """
    settings, _catalogue, _policies = read_settings(config, os.environ)

    async def write() -> T:
        store = Store(settings.store.url)
        await store.open()
        try:
            return await store.write(change)
        finally:
            await store.close()

    return asyncio.run(write())


def add_user(config: Path | None, *, name: str, role: Role, tenant: str, password: str) -> None:
    """Add an account to the store of a configuration.

    Raises ConfigError, StoreUnavailable, accounts.NameInUse.
    """
    hashed = PasswordHasher().hash(password)
    write_to_store(
        config,
        lambda tx: accounts.add_account(
            tx, name=name, tenant=tenant, role=role, password_hash=hashed, actor=COMMAND_LINE
        ),
    )


def add_tenant(config: Path | None, tenant: str) -> None:
    """Raises ConfigError, StoreUnavailable, accounts.TenantInUse."""
    write_to_store(config, lambda tx: accounts.add_tenant(tx, tenant, actor=COMMAND_LINE))


def set_frozen(config: Path | None, name: str, frozen: bool) -> None:
    """Raises ConfigError, StoreUnavailable, accounts.NoSuchAccount."""
    write_to_store(config, lambda tx: accounts.set_frozen(tx, name, frozen, actor=COMMAND_LINE))


def set_password(config: Path | None, name: str, password: str) -> None:
    """Raises ConfigError, StoreUnavailable, accounts.NoSuchAccount."""
    hashed = PasswordHasher().hash(password)
    write_to_store(config, lambda tx: accounts.set_password(tx, name, hashed, actor=COMMAND_LINE))
