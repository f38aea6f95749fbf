"""Registration, logins, and what tenant-admins may keep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.core.events import SeenRunning
from broker.store import accounts
from tests.api_fixtures import START_MS, World, close_world, open_world, token_of, world
from tests.test_api_auth import log_in, login

__all__ = ["world"]


@pytest.fixture
async def open_to_all(tmp_path: Path) -> AsyncIterator[World]:
    opened = await open_world(tmp_path, registration_tenant="guests")
    yield opened
    await close_world(opened)


def bearing(token: str) -> dict[str, Any]:
    return {"as_": None, "headers": {"X-Auth-Token": token}}


# ---------------------------------------------------------------- registration


async def test_who_registers_is_a_user_of_the_tenant_for_it(open_to_all: World) -> None:
    world = open_to_all
    made = await world.ok("POST", "/auth/users", {"name": "zoe", "password": "pw-zoe"}, as_=None)
    account = made.pop("userId")
    assert made == {"name": "zoe", "tenant": "guests", "role": "user"}
    me = await world.ok("GET", "/broker/v1/me", **bearing(await log_in(world, "zoe")))
    assert me.pop("balance")["tenant"] == "guests"
    assert me == {"id": account, "name": "zoe", "tenant": "guests", "role": "user", "vip": False}
    named = {"name": "yan", "password": "p", "tenant": "guests"}
    assert (await world.ok("POST", "/auth/users", named, as_=None))["tenant"] == "guests"


async def test_a_closed_registration_says_so_whatever_the_body(world: World) -> None:
    for body in ({"name": "zoe", "password": "p"}, {}, b"{"):
        status, code, detail = await world.refused("POST", "/auth/users", body, as_=None)
        assert (status, code) == (400, "0202")
        assert detail.startswith("registration is closed")
    listed = await world.ok("GET", "/broker/v1/accounts", as_="root")
    assert "zoe" not in [each["name"] for each in listed["items"]]


REGISTER_FAULTS: list[tuple[Any, str, str]] = [
    ({}, "0203", "name"),
    ({"name": "x"}, "0203", "password"),
    ({"name": None, "password": "p"}, "0203", "name"),
    ({"name": 1, "password": "p"}, "0201", "name"),
    ({"name": "x", "password": ["p"]}, "0201", "password"),
    ({"name": "x", "password": "p", "tenant": 1}, "0201", "tenant"),
    ({"name": "", "password": "p"}, "0202", "name"),
    ({"name": "x" * 65, "password": "p"}, "0202", "name"),
    ({"name": "a#k-1", "password": "p"}, "0202", "name"),
    ({"name": "x", "password": ""}, "0204", "password"),
    ({"name": "x", "password": "p" * 1025}, "0204", "password"),
    ({"name": "x", "password": "p\0"}, "0202", "password"),
    ({"name": "x", "password": "p", "role": "operator"}, "0202", "role"),
    ({"name": "x", "password": "p", "tenant": "lab"}, "0202", "tenant"),
    ({"name": "x", "password": "p", "tenant": "nobody-has-this"}, "0202", "tenant"),
]


@pytest.mark.parametrize(("body", "code", "field"), REGISTER_FAULTS)
async def test_faults_of_registering(open_to_all: World, body: Any, code: str, field: str) -> None:
    status, found, detail = await open_to_all.refused("POST", "/auth/users", body, as_=None)
    assert (status, found) == (400, code)
    assert detail.startswith(f"{field}: ")


async def test_a_name_is_registered_once_and_a_query_is_not_understood(open_to_all: World) -> None:
    body = {"name": "alice", "password": "p"}
    assert (await open_to_all.refused("POST", "/auth/users", body, as_=None))[:2] == (400, "0202")
    assert (await open_to_all.refused("POST", "/auth/users?a=1", body, as_=None))[:2] == (400, "0202")
    await log_in(open_to_all, "alice")  # the password is still the old one


async def test_one_address_registers_so_many_accounts_an_hour(tmp_path: Path) -> None:
    from broker.config import LimitSettings

    limits = LimitSettings(registrations_per_hour=2)
    world = await open_world(tmp_path, registration_tenant="guests", limits=limits)
    try:
        for name in ("one", "two"):
            await world.ok("POST", "/auth/users", {"name": name, "password": "p"}, as_=None)
        answer = await world.call("POST", "/auth/users", {"name": "three", "password": "p"}, as_=None)
        assert (answer.status, (await answer.json())["errorCode"]) == (429, "")
        assert 1700 < int(answer.headers["Retry-After"]) <= 1800  # one every half hour
        assert await world.store.read(accounts.find_login, "three") is None
    finally:
        await close_world(world)


# ---------------------------------------------------------------- logins


async def test_live_logins_are_listed_without_their_tokens(world: World) -> None:
    world.clock.now_ms += 1000
    token = await log_in(world)
    answer = await world.call("GET", "/auth/tokens", **bearing(token))
    assert token not in await answer.text()
    assert await answer.json() == {
        "items": [
            {"createTime": "2025-03-01 10:00:01", "expiresAt": "2025-03-01 11:00:01", "current": True},
            {"createTime": "2025-03-01 10:00:00", "expiresAt": "2056-11-07 11:46:40", "current": False},
        ],
        "totalSize": 2,
    }
    page = await world.ok("GET", "/auth/tokens?pageSize=1&page=2&sort=expiresAt&order=asc")
    assert [each["current"] for each in page["items"]] == [True]
    world.clock.now_ms += 3_600_000
    assert (await world.ok("GET", "/auth/tokens"))["totalSize"] == 1, "an ended login is none"
    assert (await world.ok("GET", "/auth/tokens", as_="bob"))["totalSize"] == 1


async def test_all_other_logins_are_ended_at_once(world: World) -> None:
    kept, gone = await log_in(world), await log_in(world)
    bob = await log_in(world, "bob")
    answer = await world.call("DELETE", "/auth/tokens?others=true", **bearing(kept))
    assert (answer.status, await answer.read()) == (204, b"")
    await world.ok("GET", "/broker/v1/me", **bearing(kept))
    await world.ok("GET", "/broker/v1/me", **bearing(bob))
    for token in (gone, token_of("alice")):
        assert (await world.refused("GET", "/broker/v1/me", **bearing(token)))[:2] == (401, "0101")


PAGE_FAULTS = {
    "pageSize=0": "0204",
    "pageSize=1001": "0204",
    "pageSize=x": "0201",
    "page=0": "0204",
    "page=": "0201",
    "sort=token": "0202",
    "order=up": "0202",
    "who=me": "0202",
}


@pytest.mark.parametrize(
    "path",
    [
        "/auth/tokens",
        "/auth/apikeys",
        "/auth/applications",
        "/broker/v1/accounts",
        "/broker/v1/tenants",
        "/broker/v1/audit",
    ],
)
async def test_faults_of_pages(world: World, path: str) -> None:
    for query, code in PAGE_FAULTS.items():
        assert (await world.refused("GET", f"{path}?{query}", as_="root"))[:2] == (400, code), query


@pytest.mark.parametrize(("query", "code"), [("others=maybe", "0201"), ("other=true", "0202")])
async def test_faults_of_a_logout(world: World, query: str, code: str) -> None:
    assert (await world.refused("DELETE", f"/auth/tokens?{query}"))[:2] == (400, code)
    await world.ok("GET", "/broker/v1/me")


async def test_a_frozen_account_cannot_go_on_but_its_jobs_do(world: World) -> None:
    job = await world.create()
    run = await world.run_job(job, SeenRunning(START_MS))
    await world.ok("POST", "/broker/v1/accounts/alice/freeze", as_="root")
    assert (await world.refused("GET", f"/trainjob/{job}"))[:2] == (401, "0103")
    shown = await world.ok("GET", f"/trainjob/{job}", as_="root")
    assert (shown["status"], shown["tasks"][-1]["taskId"]) == ("RUNNING", run)


# ---------------------------------------------------------------- what a tenant-admin keeps


async def test_a_tenant_admin_keeps_the_users_of_the_own_tenant(world: World) -> None:
    made = await world.ok("POST", "/broker/v1/accounts", {"name": "dan", "password": "p"}, as_="carol")
    assert made == {"name": "dan", "tenant": "lab", "role": "user", "vip": False, "frozen": False}
    listed = await world.ok("GET", "/broker/v1/accounts?order=asc", as_="carol")
    assert [each["name"] for each in listed["items"]] == ["alice", "bob", "carol", "dan"]
    assert listed["totalSize"] == 4

    async def change(action: str, body: Any = None) -> Any:
        return await world.ok("POST", f"/broker/v1/accounts/dan/{action}", body, as_="carol")

    assert (await change("grant", {"right": "vip"}))["vip"] is True
    assert (await change("revoke", {"right": "vip"}))["vip"] is False
    assert (await change("freeze"))["frozen"] is True
    assert (await change("unfreeze"))["frozen"] is False
    await change("password", {"password": "next"})
    await world.ok("POST", "/auth/tokens", login("dan", "next"), as_=None)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "dan", "password": "p", "role": "operator"},
        {"name": "dan", "password": "p", "role": "tenant-admin"},
        {"name": "dan", "password": "p", "tenant": "other"},
        {"name": "dan", "password": "p", "tenant": "brand-new"},
    ],
)
async def test_a_tenant_admin_makes_nothing_but_users_of_the_own_tenant(world: World, body: Any) -> None:
    assert (await world.refused("POST", "/broker/v1/accounts", body, as_="carol"))[:2] == (400, "0202")
    assert await world.store.read(accounts.find_login, "dan") is None


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("grant", {"right": "vip"}),
        ("revoke", {"right": "vip"}),
        ("freeze", None),
        ("unfreeze", None),
        ("password", {"password": "mine now"}),
    ],
)
async def test_a_tenant_admin_changes_no_other_account(world: World, action: str, body: Any) -> None:
    """Not of another tenant, nor stronger ones of the own: a password set would be a role taken."""
    boss = {"name": "boss", "password": "p", "role": "operator", "tenant": "lab"}
    await world.ok("POST", "/broker/v1/accounts", boss, as_="root")
    for other in ("eve", "root", "nobody"):
        path = f"/broker/v1/accounts/{other}/{action}"
        status, code, detail = await world.refused("POST", path, body, as_="carol")
        assert (status, code, detail) == (400, "0202", f"there is no account named {other!r}")
    for other in ("carol", "boss"):
        path = f"/broker/v1/accounts/{other}/{action}"
        status, code, detail = await world.refused("POST", path, body, as_="carol")
        assert (status, code) == (400, "0202")
        assert "only an operator changes it" in detail
    await world.ok("POST", "/auth/tokens", login("boss", "p"), as_=None)


@pytest.mark.parametrize("sort", ["name", "tenant", "role"])
async def test_accounts_are_sorted_and_paged(world: World, sort: str) -> None:
    path = f"/broker/v1/accounts?sort={sort}"
    up = (await world.ok("GET", f"{path}&order=asc", as_="root"))["items"]
    assert [(each[sort], each["name"]) for each in up] == sorted((each[sort], each["name"]) for each in up)
    assert {each["name"] for each in up} == {"alice", "bob", "carol", "eve", "root"}
    down = await world.ok("GET", path, as_="root")
    assert (down["items"], down["totalSize"]) == (up[::-1], 5)
    second = await world.ok("GET", f"{path}&order=asc&pageSize=2&page=2", as_="root")
    assert (second["items"], second["totalSize"]) == (up[2:4], 5)
    assert (await world.ok("GET", f"{path}&page=9", as_="root"))["items"] == []
    own = await world.ok("GET", f"{path}&order=asc&pageSize=1", as_="carol")
    assert (len(own["items"]), own["totalSize"]) == (1, 3)  # those of the own tenant are counted
    (default,) = (await world.ok("GET", "/broker/v1/accounts?pageSize=1", as_="root"))["items"]
    assert default["name"] == "root"


# ---------------------------------------------------------------- tenants


async def test_tenants(world: World) -> None:
    made = await world.ok("POST", "/broker/v1/tenants", {"id": "vision"}, as_="root")
    assert made == {"id": "vision", "createTime": "2025-03-01 10:00:00", "accounts": 0}
    listed = await world.ok("GET", "/broker/v1/tenants?order=asc", as_="root")
    assert [(each["id"], each["accounts"]) for each in listed["items"]] == [
        ("lab", 3),
        ("ops", 1),
        ("other", 1),
        ("vision", 0),
    ]
    own = await world.ok("GET", "/broker/v1/tenants", as_="carol")
    assert ([each["id"] for each in own["items"]], own["totalSize"]) == (["lab"], 1)
    page = await world.ok("GET", "/broker/v1/tenants?pageSize=1&page=2&order=desc&sort=id", as_="root")
    assert ([each["id"] for each in page["items"]], page["totalSize"]) == (["other"], 4)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "0203"),
        ({"id": None}, "0203"),
        ({"id": 7}, "0201"),
        ({"id": ""}, "0202"),
        ({"id": "a b"}, "0202"),
        ({"id": "x" * 65}, "0202"),
        ({"id": "lab"}, "0202"),
        ({"id": "x", "budget": 1}, "0202"),
    ],
)
async def test_faults_of_a_new_tenant(world: World, body: Any, code: str) -> None:
    assert (await world.refused("POST", "/broker/v1/tenants", body, as_="root"))[:2] == (400, code)
