"""What `broker doctor` tells of a CECSTACK center, cheapest first, in words an operator can act on.

Here: the questions, and which way this installation goes where the document is silent.  Not here: the
calls themselves.  Nothing here has an effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from adapters.cecstack_packages import Package, Project
from adapters.cecstack_services import NEEDED, Services
from adapters.cecstack_tasks import Tasks
from adapters.output import Output
from broker.adapter import AdapterError, Catalogue, Check, Inventory, Traits

SOON_MS = 7 * 86_400_000


class Center(Protocol):
    """What of the adapter is asked."""

    traits: Traits
    tasks: Tasks
    services: Services | None

    async def projects(self) -> list[Project]: ...
    async def packages(self) -> tuple[Project | None, list[Package]]: ...
    async def probe(self) -> Inventory: ...
    async def catalogue(self) -> Catalogue: ...
    async def find_out(self) -> None: ...


async def checks(center: Center, output: Output | None, *, now_ms: int) -> AsyncIterator[Check]:
    """Login and region first: what follows would fail by them."""
    try:
        projects = await center.projects()
    except AdapterError as error:
        hint = "check endpoint, ca_file, region, signature, access_key and secret_key"
        yield Check("login", False, f"{error}; {hint}")
        return
    yield Check("login", True, f"the account sees {len(projects)} projects")
    try:
        project, packages = await center.packages()
    except AdapterError as error:
        yield Check("packages", False, str(error))
        return
    if project is None:
        seen = ", ".join(f"{p.id} ({p.name})" for p in projects) or "none"
        yield Check("project", False, f"set project_id; the account sees: {seen}")
    else:
        yield Check("project", True, f"{project.id} ({project.name})")
    for package in packages:
        yield _package(package, now_ms)
    async for check in _discovered(center):
        yield check
    if output is None:
        yield Check("output", True, "not set: logs, results and exit codes are unavailable")
    else:
        yield await output.check()


def _package(package: Package, now_ms: int) -> Check:
    name = f"package {package.native}"
    if package.trouble:
        return Check(name, False, package.trouble)
    shape = package.shape
    cards = f", {shape.accelerators} x {shape.accelerator}" if shape.accelerators else ""
    free = "an unknown number" if package.free is None else package.free
    text = f"{package.nodes} nodes of {shape.cores} cores, {shape.memory_gib} GiB{cards}; {free} free"
    if package.hint:
        text += f"; {package.hint}"
    if not package.prices:
        text += "; no price: state one in [[centers.prices]]"
    soon = package.ends_ms is not None and package.ends_ms - now_ms < SOON_MS
    if soon and package.ends_ms is not None:
        text += f"; it ends in {(package.ends_ms - now_ms) // 3_600_000} h"
    return Check(name, not soon, text)


async def _discovered(center: Center) -> AsyncIterator[Check]:
    """Where the document is silent: what this installation does, and what follows."""
    try:
        await center.find_out()
    except AdapterError as error:
        yield Check("tasks", False, str(error))
        return
    insight = center.tasks.insight
    if insight.listed:
        text = "slm tasks are listed: a submission without an answer is found by its name"
    else:
        text = (
            "slm tasks are not listed: a submission without an answer stays in doubt until `broker resolve`"
        )
    yield Check("task list", insight.listed, text)
    if insight.detailed is None:
        yield Check("task detail", True, "there is no slm task yet to try it with")
    else:
        how = "shown one by one" if insight.detailed else "not shown one by one: the list is used"
        yield Check("task detail", insight.detailed or insight.listed, f"slm tasks are {how}")
    if center.services is None:
        yield Check("services", True, f"off: {', '.join(NEEDED)} are not all set")
    else:
        listed = center.services.listed
        text = "listed" if listed else "not listed by this installation: none can be made"
        yield Check("services", listed, text)
    try:
        images = (await center.catalogue()).images
        yield Check("images", True, f"{len(images)} are listed; a job may name any URL")
        pools = (await center.probe()).pools
        yield Check("probe", bool(pools), f"{len(pools)} packages can be used")
    except AdapterError as error:
        yield Check("probe", False, str(error))
