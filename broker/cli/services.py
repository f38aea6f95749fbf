"""`broker service`: online services that exist: list, show, stop, delete, and a link for a browser.

What belongs here: which calls each makes and what it prints.  What does not: submitting one
(broker.cli.submit) and what is the same for every job (broker.cli.jobs: logs, explain, retry).
"""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.app import JOBS, Command, connect, group, print_json
from broker.cli.display import clean, fields, table
from broker.cli.named_jobs import delete_each, stop_each, with_job
from broker.cli.options import Json, Limit, Page
from broker.client import ONLINE

ServiceArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A service's id, or the name of a service of yours.")
]
ServiceArguments = Annotated[
    list[str], typer.Argument(metavar="ID", help="Ids, or names of services of yours.")
]

service = group("service", JOBS, "Online services; submit one with: broker submit --service.")


@service.command("list", cls=Command)
def list_services(
    status: Annotated[str | None, typer.Option(help="PENDING, RUNNING, SUCCEEDED, FAILED, ...")] = None,
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="In name or description.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own.")] = False,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List services, the newest first."""
    answer = connect().jobs(
        {
            "status": status.upper() if status else None,
            "query": query,
            "owner": "me" if mine else None,
            "pageSize": limit,
            "page": page,
            "sort": "createTime",
            "order": "desc",
        },
        noun=ONLINE,
    )
    if as_json:
        print_json(answer)
        return
    rows = []
    for item in answer["items"]:
        meta = item["metadata"]
        rows.append((meta["id"], meta["name"], item["status"], item.get("centerId"), meta["url"]))
    print(table(("ID", "NAME", "STATUS", "CENTER", "URL"), rows))


@service.command("show", cls=Command)
def show(job: ServiceArgument, as_json: Json = False) -> None:
    """Show a service: its address and its starts."""
    client = connect()
    detail = with_job(client, job, client.service)
    if as_json:
        print_json(detail)
        return
    meta = detail["metadata"]
    print(
        fields(
            [
                ("id", meta["id"]),
                ("name", meta["name"]),
                ("description", meta["desc"]),
                ("url", meta["url"]),
                ("open to", "everybody" if detail["public"] else "those who may see it"),
                ("status", detail["status"]),
                ("created", meta["createTime"]),
                ("restarts", detail["restarts"] or None),
            ]
        )
    )
    rows = [
        tuple(task[name] for name in ("taskId", "status", "centerId", "startTime", "finishTime", "message"))
        for task in detail["tasks"]
    ]
    print()
    print(table(("TASK", "STATUS", "CENTER", "STARTED", "FINISHED", "MESSAGE"), rows))


@service.command("link", cls=Command)
def link(job: ServiceArgument, as_json: Json = False) -> None:
    """Print a link that lets a browser in; it works for some minutes."""
    client = connect()
    answer = with_job(client, job, client.service_link)
    if as_json:
        print_json(answer)
    else:
        print(clean(answer["url"]))


@service.command("stop", cls=Command)
def stop(job: ServiceArguments) -> None:
    """Stop services."""
    stop_each(connect(), job, ONLINE)


@service.command("delete", cls=Command)
def delete(job: ServiceArguments) -> None:
    """Delete services that have ended, with their logs."""
    delete_each(connect(), job, ONLINE)
