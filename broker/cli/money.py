"""The commands about money: prices, bills, balance, and an operator's budgets and credits.

What belongs here: the calls and their tables.  What does not: what a job cost (broker.cli.jobs).
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.app import (
    ACCOUNT,
    RESOURCES,
    Command,
    WrongUsage,
    app,
    connect,
    notice,
    print_json,
    tell_rest,
)
from broker.cli.display import duration, fields, table
from broker.cli.options import Json, Limit, OnlyCenter, Page
from broker.cli.tenants import tenant

if TYPE_CHECKING:
    from broker.client.answers import Balance, PriceWindow

GROUPS = ("center", "spec", "day", "tenant", "job")
MOST_CNY = 1_000_000_000_000

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="A tenant's id.")]


@app.command("prices", cls=Command, rich_help_panel=RESOURCES)
def prices(
    center: OnlyCenter = None,
    spec: Annotated[str | None, typer.Option(metavar="SPEC", help="Only of this spec.")] = None,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List what a node costs per hour: now, and by windows of the day."""
    query = {
        "centerId": center,
        "resourceSpecId": spec,
        "sort": "centerId",
        "order": "asc",
        "pageSize": limit,
        "page": page,
    }
    answer = connect().prices(query)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["centerId"],
            each["resourceSpecId"],
            each["unitPrice"] if each["stated"] else "none stated",
            "; ".join(_window(w) for w in each["windows"] if len(each["windows"]) > 1),
        )
        for each in answer["prices"]
    ]
    print(table(("CENTER", "SPEC", "CNY/H", "WINDOWS"), rows))
    tell_rest(len(rows), answer["totalSize"])


def _window(window: PriceWindow) -> str:
    days = window["days"]
    when = "" if len(days) == 7 else f" {','.join(days)}"
    return f"{window['unitPrice']} {window['from']}-{window['to']}{when}"


@app.command("bills", cls=Command, rich_help_panel=ACCOUNT)
def bills(
    by: Annotated[str, typer.Option(metavar="|".join(GROUPS), help="Sums by this, not lines.")] = "",
    job: Annotated[str | None, typer.Option(metavar="ID", help="Of this job.")] = None,
    center: Annotated[str | None, typer.Option(metavar="CENTER", help="At this center.")] = None,
    spec: Annotated[str | None, typer.Option(metavar="SPEC", help="With this spec.")] = None,
    since: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Not before this.")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Not after this.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own.")] = False,
    limit: Limit = None,
    page: Page = None,
    as_json: Json = False,
) -> None:
    """List bill lines, the newest first, or what they come to."""
    if by and by not in GROUPS:
        raise WrongUsage(f"--by: {by!r} is not one of {', '.join(GROUPS)}")
    query = {
        "jobId": job,
        "centerId": center,
        "specId": spec,
        "createAfter": since,
        "createBefore": until,
        "owner": "me" if mine else None,
        "pageSize": limit,
        "page": page,
    }
    client = connect()
    if by:
        summary = client.bill_summary(by, query)
        if as_json:
            print_json(summary)
            return
        sums = [
            (s["key"], s["name"], s["runs"], duration(s["seconds"]), s["amount"]) for s in summary["items"]
        ]
        print(table((by.upper(), "NAME", "RUNS", "TIME", summary["currency"]), sums))
        notice(f"{summary['amount']} {summary['currency']} in all")
        tell_rest(len(sums), summary["totalSize"])
        return
    answer = client.bills(query)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["createTime"],
            each["jobId"],
            each["jobName"],
            each["userName"],
            each["centerId"],
            each["resourceSpecId"],
            each["nodeCount"],
            duration(each["seconds"]) if each["kind"] == "run" else each["kind"],
            each["amount"],
        )
        for each in answer["items"]
    ]
    headings = ("BILLED", "JOB", "NAME", "USER", "CENTER", "SPEC", "NODES", "TIME", "CNY")
    print(table(headings, rows))
    tell_rest(len(rows), answer["totalSize"])


@app.command("balance", cls=Command, rich_help_panel=ACCOUNT)
def balance(
    name: Annotated[str, typer.Argument(metavar="[TENANT]", help="Default: your own.")] = "",
    entries: Annotated[bool, typer.Option("--entries", help="Also what was added and taken.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a tenant may spend and has spent."""
    client = connect()
    asked = name or client.me()["tenant"]
    answer = client.balance(asked)
    ledger = client.ledger(asked) if entries else None
    if as_json:
        print_json(answer if ledger is None else {**answer, "entries": ledger["items"]})
        return
    print(_balance(answer))
    if ledger is not None:
        print()
        rows = [(e["createTime"], e["amount"], e["balance"], e["actor"], e["note"]) for e in ledger["items"]]
        print(table(("AT", "CNY", "BALANCE", "BY", "NOTE"), rows))


def _balance(answer: Balance) -> str:
    budget = answer["budget"]
    period = "" if budget is None else {"month": " per month", "total": " in all"}[budget["period"]]
    left = "no limit" if answer["left"] is None else answer["left"]
    return fields(
        [
            ("tenant", answer["tenant"]),
            ("may spend", f"{left} {answer['currency']}" if answer["left"] is not None else left),
            ("balance", answer["balance"]),
            ("budget", None if budget is None else f"{budget['amount']}{period}, spent {budget['spent']}"),
            ("expected of runs", answer["committed"]),
            ("spent", f"{answer['spent']}, of it {answer['spentThisMonth']} in {answer['month']}"),
            ("exhausted", "yes: no job of this tenant starts" if answer["exhausted"] else None),
        ]
    )


# ---------------------------------------------------------------- operators


@tenant.command("budget", cls=Command)
def budget(
    name: TenantArgument,
    cny: Annotated[str, typer.Option(metavar="N", help="CNY; what may be spent.")] = "",
    per: Annotated[str, typer.Option(metavar="month", help="Every month anew; default: in all.")] = "",
    none: Annotated[bool, typer.Option("--none", help="No budget any more.")] = False,
) -> None:
    """Give a tenant a budget: without anything left none of its jobs starts; what runs goes on."""
    if none == bool(cny):
        raise WrongUsage("give --cny N, or --none for no budget")
    if per not in ("", "month"):
        raise WrongUsage(f"--per: {per!r} is not month")
    client = connect()
    if none:
        client.remove_budget(name)
        notice(f"{name} has no budget any more")
        return
    amount = _cny(cny)
    if amount < 0:
        raise WrongUsage("--cny: a budget is at least 0")
    print(_balance(client.set_budget(name, amount, per=per or "total")))


@tenant.command("credit", cls=Command)
def credit(
    name: TenantArgument,
    cny: Annotated[str, typer.Option(metavar="N", help="CNY; below 0: taken from it.")],
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
) -> None:
    """Add to a tenant's balance; from then on it may spend no more than that."""
    made = connect().add_to_balance(name, _cny(cny), note=note)
    notice(f"the balance of {name} is {made['balance']} CNY")


def _cny(text: str) -> Decimal:
    try:
        amount = Decimal(text)
        exact = -MOST_CNY <= amount <= MOST_CNY and amount.quantize(Decimal("0.01")) == amount
    except InvalidOperation:
        exact = False
    if not exact:
        raise WrongUsage(f"--cny: {text!r} is not an amount such as 1000 or 12.50")
    return amount
