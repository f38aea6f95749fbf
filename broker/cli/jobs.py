"""The commands about jobs that exist: jobs, show, wait, explain, logs, stop, retry, delete, download.

What belongs here: which calls each makes and what it prints.  What does not: submitting
(broker.cli.submit), the waiting loop (broker.cli.wait).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.app import (
    JOBS,
    Command,
    Failed,
    WrongUsage,
    app,
    caller,
    connect,
    notice,
    print_json,
    tell_rest,
)
from broker.cli.display import clean, duration, fields, table
from broker.cli.named_jobs import delete_each, stop_each, with_job
from broker.cli.options import Json, Limit, Page
from broker.client import TRAIN, Client, RequestFailed, Unreachable

if TYPE_CHECKING:
    from broker.client.answers import Expected, Explanation, ForecastError, JobDetail, RunDetail

LIVE = ("PENDING", "RUNNING")


def _own_jobs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of the caller's newest jobs for the shell; for stop those that run or wait."""
    try:
        who = caller()
        query = {"owner": "me", "sort": "createTime", "order": "desc"}
        items = Client(who.url, who.token, answer_s=1.0).jobs(query)["items"]
    except (Unreachable, RequestFailed, WrongUsage, ValueError):
        return []  # the shell goes on without proposals
    wanted = [item for item in items if ctx.info_name != "stop" or item["status"] in LIVE]
    ids = [(item["metadata"]["id"], f"{item['metadata']['name']} {item['status']}") for item in wanted]
    return ids + [(item["metadata"]["name"], item["status"]) for item in wanted if incomplete]


JobArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="A job's id, or the name of a job of yours.", autocompletion=_own_jobs),
]
JobArguments = Annotated[
    list[str],
    typer.Argument(metavar="ID", help="Ids, or names of jobs of yours.", autocompletion=_own_jobs),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="K=V", help="With this label; repeatable.")
]


@app.command("jobs", cls=Command, rich_help_panel=JOBS)
def jobs(
    status: Annotated[str | None, typer.Option(help="PENDING, RUNNING, SUCCEEDED, FAILED, ...")] = None,
    center: Annotated[str | None, typer.Option(metavar="CENTER", help="At this center.")] = None,
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="In name or description.")] = None,
    label: Labels = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own.")] = False,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    answer = connect().jobs(
        {
            "status": status.upper() if status else None,
            "centerId": center,
            "query": query,
            "label": label,
            "owner": "me" if mine else None,
            "pageSize": limit,
            "page": page,
            "sort": "createTime",
            "order": "desc",
        }
    )
    if as_json:
        print_json(answer)
        return
    rows = []
    for item in answer["items"]:
        meta = item["metadata"]
        facts = (item["status"], item.get("centerId"), item.get("priority"), meta["createTime"])
        rows.append((meta["id"], meta["name"], *facts, item.get("finishTime")))
    print(table(("ID", "NAME", "STATUS", "CENTER", "PRIORITY", "CREATED", "FINISHED"), rows))
    tell_rest(len(rows), answer["totalSize"])


@app.command("show", cls=Command, rich_help_panel=JOBS)
def show(job: JobArgument, as_json: Json = False) -> None:
    """Show everything about a job: its request, each attempt, its cost."""
    client = connect()
    detail = with_job(client, job, client.job)
    if as_json:
        print_json(detail)
        return
    print(_summary(detail))
    print("\nRequest")
    print(_indented(detail.get("config", {})))
    for run in detail.get("runs", []):
        print(f"\nAttempt {run.get('attempt', '')}")
        print(_attempt(run))


