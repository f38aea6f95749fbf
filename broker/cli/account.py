"""The commands about one's own account: register, login, logout, password.

What belongs here: what is asked and what is stored.  What does not: where it is stored
(broker.cli.app), accounts of others (broker.cli.operators).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from broker.cli.app import (
    ACCOUNT,
    DEFAULT_URL,
    Command,
    Credentials,
    Failed,
    WrongUsage,
    app,
    caller,
    connect,
    credentials_file,
    notice,
    read_secret,
    store,
    stored,
)
from broker.cli.options import PasswordStdin
from broker.client import Client, RequestFailed


@app.command("register", cls=Command, rich_help_panel=ACCOUNT)
def register(
    user: Annotated[str, typer.Option(help="The account's name: 1 to 64 of A-Z a-z 0-9 . _ @ -.")],
    url: Annotated[
        str, typer.Option(help=f"The broker's address; default BROKER_URL, then {DEFAULT_URL}.")
    ] = "",
    password_stdin: PasswordStdin = False,
) -> None:
    """Make yourself an account, where the broker lets everybody."""
    address = (url or os.environ.get("BROKER_URL") or DEFAULT_URL).rstrip("/")
    client = connect(address)
    password = read_secret("Password", from_stdin=password_stdin)
    if not password_stdin and read_secret("Password again", from_stdin=False) != password:
        raise WrongUsage("the two passwords differ; nothing was made")
    made = client.register(user, password)
    notice(
        f"{made['name']} is an account of tenant {made['tenant']};"
        f" log in with: broker login --url {address} --user {made['name']}"
    )


@app.command("login", cls=Command, rich_help_panel=ACCOUNT)
def login(
    url: Annotated[
        str,
        typer.Option(
            help=f"The broker's address; default BROKER_URL, then the last one, then {DEFAULT_URL}."
        ),
    ] = "",
    user: Annotated[str, typer.Option(help="The account's name; default: the last one's.")] = "",
    password_stdin: PasswordStdin = False,
) -> None:
    """Log in and keep the token for the commands that follow."""
    last = _last()
    address = (url or os.environ.get("BROKER_URL") or (last.url if last else DEFAULT_URL)).rstrip("/")
    client = connect(address)
    name = user or (last.user if last else "")
    if not name:
        if password_stdin or not sys.stdin.isatty():
            raise WrongUsage("say who logs in, with --user NAME")
        name = str(typer.prompt("User", err=True))
    password = read_secret("Password", from_stdin=password_stdin)
    with _wrong_password("the name or the password is wrong"):
        token = client.login(name, password)
    file = store(Credentials(address, token["token"], name))
    notice(f"{name} is logged in at {address} until {token['expiresAt']}; the token is in {file}")


@contextmanager
def _wrong_password(why: str) -> Iterator[None]:
    """Tell a refused password as such: "log in first" would be no advice."""
    try:
        yield
    except RequestFailed as error:
        if (error.status, error.code) != (401, "0101"):
            raise
        raise Failed(error.detail or why) from error


def _last() -> Credentials | None:
    try:
        return stored()
    except WrongUsage:
        return None  # this login replaces what cannot be read


@app.command("logout", cls=Command, rich_help_panel=ACCOUNT)
def logout(
    others: Annotated[
        bool, typer.Option("--others", help="End every other login of the account, and keep this one.")
    ] = False,
) -> None:
    """End the stored login, here and at the broker."""
    if others:
        connect().end_other_logins()
        notice("every other login has ended")
        return
    kept = stored()
    if kept is None:
        notice("nobody is logged in")
        return
    credentials_file().unlink()
    try:
        Client(kept.url, kept.token).logout()
    except RequestFailed as error:
        if error.status != 401:  # 401: the token had ended already
            raise
    notice(f"logged out from {kept.url}")


@app.command("password", cls=Command, rich_help_panel=ACCOUNT)
def password(
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read two lines: the old password and the new one.")
    ] = False,
) -> None:
    """Change your password."""
    client = connect()
    old = read_secret("Old password", from_stdin=password_stdin)
    new = read_secret("New password", from_stdin=password_stdin)
    if not password_stdin and read_secret("New password again", from_stdin=False) != new:
        raise WrongUsage("the two new passwords differ; nothing was changed")
    with _wrong_password("the old password is wrong"):
        client.change_password(old, new)
    who = caller()
    notice(f"the password was changed; log in again with: broker login --url {who.url}")
