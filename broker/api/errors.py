"""Errors of the queue API: Annex B of the standard, the body they are sent in, one log line a request.

What belongs here: how a refusal, a missing page, a broken store or a defect is answered.  What does
not: deciding that something is wrong.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from prometheus_client import Histogram

from broker.api.context import CALLER, REQUEST_ID, STARTED
from broker.store.accounts import NameInUse, NoSuchAccount, StrongerAccount, TenantInUse
from broker.store.centers import NoSuchCenter
from broker.store.creates import KeyReused, NameTaken
from broker.store.datasets import DatasetRefused, NoSuchDataset
from broker.store.jobs import NoSuchJob, WrongState
from broker.store.keys import KeyNameTaken, NoSuchApplication, NoSuchKey, TooManyKeys
from broker.store.links import LinkTaken, NoSuchLink
from broker.store.purses import NoSuchTenant, TooMuch
from broker.store.writer import Rejected, StoreUnavailable
from broker.telemetry import REQUESTS, log

ANNEX_B: Mapping[tuple[int, str], str] = {
    (401, "0101"): "用户认证失败",
    (401, "0102"): "token已过期",
    (401, "0103"): "账号已冻结",
    (400, "0201"): "参数类型错误",
    (400, "0202"): "参数值不合法",
    (400, "0203"): "参数缺失",
    (400, "0204"): "参数值超出允许范围",
    (400, "0205"): "训练作业名称包含非法字符",
    (400, "0206"): "训练作业名称超出指定长度范围",
    (400, "0207"): "训练作业描述超出指定长度范围",
    (400, "0208"): "训练作业名称已存在",
    (400, "0210"): "指定的智算中心不可用",
    (400, "0211"): "指定的资源规格不可用",
    (400, "0220"): "未指定作业镜像信息",
    (400, "0221"): "镜像ID不可用",
    (400, "0230"): "开始时间不得晚于结束时间",
    (400, "0240"): "训练作业不存在",
    (400, "0241"): "训练任务ID不存在",
    (500, "0100"): "调度器服务异常",
    (500, "0101"): "适配器服务异常",
}
"""Table B.1, all of it: (HTTP status, code) to description.  0101 stands there twice."""

RANK: Mapping[str, int] = {
    code: rank for rank, code in enumerate(("0203", "0201", "0206", "0205", "0207", "0204", "0202", "0230"))
}
"""Which of several failures of one request is told: the lowest; what is not here comes last."""

REFUSALS: Mapping[type[Rejected], str] = {
    NoSuchJob: "0240",
    WrongState: "0202",
    NameTaken: "0208",
    KeyReused: "0202",
    NoSuchCenter: "0210",
    NoSuchAccount: "0202",
    NoSuchDataset: "0202",
    DatasetRefused: "0202",
    NameInUse: "0202",
    StrongerAccount: "0202",
    TenantInUse: "0202",
    KeyNameTaken: "0202",
    TooManyKeys: "0204",
    NoSuchKey: "0202",
    NoSuchApplication: "0202",
    NoSuchTenant: "0202",
    TooMuch: "0204",
    LinkTaken: "0202",
    NoSuchLink: "0202",
}

RETRY_AFTER_S = 5
_NEAR = 64
"""Characters of a name that is not known which are compared with those that are."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", re.ASCII)
"""A request id of the caller's that is taken over, into answers and the log."""


