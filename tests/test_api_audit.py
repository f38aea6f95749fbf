"""The audit log: every change that a person makes is in it, to be seen by whom it concerns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.core.events import OutcomeUnknown
from tests.api_fixtures import World, close_world, create_body, open_world, world
from tests.test_api_auth import log_in, login
from tests.test_api_uploads import entry, tar_gz

__all__ = ["world"]


async def audited(world: World, query: str = "", *, as_: str = "root") -> list[dict[str, Any]]:
    answer = await world.ok("GET", f"/broker/v1/audit?order=asc&pageSize=1000{query}", as_=as_)
    assert answer["totalSize"] == len(answer["items"])
    items: list[dict[str, Any]] = answer["items"]
    return items


async def kinds_of(world: World, method: str, path: str, body: Any = None, **more: Any) -> list[str]:
    """What a request adds to the audit."""
    before = len(await audited(world))
    answer = await world.call(method, path, body, **more)
    assert answer.status in (200, 204), await answer.text()
    return [each["kind"] for each in (await audited(world))[before:]]


async def test_every_change_by_a_person_is_there(world: World) -> None:
    """Every request that changes something, over all noun modules."""
    root, vip = {"as_": "root"}, {"right": "vip"}
    made = await kinds_of(world, "POST", "/auth/tokens", login("alice", "pw-alice"), as_=None)
    assert made == ["account.login"]
    assert await kinds_of(world, "DELETE", "/auth/tokens?others=true") == ["account.logout"]
    key = {"name": "k", "scopes": ["read"], "application": "app"}
    assert await kinds_of(world, "POST", "/auth/apikeys", key) == ["key.created"]
    assert await kinds_of(world, "DELETE", "/auth/applications/app") == ["key.revoked"]
    one = await world.ok("POST", "/auth/apikeys", key)
    assert await kinds_of(world, "DELETE", f"/auth/apikeys/{one['id']}") == ["key.revoked"]
    assert await kinds_of(world, "POST", "/broker/v1/tenants", {"id": "new"}, **root) == ["tenant.created"]
    dan = {"name": "dan", "password": "p", "tenant": "newer"}
    created = await kinds_of(world, "POST", "/broker/v1/accounts", dan, **root)
    assert created == ["tenant.created", "account.created"]
    for action, body, kind in (
        ("grant", vip, "account.granted"),
        ("revoke", vip, "account.revoked"),
        ("freeze", None, "account.frozen"),
        ("unfreeze", None, "account.unfrozen"),
        ("password", {"password": "q"}, "account.password"),
    ):
        assert await kinds_of(world, "POST", f"/broker/v1/accounts/dan/{action}", body, **root) == [kind]
    for command in ("drain", "resume"):
        assert await kinds_of(world, "POST", f"/broker/v1/centers/sz-1/{command}", **root) == ["center.state"]
    assert await kinds_of(world, "POST", "/trainjob", create_body("audited")) == ["job.created"]
    job = (await world.ok("GET", "/trainjob"))["items"][0]["metadata"]["id"]
    stopped = await kinds_of(world, "POST", f"/trainjob/{job}/stop")
    assert "job.stop_requested" in stopped
    assert await kinds_of(world, "POST", f"/broker/v1/jobs/{job}/retry") == ["job.created"]
    assert await kinds_of(world, "DELETE", f"/trainjob/{job}") == ["job.deleted"]
    doubt = await world.create("doubtful")
    await world.advance(await world.place(doubt), OutcomeUnknown(world.clock(), "no answer"))
    resolved = await kinds_of(world, "POST", f"/broker/v1/jobs/{doubt}/resolve", {"ended": "FAILED"}, **root)
    assert "job.resolved" in resolved
    upload = await kinds_of(world, "POST", "/broker/v1/uploads?title=t", tar_gz(entry("a", b"1")))
    assert upload == ["dataset.created"]
    changed = await kinds_of(world, "POST", "/auth/password", {"old": "pw-alice", "new": "next"})
    assert changed == ["account.password"]


async def test_registering_and_freezing_by_failures_are_there(tmp_path: Path) -> None:
    world = await open_world(tmp_path, registration_tenant="guests", freeze_after=2)
    try:
        body = {"name": "zoe", "password": "p"}
        made = await kinds_of(world, "POST", "/auth/users", body, as_=None)
        assert made == ["tenant.created", "account.created"]
        for _ in range(2):
            await world.refused("POST", "/auth/tokens", login("zoe", "no"), as_=None)
        await log_in(world)
        frozen = await audited(world, "&kind=account.frozen")
        assert [(each["data"]["account"], each["data"]["failedLogins"]) for each in frozen] == [("zoe", 2)]
    finally:
        await close_world(world)


async def test_what_an_entry_says(world: World) -> None:
    key = await world.ok("POST", "/auth/apikeys", {"name": "ci", "scopes": ["jobs"]})
    using = {"as_": None, "headers": {"X-Auth-Token": key["key"]}}
    made = await world.ok("POST", "/trainjob", create_body("by-key"), **using)
    (entry,) = await audited(world, "&kind=job.created")
    number = entry.pop("id")
    assert entry == {
        "time": "2025-03-01 10:00:00",
        "timeMs": world.clock(),
        "kind": "job.created",
        "actor": "alice",
        "apiKey": key["id"],
        "jobId": made["metadata"]["id"],
        "taskId": "",
        "centerId": "",
        "data": {},
        "tenant": "lab",
    }
    assert number > 0
    assert key["key"] not in str(await audited(world))


async def test_what_the_broker_does_by_itself_is_not_there(world: World) -> None:
    await world.run_job(await world.create())
    assert {each["actor"] for each in await audited(world)} == {"alice", "bob", "carol", "eve", "root"}


async def test_a_tenant_admin_sees_the_own_tenants(world: World) -> None:
    await world.create("hers")
    await world.create("foreign", as_="eve")
    await world.ok("POST", "/broker/v1/centers/sz-1/drain", as_="root")
    await world.ok("POST", "/broker/v1/accounts/bob/freeze", as_="root")
    seen = await audited(world, as_="carol")
    assert {each["tenant"] for each in seen} == {"lab"}
    kinds = [each["kind"] for each in seen]
    assert (kinds.count("job.created"), kinds.count("account.frozen"), kinds.count("center.state")) == (
        1,
        1,
        0,
    )
    assert {each["kind"] for each in await audited(world)} > set(kinds)


async def test_filters_and_pages(world: World) -> None:
    world.clock.now_ms += 60_000
    await world.create("one")
    world.clock.now_ms += 60_000
    await world.ok("POST", "/broker/v1/accounts/bob/freeze", as_="root")
    await world.create("two")

    async def seen(query: str) -> list[tuple[str, str]]:
        return [(each["kind"], each["actor"]) for each in await audited(world, query)]

    assert await seen("&actor=alice&kind=job") == [("job.created", "alice")] * 2
    assert await seen("&kind=account.frozen") == [("account.frozen", "root")]
    assert await seen("&kind=acc") == []
    assert await seen("&actor=ali") == []
    late = await seen("&from=2025-03-01 10:02:00&to=2025-03-01")
    assert late == [("account.frozen", "root"), ("job.created", "alice")]
    assert await seen("&to=2025-03-01 10:01:00&kind=job.created") == [("job.created", "alice")]
    newest = await world.ok("GET", "/broker/v1/audit?pageSize=1", as_="root")
    assert newest["items"][0]["kind"] == "job.created"
    second = await world.ok("GET", "/broker/v1/audit?pageSize=1&page=2", as_="root")
    assert second["items"][0]["kind"] == "account.frozen"
    assert second["totalSize"] == newest["totalSize"] == len(await audited(world))


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("kind=Job", "0202", "kind"),
        ("kind=a.b.c", "0202", "kind"),
        ("from=then", "0202", "from"),
        ("to=", "0202", "to"),
        ("from=2025-03-02&to=2025-03-01", "0230", "from"),
        ("actor=a&actor=b", "0202", "actor"),
        ("actor=a%00", "0202", "actor"),
    ],
)
async def test_faults_of_the_audit(world: World, query: str, code: str, field: str) -> None:
    status, found, detail = await world.refused("GET", f"/broker/v1/audit?{query}", as_="root")
    assert (status, found) == (400, code)
    assert detail.startswith(f"{field}: ")
