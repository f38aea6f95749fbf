"""An emulated Ampha center around its tasks: capacity, data sets, accounts, doctor.

See test_ampha.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import ampha
from adapters.ampha_assets import data_of
from adapters.ampha_capacity import GROUPS
from broker.adapter import (
    CopyRef,
    CopyState,
    Denied,
    Refused,
    RemoteState,
    RunRef,
    StatedPool,
    Unavailable,
    Unsupported,
)
from broker.core.model import CenterId, FreeNodes, NodeShape, RemoteId, RunId
from tests.ampha_center import NODE, adapter_of, center_and_adapter, run, submit
from tests.emulators.ampha import Ampha, Settings, group, nodes
from tests.emulators.ampha.parts import Need
from tests.emulators.faults import Fault

PAUSE_S = 0.005
LOOKS = 2000
SLOW: dict[str, Any] = {"scale": 1.0, "pull_s": (0, 0), "cached_pull_s": 0, "stop_s": (0, 0)}
"""The platform's own steps take no time, and commands as long as they say."""


def the_task(center: Ampha) -> Any:
    (task,) = center.world.tasks.values()
    return task


# ---------------------------------------------------------------- capacity


async def test_capacity_is_that_of_nodes() -> None:
    machines = [*nodes(2, memory_gib=251.53), *nodes(1, cores=48, cards=0)]
    async with center_and_adapter(groups=[group(machines)], settings=SLOW) as (center, adapter):
        whole, cpu = sorted((await adapter.probe()).pools, key=lambda p: -p.shape.accelerators)
        assert whole.shape == NodeShape("X86", 128, 251, "A800-PCIE-80GB", 8, 80), "M and fractions (T4, T13)"
        assert (whole.native, whole.nodes) == (f"{center.world.groups[0].id}/128c-251g-8xA800-PCIE-80GB", 2)
        assert (cpu.shape, cpu.nodes) == (NodeShape("X86", 48, 1024), 1)
        shape = replace(whole.shape, cores=64, memory_gib=100, accelerators=4)
        await submit(adapter, run(pool=whole.native, shape=shape, command="sleep 1000"))
        whole = next(p for p in (await adapter.probe()).pools if p.shape.accelerators)
        assert whole.free == (FreeNodes(64, 151, 4, 1), FreeNodes(128, 251, 8, 1))


async def test_a_node_that_is_not_normal_has_nothing_free() -> None:
    async with center_and_adapter() as (center, adapter):
        center.world.groups[0].nodes[0].status = 2
        (pool,) = (await adapter.probe()).pools
        assert (pool.nodes, pool.free) == (2, (FreeNodes(0, 0, 0, 1), FreeNodes(128, 1024, 8, 1)))
        center.world.groups[0].status = 2
        inventory = await adapter.probe()
        assert inventory.pools[0].free == (FreeNodes(0, 0, 0, 2),)
        assert inventory.quarantined == (("zone1", "the platform says that its status is 2, 1 is normal"),)


async def test_waiting_instances_are_the_queue() -> None:
    async with center_and_adapter(settings=SLOW) as (_, adapter):
        for number in range(3):
            await submit(adapter, run(f"bkaaaaaaaaa{number}", command="sleep 1000"))
        inventory = await adapter.probe()
        assert inventory.queue_length == 1
        assert inventory.pools[0].free == (FreeNodes(0, 0, 0, 2),)


async def test_a_quota_bounds_what_is_free() -> None:
    async with center_and_adapter(settings={"quotas": True}) as (center, adapter):
        center.quota["remainGpu"] = 11
        assert [f.accelerators for f in (await adapter.probe()).pools[0].free] == [3, 8]
        center.quota["remainJobNum"] = 0
        assert (await adapter.probe()).pools[0].free == (FreeNodes(0, 0, 0, 2),)
        center.world.settings.quotas = False
        assert (await adapter.probe()).pools[0].free == (FreeNodes(128, 1024, 8, 2),)


async def test_an_operator_may_name_a_product() -> None:
    stated = StatedPool("zone1", replace(NODE, accelerator="Nvidia/GPU/A800"), 2)
    async with center_and_adapter(pools=(stated,)) as (_, adapter):
        (pool,) = (await adapter.probe()).pools
        assert pool.shape == replace(NODE, accelerator="Nvidia/GPU/A800")


