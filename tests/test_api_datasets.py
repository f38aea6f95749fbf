"""The list of data sets, showing and deleting one, and jobs that read it."""

from __future__ import annotations

import pytest

from broker.adapter import Asset, CopyState
from broker.core.events import SeenRunning
from broker.store import copies
from broker.store.writer import Tx
from broker.tables import Copy
from tests.api_fixtures import World, create_body, world
from tests.dataset_uploads import (
    DATA,
    GZ,
    SZ,
    left_behind,
    nothing_is_left,
    record,
    uploaded,
)

__all__ = ["world"]


# ---------------------------------------------------------------- list


async def test_the_list_has_uploads_and_what_centers_have(world: World) -> None:
    mine = await uploaded(world, labels="nlp", desc="Wikipedia")
    await uploaded(world, title="secret", public="false")
    coco = Asset("/d/coco", "COCO", desc="pictures", labels="cv,detection", bytes=7, remote="/d/coco")
    await record(world, SZ, dataset=(coco, Asset("/d/x", "zh", id="x", remote="/d/x", owner="lab")))
    await record(world, GZ, dataset=(Asset("other", "zh", id="x", remote="r", bytes=9),))
    listed = await world.ok("GET", "/datasets?order=asc", as_="eve")
    told = [(each["title"], each["owner"], each["size"], each["centerIds"]) for each in listed["datasets"]]
    assert told == [
        ("COCO", "sz-1", 7, ["sz-1"]),
        ("zh", "gz-2", 9, ["gz-2", "sz-1"]),
        ("语料", "alice", len(DATA), []),
    ]
    assert listed["totalSize"] == 3
    own = listed["datasets"][0]["id"]
    assert "coco" not in own
    await record(world, SZ, dataset=())
    await record(world, SZ, dataset=(coco,))
    assert (await world.ok("GET", f"/datasets/{own}"))["title"] == "COCO"  # the id is stable
    shown = await world.ok("GET", "/datasets?owner=me")
    assert {each["title"] for each in shown["datasets"]} == {"语料", "secret"}
    assert (await world.ok("GET", "/datasets?owner=me", as_="eve"))["totalSize"] == 0
    for query, ids in (
        ("query=PICTURES", [own]),
        ("query=wiki", [mine]),
        ("query=%25", []),
        ("category=nlp", [mine]),
        ("category=Detection", [own]),
        ("category=detect", []),
        ("category=cv&query=coc", [own]),
    ):
        found = await world.ok("GET", f"/datasets?{query}")
        assert ([each["id"] for each in found["datasets"]], found["totalSize"]) == (ids, len(ids)), query


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("datasetName", "title"),
        ("title", "title"),
        ("id", "id"),
        ("owner", "owner"),
        ("size", "size"),
        ("createTime", "createTime"),
    ],
)
async def test_data_sets_are_sorted_and_paged(world: World, sort: str, key: str) -> None:
    for number, who in enumerate(("alice", "bob", "eve")):
        world.clock.now_ms += 5000
        await uploaded(world, b"x" * (9 - number), title=f"t{number}", as_=who)
    up = (await world.ok("GET", f"/datasets?sort={sort}&order=asc"))["datasets"]
    assert [each[key] for each in up] == sorted(each[key] for each in up)
    down = (await world.ok("GET", f"/datasets?sort={sort}"))["datasets"]
    assert down == up[::-1]
    second = await world.ok("GET", f"/datasets?sort={sort}&order=asc&pageSize=2&page=2")
    assert (second["datasets"], second["totalSize"]) == (up[2:], 3)
    assert (await world.ok("GET", "/datasets?page=9"))["datasets"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("pageSize=0", "0204"),
        ("pageSize=x", "0201"),
        ("page=0", "0204"),
        ("sort=colour", "0202"),
        ("order=up", "0202"),
        ("owner=you", "0202"),
        ("colour=red", "0202"),
        ("query=a&query=b", "0202"),
        ("query=%00", "0202"),
    ],
)
@pytest.mark.parametrize("path", ["/datasets", "/models", "/apps", "/resource/images"])
async def test_faults_of_listings(world: World, path: str, query: str, code: str) -> None:
    assert (await world.refused("GET", f"{path}?{query}"))[:2] == (400, code)


