"""Sessions and the circuit breaker of a center: who logs in, and when it is left alone."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from adapters.breaker import FAILURES, PAUSE_S
from adapters.http import Limits, Request, Unintelligible
from adapters.sent import NotSent
from adapters.session import LoggedIn, Session
from broker.adapter import AdapterError, Denied, Throttled, Unavailable
from tests.http_center import (
    EXPIRED,
    OK,
    SECRET,
    UNAUTHORISED,
    Platform,
    call,
    failing,
    opened,
    payload,
)
from tests.raw_server import Answer, Arrived, Stalled, answer, document

# ---------------------------------------------------------------- sessions


@pytest.mark.parametrize("expired", [EXPIRED, UNAUTHORISED])
async def test_all_wait_for_one_login(expired: bytes) -> None:
    platform = Platform(expired=lambda _request: expired)
    platform.delay_s = 0.05
    async with opened(platform, limits=Limits(requests_per_s=10_000)) as (server, made):
        session = platform.session(made, server.url)
        requests = [call(server.url, session=session) for _ in range(10)]
        assert set(await asyncio.gather(*(made.json(r, payload) for r in requests))) == {"fine"}
        assert platform.logins == 1
        platform.good = "nobody's"
        assert set(await asyncio.gather(*(made.json(r, payload) for r in requests))) == {"fine"}
        assert platform.logins == 2
        await session.aclose()


async def test_a_caller_who_gives_up_does_not_end_the_login_of_others() -> None:
    platform = Platform()
    platform.delay_s = 0.1
    async with opened(platform) as (server, made):
        session = platform.session(made, server.url)
        first = asyncio.create_task(made.json(call(server.url, session=session), payload))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(made.json(call(server.url, session=session), payload))
        await asyncio.sleep(0.02)
        first.cancel()
        assert await second == "fine"
        assert platform.logins == 1
        assert first.cancelled()


@pytest.mark.parametrize(
    ("expired", "rejects", "again"),
    [
        (EXPIRED, True, False),
        (document({"code": 401, "msg": "nothing was done"}), False, True),
        (UNAUTHORISED, False, False),
        (UNAUTHORISED, True, True),
    ],
)
async def test_a_call_with_an_effect_is_made_again_only_if_nothing_was_done(
    expired: bytes, rejects: bool, again: bool
) -> None:
    platform = Platform(expired=lambda _request: expired)
    async with opened(platform) as (server, made):
        session = platform.session(made, server.url, rejects=rejects)
        await made.json(call(server.url, session=session), payload)
        platform.good = "nobody's"
        create = Request("create", "POST", f"{server.url}/create", True, session=session)
        if again:
            assert await made.json(create, payload) == "fine"
        else:
            assert "unknown" in await failing(made, create, Unavailable)
        assert sum(r.path == "/create" for r in server.requests) == 1 + again
        assert await made.json(call(server.url, session=session), payload) == "fine", "the next call logs in"


async def test_refused_credentials_are_remembered_for_a_pause() -> None:
    platform = Platform()
    platform.password = "another"
    at = [0.0]
    async with opened(platform) as (server, made):
        session = platform.session(made, server.url, clock=lambda: at[0])
        for _ in range(20):
            text = await failing(made, call(server.url, session=session, effect=True), Denied)
            assert "wrong password" in text
            assert SECRET not in text
        assert platform.logins == 1
        at[0] = 299.0
        await failing(made, call(server.url, session=session), Denied)
        assert platform.logins == 1
        at[0], platform.password = 301.0, SECRET
        assert await made.json(call(server.url, session=session), payload) == "fine"


async def test_new_sessions_that_are_never_good_make_no_storm() -> None:
    platform = Platform(expired=lambda _request: UNAUTHORISED)
    at = [0.0]

    async def confused(request: Arrived) -> Answer:
        reply = await platform(request)
        platform.good = "nobody's"
        return reply

    async with opened(confused) as (server, made):
        session = platform.session(made, server.url, clock=lambda: at[0])
        ends = []
        for _ in range(30):
            try:
                await made.json(call(server.url, session=session), payload)
            except AdapterError as error:
                ends.append(type(error))
        assert platform.logins == 3
        assert ends == [Denied] + 29 * [Throttled]
        at[0] = 6.0
        await failing(made, call(server.url, session=session), Throttled)
        assert platform.logins == 4


async def test_a_session_is_renewed_before_it_ends() -> None:
    at, logins = [0.0], 0

    async def log_in() -> LoggedIn:
        nonlocal logins
        logins += 1
        return LoggedIn({}, ttl_s=100, facts={"id": 7})

    session = Session("sz-1", "u", log_in, rejects_before_acting=True, clock=lambda: at[0])
    assert (await session.current()).facts["id"] == 7
    for at[0], expected in ((89.0, 1), (91.0, 2), (180.0, 2), (182.0, 3)):
        await session.current()
        assert logins == expected


async def test_a_session_is_a_secret() -> None:
    def echo(request: Arrived) -> Answer:
        return answer(f"<p>who is {request.headers['authorization'][7:]}</p>", kind="text/html")

    async def log_in() -> LoggedIn:
        return LoggedIn({"Authorization": "Bearer learnt-by-login"})

    async with opened(echo) as (server, made):
        session = Session("sz-1", "u", log_in, rejects_before_acting=True)
        text = await failing(made, call(server.url, session=session), Unintelligible)
        assert "who is ***" in text


@pytest.mark.parametrize("reply", [None, answer("<p>busy</p>", status=503, kind="text/html")])
async def test_without_a_login_nothing_was_sent(reply: Answer) -> None:
    platform = Platform()

    async def answers(request: Arrived) -> Answer:
        return reply if request.path == "/login" else await platform(request)

    async with opened(answers) as (server, made):
        session = platform.session(made, server.url)
        text = await failing(made, call(server.url, session=session, effect=True), NotSent)
        assert "no login" in text
        assert "no login" in await failing(made, call(server.url, session=session), Unavailable)
        assert [r.path for r in server.requests] == ["/login", "/login"]


async def test_without_a_session_http_401_is_denied() -> None:
    async with opened(UNAUTHORISED) as (server, made):
        await failing(made, call(server.url, effect=True), Denied)


# ---------------------------------------------------------------- the breaker


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_a_center_that_fails_is_left_alone() -> None:
    at = [0.0]
    reply: list[Answer] = [answer("oops", status=502, kind="text/html")]
    async with opened(lambda _r: reply[0], clock=lambda: at[0], center="wh-9") as (server, made):

        def state() -> float | None:
            return shown("broker_center_breaker", center="wh-9")

        assert state() == 0
        for _ in range(FAILURES):
            await failing(made, call(server.url), Unintelligible)
        assert state() == 2
        arrived = len(server.requests)
        assert "left alone" in await failing(made, call(server.url), Unavailable)
        with pytest.raises(NotSent) as caught:
            await made.json(call(server.url, effect=True), payload)
        assert caught.value.retry_after_s == PAUSE_S
        assert len(server.requests) == arrived == FAILURES

        await failing(made, call(server.url, effect=True, urgent=True), Unintelligible)
        assert len(server.requests) == arrived + 1, "a stop is always tried"

        at[0] = PAUSE_S + 1
        await failing(made, call(server.url), Unintelligible)
        await failing(made, call(server.url), Unavailable)
        assert len(server.requests) == arrived + 2, "one call on trial, and it failed"

        at[0] += 2 * PAUSE_S + 1
        reply[0] = OK
        assert await made.json(call(server.url), payload) == "fine"
        assert await made.json(call(server.url), payload) == "fine"
        assert state() == 0
    requests = "broker_center_requests_total"
    assert shown(requests, center="wh-9", operation="thing", outcome="Unintelligible") == FAILURES + 2
    assert shown(requests, center="wh-9", operation="thing", outcome="NotSent") == 3
    assert shown(requests, center="wh-9", operation="thing", outcome="ok") == 2


async def test_only_one_call_is_on_trial_and_its_login_passes() -> None:
    at = [0.0]
    platform = Platform()
    platform.delay_s = 0.05
    broken = [True]

    async def answers(request: Arrived) -> Answer:
        return None if broken[0] else await platform(request)

    async with opened(answers, clock=lambda: at[0]) as (server, made):
        session = platform.session(made, server.url)
        request = call(server.url, session=session)
        for _ in range(FAILURES):
            await failing(made, request, Unavailable)
        at[0], broken[0] = PAUSE_S + 1, False
        ends = await asyncio.gather(*(made.json(request, payload) for _ in range(5)), return_exceptions=True)
        assert [e for e in ends if e == "fine"] == ["fine"]
        assert sum(isinstance(e, Unavailable) for e in ends) == 4
        assert platform.logins == 1


async def test_a_platform_that_says_no_is_not_left_alone() -> None:
    for given in (document({"code": 9, "msg": "no"}, status=422), answer("no such page", status=404)):
        async with opened(given) as (server, made):
            for _ in range(3 * FAILURES):
                with pytest.raises(AdapterError):
                    await made.json(call(server.url), payload)
            assert len(server.requests) == 3 * FAILURES


async def test_answers_that_stop_in_the_middle_are_none() -> None:
    async with opened(Stalled(answer('{"code": 0, "data": 1}', cut=5))) as (server, made):
        for _ in range(FAILURES):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await made.json(call(server.url), payload)
        assert "left alone" in await failing(made, call(server.url), Unavailable)
        assert len(server.requests) == FAILURES


async def test_a_cancelled_trial_gives_its_place_back() -> None:
    at = [0.0]
    mode = ["drop"]

    async def answers(_request: Arrived) -> Answer:
        if mode[0] == "hang":
            await asyncio.Event().wait()
        return OK if mode[0] == "well" else None

    async with opened(answers, clock=lambda: at[0]) as (server, made):
        for _ in range(FAILURES):
            await failing(made, call(server.url), Unavailable)
        mode[0], at[0] = "hang", PAUSE_S + 1
        trial = asyncio.create_task(made.json(call(server.url), payload))
        await asyncio.sleep(0.05)
        trial.cancel()
        await asyncio.wait([trial])
        mode[0], at[0] = "well", 100.0
        assert await made.json(call(server.url), payload) == "fine"