async def test_instances_of_each_profile_are_a_pool() -> None:
    """The arithmetic of the document's own sample (3.1): 4 cards, of which two are split."""
    split = [{"1g.10gb": 4, "3g.40gb": 1}, {"1g.10gb": 2, "3g.40gb": 1}, {}, {}]
    machines = nodes(1, cores=48, memory_gib=251.53, cards=4, mig=split)
    async with center_and_adapter(groups=[group(machines, share="mig")], settings=SLOW) as (center, adapter):
        zone = center.world.groups[0].id
        pools = {pool.native: pool for pool in (await adapter.probe()).pools}
        small, large, card = (pools[f"{zone}/{name}"] for name in ("1g.10gb", "3g.40gb", "card"))
        assert small.shape == NodeShape("X86", 10, 53, "A800-PCIE-80GB", 6, 10, card_permille=142)
        assert large.shape == NodeShape("X86", 10, 53, "A800-PCIE-80GB", 2, 40, card_permille=428)
        assert card.shape == NodeShape("X86", 24, 125, "A800-PCIE-80GB", 2, 80)
        assert [p.free[0].accelerators for p in (small, large, card)] == [6, 2, 2]
        shape = replace(small.shape, cores=2, memory_gib=8, accelerators=5)
        await submit(adapter, run(pool=small.native, shape=shape, command="sleep 1000"))
        asked = the_task(center).body["resource"][0]["gpuResource"]
        assert asked == {"gpuShare": "mig", "gpuNum": 5, "migRes": "1g.10gb"}
        pools = {pool.native: pool for pool in (await adapter.probe()).pools}
        assert pools[small.native].free[0].accelerators == 5, "5 of all 10 are free: no more is told (T14)"
        with pytest.raises(Refused, match="thousandths"):
            await adapter.submit(run("bkbbbbbbbbbb", pool=card.native, shape=shape))


async def test_parts_of_cards_that_are_split_on_demand() -> None:
    machines = nodes(1, cards=2)
    async with center_and_adapter(groups=[group(machines, share="vgpu")], settings=SLOW) as (center, adapter):
        (pool,) = (await adapter.probe()).pools
        assert pool.shape == replace(NODE, accelerators=2, split_permille=10)
        assert pool.free == (FreeNodes(128, 1024, 2, 1),)
        part = replace(
            NODE, cores=8, memory_gib=64, accelerators=1, accelerator_memory_gib=20, card_permille=250
        )
        await submit(adapter, run(pool=pool.native, shape=part, command="sleep 1000"))
        asked = the_task(center).body["resource"][0]["gpuResource"]
        assert asked == {"gpuShare": "vgpu", "gpuNum": 1, "gpuMem": 20480, "gpuCores": 25}
        (pool,) = (await adapter.probe()).pools
        assert pool.free == (FreeNodes(120, 960, 1, 1, (750,)),)
        with pytest.raises(Refused):
            await adapter.submit(
                run("bkbbbbbbbbbb", pool=pool.native, shape=replace(part, card_permille=255))
            )


async def test_two_products_on_a_node_are_set_aside() -> None:
    async with center_and_adapter() as (center, adapter):
        center.world.groups[0].nodes[0].model = ""
        inventory = await adapter.probe()
        assert inventory.quarantined == (("zone1/gpu1", "gpuInfo names the products [''], expected one"),)
        assert inventory.pools[0].nodes == 1


async def test_preset_specs_are_the_slices() -> None:
    """3.3: the model is only in the spec's name."""
    settings = {"preset": True, **SLOW}
    async with center_and_adapter(settings=settings, spec_mode="preset") as (center, adapter):
        (pool,) = (await adapter.probe()).pools
        (spec,) = pool.specs
        assert spec.shape == NodeShape("X86", 8, 32, "A800-PCIE-80GB", 2, 80)
        await adapter.submit(run(shape=spec.shape))
        assert the_task(center).body["resource"][0]["specId"] == "2abfc822be2d448d95dd2178d1421f9b"
        with pytest.raises(Refused, match="preset specs"):
            await adapter.submit(run("bkbbbbbbbbbb", shape=replace(spec.shape, cores=9)))


