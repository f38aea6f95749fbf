"""Shapes, slices, ids, totals, prices and the catalogue of accelerators."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.model import NodeShape, Price
from broker.core.resources import (
    Catalogue,
    effective_gflops,
    load_catalogue,
    make_spec,
    millicards,
    price_at,
    rate_micro_per_hour,
    slices,
    slot_size,
    spec_id,
    spec_name,
    totals,
    unit_count,
)
from tests.builders import A800, ASCEND, cpu_node, node, pool

CATALOGUE = """
[[accelerators]]
name = "Nvidia/GPU/A800"
memory_gib = [40, 80]
fp16_tflops = 312.0
factor = 0.85
aliases = ["A800-SXM4-80GB", "a800"]
source = "datasheet"
note = "export version"

[[accelerators]]
name = "Nvidia/GPU/A80"
memory_gib = [24]
fp16_tflops = 1
"""


def test_catalogue_knows_names_and_aliases_exactly() -> None:
    catalogue = load_catalogue(CATALOGUE)
    assert catalogue.canonical(" NVIDIA/gpu/a800 ") == A800
    assert catalogue.canonical("A800-sxm4-80gb") == A800
    assert catalogue.canonical("Nvidia/GPU/A80") == "Nvidia/GPU/A80"
    assert catalogue.canonical("Nvidia/GPU/A8") is None
    assert catalogue.canonical("A800-SXM4") is None
    product = catalogue.get(A800)
    assert product is not None
    assert (product.fp16_gflops, product.factor_permille) == (312_000, 850)
    assert product.effective_gflops == 265_200
    assert catalogue.get("a800") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('name = "Nvidia/GPU/A80"', 'name = "A80"'), "name must be Vendor/Kind/Model"),
        (('name = "Nvidia/GPU/A80"', 'name = "nvidia/gpu/a800"'), "'nvidia/gpu/a800' already means"),
        (('name = "Nvidia/GPU/A80"', 'name = "Nvidia/GPU/A800"'), "already means Nvidia/GPU/A800"),
        (('name = "Nvidia/GPU/A80"', 'name = "Nvidia/GPU/A80"\naliases = ["A800"]'), "'A800' already means"),
        (("memory_gib = [24]", "memory_gib = []"), "Nvidia/GPU/A80: memory_gib must be"),
        (("memory_gib = [24]", "memory_gib = [true]"), "Nvidia/GPU/A80: memory_gib must be"),
        (("fp16_tflops = 1\n", 'fp16_tflops = "1"\n'), "Nvidia/GPU/A80: fp16_tflops must be a number"),
        (("fp16_tflops = 1\n", "\n"), "Nvidia/GPU/A80: fp16_tflops must be a number, not None"),
        (("factor = 0.85", "factor = 0"), "Nvidia/GPU/A800: factor must be at least"),
        (("factor = 0.85", "factor = nan"), "Nvidia/GPU/A800: factor must be a number"),
        (("note =", "remark ="), "Nvidia/GPU/A800: unknown field 'remark'"),
        (('source = "datasheet"', "source = 3"), "Nvidia/GPU/A800: source must be a text"),
        (("[[accelerators]]\n", "[[accelerator]]\n"), "unknown key 'accelerator'"),
        (("memory_gib = [24]", "memory_gib = ["), "not TOML"),
    ],
)
def test_a_wrong_catalogue_names_entry_and_field(change: tuple[str, str], told: str) -> None:
    text = CATALOGUE.replace(*change)
    assert text != CATALOGUE
    with pytest.raises(ValueError) as caught:
        load_catalogue(text)
    assert told in str(caught.value)


def test_slices_are_powers_of_two_and_the_whole_node() -> None:
    shapes = [s.shape for s in slices(node(6, cores=100, memory_gib=500))]
    assert [(s.accelerators, s.cores, s.memory_gib) for s in shapes] == [
        (1, 16, 83),
        (2, 33, 166),
        (4, 66, 333),
        (6, 100, 500),
    ]
    assert [s.shape.cores for s in slices(cpu_node(24, 100))] == [1, 2, 4, 8, 16, 24]
    assert [s.shape.memory_gib for s in slices(cpu_node(24, 100))] == [4, 8, 16, 33, 66, 100]
    assert slices(node(1)) == (make_spec(node(1)),)


@given(st.integers(0, 20), st.integers(0, 300), st.integers(0, 2000))
def test_slices_are_never_empty_and_take_their_own_slot(cards: int, cores: int, memory: int) -> None:
    shape = node(cards, cores=cores, memory_gib=memory)
    for offered in slices(shape):
        assert offered.shape.cores >= 1
        assert offered.shape.memory_gib >= 1
        if min(cores, memory) >= unit_count(shape):
            assert slot_size(shape, offered.shape) == unit_count(offered.shape)


def test_ids_are_readable() -> None:
    assert spec_id(node(8, memory_gib=1024)) == "nvidia-gpu-a800-80g-x8-128c-1024g-x86"
    assert spec_id(cpu_node(16, 64)) == "cpu-16c-64g-x86"
    assert spec_id(node(1, accelerator="Nvidia/GPU/A100-PCIe")).startswith("nvidia-gpu-a100_2dpcie-80g-")
    assert spec_name(node(8)) == "8×A800 80GB · 128C · 1024GiB"
    assert spec_name(cpu_node(16, 64)) == "16C · 64GiB"


_texts = st.text(alphabet="aA1.-_/ 卡", max_size=5)
_shapes = st.builds(
    NodeShape,
    arch=_texts,
    cores=st.integers(0, 12),
    memory_gib=st.integers(0, 12),
    accelerator=_texts,
    accelerators=st.integers(0, 12),
    accelerator_memory_gib=st.integers(0, 12),
    card_permille=st.sampled_from([1000, 1000, 500, 5]),
    split_permille=st.sampled_from([0, 0, 5]),
)


@given(_shapes, _shapes)
def test_ids_differ_exactly_where_shapes_do(one: NodeShape, other: NodeShape) -> None:
    def known(shape: NodeShape) -> tuple[object, ...]:
        numbers = (shape.cores, shape.memory_gib, shape.accelerators, shape.accelerator_memory_gib)
        parts = (shape.card_permille, shape.split_permille)
        return (shape.arch.lower(), shape.accelerator.lower(), *numbers, *parts)

    assert (spec_id(one) == spec_id(other)) == (known(one) == known(other))
    assert set(spec_id(one)) <= set(string.ascii_lowercase + string.digits + ".-_")


@given(
    total=st.integers(1, 16),
    cores=st.integers(1, 200),
    memory=st.integers(1, 500),
    cards=st.integers(0, 17),
    wanted_cores=st.integers(0, 210),
    wanted_memory=st.integers(0, 510),
)
def test_a_slot_owns_what_is_asked_for_and_no_smaller_slot_does(
    total: int, cores: int, memory: int, cards: int, wanted_cores: int, wanted_memory: int
) -> None:
    host = node(total, cores=cores, memory_gib=memory)
    wanted = node(cards, cores=wanted_cores, memory_gib=wanted_memory)
    slot = slot_size(host, wanted)

    sizes = [*(t for t in (1, 2, 4, 8, 16) if t < total), total]
    owning = [
        t
        for t in sizes
        if cards <= t and wanted_cores * total <= cores * t and wanted_memory * total <= memory * t
    ]
    assert slot == min(owning, default=0)


def test_power_and_cards() -> None:
    catalogue = load_catalogue(CATALOGUE)
    assert effective_gflops(node(8), catalogue) == 8 * 265_200
    assert effective_gflops(node(8), catalogue.products) == 8 * 265_200
    assert effective_gflops(node(8, accelerator="Acme/GPU/X"), catalogue) == 0
    assert effective_gflops(cpu_node(), Catalogue()) == 0
    assert millicards(node(2)) == 2000
    assert millicards(cpu_node(20)) == 1000


def test_totals_of_a_mixed_center() -> None:
    mixed = totals(
        [
            (cpu_node(64, 256, arch="ARM"), 2),
            (node(8, card_memory_gib=40), 1),
            (node(8), 3),
            (node(4, accelerator=ASCEND, card_memory_gib=64, arch="ARM"), 1),
        ]
    )
    assert (mixed.cores, mixed.memory_gib, mixed.accelerators) == (128 + 512 + 64, 512 + 4096 + 512, 36)
    assert (mixed.arch, mixed.kind, mixed.accelerator) == ("X86,ARM", "GPU,NPU", f"{A800},{ASCEND}")
    assert (mixed.accelerator_memory_gib, mixed.nodes) == (40, 7)
    assert [(e.arch, e.accelerator, e.accelerators, e.accelerator_memory_gib) for e in mixed.entries] == [
        ("X86", A800, 24, 80),
        ("X86", A800, 8, 40),
        ("ARM", ASCEND, 4, 64),
        ("ARM", "", 0, 0),
    ]


def test_totals_of_nothing_and_of_cores() -> None:
    nothing = totals([])
    assert (nothing.arch, nothing.kind, nothing.accelerator, nothing.cores) == ("", "", "", 0)
    cores = totals([(cpu_node(8, 32), 2)])
    assert (cores.arch, cores.kind, cores.accelerators, cores.accelerator_memory_gib) == ("X86", "", 0, 0)


def test_the_last_window_wins_and_a_window_belongs_to_the_day_it_starts() -> None:
    friday_night = Price(3, days=frozenset({4}), start_min=22 * 60, end_min=6 * 60)
    prices = (friday_night, Price(9), Price(5, start_min=8 * 60, end_min=22 * 60), Price(8))
    day = 24 * 60
    assert price_at(prices, 8 * 60) == 5
    assert price_at(prices, 22 * 60) == 8
    assert price_at(prices, 4 * day + 22 * 60) == 3
    assert price_at(prices, 5 * day + 6 * 60 - 1) == 3
    assert price_at(prices, 5 * day + 6 * 60) == 8
    assert price_at(prices, 4 * day + 60) == 8
    assert price_at((friday_night,), 0) is None
    sunday_night = Price(2, days=frozenset({6}), start_min=23 * 60, end_min=60)
    assert price_at((sunday_night,), 30) == 2
    later = Price(4, start_min=9 * 60, end_min=10 * 60)
    assert price_at((*prices, later), 9 * 60) == 4


def test_rates_count_cards_or_cores() -> None:
    assert rate_micro_per_hour(pool(price=7), node(4), 3, 0) == 7 * 4 * 3
    assert rate_micro_per_hour(pool(shape=cpu_node(), price=7), cpu_node(16, 8), 2, 0) == 7 * 16 * 2
    assert rate_micro_per_hour(pool(), node(4), 3, 0) == 0
