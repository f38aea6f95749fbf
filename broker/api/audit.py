"""The audit log: what people changed, when, and with what."""

from __future__ import annotations

import re
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web

from broker.api import times, wire
from broker.api.auth import kept_tenant
from broker.api.context import CALLER, CONTEXT
from broker.api.errors import shown
from broker.api.fields import Moment, Text, paged
from broker.api.paging import paging
from broker.api.reading import Query
from broker.api.routes import Route
from broker.client import answers
from broker.store import audit
from broker.store.accounts import KEY_SIGN
from broker.store.audit import AuditFilter, EventView

_KIND = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,32})?", re.ASCII)


async def list_all(request: web.Request) -> web.Response:
    """GET /broker/v1/audit: operators see all, tenant-admins their tenant's."""
    context = request.app[CONTEXT]
    only = kept_tenant(request[CALLER])
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        kind = query.text("kind")
        if kind and not _KIND.fullmatch(kind):
            query.fail(
                "0202", "kind", f"must be a kind such as account.frozen, or account, not {shown(kind)}"
            )
        from_ms = query.moment("from", context.timezone, last=False)
        to_ms = query.moment("to", context.timezone, last=True)
        if from_ms is not None and to_ms is not None and from_ms > to_ms:
            query.fail("0230", "from", "must not be later than to")
        chosen = AuditFilter(query.text("actor"), kind, from_ms, to_ms)
    found, total = await context.store.read(audit.audit, only, chosen, wanted)
    items = [{**shown_event(each, context.timezone), "tenant": each.tenant} for each in found]
    return wire.answer({"items": items, "totalSize": total})


def shown_event(event: EventView, zone: ZoneInfo) -> dict[str, Any]:
    """An event as the audit and the stream of events show it."""
    actor, _, key = event.actor.partition(KEY_SIGN)
    return {
        "id": event.seq,
        "time": times.written(event.at_ms, zone),
        "timeMs": event.at_ms,
        "kind": event.kind,
        "actor": actor,
        "apiKey": key,
        "jobId": event.job,
        "taskId": event.run,
        "centerId": event.center,
        "data": event.data,
    }


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/audit",
        list_all,
        "What people changed; a tenant-admin sees the own tenant's",
        "审计日志；租户管理员仅见本租户",
        query=(
            *paged(("time",), default="time"),
            Text("actor", "The account that did it.", "操作者账号。"),
            Text("kind", "A kind, or the first word of several.", "事件类型，或其首个单词。"),
            Moment("from", "Then or later.", "不早于。"),
            Moment("to", "Then or earlier.", "不晚于。"),
        ),
        answer=answers.AuditPage,
        operators=True,
    ),
)
