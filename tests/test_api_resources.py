"""Centers, specs and idle resources over HTTP, and the operators' drain and resume."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.adapter import Inventory, PoolReport
from broker.api import wire
from broker.api.app import ROUTES
from broker.core.model import (
    Accuracy,
    CenterId,
    CenterState,
    FreeNodes,
    Health,
    Pool,
    PoolId,
)
from broker.store import centers
from broker.store.centers import CenterView
from tests.api_fixtures import (
    CPU_NODE,
    CPU_SPEC_ID,
    EXTRA_SPEC,
    GPU_NODE,
    GPU_SPEC,
    NPU_NODE,
    NPU_SPEC,
    START_MS,
    ZONE,
    World,
    world,
)

__all__ = ["world"]

SZ = {
    "centerId": "sz-1",
    "centerName": "深圳一号",
    "province": "广东",
    "city": "深圳",
    "desc": "",
    "connected": True,
    "processorType": "GPU",
    "totalStorage": 0,
    "maxComputingPower": 4 * 8 * 312 * 10**12,
    "state": "active",
    "health": "fresh",
    "error": "",
    "adapter": "fake",
    "queueLength": 5,
    "inFlight": 0,
    "running": 0,
    "observedAt": "2025-03-01 10:00:00",
    "createTime": "2025-03-01 10:00:00",
}


def ids(answer: dict[str, Any]) -> list[str]:
    return [center["centerId"] for center in answer["centers"]]


async def test_a_center_is_exactly_this(world: World) -> None:
    answer = await world.ok("GET", "/centers?pageSize=1")
    assert answer == {"centers": [SZ], "totalSize": 4}
    never = (await world.ok("GET", "/centers?connected=false&order=asc"))["centers"][0]
    assert (never["centerId"], never["connected"], never["health"]) == ("new", False, "unknown")
    assert (never["observedAt"], never["queueLength"], never["maxComputingPower"]) == ("", None, 0)


async def test_runs_are_counted_at_their_center(world: World) -> None:
    await world.place(await world.create("a"))
    center = (await world.ok("GET", "/centers?pageSize=1"))["centers"][0]
    assert (center["inFlight"], center["running"]) == (1, 0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["sz-1", "off", "new", "gz-2"]),
        ("order=asc", ["gz-2", "new", "off", "sz-1"]),
        ("sort=centerName&order=asc", ["gz-2", "new", "off", "sz-1"]),
        ("sort=centerName", ["sz-1", "off", "new", "gz-2"]),
        ("sort=processorType&order=asc", ["new", "off", "sz-1", "gz-2"]),
        ("sort=createTime", ["sz-1", "off", "new", "gz-2"]),
        ("sort=createTime&order=asc&pageSize=3&page=2", ["sz-1"]),
        ("processorType=npu", ["gz-2"]),
        ("processorType=GPU", ["sz-1", "gz-2"]),
        ("processorType=GPU,NPU", []),
        ("connected=true", ["sz-1", "gz-2"]),
        ("connected=FALSE", ["off", "new"]),
    ],
)
async def test_order_and_filters_of_centers(world: World, query: str, expected: list[str]) -> None:
    assert ids(await world.ok("GET", f"/centers?{query}")) == expected


async def test_processor_types_of_a_center_are_joined(world: World) -> None:
    (center,) = (await world.ok("GET", "/centers?processorType=NPU"))["centers"]
    assert center["processorType"] == "GPU,NPU"
    assert center["maxComputingPower"] == (4 * 8 * 312 + 2 * 8 * 256) * 10**12


async def test_connected_must_be_a_boolean(world: World) -> None:
    assert (await world.refused("GET", "/centers?connected=1"))[:2] == (400, "0201")


async def test_power_beyond_a_double_is_exact(world: World) -> None:
    pool = PoolReport(native="gpu", shape=GPU_NODE, nodes=10_001, free=())
    await world.poll("sz-1", Inventory(START_MS, Accuracy.EXACT, (pool,)))
    text = await (await world.call("GET", "/centers?pageSize=1")).text()
    assert f'"maxComputingPower": {10_001 * 8 * 312 * 10**12},' in text


# ---------------------------------------------------------------- specs


async def test_specs_of_all_centers_each_once(world: World) -> None:
    answer = await world.ok("GET", "/resource/specs?order=asc")
    found = [spec["resourceSpecId"] for spec in answer["resourceSpecs"]]
    assert found == sorted(set(found))
    assert len(found) == answer["totalSize"] == 4 + 5 + 1 + 1  # slices of GPU and CPU nodes, NPU, extra
    assert {GPU_SPEC.id, NPU_SPEC.id, CPU_SPEC_ID, EXTRA_SPEC.id} <= set(found)
    assert [
        s["resourceSpecId"] for s in (await world.ok("GET", "/resource/specs"))["resourceSpecs"]
    ] == found[::-1]


async def test_specs_of_one_center_exactly(world: World) -> None:
    answer = await world.ok("GET", "/resource/specs?centerId=gz-2&sort=resourceSpecName&order=asc&pageSize=1")
    assert answer["totalSize"] == 6
    assert answer["resourceSpecs"] == [
        {
            "resourceSpecId": GPU_SPEC.id,
            "resourceSpecName": GPU_SPEC.name,
            "cpu": {"arch": "X86", "cores": 16},
            "memory": {"size": 128, "unit": "GiB"},
            "processor": {"type": "GPU", "count": 1, "name": "Nvidia/GPU/A800", "memory": 80},
        }
    ]
    names = [
        s["resourceSpecName"]
        for s in (await world.ok("GET", "/resource/specs?sort=resourceSpecName"))["resourceSpecs"]
    ]
    assert names == sorted(names, reverse=True)
    assert "3xA800" in names
    assert await world.ok("GET", "/resource/specs?centerId=new") == {"resourceSpecs": [], "totalSize": 0}


async def test_a_spec_without_cards_has_an_empty_processor(world: World) -> None:
    answer = await world.ok("GET", "/resource/specs?pageSize=1000")
    (cpu,) = [spec for spec in answer["resourceSpecs"] if spec["resourceSpecId"] == CPU_SPEC_ID]
    assert cpu["processor"] == {"type": "", "count": 0, "name": "", "memory": 0}


@pytest.mark.parametrize("path", ["/resource/specs", "/resource/idle"])
async def test_an_unknown_center_is_0210(world: World, path: str) -> None:
    status, code, detail = await world.refused("GET", f"{path}?centerId=nowhere")
    assert (status, code, detail) == (400, "0210", 'centerId: there is no center "nowhere"')


async def test_every_filter_by_center_says_that_it_answers_0210(world: World) -> None:
    filtered = [route for route in ROUTES if any(each.name == "centerId" for each in route.query)]
    assert {"/trainjob", "/onlineJob", "/resource/images"} <= {route.path for route in filtered}
    for route in filtered:
        needed = "groupBy=center" if route.path == "/bills/summary" else ""
        status, code, _ = await world.refused(route.method, f"{route.path}?centerId=nowhere&{needed}")
        assert (status, code) == (400, "0210"), route.path
        assert (status, code) in route.codes, route.path


# ---------------------------------------------------------------- idle


def resources(arch: str, cores: int, memory: int, *processor: Any) -> dict[str, Any]:
    kind, count, name, card = processor or ("", 0, "", 0)
    return {
        "cpu": {"arch": arch, "cores": cores},
        "memory": {"size": memory, "unit": "GiB"},
        "processor": {"type": kind, "count": count, "name": name, "memory": card},
    }


A800 = "Nvidia/GPU/A800"


async def test_idle_of_a_center_exactly(world: World) -> None:
    answer = await world.ok("GET", "/resource/idle?centerId=sz-1")
    pools = answer["centerResources"][0].pop("pools")
    cards = next(pool for pool in pools if pool["node"]["processor"]["count"])
    assert cards == {
        "native": cards["native"],
        "node": resources("X86", 128, 1024, "GPU", 8, A800, 80),
        "splitPermille": 0,
        "nodeCount": "4",
        "accuracy": "exact",
        "observedAtMs": cards["observedAtMs"],
        "freeNodes": [
            {"resourceSpec": resources("X86", 128, 1024, "GPU", 8, A800, 80), "nodeCount": "2"},
            {"resourceSpec": resources("X86", 64, 512, "GPU", 3, A800, 80), "nodeCount": "1"},
            {"resourceSpec": resources("X86", 10, 100), "nodeCount": "1"},
        ],
    }
    assert answer == {
        "centerResources": [
            {
                "centerId": "sz-1",
                "totalResource": resources("X86", 544, 4224, "GPU", 32, A800, 80),
                "idleResource": resources("X86", 346, 2724, "GPU", 19, A800, 80),
                "nodeResources": [
                    {"resourceSpec": resources("X86", 128, 1024, "GPU", 8, A800, 80), "nodeCount": "2"},
                    {"resourceSpec": resources("X86", 64, 512, "GPU", 3, A800, 80), "nodeCount": "1"},
                    {"resourceSpec": resources("X86", 16, 64), "nodeCount": "1"},
                    {"resourceSpec": resources("X86", 10, 100), "nodeCount": "1"},
                ],
                "accuracy": "exact",
                "observedAt": "2025-03-01 10:00:00",
                "resources": [
                    resources("X86", 512, 4096, "GPU", 32, A800, 80),
                    resources("X86", 32, 128),
                ],
            }
        ]
    }


async def test_a_silent_center_keeps_its_total_and_has_nothing_idle(world: World) -> None:
    for _ in range(3):
        await world.store.write(
            centers.record_silence, CenterId("sz-1"), "no route", epoch=world.epoch, down_after=3
        )
    (center,) = (await world.ok("GET", "/resource/idle?centerId=sz-1"))["centerResources"]
    assert center["totalResource"] == resources("X86", 544, 4224, "GPU", 32, A800, 80)
    assert center["idleResource"] == resources("", 0, 0)
    assert (center["nodeResources"], center["accuracy"]) == ([], "unknown")
    assert [c["centerId"] for c in (await world.ok("GET", "/resource/idle"))["centerResources"]] == [
        "gz-2",
        "new",
        "off",
        "sz-1",
    ]
    (shown,) = [c for c in (await world.ok("GET", "/centers"))["centers"] if c["centerId"] == "sz-1"]
    assert (shown["connected"], shown["health"], shown["error"]) == (False, "down", "no route")


async def test_unknown_idle_is_zero_and_says_so(world: World) -> None:
    pool = PoolReport(native="gpu", shape=GPU_NODE, nodes=4, free=())
    await world.poll("sz-1", Inventory(START_MS, Accuracy.UNKNOWN, (pool,)))
    (center,) = (await world.ok("GET", "/resource/idle?centerId=sz-1"))["centerResources"]
    assert center["idleResource"] == resources("", 0, 0)
    assert (center["nodeResources"], center["accuracy"]) == ([], "unknown")
    assert center["totalResource"]["processor"]["count"] == 32


SHAPES = (GPU_NODE, NPU_NODE, CPU_NODE)


@st.composite
def views(draw: st.DrawFn) -> CenterView:
    pools = []
    for number in range(draw(st.integers(0, 4))):
        shape = draw(st.sampled_from(SHAPES))
        free = tuple(
            FreeNodes(
                draw(st.integers(0, shape.cores)),
                draw(st.integers(0, shape.memory_gib)),
                draw(st.integers(0, shape.accelerators)),
                draw(st.integers(0, 3)),
            )
            for _ in range(draw(st.integers(0, 3)))
        )
        nodes = sum(group.nodes for group in free) + draw(st.integers(0, 2))
        accuracy = draw(st.sampled_from(Accuracy))
        pools.append(Pool(PoolId(str(number)), CenterId("c"), "", shape, nodes, free, 0, accuracy))
    return CenterView(
        id=CenterId("c"),
        name="",
        province="",
        city="",
        desc="",
        adapter="",
        state=draw(st.sampled_from(CenterState)),
        health=draw(st.sampled_from(Health)),
        error="",
        created_ms=0,
        ok_ms=None,
        queue_length=None,
        quarantined=(),
        in_flight=0,
        max_in_flight=1,
        running=0,
        pools=tuple(pools),
    )


@given(views())
def test_idle_is_the_sum_of_its_nodes_and_no_more_than_the_total(view: CenterView) -> None:
    shown = wire.idle(view, ZONE)
    rows = [(row["resourceSpec"], int(row["nodeCount"])) for row in shown["nodeResources"]]
    assert len({str(spec) for spec, _ in rows}) == len(rows)
    for part, key in (("cpu", "cores"), ("memory", "size"), ("processor", "count")):
        idle = shown["idleResource"][part][key]
        assert idle == sum(spec[part][key] * count for spec, count in rows)
        assert idle <= shown["totalResource"][part][key]
        assert shown["totalResource"][part][key] == sum(r[part][key] for r in shown["resources"])
    cards = {(spec["processor"]["type"], spec["processor"]["memory"]) for spec, _ in rows} - {("", 0)}
    assert set(shown["idleResource"]["processor"]["type"].split(",")) - {""} == {kind for kind, _ in cards}
    assert shown["idleResource"]["processor"]["memory"] == min((memory for _, memory in cards), default=0)


# ---------------------------------------------------------------- what centers report


async def test_operators_see_what_of_a_report_is_not_used_and_why(world: World) -> None:
    pool = PoolReport("q", GPU_NODE, 2, ())
    odd = (("odd", "nodes is -1, expected a whole number from 0 to 1000000"),)
    report = Inventory(START_MS, Accuracy.EXACT, (pool,), quarantined=odd)
    await world.store.write(
        centers.record_inventory,
        CenterId("gz-2"),
        report,
        epoch=world.epoch,
        traits={},
        prices=[(pool, ())],
    )
    found = await world.ok("GET", "/broker/v1/centers", as_="root")
    (shown,) = [each for each in found["items"] if each["centerId"] == "gz-2"]
    assert shown["quarantined"] == [{"name": odd[0][0], "reason": odd[0][1]}]
    assert [(p["native"], p["nodeCount"], p["accuracy"]) for p in shown["pools"]] == [("q", 2, "exact")]
    assert (shown["health"], shown["lastReportAt"]) == ("fresh", "2025-03-01 10:00:00")
    health = await (await world.call("GET", "/readyz", as_=None)).json()
    assert {"centerId": "gz-2", "health": "fresh", "error": "", "quarantined": 1} in health["centers"]
    assert (await world.refused("GET", "/broker/v1/centers"))[:2] == (400, "0202")


# ---------------------------------------------------------------- drain and resume


async def test_drain_lasts_until_resume_and_the_file_is_not_overruled(world: World) -> None:
    drained = await world.ok("POST", "/broker/v1/centers/sz-1/drain", as_="root")
    assert drained == {"centerId": "sz-1", "state": "drain"}
    assert (await world.ok("GET", "/centers?pageSize=1"))["centers"][0]["state"] == "drain"
    resumed = await world.ok("POST", "/broker/v1/centers/sz-1/resume", as_="root")
    assert resumed == {"centerId": "sz-1", "state": "active"}
    off = await world.ok("POST", "/broker/v1/centers/off/resume", as_="root")
    assert off == {"centerId": "off", "state": "inactive"}
    for unknown in ("nowhere", "a%00b"):
        answer = await world.refused("POST", f"/broker/v1/centers/{unknown}/drain", as_="root")
        assert answer[:2] == (400, "0210")
