"""Deadlines of callers: a call with an effect that is cut off before it left was not sent, and only one
that may have left is in doubt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from adapters.http import Http, Limits, Request
from adapters.sent import NotSent, begun, preparing
from broker.adapter import MAY_CALL, Refused, Throttled, Unavailable
from broker.connections import timed
from broker.core.model import CenterId
from tests.http_center import OK, Platform, call, opened, payload
from tests.raw_server import Answer, Arrived

SHORT_S = 0.2


async def by_deadline(made: Http, request: Request) -> str:
    """The answer to a call whose caller gives it SHORT_S."""
    found: str = await timed(
        CenterId("sz-1"), "submit", lambda: made.json(request, payload, document={}), SHORT_S
    )
    return found


class Holding:
    """Answers nothing; `arrived` is set by the first request."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()

    async def __call__(self, _request: Arrived) -> Answer:
        self.arrived.set()
        await asyncio.Event().wait()
        return None


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(Limits(timeout_s=60, requests_per_s=1000, concurrency=1), id="slots"),
        pytest.param(Limits(timeout_s=60, requests_per_s=0.01, concurrency=8), id="pace"),
    ],
)
async def test_a_create_that_waits_for_its_turn_was_not_sent(limits: Limits) -> None:
    held = Holding()
    async with opened(held, limits=limits) as (server, made):
        first = asyncio.create_task(made.json(call(server.url), payload))
        await held.arrived.wait()
        with pytest.raises(NotSent, match="the time was up while it waited") as caught:
            await by_deadline(made, call(server.url, "POST", effect=True))
        assert isinstance(caught.value, Throttled), "the broker sends it again"
        with pytest.raises(TimeoutError):
            await by_deadline(made, call(server.url, "POST"))  # what only reads has no news
        assert len(server.requests) == 1
        first.cancel()
        await asyncio.wait([first])


async def test_a_create_that_waits_for_a_login_was_not_sent() -> None:
    platform = Platform()
    platform.delay_s = 60
    async with opened(platform) as (server, made):
        session = platform.session(made, server.url)
        with pytest.raises(NotSent, match="waited for its turn"):
            await by_deadline(made, call(server.url, "POST", effect=True, session=session))
        assert [r.path for r in server.requests] == ["/login"]
        await session.aclose()


async def test_a_create_that_waits_for_its_connection_was_not_sent() -> None:
    """TCP is there, TLS never answers: nothing of the request can have left."""
    async with opened() as (server, made):
        url = server.url.replace("http:", "https:")
        with pytest.raises(NotSent, match="waited for its turn"):
            await by_deadline(made, call(url, "POST", effect=True))
        assert (server.connections, server.requests) == (1, [])
    async with opened(limits=Limits(timeout_s=SHORT_S, requests_per_s=1000)) as (server, made):
        url = server.url.replace("http:", "https:")
        with pytest.raises(NotSent, match="no connection"):
            await made.json(call(url, "POST", effect=True), payload)
        assert (server.connections, server.requests) == (1, [])


async def test_a_create_that_has_left_is_in_doubt() -> None:
    async with opened(Holding(), limits=Limits(timeout_s=60, requests_per_s=1000)) as (server, made):
        with pytest.raises(Unavailable, match="no answer when the time was up"):
            await by_deadline(made, call(server.url, "POST", effect=True))
        assert len(server.requests) == 1


async def test_a_plain_timeout_says_the_same() -> None:
    limits = Limits(timeout_s=60, requests_per_s=1000, concurrency=1)
    held = Holding()
    async with opened(held, limits=limits) as (server, made):
        first = asyncio.create_task(made.json(call(server.url, effect=True), payload))
        await held.arrived.wait()
        with pytest.raises(NotSent):
            async with asyncio.timeout(SHORT_S):
                await made.json(call(server.url, effect=True), payload)
        assert len(server.requests) == 1
        first.cancel()
        await asyncio.wait([first])


async def test_who_is_cancelled_himself_ends_as_cancelled() -> None:
    """A loop that is ended must not go on with the news that nothing was sent."""
    limits = Limits(timeout_s=60, requests_per_s=1000, concurrency=1)
    held = Holding()
    async with opened(held, limits=limits) as (server, made):

        def once() -> Awaitable[str]:
            request = call(server.url, "POST", effect=True)
            return timed(CenterId("sz-1"), "stage", lambda: made.json(request, payload), 60)

        calls = [asyncio.ensure_future(once()) for _ in range(2)]
        await held.arrived.wait()
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)
        assert [each.cancelled() for each in calls] == [True, True]


async def test_a_breath_before_the_deadline_is_enough() -> None:
    """A place that comes free in time is used: what waits is not given up early."""
    arrived, release = asyncio.Event(), asyncio.Event()

    async def once_released(_request: Arrived) -> Answer:
        arrived.set()
        await release.wait()
        return OK

    limits = Limits(timeout_s=60, requests_per_s=1000, concurrency=1)
    async with opened(once_released, limits=limits) as (server, made):
        both = [asyncio.ensure_future(made.json(call(server.url, effect=True), payload)) for _ in range(2)]
        await arrived.wait()
        release.set()
        assert await asyncio.gather(*both) == ["fine", "fine"]


# ---------------------------------------------------------------- several calls for one run


def fails(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("error", [Unavailable("silent"), asyncio.CancelledError()])
def test_before_the_first_effect_a_failure_is_no_doubt(error: Exception) -> None:
    with pytest.raises(NotSent), preparing("create"):
        fails(error)()
    with pytest.raises(Refused), preparing("create"):
        fails(Refused("never"))()


def test_after_the_first_effect_not_sent_is_doubt() -> None:
    with pytest.raises(Unavailable, match="begun and not finished"), begun("create"):
        fails(NotSent("no connection"))()
    with pytest.raises(Refused), begun("create"):
        fails(Refused("never"))()


async def test_a_create_whose_lease_runs_out_while_it_waits_is_not_sent() -> None:
    """A process may be stopped anywhere, and wake when another leads."""
    held, leads = Holding(), True
    limits = Limits(timeout_s=60, requests_per_s=1000, concurrency=1)
    async with opened(held, limits=limits) as (server, made):
        token = MAY_CALL.set(lambda: leads)
        first = asyncio.create_task(made.json(call(server.url), payload))
        await held.arrived.wait()
        waiting = asyncio.create_task(made.json(call(server.url, "POST", effect=True), payload, document={}))
        reading = asyncio.create_task(made.json(call(server.url), payload))
        await asyncio.sleep(0)
        leads = False
        first.cancel()
        with pytest.raises(NotSent, match="the lease has run out"):
            await waiting
        with pytest.raises(Unavailable, match="the lease has run out"):
            await reading
        with pytest.raises(Throttled, match="the lease has run out"):
            await by_deadline(made, call(server.url, "POST", effect=True))
        assert len(server.requests) == 1
        MAY_CALL.reset(token)