def _summary(job: JobDetail) -> str:
    costs: Mapping[str, Any] = job.get("costs", {})
    return fields(
        [
            ("id", job["id"]),
            ("name", job["name"]),
            ("description", job.get("desc")),
            ("kind", job.get("kind")),
            ("url", job.get("url")),
            ("owner", job.get("owner")),
            ("tenant", job.get("tenant")),
            ("status", job["status"]),
            ("state", job.get("state") if job.get("state") != job["status"] else None),
            ("message", job.get("message")),
            ("stop asked for", job.get("stopReason")),
            ("began as", job.get("originId") if job.get("hops") else None),
            ("came by", " -> ".join(job.get("hops", [])) or None),
            ("created", job.get("createTime")),
            ("finished", job.get("finishTime")),
            ("retries used", job.get("retriesUsed") or None),
            ("cost", f"{job.get('cost', '0.00')} {job.get('currency', 'CNY')}"),
            ("expected cost", costs.get("estimated")),
            ("billed", costs.get("billed")),
            ("why there", costs.get("story")),
        ]
    )


def _attempt(run: RunDetail) -> str:
    costs: Mapping[str, Any] = run.get("costs", {})
    began, ended = run.get("startTimeMs"), run.get("finishTimeMs")
    return fields(
        [
            ("task", run.get("taskId")),
            ("status", run.get("status")),
            ("state", run.get("state") if run.get("state") != run.get("status") else None),
            ("center", " ".join(filter(None, (run.get("centerId"), run.get("centerName"))))),
            ("pool", run.get("pool")),
            ("spec", run.get("specName") or run.get("specId")),
            ("nodes", run.get("nodeCount")),
            ("remote id", run.get("remoteId")),
            ("submitted", run.get("submitTime")),
            ("started", run.get("startTime")),
            ("finished", run.get("finishTime")),
            ("ran for", duration((ended - began) / 1000) if began and ended else None),
            ("checkpoint", run.get("checkpointTime")),
            ("exit code", run.get("exitCode")),
            ("failure", run.get("failure")),
            ("message", run.get("message")),
            ("address", run.get("address")),
            ("price per hour", run.get("pricePerHour")),
            ("cost", run.get("cost")),
            ("expected cost", costs.get("estimated")),
            ("cost by the center", costs.get("center")),
            ("billed", costs.get("billed")),
            ("not billed", costs.get("notBilled")),
            ("placement", _plain(run.get("placement"))),
        ],
        indent="  ",
    )


def _indented(document: Mapping[str, Any]) -> str:
    """The fields of a JSON object, those that say something."""
    return fields(((name, _plain(value)) for name, value in document.items()), indent="  ")


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if value and isinstance(value, dict | list) else value


@app.command("wait", cls=Command, rich_help_panel=JOBS)
def wait(job: JobArguments, as_json: Json = False) -> None:
    """Wait until all have ended; exit 0 only if all succeeded."""
    from broker.cli.wait import follow

    client = connect()
    known = [with_job(client, each, client.job)["id"] for each in job]
    ended = follow(client, known)
    if as_json:
        print_json(ended[0] if len(ended) == 1 else {"items": ended, "totalSize": len(ended)})
    if any(each["status"] != "SUCCEEDED" for each in ended):
        raise Failed("")


@app.command("explain", cls=Command, rich_help_panel=JOBS)
def explain(job: JobArgument, as_json: Json = False) -> None:
    """Tell why a job waits, or why it is where it is."""
    client = connect()
    answer = with_job(client, job, client.explain)
    if as_json:
        print_json(answer)
    else:
        _print_explanation(answer)


def _print_explanation(answer: Explanation) -> None:
    eta = answer.get("eta")
    print(
        fields(
            [
                ("job", answer["id"]),
                ("status", answer["status"]),
                ("position", answer.get("position")),
                ("starts in", _likely(eta)),
                ("likely at", eta and eta.get("centerId")),
                ("so far", _measured(eta and eta.get("error"))),
                ("ends in", _likely(answer.get("expectedEnd"))),
            ]
        )
    )
    placement = answer.get("placement")
    if placement:
        print("\nWhere it is, and why")
        others = placement.pop("alternatives", [])
        print(_indented(placement))
        if others:
            print("\nThe other centers then")
            rows = [
                (
                    a["centerId"],
                    a["pricePerHour"],
                    a["code"],
                    a["message"],
                    a["need"],
                    a["have"],
                )
                for a in others
            ]
            print(table(("CENTER", "CNY/H", "CODE", "MESSAGE", "NEED", "HAVE"), rows))
    reasons = answer.get("reasons", [])
    if reasons:
        print("\nWhy it does not start")
        rows = [(r["centerId"], r["code"], r["message"], r["need"], r["have"], r["unit"]) for r in reasons]
        print(table(("CENTER", "CODE", "MESSAGE", "NEED", "HAVE", "UNIT"), rows))

    if ways := answer.get("whatIf"):
        print(f"\nWhat would start it now ({answer.get('whatIfNote', '')})")
        told = [
            (_plain(w["change"]), w["centerId"], w["pricePerHour"], w["priceCny"], w["message"]) for w in ways
        ]
        print(table(("CHANGE", "CENTER", "CNY/H", "CNY", "MESSAGE"), told))