async def test_preset_specs_of_instances_and_of_parts() -> None:
    """A task repeats the spec's own numbers, which the emulator compares; memory of parts is in M."""
    split = group(nodes(1, cards=2, mig=[{"1g.10gb": 7}, {}]), name="split", share="mig")
    shared = group(nodes(1, cards=2), name="shared", share="vgpu")
    settings = {"preset": True, **SLOW}
    async with center_and_adapter(groups=[split, shared], settings=settings, spec_mode="preset") as (
        center,
        adapter,
    ):
        inventory = await adapter.probe()
        pools = {pool.native: pool for pool in inventory.pools}
        small, part = pools[f"{split.id}/1g.10gb"], pools[shared.id]
        assert [spec.shape for spec in small.specs] == [
            NodeShape("X86", 2, 8, "A800-PCIE-80GB", 1, 10, card_permille=142)
        ]
        assert [spec.shape for spec in part.specs] == [
            NodeShape("X86", 4, 16, "A800-PCIE-80GB", 1, 31, card_permille=100)
        ]
        whole_cards = inventory.quarantined
        assert whole_cards == ((f"{split.id}/card", "no preset spec of the platform fits its nodes"),)
        await adapter.submit(run(pool=small.native, shape=small.specs[0].shape))
        await adapter.submit(run("bkbbbbbbbbbb", pool=part.native, shape=part.specs[0].shape))
        asked = [task.body["resource"][0] for task in center.world.tasks.values()]
        assert [(a["specId"], a["gpuResource"]) for a in asked] == [
            (center.specs[2]["specId"], {"gpuShare": "mig", "gpuNum": 1, "migRes": "1g.10gb"}),
            (
                center.specs[3]["specId"],
                {"gpuShare": "vgpu", "gpuNum": 1, "gpuMem": 32302, "gpuCores": 10},
            ),
        ]


# ---------------------------------------------------------------- data sets


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    (folder / "readme.txt").write_bytes(b"hello")
    (folder / "empty").write_bytes(b"")
    (folder / "train" / "a.bin").write_bytes(bytes(range(256)) * 8)
    return folder


async def staged(adapter: ampha.Ampha, copy: CopyRef) -> tuple[CopyRef, list[CopyState]]:
    """Steps of a copy until it is there."""
    states = []
    for _ in range(LOOKS):
        seen = await adapter.stage(copy)
        copy = replace(copy, remote=seen.remote)
        states.append(seen.state)
        if seen.state is CopyState.READY:
            assert seen.bytes_done == copy.bytes
            return copy, states
        await asyncio.sleep(PAUSE_S)
    raise AssertionError(f"not there: {states}")


async def test_a_data_set_arrives_whole_and_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.ampha_assets.PART_BYTES", 300)
    monkeypatch.setattr("adapters.ampha_assets.PARTS_PER_STEP", 3)
    async with center_and_adapter() as (center, adapter):
        copy, _ = await staged(adapter, CopyRef("ds-1", CenterId("c"), str(data), 5 + 2048))
        (made,) = [a for a in center.market.assets.values() if a.category == 1]
        (version,) = made.versions.values()
        assert {path: content for path, (content, _) in version.files.items()} == {
            "readme.txt": b"hello",
            "empty": b"",
            "train/a.bin": bytes(range(256)) * 8,
        }
        assert center.market.files["6"] == {}, "what was on its way is gone"
        assert center.count("upload_part") == 9, "each part once"
        await adapter.submit(run(datasets=(("ds-1", copy.remote),)))
        body = the_task(center).body
        assert (body["inputDir"], body["datasetId"], body["inputType"]) == (version.path, made.id, "aiAssets")
        assert "ln -sfn /ampha/dataset /tmp/broker-datasets/ds-1" in body["command"]


@pytest.mark.parametrize("call", ["delete_own", "delete_files"])
async def test_a_copy_is_removed_and_can_be_brought_again(data: Path, call: str) -> None:
    """The platform has no deletion of a data set: its files go, and its entry is used again."""
    async with center_and_adapter() as (center, adapter):
        copy, _ = await staged(adapter, CopyRef("ds-1", CenterId("c"), str(data), 5 + 2048))
        center.faults.plan(call, Fault.DROPPED)
        with pytest.raises(Unavailable):
            await adapter.unstage(copy)
        await adapter.unstage(copy)
        await adapter.unstage(copy)  # of what is not there: done
        (made,) = [a for a in center.market.assets.values() if a.category == 1]
        (version,) = made.versions.values()
        assert (version.files, center.market.files["6"]) == ({}, {})
        await staged(adapter, CopyRef("ds-1", CenterId("c"), str(data), 5 + 2048))
        assert len(version.files) == 3


async def test_further_data_sets_go_where_the_operator_says(data: Path) -> None:
    """6.1 has them in one of the three calls, and does not say where a task finds them."""
    async with center_and_adapter(extra_inputs="/ampha/more/{key}") as (center, adapter):
        wanted = [CopyRef(name, CenterId("c"), str(data), 5 + 2048) for name in ("corpus", "labels")]
        copies = [(await staged(adapter, copy))[0] for copy in wanted]
        both = tuple((copy.dataset, copy.remote) for copy in copies)
        await adapter.submit(run(datasets=both))
        body = the_task(center).body
        paths = [data_of(copy.remote).path for copy in copies]
        assert body["inputDir"] == paths[0]
        assert body["extraMultipleDirBo"] == {
            "extraMultipleInputDirs": [{"key": "bk-labels", "value": paths[1]}],
            "extraMultipleOutputDirs": [],
        }
        links = body["command"].split("export")[0]
        assert "ln -sfn /ampha/dataset /tmp/broker-datasets/corpus" in links
        assert "ln -sfn /ampha/more/bk-labels /tmp/broker-datasets/labels" in links


