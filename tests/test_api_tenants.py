"""Budgets, balances and links of platform users over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from sqlmodel import select

from broker.core.events import SeenRunning, SeenSucceeded
from broker.store import feed
from broker.tables import Event
from tests.api_fixtures import World, world

__all__ = ["world"]

HOUR = 3_600_000
LAB = "/broker/v1/tenants/lab"


async def balance(world: World, as_: str = "alice", tenant: str = "lab") -> Any:
    return await world.ok("GET", f"/broker/v1/tenants/{tenant}/balance", as_=as_)


async def spend(world: World, name: str, hours: int = 1) -> None:
    run = await world.run_job(await world.create(name), SeenRunning(world.clock()))
    world.clock.now_ms += hours * HOUR
    await world.advance(run, SeenSucceeded(world.clock()))


async def funds(world: World) -> dict[str, int]:
    found = await world.store.read(feed.world, world.clock())
    return {str(tenant): micro for tenant, micro in found.funds.items()}


async def test_without_a_budget_there_is_no_limit(world: World) -> None:
    await spend(world, "free", 2)
    assert await balance(world) == {
        "tenant": "lab",
        "balance": None,
        "budget": None,
        "left": None,
        "committed": "0.00",
        "exhausted": False,
        "spent": "25.00",
        "spentThisMonth": "25.00",
        "month": "2025-03",
        "currency": "CNY",
    }
    assert await funds(world) == {}
    assert (await world.ok("GET", "/broker/v1/me"))["balance"] == await balance(world)


async def test_a_budget_counts_from_when_it_was_set(world: World) -> None:
    await spend(world, "before")
    made = await world.ok("POST", f"{LAB}/budget", {"cny": 30}, as_="root")
    assert made["budget"] == {"amount": "30.00", "period": "total", "spent": "0.00", "left": "30.00"}
    await spend(world, "after")
    assert (await balance(world))["left"] == "17.50"
    more = await world.ok("POST", f"{LAB}/budget", {"cny": 40.25}, as_="root")  # goes on counting
    assert (more["left"], more["budget"]["spent"], more["spent"]) == ("27.75", "12.50", "25.00")
    assert await funds(world) == {"lab": 27_750_000}
    await spend(world, "too-much", 3)
    assert (await balance(world))["left"] == "-9.75"
    assert (await balance(world))["exhausted"] is True
    assert (await world.call("DELETE", f"{LAB}/budget", as_="root")).status == 204
    assert (await balance(world))["left"] is None


async def test_a_budget_per_month_begins_anew(world: World) -> None:
    await world.ok("POST", f"{LAB}/budget", {"cny": 20, "per": "month"}, as_="root")
    await spend(world, "march", 2)
    assert (await balance(world))["left"] == "-5.00"
    world.clock.now_ms += 31 * 24 * HOUR
    april = await balance(world)
    assert (april["left"], april["month"], april["spentThisMonth"]) == ("20.00", "2025-04", "0.00")
    assert await funds(world) == {"lab": 20_000_000}
    await spend(world, "april")
    assert (await balance(world))["left"] == "7.50"


async def test_a_balance_is_a_ledger(world: World) -> None:
    await spend(world, "before")
    first = await world.ok("POST", f"{LAB}/ledger", {"amount": 100, "note": "预付"}, as_="root")
    assert (first["amount"], first["balance"], first["actor"], first["note"]) == (
        "100.00",
        "100.00",
        "root",
        "预付",
    )
    await spend(world, "after")
    taken = await world.ok("POST", f"{LAB}/ledger", {"amount": -7.5}, as_="root")
    assert taken["balance"] == "80.00"
    assert (await balance(world))["balance"] == (await balance(world))["left"] == "80.00"
    await world.ok("POST", f"{LAB}/budget", {"cny": 3}, as_="root")
    assert (await balance(world))["left"] == "3.00"  # the less of both
    page = await world.ok("GET", f"{LAB}/ledger", params={"pageSize": 1})
    assert (page["totalSize"], [e["amount"] for e in page["items"]]) == (2, ["-7.50"])
    second = await world.ok("GET", f"{LAB}/ledger", params={"pageSize": 1, "page": 2})
    assert [e["amount"] for e in second["items"]] == ["100.00"]
    kinds = await world.store.read(
        lambda s: [(e.kind, e.actor) for e in s.exec(select(Event).order_by(Event.seq)).all()]  # type: ignore[arg-type]
    )
    assert kinds.count(("tenant.ledger", "root")) == 2
    assert ("tenant.budget", "root") in kinds


async def test_only_operators_change_and_only_members_see(world: World) -> None:
    for as_ in ("alice", "carol"):
        for method, path, body in (
            ("POST", f"{LAB}/budget", {"cny": 1}),
            ("DELETE", f"{LAB}/budget", None),
            ("POST", f"{LAB}/ledger", {"amount": 1}),
            ("POST", "/broker/v1/accounts/alice/link", {"centerId": "sz-1", "user": "7"}),
            ("POST", "/broker/v1/accounts/alice/unlink", {"centerId": "sz-1", "user": "7"}),
            ("GET", "/broker/v1/accounts/alice/links", None),
        ):
            assert (await world.refused(method, path, body, as_=as_))[:2] == (400, "0202")
    assert (await balance(world, "carol"))["tenant"] == "lab"
    assert (await balance(world, "root"))["tenant"] == "lab"
    foreign = await world.refused("GET", f"{LAB}/balance", as_="eve")
    unknown = await world.refused("GET", "/broker/v1/tenants/nobody/balance", as_="eve")
    assert foreign[:2] == unknown[:2] == (400, "0202")
    assert foreign[2].replace("lab", "nobody") == unknown[2]
    assert (await world.refused("GET", f"{LAB}/ledger", as_="eve"))[:2] == (400, "0202")
    assert (await world.refused("GET", f"{LAB}/balance", as_=None))[:2] == (401, "0101")


@pytest.mark.parametrize("tenant", ["nobody", "a%20b", "x" * 65, "%00"])
async def test_no_such_tenant(world: World, tenant: str) -> None:
    path = f"/broker/v1/tenants/{tenant}"
    for method, part, body in (
        ("GET", "balance", None),
        ("GET", "ledger", None),
        ("POST", "budget", {"cny": 1}),
        ("DELETE", "budget", None),
        ("POST", "ledger", {"amount": 1}),
    ):
        assert (await world.refused(method, f"{path}/{part}", body, as_="root"))[:2] == (400, "0202")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "0203"),
        ({"cny": None}, "0203"),
        ({"cny": "1"}, "0201"),
        ({"cny": True}, "0201"),
        ({"cny": [1]}, "0201"),
        ({"cny": -1}, "0204"),
        ({"cny": -0.01}, "0204"),
        ({"cny": 1_000_000_000_001}, "0204"),
        (b'{"cny": 1e400}', "0204"),
        (b'{"cny": 1e999999999}', "0204"),
        (b'{"cny": 1e-999999999}', "0202"),
        ({"cny": 1.005}, "0202"),
        ({"cny": 1, "per": "week"}, "0202"),
        ({"cny": 1, "per": 1}, "0201"),
        ({"cny": 1, "colour": "red"}, "0202"),
        ([1], "0201"),
        (b"{", "0201"),
    ],
)
async def test_bad_budgets(world: World, body: Any, code: str) -> None:
    assert (await world.refused("POST", f"{LAB}/budget", body, as_="root"))[:2] == (400, code)
    assert (await balance(world))["budget"] is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "0203"),
        ({"amount": None}, "0203"),
        ({"amount": "1"}, "0201"),
        ({"amount": 0}, "0204"),
        ({"amount": 0.0}, "0204"),
        ({"amount": -1_000_000_000_001}, "0204"),
        ({"amount": 0.001}, "0202"),
        ({"amount": 1, "note": 5}, "0201"),
        ({"amount": 1, "note": "x" * 256}, "0204"),
        ({"amount": 1, "note": "a\0b"}, "0202"),
        ({"amount": 1, "colour": "red"}, "0202"),
    ],
)
async def test_bad_entries(world: World, body: Any, code: str) -> None:
    assert (await world.refused("POST", f"{LAB}/ledger", body, as_="root"))[:2] == (400, code)
    assert (await world.ok("GET", f"{LAB}/ledger"))["totalSize"] == 0


async def test_a_balance_has_an_end(world: World) -> None:
    await world.ok("POST", f"{LAB}/ledger", {"amount": 10**12}, as_="root")
    assert (await world.refused("POST", f"{LAB}/ledger", {"amount": 1}, as_="root"))[:2] == (400, "0204")
    assert (await balance(world))["balance"] == "1000000000000.00"


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("ledger", {"pageSize": "0"}, "0204"),
        ("ledger", {"page": "x"}, "0201"),
        ("ledger", {"sort": "id"}, "0202"),
        ("balance", {"colour": "red"}, "0202"),
    ],
)
async def test_bad_queries(world: World, path: str, params: dict[str, str], code: str) -> None:
    assert (await world.refused("GET", f"{LAB}/{path}", params=params))[:2] == (400, code)


# ---------------------------------------------------------------- links

LINK = {"centerId": "sz-1", "user": "7"}


async def test_a_platforms_user_is_one_account(world: World) -> None:
    path = "/broker/v1/accounts"
    made = await world.ok("POST", f"{path}/alice/link", LINK, as_="root")
    assert made["items"] == [{**LINK, "createTime": "2025-03-01 10:00:00"}]
    again = await world.ok("POST", f"{path}/alice/link", LINK, as_="root")
    assert again == made
    status, code, detail = await world.refused("POST", f"{path}/bob/link", LINK, as_="root")
    assert (status, code) == (400, "0202")
    assert "alice" in detail
    assert (await world.refused("POST", f"{path}/bob/unlink", LINK, as_="root"))[:2] == (400, "0202")
    await world.ok("POST", f"{path}/alice/link", {**LINK, "user": "8"}, as_="root")
    assert (await world.ok("GET", f"{path}/alice/links", as_="root"))["totalSize"] == 2
    left = await world.ok("POST", f"{path}/alice/unlink", LINK, as_="root")
    assert [each["user"] for each in left["items"]] == ["8"]
    await world.ok("POST", f"{path}/bob/link", LINK, as_="root")
    kinds = await world.store.read(lambda s: [e.kind for e in s.exec(select(Event)).all()])
    assert (kinds.count("account.linked"), kinds.count("account.unlinked")) == (3, 1)


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("nobody", LINK, "0202"),
        ("alice", {**LINK, "centerId": "nowhere"}, "0210"),
        ("alice", {"user": "7"}, "0203"),
        ("alice", {"centerId": "sz-1"}, "0203"),
        ("alice", {**LINK, "user": 7}, "0201"),
        ("alice", {**LINK, "user": ""}, "0204"),
        ("alice", {**LINK, "user": "x" * 256}, "0204"),
        ("alice", {**LINK, "user": None}, "0203"),
        ("alice", {**LINK, "colour": "red"}, "0202"),
    ],
)
async def test_bad_links(world: World, name: str, body: Any, code: str) -> None:
    path = f"/broker/v1/accounts/{name}/link"
    assert (await world.refused("POST", path, body, as_="root"))[:2] == (400, code)