def _likely(expected: Expected | None) -> str:
    """`5 min 00 s to 12 min 00 s`: the median and what nine in ten stay within; "": nothing can be said."""
    if expected is None:
        return ""
    return " to ".join(
        duration(each) for each in (expected.get("p50"), expected.get("p90")) if each is not None
    )


def _measured(error: ForecastError | None) -> str:
    """How good such forecasts were."""
    if error is None:
        return ""
    at = error["centerId"] or "all centers"
    covered, jobs = error["p90Coverage"], error["jobs"]
    by_p90 = "" if covered is None else f", {covered:.0%} started by the p90"
    return f"off by {duration(error['medianS'])} in the median{by_p90} ({jobs} jobs, {at})"


@app.command("logs", cls=Command, rich_help_panel=JOBS)
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    task: Annotated[str, typer.Option(metavar="ID", help="An attempt's task id; default: the newest.")] = "",
    node: Annotated[int, typer.Option(help="Which node of it, from 0.")] = 0,
) -> None:
    """Print the log of a job."""
    client = connect()
    detail = with_job(client, job, client.job)
    runs = detail.get("runs", [])
    # A stream that breaks and is resumed must stay with the same attempt.
    of = task or (runs[-1].get("taskId", "") if runs else "")
    for piece in client.logs(detail["id"], task=of, node=node, follow=follow):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@app.command("stop", cls=Command, rich_help_panel=JOBS)
def stop(
    job: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids, or names of jobs of yours.", autocompletion=_own_jobs),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="All of yours with this label; repeatable.")
    ] = None,
) -> None:
    """Stop jobs that wait or run."""
    if bool(job) == bool(label):
        raise WrongUsage("name the jobs to stop, or give --label, one of the two")
    client = connect()
    chosen = job or []
    if label:
        query = {"label": label, "owner": "me"}
        chosen = [
            item["metadata"]["id"] for status in LIVE for item in client.all_jobs({**query, "status": status})
        ]
        if not chosen:
            notice(f"no job of yours with {', '.join(label)} waits or runs")
    stop_each(client, chosen, TRAIN)


@app.command("retry", cls=Command, rich_help_panel=JOBS)
def retry(job: JobArgument, as_json: Json = False) -> None:
    """Submit an ended job once more, as a new job."""
    client = connect()
    answer = with_job(client, job, client.retry_job)
    if as_json:
        print_json(answer)
    else:
        new = answer["metadata"]["id"]
        print(new)
        notice(f"submitted {clean(answer['metadata']['name'])}; follow it with: broker wait {new}")


@app.command("delete", cls=Command, rich_help_panel=JOBS)
def delete(job: JobArguments) -> None:
    """Delete jobs that have ended, with their logs and results."""
    delete_each(connect(), job, TRAIN)


@app.command("download", cls=Command, rich_help_panel=JOBS)
def download(
    job: JobArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if missing.")],
) -> None:
    """Write the results of a job into a folder."""
    from broker.client.archive import UnsafeArchive

    client = connect()
    try:
        for path in with_job(client, job, lambda each: client.download(each, folder)):
            print(clean(path))
    except UnsafeArchive as error:
        raise Failed(f"the results were not all written: {error}") from error
