"""Names that the broker chooses: their form, their order, and keys of jobs that avoid centers."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from broker.core.identity import avoiding_key, base32, base_key, job_id, run_id
from broker.core.model import CenterId

CROCKFORD = "[0-9abcdefghjkmnpqrstvwxyz]"
TIMES = st.integers(0, 2**45 - 1)


@given(TIMES, st.binary(min_size=4, max_size=8))
def test_a_job_id_has_one_form(now_ms: int, entropy: bytes) -> None:
    assert re.fullmatch(f"j-{CROCKFORD}{{15}}", job_id(now_ms, entropy))


@given(TIMES, TIMES, st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_job_ids_sort_by_time(one_ms: int, other_ms: int, one: bytes, other: bytes) -> None:
    if one_ms != other_ms:
        assert (job_id(one_ms, one) < job_id(other_ms, other)) == (one_ms < other_ms)


@given(st.binary(min_size=7, max_size=7))
def test_a_run_id_fits_every_platform(entropy: bytes) -> None:
    name = run_id("broker-bj", entropy)
    assert re.fullmatch(f"broker-bj-{CROCKFORD}{{10}}", name)
    assert len(name) <= 20


@given(st.integers(0, 2**50 - 1), st.integers(0, 2**50 - 1))
def test_base32_keeps_numbers_apart_and_in_order(one: int, other: int) -> None:
    assert (base32(one, 10) < base32(other, 10)) == (one < other)
    assert (base32(one, 10) == base32(other, 10)) == (one == other)


@given(st.lists(st.sampled_from(["a", "b", "c-1", "d.2"]).map(CenterId)))
def test_the_key_of_avoiding_jobs_depends_on_which_centers_alone(centers: list[CenterId]) -> None:
    key = avoiding_key("0123abcd", centers)
    assert key == avoiding_key("0123abcd", frozenset(reversed(centers)))
    assert base_key(key) == "0123abcd"
    assert (key == "0123abcd") == (not centers)
