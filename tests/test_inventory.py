"""What polls of a center leave in the store: its health, its pools by their canonical names, its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from adapters.fake import Fault
from broker.adapter import Image, Inventory, PoolReport, StatedPool
from broker.core.model import Accuracy, CenterId, CenterState, Price
from broker.core.resources import make_spec
from broker.inventory import canonical, merged, prices_of
from broker.store import centers
from broker.tables import Center, Event, Pool
from tests.builders import A800, ASCEND, node
from tests.harness import CATALOGUE, Harness, center, harness

A = CenterId("a")


async def health(broker: Harness, id: str = "a") -> str:
    (row,) = await broker.rows(Center, id=id)
    return row.health


async def test_a_center_is_suspect_then_down_then_fresh_again(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        assert await health(broker) == "fresh"
        broker.fakes[A].fail("probe", *[Fault.DROPPED] * 4)
        seen = []
        for _ in range(5):
            await broker.poll()
            seen.append(await health(broker))
        assert seen == ["suspect", "suspect", "down", "down", "fresh"]
        told = [e.data["health"] for e in await broker.rows(Event, kind="center.health")]
        assert told == ["fresh", "suspect", "down", "fresh"]
        (row,) = await broker.rows(Center)
        assert (row.failures, row.error) == (0, "")


async def test_a_defect_of_an_adapter_is_a_failed_poll(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        with patch.object(broker.fakes[A], "probe", side_effect=KeyError("nodes")):
            await broker.poll()
        (row,) = await broker.rows(Center)
        assert (row.health, row.error) == ("suspect", "defect in the adapter: KeyError: 'nodes'")


async def test_an_inactive_center_is_not_asked(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", state=CenterState.INACTIVE)) as broker:
        assert broker.fakes[A].calls == []
        assert await health(broker) == "unknown"


async def test_a_product_that_nobody_knows_is_shown_and_not_used(tmp_path: Path) -> None:
    odd = StatedPool("odd", node(4, accelerator="Nvidia/GPU/X9000"), 1)
    async with harness(tmp_path, center("a", pools=(odd, StatedPool("a", node(8), 1)))) as broker:
        (row,) = await broker.rows(Center)
        assert row.quarantined == [["odd", "the product 'Nvidia/GPU/X9000' is not in accelerators.toml"]]
        job = await broker.submit()
        await broker.round()
        assert (await broker.show(job)).runs[0].native_pool == "a"


def test_products_get_their_canonical_names() -> None:
    known, unknown = canonical(
        [PoolReport("x", node(8, accelerator=A800.upper()), 1, ()), PoolReport("c", node(0), 1, ())],
        CATALOGUE,
    )
    assert [pool.shape.accelerator for pool in known] == [A800, ""]
    assert unknown == ()


def test_the_memory_of_a_card_that_a_platform_does_not_tell() -> None:
    """Taken from the catalogue where the product has one size; specs follow the pool's names."""
    ascend = replace(node(2, accelerator=ASCEND.lower()), accelerator_memory_gib=0)
    two_sizes = replace(node(2), accelerator_memory_gib=0)
    known, unknown = canonical(
        [
            PoolReport("x", ascend, 1, (), specs=(make_spec(ascend), replace(make_spec(ascend), name="L"))),
            PoolReport("y", two_sizes, 1, ()),
        ],
        CATALOGUE,
    )
    shape = node(2, accelerator=ASCEND, card_memory_gib=64)
    specs = (make_spec(shape), replace(make_spec(shape), name="L"))
    assert [(pool.shape, pool.specs) for pool in known] == [(shape, specs)]
    assert unknown == (("y", f"{A800} is sold with 40, 80 GiB: state the pool in [[centers.pools]]"),)


async def test_a_pool_may_be_known_less_well_than_its_center(tmp_path: Path) -> None:
    estimated = PoolReport("e", node(8), 1, (), accuracy=Accuracy.ESTIMATED)
    pools = (estimated, PoolReport("x", node(4), 1, ()))
    async with harness(tmp_path, center("a")) as broker:
        await broker.store.write(
            centers.record_inventory,
            A,
            Inventory(broker.clock(), Accuracy.EXACT, pools),
            epoch=broker.lease.epoch,
            traits={},
            prices=[(pool, ()) for pool in pools],
        )
        rows = {row.native: row.accuracy for row in await broker.rows(Pool, center_id="a")}
    assert (rows["e"], rows["x"]) == ("estimated", "exact")


def test_the_operators_word_on_prices_and_images_wins() -> None:
    platform = (Price(7),)
    settings, _ = center("a", price="12.5")
    assert prices_of(PoolReport("a", node(8), 1, (), prices=platform), settings) == (Price(12_500_000),)
    assert prices_of(PoolReport("a", node(0), 1, (), prices=platform), settings) == platform
    both = merged([Image("i", "theirs"), Image("j", "theirs")], [Image("i", "ours")])
    assert {image.id: image.native for image in both} == {"i": "ours", "j": "theirs"}
