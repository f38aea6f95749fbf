"""The commands about resources: centers, idle, specs, and an operator's drain and resume.

What belongs here: the calls and their tables.  What does not: jobs (broker.cli.jobs).
"""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.app import OPERATORS, RESOURCES, Command, app, connect, print_json, tell_rest
from broker.cli.display import cards, power, table
from broker.cli.options import CenterArgument, Json, Limit, OnlyCenter, Page


@app.command("centers", cls=Command, rich_help_panel=RESOURCES)
def centers(limit: Limit = None, page: Page = None, as_json: Json = False) -> None:
    """List the computing centers."""
    query = {"sort": "centerId", "order": "asc", "pageSize": limit, "page": page}
    answer = connect().centers(query)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["centerId"],
            each["centerName"],
            " ".join(filter(None, (each.get("province"), each.get("city")))),
            each.get("adapter"),
            each.get("state"),
            each.get("health") or ("connected" if each["connected"] else "disconnected"),
            each["processorType"],
            power(each["maxComputingPower"]),
            each.get("running"),
            each.get("queueLength"),
            each.get("error"),
        )
        for each in answer["centers"]
    ]
    headings = (
        "CENTER",
        "NAME",
        "PLACE",
        "ADAPTER",
        "STATE",
        "HEALTH",
        "TYPE",
        "POWER",
        "RUNNING",
        "QUEUE",
        "ERROR",
    )
    print(table(headings, rows))
    tell_rest(len(rows), answer["totalSize"])


@app.command("idle", cls=Command, rich_help_panel=RESOURCES)
def idle(
    center: Annotated[str | None, typer.Argument(metavar="[CENTER]", help="Only this one.")] = None,
    as_json: Json = False,
) -> None:
    """List what is idle at the centers: nodes with the same idle resources share a row."""
    answer = connect().idle(center)
    if as_json:
        print_json(answer)
        return
    rows: list[tuple[object, ...]] = []
    for each in answer["centerResources"]:
        facts = (each.get("accuracy"), each.get("observedAt"))
        nodes = each["nodeResources"]
        for node in nodes:
            free = node["resourceSpec"]
            cpu, memory = free["cpu"], free["memory"]
            rows.append(
                (
                    each["centerId"],
                    int(node["nodeCount"]),
                    cpu["arch"],
                    cpu["cores"],
                    f"{memory['size']} {memory['unit']}",
                    cards(free),
                    *facts,
                )
            )
        if not nodes:
            rows.append((each["centerId"], 0, "", "", "", "", *facts))
    print(table(("CENTER", "NODES", "ARCH", "CORES", "MEMORY", "ACCELERATORS", "ACCURACY", "OBSERVED"), rows))


@app.command("specs", cls=Command, rich_help_panel=RESOURCES)
def specs(
    center: OnlyCenter = None,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List what a node of a job can get: the ids for submit --spec."""
    query = {"centerId": center, "sort": "resourceSpecId", "order": "asc", "pageSize": limit, "page": page}
    answer = connect().specs(query)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["resourceSpecId"],
            each["resourceSpecName"],
            each["cpu"]["arch"],
            each["cpu"]["cores"],
            f"{each['memory']['size']} {each['memory']['unit']}",
            cards(each),
        )
        for each in answer["resourceSpecs"]
    ]
    print(table(("SPEC", "NAME", "ARCH", "CORES", "MEMORY", "ACCELERATORS"), rows))
    tell_rest(len(rows), answer["totalSize"])


@app.command("drain", cls=Command, rich_help_panel=OPERATORS)
def drain(center: CenterArgument) -> None:
    """Send no more jobs to a center; those there go on."""
    answer = connect().command_center(center, "drain")
    print(f"{answer['centerId']} {answer['state']}")


@app.command("resume", cls=Command, rich_help_panel=OPERATORS)
def resume(center: CenterArgument) -> None:
    """Send jobs to a drained center again."""
    answer = connect().command_center(center, "resume")
    print(f"{answer['centerId']} {answer['state']}")
