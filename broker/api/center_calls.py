"""What operators ask of one center directly: a raw call, the doctor, the vendor commands.

What belongs here: who may, the audit, checked arguments, bounded answers, and the paths that
platforms call.  What does not: any platform.  Credentials are added and taken out by the adapters.
Every call is two rows of the event log: what was asked by whom, before it is made, and what came of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from aiohttp import web

from broker.adapter import (
    Adapter,
    AdapterError,
    Argument,
    ArgumentKind,
    Check,
    PlatformRequest,
    Refused,
    Unsupported,
    VendorCommand,
    callbacks_of,
    commands_of,
)
from broker.api import models, wire
from broker.api.auth import need_operator
from broker.api.centers import chosen, path_center
from broker.api.context import CALLER, CONTEXT
from broker.api.errors import ApiError, TryLater, first, shown, unknown
from broker.api.models import CenterCall, RunCommand
from broker.api.reading import MAX_NAME, no_query, read_body, read_bytes
from broker.api.routes import Media, Route
from broker.api.streaming import open_stream
from broker.client import answers
from broker.core.model import CenterId
from broker.store import centers
from broker.store.centers import CenterView

CALL_TIMEOUT_S = 60
"""Of a raw call; a vendor command states its own."""
DOCTOR_TIMEOUT_S = 300
STANDBY_RETRY_S = 5
"""What a platform that calls a standby is told to wait."""
MAX_ANSWER_BYTES = 1 << 20
"""More of an answer is cut off, and `truncated` says so."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# ---------------------------------------------------------------- a raw call


async def call(request: web.Request) -> web.Response:
    """POST /broker/v1/centers/{id}/call"""
    center = (await _may(request)).id
    body = await read_body(request, CenterCall)
    path = body.path.partition("?")[0]  # a query may hold what nobody should read in an audit
    content = None if body.body is None else body.body.encode()
    asked = {"method": body.method, "path": path, "bodyBytes": len(content or b"")}
    async with _asked(request, center, "center.call", asked):
        adapter = await request.app[CONTEXT].adapter(center)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            found = await adapter.call(body.method, body.path, content)
    text = found.body[:MAX_ANSWER_BYTES].decode(errors="replace")
    return wire.answer(
        {
            "centerId": center,
            "status": found.status,
            "contentType": found.content_type,
            "body": text,
            "truncated": len(found.body) > MAX_ANSWER_BYTES,
        }
    )


# ---------------------------------------------------------------- doctor


async def doctor(request: web.Request) -> web.StreamResponse:
    """POST /broker/v1/centers/{id}/doctor: one JSON object a line, as each check ends.

    What of the last report is not used comes first: it needs no answer of the center.
    """
    view = await _may(request)
    center = view.id
    async with _asked(request, center, "center.doctor", {}):
        response = await open_stream(request, {"Content-Type": "application/x-ndjson; charset=utf-8"})
        for name, reason in view.quarantined:
            await _tell(response, Check(f"pool {name}", False, f"not used: {reason}"))
        try:
            async with asyncio.timeout(DOCTOR_TIMEOUT_S):
                adapter = await request.app[CONTEXT].adapter(center)
                await _tell(response, Check("adapter", True, "its options are usable"))
                async for check in adapter.checks():
                    await _tell(response, check)
        except (AdapterError, TimeoutError) as error:
            await _tell(response, Check("doctor", False, _told(error, DOCTOR_TIMEOUT_S)))
        await response.write_eof()
    return response


async def _tell(response: web.StreamResponse, check: Check) -> None:
    line = json.dumps({"name": check.name, "ok": check.ok, "detail": check.detail}, ensure_ascii=False)
    await response.write(line.encode() + b"\n")


# ---------------------------------------------------------------- vendor commands


async def list_commands(request: web.Request) -> web.Response:
    """GET /broker/v1/centers/{id}/commands"""
    center = await _may(request)
    async with _asked(request, center.id):
        adapter = await request.app[CONTEXT].adapter(center.id)
    return wire.answer(
        {
            "centerId": center.id,
            "adapter": center.adapter,
            "commands": [_described(command) for command in commands_of(adapter)],
        }
    )


