"""Training jobs: create, list, show, stop, delete; and what online services do the same way.

A create is one write and waits for no center; everything after it is the work of the loops.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from aiohttp import web

from broker.api import models, wire
from broker.api.admission import admit
from broker.api.context import CALLER, CONTEXT, Context, shutting_down
from broker.api.errors import ApiError, shown
from broker.api.fields import OWNER, PERIOD, Choice, Text, Texts, paged
from broker.api.models import CreateJob
from broker.api.paging import paging, period
from broker.api.prices import expected_micro
from broker.api.reading import Query, no_query, parse, read_object
from broker.api.routes import Route
from broker.client import answers
from broker.core.identity import job_id
from broker.core.localtime import minute_of_week
from broker.core.model import JobId, JobRequest, Kind, PublicStatus, TenantId
from broker.store import codec, creates, jobs, views
from broker.store.accounts import Caller
from broker.store.creates import Admission, Asked, NewJob
from broker.store.jobs import JobFilter, JobSummary, JobView, NoSuchJob

STOP_WAIT_S = 2.0
STOP_POLL_S = 0.07

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
KEY_HEADER = (
    "The same key and body give back the same job: 1 to 255 visible ASCII characters.",
    "相同的键与请求体返回同一作业；1 至 255 个可见 ASCII 字符。",
)
_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)


def path_job(request: web.Request) -> JobId:
    """The job id of the path.  Raises NoSuchJob for what cannot be one."""
    text = request.match_info["id"]
    if not _ID.fullmatch(text):
        raise NoSuchJob(f"there is no job {text[:64]!r}")
    return JobId(text)


# ---------------------------------------------------------------- create


async def create(request: web.Request) -> web.Response:
    """POST /trainjob"""
    job = await create_job(request, models.CreateTrainJob, Kind.TRAIN)
    return wire.answer(wire.created(job, request.app[CONTEXT].timezone))


async def create_job(request: web.Request, model: type[CreateJob], kind: Kind) -> JobSummary:
    """The new job of the body, or the earlier one of a repeated key."""
    no_query(request)
    data = await read_object(request)
    body = parse(model, data)
    key = _idempotency_key(request)
    body_hash = _body_hash(kind, data) if key else ""
    return await make_job(request.app[CONTEXT], request[CALLER], body, kind, key=key, body_hash=body_hash)


async def make_job(
    context: Context,
    caller: Caller,
    body: CreateJob,
    kind: Kind,
    *,
    key: str = "",
    body_hash: str = "",
    more_labels: Mapping[str, str] = MappingProxyType({}),
) -> JobSummary:
    """Judged and written in one transaction, together with what others ask for at the same time.

    `more_labels` are the broker's own.
    """
    config = body.config

    def judge(facts: Admission) -> NewJob:
        wanted = admit(config, kind, caller, facts, context)
        if more_labels:
            wanted = replace(wanted, labels=tuple(sorted({**config.labels, **more_labels}.items())))
        return NewJob(
            id=job_id(context.clock(), secrets.token_bytes(4)),
            name=body.job_name,
            desc=body.job_desc,
            account=caller.id,
            tenant=caller.tenant,
            request=wanted,
            class_key=context.class_key(wanted, TenantId(caller.tenant)),
            processor=codec.kind_of(wanted.spec),
            actor=caller.actor,
            estimated_micro=_expected(context, wanted, facts),
        )

    asked = Asked(
        caller=caller,
        name=body.job_name,
        judge=judge,
        image=config.image_id,
        datasets=config.dataset_ids,
        key=key,
        body_hash=body_hash,
    )
    return await context.store.write_together(creates.create_jobs, asked)


def _expected(context: Context, request: JobRequest, facts: Admission) -> int | None:
    """Micro-CNY that a job is expected to cost where it is cheapest now."""
    known = facts.expected_micro
    asked = (request.centers, request.spec, request.min_gflops, request.nodes, request.estimate_s)
    if asked not in known:
        minute = minute_of_week(context.clock(), context.timezone)
        known[asked] = expected_micro(facts.centers, request, context.catalogue, minute)
    return known[asked]


def _idempotency_key(request: web.Request) -> str:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return ""
    if not _KEY.fullmatch(key):
        raise ApiError(
            "0202", f"Idempotency-Key: must be 1 to 255 visible ASCII characters, not {shown(key)}"
        )
    return key


def _body_hash(kind: Kind, data: dict[str, Any]) -> str:
    """Of what was said, whatever the order of fields and the white space."""
    canonical = json.dumps([kind, data], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


# ---------------------------------------------------------------- list, show

NEWEST = 1000
"""So many jobs from the first are read as a short page."""

_SORTS = ("id", "name", "status", "createTime")
LIST_QUERY = (
    *paged(_SORTS, default="id"),
    Choice("status", "In this status.", "作业状态。", options=tuple(each.value for each in PublicStatus)),
    Text("centerId", "At this center.", "所在智算中心。"),
    Text("processor", "Wants cards of this type, such as GPU.", "处理器类型，如 GPU。"),
    *PERIOD,
    Text("query", "Text in name or description.", "名称或描述中的文字。"),
    Texts(
        "label", "A label as key=value; all given must be there.", "标签 key=value，可多次给出，须全部具备。"
    ),
    OWNER,
)


async def list_all(request: web.Request) -> web.Response:
    """GET /trainjob"""
    zone = request.app[CONTEXT].timezone
    items, total = await page_of(request, Kind.TRAIN)
    return wire.answer({"items": [wire.listed(job, zone) for job in items], "totalSize": total})


async def page_of(request: web.Request, kind: Kind) -> tuple[list[JobSummary], int]:
    """The jobs that the query asks for, and how many there are in all."""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        status = query.choice("status")
        after, before = period(query, context.timezone)
        chosen = JobFilter(
            kind=kind,
            status=PublicStatus(status) if status else None,
            center=query.text("centerId"),
            processor=query.text("processor"),
            created_after_ms=after,
            created_before_ms=before,
            query=query.text("query"),
            labels=tuple(_labels(query)),
            mine=query.choice("owner") == "me",
        )
    # The newest jobs are the first steps of an index; anything else may walk through all jobs.
    newest = chosen == JobFilter(kind=kind) and wanted.sort == "id" and wanted.page * wanted.size <= NEWEST
    read = context.store.page if newest else context.store.read
    return await read(views.job_page, request[CALLER], chosen, wanted)


def _labels(query: Query) -> Iterator[tuple[str, str]]:
    for text in query.texts("label"):
        key, equals, value = text.partition("=")
        if not equals or not key:
            query.fail("0202", "label", f"must be key=value, not {shown(text)}")
        yield key, value


async def read_job(request: web.Request, kind: Kind | None = Kind.TRAIN, *, costs: bool = False) -> JobView:
    """The job of the path with its runs, and if so wanted what they cost.  Raises NoSuchJob."""
    context = request.app[CONTEXT]
    return await context.store.look(
        jobs.show_job, request[CALLER], path_job(request), kind, context.store.clock(), costs=costs
    )


async def show(request: web.Request) -> web.Response:
    """GET /trainjob/{id}"""
    no_query(request)
    job = await read_job(request)
    return wire.answer(wire.shown_job(job, request.app[CONTEXT].timezone))


# ---------------------------------------------------------------- stop, delete


async def stop(request: web.Request) -> web.Response:
    """POST /trainjob/{id}/stop"""
    return await stop_job(request, Kind.TRAIN)


async def stop_job(request: web.Request, kind: Kind) -> web.Response:
    """Asks, waits a moment for the end and answers what is true."""
    no_query(request)
    store = request.app[CONTEXT].store
    loop = asyncio.get_running_loop()
    deadline = loop.time() + STOP_WAIT_S
    job = await store.write(jobs.stop_job, request[CALLER], path_job(request), kind)
    while job.ended_ms is None and loop.time() < deadline:
        if await shutting_down(request, STOP_POLL_S):
            break
        job = await store.read(views.job_summary, job.id)
    return wire.answer(wire.stopped(job, request.app[CONTEXT].timezone))


async def delete(request: web.Request) -> web.Response:
    """DELETE /trainjob/{id}"""
    return await delete_job(request, Kind.TRAIN)


async def delete_job(request: web.Request, kind: Kind) -> web.Response:
    """Removes the job from sight, with its files."""
    no_query(request)
    context = request.app[CONTEXT]
    removed = await context.store.write(jobs.delete_job, request[CALLER], path_job(request), kind)
    for run in removed:
        await asyncio.to_thread(context.files.remove_run, run)
    return web.Response(status=204)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/trainjob",
        create,
        "Create a training job",
        "创建训练作业",
        body=models.CreateTrainJob,
        answer=answers.JobItem,
        refusals=("0205", "0206", "0207", "0208", "0210", "0211", "0220", "0221"),
        headers={"Idempotency-Key": KEY_HEADER},
        example={
            "jobName": "bert_1",
            "config": {
                "specId": "nvidia-gpu-a800-80g-x8-128c-1024g-x86",
                "nodeCount": 2,
                "imageUrl": "registry.example/pytorch:2.3",
                "command": "bash run.sh",
            },
        },
    ),
    Route(
        "GET",
        "/trainjob",
        list_all,
        "The training jobs",
        "训练作业列表",
        query=LIST_QUERY,
        answer=answers.JobPage,
        refusals=("0210", "0230"),
    ),
    Route(
        "GET",
        "/trainjob/{id}",
        show,
        "A training job with its tasks",
        "训练作业详情",
        answer=answers.Job,
        refusals=("0240",),
    ),
    Route(
        "DELETE",
        "/trainjob/{id}",
        delete,
        "Delete a job that has ended or is UNKNOWN, with its logs and results",
        "删除已结束或状态为 UNKNOWN 的训练作业及其日志与结果",
        refusals=("0240",),
    ),
    Route(
        "POST",
        "/trainjob/{id}/stop",
        stop,
        "Stop a job that is PENDING or RUNNING",
        "停止等待或运行中的训练作业",
        answer=answers.StopAnswer,
        refusals=("0240",),
    ),
)
