"""Online services as jobs: create, list, show, stop, delete, logs.

The standard defines the create alone (A.56-A.60); the others are as for training jobs.  What belongs
here: the paths below /onlineJob.  What does not: what both kinds do the same way (trainjob.py) and
passing requests on to a running service (services.py).
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from broker.api import logs, trainjob, wire
from broker.api.context import CONTEXT, Context
from broker.api.models import CreateJob
from broker.api.reading import no_query
from broker.api.routes import Route
from broker.api.services import SERVICES
from broker.client import answers
from broker.core.model import Kind
from broker.store.jobs import JobSummary, JobView


class CreateOnlineJob(CreateJob):
    """An online service: a job without an end of its own, with an address."""


# ---------------------------------------------------------------- as objects of the wire


def created(job: JobSummary | JobView, context: Context) -> dict[str, Any]:
    """A service's metadata has its address; the standard leaves its owner out."""
    own = {name: value for name, value in wire.metadata(job, context.timezone).items() if name != "userId"}
    url = wire.service_url(job.id, context.services_url)
    return {"metadata": {**own, "url": url}, "status": job.status.value}


def listed(job: JobSummary, context: Context) -> dict[str, Any]:
    return {**wire.listed(job, context.timezone), **created(job, context)}


def shown(job: JobView, context: Context) -> dict[str, Any]:
    """With what it asked for as a service, and its tasks; every start is one."""
    return {
        **created(job, context),
        "public": job.request.public,
        "port": job.request.port,
        "restarts": job.retries_used,
        "tasks": wire.shown_job(job, context.timezone)["tasks"],
    }


# ---------------------------------------------------------------- handlers


async def create(request: web.Request) -> web.Response:
    """POST /onlineJob"""
    job = await trainjob.create_job(request, CreateOnlineJob, Kind.ONLINE)
    return wire.answer(created(job, request.app[CONTEXT]))


async def list_all(request: web.Request) -> web.Response:
    """GET /onlineJob"""
    context = request.app[CONTEXT]
    items, total = await trainjob.page_of(request, Kind.ONLINE)
    return wire.answer({"items": [listed(job, context) for job in items], "totalSize": total})


async def show(request: web.Request) -> web.Response:
    """GET /onlineJob/{id}"""
    no_query(request)
    job = await trainjob.read_job(request, Kind.ONLINE)
    return wire.answer(shown(job, request.app[CONTEXT]))


async def stop(request: web.Request) -> web.Response:
    """POST /onlineJob/{id}/stop"""
    answer = await trainjob.stop_job(request, Kind.ONLINE)
    request.app[SERVICES].forget()
    return answer


async def delete(request: web.Request) -> web.Response:
    """DELETE /onlineJob/{id}"""
    answer = await trainjob.delete_job(request, Kind.ONLINE)
    request.app[SERVICES].forget()
    return answer


async def log_link(request: web.Request) -> web.Response:
    """GET /onlineJob/{id}/tasks/{taskId}/logs/url"""
    return await logs.link_of(request, Kind.ONLINE)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/onlineJob",
        create,
        "Create an online service",
        "创建在线服务",
        body=CreateOnlineJob,
        answer=answers.ServiceItem,
        refusals=("0205", "0206", "0207", "0208", "0210", "0211", "0220", "0221"),
        headers={"Idempotency-Key": trainjob.KEY_HEADER},
        example={
            "jobName": "chat_1",
            "config": {
                "specId": "nvidia-gpu-a800-80g-x1-16c-128g-x86",
                "imageId": "pytorch-2.3",
                "command": "serve --port $BROKER_PORT",
                "public": False,
            },
        },
    ),
    Route(
        "GET",
        "/onlineJob",
        list_all,
        "The online services",
        "在线服务列表",
        query=trainjob.LIST_QUERY,
        answer=answers.ServicePage,
        refusals=("0210", "0230"),
    ),
    Route(
        "GET",
        "/onlineJob/{id}",
        show,
        "An online service with its address and its tasks",
        "在线服务详情及其访问地址",
        answer=answers.ServiceDetail,
        refusals=("0240",),
    ),
    Route(
        "DELETE",
        "/onlineJob/{id}",
        delete,
        "Delete a service that has ended or is UNKNOWN, with its logs",
        "删除已结束或状态为 UNKNOWN 的在线服务及其日志",
        refusals=("0240",),
    ),
    Route(
        "POST",
        "/onlineJob/{id}/stop",
        stop,
        "Stop a service that is PENDING or RUNNING",
        "停止等待或运行中的在线服务",
        answer=answers.StopAnswer,
        refusals=("0240",),
    ),
    Route(
        "GET",
        "/onlineJob/{id}/tasks/{taskId}/logs/url",
        log_link,
        "A signed link to the log of a start of a service",
        "获取在线服务某次启动的日志临时链接",
        query=logs.LINK_QUERY,
        answer=answers.LogLink,
        refusals=("0203", "0240", "0241"),
    ),
)
