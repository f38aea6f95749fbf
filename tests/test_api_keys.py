"""API keys, their scopes, and the applications that hold them."""

from __future__ import annotations

from typing import Any

import pytest

from broker.api.app import ROUTES
from broker.api.auth import token_hash
from broker.api.routes import Scope
from broker.store import accounts, keys
from broker.store.writer import Tx
from broker.tables import ApiKey
from tests.api_fixtures import START_MS, World, create_body, until, world

__all__ = ["world"]

HOUR = 3_600_000


async def new_key(world: World, *scopes: str, as_: str = "alice", **more: Any) -> dict[str, Any]:
    body = {"name": "ci", "scopes": list(scopes or ("read",)), **more}
    made: dict[str, Any] = await world.ok("POST", "/auth/apikeys", body, as_=as_)
    return made


def using(made: dict[str, Any]) -> dict[str, Any]:
    return {"as_": None, "headers": {"X-Auth-Token": made["key"]}}


async def test_a_key_is_shown_once_and_works_wherever_a_token_does(world: World) -> None:
    made = await new_key(world, "jobs", "read", expiresAt="2025-03-31", application="portal")
    secret, key = made.pop("key"), made["id"]
    assert made == {
        "id": key,
        "name": "ci",
        "application": "portal",
        "scopes": ["jobs", "read"],
        "createTime": "2025-03-01 10:00:00",
        "expiresAt": "2025-03-31 23:59:59",
        "lastUsedTime": "",
    }
    assert len(secret) == len("brk.") + 43  # 256 bits
    listed = await world.call("GET", "/auth/apikeys")
    assert secret not in await listed.text()
    assert await listed.json() == {"items": [made], "totalSize": 1}
    for headers in ({"X-Auth-Token": secret}, {"Authorization": f"Bearer {secret}"}):
        me = await world.ok("GET", "/broker/v1/me", as_=None, headers=headers)
        assert me["name"] == "alice"
    headers = {"X-Auth-Token": secret}
    job = await world.ok("POST", "/trainjob", create_body("by-key"), as_=None, headers=headers)
    assert job["metadata"]["userId"] == world.accounts["alice"].id


async def test_only_a_hash_of_the_key_is_stored(world: World) -> None:
    made = await new_key(world)
    rows: list[str] = []

    def look(tx: Tx) -> None:
        rows.extend(str(each.model_dump()) for each in [tx.session.get_one(ApiKey, made["id"])])

    await world.sql(look)
    assert made["key"] not in rows[0]
    assert token_hash(made["key"]) in rows[0]


async def test_an_expired_key_is_0102_and_a_revoked_one_is_unknown(world: World) -> None:
    made = await new_key(world, expiresAt="2025-03-01 12:00:00")
    await world.ok("GET", "/trainjob", **using(made))
    world.clock.now_ms += 2 * HOUR + 1000
    assert (await world.refused("GET", "/trainjob", **using(made)))[:2] == (401, "0102")
    lasting = await new_key(world, name="lasting")
    await world.ok("GET", "/trainjob", **using(lasting))
    gone = await world.call("DELETE", f"/auth/apikeys/{lasting['id']}")
    assert (gone.status, await gone.read()) == (204, b"")
    assert (await world.refused("GET", "/trainjob", **using(lasting)))[:2] == (401, "0101")
    assert (await world.refused("DELETE", f"/auth/apikeys/{lasting['id']}"))[:2] == (400, "0202")


async def test_a_key_of_a_frozen_account_is_0103_and_a_new_password_leaves_it(world: World) -> None:
    made = await new_key(world)
    await world.ok("POST", "/broker/v1/accounts/alice/password", {"password": "x"}, as_="root")
    await world.ok("GET", "/trainjob", **using(made))
    await world.ok("POST", "/broker/v1/accounts/alice/freeze", as_="root")
    assert (await world.refused("GET", "/trainjob", **using(made)))[:2] == (401, "0103")


