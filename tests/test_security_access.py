"""Who gets in: passwords, tokens, signed links, and questions that would show what is not one's own.

What belongs here: guesses, forgeries and what their answers tell.  What does not: accounts and keys that
are used as they are meant (test_api_auth.py, test_api_keys.py, test_services_access.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from aiohttp import web
from argon2 import PasswordHasher, extract_parameters

from broker.api import auth
from broker.api.auth import GATE, KEY_PREFIX
from broker.api.limits import LIMITS, LONGEST_NAME
from broker.api.services import _signed
from broker.store import accounts
from tests.api_fixtures import HASHER, World, close_world, noted_lookups, open_world, token_of, world
from tests.service_world import bare, forget, serve, server

__all__ = ["world"]


def login(name: str, password: str) -> dict[str, Any]:
    return {"authMethod": "password", "user": {"name": name, "password": password}}


# ---------------------------------------------------------------- passwords


class Counting(PasswordHasher):
    """Argon2 as it is; what it was asked is kept."""

    asked: list[str]

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
        self.asked.append(str(hash))
        return super().verify(hash, password)


async def test_a_name_that_does_not_exist_costs_the_same_work(tmp_path: Path) -> None:
    """Not timed: the same function is asked once, with a hash of the same cost, and the answers are equal."""
    hasher = Counting(time_cost=1, memory_cost=64, parallelism=1)
    hasher.asked = []
    opened = await open_world(tmp_path, hasher=hasher)
    try:
        answers = [
            await opened.refused("POST", "/auth/tokens", login(name, "wrong"), as_=None)
            for name in ("alice", "nobody", "' OR 1=1 --", "%")
        ]
        assert len(hasher.asked) == 4
        costs = [extract_parameters(asked) for asked in hasher.asked]
        assert costs == [extract_parameters(HASHER.hash("x"))] * 4
        assert len(set(answers)) == 1
    finally:
        await close_world(opened)


async def test_guesses_freeze_the_account_and_tell_nothing(world: World) -> None:
    """freeze_after is 3 here; the right password is told of the freeze, a wrong one is not."""
    told = [
        await world.refused("POST", "/auth/tokens", login("alice", f"guess-{i}"), as_=None) for i in range(4)
    ]
    assert {each[:2] for each in told} <= {(401, "0101"), (429, "")}
    assert len({each for each in told if each[0] == 401}) == 1
    right = await world.refused("POST", "/auth/tokens", login("alice", "pw-alice"), as_=None)
    assert right[:2] == (401, "0103")  # after the failures, which the writer counts in order
    assert (await world.refused("GET", "/broker/v1/me"))[:2] == (401, "0103")


async def test_names_that_are_guessed_take_little_memory(world: World) -> None:
    """Each is counted; one of the length of a body would be kept as long."""
    app = world.client.app
    assert app is not None
    for i in range(3):
        name = f"{i}" + "n" * 100_000
        answer = await world.call("POST", "/auth/tokens", login(name, "wrong"), as_=None)
        assert answer.status == 401
    kept = app[LIMITS]._names._buckets
    assert len(kept) == 3
    assert max(map(len, kept)) == LONGEST_NAME


# ---------------------------------------------------------------- tokens


async def test_tokens_cannot_be_guessed(world: World) -> None:
    made = [
        (await world.ok("POST", "/auth/tokens", login("bob", "pw-bob"), as_=None))["token"] for _ in range(20)
    ]
    assert len(set(made)) == 20
    assert all(len(each) >= 43 and KEY_PREFIX not in each for each in made)  # 256 bits


async def test_a_flood_of_wrong_tokens_takes_little_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are none the hashes of the newest are kept, and nothing of the rest."""
    monkeypatch.setattr(auth, "REMEMBERED_TOKENS", 100)
    app = world.client.app
    assert app is not None
    kept, statuses = len(app[GATE]._found), set()
    for i in range(300):
        token = f"{KEY_PREFIX if i % 2 else ''}wrong-{i}"
        answer = await world.call("GET", "/broker/v1/me", as_=None, headers={"X-Auth-Token": token})
        statuses.add(answer.status)
    assert statuses == {401, 429}
    assert len(app[GATE]._found) == kept
    assert len(app[GATE]._nobodys) == 100
    assert app[GATE].nobodys(auth.token_hash("brk.wrong-199"))
    assert not app[GATE].nobodys(auth.token_hash("wrong-0"))


