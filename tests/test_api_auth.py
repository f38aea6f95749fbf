"""Logins, tokens, freezing and accounts."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from sqlmodel import select

from broker.store import accounts
from broker.tables import Token
from tests.api_fixtures import HASHER, World, create_body, together, token_of, world

__all__ = ["world"]


def login(name: str, password: str, method: Any = "password") -> dict[str, Any]:
    return {"authMethod": method, "user": {"name": name, "password": password}}


async def log_in(world: World, name: str = "alice") -> str:
    answer = await world.ok("POST", "/auth/tokens", login(name, f"pw-{name}"), as_=None)
    return str(answer["token"])


@pytest.mark.parametrize("method", ["password", ["password"], '["password"]'])
async def test_login_gives_a_token_that_works_and_its_end(world: World, method: Any) -> None:
    answer = await world.ok("POST", "/auth/tokens", login("alice", "pw-alice", method), as_=None)
    assert set(answer) == {"token", "expiresAt"}
    assert answer["expiresAt"] == "2025-03-01 11:00:00"
    assert len(answer["token"]) == 43  # 256 bits
    me = await world.ok("GET", "/broker/v1/me", as_=None, headers={"X-Auth-Token": answer["token"]})
    assert me.pop("balance")["tenant"] == "lab"
    assert me == {
        "id": world.accounts["alice"].id,
        "name": "alice",
        "tenant": "lab",
        "role": "user",
        "vip": False,
    }


async def test_the_bearer_header_works_too_and_the_other_one_goes_before(world: World) -> None:
    bearer = {"Authorization": f"bearer {token_of('bob')}"}
    assert (await world.ok("GET", "/broker/v1/me", as_=None, headers=bearer))["name"] == "bob"
    assert (await world.ok("GET", "/broker/v1/me", as_="alice", headers=bearer))["name"] == "alice"


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Auth-Token": "nobody's"}, {"X-Auth-Token": " "}, {"Authorization": f"Basic {token_of('bob')}"}],
)
async def test_no_token_or_an_unknown_one_is_0101(world: World, headers: dict[str, str]) -> None:
    status, code, _ = await world.refused("GET", "/trainjob", as_=None, headers=headers)
    assert (status, code) == (401, "0101")


async def test_the_token_is_looked_at_before_the_body(world: World) -> None:
    assert (await world.refused("POST", "/trainjob", b"{", as_=None))[:2] == (401, "0101")


async def test_an_expired_token_is_0102(world: World) -> None:
    token = {"X-Auth-Token": await log_in(world)}
    world.clock.now_ms += 3_600_000 - 1
    await world.ok("GET", "/broker/v1/me", as_=None, headers=token)
    world.clock.now_ms += 1
    assert (await world.refused("GET", "/broker/v1/me", as_=None, headers=token))[:2] == (401, "0102")


@pytest.mark.parametrize(("name", "password"), [("alice", "wrong"), ("nobody", "pw-alice"), ("alice", "")])
async def test_wrong_credentials_are_0101_and_never_repeated(world: World, name: str, password: str) -> None:
    status, code, detail = await world.refused("POST", "/auth/tokens", login(name, password), as_=None)
    assert (status, code) == (401, "0101")
    assert detail == "user.name or user.password is wrong"


async def test_wrong_passwords_in_a_row_freeze_the_account(world: World) -> None:
    token = {"X-Auth-Token": await log_in(world)}
    for _ in range(2):
        await world.refused("POST", "/auth/tokens", login("alice", "wrong"), as_=None)
    await log_in(world)  # a right one starts the count again
    for _ in range(3):
        assert (await world.refused("POST", "/auth/tokens", login("alice", "no"), as_=None))[1] == "0101"
    right = await world.refused("POST", "/auth/tokens", login("alice", "pw-alice"), as_=None)
    assert right[:2] == (401, "0103")
    # whoever does not know the password learns nothing of the freeze
    assert (await world.refused("POST", "/auth/tokens", login("alice", "no"), as_=None))[1] == "0101"
    assert (await world.refused("GET", "/broker/v1/me", as_=None, headers=token))[:2] == (401, "0103")


async def test_a_freeze_written_elsewhere_shows_within_two_seconds(world: World) -> None:
    await world.ok("GET", "/broker/v1/me")
    await world.store.write(accounts.set_frozen, "alice", True, actor="somebody else")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 2
    while (await world.call("GET", "/broker/v1/me")).status == 200:
        assert loop.time() < deadline
        await asyncio.sleep(0.05)
    assert (await world.refused("GET", "/broker/v1/me"))[:2] == (401, "0103")


async def test_logout_ends_this_token_only(world: World) -> None:
    one, two = await log_in(world), await log_in(world)
    gone = await world.call("DELETE", "/auth/tokens", as_=None, headers={"X-Auth-Token": one})
    assert (gone.status, await gone.read()) == (204, b"")
    answer = await world.refused("GET", "/broker/v1/me", as_=None, headers={"X-Auth-Token": one})
    assert answer[:2] == (401, "0101")
    await world.ok("GET", "/broker/v1/me", as_=None, headers={"X-Auth-Token": two})


async def test_only_a_hash_of_the_token_is_stored(world: World) -> None:
    before = {row.hash for row in await logins(world)}
    token = await log_in(world)
    (kept,) = [row for row in await logins(world) if row.hash not in before]
    assert kept.hash == hashlib.sha256(token.encode()).hexdigest()
    assert token not in str(kept.model_dump())
    assert await world.store.read(accounts.find_token, token) is None


async def logins(world: World) -> list[Token]:
    return list(await world.store.read(lambda session: session.exec(select(Token)).all()))


async def test_changing_the_password_ends_all_logins(world: World) -> None:
    body = {"old": "wrong", "new": "next"}
    status, code, detail = await world.refused("POST", "/auth/password", body)
    assert (status, code) == (401, "0101")
    assert "next" not in detail
    done = await world.call("POST", "/auth/password", {"old": "pw-alice", "new": "next"})
    assert done.status == 204
    assert (await world.refused("GET", "/broker/v1/me"))[:2] == (401, "0101")
    assert (await world.refused("POST", "/auth/tokens", login("alice", "pw-alice"), as_=None))[1] == "0101"
    await world.ok("POST", "/auth/tokens", login("alice", "next"), as_=None)


LOGIN_FAULTS = [
    ({}, "0203", "authMethod"),
    ({"authMethod": "password"}, "0203", "user"),
    ({"authMethod": "password", "user": None}, "0203", "user"),
    ({"authMethod": None, "user": {"name": "a", "password": "b"}}, "0203", "authMethod"),
    ({"authMethod": "password", "user": {"name": "a"}}, "0203", "user.password"),
    ({"authMethod": "password", "user": {"name": 1, "password": "b"}}, "0201", "user.name"),
    ({"authMethod": "password", "user": {"name": "a", "password": 77}}, "0201", "user.password"),
    ({"authMethod": "password", "user": []}, "0201", "user"),
    ({"authMethod": 1, "user": {"name": "a", "password": "b"}}, "0201", "authMethod"),
    ({"authMethod": "token", "user": {"name": "a", "password": "b"}}, "0202", "authMethod"),
    ({"authMethod": ["password", "x"], "user": {"name": "a", "password": "b"}}, "0202", "authMethod"),
    ({"authMethod": "password", "user": {"name": "a\0", "password": "b"}}, "0202", "user.name"),
    ({"authMethod": "password", "user": {"nam": "a", "name": "a", "password": "b"}}, "0202", "user.nam"),
]


@pytest.mark.parametrize(("body", "code", "field"), LOGIN_FAULTS)
async def test_faults_of_a_login(world: World, body: Any, code: str, field: str) -> None:
    status, found, detail = await world.refused("POST", "/auth/tokens", body, as_=None)
    assert (status, found) == (400, code)
    assert detail.startswith(f"{field}: ")
    assert "77" not in detail


# ---------------------------------------------------------------- accounts


async def test_an_operator_keeps_accounts(world: World) -> None:
    new = {"name": "dave", "password": "d", "role": "tenant-admin", "tenant": "lab"}
    dave = await world.ok("POST", "/broker/v1/accounts", new, as_="root")
    assert dave == {"name": "dave", "tenant": "lab", "role": "tenant-admin", "vip": True, "frozen": False}
    await world.ok("POST", "/auth/tokens", login("dave", "d"), as_=None)

    listed = await world.ok("GET", "/broker/v1/accounts?order=asc", as_="root")
    assert [a["name"] for a in listed["items"]] == ["alice", "bob", "carol", "dave", "eve", "root"]
    assert listed["totalSize"] == 6

    vip = {"right": "vip"}
    assert (await world.ok("POST", "/broker/v1/accounts/alice/grant", vip, as_="root"))["vip"] is True
    assert (await world.ok("GET", "/broker/v1/me"))["vip"] is True
    assert (await world.ok("POST", "/broker/v1/accounts/alice/revoke", vip, as_="root"))["vip"] is False
    assert (await world.ok("GET", "/broker/v1/me"))["vip"] is False

    await world.ok("POST", "/broker/v1/accounts/alice/freeze", as_="root")
    assert (await world.refused("GET", "/broker/v1/me"))[:2] == (401, "0103")
    await world.ok("POST", "/broker/v1/accounts/alice/unfreeze", as_="root")
    await world.ok("GET", "/broker/v1/me")

    await world.ok("POST", "/broker/v1/accounts/alice/password", {"password": "set"}, as_="root")
    await world.ok("POST", "/auth/tokens", login("alice", "set"), as_=None)


async def test_defaults_of_a_new_account(world: World) -> None:
    made = await world.ok("POST", "/broker/v1/accounts", {"name": "d", "password": "p"}, as_="root")
    assert (made["role"], made["tenant"]) == ("user", "default")


ACCOUNT_FAULTS = [
    ("POST", "/broker/v1/accounts", {"name": "alice", "password": "p"}, "0202"),
    ("POST", "/broker/v1/accounts", {"name": "a b", "password": "p"}, "0202"),
    ("POST", "/broker/v1/accounts", {"name": "x", "password": ""}, "0204"),
    ("POST", "/broker/v1/accounts", {"name": "x", "password": "p", "role": "king"}, "0202"),
    ("POST", "/broker/v1/accounts", {"name": "x", "password": "p", "role": 1}, "0201"),
    ("POST", "/broker/v1/accounts", {"name": "x", "password": "p", "tenant": ""}, "0202"),
    ("POST", "/broker/v1/accounts", {"name": "x"}, "0203"),
    ("POST", "/broker/v1/accounts/alice/grant", {"right": "all"}, "0202"),
    ("POST", "/broker/v1/accounts/alice/grant", {}, "0203"),
    ("POST", "/broker/v1/accounts/nobody/grant", {"right": "vip"}, "0202"),
    ("POST", "/broker/v1/accounts/no%00body/freeze", None, "0202"),
    ("POST", "/broker/v1/accounts/nobody/password", {"password": "p"}, "0202"),
]


@pytest.mark.parametrize(("method", "path", "body", "code"), ACCOUNT_FAULTS)
async def test_faults_of_keeping_accounts(world: World, method: str, path: str, body: Any, code: str) -> None:
    assert (await world.refused(method, path, body, as_="root"))[:2] == (400, code)


KEEPING = [
    ("GET", "/broker/v1/accounts"),
    ("POST", "/broker/v1/accounts"),
    ("POST", "/broker/v1/accounts/bob/grant"),
    ("POST", "/broker/v1/accounts/bob/revoke"),
    ("POST", "/broker/v1/accounts/bob/freeze"),
    ("POST", "/broker/v1/accounts/bob/unfreeze"),
    ("POST", "/broker/v1/accounts/bob/password"),
    ("GET", "/broker/v1/tenants"),
    ("GET", "/broker/v1/audit"),
]


@pytest.mark.parametrize(("method", "path"), KEEPING)
async def test_what_a_user_may_not(world: World, method: str, path: str) -> None:
    status, code, detail = await world.refused(method, path)
    assert (status, code) == (400, "0202")
    assert "this needs operator or tenant-admin" in detail


@pytest.mark.parametrize("name", ["alice", "carol"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/broker/v1/tenants"),
        ("POST", "/broker/v1/centers/sz-1/drain"),
        ("POST", "/broker/v1/centers/sz-1/resume"),
        ("POST", "/broker/v1/jobs/j-1/resolve"),
    ],
)
async def test_what_only_operators_may(world: World, method: str, path: str, name: str) -> None:
    status, code, detail = await world.refused(method, path, as_=name)
    assert (status, code) == (400, "0202")
    assert "operator" in detail


async def test_many_logins_at_once_do_not_hold_the_loop(world: World) -> None:
    answers = await together(*(log_in(world, name) for name in ["alice", "bob", "carol"] * 5))
    assert len(set(answers)) == 15
    assert HASHER.verify(HASHER.hash("x"), "x")


async def test_vip_needs_the_right(world: World) -> None:
    status, code, detail = await world.refused("POST", "/trainjob", create_body(isVip=True))
    assert (status, code) == (400, "0202")
    assert "config.isVip" in detail
    for name in ("carol", "root"):
        await world.ok("POST", "/trainjob", create_body(isVip=True), as_=name)
