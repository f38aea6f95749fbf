"""How an Ampha center is spoken to: settings, accounts, paths, envelopes, passwords as they travel.

Here: what every call needs.  Not here: what calls are for (the other ampha_ modules).

Sections and traps (T) named here are those of the platform's contract: an answer is judged by the
keys it has and never by its path (1.3, T5), and code 500 may be a plain refusal (1.4), so a refusal is
an error of its own and each caller says what it means there.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp

from adapters.http import Http, Request, Unintelligible, open_http
from adapters.session import LoggedIn, Session, SessionExpired
from adapters.values import whole
from broker.adapter import Connection, Denied, Unavailable, Unsupported

OK_CODES = (0, 200)  # 0 in uploads, imports and the creation of fine-tunings (1.3)
SECRET_OPTIONS = ("password_key", "password_iv")
KEY_BYTES = (16, 24, 32)
BLOCK_BYTES = 16

ALTERNATES: Mapping[str, tuple[str, ...]] = {
    "/api/system/config/getRemainResource": ("/prod-api/system/config/getRemainResource",),
    "/api/resource/configRemake/getQuotaRemainResource": (
        "/prod-api/resource/configRemake/getQuotaRemainResource",
    ),
    "/api/system/presetSpec/getSpecList": ("/prod-api/system/presetSpec/getSpecList",),
    "/api/kernel/api/job/stopJobsByUserIds": ("/api/kernel/job/stopJobsByUserIds",),
}
"""Where the document prints two paths of one call (1.1): the second is tried after a 404."""


class Role(StrEnum):
    """The accounts of a center; each call is open to some of them (T24)."""

    USER = "user"
    TENANT = "tenant"
    SYSTEM = "system"


class TaskApi(StrEnum):
    """Which of the platform's three ways jobs are created by (6.0)."""

    TRAIN_OPERATOR = "trainOperator"
    COMPUTATION = "computationTask"
    FINE_TUNE = "fineTune"


class PlatformRefused(Unavailable):
    """The platform answered in good form, and said no.

    The same code stands for refusals of the business and for failures inside (1.4), so by itself it
    is no proof that nothing was done.
    """

    def __init__(self, text: str, code: int | None) -> None:
        super().__init__(f"{text or 'no reason given'} (code {code})")
        self.text = text
        self.code = code


class NotRouted(PlatformRefused):
    """The platform has no such path."""


# ---------------------------------------------------------------- settings


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of an Ampha center, checked."""

    base_url: str
    zone: ZoneInfo
    task_api: TaskApi
    group: str  # user group; "" is the login's own
    preset: bool
    password_mode: str
    password_key: bytes
    password_iv: bytes
    qos_ids: Mapping[str, str]
    paths: Mapping[str, str]
    timeout_s: float
    lookup_lag_s: int
    report_lag_s: int
    algorithm_path: str
    startup_file: str
    extra_inputs: str  # where a task finds a further data set, with {key}; "" where nobody has told
    services: bool
    service_gateway: str

    @classmethod
    def read(cls, connection: Connection) -> Settings:
        """Raises ValueError that names the key."""
        options = connection.options
        if not options.get("base_url"):
            raise ValueError("base_url is missing, expected such as https://10.0.0.1:14443")
        mode = str(options.get("password_mode", "plain"))
        key, iv = b"", bytes(BLOCK_BYTES)
        if mode != "plain":
            key = key_bytes(options, "password_key", KEY_BYTES)
            if mode == "aes-cbc" and options.get("password_iv"):
                iv = key_bytes(options, "password_iv", (BLOCK_BYTES,))
        return cls(
            base_url=str(options["base_url"]).rstrip("/"),
            zone=ZoneInfo(str(options.get("timezone", "Asia/Shanghai"))),
            task_api=TaskApi(options.get("task_api", TaskApi.TRAIN_OPERATOR)),
            group=str(options.get("user_group_id", "")),
            preset=options.get("spec_mode", "free") == "preset",
            password_mode=mode,
            password_key=key,
            password_iv=iv,
            qos_ids={str(k): str(v) for k, v in options.get("qos_ids", {}).items()},
            paths=dict(options.get("paths", {})),
            timeout_s=float(options.get("timeout_s", 30)),
            lookup_lag_s=int(options.get("lookup_lag_s", 30)),
            report_lag_s=int(options.get("report_lag_s", 10)),
            algorithm_path=str(options.get("algorithm_path", "/")),
            startup_file=str(options.get("startup_file", "main.sh")),
            extra_inputs=_extra_inputs(options),
            services=options.get("online_services", "none") == "models",
            service_gateway=str(options.get("service_gateway", "")).rstrip("/"),
        )


def _extra_inputs(options: Mapping[str, Any]) -> str:
    """Raises ValueError."""
    text = str(options.get("extra_inputs", ""))
    if text and (not text.startswith("/") or "{key}" not in text):
        raise ValueError(f"extra_inputs is {text!r}, expected an absolute path with {{key}}")
    if text and options.get("task_api", TaskApi.TRAIN_OPERATOR) != TaskApi.TRAIN_OPERATOR:
        raise ValueError(
            f"extra_inputs needs task_api = {str(TaskApi.TRAIN_OPERATOR)!r}: only its call has them"
        )
    return text


def key_bytes(options: Mapping[str, Any], name: str, sizes: tuple[int, ...]) -> bytes:
    """A key or IV: its text as UTF-8, or hexadecimal after "hex:"."""
    text = str(options.get(name, ""))
    try:
        found = bytes.fromhex(text.removeprefix("hex:")) if text.startswith("hex:") else text.encode()
    except ValueError:
        found = b""
    if len(found) not in sizes:
        expected = " or ".join(str(size) for size in sizes)
        raise ValueError(f"{name} has {len(found)} bytes, expected {expected} (as text, or as hex:0011…)")
    return found


def sealed(password: str, settings: Settings) -> str:
    """A password as it travels (1.8): AES with PKCS7, upper-case hex, the IV not sent; or as it is."""
    if settings.password_mode == "plain":
        return password
    ecb = settings.password_mode == "aes-ecb"
    return encrypted(password, settings.password_key, None if ecb else settings.password_iv)


def encrypted(text: str, key: bytes, iv: bytes | None) -> str:
    """AES with PKCS7 in upper-case hex (1.8): CBC, or ECB without an IV."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.padding import PKCS7

    cipher = Cipher(algorithms.AES(key), modes.ECB() if iv is None else modes.CBC(iv))
    padder, encryptor = PKCS7(BLOCK_BYTES * 8).padder(), cipher.encryptor()
    padded = padder.update(text.encode()) + padder.finalize()
    return str((encryptor.update(padded) + encryptor.finalize()).hex().upper())


