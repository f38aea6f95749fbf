"""Capacity and options of the AIHub adapter over the emulated platform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.aihub import connect
from adapters.aihub_settings import Settings
from broker.adapter import (
    Connection,
    Refused,
    RemoteState,
    StatedPool,
    Throttled,
)
from broker.core.model import Accuracy, CenterId, NodeShape, Tier
from tests.aihub_center import CLUSTER, HALF, NODE, NODES, POOL, opened
from tests.emulators.aihub import USERS, Cluster, Switches
from tests.emulators.faults import Fault

ZHANG = USERS[1]
MODES = ("training", "quota")


# ---------------------------------------------------------------- capacity


async def test_the_estimate_is_the_stated_total_without_evidence(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        inventory = await center.adapter.probe()
        assert inventory.accuracy is center.adapter.traits.idle is Accuracy.ESTIMATED
        (pool,) = inventory.pools
        assert (pool.native, pool.shape, pool.nodes, pool.specs) == ("29", NODE, 2, ())
        assert await center.free_cards() == 4
        assert inventory.quarantined == ()
        (query,) = {request.path.partition("?")[2] for request in center.asked("clusters")}
        assert query == "user_id=1&module_type=1"


async def test_others_are_subtracted_where_a_quota_task_shows_them_and_our_own_runs_never(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, mode="quota") as center:
        theirs = center.hub.platform.foreign(29, name="theirs", user=ZHANG, sku_cnt=1)
        assert await center.free_cards() == 4, "nothing shows it yet"
        ref = await center.submit(shape=HALF)
        await center.see(ref, RemoteState.RUNNING)
        (pool,) = (await center.adapter.probe()).pools
        assert sorted((f.cores, f.memory_gib, f.accelerators, f.nodes) for f in pool.free) == [
            (16, 128, 1, 1),
            (32, 256, 2, 1),
        ]
        center.hub.platform.stop(theirs, user=ZHANG, request=0)
        assert await center.free_cards() == 4, "a node without tasks is left out by the platform"


async def test_pools_and_clusters_that_do_not_match_are_quarantined_with_the_reason(tmp_path: Path) -> None:
    clusters = (CLUSTER, Cluster(30, "vc-b", NODES, gpu_type=5))
    pools = (POOL, StatedPool("31", NODE, 1))
    async with opened(tmp_path, clusters=clusters, pools=pools) as center:
        inventory = await center.adapter.probe()
        assert [pool.native for pool in inventory.pools] == ["29"]
        reasons = dict(inventory.quarantined)
        assert set(reasons) == {"30", "31"}
        assert "sees no virtual cluster 31" in reasons["31"]
        assert '[[centers.pools]] with native = "30"' in reasons["30"]
        assert "unknown cards (gpu_type 5)" in reasons["30"]


async def test_a_pool_without_an_id_is_the_only_cluster(tmp_path: Path) -> None:
    pools = (replace(POOL, native=""),)
    async with opened(tmp_path, pools=pools) as center:
        center.hub.faults.plan("clusters", Fault.DROPPED)
        with pytest.raises(Throttled):
            await center.submit("exit 0")  # before the first probe, by what an earlier process knew
        ref = await center.submit("exit 0")
        await center.see(ref, RemoteState.SUCCEEDED)
        assert [pool.native for pool in (await center.adapter.probe()).pools] == ["29"]
    clusters = (CLUSTER, Cluster(30, "vc-b", NODES))
    async with opened(tmp_path / "two", pools=pools, clusters=clusters) as center:
        inventory = await center.adapter.probe()
        assert inventory.pools == ()
        assert [name for name, _ in inventory.quarantined] == ["29", "30"]
        checks = {check.name: check async for check in center.adapter.checks()}
        assert checks["pools"].detail == "native is missing, expected one of [29, 30]"


async def test_the_stated_pool_counts_and_names_are_never_read(tmp_path: Path) -> None:
    """The document's own sample: vc-a800-train with gpu_type 2 (4090), 67 cores and 34 GiB per SKU."""
    sample = Cluster(29, "vc-a800-train", NODES, cpu=67, memory=34, gpu_type=2, gpu_memory=12, network=0)
    async with opened(tmp_path, clusters=(sample,)) as center:
        (pool,) = (await center.adapter.probe()).pools
        assert pool.shape.accelerator == "Nvidia/GPU/A800"
        told = {check.name: check for check in [c async for c in center.adapter.checks()]}
        assert "4090 of 12 GiB; other" in told["cluster 29"].detail
        assert "the stated pool says Nvidia/GPU/A800" in told["cluster 29"].detail


async def test_cards_per_sku_are_learnt_from_details(tmp_path: Path) -> None:
    """The list has no number of cards: it is stated, until the first detail tells."""
    double = Cluster(29, "vc", NODES, gpu=2)
    async with opened(tmp_path, clusters=(double,)) as center:
        first = await center.submit("exit 0")
        await center.see(first, RemoteState.SUCCEEDED)
        await center.submit("exit 0")
        assert [request.body["sku_cnt"] for request in center.asked("create_training")] == [2, 1]


