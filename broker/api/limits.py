"""How much anybody may ask for: token buckets per account, name and address, and 503 under overload.

What belongs here: the buckets, who is counted as whom, and the refusals.  What does not: sizes of
bodies and pages (reading.py, paging.py), and limits of any one feature.

Buckets are in memory and of this process: a restart fills them, replicas count apart.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.api.context import CALLER, CONTEXT
from broker.api.errors import Overloaded, TooMany
from broker.config import LimitSettings

MOST_BUCKETS = 100_000
"""Of one kind; beyond it full ones are forgotten, and all when that leaves too many."""

LONGEST_NAME = 256
"""Characters of a name that a bucket is kept for: no account has so long a one, and anybody may send one
as long as a body."""

IPV6_BITS = 64
"""What one subscriber has of IPv6: its addresses count as one."""

HEALTH = frozenset({"/healthz", "/readyz", "/metrics"})
"""Answered however much there is to do."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Buckets:
    """A token bucket of `burst` tokens for every key, each filled with `per_s` tokens a second."""

    def __init__(self, *, per_s: float, burst: int, clock_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock_s = clock_s
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: str) -> float:
        """Take a token; 0.0, or the seconds until there is one, when none was taken."""
        now = self._clock_s()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                self._forget_full(now)
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at_s) * self._per_s)
        bucket.at_s = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._per_s
        bucket.tokens -= 1
        return 0.0

    def give_back(self, key: str) -> None:
        """What was taken was not used."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.tokens = min(self._burst, bucket.tokens + 1)

    def _forget_full(self, now: float) -> None:
        full_s = self._burst / self._per_s
        self._buckets = {key: each for key, each in self._buckets.items() if now - each.at_s < full_s}
        if len(self._buckets) > MOST_BUCKETS // 2:  # else the next look would come too soon
            self._buckets.clear()


class Limits:
    """The buckets of one application."""

    def __init__(
        self, settings: LimitSettings, trusted_proxies: Sequence[str], clock_s: Callable[[], float]
    ) -> None:
        self.settings = settings
        self._proxies = [ipaddress.ip_network(each) for each in trusted_proxies]
        self._requests = Buckets(per_s=settings.requests_per_s, burst=settings.request_burst, clock_s=clock_s)
        failures = settings.login_failures_per_minute / 60
        self._names = Buckets(per_s=failures, burst=settings.login_failure_burst, clock_s=clock_s)
        self._addresses = Buckets(per_s=failures, burst=settings.login_failure_burst, clock_s=clock_s)
        guesses = settings.unknown_tokens_per_minute / 60
        self._tokens = Buckets(per_s=guesses, burst=settings.unknown_token_burst, clock_s=clock_s)
        hourly = settings.registrations_per_hour
        self._registrations = Buckets(per_s=hourly / 3600, burst=hourly, clock_s=clock_s)

    def request(self, account: str) -> None:
        """Count a request of an account.  Raises TooMany."""
        wait_s = self._requests.take(account)
        if wait_s:
            raise TooMany(
                _whole(wait_s),
                f"more than {self.settings.requests_per_s:g} requests a second of one account"
                " (limits.requests_per_s)",
            )

    def login(self, name: str, address: str) -> None:
        """Count a login that is about to be tried, before anything is computed for it.

        A right one is given back (`logged_in`), so only failures count.  Raises TooMany.
        """
        name = name[:LONGEST_NAME]
        wait_s = self._addresses.take(address)
        if not wait_s and (wait_s := self._names.take(name)):
            self._addresses.give_back(address)
        if wait_s:
            raise TooMany(
                _whole(wait_s),
                "too many failed logins of this name or from this address"
                f" ({self.settings.login_failures_per_minute} a minute, limits.login_failures_per_minute)",
            )

    def logged_in(self, name: str, address: str) -> None:
        self._names.give_back(name[:LONGEST_NAME])
        self._addresses.give_back(address)

    def unknown_token(self, address: str) -> None:
        """Count a token that was never right before, before the store is asked for it.

        One that is right, or of which nothing is learned, is given back.  Raises TooMany.
        """
        wait_s = self._tokens.take(address)
        if wait_s:
            raise TooMany(
                _whole(wait_s),
                "too many unknown tokens from this address"
                f" ({self.settings.unknown_tokens_per_minute} a minute, limits.unknown_tokens_per_minute)",
            )

    def token_not_wrong(self, address: str) -> None:
        self._tokens.give_back(address)

    def registration(self, address: str) -> None:
        """Count a registration.  Raises TooMany."""
        wait_s = self._registrations.take(address)
        if wait_s:
            raise TooMany(
                _whole(wait_s),
                f"more than {self.settings.registrations_per_hour} accounts an hour from one address"
                " (limits.registrations_per_hour)",
            )

    def address(self, request: web.Request) -> str:
        """Who sent the request: the peer, or what trusted proxies say of whom they speak for.

        X-Forwarded-For is read from its end, each proxy having appended whom it was asked by; the
        first address that is no trusted proxy counts, since whatever stands before it may be made up.
        """
        found = _parsed(request.remote or "")
        said = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        while found is not None and self._trusted(found) and said:
            before = _parsed(said.pop().strip())
            if before is None:
                break
            found = before
        if found is None:
            return request.remote or ""
        if found.version == 6:
            return str(ipaddress.ip_network((found, IPV6_BITS), strict=False))
        return str(found)

    def _trusted(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._proxies)


LIMITS = web.AppKey("limits", Limits)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def _whole(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))


@web.middleware
async def shed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Under overload a quick 503 is worth more than an answer that nobody waits for any more."""
    most = request.app[LIMITS].settings.store_waiting
    store = request.app[CONTEXT].store
    waiting = max(store.backlog, store.reads_waiting)
    if waiting >= most and request.path not in HEALTH:
        raise Overloaded(f"{waiting} reads or writes wait for the database (limits.store_waiting)")
    return await handler(request)


@web.middleware
async def throttle(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts a request to its account, where it has one."""
    caller = request.get(CALLER)
    if caller is not None:
        request.app[LIMITS].request(caller.id)
    return await handler(request)