async def test_the_last_use_is_noted_at_most_once_an_hour(world: World) -> None:
    made = await new_key(world)

    async def used() -> str:
        listed = await world.ok("GET", "/auth/apikeys")
        return str(listed["items"][0]["lastUsedTime"])

    async def is_noted() -> bool:
        return bool(await used())

    await world.ok("GET", "/trainjob", **using(made))
    await until(is_noted)
    assert await used() == "2025-03-01 10:00:00"
    world.clock.now_ms += HOUR - 1000
    await world.ok("GET", "/trainjob", **using(made))
    await world.ok("GET", "/trainjob")  # a write in between would be seen after this one
    assert await used() == "2025-03-01 10:00:00"
    world.clock.now_ms += 1000
    await world.ok("GET", "/trainjob", **using(made))

    async def is_later() -> bool:
        return await used() == "2025-03-01 11:00:00"

    await until(is_later)


# ---------------------------------------------------------------- scopes


def url(path: str) -> str:
    return path.replace("{id}", "x-1").replace("{name}", "x").replace("{taskId}", "t-1")


async def test_every_route_asks_for_its_scope(world: World) -> None:
    """A key with all scopes but the one that is needed is refused before anything else is looked at."""
    grantable = [str(scope) for scope in Scope if scope is not Scope.LOGIN]
    lacking = {
        scope: await new_key(world, *(each for each in grantable if each != scope), name=scope, as_="root")
        for scope in grantable
    }
    lacking["login"] = await new_key(world, *grantable, name="all", as_="root")
    for route in ROUTES:
        if route.open:
            continue
        where = f"{route.method} {route.path}"
        refused = await world.refused(route.method, url(route.path), **using(lacking[route.needs]))
        needed = "this needs a login" if route.needs is Scope.LOGIN else f"this needs {route.needs}"
        assert refused[:2] == (400, "0202"), where
        assert needed in refused[2], where


async def test_no_key_gets_at_keys_logins_or_the_password(world: World) -> None:
    """What may not be passed on: from one key that was found no other, lasting one is made."""
    needed = {(r.method, r.path): r.needs for r in ROUTES if r.path.startswith("/auth/") and not r.open}
    assert set(needed.values()) == {Scope.LOGIN}
    assert ("POST", "/auth/apikeys") in needed
    assert all(r.needs is Scope.ADMIN for r in ROUTES if r.operators)


async def test_a_key_has_no_right_that_its_account_lacks(world: World) -> None:
    made = await new_key(world, "read", "jobs", "data", "admin", as_="bob")
    assert (await world.refused("GET", "/broker/v1/accounts", **using(made)))[:2] == (400, "0202")
    assert (await world.refused("POST", "/trainjob", create_body(isVip=True), **using(made)))[1] == "0202"
    foreign = await world.create("hers")
    assert (await world.refused("GET", f"/trainjob/{foreign}", **using(made)))[:2] == (400, "0240")


# ---------------------------------------------------------------- faults

KEY_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": None}, "0203", "name"),
    ({"scopes": None}, "0203", "scopes"),
    ({"name": 5}, "0201", "name"),
    ({"scopes": "read"}, "0201", "scopes"),
    ({"scopes": [1]}, "0201", "scopes[0]"),
    ({"application": 1}, "0201", "application"),
    ({"expiresAt": 1_900_000_000}, "0201", "expiresAt"),
    ({"name": ""}, "0204", "name"),
    ({"name": "x" * 65}, "0204", "name"),
    ({"scopes": []}, "0204", "scopes"),
    ({"scopes": ["read"] * 17}, "0204", "scopes"),
    ({"application": ""}, "0204", "application"),
    ({"expiresAt": "2025-03-01 09:59:59"}, "0204", "expiresAt"),
    ({"name": " ci"}, "0202", "name"),
    ({"name": "a/b"}, "0202", "name"),
    ({"name": "a\nb"}, "0202", "name"),
    ({"application": "a/b"}, "0202", "application"),
    ({"scopes": ["read", "all"]}, "0202", "scopes[1]"),
    ({"scopes": ["login"]}, "0202", "scopes[0]"),
    ({"expiresAt": "soon"}, "0202", "expiresAt"),
    ({"expiresAt": ""}, "0202", "expiresAt"),
    ({"scope": ["read"]}, "0202", "scope"),
]


