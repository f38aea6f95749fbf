"""A login at a center: one flight of it for all who wait, and none in a storm.

Here: when to log in again and who waits for it.  Not here: how a platform logs in, and the calls
that use the session (http.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter

from broker.adapter import Denied, Throttled, Unavailable

DENIED_PAUSE_S = 300.0
"""After refused credentials no login is tried for this long, or until they change (a reload opens the
center anew): most platforms lock an account that fails too often."""
FRESH_REJECTIONS = 3
"""New sessions in a row that may be rejected at their first call before logins are slowed down."""
RELOGIN_PAUSE_S = 5.0
"""The first pause then; doubled each time, up to DENIED_PAUSE_S."""

LOGINS = Counter("broker_center_logins", "Logins at a center", ["center", "outcome"])

LOGGING_IN: ContextVar[bool] = ContextVar("logging_in", default=False)
"""Set inside a login: its calls are part of a call that the breaker has let pass."""


class SessionExpired(Denied):
    """The session is not valid (any more).  `no_effect`: the answer proves that nothing was done.

    Raised by an envelope check, and for HTTP 401; the call that meets it logs in again.
    """

    def __init__(self, message: str, *, no_effect: bool = False) -> None:
        super().__init__(message)
        self.no_effect = no_effect


@dataclass(frozen=True, slots=True, eq=False)
class LoggedIn:
    """What a login gave: the headers of later calls, its life in seconds where the platform tells it,
    and what else the platform said of the account."""

    headers: Mapping[str, str] = field(repr=False)
    ttl_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """One account's login at one center.

    `login` makes it: it raises Denied where the platform refuses the credentials.
    `rejects_before_acting`: HTTP 401 of this platform proves that the call was not carried out, so a
    call with an effect may be made again.  `clock` is in seconds and never goes back.
    """

    def __init__(
        self,
        center: str,
        account: str,
        login: Callable[[], Awaitable[LoggedIn]],
        *,
        rejects_before_acting: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.account = account
        self.rejects_before_acting = rejects_before_acting
        self._center = center
        self._login = login
        self._clock = clock
        self._current: LoggedIn | None = None
        self._renew_at: float | None = None
        self._proven = False  # a call has succeeded with the current one
        self._rejections = 0  # of sessions that never worked, in a row
        self._not_before = 0.0
        self._refusal: str = ""
        self._flight: asyncio.Task[LoggedIn] | None = None

    async def current(self) -> LoggedIn:
        """The session, after a login if need be.

        Raises what the login raises; Denied while refused credentials are remembered; Throttled while
        logins are slowed down.  Either way nothing has been sent for the caller's own call.
        """
        if self._current is not None and (self._renew_at is None or self._clock() < self._renew_at):
            return self._current
        if self._flight is None:
            self._may_log_in()
            self._flight = asyncio.create_task(self._fly(), name=f"login {self._center} {self.account}")
            self._flight.add_done_callback(self._landed)
        flight = self._flight
        try:
            # Shielded: one caller who gives up does not end the login of the others.
            return await asyncio.shield(flight)
        except asyncio.CancelledError:
            if flight.cancelled() and not _cancelled():
                raise Unavailable("the connection was closed during the login") from None
            raise

    def works(self, used: LoggedIn) -> None:
        """A call made with this login was not rejected."""
        if used is self._current:
            self._proven, self._rejections = True, 0

    def reject(self, used: LoggedIn) -> None:
        """The platform did not accept this login; the next call makes another, unless somebody has."""
        if used is not self._current:
            return
        self._current = None
        if self._proven:
            return
        self._rejections += 1
        if (over := self._rejections - FRESH_REJECTIONS) >= 0:
            pause_s = min(RELOGIN_PAUSE_S * 2 ** min(over, 16), DENIED_PAUSE_S)
            self._not_before = self._clock() + pause_s

    def _may_log_in(self) -> None:
        left_s = self._not_before - self._clock()
        if left_s <= 0:
            return
        if self._refusal:
            raise Denied(f"{self._refusal}; the next login is tried in {left_s:.0f} s")
        raise Throttled(
            f"new sessions of {self.account} were rejected {self._rejections} times in a row;"
            f" the next login is made in {left_s:.0f} s",
            retry_after_s=left_s,
        )

    async def _fly(self) -> LoggedIn:
        LOGGING_IN.set(True)  # this task's own context
        outcome = "ok"
        try:
            found = await self._login()
            if not all(value.isprintable() for value in found.headers.values()):  # the platform's word
                raise Unavailable(f"login of {self.account}: a session with characters that no header has")
        except BaseException as error:
            outcome = type(error).__name__
            if isinstance(error, Denied):
                self._refusal = f"login of {self.account}: {error}"
                self._not_before = self._clock() + DENIED_PAUSE_S
            raise
        finally:
            LOGINS.labels(self._center, outcome).inc()
        self._refusal, self._proven, self._current = "", False, found
        # A tenth of its life early: a session should not end between two calls of one step.
        self._renew_at = None if found.ttl_s is None else self._clock() + 0.9 * found.ttl_s
        return found

    def _landed(self, flight: asyncio.Task[LoggedIn]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # taken here: all who waited may have given up

    async def aclose(self) -> None:
        """End a login under way."""
        if (flight := self._flight) is not None:
            flight.cancel()
            await asyncio.wait([flight])


def _cancelled() -> bool:
    """Whether it is the caller who gives up."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
