"""The commands about API keys: what may act for the account in one's place."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.app import (
    ACCOUNT,
    Command,
    WrongUsage,
    connect,
    group,
    notice,
    print_json,
)
from broker.cli.display import table
from broker.cli.options import Json
from broker.client import Client

SCOPES = ("read", "jobs", "data", "admin")

keys = group("keys", ACCOUNT, "API keys of your account, and applications that hold them.")


@keys.command("add", cls=Command)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name, for you.")],
    scope: Annotated[
        list[str], typer.Option(metavar="|".join(SCOPES), help="What it may do; give it again for more.")
    ],
    application: Annotated[str, typer.Option(help="The application that will hold it.")] = "",
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="Its end, such as 2030-12-31; default: none.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    wrong = [each for each in scope if each not in SCOPES]
    if wrong:
        raise WrongUsage(f"--scope: {wrong[0]!r} is not one of {', '.join(SCOPES)}")
    made = connect().create_key(name, scope, application=application or None, expires=expires or None)
    if as_json:
        print_json(made)
        return
    until = f" until {made['expiresAt']}" if made["expiresAt"] else ""
    notice(f"key {made['id']} ({made['name']}) may {', '.join(made['scopes'])}{until}; it is not shown again")
    print(made["key"])


@keys.command("list", cls=Command)
def list_keys(as_json: Json = False) -> None:
    """List your keys, without the keys themselves."""
    items = list(connect().all_keys())
    if as_json:
        print_json({"items": items, "totalSize": len(items)})
        return
    rows = [
        (
            each["id"],
            each["name"],
            each["application"],
            ",".join(each["scopes"]),
            each["createTime"],
            each["expiresAt"],
            each["lastUsedTime"],
        )
        for each in items
    ]
    print(table(("ID", "NAME", "APPLICATION", "SCOPES", "CREATED", "EXPIRES", "LAST USED"), rows))


@keys.command("revoke", cls=Command)
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key, by id or name.")] = "",
    application: Annotated[str, typer.Option(help="All keys of this application instead.")] = "",
) -> None:
    """Take back a key, or all that an application has."""
    if bool(key) == bool(application):
        raise WrongUsage("say what to revoke: a KEY, or --application NAME")
    client = connect()
    if application:
        client.revoke_application(application)
        notice(f"{application} can no longer act for you")
        return
    client.revoke_key(_id(client, key))
    notice(f"key {key} is revoked")


def _id(client: Client, key: str) -> str:
    """The id of a key that may be given by name; what is neither, the broker refuses."""
    named = [each["id"] for each in client.all_keys() if key in (each["id"], each["name"])]
    return key if key in named or not named else named[0]
