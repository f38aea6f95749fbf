"""The client has a method for every endpoint, and its answers have the fields of their types.

What belongs here: the client against the routes and a real daemon.  What does not: broken connections
and refusals (test_client.py), and what the commands do with it (test_cli*.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from broker.api.app import ROUTES
from broker.client import ONLINE, TRAIN, Client, answers
from tests.daemon_process import daemon, eventually, local_center

ROOT = Path(__file__).parent.parent

FOR_BROWSERS = frozenset({"/docs", "/logs/{}", "/services/{}/", "/services/{}/{}"})
"""Pages and links, which people open."""

ONE_METHOD_FOR_SEVERAL = {
    "/broker/v1/centers/{}/{}": ("drain", "resume"),
    "/broker/v1/accounts/{}/{}": ("grant", "revoke", "freeze", "unfreeze", "password"),
}
ONE_METHOD_FOR_BOTH_KINDS = frozenset({"/{}", "/{}/{}", "/{}/{}/stop", "/{}/{}/tasks/{}/logs/url"})
"""Of jobs: of training jobs and of online services."""


def paths_of_the_client() -> Iterator[str]:
    """Paths in the client's source, with {} for what is filled in."""
    for file in (ROOT / "broker/client").glob("*.py"):
        for text in re.findall(r'"(/[^"]*)"', file.read_text(encoding="utf-8")):
            path = re.sub(r"\{[^}]*\}", "{}", text)
            yield path
            for word in ONE_METHOD_FOR_SEVERAL.get(path, ()):
                yield path.removesuffix("{}") + word
            if path in ONE_METHOD_FOR_BOTH_KINDS:
                yield from (path.replace("{}", noun, 1) for noun in (TRAIN, ONLINE))


def test_every_endpoint_has_a_method() -> None:
    known = set(paths_of_the_client())
    paths = {re.sub(r"\{[^}]*\}", "{}", route.path) for route in ROUTES}
    assert sorted(paths - known - FOR_BROWSERS) == []


def test_the_package_is_typed() -> None:
    assert (ROOT / "broker/py.typed").exists()


def exactly(kind: Any, answer: Any) -> None:
    """The answer has all fields of its type, of their types, and no other."""
    checked = TypeAdapter(kind).validate_python(answer, strict=True)
    assert checked == answer, "a field is not in the type"


def test_answers_of_a_real_daemon_are_of_their_types(tmp_path: Path) -> None:
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        alice, root = broker.client("alice"), broker.client("root")
        specs = alice.specs()
        config = {
            "specId": specs["resourceSpecs"][0]["resourceSpecId"],
            "imageId": "local",
            "command": "echo 42",
        }
        created = alice.create_job({"jobName": "typed", "config": config})
        job = created["metadata"]["id"]
        eventually("the job ended", lambda: alice.job(job)["status"] == "SUCCEEDED")
        shown = alice.train_job(job)
        link = alice.log_link(job, shown["tasks"][-1]["taskId"])
        exactly(answers.SpecPage, specs)
        exactly(answers.JobItem, created)
        exactly(answers.Job, shown)
        exactly(answers.LogLink, link)
        assert link["logUrl"].startswith(f"{broker.url}/logs/")
        exactly(answers.JobDetail, alice.job(job))
        exactly(answers.JobPage, alice.jobs())
        exactly(answers.Explanation, alice.explain(job))
        exactly(answers.CenterPage, alice.centers())
        exactly(answers.Idle, alice.idle())
        exactly(answers.Info, alice.info())
        exactly(answers.Me, alice.me())
        exactly(answers.Rounds, root.rounds(5))
        exactly(answers.CenterReports, root.center_reports())
        exactly(answers.Health, Client(broker.url).health())
        exactly(answers.Readiness, Client(broker.url).readiness())
        assert "broker_" in Client(broker.url).metrics()
        assert Client(broker.url).document()["openapi"] == "3.1.0"


def test_a_field_beside_the_type_is_seen() -> None:
    """Guards `exactly`: a check that finds nothing would pass everything."""
    with pytest.raises(AssertionError, match="not in the type"):
        exactly(answers.Health, {"status": "ok", "other": 1})
