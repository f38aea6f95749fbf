"""What concerns every test: on which database it runs, slow machines, and garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.databases import CURRENT, KINDS

# however slow the machine is, no property fails for that
settings.register_profile(
    "tests", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What modules are made of stays: full garbage collections need not go through it each time."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a module marked `both_databases` runs on each, unless it is `sqlite_only(why)`;
    one marked `on_postgresql` on that alone."""
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if "both_databases" in marks and "sqlite_only" not in marks:
        metafunc.parametrize("database_kind", KINDS, indirect=True)
    elif "on_postgresql" in marks:
        metafunc.parametrize("database_kind", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def database_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of database of this test's stores; SQLite unless marks say otherwise."""
    kind = getattr(request, "param", KINDS[0])
    CURRENT.begin(kind)
    yield kind
    CURRENT.end()
