"""How the emulated platform speaks: envelopes, times, sessions, and strict checks of what it is asked.

What belongs here: the five envelopes (spec 1.3), naive times (1.5), login and roles (2), what a request
must look like, and the wrapper around every route.  What does not: what a route does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.emulators.faults import FAULT, Fault

if TYPE_CHECKING:
    from tests.emulators.ampha.server import Ampha

SYS, TEN, USR = "4004", "4005", "4007"
ZONE = timezone(timedelta(hours=8))
NOT_LOGGED_IN = "请求访问：{}，认证失败，无法访问系统资源"


# ---------------------------------------------------------------- envelopes


def e1(**fields: Any) -> dict[str, Any]:
    return {"msg": "操作成功", "code": 200, **fields}


def e2(data: Any = None, message: str = "success", *, code: int = 200) -> dict[str, Any]:
    return {"code": code, "success": True, "message": message, "data": data}


def e3(result: Any = None, message: str = "成功") -> dict[str, Any]:
    return {"success": True, "errorCode": 200, "message": message, "result": result}


def e4(data: Any = None, message: str = "success", *, code: int = 200) -> dict[str, Any]:
    return {"success": True, "returnCode": code, "message": message, "data": data}


class No(Exception):
    """A refusal in the body; `envelope` is 1 to 5 as in e1 … e4."""

    def __init__(self, message: str, *, code: int = 500, envelope: int = 0, data: Any = None) -> None:
        super().__init__(message)
        self.message, self.code, self.envelope, self.data = message, code, envelope, data

    def body(self, envelope: int) -> dict[str, Any]:
        match self.envelope or envelope:
            case 1:
                return {"msg": self.message, "code": self.code}
            case 2:
                return {"code": self.code, "success": False, "message": self.message, "data": self.data}
            case 3:
                return {
                    "success": False,
                    "errorCode": self.code,
                    "message": self.message,
                    "result": self.data,
                }
            case _:
                return {
                    "success": False,
                    "returnCode": self.code,
                    "message": self.message,
                    "data": "error" if self.data is None else self.data,
                }


# ---------------------------------------------------------------- times


def naive(ms: int | None) -> str | None:
    """Local time of China without a zone, whole seconds."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, ZONE).strftime("%Y-%m-%d %H:%M:%S")


def zoned(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000+00:00")


def span(start_ms: int | None, end_ms: int) -> str:
    """HH:MM:SS, or nothing before the start."""
    if start_ms is None:
        return ""
    seconds = max(0, end_ms - start_ms) // 1000
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


# ---------------------------------------------------------------- what a request must look like


@dataclass(frozen=True)
class Field:
    """One field of a request.  `items`: of a list's objects or of the object itself."""

    type: tuple[type, ...]
    required: bool = True
    oneof: tuple[Any, ...] = ()
    items: Mapping[str, Field] | None = None


def text(*oneof: str, need: bool = True) -> Field:
    return Field((str,), need, oneof)


def number(*oneof: int, need: bool = True) -> Field:
    return Field((int,), need, oneof)


def flag(*, need: bool = True) -> Field:
    return Field((bool,), need)


def array(items: Mapping[str, Field] | None = None, *, need: bool = True) -> Field:
    return Field((list,), need, (), items)


def thing(items: Mapping[str, Field] | None = None, *, need: bool = True) -> Field:
    return Field((dict,), need, (), items)


def maybe(kind: type) -> Field:
    """A field that may be null or absent."""
    return Field((kind, type(None)), False)


Fields = Mapping[str, Field]


def complaints(body: Any, fields: Fields, where: str = "") -> list[str]:
    """What is wrong with a request: fields that are missing, unknown, or of the wrong type."""
    if not isinstance(body, dict):
        return [f"{where or 'body'} is {body!r}, not an object"]
    found = [f"{where}{name} is not a field" for name in body if name not in fields]
    for name, want in fields.items():
        if name not in body:
            if want.required:
                found.append(f"{where}{name} is missing")
            continue
        value = body[name]
        typed = isinstance(value, want.type) and not (isinstance(value, bool) and bool not in want.type)
        if not typed:
            found.append(f"{where}{name} is {value!r}, not {'|'.join(t.__name__ for t in want.type)}")
        elif want.oneof and value not in want.oneof:
            found.append(f"{where}{name} is {value!r}, not one of {want.oneof}")
        elif want.items is not None and isinstance(value, dict):
            found += complaints(value, want.items, f"{where}{name}.")
        elif want.items is not None and isinstance(value, list):
            for index, item in enumerate(value):
                found += complaints(item, want.items, f"{where}{name}[{index}].")
    return found


# ---------------------------------------------------------------- sessions


@dataclass
class Account:
    id: int
    name: str
    password: str
    role: str
    department: int = 200
    tenant: int = 200
    status: str = "0"
    tokens: set[str] = field(default_factory=set)

    def show(self) -> dict[str, Any]:
        """As getInfo and the user lists show it, secrets included."""
        return {
            "userId": self.id,
            "userName": self.name,
            "nickName": self.name,
            "deptId": self.department,
            "dept": {"deptName": "amphatest", "linuxGroupname": "amphatest", "gid": 2000},
            "roleId": int(self.role),
            "uid": 2000 + self.id,
            "tenantId": self.tenant,
            "tenantName": "test1",
            "status": self.status,
            "origin": None,
            "isCloudUser": 2,
            "password": "$2a$10$" + "bcrypt" * 8,
            "secretKey": f"secret-of-{self.name}",
        }


def jwt(account: Account, life_s: float, serial: int) -> str:
    """HS256, with the claims of 2.1."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    claims = {
        "clusterType": "localMultiTenant",
        "sysUserName": account.name,
        "roleId": account.role,
        "groupId": str(account.department),
        "iss": "ruoyi",
        "userName": account.name,
        "userId": str(account.id),
        "tenantId": account.tenant,
        "exp": math.ceil(time.time() + life_s),
        "login_user_key": f"{account.id}-{serial}",
    }
    signed = f"{part(json.dumps({'alg': 'HS256'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.new(b'ampha', signed.encode(), hashlib.sha256).digest())}"


# ---------------------------------------------------------------- a call


@dataclass
class Call:
    """One request that was let in."""

    center: Ampha
    request: web.Request
    operation: str
    account: Account
    body: dict[str, Any]
    raw: Any = None  # the body when it is no object

    @property
    def user(self) -> str:
        return str(self.account.id)

    def wants(self, fault: Fault) -> bool:
        """Should this call meet this fault of the platform?"""
        return self.request.get(FAULT) is fault

    def page(self, rows: list[Any], *, number: str = "pageNum", size: str = "pageSize") -> list[Any]:
        first = (self.body[number] - 1) * self.body[size]
        return rows[first : first + self.body[size]]

    def pages(self, rows: list[Any]) -> dict[str, Any]:
        """The kernel's page of rows."""
        size = self.body["pageSize"]
        return {
            "pageNum": self.body["pageNum"],
            "totalPage": math.ceil(len(rows) / size),
            "total": len(rows),
            "rows": self.page(rows),
        }


Answer = dict[str, Any] | web.Response
Do = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """One operation.  `fields` None: the body is not looked at.  `query`: its query parameters."""

    name: str
    method: str
    path: str
    do: Do
    envelope: int
    fields: Fields | None = None
    query: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # query parameters
    roles: tuple[str, ...] = ()
    effect: bool = False


@dataclass
class Seen:
    """One request that reached a route."""

    at_ms: int
    operation: str
    user: str
    body: Any
    query: dict[str, str]
