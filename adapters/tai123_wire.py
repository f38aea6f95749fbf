"""Calls of T/AI 123.8 to the service on the other side, and what its answers mean.

Here: login, the codes of Annex B as adapter errors, pages, and whether the other side is a broker of
this kind, with what goes beyond the standard.  Not here: what the objects mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from adapters.http import Http, Request, Unintelligible, below, failure
from adapters.session import LoggedIn, Session
from adapters.values import parse_json
from broker.adapter import Connection, Denied, NoCapacity, RawAnswer, Refused, Unavailable

PAGE: Final = 50
"""The standard's default; it states no maximum, so another service is asked for no more."""
MAX_PAGE: Final = 1000
MAX_PAGES: Final = 1000

JOBS: Final = "/trainjob"
SERVICES: Final = "/onlineJob"


class NotThere(Refused):
    """The other side has no such path."""


class Rejected(Refused):
    """A row of Annex B with status 400."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def payload(status: int, found: Any) -> Any:
    """The answer's object.  Raises adapter errors for anything but a success."""
    if 200 <= status < 300:
        if not isinstance(found, dict):
            raise Unavailable(f"HTTP {status}: the answer is no JSON object")
        return found
    told = found if isinstance(found, dict) else {}
    code = str(told.get("errorCode") or "")
    words = (told.get("errorMsg"), told.get("detail"))
    text = f"HTTP {status} {code}: {': '.join(str(word) for word in words if word)}".rstrip(": ")
    if status in (404, 405):
        raise NotThere(text)
    if status == 400 and code == "0210":  # the center there may be back
        raise NoCapacity(text)
    if status == 400:
        raise Rejected(code, text)
    raise failure(status, text)


@dataclass(frozen=True, slots=True)
class Other:
    """A broker of this kind on the other side: its hop, and what the account may do there."""

    name: str
    installation: str
    version: str
    vip: bool
    page: int


class Wire:
    """One account at one service."""

    def __init__(self, connection: Connection, http: Http) -> None:
        self.http = http
        self.base = str(connection.options["base_url"]).rstrip("/")
        self.account = connection.credentials["username"]
        self._password = connection.credentials["password"]
        self.session = Session(connection.center, self.account, self._log_in, rejects_before_acting=True)
        self.other: Other | None = None

    async def _log_in(self) -> LoggedIn:
        """§7.2.1.  The header's name is not in the standard: the token is sent in both usual ones."""
        request = Request("login", "POST", f"{self.base}/auth/tokens", effect=False)
        user = {"name": self.account, "password": self._password}
        try:
            found = await self.http.json(request, payload, document={"authMethod": "password", "user": user})
        except Denied as refused:
            raise Denied(f"{refused}: username or password are wrong, or the account is frozen") from None
        token = found.get("token")
        if not isinstance(token, str) or not token:
            raise Unavailable("login: the answer has no token")
        return LoggedIn({"X-Auth-Token": token, "Authorization": f"Bearer {token}"})

    async def find_out(self) -> None:
        """Whether the other side is a broker of this kind."""
        try:
            info = await self.get("info", "/broker/v1/info")
            me = await self.get("info", "/broker/v1/me")
        except Refused:  # no such path, or something else of that name
            self.other = None
            return
        name, installation = info.get("name"), info.get("installation")
        if not isinstance(name, str) or not isinstance(installation, str):
            self.other = None
            return
        limits = info.get("limits")
        most = limits.get("maxPageSize") if isinstance(limits, dict) else None
        page = min(most, MAX_PAGE) if isinstance(most, int) and most > 0 else PAGE
        vip = me.get("vip") is True
        self.other = Other(name, installation, str(info.get("version", "")), vip, page)

    async def get(self, operation: str, path: str, query: Mapping[str, str | int] | None = None) -> Any:
        return await self.json(Request(operation, "GET", self.base + path, effect=False, query=query or {}))

    async def json(self, request: Request, document: Any = None) -> Any:
        """A call with the account's token.  Raises NotThere, Rejected and other adapter errors."""
        try:
            return await self.http.json(replace(request, session=self.session), payload, document=document)
        except Unintelligible as error:
            if error.status in (404, 405):  # outside the standard's error table, so in any form
                raise NotThere(str(error)) from None
            raise

    async def rows(
        self, operation: str, path: str, key: str, query: Mapping[str, str | int] | None = None
    ) -> AsyncIterator[Mapping[str, Any]]:
        """The objects of a list, page by page.

        `totalSize` is the number of all or, as the standard's text also says, of those returned.
        """
        size = self.other.page if self.other is not None else PAGE
        seen = 0
        before: list[Any] = []
        for page in range(1, MAX_PAGES + 1):
            found = await self.get(operation, path, {**(query or {}), "page": page, "pageSize": size})
            rows = found.get(key)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise Unavailable(f"{path}: {key} is no list of objects")
            if rows and rows == before:
                raise Unavailable(f"{path}: page {page} is page {page - 1} again")
            for row in rows:
                yield row
            seen, before = seen + len(rows), rows
            total = found.get("totalSize")
            of_all = isinstance(total, int) and total > len(rows)
            if not rows or (seen >= total if of_all else len(rows) < size):
                return
        raise Unavailable(f"{path}: more than {MAX_PAGES} pages")

    async def delete(self, operation: str, path: str) -> None:
        """A DELETE, which is answered with nothing.  Raises as `json`."""
        request = Request(operation, "DELETE", self.base + path, effect=True, session=self.session)
        answer = await self.http.raw(request)
        if not 200 <= answer.status < 300:
            try:
                found = parse_json(answer.body)
            except ValueError:
                found = {}
            payload(answer.status, found)

    async def raw(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        request = Request(
            "call",
            method,
            below(self.base, path),
            effect=method not in ("GET", "HEAD"),
            body=body,
            headers=headers,
            session=self.session,
        )
        return await self.http.raw(request)
