"""The commands beside the daemon: serve, init, check-config.

What belongs here: their options and texts.  What does not: the daemon (broker.daemon) and the
configuration (broker.config), which are imported only by the command that needs them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.app import DAEMON, Code, Command, WrongUsage, app, notice

EMBEDDED = Path("(embedded default)")


@contextmanager
def configuration_errors(file: Path | None) -> Iterator[None]:
    """Turn a ConfigError into its lines on stderr and exit 2."""
    from broker.config import ConfigError, render_errors

    try:
        yield
    except ConfigError as error:
        notice(render_errors(error, file or EMBEDDED))
        raise typer.Exit(Code.USAGE) from error


@app.command("serve", cls=Command, rich_help_panel=DAEMON)
def serve(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The configuration; default: this machine as one center."),
    ] = None,
) -> None:
    """Run the broker in the foreground."""
    from broker.interpreter import no_collection

    with no_collection():  # loading makes many objects, and hardly any that could go again
        from broker.daemon import serve as run_daemon

    with configuration_errors(config):
        raise typer.Exit(run_daemon(config))


@app.command("init", cls=Command, rich_help_panel=DAEMON)
def init(
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path("broker.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from broker.config import template

    text = template()
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        # Readable by its owner only: credentials of centers will be written into it.
        with os.fdopen(os.open(output, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise WrongUsage(
            f"{output} is there already; choose another --output, or replace it with --force"
        ) from error
    except OSError as error:
        raise WrongUsage(f"{output} cannot be written: {error.strerror}") from error
    notice(f"wrote {output}; change it, then: broker check-config --config {output}")


@app.command("check-config", cls=Command, rich_help_panel=DAEMON)
def check_config(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The configuration.")],
) -> None:
    """Check a configuration and its policy file; every error with its line, and exit 2.

    What is allowed but dangerous is told as a warning.
    """
    from broker.companions import read_settings

    with configuration_errors(config):
        settings, _catalogue, _policies = read_settings(config, os.environ)
    centers = ", ".join(f"{each.id} ({each.adapter})" for each in settings.centers) or "none"
    pools = sum(len(each.pools) for each in settings.centers)
    for each in settings.centers:
        if each.adapter == "local" and "run_as" not in each.connection:
            notice(
                f"warning: whoever may submit to the local center {each.id} has the rights of the daemon's"
                " user there: give it run_as, or let only people submit whom you would give that login"
            )
    known = [pair for each in settings.centers for pair in each.credentials.items()]
    secrets = [secret for name, secret in known if not name.endswith("username")]
    if config.stat().st_mode & stat.S_IROTH and _has_any(config, secrets):
        notice(f"warning: {config} has credentials of centers and every user of this machine can read it")
    print(f"ok: listens at {settings.server.listen}; centers: {centers}; stated pools: {pools}")


def _has_any(file: Path, texts: Iterable[str]) -> bool:
    content = file.read_text(encoding="utf-8")
    return any(text in content for text in texts)
