"""The switchboard of faults: what each kind does to a call, and that the same seed gives the same."""

from __future__ import annotations

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from aiohttp.test_utils import TestServer

from tests.emulators.faults import FAULT, TRANSPORT, Fault, Faults, Occurred

PATIENCE = ClientTimeout(total=30)
IMPATIENCE = ClientTimeout(total=0.5)  # for what never comes
SEEN = {
    Fault.LOST_REPLY: (1, None),
    Fault.DROPPED: (0, None),
    Fault.HTML_500: (0, 500),
    Fault.HTML_502: (1, 502),
    Fault.HANG: (0, None),
    Fault.SLOW_BODY: (1, 200),
    Fault.GARBAGE: (1, 200),
    Fault.TRUNCATED: (1, 200),
}


@pytest.mark.parametrize("fault", TRANSPORT)
async def test_a_fault_of_the_transport(fault: Fault) -> None:
    """What the caller sees, and whether the action has happened."""
    faults, done = Faults(slow_s=0.05), []

    async def act(request: web.Request) -> web.Response:
        done.append(request[FAULT])
        return web.json_response({"answer": "whole"})

    app = web.Application(middlewares=[faults.middleware])
    app.router.add_post("/act", act, name="act")
    timeout = IMPATIENCE if fault is Fault.HANG else PATIENCE
    async with TestServer(app) as server, ClientSession(timeout=timeout) as client:
        faults.plan("act", fault)
        status = body = None
        try:
            async with client.post(server.make_url("/act"), json={}) as answer:
                status, body = answer.status, await answer.read()
        except (ClientError, TimeoutError):
            pass
    assert (len(done), status) == SEEN[fault]
    assert (body == b'{"answer": "whole"}') == (fault is Fault.SLOW_BODY)
    assert faults.occurred == [Occurred("act", fault)]


def test_the_same_seed_gives_the_same_faults_evenly() -> None:
    def drawn(seed: int) -> list[Fault | None]:
        faults = Faults(seed=seed, only={Fault.STALE_READ: ["list"]})
        faults.chance(0.5, [*TRANSPORT, Fault.STALE_READ], ["list", "create"])
        assert faults.draw("other") is None
        return [faults.draw(name) for name in ("list", "create") * 1000]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    assert 900 < sum(fault is not None for fault in first) < 1100
    assert all(80 < first.count(kind) < 160 for kind in TRANSPORT)
    assert Fault.STALE_READ in first[::2]
    assert Fault.STALE_READ not in first[1::2]


def test_planned_faults_come_first_and_calm_ends_all() -> None:
    faults = Faults()
    faults.chance(1.0, [Fault.HANG])
    faults.plan("list", None, Fault.GARBAGE)
    assert [faults.draw("list") for _ in range(3)] == [None, Fault.GARBAGE, Fault.HANG]
    faults.calm()
    assert faults.draw("list") is None
