"""The commands about tenants, and the audit of what people changed."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from broker.cli.app import (
    OPERATORS,
    Command,
    WrongUsage,
    app,
    connect,
    group,
    notice,
    print_json,
)
from broker.cli.display import table
from broker.cli.on_store import Config, OnStore, is_on_store, on_store_errors
from broker.cli.options import Json

TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

tenant = group("tenant", OPERATORS, "Tenants: whose quota and budget accounts use.")


@tenant.command("add", cls=Command)
def add(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="1 to 64 of A-Z a-z 0-9 . _ -.")],
    on_store: OnStore = False,
    config: Config = None,
) -> None:
    """Make a tenant."""
    if not TENANT.fullmatch(name):
        raise WrongUsage(f"TENANT: {name!r} must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
    if is_on_store(on_store, config):
        with on_store_errors(config):
            from broker.on_store import add_tenant

            add_tenant(config, name)
    else:
        connect().create_tenant(name)
    notice(f"{name} is a tenant")


@tenant.command("list", cls=Command)
def list_tenants(as_json: Json = False) -> None:
    """List the tenants."""
    items = list(connect().all_tenants())
    if as_json:
        print_json({"items": items, "totalSize": len(items)})
        return
    rows = [(each["id"], each["accounts"], each["createTime"]) for each in items]
    print(table(("TENANT", "ACCOUNTS", "CREATED"), rows))


@app.command("audit", cls=Command, rich_help_panel=OPERATORS)
def audit(
    actor: Annotated[str, typer.Option(help="Only what this account did.")] = "",
    kind: Annotated[str, typer.Option(help="Only this kind, such as account.frozen, or account.")] = "",
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="Then or later.")] = "",
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="Then or earlier.")] = "",
    last: Annotated[int, typer.Option(metavar="N", help="So many of the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what people changed, the newest last."""
    if last < 1:
        raise WrongUsage(f"--last: {last} is not a number of entries; write 1 or more")
    query = {"actor": actor or None, "kind": kind or None, "from": since or None, "to": until or None}
    answer = connect().audit({**query, "pageSize": last})
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            each["time"],
            each["actor"] + (f" ({each['apiKey']})" if each["apiKey"] else ""),
            each["kind"],
            each["jobId"] or each["centerId"] or each["tenant"],
            " ".join(f"{name}={value}" for name, value in each["data"].items()),
        )
        for each in reversed(answer["items"])
    ]
    print(table(("TIME", "ACTOR", "KIND", "OF", "DATA"), rows))
    if len(rows) < answer["totalSize"]:
        notice(f"the newest {len(rows)} of {answer['totalSize']}; --last shows more")