@pytest.mark.parametrize("task_api", ["trainOperator", "fineTune"])
async def test_without_that_a_job_has_one_data_set(task_api: str) -> None:
    async with center_and_adapter(task_api=task_api) as (center, adapter):
        two = (("a", "1|2|a|v|/p"), ("b", "1|2|b|v|/p"))
        with pytest.raises(Refused, match="datasetIds has 2 entries"):
            await adapter.submit(run(datasets=two))
        assert center.world.tasks == {}


async def test_what_the_center_has_of_its_own_is_listed(data: Path) -> None:
    async with center_and_adapter() as (center, adapter):
        await staged(adapter, CopyRef("ds-1", CenterId("c"), str(data), 5 + 2048))
        found = await adapter.catalogue()
        assert found.datasets == (), "what the broker brought is not the center's own"
        (made,) = [a for a in center.market.assets.values() if a.category == 1]
        made.name = "corpus"
        (listed,) = (await adapter.catalogue()).datasets
        (version,) = made.versions.values()
        assert (listed.native, listed.title) == (version.id, f"corpus:{version.name}")
        assert data_of(listed.remote).path == version.path


async def test_what_cannot_be_cleaned_away_is_tried_again(data: Path) -> None:
    async with center_and_adapter() as (center, adapter):
        center.faults.plan("delete_own", Fault.DROPPED, Fault.HTML_500)
        _, states = await staged(adapter, CopyRef("ds-1", CenterId("c"), str(data), 5 + 2048))
        assert CopyState.FAILED not in states
        assert center.market.files["6"] == {}


