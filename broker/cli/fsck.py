"""`broker fsck`: what is wrong in the store, and between the store and centers.

What belongs here: options, output and the exit code.  What does not: the checks (broker.fsck), imported
only by the command itself.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.app import DAEMON, Code, Command, WrongUsage, app, notice, print_json
from broker.cli.daemon import configuration_errors


@app.command("fsck", cls=Command, rich_help_panel=DAEMON)
def fsck(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The daemon's configuration; default: the embedded one."),
    ] = None,
    centers: Annotated[
        bool, typer.Option("--centers", help="Ask centers, too: runs that only one side knows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check the store; changes nothing.  Exit 0: nothing is wrong, 1: findings, 2: it could not check.

    Works beside a running daemon.  A center that is held by the daemon, as local ones are, or that does
    not answer could not be asked: that is told, and exit 2 when nothing else is wrong.
    """
    from broker import telemetry
    from broker.companions import read_settings
    from broker.fsck import Report, check_centers, check_store, text_lines
    from broker.store import StoreUnavailable

    with configuration_errors(config):
        settings, _catalogue, _policies = read_settings(config, os.environ)
    telemetry.configure("error")  # the findings alone
    try:
        report = check_store(settings)
        if centers:
            from broker.daemon import factories

            there = asyncio.run(check_centers(settings, factories()))
            report = Report((*report.findings, *there.findings), there.asked, there.silent)
    except StoreUnavailable as error:
        raise WrongUsage(str(error)) from error
    if as_json:
        silent = [{"centerId": center, "message": why} for center, why in report.silent]
        findings = [asdict(each) for each in report.findings]
        print_json({"findings": findings, "asked": list(report.asked), "notAsked": silent})
    else:
        for line in text_lines(report):
            print(line)
        asked = f", centers asked: {', '.join(report.asked) or 'none'}" if centers else ""
        notice(f"{len(report.findings) or 'no'} finding{'s' * (len(report.findings) != 1)}{asked}")
    if report.findings:
        raise typer.Exit(Code.FAILED)
    if report.silent:
        raise typer.Exit(Code.USAGE)
