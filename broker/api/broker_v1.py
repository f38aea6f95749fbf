"""The broker's own paths beyond the standard: about itself, jobs in full, and what operators settle."""

from __future__ import annotations

from aiohttp import web

from broker.api import models, wire, wire_catalogue, wire_explain, wire_money
from broker.api.auth import need_operator
from broker.api.centers import chosen, path_center
from broker.api.context import CALLER, CONTEXT, FORESIGHT
from broker.api.errors import ApiError
from broker.api.fields import Flag, Whole
from broker.api.foresight import Foreseen
from broker.api.models import CreateJob, Resolve
from broker.api.reading import Query, no_query, parse, read_body
from broker.api.routes import Route
from broker.api.trainjob import make_job, path_job, read_job
from broker.client import answers
from broker.core.events import Resolved
from broker.core.model import CenterState, JobState, Kind, PublicStatus, RemoteId, RunState
from broker.store import centers, jobs, purses, rounds, views
from broker.store.creates import NameTaken

RETRY_OF = "retryOf"
"""Label of a job that repeats another one."""


async def info(request: web.Request) -> web.Response:
    """GET /broker/v1/info"""
    no_query(request)
    context = request.app[CONTEXT]
    return wire.answer(
        {
            "version": context.version,
            "name": context.server_name,
            "installation": context.installation,
            "timezone": context.timezone.key,
            "submit": {"image": context.submit_image},
            "limits": {
                "maxPageSize": context.max_page_size,
                "maxBodyBytes": context.max_body_bytes,
                "maxUploadBytes": context.max_upload_bytes,
            },
        }
    )


async def me(request: web.Request) -> web.Response:
    """GET /broker/v1/me"""
    no_query(request)
    caller, store = request[CALLER], request.app[CONTEXT].store
    purse = await store.read(purses.view, caller, caller.tenant, store.clock())
    return wire.answer(
        {
            "id": caller.id,
            "name": caller.name,
            "tenant": caller.tenant,
            "role": caller.role.value,
            "vip": caller.may_use_vip,
            "balance": wire_money.balance(purse),
        }
    )


# ---------------------------------------------------------------- jobs


async def show(request: web.Request) -> web.Response:
    """GET /broker/v1/jobs/{id}"""
    no_query(request)
    context = request.app[CONTEXT]
    job = await read_job(request, None, costs=True)
    return wire.answer(wire_money.job_detail(job, context.timezone, context.services_url))


EXPLAIN_QUERY = (
    Flag(
        "whatIf",
        "Whether to look for changes that would start it now; the default is true.",
        "是否查找使其立即启动的改动；默认 true。",
        also=("0", "1"),
    ),
)


async def explain(request: web.Request) -> web.Response:
    """GET /broker/v1/jobs/{id}/explain"""
    with Query(request) as query:
        changes = query.flag("whatIf")
    context, foresight = request.app[CONTEXT], request.app[FORESIGHT]
    store = context.store
    why = await store.read(views.explanation, request[CALLER], path_job(request), store.clock())
    job, foreseen = why.job, Foreseen()
    if job.state is JobState.QUEUED:
        foreseen = await foresight.of_waiting(job.id, job.request, changes=changes is not False)
    elif job.status is PublicStatus.RUNNING:
        foreseen = await foresight.of_running(job.id)
    told = wire_explain.explained(job, why.position, why.reasons, foreseen, context.timezone)
    data = [{"datasetId": each.dataset, **wire_catalogue.copy(each, context.timezone)} for each in why.data]
    return wire.answer({**told, "data": data})


async def retry(request: web.Request) -> web.Response:
    """POST /broker/v1/jobs/{id}/retry: the same request as a new job of the caller's."""
    no_query(request)
    context, caller = request.app[CONTEXT], request[CALLER]
    job = await read_job(request, None)
    if not job.state.ended:
        raise ApiError("0202", f"job {job.id} is {job.status}; only a job that has ended is run again")
    config = wire.config(job.request)
    others = {key: value for key, value in config["labels"].items() if key != RETRY_OF}
    body = parse(
        CreateJob, {"jobName": job.name, "jobDesc": job.desc, "config": {**config, "labels": others}}
    )
    kind = job.request.kind
    while True:
        name = await context.store.read(jobs.free_name, caller.id, job.name)
        named = body.model_copy(update={"job_name": name})
        try:
            created = await make_job(context, caller, named, kind, more_labels={RETRY_OF: job.id})
        except NameTaken:
            continue  # somebody took it meanwhile; the next name is another one
        answer = wire.created(created, context.timezone)
        if created.kind is Kind.ONLINE:
            answer["metadata"]["url"] = wire.service_url(created.id, context.services_url)
        return wire.answer(answer)


