"""The OpenAPI document and its page: whole, valid, in two languages, and served.

What belongs here: the document against the routes, the models and the specification.  What does not:
whether the daemon keeps to it (test_contract.py).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from broker.api import docs_page
from broker.api.app import ROUTES
from broker.api.chinese import FIELDS
from broker.api.dataset_upload import LONGEST, PARTS
from broker.api.errors import ANNEX_B
from broker.api.openapi import MEANINGS, PATH_FIELDS, document
from broker.api.routes import Media, Route
from broker.api.services import PASSED_ON
from tests.api_fixtures import World, world
from tests.daemon_process import daemon, local_center
from tests.openapi_document import built

__all__ = ["world"]

DOCUMENT = built()
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_it_keeps_to_the_specification() -> None:
    validate(DOCUMENT)


def test_every_route_is_in_it_and_nothing_else() -> None:
    described = [(method, path) for method, path, _ in operations()]
    assert sorted(described) == sorted((route.method, route.path) for route in ROUTES)


async def test_every_route_of_the_application_is_declared(world: World) -> None:
    """But for what services answer, and the paths that platforms call, of which there are none here."""
    routes = world.client.app.router.routes()
    served = {(each.method, each.resource.canonical) for each in routes if each.resource is not None}
    passed_on = {("*", path) for path, _ in PASSED_ON}
    assert served == {(route.method, route.path) for route in ROUTES} | passed_on


def test_operations_have_ids_of_their_own() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_a_route_is_told_in_both_languages(route: Route) -> None:
    assert route.en
    assert not CHINESE.search(route.en)
    assert CHINESE.search(route.zh)
    told = [(each.name, each.en, each.zh) for each in route.query]
    told += [(name, *meaning) for name, meaning in route.headers.items()]
    media = [each for each in (route.answer, route.sent) if isinstance(each, Media)]
    told += [("", each.en, each.zh) for each in media]
    told += [(part.name, part.en, part.zh) for each in media for part in each.parts]
    for name, en, zh in told:
        assert en, name
        assert CHINESE.search(zh), name


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_path_parameters_have_a_meaning(route: Route) -> None:
    words = route.path.split("/")
    for before, word in pairwise(words):
        if word.startswith("{"):
            assert (before, word.strip("{}")) in PATH_FIELDS


def test_fields_of_bodies_are_told_in_both_languages() -> None:
    """Every described field has its Chinese text, and no text is left over."""
    bodies = {route.body for route in ROUTES if route.body is not None}
    bodies |= {part for body in bodies for part in body.parts}
    bodies |= {part for body in bodies for part in body.parts}
    described = {
        (body.__name__, field.alias)
        for body in bodies
        for field in body.model_fields.values()
        if field.description
    }
    told = {(model, name) for model, names in FIELDS.items() for name in names}
    inherited = {(body.__name__, name) for body in bodies for name in FIELDS.get(body.__name__, ())}
    assert described <= told
    assert inherited <= described
    assert all(CHINESE.search(text) for names in FIELDS.values() for text in names.values())


def test_a_form_is_described_part_by_part() -> None:
    body = DOCUMENT["paths"]["/datasets/upload"]["post"]["requestBody"]
    (form,) = body["content"].values()
    schema = form["schema"]
    assert list(schema["properties"]) == list(form["encoding"]) == [part.name for part in PARTS]
    assert sorted(schema["required"]) == ["file", "md5", "size", "title"]
    assert schema["additionalProperties"] is False
    assert form["encoding"]["file"] == {"contentType": "application/octet-stream"}
    assert form["encoding"]["size"] == {"contentType": "text/plain"}
    for part in PARTS:
        if (longest := schema["properties"][part.name].get("maxLength")) is not None:
            assert longest == LONGEST[part.name]


def test_every_code_of_annex_b_has_an_english_meaning_and_an_endpoint() -> None:
    assert MEANINGS.keys() == ANNEX_B.keys()
    assert {pair for route in ROUTES for pair in route.codes} == set(ANNEX_B)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.body is not None], ids=name_of)
def test_examples_are_valid(route: Route) -> None:
    if route.example is not None:
        assert route.body is not None
        route.body.model_validate(route.example)


def test_limits_of_pages_are_those_of_the_configuration() -> None:
    made = document(ROUTES, version="0", max_page_size=20)
    (size,) = [each for each in made["paths"]["/centers"]["get"]["parameters"] if each["name"] == "pageSize"]
    assert (size["schema"]["maximum"], size["schema"]["default"]) == (20, 20)


# ---------------------------------------------------------------- served


async def test_the_document_needs_no_token(world: World) -> None:
    answer = await world.call("GET", "/openapi.json", as_=None)
    assert answer.status == 200
    served = await answer.json()
    assert served["paths"].keys() == DOCUMENT["paths"].keys()


@pytest.mark.parametrize(
    ("query", "accepted", "language"),
    [
        ("", "", "en"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("", "en,zh;q=0.9", "en"),
        ("?lang=zh", "en", "zh-CN"),
        ("?lang=en", "zh", "en"),
    ],
)
async def test_the_page_is_in_the_language_wanted(
    world: World, query: str, accepted: str, language: str
) -> None:
    answer = await world.call("GET", f"/docs{query}", as_=None, headers={"Accept-Language": accepted})
    assert answer.status == 200
    assert answer.headers["Content-Security-Policy"] == docs_page.POLICY
    assert f'<html lang="{language}">' in await answer.text()


async def test_an_unknown_language_is_refused(world: World) -> None:
    assert (await world.refused("GET", "/docs?lang=fr", as_=None))[:2] == (400, "0202")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_has_every_operation_and_needs_nothing_from_elsewhere(language: str) -> None:
    page = docs_page.page(DOCUMENT, language)
    for _, _, operation in operations():
        summary = operation["x-summary-zh" if language == "zh" else "summary"]
        assert f'id="{operation["operationId"]}"' in page
        assert escape(summary) in page
    assert not re.search(r"<script|<img|<link|<iframe|https?://|@import|url\(", page)


def test_what_is_shown_is_escaped() -> None:
    hostile = json.loads(json.dumps(DOCUMENT).replace("The computing centers", "<b onclick=x>'&"))
    page = docs_page.page(hostile, "en")
    assert "<b onclick" not in page
    assert "&lt;b onclick=x&gt;&#x27;&amp;" in page


# ---------------------------------------------------------------- in a browser


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    """The page's own policy lets its style through: the contents stand beside the endpoints."""
    browser = shutil.which("chromium")
    assert browser is not None, "chromium is not installed: .ci/run says how"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    with daemon(tmp_path, local_center(tmp_path, "one")) as broker:
        for language, word in (("en", "Training jobs"), ("zh", "训练作业")):
            shot = tmp_path / f"{language}.png"
            url = f"{broker.url}/docs?lang={language}"
            options = [f"--screenshot={shot}", "--window-size=1300,1000", "--enable-logging=stderr", "--v=0"]
            shown = subprocess.run([*command, *options, url], capture_output=True, timeout=60, check=True)
            assert b"Content Security Policy" not in shown.stderr
            assert shot.read_bytes().startswith(b"\x89PNG")
            dumped = subprocess.run(
                [*command, "--dump-dom", url], capture_output=True, timeout=60, check=True
            )
            assert word in dumped.stdout.decode()