@pytest.mark.parametrize(("change", "code", "field"), KEY_FAULTS)
async def test_faults_of_a_new_key(world: World, change: dict[str, Any], code: str, field: str) -> None:
    body = {"name": "ci", "scopes": ["read"], **change}
    status, found, detail = await world.refused("POST", "/auth/apikeys", body)
    assert (status, found) == (400, code)
    assert detail.startswith(f"{field}: ")
    assert (await world.ok("GET", "/auth/apikeys"))["totalSize"] == 0


async def test_names_of_keys_are_an_accounts_own_and_their_number_is_limited(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await new_key(world)
    status, code, detail = await world.refused("POST", "/auth/apikeys", {"name": "ci", "scopes": ["read"]})
    assert (status, code) == (400, "0202")
    assert detail.startswith("name: ")
    await new_key(world, as_="bob")
    monkeypatch.setattr(keys, "MOST_KEYS", 1)
    more = {"name": "more", "scopes": ["read"]}
    assert (await world.refused("POST", "/auth/apikeys", more))[:2] == (400, "0204")


async def test_a_foreign_key_or_application_is_as_unknown_as_none(world: World) -> None:
    made = await new_key(world, application="portal")
    for path in (f"/auth/apikeys/{made['id']}", "/auth/applications/portal"):
        foreign = await world.refused("DELETE", path, as_="bob")
        assert foreign[:2] == (400, "0202")
        assert foreign[2].startswith("there is no ")
    for path in ("/auth/apikeys/k-none", "/auth/apikeys/a%00b", "/auth/applications/a%00b"):
        assert (await world.refused("DELETE", path, as_="bob"))[:2] == (400, "0202")
    assert (await world.refused("DELETE", "/auth/apikeys/k-1?force=1"))[:2] == (400, "0202")
    assert (await world.refused("DELETE", "/auth/applications/a?force=1"))[:2] == (400, "0202")
    await world.ok("GET", "/trainjob", **using(made))


# ---------------------------------------------------------------- applications


async def test_an_application_acts_by_its_keys_until_it_is_taken_the_right(world: World) -> None:
    first = await new_key(world, "read", application="数据门户")
    world.clock.now_ms += 1000
    second = await new_key(world, "jobs", name="second", application="数据门户")
    past = await new_key(world, name="past", application="old", expiresAt="2025-03-01 10:00:02")
    own = await new_key(world, name="own")
    await new_key(world, as_="bob", application="数据门户")
    world.clock.now_ms += 5000
    assert await world.ok("GET", "/auth/applications") == {
        "items": [
            {
                "application": "数据门户",
                "scopes": ["jobs", "read"],
                "keys": 2,
                "createTime": "2025-03-01 10:00:00",
                "lastUsedTime": "",
            }
        ],
        "totalSize": 1,
    }
    assert (await world.call("DELETE", "/auth/applications/数据门户")).status == 204
    for key in (first, second):
        assert (await world.refused("GET", "/broker/v1/me", **using(key)))[:2] == (401, "0101")
    assert (await world.ok("GET", "/auth/applications"))["totalSize"] == 0
    left = await world.ok("GET", "/auth/apikeys?sort=name&order=asc")
    assert [each["id"] for each in left["items"]] == [own["id"], past["id"]]
    assert (await world.ok("GET", "/auth/applications", as_="bob"))["totalSize"] == 1
    status, code, detail = await world.refused("DELETE", "/auth/applications/数据门户")
    assert (status, code, detail) == (400, "0202", "there is no application '数据门户'")


async def test_expired_keys_are_swept_like_tokens(world: World) -> None:
    await new_key(world, name="past", expiresAt="2025-03-01 12:00:00")
    await new_key(world, name="lasting")
    assert await world.store.write(keys.sweep_keys, START_MS + 3 * HOUR) == 1
    assert await world.store.write(accounts.sweep_tokens, START_MS) == 0
    assert [each["name"] for each in (await world.ok("GET", "/auth/apikeys"))["items"]] == ["lasting"]