# ---------------------------------------------------------------- answers


def payload(status: int, document: Any) -> Any:
    """What a call asked for, out of any of the five envelopes (1.3).

    Raises SessionExpired, Denied, PlatformRefused; Unavailable for what is no envelope.
    """
    if not isinstance(document, dict):
        raise Unavailable(f"the answer is {str(document)[:80]!r}, expected an object")
    code = next(
        (
            whole(document[k], k)
            for k in ("code", "errorCode", "returnCode", "status")
            if _number(document, k)
        ),
        None,
    )
    message = document.get("message", document.get("msg"))
    text = message if isinstance(message, str) else ""
    said = _truth(document.get("success"))
    if 200 <= status < 300 and (said if said is not None else code == 200):
        return document.get("data", document.get("result", document))
    if code == 401:
        # Written by the gateway before the call reaches anything (2.2).
        raise SessionExpired(text or "code 401", no_effect="认证失败" in text)
    if code == 403 or "没有权限" in text:
        raise Denied(f"{text} (code {code})")
    if code == 404 or status == 404:
        raise NotRouted(text, 404)
    raise PlatformRefused(text, code if code is not None else status)


def _number(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    return isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdecimal()


def _truth(value: Any) -> bool | None:
    """A truth value, also in text (T4); None when there is none."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def maybe_json(value: Any) -> Any:
    """The document in a text, or the value itself (T3)."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def rows_of(found: Any, what: str) -> list[dict[str, Any]]:
    """The rows of a page in any of the dialects (1.6, T19).  Raises Unavailable."""
    rows: Any = found
    if isinstance(found, dict):
        rows = next((found[k] for k in ("rows", "items", "records", "result") if k in found), None)
    if rows and isinstance(rows[0], list):  # work orders: a list of lists
        rows = [row for inner in rows for row in inner]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unavailable(f"{what}: the answer has no list of rows")
    return rows


def total_of(found: Any, field: str) -> int | None:
    """How many rows there are in all, where the page says so."""
    if not isinstance(found, dict):
        return None
    if isinstance(info := found.get("pageInfo"), dict):
        return whole(info.get("totalNum"), field)
    return whole(found.get("total"), field)


# ---------------------------------------------------------------- calls


@dataclass(frozen=True, slots=True)
class Account:
    """What the platform says of a login (2.2).  `department` is the user group of its capacity (T38)."""

    id: str
    name: str
    department: str
    uid: int | None
    tenant: str


class Api:
    """One center's calls.  Raises adapter errors only."""

    def __init__(self, http: Http, settings: Settings, credentials: Mapping[str, str]) -> None:
        self.http = http
        self.settings = settings
        self._proven: dict[str, str] = {}
        self._sessions: dict[Role, Session] = {}
        for role in Role:
            prefix = "" if role is Role.USER else f"{role}_"
            name, password = credentials.get(f"{prefix}username"), credentials.get(f"{prefix}password")
            if name and password:
                http.redact.add(sealed(password, settings))
                self._sessions[role] = Session(
                    http.center,
                    name,
                    self._login(name, password),
                    rejects_before_acting=False,
                )
        if Role.USER not in self._sessions:
            raise ValueError("credentials: username and password are missing")

    @property
    def roles(self) -> tuple[Role, ...]:
        """Those that accounts are configured for."""
        return tuple(self._sessions)

    @property
    def detours(self) -> Mapping[str, str]:
        """Paths that this installation has elsewhere than printed."""
        return {path: used for path, used in self._proven.items() if path != used}

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.aclose()
        await self.http.aclose()

    def session(self, *roles: Role) -> Session:
        """The first of these accounts that is configured.  Raises Unsupported."""
        for role in roles:
            if role in self._sessions:
                return self._sessions[role]
        raise Unsupported(
            f"this call needs the account of a {' or '.join(roles)} administrator: set"
            f" {roles[0]}_username and {roles[0]}_password in the center's credentials"
        )

    async def account(self, role: Role = Role.USER) -> Account:
        """Who we are there."""
        found: Account = (await self.session(role).current()).facts["account"]
        return found

    async def ask(
        self,
        operation: str,
        path: str,
        document: Any = None,
        *,
        method: str = "POST",
        query: Mapping[str, str | int] | None = None,
        effect: bool = False,
        urgent: bool = False,
        roles: tuple[Role, ...] = (Role.USER,),
    ) -> Any:
        """One call; the payload of its answer."""
        session = self.session(*roles)

        async def call(url: str) -> Any:
            request = Request(
                operation, method, url, effect, query=query or {}, session=session, urgent=urgent
            )
            return await self.http.json(request, payload, document=document)

        return await self._where(path, call)

    async def send_form(self, operation: str, path: str, form: Callable[[], aiohttp.FormData]) -> Any:
        """One multipart upload (4.5, 5)."""
        session = self.session(Role.USER)

        async def call(url: str) -> Any:
            request = Request(operation, "POST", url, effect=True, body=form(), session=session)
            return await self.http.json(request, payload)

        return await self._where(path, call)

    async def _where(self, path: str, call: Callable[[str], Any]) -> Any:
        """Make a call at the path that this installation has it at (1.1)."""
        proven = self._proven.get(path)
        known = self.settings.paths.get(path) or proven
        places = (known,) if known else (path, *ALTERNATES.get(path, ()))
        for place in places:
            try:
                found = await call(self.settings.base_url + place)
            except (NotRouted, Unintelligible) as error:
                absent = isinstance(error, NotRouted) or error.status == 404
                if not absent or place == places[-1]:
                    raise
            else:
                self._proven[path] = place
                return found
        raise AssertionError("the last place answers or raises")

    # ------------------------------------------------------------ logging in

    def _place(self, word: str) -> str:
        printed = f"/prod-api/{word}"
        return self.settings.paths.get(word) or self.settings.paths.get(printed) or printed

    def _login(self, name: str, password: str) -> Callable[[], Any]:
        async def login() -> LoggedIn:
            where = self.settings.base_url
            body = {"username": name, "password": sealed(password, self.settings)}
            try:
                found = await self.http.json(
                    Request("login", "POST", where + self._place("login"), effect=False),
                    payload,
                    document=body,
                )
            except PlatformRefused as no:
                hint = (
                    "is password_mode right?"
                    if self.settings.password_mode == "plain"
                    else "is password_key?"
                )
                raise Denied(f"{no}; {hint}") from None
            token = found.get("token") if isinstance(found, dict) else None
            if not isinstance(token, str) or not token:
                raise Unavailable("login: the answer has no token")
            self.http.redact.add(token)
            headers = {"Authorization": f"Bearer {token}"}
            request = Request(
                "get_info", "GET", where + self._place("getInfo"), effect=False, headers=headers
            )
            try:
                info = await self.http.json(request, payload)
            except Denied as no:  # the credentials are good: they have just been taken
                raise Unavailable(f"the session of a new login was not accepted: {no}") from None
            return LoggedIn(headers, life_s(token), {"account": _account(info, name)})

        return login


def _account(info: Any, name: str) -> Account:
    user = info.get("user") if isinstance(info, dict) else None
    if not isinstance(user, dict) or user.get("userId") in (None, ""):
        raise Unavailable("getInfo: the answer has no user")
    if str(user.get("status")) == "1":
        raise Denied(f"the account {name} is disabled")
    return Account(
        id=str(user["userId"]),
        name=str(user.get("userName") or name),
        department=str(user.get("deptId") or ""),
        uid=whole(user.get("uid"), "getInfo.user.uid"),
        tenant=str(user.get("tenantId") or ""),
    )


def life_s(token: str) -> float | None:
    """Seconds until a token ends, by its own word (2.1); None when it has none that makes sense."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        left = float(claims["exp"]) - time.time()
    except (IndexError, ValueError, KeyError, TypeError, binascii.Error):
        return None
    return left if left > 0 else None


async def open_api(connection: Connection) -> Api:
    """The calls of a configured center.  Raises ValueError for options that cannot be meant."""
    settings = Settings.read(connection)
    http = await open_http(connection, secret_options=SECRET_OPTIONS)
    try:
        return Api(http, settings, connection.credentials)
    except BaseException:
        await http.aclose()
        raise