def _described(command: VendorCommand) -> dict[str, Any]:
    return {
        "name": command.name,
        "help": command.help,
        "timeoutS": command.timeout_s,
        "arguments": [
            {
                "name": each.name,
                "help": each.help,
                "kind": each.kind.value,
                "required": each.required,
                "many": each.many,
                "secret": each.secret,
                "choices": list(each.choices),
            }
            for each in command.arguments
        ],
    }


async def run_command(request: web.Request) -> web.Response:
    """POST /broker/v1/centers/{id}/commands/{name}"""
    center = (await _may(request)).id
    body = await read_body(request, RunCommand)
    async with _asked(request, center):
        adapter = await request.app[CONTEXT].adapter(center)
    command = _named(adapter, request.match_info["name"])
    arguments = checked(command, body.arguments)
    asked = {"command": command.name, "arguments": _auditable(command, arguments)}
    timeout_s = command.timeout_s
    async with (
        _asked(request, center, "center.command", asked, timeout_s=timeout_s),
        asyncio.timeout(timeout_s),
    ):
        result = await command.run(arguments)
    text = json.dumps(result, ensure_ascii=False, default=_plain)
    if len(text.encode()) > MAX_ANSWER_BYTES:
        cut = text.encode()[:MAX_ANSWER_BYTES].decode(errors="ignore")
        return wire.answer({"centerId": center, "result": cut, "truncated": True})
    return wire.answer({"centerId": center, "result": json.loads(text), "truncated": False})


def _named(adapter: Adapter, name: str) -> VendorCommand:
    found = {command.name: command for command in commands_of(adapter)}
    if name not in found:
        known = f"it has {', '.join(sorted(found))}" if found else "its platform has none"
        raise ApiError("0202", f"center {adapter.center} has no command {shown(name)}: {known}")
    return found[name]


