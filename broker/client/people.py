"""The client's calls about people: registering, logins, API keys, accounts, tenants.

What belongs here: one method per call, which broker.client.Client has.  What does not: the exchange, and
what a tenant may spend (broker.client.money).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from broker.client.exchange import Exchange, Query, segment

if TYPE_CHECKING:
    from broker.client.answers import (
        Account,
        AccountPage,
        ApiKey,
        ApiKeyPage,
        ApplicationPage,
        LinkPage,
        LoginPage,
        Me,
        NewApiKey,
        Registered,
        Tenant,
        TenantPage,
        Token,
    )


class PeopleCalls(Exchange):
    """The part of the client that is about people."""

    # ------------------------------------------------ one's own account

    def register(self, name: str, password: str) -> Registered:
        return cast(
            "Registered", self._json("POST", "/auth/users", body={"name": name, "password": password})
        )

    def login(self, user: str, password: str) -> Token:
        body = {"authMethod": "password", "user": {"name": user, "password": password}}
        return cast("Token", self._json("POST", "/auth/tokens", body=body))

    def logout(self) -> None:
        self._json("DELETE", "/auth/tokens")

    def change_password(self, old: str, new: str) -> None:
        self._json("POST", "/auth/password", body={"old": old, "new": new})

    def me(self) -> Me:
        return cast("Me", self._json("GET", "/broker/v1/me"))

    def logins(self, query: Query | None = None) -> LoginPage:
        return cast("LoginPage", self._json("GET", "/auth/tokens", query=query))

    def end_other_logins(self) -> None:
        self._json("DELETE", "/auth/tokens", query={"others": "true"})

    def create_key(
        self, name: str, scopes: Sequence[str], *, application: str | None = None, expires: str | None = None
    ) -> NewApiKey:
        """`expires` is a time as the API reads it, None for no end."""
        body = {"name": name, "scopes": list(scopes), "application": application, "expiresAt": expires}
        return cast("NewApiKey", self._json("POST", "/auth/apikeys", body=body))

    def keys(self, query: Query | None = None) -> ApiKeyPage:
        return cast("ApiKeyPage", self._json("GET", "/auth/apikeys", query=query))

    def all_keys(self) -> Iterator[ApiKey]:
        """Every key, page after page."""
        return cast("Iterator[ApiKey]", self._items("/auth/apikeys", {"sort": "createTime"}))

    def revoke_key(self, key: str) -> None:
        self._json("DELETE", f"/auth/apikeys/{segment(key)}")

    def applications(self, query: Query | None = None) -> ApplicationPage:
        return cast("ApplicationPage", self._json("GET", "/auth/applications", query=query))

    def revoke_application(self, name: str) -> None:
        self._json("DELETE", f"/auth/applications/{segment(name)}")

    # ------------------------------------------------ accounts and tenants

    def accounts(self, query: Query | None = None) -> AccountPage:
        return cast("AccountPage", self._json("GET", "/broker/v1/accounts", query=query))

    def all_accounts(self) -> Iterator[Account]:
        """Every account, page after page, by name."""
        return cast("Iterator[Account]", self._items("/broker/v1/accounts", {"sort": "name"}))

    def change_account(self, name: str, action: str, body: Mapping[str, str] | None = None) -> Any:
        """`action` is grant, revoke (body: right), freeze, unfreeze or password (body: password)."""
        return self._json("POST", f"/broker/v1/accounts/{segment(name)}/{action}", body=dict(body or {}))

    def create_account(
        self, name: str, password: str, *, role: str = "user", tenant: str | None = None
    ) -> Account:
        body = {"name": name, "password": password, "role": role, "tenant": tenant}
        return cast("Account", self._json("POST", "/broker/v1/accounts", body=body))

    def links(self, account: str) -> LinkPage:
        return cast("LinkPage", self._json("GET", f"/broker/v1/accounts/{segment(account)}/links"))

    def link_user(self, account: str, center: str, user: str, *, unlink: bool = False) -> LinkPage:
        there = f"/broker/v1/accounts/{segment(account)}/link"
        other = f"/broker/v1/accounts/{segment(account)}/unlink"
        body = {"centerId": center, "user": user}
        return cast("LinkPage", self._json("POST", other if unlink else there, body=body))

    def create_tenant(self, tenant: str) -> Tenant:
        return cast("Tenant", self._json("POST", "/broker/v1/tenants", body={"id": tenant}))

    def tenants(self, query: Query | None = None) -> TenantPage:
        return cast("TenantPage", self._json("GET", "/broker/v1/tenants", query=query))

    def all_tenants(self) -> Iterator[Tenant]:
        """Every tenant, page after page."""
        return cast("Iterator[Tenant]", self._items("/broker/v1/tenants", {"sort": "id"}))