# ---------------------------------------------------------------- show, delete, use


async def test_unknown_and_foreign_data_sets_are_alike(world: World) -> None:
    private = await uploaded(world, public="false")
    for method in ("GET", "DELETE"):
        foreign = await world.refused(method, f"/datasets/{private}", as_="eve")
        unknown = await world.refused(method, "/datasets/d-none", as_="eve")
        assert foreign[:2] == unknown[:2] == (400, "0202")
        assert foreign[2].replace(private, "X") == unknown[2].replace("d-none", "X")
        assert (await world.refused(method, "/datasets/a%2Fb"))[:2] == (400, "0202")
        assert (await world.refused(method, f"/datasets/{private}?x=1"))[:2] == (400, "0202")


async def test_who_may_delete(world: World) -> None:
    made = await uploaded(world)
    for who in ("bob", "eve"):
        status, code, detail = await world.refused("DELETE", f"/datasets/{made}", as_=who)
        assert (status, code) == (400, "0202")
        assert "another account" in detail
    assert (await world.call("DELETE", f"/datasets/{made}", as_="carol")).status == 204
    await nothing_is_left(world)
    assert (await world.refused("DELETE", f"/datasets/{made}"))[:2] == (400, "0202")
    other = await uploaded(world)
    assert (await world.call("DELETE", f"/datasets/{other}", as_="root")).status == 204
    await record(world, SZ, dataset=(Asset("/d/x", "zh", id="x", remote="/d/x"),))
    assert "center's own" in (await world.refused("DELETE", "/datasets/x", as_="root"))[2]


async def test_a_data_set_in_use_stays(world: World) -> None:
    made = await uploaded(world)
    job = await world.create(datasetIds=[made], as_="bob")
    status, code, detail = await world.refused("DELETE", f"/datasets/{made}")
    assert (status, code) == (400, "0202")
    assert "has not ended" in detail
    await world.run_job(job, SeenRunning(world.clock()))
    assert (await world.refused("DELETE", f"/datasets/{made}"))[:2] == (400, "0202")
    other = await world.create("other", datasetIds=[made], as_="bob")
    await world.ok("POST", f"/trainjob/{other}/stop", as_="bob")
    assert (await world.refused("DELETE", f"/datasets/{made}"))[:2] == (400, "0202")
    await world.set_job(job, state="SUCCEEDED")
    assert (await world.call("DELETE", f"/datasets/{made}")).status == 204


async def test_copies_are_shown_and_outlive_a_deletion_until_they_are_removed(world: World) -> None:
    made = await uploaded(world)

    def copy(tx: Tx) -> None:
        assert copies.missing_copies(tx, SZ, [made])
        row = tx.session.get_one(Copy, (made, SZ))
        row.state, row.bytes_done, row.message = CopyState.MOVING.value, 5, "slow"
        tx.session.add(row)

    await world.sql(copy)
    shown = await world.ok("GET", f"/datasets/{made}")
    assert shown["copies"] == [
        {
            "centerId": "sz-1",
            "state": "MOVING",
            "size": len(DATA),
            "sizeDone": 5,
            "message": "slow",
            "usedTime": "2025-03-01 10:00:00",
        }
    ]
    assert (await world.call("DELETE", f"/datasets/{made}")).status == 204
    assert left_behind(world) == []
    assert (await world.refused("GET", f"/datasets/{made}"))[:2] == (400, "0202")
    assert (await world.refused("POST", "/trainjob", create_body(datasetIds=[made])))[:2] == (400, "0202")
    (work,) = await world.store.read(copies.due, world.clock())
    assert work.evicting
    await world.store.write(copies.record_removed, work.ref, epoch=world.epoch)
    await nothing_is_left(world)


async def test_a_job_may_read_a_centers_own_data_if_jobs_can_be_given_it(world: World) -> None:
    await record(
        world, SZ, dataset=(Asset("/d/x", "zh", id="x", remote="/d/x"), Asset("9", "shown only", id="y"))
    )
    await world.create(datasetIds=["x"])
    status, code, detail = await world.refused("POST", "/trainjob", create_body(datasetIds=["x", "y"]))
    assert (status, code) == (400, "0202")
    assert '"y"' in detail
