"""The commands of operators about runs and accounts: resolve, user.

What belongs here: what an operator may say and to whom.  What does not: centers (broker.cli.centers).
`user add` works on the store of a configuration, freezing and passwords may, the others go through
the API.
"""

from __future__ import annotations

import re
from pathlib import Path
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
    read_secret,
)
from broker.cli.display import table
from broker.cli.named_jobs import with_job
from broker.cli.on_store import Config, OnStore, is_on_store, on_store_errors
from broker.cli.options import Json, PasswordStdin

ROLES = ("user", "tenant-admin", "operator")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
PLAIN_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]


@app.command("resolve", cls=Command, rich_help_panel=OPERATORS)
def resolve(
    job: Annotated[str, typer.Argument(metavar="ID", help="A job whose run is in doubt or lost.")],
    never_ran: Annotated[
        bool, typer.Option("--never-ran", help="The center never got it: it may run again.")
    ] = False,
    remote: Annotated[str, typer.Option(metavar="NATIVE", help="It is this one at the center.")] = "",
    ended: Annotated[str, typer.Option(metavar="STATE", help="It ended: SUCCEEDED, FAILED or STOPPED.")] = "",
) -> None:
    """Settle what became of a run in doubt or lost."""
    if [never_ran, bool(remote), bool(ended)].count(True) != 1:
        raise WrongUsage("say what became of the run: one of --never-ran, --remote NATIVE and --ended STATE")
    if ended and ended.upper() not in ENDED:
        raise WrongUsage(f"--ended: {ended!r} is not one of {', '.join(ENDED)}")
    verdict: dict[str, bool | str] = {"neverRan": True}
    if remote:
        verdict = {"remote": remote}
    elif ended:
        verdict = {"ended": ended.upper()}
    client = connect()
    with_job(client, job, lambda each: client.resolve_job(each, verdict))
    notice(f"{job} is settled; see: broker show {job}")


user = group("user", OPERATORS, "Accounts of this broker.")


@user.command("add", cls=Command)
def add(
    name: Name,
    role: Annotated[str, typer.Option(metavar="|".join(ROLES), help="What the account may do.")],
    tenant: Annotated[str, typer.Option(help="Whose budget and quota it uses.")] = "default",
    password_stdin: PasswordStdin = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The daemon's configuration; default: the embedded one."),
    ] = None,
) -> None:
    """Make an account, whether the daemon runs or not."""
    if role not in ROLES:
        raise WrongUsage(f"--role: {role!r} is not one of {', '.join(ROLES)}")
    if not PLAIN_NAME.fullmatch(name):
        raise WrongUsage(f"NAME: {name!r} must be 1 to 64 of A-Z, a-z, 0-9, '.', '_', '@', '-'")
    password = read_secret("Password", from_stdin=password_stdin)
    with on_store_errors(config):
        from broker.core.model import Role
        from broker.on_store import add_user

        add_user(config, name=name, role=Role(role), tenant=tenant, password=password)
    notice(f"{name} can log in now")


@user.command("list", cls=Command)
def list_users(as_json: Json = False) -> None:
    """List the accounts."""
    items = list(connect().all_accounts())
    if as_json:
        print_json({"items": items, "totalSize": len(items)})
        return
    rows = [
        (
            each["name"],
            each["role"],
            each["tenant"],
            "yes" if each.get("vip") else "no",
            "yes" if each.get("frozen") else "no",
        )
        for each in items
    ]
    print(table(("NAME", "ROLE", "TENANT", "VIP", "FROZEN"), rows))


Right = Annotated[str, typer.Argument(metavar="RIGHT", help="A right; there is one, vip.")]


def _change(name: str, action: str, on_store: bool, config: Path | None) -> None:
    """Freeze or unfreeze an account, through the daemon or on its store."""
    if not is_on_store(on_store, config):
        connect().change_account(name, action)
        return
    with on_store_errors(config):
        from broker.on_store import set_frozen

        set_frozen(config, name, action == "freeze")


@user.command("grant", cls=Command)
def grant(name: Name, right: Right) -> None:
    """Give an account a right."""
    connect().change_account(name, "grant", {"right": right})
    notice(f"{name} has the right {right}")


@user.command("revoke", cls=Command)
def revoke(name: Name, right: Right) -> None:
    """Take a right from an account."""
    connect().change_account(name, "revoke", {"right": right})
    notice(f"{name} has no longer the right {right}")


@user.command("freeze", cls=Command)
def freeze(name: Name, on_store: OnStore = False, config: Config = None) -> None:
    """Let nobody use an account; its jobs go on."""
    _change(name, "freeze", on_store, config)
    notice(f"{name} is frozen")


@user.command("unfreeze", cls=Command)
def unfreeze(name: Name, on_store: OnStore = False, config: Config = None) -> None:
    """Let an account be used again."""
    _change(name, "unfreeze", on_store, config)
    notice(f"{name} is not frozen any more")


@user.command("password", cls=Command)
def set_password(
    name: Name,
    password_stdin: PasswordStdin = False,
    on_store: OnStore = False,
    config: Config = None,
) -> None:
    """Set the password of an account; its logins end, its API keys stay."""
    client = None if is_on_store(on_store, config) else connect()
    secret = read_secret("Password", from_stdin=password_stdin)
    if client is not None:
        client.change_account(name, "password", {"password": secret})
    else:
        with on_store_errors(config):
            from broker.on_store import set_password as set_on_store

            set_on_store(config, name, secret)
    notice(f"{name} has a new password")


Center = Annotated[str, typer.Option(metavar="CENTER", help="A center's id: broker centers.")]
Native = Annotated[str, typer.Option("--user", metavar="NATIVE", help="The user's id at its platform.")]


@user.command("link", cls=Command)
def link(name: Name, center: Center = "", native: Native = "", as_json: Json = False) -> None:
    """Say which user of a center's platform an account is; without --center list what was said."""
    client = connect()
    if bool(center) != bool(native):
        raise WrongUsage("--center and --user belong together")
    answer = client.link_user(name, center, native) if center else client.links(name)
    if as_json:
        print_json(answer)
        return
    rows = [(each["centerId"], each["user"], each["createTime"]) for each in answer["items"]]
    print(table(("CENTER", "USER", "SINCE"), rows))


@user.command("unlink", cls=Command)
def unlink(name: Name, center: Center, native: Native) -> None:
    """Take back a link."""
    connect().link_user(name, center, native, unlink=True)
    notice(f"{native} of {center} is not {name} any more")