def checked(command: VendorCommand, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the command takes them.  Raises ApiError, named from `arguments` on."""
    known = {each.name: each for each in command.arguments}
    more = next((name for name in given if name not in known), None)  # of many the first is told
    failures = (
        [] if more is None else [ApiError("0202", f"arguments.{more[:MAX_NAME]}: {unknown(more, known)}")]
    )
    values: dict[str, Any] = {}
    for name, argument in known.items():
        value = given.get(name)
        if value is None:
            if argument.kind is ArgumentKind.FLAG:
                values[name] = False
            elif argument.required:
                failures.append(ApiError("0203", f"arguments.{name} is required"))
            continue
        try:
            values[name] = _value(argument, value)
        except ApiError as failure:
            failures.append(failure)
    if (told := first(failures)) is not None:
        raise told
    return values


_TYPES: Mapping[ArgumentKind, tuple[type, str]] = {
    ArgumentKind.TEXT: (str, "a text"),
    ArgumentKind.FILE: (str, "a text"),
    ArgumentKind.WHOLE: (int, "an integer"),
    ArgumentKind.FLAG: (bool, "true or false"),
}


def _value(argument: Argument, value: Any) -> Any:
    name = f"arguments.{argument.name}"
    if argument.many:
        if not isinstance(value, list):
            raise ApiError("0201", f"{name} must be a list")
        one = Argument(argument.name, "", argument.kind, choices=argument.choices)
        return tuple(_value(one, each) for each in value)
    kind, words = _TYPES[argument.kind]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ApiError("0201", f"{name} must be {words}")
    if argument.choices and value not in argument.choices:
        raise ApiError("0202", f"{name} must be one of {', '.join(argument.choices)}, not {shown(value)}")
    return value


def _auditable(command: VendorCommand, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the audit keeps: no secrets, and of a file only its length."""
    kept: dict[str, Any] = {}
    for each in command.arguments:
        value = arguments.get(each.name)
        if value is None:
            continue
        if each.secret:
            value = "***"
        elif each.kind is ArgumentKind.FILE:
            value = f"{sum(map(len, value)) if each.many else len(value)} characters"
        kept[each.name] = list(value) if isinstance(value, tuple) else value
    return kept


def _plain(value: Any) -> Any:
    """What JSON has no form for; a fraction as text, exactly as the platform wrote it."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else str(value)
    raise TypeError(f"{type(value).__name__} cannot be shown")


# ---------------------------------------------------------------- what they share


async def _may(request: web.Request) -> CenterView:
    """The center of the path, for an operator.  Raises ApiError and NoSuchCenter."""
    no_query(request)
    need_operator(request[CALLER])
    (found,) = await chosen(request, path_center(request))
    return found


@asynccontextmanager
async def _asked(
    request: web.Request,
    center: CenterId,
    kind: str = "",
    asked: Mapping[str, Any] | None = None,
    *,
    timeout_s: int = CALL_TIMEOUT_S,
) -> AsyncIterator[None]:
    """Audit what the block does where `kind` names it, and answer for what the center refuses.

    Raises ApiError.
    """
    store, actor = request.app[CONTEXT].store, request[CALLER].actor

    async def note(kind: str, data: dict[str, Any]) -> None:
        await store.write(centers.record_call, center, kind, actor=actor, data=data)

    if kind:
        await note(kind, dict(asked or {}))
    outcome = "ok"
    try:
        yield
    except (Refused, Unsupported) as error:
        outcome = type(error).__name__
        raise ApiError("0202", f"center {center}: {error}") from error
    except (AdapterError, TimeoutError) as error:
        outcome = type(error).__name__
        raise ApiError("0101", f"center {center}: {_told(error, timeout_s)}", status=500) from error
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        if kind:
            await note(f"{kind}.ended", {**(asked or {}), "outcome": outcome})


def _told(error: BaseException, timeout_s: int) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s} s; whether it had an effect is unknown"
    return f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------- what platforms call


def platform_path(method: str, path: str) -> Handler:
    """The handler of a path that platforms call; the adapters judge who may."""

    async def handler(request: web.Request) -> web.Response:
        if not request.app[CONTEXT].leader():
            raise TryLater(STANDBY_RETRY_S, "this daemon is a standby: ask the one that leads")
        asked = PlatformRequest(dict(request.query), dict(request.headers), await read_bytes(request))
        for adapter in request.app[CONTEXT].open_adapters():
            for callback in callbacks_of(adapter):
                if (callback.method, callback.path) != (method, path):
                    continue
                found = await callback.answer(asked)
                if found is not None:
                    return web.Response(body=found.body, status=found.status, content_type=found.content_type)
        raise ApiError("0101", "no center of this broker has made this request", status=401)

    return handler


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/broker/v1/centers/{id}/call",
        call,
        "One call to a center's platform",
        "直接调用该智算中心的平台接口",
        body=models.CenterCall,
        answer=answers.CenterAnswer,
        refusals=("0210",),
        calls_center=True,
        operators=True,
        example={"method": "GET", "path": "/api/v1/quota"},
    ),
    Route(
        "POST",
        "/broker/v1/centers/{id}/doctor",
        doctor,
        "Check a center",
        "检查该智算中心",
        answer=Media(
            ("application/x-ndjson",), "One check a line, as each ends.", "每行一项检查，逐项输出。"
        ),
        refusals=("0210",),
        operators=True,
    ),
    Route(
        "GET",
        "/broker/v1/centers/{id}/commands",
        list_commands,
        "What only this center's platform can do",
        "该智算中心平台特有的命令",
        answer=answers.Commands,
        refusals=("0210",),
        calls_center=True,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/centers/{id}/commands/{name}",
        run_command,
        "Run a command of this center's platform",
        "执行该智算中心平台的命令",
        body=models.RunCommand,
        answer=answers.CommandResult,
        refusals=("0210",),
        calls_center=True,
        operators=True,
        example={"arguments": {}},
    ),
)