@pytest.mark.parametrize(("per", "sent"), [("per-instance", 2), ("total", 4)])
@pytest.mark.parametrize("mode", MODES)
async def test_sku_cnt_is_sent_as_the_site_reads_it(tmp_path: Path, mode: str, per: str, sent: int) -> None:
    switches = Switches(per_instance=per == "per-instance")
    async with opened(tmp_path, switches=switches, mode=mode, sku_cnt=per) as center:
        ref = await center.submit(nodes=2)
        await center.see(ref, RemoteState.RUNNING)
        (task,) = center.hub.platform.tasks
        assert task.asked["sku_cnt"] == sent
        assert sorted(center.hub.platform.used(CLUSTER).values()) == [2, 2]


async def test_a_cpu_pool_is_counted_in_skus_by_cores_and_memory(tmp_path: Path) -> None:
    shape = NodeShape("X86", 64, 256)
    cluster = Cluster(29, "vc-cpu", NODES, cpu=16, memory=64, gpu=0, gpu_type=5, gpu_memory=0)
    async with opened(tmp_path, clusters=(cluster,), pools=(StatedPool("29", shape, 2),)) as center:
        await center.adapter.probe()
        await center.submit("exit 0", shape=NodeShape("X86", 16, 128))
        assert [request.body["sku_cnt"] for request in center.asked("create_training")] == [2]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nodes": 3}, "nodes is 3, it has room for 2"),
        ({"native_pool": "30"}, "pool is '30'"),
        ({"shape": NodeShape("ARM", 1, 1)}, "arch is 'ARM'"),
        ({"shape": replace(NODE, cores=33)}, "cores is 33"),
        ({"shape": replace(NODE, accelerator="Nvidia/GPU/A100")}, "accelerator is"),
        ({"command": "echo \0"}, "NUL"),
        ({"env": (("A", "\0"),)}, "A has a NUL"),
    ],
)
async def test_what_never_fits_is_refused_before_anything_is_sent(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    async with opened(tmp_path) as center:
        command = changes.pop("command", "true") if "command" in changes else "true"
        with pytest.raises(Refused, match=why):
            await center.submit(command, **changes)
        assert center.asked("create_training") == []


async def test_a_full_center_queues(tmp_path: Path) -> None:
    async with opened(tmp_path) as center:
        first = await center.submit(nodes=2)
        await center.see(first, RemoteState.RUNNING)
        second = await center.submit()
        assert (await center.look(second)).state is RemoteState.PENDING
        assert (await center.look(second)).started_ms is None


async def test_priority_of_quota_tasks_decides_the_order(tmp_path: Path) -> None:
    async with opened(tmp_path, mode="quota") as center:
        first = await center.submit(nodes=2)
        await center.see(first, RemoteState.RUNNING)
        low = await center.submit("exit 0", nodes=2, priority=Tier.LOW)
        high = await center.submit("exit 0", nodes=2, priority=Tier.HIGH)
        assert [request.body["priority"] for request in center.asked("create_quota_task")] == [1, 1, 2]
        await center.adapter.stop(first, grace_s=1)
        await center.see(low, RemoteState.SUCCEEDED)
        await center.see(high, RemoteState.SUCCEEDED)
        assert [e.name for e in center.hub.platform.executions] == [first.id, high.id, low.id]


# ---------------------------------------------------------------- configuration


def connection(**options: Any) -> Connection:
    urls = {"user_url": "http://hub:1", "training_url": "http://hub:2"}
    pools = options.pop("pools", (POOL,))
    given = {key: value for key, value in ({**urls, "project_id": 1} | options).items() if value is not None}
    return Connection(CenterId("sz-1"), "bk", given, {"username": "u", "password": "p"}, pools)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"user_url": None}, "user_url is missing"),
        ({"training_url": None}, "training_url is missing.*mode is 'training'"),
        ({"mode": "quota"}, "quota_url is missing.*mode is 'quota'"),
        ({"project_id": None}, "project_id is missing.*研发项目"),
        ({"pools": (replace(POOL, native="vc-a800"),)}, "native is 'vc-a800', expected the id"),
        ({"pools": (POOL, POOL)}, "native '29' is stated twice"),
        ({"pools": (replace(POOL, native=""),)}, "native is missing.*without tag_url"),
        (
            {"pools": (replace(POOL, native=""), POOL), "tag_url": "http://hub:3"},
            "native is missing.*several pools",
        ),
    ],
)
async def test_options_that_cannot_be_meant_are_named(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        await connect(connection(**options))


def test_missing_services_are_off_and_never_guessed() -> None:
    settings = Settings.read(connection())
    assert set(settings.urls) == {"user", "training"}


async def test_a_center_without_a_tag_service_believes_the_stated_pools(tmp_path: Path) -> None:
    async with opened(tmp_path, tag_url=None) as center:
        assert await center.free_cards() == 4
        assert center.asked("clusters") == []
        assert center.hub.logins == 1
