"""GET /models and /apps: what centers list beside data sets."""

from __future__ import annotations

import pytest

from broker.adapter import Asset
from tests.api_fixtures import World, world
from tests.dataset_uploads import (
    GZ,
    SZ,
    record,
)

__all__ = ["world"]


@pytest.mark.parametrize(("path", "kind"), [("models", "model"), ("apps", "app")])
async def test_models_and_apps_are_found_by_keyword_and_category(world: World, path: str, kind: str) -> None:
    bert = Asset("m/1", "BERT", desc="language model", labels="nlp", id="bert", owner="google")
    await record(world, SZ, **{kind: (bert, Asset("m/2", "ResNet", labels="cv"))})
    await record(world, GZ, **{kind: (bert,), "dataset": (Asset("d", "other kind", remote="d"),)})
    listed = await world.ok("GET", f"/{path}?order=asc")
    assert [each["title"] for each in listed[path]] == ["BERT", "ResNet"]
    assert listed["totalSize"] == 2
    assert listed[path][0] == {
        "id": "bert",
        "title": "BERT",
        "owner": "google",
        "desc": "language model",
        "labels": "nlp",
        "createTime": "2025-03-01 10:00:00",
        "centerIds": ["gz-2", "sz-1"],
    }
    for query, titles in (
        ("query=LANGUAGE", ["BERT"]),
        ("category=cv", ["ResNet"]),
        ("sort=id", ["ResNet", "BERT"]),
        ("sort=owner&order=asc&pageSize=1", ["BERT"]),
        ("sort=createTime", ["ResNet", "BERT"]),
    ):
        found = await world.ok("GET", f"/{path}?{query}")
        assert [each["title"] for each in found[path]] == titles, query
