"""The leader's adapters: opened when first needed, closed at the end.

What belongs here: which adapter serves which center.  An adapter that cannot be opened (not built,
wrong options, platform unreachable) is tried again at the next poll and its center is shown as
disconnected with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from broker.adapter import (
    MAY_CALL,
    Adapter,
    AdapterError,
    AdapterFactory,
    Connection,
    Desk,
    Throttled,
    Unavailable,
)
from broker.config import CenterSettings
from broker.core.model import CenterId
from broker.telemetry import CALLS, log

T = TypeVar("T")

OPEN_TIMEOUT_S = 30
"""An adapter that is not open after this is tried again at the next poll."""


class Connections:
    """Adapters by center.  `factories` maps the configuration's adapter words to what opens them."""

    def __init__(
        self,
        factories: Mapping[str, AdapterFactory],
        *,
        prefix: str,
        desk: Desk | None = None,
        broker: str = "",
    ) -> None:
        self._factories = factories
        self._prefix = prefix
        self._desk = desk
        self._broker = broker
        self._settings: dict[CenterId, CenterSettings] = {}
        self._open: dict[CenterId, Adapter] = {}
        self._opening: dict[CenterId, asyncio.Lock] = {}

    async def configure(self, centers: Iterable[CenterSettings]) -> None:
        """The centers of the configuration.  One whose options changed is opened anew; one that is
        gone keeps its adapter, because its runs are tracked to their end."""
        for center in centers:
            before = self._settings.get(center.id)
            if center.adapter not in self._factories and before != center:
                log.error("adapter_not_built", center=center.id, adapter=center.adapter)
            self._settings[center.id] = center
            if before is not None and before != center:
                await self._close(center.id)

    def settings(self, center: CenterId) -> CenterSettings:
        return self._settings[center]

    def known(self) -> list[CenterId]:
        return list(self._settings)

    def current(self, center: CenterId) -> Adapter | None:
        """The adapter if it is open; opens nothing."""
        return self._open.get(center)

    def opened(self) -> list[Adapter]:
        """Those that are open, in the order of their centers' ids."""
        return [self._open[center] for center in sorted(self._open)]

    async def adapter(self, center: CenterId) -> Adapter:
        """The adapter of a center, opened if need be.

        Raises Unavailable, with the reason, when there is none of that kind or it cannot be opened.
        """
        async with self._opening.setdefault(center, asyncio.Lock()):
            if (adapter := self._open.get(center)) is not None:
                return adapter
            settings = self._settings.get(center)
            if settings is None:
                raise Unavailable(f"center {center!r} is not in the configuration any more")
            factory = self._factories.get(settings.adapter)
            if factory is None:
                raise Unavailable(f"this version has no adapter {settings.adapter!r}")
            connection = Connection(
                center=center,
                prefix=self._prefix,
                options=settings.connection,
                credentials=settings.credentials,
                pools=settings.pools,
                desk=self._desk,
                broker=self._broker,
            )
            try:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    adapter = await factory(connection)
            except TimeoutError as error:
                raise Unavailable(f"no connection within {OPEN_TIMEOUT_S} s") from error
            except (ValueError, OSError) as error:
                raise Unavailable(str(error)) from error
            self._open[center] = adapter
            log.info("center_connected", center=center, adapter=settings.adapter)
            return adapter

    async def aclose(self) -> None:
        for center in list(self._open):
            await self._close(center)

    async def _close(self, center: CenterId) -> None:
        adapter = self._open.pop(center, None)
        if adapter is not None:
            await adapter.aclose()


async def timed(center: CenterId, call: str, make: Callable[[], Awaitable[T]], timeout_s: float) -> T:
    """Make one call with a deadline, and record how long it took and how it ended.

    Raises Throttled once this daemon does not lead, TimeoutError, and what the call raises: an adapter may
    answer its cancellation with the news that nothing was sent.  A caller that is itself cancelled
    meanwhile is told so all the same.
    """
    if not MAY_CALL.get()():
        raise Throttled(f"{call}: not sent, the lease has run out", retry_after_s=1.0)
    started = asyncio.get_running_loop().time()
    outcome = "ok"
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    try:
        async with asyncio.timeout(timeout_s):
            return await make()
    except AdapterError as error:
        outcome = type(error).__name__
        if task.cancelling() > cancelled_before:
            raise asyncio.CancelledError from error
        raise
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        CALLS.labels(center, call, outcome).observe(asyncio.get_running_loop().time() - started)