async def test_an_upload_goes_on_where_it_was_cut_off(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.ampha_assets.PART_BYTES", 300)
    async with center_and_adapter() as (center, adapter):
        copy = CopyRef("ds-1", CenterId("c"), str(data), 5 + 2048)
        center.faults.plan("upload_part", None, None, None, None, *[Fault.DROPPED] * 3)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await adapter.stage(copy)
        await staged(adapter, copy)
        assert center.count("upload_part") == 9
        assert len([a for a in center.market.assets.values() if a.category == 1]) == 1


# ---------------------------------------------------------------- accounts


@pytest.mark.parametrize(
    ("mode", "key"),
    [
        ("aes-cbc", "0123456789abcdef"),
        ("aes-ecb", "0123456789abcdef01234567"),
        ("aes-cbc", "hex:" + "0f" * 32),
    ],
)
async def test_passwords_travel_sealed(mode: str, key: str) -> None:
    raw = bytes.fromhex(key[4:]) if key.startswith("hex:") else key.encode()
    settings = {"password_key": raw, "password_ecb": mode == "aes-ecb"}
    async with center_and_adapter(settings=settings, password_mode=mode, password_key=key) as (_, adapter):
        assert (await adapter.probe()).pools


async def test_a_wrong_password_is_tried_once() -> None:
    async with Ampha([group(nodes(1))], Settings()) as center:
        adapter = await adapter_of(center, credentials={"username": "sbb", "password": "wrong"})
        for _ in range(5):
            with pytest.raises(Denied, match="密码错误"):
                await adapter.probe()
        assert center.logins == 1
        await adapter.aclose()


@pytest.mark.parametrize("real_statuses", [False, True])
async def test_a_session_that_ends_is_renewed_once_for_all(real_statuses: bool) -> None:
    async with center_and_adapter(settings={"real_statuses": real_statuses, **SLOW}) as (center, adapter):
        ref = await submit(adapter, run(command="sleep 1000"))
        logins = center.logins
        center.expire()
        await asyncio.gather(*(adapter.observe([ref]) for _ in range(8)))
        assert center.logins == logins + 1


async def test_one_session_per_account_is_enough() -> None:
    """T25: a second login may end the first session."""
    async with center_and_adapter(settings={"one_session": True}) as (center, adapter):
        await asyncio.gather(*(adapter.probe() for _ in range(8)), *(adapter.catalogue() for _ in range(8)))
        assert center.logins == 1


async def test_a_session_that_ends_at_once_is_no_wrong_password() -> None:
    async with center_and_adapter() as (center, adapter):
        center.faults.plan("get_info", Fault.EXPIRED_SESSION)
        with pytest.raises(Unavailable, match="new login"):
            await adapter.probe()
        await adapter.probe()
        assert center.logins == 2


async def test_a_creation_under_an_ended_session_is_made_after_the_login() -> None:
    """The gateway answers before anything is reached, so nothing was done."""
    async with center_and_adapter() as (center, adapter):
        await adapter.probe()
        await adapter.catalogue()
        center.expire()
        await adapter.submit(run())
        assert len(center.world.tasks) == 1


async def test_no_secret_is_in_a_message() -> None:
    async with center_and_adapter() as (center, adapter):
        (account,) = [a for a in center.accounts.values() if a.id == 6]
        await adapter.probe()
        (token,) = account.tokens
        answer = await adapter.call("GET", "/prod-api/getInfo", None)
        assert answer.status == 200
        for secret in ("bcrypt", "secret-of-sbb", "pw-user", token):
            assert secret not in answer.body.decode()


async def test_a_path_that_an_installation_has_elsewhere() -> None:
    emulator = Ampha([group(nodes(1))], Settings())
    printed = "/api/system/config/getRemainResource"
    emulator.moved = {printed: printed.replace("/api", "/prod-api", 1)}
    async with emulator as center:
        adapter = await adapter_of(center)
        await adapter.probe()
        assert adapter.api.detours == {printed: "/prod-api/system/config/getRemainResource"}
        checks = {check.name: check async for check in adapter.checks()}
        assert "paths" in checks["path"].detail
        await adapter.aclose()


async def test_configured_paths_are_used() -> None:
    emulator = Ampha([group(nodes(1))], Settings())
    emulator.moved = {GROUPS: "/gate/groups"}
    async with emulator as center:
        adapter = await adapter_of(center, paths={GROUPS: "/gate/groups"})
        assert len((await adapter.probe()).pools) == 1
        await adapter.aclose()


# ---------------------------------------------------------------- doctor and the rest

BODY = {
    "name": "x",
    "type": "PyTorch",
    "command": "sleep 9",
    "createWay": "custom",
    "resource": [
        {"numbers": 1, "cpuNumber": 1, "memory": 1, "gpuResource": {"gpuShare": "none", "gpuNum": 0}}
    ],
}


async def test_doctor_of_a_good_center() -> None:
    async with center_and_adapter() as (_, adapter):
        checks = [check async for check in adapter.checks()]
        assert all(check.ok for check in checks), checks
        assert [c.name for c in checks][:3] == ["login as user", "login as tenant", "login as system"]
        told = " ".join(check.detail for check in checks)
        assert "spec_mode is free" in told
        assert "user group 200" in told


async def test_doctor_tells_what_to_do() -> None:
    async with center_and_adapter(
        user_group_id="77",
        settings={"english": {"Pending": "Parked"}},
        credentials={
            "username": "sbb",
            "password": "pw-user",
            "tenant_username": "zjm",
            "tenant_password": "no",
        },
    ) as (center, adapter):
        center.world.groups[0].status = 2
        center.world.create(BODY, "trainOperator", "6", center.world.groups[0], "elsewhere")
        checks = {check.name: check async for check in adapter.checks()}
        assert not checks["login as tenant"].ok
        assert "密码错误" in checks["login as tenant"].detail
        assert "not configured" in checks["login as system"].detail
        assert "user_group_id" in checks["capacity"].detail
        assert "Parked" in checks["task states"].detail


async def test_what_the_platform_cannot_do_is_said() -> None:
    async with center_and_adapter() as (_, adapter):
        ref = await submit(adapter, run())
        assert (adapter.traits.results, adapter.traits.resume) == (False, False)
        with pytest.raises(Unsupported, match="output"):
            _ = [result async for result in adapter.results(ref)]
        with pytest.raises(Unsupported):
            await adapter.start(ref)


async def test_an_id_of_no_form_of_ours_is_looked_for_by_its_name() -> None:
    async with center_and_adapter() as (_, adapter):
        strange = RunRef(RunId("bkcccccccccc"), run().job, RemoteId("bkcccccccccc"), 1)
        await adapter.stop(strange, grace_s=1)
        await adapter.delete(strange)
        assert (await adapter.observe([strange]))[strange.id].state is RemoteState.GONE


def test_needs_are_counted() -> None:
    (node,) = nodes(1)
    node.used.append(("a", Need(8, 64, 2)))
    assert node.free() == (120, 960, 6)
