"""What `broker doctor` tells of a T/AI 123.8 service, cheapest first, in words an operator can act on.

Here: the questions.  Not here: the calls themselves.  Nothing here has an effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from adapters.tai123_wire import SERVICES, Wire
from broker.adapter import AdapterError, Catalogue, Check, Inventory, Refused, Traits


class Center(Protocol):
    """What of the adapter is asked."""

    traits: Traits
    wire: Wire

    async def probe(self) -> Inventory: ...
    async def catalogue(self) -> Catalogue: ...
    async def find_out(self) -> None: ...


async def checks(center: Center) -> AsyncIterator[Check]:
    """Login first: what follows would fail by it."""
    wire = center.wire
    try:
        await wire.session.current()
        await center.find_out()
    except (AdapterError, ValueError) as error:
        yield Check("login", False, f"{error}; check base_url, ca_file, username and password")
        return
    yield Check("login", True, f"as {wire.account}")
    other = wire.other
    if other is None:
        text = "a service of the standard: no exit codes, times, priorities, data sets or hop lists"
        yield Check("kind", True, text)
    else:
        yield Check("kind", True, f"broker {other.name}.{other.installation}, version {other.version}")
        text = "the account may make VIP jobs" if other.vip else "the account has no right to VIP jobs"
        yield Check("vip", True, text)
    try:
        found = await center.probe()
    except AdapterError as error:
        yield Check("capacity", False, str(error))
        return
    text = f"{len(found.pools)} pools, {sum(pool.nodes for pool in found.pools)} nodes"
    yield Check("capacity", bool(found.pools), text)
    for native, reason in found.quarantined:
        yield Check(f"pool {native}", True, f"not used: {reason}")
    try:
        await wire.get("list", "/trainjob", {"pageSize": 1})
        yield Check("jobs", True, "the account's jobs are listed: a lost create is found by its name")
    except AdapterError as error:
        yield Check("jobs", False, str(error))
    images = (await center.catalogue()).images
    yield Check("images", True, f"{len(images)} are listed; a job may name any address")
    try:
        await wire.get("online.list", SERVICES, {"pageSize": 1})
        text = "used" if center.traits.services else "there, and not used: set public_services"
    except Refused:
        text = "the other side cannot list or stop them: none are made"
    yield Check("services", True, text)
