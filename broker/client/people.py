"""The calls about people: registering, logins, API keys, accounts, tenants, the audit, events.

What belongs here and what does not: as in broker.client, whose Client has these methods.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

if TYPE_CHECKING:
    from broker.client.answers import (
        Account,
        ApiKey,
        ApiKeyPage,
        ApplicationPage,
        AuditPage,
        HappenedEvent,
        LoginPage,
        NewApiKey,
        Registered,
        Tenant,
        TenantPage,
    )

Query = Mapping[str, str | int | Sequence[str] | None]
"""Parameters of a URL; None is left out, a list is repeated."""


class EventsEnded(Exception):
    """The broker ended a stream of events and said why; go on with `after` the last one seen."""


class PeopleCalls(ABC):
    """What Client can do about people; the two methods that are left open are Client's."""

    @abstractmethod
    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any: ...

    @abstractmethod
    def _opened(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
    ) -> AbstractContextManager[HTTPResponse]: ...

    # ------------------------------------------------ one's own account

    def register(self, name: str, password: str) -> Registered:
        return cast(
            "Registered", self._json("POST", "/auth/users", body={"name": name, "password": password})
        )

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
        self._json("DELETE", f"/auth/apikeys/{quote(key, safe='')}")

    def applications(self, query: Query | None = None) -> ApplicationPage:
        return cast("ApplicationPage", self._json("GET", "/auth/applications", query=query))

    def revoke_application(self, name: str) -> None:
        self._json("DELETE", f"/auth/applications/{quote(name, safe='')}")

    # ------------------------------------------------ accounts and tenants

    def create_account(
        self, name: str, password: str, *, role: str = "user", tenant: str | None = None
    ) -> Account:
        body = {"name": name, "password": password, "role": role, "tenant": tenant}
        return cast("Account", self._json("POST", "/broker/v1/accounts", body=body))

    def create_tenant(self, tenant: str) -> Tenant:
        return cast("Tenant", self._json("POST", "/broker/v1/tenants", body={"id": tenant}))

    def tenants(self, query: Query | None = None) -> TenantPage:
        return cast("TenantPage", self._json("GET", "/broker/v1/tenants", query=query))

    def all_tenants(self) -> Iterator[Tenant]:
        """Every tenant, page after page."""
        return cast("Iterator[Tenant]", self._items("/broker/v1/tenants", {"sort": "id"}))

    # ------------------------------------------------ what happened, what happens

    def audit(self, query: Query | None = None) -> AuditPage:
        return cast("AuditPage", self._json("GET", "/broker/v1/audit", query=query))

    def events(self, after: int | None = None) -> Iterator[HappenedEvent]:
        """What happens, for ever, from behind the event of number `after`, or from now on.

        EventsEnded when the broker ends the stream.
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self._opened("GET", "/broker/v1/events", headers=headers, answer_s=None) as answer:
            kind, data = "", ""
            for line in answer:
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data = value
                elif not name and data:
                    document = json.loads(data)
                    if kind:
                        raise EventsEnded(f"{kind}: {document['reason']}")
                    yield document
                    kind, data = "", ""

    def _items(self, path: str, query: Query) -> Iterator[Any]:
        """Everything of a listing, in an order in which what is new comes last."""
        page = seen = 0
        while True:
            page += 1
            answer = self._json("GET", path, query={**query, "order": "asc", "page": page})
            yield from answer["items"]
            seen += len(answer["items"])
            if not answer["items"] or seen >= answer["totalSize"]:
                return
