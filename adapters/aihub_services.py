"""The nine services of an AIHub installation as calls: addresses, login, envelopes, what a no means.

Here: what every call to an AIHub shares.  Not here: what tasks, capacity and data are
(adapters/aihub*.py), and HTTP itself (http.py).

The document has no section numbers; it is cited by its headings.  Each service has a host and port of
its own (服务 IP 和 PORT 列表), and internal test and production differ by one digit: a URL that is not
configured is never derived from another, its features are off.  There is no list of codes, so a
failing envelope is read by its message, and what is not understood counts as a plain no.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from aiohttp import FormData

from adapters.http import Body, Http, Query, Request, Unintelligible, below
from adapters.session import LoggedIn, Session, SessionExpired
from broker.adapter import Denied, NoCapacity, RawAnswer, Refused, Throttled, Unavailable, Unsupported

BUSY_RETRY_S = 10.0
"""After an answer that asks for patience without saying how long."""


class Service(StrEnum):
    """A service, by the beginning of its connection key."""

    USER = "user"
    TAG = "tag"
    TRAINING = "training"
    QUOTA = "quota"
    DATASET = "dataset"
    WORKFLOW = "workflow"
    WAREHOUSE = "warehouse"
    EVALUATION = "evaluation"
    S3 = "s3"


PATHS: Mapping[Service, str] = {
    Service.USER: "/api/v1/auth",
    Service.TAG: "/tag-resource-management/api/v1",
    Service.TRAINING: "/model-training-platform/api/v1",
    Service.QUOTA: "/quota-schedule-management/api/v1",
    Service.DATASET: "/dataset-mng/api/v2",
    Service.WORKFLOW: "/workflow-center/api/v1",
    Service.WAREHOUSE: "/data-warehouse/api/v1",
    Service.EVALUATION: "/api/v2/tasks",
    Service.S3: "/upload",
}


class Missing(Refused):
    """The platform says that the object does not exist."""


class WrongMethod(Refused):
    """HTTP 404 or 405: the service has no such path or method.

    That an object does not exist, the platform says with HTTP 200 and a code.
    """


class NameTaken(Refused):
    """The platform says that there is an object of this name already."""


def _words(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


_SESSION = _words("token", "jwt", "重新登录", "未登录", "登录已?过期", "unauthori[sz]ed", "unauthenticated")
_CREDENTIALS = _words("密码", "password", "用户名", "账号", "credential", "冻结", "locked", "disabled")
_MISSING = _words("不存在", "未找到", "not found", "not exist", "no such")
_TAKEN = _words("已存在", "重名", "重复", "already exist", "duplicate")
_UNSURE = _words("超时", "系统错误", "内部错误", "timeout", "timed out", "internal")
_BUSY = _words("频繁", "繁忙", "稍后", "too many requests", "rate limit", "busy")
_FULL = _words("资源不足", "配额不足", "没有足够", "insufficient", "no capacity")
_RIGHTS = _words("权限", "forbidden", "permission", "not allowed")


def envelope(status: int, document: Any) -> Any:
    """`data` of a successful answer: 2xx and code 0 (the sample of API 调用示例 checks both).

    A well-formed failure says that nothing was done, whatever its code; one under a 5xx status, or
    that speaks of an inner failure, does not.  `msg` and `data` may be missing.  Raises adapter errors.
    """
    if not isinstance(document, dict) or not isinstance(document.get("code"), int):
        raise Unavailable(f"HTTP {status}: the answer has no code: {document!r:.200}")
    code, said = document["code"], document.get("msg")
    if code == 0 and 200 <= status < 300:
        return document.get("data")
    text = f"code {code}" + (f": {said}" if said else "") + ("" if status == 200 else f" (HTTP {status})")
    if status >= 500 or code == 0:
        raise Unavailable(text)
    raise meaning(str(said or ""), text, status)


def meaning(said: str, text: str, status: int = 200) -> Exception:
    """The error that a failing envelope is, by its message."""
    if _SESSION.search(said):
        return SessionExpired(text, no_effect=True)
    if status in (404, 405):
        return WrongMethod(text)
    if _MISSING.search(said):
        return Missing(text)
    if _TAKEN.search(said):
        return NameTaken(text)
    if _FULL.search(said):
        return NoCapacity(text)
    if _UNSURE.search(said):
        return Unavailable(text)
    if _BUSY.search(said):
        return Throttled(text, retry_after_s=BUSY_RETRY_S)
    if _RIGHTS.search(said) or status == 403:
        return Denied(text)
    return Refused(text)


def _login_envelope(status: int, document: Any) -> Any:
    try:
        return envelope(status, document)
    except (Refused, SessionExpired) as no:
        if _CREDENTIALS.search(str(no)):
            raise Denied(str(no)) from None
        raise Unavailable(f"the login failed without a word about the account: {no}") from None


class Services:
    """Calls to the services of one center."""

    def __init__(
        self, http: Http, *, urls: Mapping[Service, str], username: str, password: str, s3_token: str = ""
    ) -> None:
        self.http = http
        self._urls = urls
        self._username = username
        self._password = password
        self._s3_token = s3_token
        # Authentication comes before anything is done: a 401 proves that nothing was.
        self.session = Session(http.center, username, self._log_in, rejects_before_acting=True)

    async def aclose(self) -> None:
        await self.session.aclose()
        await self.http.aclose()

    def has(self, service: Service) -> bool:
        return service in self._urls

    def url(self, service: Service, path: str) -> str:
        """Raises Unsupported, naming the key, where the service is not configured."""
        if service not in self._urls:
            raise Unsupported(f"{service}_url is not set for this center, so it cannot be asked for that")
        return self._urls[service].rstrip("/") + PATHS[service] + path

    # ------------------------------------------------------------ login (登录)

    async def _log_in(self) -> LoggedIn:
        request = Request("login", "POST", self.url(Service.USER, "/login"), effect=False)
        body = {"username": self._username, "password": self._password}
        data = await self.http.json(request, _login_envelope, document=body)
        if not isinstance(data, dict) or not data.get("token") or not isinstance(data.get("id"), int):
            raise Unavailable("the login answered without id and token")
        token = str(data["token"])
        self.http.redact.add(token)
        headers = {"Authorization": f"Bearer {token}"}
        return LoggedIn(headers, ttl_s=_life_s(token), facts={"user_id": data["id"]})

    async def user_id(self) -> int:
        """The account's id, which other calls want."""
        return int((await self.session.current()).facts["user_id"])

    # ------------------------------------------------------------ calls

    async def read(
        self,
        service: Service,
        path: str,
        operation: str,
        query: Query | None = None,
        *,
        urgent: bool = False,
    ) -> Any:
        """A call without an effect; `data` of its answer.  Raises WrongMethod for an unknown path."""
        request = Request(
            operation,
            "GET",
            self.url(service, path),
            effect=False,
            query=query or {},
            session=self.session,
            urgent=urgent,
        )
        try:
            return await self.http.json(request, envelope)
        except Unintelligible as error:
            if error.status in (404, 405):
                raise WrongMethod(str(error)) from None
            raise

    async def act(
        self, service: Service, path: str, operation: str, document: Any = None, *, urgent: bool = False
    ) -> Any:
        """A call with an effect; `data` of its answer.  Never sent twice."""
        request = Request(
            operation,
            "POST",
            self.url(service, path),
            effect=True,
            session=self.session,
            urgent=urgent,
        )
        return await self.http.json(request, envelope, document=document)

    async def send(self, service: Service, operation: str, form: FormData, path: str = "") -> Any:
        """A form with files, to the account's services; `data` of the answer."""
        request = Request(
            operation,
            "POST",
            self.url(service, path),
            effect=True,
            body=form,
            session=self.session,
            transfer=True,
        )
        return await self.http.json(request, envelope)

    async def upload(self, form: FormData, *, bucket: str, key: str) -> Any:
        """A file to the S3 relay (上传文件), which has a token of its own and never sees the login's."""
        url = self.url(Service.S3, "")
        if not self._s3_token:
            raise Unsupported("credentials.s3_token is not set for this center: the S3 relay wants it")
        request = Request(
            "upload",
            "POST",
            url,
            effect=True,
            query={"bucket": bucket, "key": key},
            body=form,
            headers={"Token": self._s3_token},
            transfer=True,
        )
        return await self.http.json(request, envelope)

    async def raw(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        """An operator's call: the path says which service it goes to."""
        for service, start in PATHS.items():
            if service is not Service.S3 and path.partition("?")[0].startswith(f"{start}/"):
                break
        else:
            known = ", ".join(start for service, start in PATHS.items() if service is not Service.S3)
            raise Unsupported(f"path is {path!r}, expected one that begins with one of {known}")
        self.url(service, "")
        sent: Body = body
        request = Request("call", method, below(self._urls[service], path), effect=method != "GET", body=sent)
        if body:
            request = replace(request, headers={"Content-Type": "application/json"})
        if service is not Service.USER:
            request = replace(request, session=self.session)
        return await self.http.raw(request)


def _life_s(token: str) -> float | None:
    """Seconds that a JWT has to live by its own claims; None where it does not say, or is past.

    Past means that the clocks differ: then an expired session shows when a call is rejected.
    """
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        left = float(claims["exp"]) - float(claims.get("iat", time.time()))
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return left if left > 0 else None