async def resolve(request: web.Request) -> web.Response:
    """POST /broker/v1/jobs/{id}/resolve"""
    no_query(request)
    caller = request[CALLER]
    need_operator(caller)
    body = await read_body(request, Resolve)
    context = request.app[CONTEXT]
    verdict = Resolved(
        context.store.clock(),
        never_ran=bool(body.never_ran),
        remote=RemoteId(body.remote) if body.remote is not None else None,
        ended=RunState(body.ended) if body.ended is not None else None,
    )
    job = await context.store.write(jobs.resolve_job, caller, path_job(request), verdict)
    return wire.answer(wire.created(job, context.timezone))


# ---------------------------------------------------------------- rounds

ROUNDS_QUERY = (Whole("limit", "At most so many.", "最多条数。", least=1, most=1000, default=50),)


async def list_rounds(request: web.Request) -> web.Response:
    """GET /broker/v1/rounds: the newest first."""
    need_operator(request[CALLER])
    context = request.app[CONTEXT]
    with Query(request) as query:
        limit = query.whole("limit")
    made = await context.store.read(rounds.last_rounds, limit)
    return wire.answer({"items": [wire.round_made(each, context.timezone) for each in made]})


# ---------------------------------------------------------------- centers


async def list_centers(request: web.Request) -> web.Response:
    """GET /broker/v1/centers: what their last reports were, and what of them is not used and why."""
    no_query(request)
    need_operator(request[CALLER])
    context = request.app[CONTEXT]
    known = await context.store.read(centers.list_centers)
    return wire.answer({"items": [wire.center_report(each, context.timezone) for each in known]})


async def drain(request: web.Request) -> web.Response:
    """POST /broker/v1/centers/{id}/drain"""
    return await _command(request, CenterState.DRAIN)


async def resume(request: web.Request) -> web.Response:
    """POST /broker/v1/centers/{id}/resume: what the file says holds again."""
    return await _command(request, None)


async def _command(request: web.Request, state: CenterState | None) -> web.Response:
    no_query(request)
    caller = request[CALLER]
    need_operator(caller)
    center = path_center(request)
    store = request.app[CONTEXT].store
    await store.write(centers.set_operator_state, center, state, actor=caller.actor)
    (view,) = await chosen(request, center)
    return wire.answer({"centerId": view.id, "state": view.state.value})


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/info",
        info,
        "Version, name, time zone and limits of this broker",
        "版本、名称、时区与限额",
        answer=answers.Info,
    ),
    Route(
        "GET",
        "/broker/v1/me",
        me,
        "Whom the token belongs to",
        "当前 Token 所属账号",
        answer=answers.Me,
    ),
    Route(
        "GET",
        "/broker/v1/jobs/{id}",
        show,
        "Everything about a job",
        "作业的全部信息",
        answer=answers.JobDetail,
        refusals=("0240",),
    ),
    Route(
        "GET",
        "/broker/v1/jobs/{id}/explain",
        explain,
        "Why a job waits, or why it is where it is",
        "作业为何等待，或为何在此运行",
        query=EXPLAIN_QUERY,
        answer=answers.Explanation,
        refusals=("0240",),
    ),
    Route(
        "POST",
        "/broker/v1/jobs/{id}/retry",
        retry,
        "An ended job once more, as a new job",
        "以新作业重新运行已结束的作业",
        answer=answers.JobItem,
        refusals=("0207", "0210", "0211", "0220", "0221", "0240"),
    ),
    Route(
        "POST",
        "/broker/v1/jobs/{id}/resolve",
        resolve,
        "Settle a run in doubt or lost",
        "裁定存疑或失联的运行",
        body=models.Resolve,
        answer=answers.JobItem,
        refusals=("0240",),
        operators=True,
        example={"neverRan": True},
    ),
    Route(
        "GET",
        "/broker/v1/rounds",
        list_rounds,
        "The newest placement rounds",
        "最近的调度轮次",
        query=ROUNDS_QUERY,
        answer=answers.Rounds,
        operators=True,
    ),
    Route(
        "GET",
        "/broker/v1/centers",
        list_centers,
        "The centers' last reports, and what of them is not used",
        "各智算中心最近一次上报及未采用的部分",
        answer=answers.CenterReports,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/centers/{id}/drain",
        drain,
        "Send no more runs to a center",
        "停止向该智算中心派发",
        answer=answers.CenterCommand,
        refusals=("0210",),
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/centers/{id}/resume",
        resume,
        "What the configuration says of a center holds again",
        "恢复配置文件中该智算中心的状态",
        answer=answers.CenterCommand,
        refusals=("0210",),
        operators=True,
    ),
)
