"""Options and arguments that several commands have.

What belongs here: how they are declared.  What does not: what a command does with them, and options of
the store (broker.cli.on_store).
"""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the broker's answer as JSON.")]
Limit = Annotated[int | None, typer.Option(metavar="N", help="At most so many; default 50.")]
Page = Annotated[int | None, typer.Option(metavar="N", help="Which page of so many.")]
CenterArgument = Annotated[str, typer.Argument(metavar="CENTER", help="A center's id: broker centers.")]
OnlyCenter = Annotated[str | None, typer.Argument(metavar="[CENTER]", help="Only those of this one.")]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]
