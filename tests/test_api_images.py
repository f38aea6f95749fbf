"""GET /resource/images over HTTP."""

from __future__ import annotations

import pytest

from broker.adapter import Image
from broker.core.model import CenterId
from broker.store import centers
from tests.api_fixtures import START_MS, World, world
from tests.dataset_uploads import (
    SZ,
)

__all__ = ["world"]


async def images(world: World, center: CenterId, *offered: Image) -> None:
    await world.store.write(centers.record_images, center, offered, epoch=world.epoch)


IMAGES = (
    Image("pytorch-2.3", "a:1", "PyTorch", "d", "X86", "GPU", "Ubuntu 22.04", "PyTorch 2.3", ("numpy",)),
    Image("mind", "a:2", "MindSpore", arch="ARM", processor="NPU", framework="MindSpore"),
    Image("plain", "a:3"),
)


async def test_each_logical_image_once(world: World) -> None:
    world.clock.now_ms += 60_000
    await images(world, SZ, *IMAGES)
    listed = await world.ok("GET", "/resource/images?order=asc")
    assert [each["imageId"] for each in listed["images"]] == ["mind", "plain", "pytorch-2.3"]
    assert listed["totalSize"] == 3
    assert listed["images"][2]["centerIds"] == ["gz-2", "sz-1"]
    at = await world.ok("GET", "/resource/images?order=asc&centerId=sz-1")
    assert at["images"][2] == {
        "imageId": "pytorch-2.3",
        "imageName": "PyTorch",
        "imageDesc": "d",
        "arch": "X86",
        "processor": "GPU",
        "operationSystem": "Ubuntu 22.04",
        "framework": "PyTorch 2.3",
        "createTime": "2025-03-01 10:01:00",
        "installedLib": ["numpy"],
        "centerIds": ["gz-2", "sz-1"],
    }
    natives = await world.store.read(centers.image_centers, "pytorch-2.3")
    assert natives == {"gz-2": "r.local/pt:2.3", "sz-1": "a:1"}
    for query, ids in (
        ("centerId=gz-2", ["pytorch-2.3"]),
        ("centerId=off", []),
        ("processor=npu", ["mind"]),
        ("processor=TPU", []),
        ("framework=mindspore", ["mind"]),
        ("framework=pytorch&centerId=sz-1", ["pytorch-2.3"]),
        ("framework=PyTorch%202.3&centerId=sz-1", ["pytorch-2.3"]),
        ("framework=PyTorch%202&centerId=sz-1", []),
        ("createAfter=2025-03-01%2010:01:00", ["mind", "plain"]),
        ("createBefore=2025-03-01%2010:00:00", ["pytorch-2.3"]),
        ("createAfter=2025-03-01&createBefore=2025-03-01", ["mind", "plain", "pytorch-2.3"]),
    ):
        found = await world.ok("GET", f"/resource/images?order=asc&{query}")
        assert [each["imageId"] for each in found["images"]] == ids, query


@pytest.mark.parametrize("sort", ["imageId", "imageName", "arch", "processor", "framework", "createTime"])
async def test_images_are_sorted(world: World, sort: str) -> None:
    for step, image in enumerate(IMAGES):
        world.clock.now_ms = START_MS + step * 1000
        await images(world, SZ, *IMAGES[: step + 1])
        del image
    up = (await world.ok("GET", f"/resource/images?sort={sort}&order=asc&centerId=sz-1"))["images"]
    assert [each[sort] for each in up] == sorted(each[sort] for each in up)
    down = (await world.ok("GET", f"/resource/images?sort={sort}&centerId=sz-1"))["images"]
    assert down == up[::-1]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("createAfter=2025-03-02&createBefore=2025-03-01", "0230"),
        ("createAfter=soon", "0202"),
        ("createBefore=", "0202"),
        ("centerId=none", "0210"),
        ("arch=X86", "0202"),
        ("createAfter=soon&page=0", "0204"),
    ],
)
async def test_faults_of_the_image_list(world: World, query: str, code: str) -> None:
    assert (await world.refused("GET", f"/resource/images?{query}"))[:2] == (400, code)
