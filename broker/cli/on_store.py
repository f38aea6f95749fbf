"""Commands that may work on the store of a configuration instead of asking the daemon.

For when the daemon is stopped, or when no operator can log in.  What belongs here: the options and
how errors are told.  What does not: the changes (broker.on_store).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.app import Failed

OnStore = Annotated[
    bool, typer.Option("--on-store", help="Work on the store itself, with the daemon stopped or running.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The daemon's configuration; implies --on-store. Default: the embedded one."
    ),
]


def is_on_store(on_store: bool, config: Path | None) -> bool:
    return on_store or config is not None


@contextmanager
def on_store_errors(config: Path | None) -> Iterator[None]:
    """Tell what is wrong with the configuration (exit 2) or was refused (Failed)."""
    from broker.cli.daemon import configuration_errors
    from broker.store import Rejected, StoreUnavailable

    with configuration_errors(config):
        try:
            yield
        except (ValueError, Rejected, StoreUnavailable) as error:
            raise Failed(str(error)) from error
