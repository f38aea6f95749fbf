"""What the handlers work with, put together once by the composition root.

What belongs here: the parts and plain settings a handler may use, and how it gets at them.  What
does not: building any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from zoneinfo import ZoneInfo

from aiohttp import web
from argon2 import PasswordHasher

import broker
from broker.adapter import Adapter, Unavailable
from broker.api.foresight import Foresight
from broker.config import LimitSettings, ServiceSettings
from broker.core.hops import hop
from broker.core.model import CenterId, JobRequest, Spec, TenantId
from broker.core.policy import PolicySet
from broker.core.resources import Catalogue
from broker.files import DataDirectory
from broker.store.accounts import Caller
from broker.store.store import Store, now_ms

T = TypeVar("T")


async def _no_adapter(center: CenterId) -> Adapter:
    raise Unavailable(f"this process does not talk to centers, {center!r} among them")


@dataclass(frozen=True)
class Context:
    """`ready` says whether the daemon has finished starting; `signing_key` signs log links.

    `class_key` is core.problem.class_key.  `public_url` is without a trailing slash.  `timezone` is
    that of all northbound times.  `policies` and `learn` (whether learned run times count) are what is
    in force now.  `freeze_after` wrong passwords in a row freeze an account.
    `registration_tenant` is the tenant of those who register, None when nobody may.
    `installation` tells this broker from others of its name (core/hops.py).
    `leader` says whether this daemon leads, which only one of several on a database does.
    `own_hosts` are those of a center (reach.py).
    `adapter` gives the adapter of a center, opened if need be (Unavailable when it cannot be), and
    `open_adapters` those that are open.  `platform_paths` are method and path of their callbacks.
    """

    store: Store
    files: DataDirectory
    catalogue: Catalogue
    class_key: Callable[[JobRequest, TenantId], str]
    signing_key: bytes = field(repr=False)
    ready: Callable[[], bool]
    server_name: str
    public_url: str
    timezone: ZoneInfo
    policies: Callable[[], PolicySet]
    learn: Callable[[], bool] = lambda: True
    max_page_size: int = 1000
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 100 << 30
    token_ttl_s: int = 86_400
    freeze_after: int = 10
    link_ttl_s: int = 300
    submit_image: str = ""
    extra_specs: tuple[Spec, ...] = ()
    limits: LimitSettings = field(default_factory=LimitSettings)
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    registration_tenant: str | None = None
    services: ServiceSettings = field(default_factory=ServiceSettings)
    leader: Callable[[], bool] = lambda: True
    adapter: Callable[[CenterId], Awaitable[Adapter]] = _no_adapter
    open_adapters: Callable[[], Sequence[Adapter]] = tuple
    platform_paths: tuple[tuple[str, str], ...] = ()
    own_hosts: Callable[[str], frozenset[str]] = lambda center: frozenset()
    clock: Callable[[], int] = now_ms
    hasher: PasswordHasher = field(default_factory=PasswordHasher)
    version: str = broker.__version__
    installation: str = "0" * 10

    @property
    def hop(self) -> str:
        """What this broker is called among brokers."""
        return hop(self.server_name, self.installation)

    @property
    def services_url(self) -> str:
        """What comes before /services, without a trailing slash."""
        return self.services.public_url or self.public_url


CONTEXT = web.AppKey("context", Context)
FORESIGHT = web.AppKey("foresight", Foresight)
STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the server shuts down: whoever waits or streams ends at once."""

CALLER = web.RequestKey("caller", Caller)
REQUEST_ID = web.RequestKey("request_id", str)
STARTED = web.RequestKey("started", bool)
"""True once the headers of a streamed response are on the wire."""


async def to_the_end(work: Awaitable[T]) -> T:
    """Await work that a thread or the store does whether or not anybody waits; a cancellation meanwhile
    is raised only when it has ended, so that what is tidied up then is not made again behind it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    finally:
        if not task.done():
            await asyncio.wait([task])


async def shutting_down(request: web.Request, within_s: float) -> bool:
    """Wait so long; True as soon as the server shuts down."""
    try:
        await asyncio.wait_for(request.app[STOPPING].wait(), within_s)
    except TimeoutError:
        return False
    return True
