"""The `broker` command: which commands there are, and where each is written.

What belongs here: the table of commands and the options of `broker` itself.  What does not: the
commands (broker.cli.*) and what they share (broker.cli.app).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from broker import __version__
from broker.cli.app import app, run

MODULES: dict[str, tuple[str, ...]] = {
    "broker.cli.submit": ("submit",),
    "broker.cli.jobs": ("jobs", "show", "wait", "explain", "logs", "stop", "retry", "delete", "download"),
    "broker.cli.services": ("service",),
    "broker.cli.centers": ("centers", "idle", "specs", "drain", "resume"),
    "broker.cli.data": ("images", "datasets", "models", "apps"),
    "broker.cli.money": ("prices", "bills", "balance", "tenant"),
    "broker.cli.account": ("register", "login", "logout", "password"),
    "broker.cli.keys": ("keys",),
    "broker.cli.operators": ("resolve", "user"),
    "broker.cli.tenants": ("tenant", "audit"),
    "broker.cli.vendor": ("doctor", "call", "aihub", "cecstack", "ampha"),
    "broker.cli.daemon": ("serve", "init", "check-config"),
    "broker.cli.fsck": ("fsck",),
    "broker.cli.simulate": ("simulate",),
}
"""The commands of each module, in the order of the help."""


def main() -> NoReturn:
    """Run `broker` with the words of the command line; ends the process."""
    run(lambda: _register(sys.argv[1:]))


def _register(words: list[str]) -> None:
    """Import the module of the command that is meant, or all for help, completion and what is misspelt."""
    wanted = [module for module, commands in MODULES.items() if words[:1] and words[0] in commands]
    completing = "_BROKER_COMPLETE" in os.environ
    for module in wanted if wanted and not completing else MODULES:
        import_module(module)


def _version(asked: bool) -> None:
    if asked:
        print(f"broker {__version__}")
        raise typer.Exit


@app.callback()
def broker(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Send jobs to a broker between computing centers, follow them, and run the broker itself.

    Exit codes: 0 done, 1 the request or the awaited job failed, 2 wrong usage or configuration,
    3 the broker is unreachable.  BROKER_URL and BROKER_TOKEN go before what `broker login` stored.
    """