async def test_a_token_is_looked_for_by_its_hash_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no comparison of secrets takes a time that tells how much of one was right."""
    looked = noted_lookups(monkeypatch)
    token = token_of("alice")
    app = world.client.app
    assert app is not None
    app[GATE].forget()
    await world.ok("GET", "/broker/v1/me")
    await world.call("GET", "/broker/v1/me", as_=None, headers={"X-Auth-Token": f"{KEY_PREFIX}x"})
    assert looked == [auth.token_hash(token), auth.token_hash(f"{KEY_PREFIX}x")]


@pytest.mark.parametrize(
    "token",
    ["'", '" OR ""="', "%", "_", "*", "\0", "a" * 8000, "é", "null", "undefined", "Bearer", "brk.", "../x"],
)
async def test_odd_tokens_are_wrong_tokens(world: World, token: str) -> None:
    for headers in ({"X-Auth-Token": token}, {"Authorization": f"Bearer {token}"}):
        if "\0" in token:
            continue  # no header has it: test_security_headers.py
        answer = await world.call("GET", "/broker/v1/me", as_=None, headers=headers)
        assert answer.status in (400, 401)


# ---------------------------------------------------------------- signed links


def changed(url: str, **fields: str) -> str:
    parts = urlsplit(url)
    known = {**dict(parse_qsl(parts.query)), **fields}
    return f"{parts.path}?{urlencode(known)}"


async def log_link(world: World) -> str:
    job = await world.create("logged")
    run = await world.run_job(job)
    made = await world.ok("GET", f"/trainjob/{job}/tasks/{run}/logs/url?contentType=text/plain")
    return str(made["logUrl"])


@pytest.mark.parametrize(
    "fields",
    [
        {"exp": "99999999999"},
        {"exp": "-1"},
        {"exp": "0"},
        {"exp": "9" * 5000},
        {"exp": "１７４０７９４７００"},
        {"contentType": "text/html"},
        {"contentType": "application/octet-stream"},
        {"sig": ""},
        {"sig": "0" * 64},
        {"sig": "é" * 64},
        {"sig": "0" * 5000},
    ],
    ids=str,
)
async def test_a_link_to_a_log_that_was_changed_opens_nothing(world: World, fields: dict[str, str]) -> None:
    link = await log_link(world)
    answer = await bare(world, "GET", changed(link, **fields))
    assert answer.status in (400, 401)
    assert (await bare(world, "GET", changed(link))).status == 200


async def test_a_link_opens_one_log_by_one_method_and_for_a_while(world: World) -> None:
    link = changed(await log_link(world))
    other = await world.run_job(await world.create("other"))
    assert (await bare(world, "GET", link.replace(link.split("/")[2].partition("?")[0], other))).status == 401
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert (await bare(world, method, link)).status == 405
    start = world.clock.now_ms
    world.clock.now_ms = start - 86_400_000  # a clock that was set back
    assert (await bare(world, "GET", link)).status == 200
    world.clock.now_ms = start // 1000 * 1000 + 300_000 - 1
    assert (await bare(world, "GET", link)).status == 200
    world.clock.now_ms += 1
    assert (await bare(world, "GET", link)).status == 401


async def test_a_link_of_another_broker_opens_nothing(world: World, tmp_path: Path) -> None:
    """The key is drawn by each installation; the same ids there are no links here."""
    async with server() as here:
        job, _ = await serve(world, here)
        other = await open_world(tmp_path / "other", signing_key=b"another key of 32 bytes.........")
        try:
            assert other.context.signing_key != world.context.signing_key
            forged = _signed(other.context, "link", job, world.accounts["alice"].id, 9_999_999_999)
            own = _signed(world.context, "link", job, world.accounts["alice"].id, 9_999_999_999)
            assert (await bare(world, "GET", f"/services/{job}/?brokerLink={forged}")).status == 401
            assert (await bare(world, "GET", f"/services/{job}/?brokerLink={own}")).status == 303
        finally:
            await close_world(other)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_link_by_another_method_reaches_no_service(world: World, method: str) -> None:
    """Its owner would read it there, and be let in as whom it was made for."""
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.path_qs)
        return web.Response()

    async with server(note) as here:
        job, _ = await serve(world, here, public=True)
        link = urlsplit((await world.ok("POST", f"/broker/v1/services/{job}/link"))["url"])
        answer = await bare(world, method, f"{link.path}x?{link.query}")
        assert answer.status == 400
        assert (await bare(world, method, f"{link.path}x?page=2")).status == 200
    assert seen == ["/x?page=2"]


async def test_the_link_of_one_who_lost_the_right_opens_nothing(world: World) -> None:
    async with server() as here:
        job, _ = await serve(world, here)
        link = urlsplit((await world.ok("POST", f"/broker/v1/services/{job}/link", as_="carol"))["url"])
        entered = await bare(world, "GET", f"{link.path}?{link.query}")
        jar = {"Cookie": f"broker_service={entered.cookies['broker_service'].value}"}
        assert (await bare(world, "GET", link.path, headers=jar)).status == 200
        await world.store.write(accounts.set_frozen, "carol", True, actor="root")
        forget(world)
        assert (await bare(world, "GET", link.path, headers=jar)).status == 401


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("query", ["%", "_", "%%", "__", "\\", "/%", "[a-z]", "' OR 1=1 --", '"'])
async def test_signs_of_a_pattern_are_plain_text(world: World, query: str) -> None:
    await world.create("alpha")
    for path in (f"/trainjob?query={quote(query)}", f"/datasets?query={quote(query)}"):
        assert (await world.ok("GET", path))["totalSize"] == 0, path
    assert (await world.ok("GET", "/trainjob?query=alp"))["totalSize"] == 1


async def test_what_is_somebody_elses_is_answered_as_what_is_not_there(world: World) -> None:
    job = await world.create("hers")
    for method, path in (
        ("GET", "/trainjob/{}"),
        ("DELETE", "/trainjob/{}"),
        ("POST", "/trainjob/{}/stop"),
        ("GET", "/trainjob/{}/download"),
        ("GET", "/broker/v1/jobs/{}"),
        ("GET", "/broker/v1/jobs/{}/logs"),
    ):
        for who in ("bob", "eve"):
            hers = await world.refused(method, path.format(job), as_=who)
            none = await world.refused(method, path.format("j-none"), as_=who)
            assert hers[:2] == none[:2] == (400, "0240"), path
            assert hers[2].replace(job, "j-none") == none[2]