class ApiError(Rejected):
    """A row of Annex B.  `detail` names the field, the value and what would be right."""

    def __init__(self, code: str, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.message = ANNEX_B[status, code]
        self.code = code
        self.detail = detail
        self.status = status


class TryLater(Exception):
    """A refusal for now, outside Annex B: `errorCode` is "", Retry-After says when to try again."""

    status = 503
    message = "服务暂不可用"

    def __init__(self, retry_after_s: int, detail: str) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.detail = detail


class TooMany(TryLater):
    """Somebody asks more often than one may."""

    status = 429
    message = "请求过于频繁"


class Overloaded(TryLater):
    """There is more to do than is done."""

    def __init__(self, detail: str) -> None:
        super().__init__(RETRY_AFTER_S, f"the broker has too much to do: {detail}; try again")


class TooSlow(TryLater):
    """The body of a request does not come."""

    status = 408
    message = "请求体接收超时"

    def __init__(self, detail: str) -> None:
        super().__init__(RETRY_AFTER_S, detail)


def first(failures: Iterable[ApiError]) -> ApiError | None:
    """The failure to tell, by RANK; the earliest of equals."""
    return min(failures, key=lambda f: RANK.get(f.code, len(RANK)), default=None)


def shown(value: Any) -> str:
    """A value as JSON for a detail, shortened; half of a UTF-16 pair, which no answer can have, escaped."""
    plain = isinstance(value, int | Decimal) and not isinstance(value, bool)
    text = str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "…"


def unknown(name: str, known: Iterable[str]) -> str:
    """Says that a field is not known, and which one may be meant."""
    near = difflib.get_close_matches(name[:_NEAR], list(known), n=1, cutoff=0.0)
    hint = f"; the nearest known one is {near[0]}" if near else ""
    return f"not a known field{hint}"


def error_response(
    request: web.Request,
    *,
    status: int,
    code: str,
    message: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    body = {
        "errorCode": code,
        "errorMsg": message,
        "detail": detail,
        "requestId": request.get(REQUEST_ID, ""),
    }
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware: request id, error bodies, log line, numbers."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    began = time.perf_counter()
    try:
        response = await handler(request)
    except Exception as error:
        response = _cut(request, error) if request.get(STARTED) else _answer(request, error)
    if not response.prepared:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
    _record(request, response, time.perf_counter() - began)
    return response


def log_unreadable() -> None:
    """What aiohttp cannot read as HTTP, and answers itself, becomes one log line without what was sent.

    It would write a traceback that quotes the line at fault, which may be a token.
    """
    logging.getLogger("aiohttp.server").addFilter(_unreadable)


def _unreadable(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    log.info("request.unreadable", status=error.code, error=type(error).__name__)
    return False


def _answer(request: web.Request, error: Exception) -> web.Response:
    match error:
        case ApiError():
            return error_response(
                request, status=error.status, code=error.code, message=error.message, detail=error.detail
            )
        case Rejected() if type(error) in REFUSALS:
            code = REFUSALS[type(error)]
            return error_response(
                request, status=400, code=code, message=ANNEX_B[400, code], detail=str(error)
            )
        case TryLater():
            answer = error_response(
                request,
                status=error.status,
                code="",
                message=error.message,
                detail=error.detail,
                headers={"Retry-After": str(error.retry_after_s)},
            )
            if isinstance(error, TooSlow):
                answer.force_close()  # what may still come is the rest of this body
            return answer
        case StoreUnavailable():
            log.error("store.unavailable", requestId=request[REQUEST_ID], error=str(error))
            return error_response(
                request,
                status=503,
                code="",
                message="服务暂不可用",
                detail="the broker's database does not answer; try again",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        case web.HTTPException():
            return _plain(request, error)
        case web.RequestPayloadError() | ConnectionError():
            detail = "the request's body ended before it was whole"
            return error_response(
                request, status=400, code="0201", message=ANNEX_B[400, "0201"], detail=detail
            )
    log.error("request.defect", requestId=request[REQUEST_ID], route=_route(request), exc_info=error)
    return error_response(
        request,
        status=500,
        code="0100",
        message=ANNEX_B[500, "0100"],
        detail="an unexpected error; the broker's log has it under this requestId",
    )


def _plain(request: web.Request, error: web.HTTPException) -> web.Response:
    """404, 405 and the like, outside Annex B; 405 must keep its Allow."""
    headers = {k: v for k, v in error.headers.items() if k.lower() not in ("content-type", "content-length")}
    detail = f"{request.method} {request.path}"
    return error_response(
        request, status=error.status, code="", message=error.reason, detail=detail, headers=headers
    )


def _cut(request: web.Request, error: Exception) -> web.Response:
    """A stream that broke off: the client must not take what it has for the whole."""
    if not isinstance(error, ConnectionError):
        log.error("request.defect", requestId=request[REQUEST_ID], route=_route(request), exc_info=error)
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def _route(request: web.Request) -> str:
    """The template of the route, never the path itself: ids and queries stay out of logs."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(none)"


@lru_cache(maxsize=1024)
def _answers(method: str, route: str, status: int) -> Histogram:
    """Looked up once: `labels` takes a lock and makes texts of what it is given."""
    return REQUESTS.labels(method, route, str(status))


def _record(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    route = _route(request)
    _answers(request.method, route, response.status).observe(seconds)
    caller = request.get(CALLER)
    log.info(
        "request",
        method=request.method,
        route=route,
        status=response.status,
        ms=round(seconds * 1000, 1),
        requestId=request[REQUEST_ID],
        account=caller.name if caller is not None else "",
    )
