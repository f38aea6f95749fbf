"""The documentation says what the code says: names, defaults, codes, links, commands, and both languages.

What belongs here: comparing pages with the sources they describe.  What does not: style.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase
from pydantic.alias_generators import to_camel
from typer.main import get_command

from adapters import breaker, http, session
from broker import cli, telemetry
from broker.adapter import Connection, Denied, Traits, Unavailable
from broker.api.app import ROUTES
from broker.api.errors import ANNEX_B
from broker.api.models import Config
from broker.cli.app import app
from broker.config.platforms import PLATFORMS
from broker.core.model import CenterId, JobState, RunState
from broker.daemon import ADAPTERS
from broker.store.checks import INVARIANTS
from tests.pages import (
    CHINESE,
    ENGLISH,
    PAGES,
    ROOT,
    blocks,
    both,
    by_code,
    headings,
    installed_policies,
    name_of,
    project,
    prose,
    tables,
    twin,
)
from tests.raw_server import Arrived, document, raw_server

# ---------------------------------------------------------------- both languages


def test_every_page_has_its_twin() -> None:
    assert [twin(page) for page in ENGLISH] == CHINESE


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_twins_have_the_same_headings_and_code(page: Path) -> None:
    levels = [[level for level, _ in headings(each)] for each in (page, twin(page))]
    assert levels[0] == levels[1]
    assert blocks(page) == blocks(twin(page))
    shapes = [
        [(len(rows), {len(r) for r in rows}) for rows in tables(p).values()] for p in (page, twin(page))
    ]
    assert shapes[0] == shapes[1], "the tables differ in rows or columns"


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_chinese_pages_are_chinese(page: Path) -> None:
    assert re.search(r"[\u4e00-\u9fff]{4}", prose(page))
    assert all(re.search(r"[\u4e00-\u9fff`]", text) for _, text in headings(page)), (
        "a heading is not translated"
    )


# ---------------------------------------------------------------- links, paths, figures


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for target in targets:
        if "://" not in target:
            file = page.parent / target.partition("#")[0]
            assert file.exists(), f"{target} in {name_of(page)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_the_source_tree_exist(page: Path) -> None:
    roots = "broker|policies|adapters|bench|config|examples|tests|docs"
    for path in re.findall(rf"(?<![\w/$.-])((?:{roots})/[\w./-]*\w)", page.read_text(encoding="utf-8")):
        if not path.startswith("broker/v1"):
            assert (ROOT / path).exists(), f"{path} in {name_of(page)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_performance_is_claimed(page: Path) -> None:
    """Figures are what the benches print on a machine of one's own; no page states a rate or a share."""
    claim = re.compile(
        r"(?<![A-Za-z\d])\d[\d.,]*\s*(?:ms|milliseconds?|毫秒|µs|%)(?![\w])"
        r"|\d\s*(?:jobs|requests|placements|runs|个作业|次请求)"
        r"\s*(?:/|per |every |每)\s*(?:s|second|minute|秒|分)"
        r"|\d\s*(?:×|x|times|倍)\s*(?:faster|quicker|better|快|提升)",
        re.IGNORECASE,
    )
    assert claim.findall(prose(page)) == []


# ---------------------------------------------------------------- commands


def commands() -> Mapping[str, Any]:
    """The commands by their words: "submit", "user add"."""
    for module in cli.MODULES:
        import_module(module)
    found: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found |= {f"{name} {word}": each for word, each in inner.items()} or {name: command}
    return found


def written_commands(page: Path) -> Iterator[list[str]]:
    """Words of every `broker …` in code, without what follows a pipe, a redirection or `--`."""
    shell = [b.text for b in blocks(page) if b.language in ("sh", "console")]
    lines = [line.removeprefix("$ ") for text in shell for line in text.splitlines()]
    for code in [*lines, *re.findall(r"`(broker [^`]+)`", prose(page))]:
        for found in re.finditer(r"(?:^|[|(&;]\s*)broker ([^|>;&)]+)", code):
            yield found[1].partition(" -- ")[0].split()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists(page: Path) -> None:
    known = commands()
    for words in written_commands(page):
        if words[0].startswith("--"):
            assert words == ["--version"] or words == ["--help"], words
            continue
        length = 2 if any(name.startswith(f"{words[0]} ") for name in known) else 1
        name = " ".join(words[:length])
        assert name in known, f"broker {' '.join(words)}"
        if known[name].context_settings.get("ignore_unknown_options"):
            continue  # the daemon knows its words
        options = {o for p in known[name].params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
        used = {
            word.partition("=")[0].strip("[]") for word in words[length:] if word.lstrip("[").startswith("-")
        }
        assert used <= options, f"broker {' '.join(words)}"


def test_the_tour_of_the_readme_is_seen() -> None:
    """Guards the pattern of `written_commands`: a pattern that finds nothing would pass everything."""
    seen = {words[0] for words in written_commands(ROOT / "README.md")}
    assert {"serve", "login", "submit", "explain", "logs", "download", "stop"} <= seen


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("page", both("adapters.md"), ids=name_of)
def test_the_table_of_traits_is_what_the_adapters_state(page: Path) -> None:
    yes, no, none = ("yes", "no", "none") if page.parent.name == "docs" else ("是", "否", "无")

    def cell(value: object) -> str:
        if isinstance(value, bool):
            return yes if value else no
        return none if value is None else str(value)

    stated = {name: import_module(module).TRAITS for name, module in ADAPTERS.items()}
    facts = [each.name for each in dataclasses.fields(Traits)]
    expected = [[f"`{fact}`", *(cell(getattr(t, fact)) for t in stated.values())] for fact in facts]
    (heading, *rows) = next(found for found in tables(page).values() if found[1][0] == "`gang`")
    told = [heading[1:-1], [row[:-1] for row in rows]]
    lines = "\n".join(f"| {' | '.join(row)} | …" for row in expected)
    assert told == [[f"`{name}`" for name in stated], expected], f"the table should be:\n{lines}"


@pytest.mark.parametrize("page", both("adapters.md"), ids=name_of)
def test_every_adapter_is_told_for_whom_it_is(page: Path) -> None:
    found = next(iter(tables(page).values()))
    assert set(by_code(found)) == set(PLATFORMS)
    built = {text.strip("`") for level, text in headings(page) if level == 2}
    assert set(ADAPTERS) <= built


async def test_the_adapter_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block.text for block in blocks(ROOT / "docs/adapters.md") if block.language == "python"]
    (tmp_path / "our_platform.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "our_platform", raising=False)
    logins = 0

    def answers(request: Arrived) -> bytes | None:
        nonlocal logins
        if request.path == "/login":
            logins += 1
            if request.document != {"username": "u", "password": "p"}:
                return document({"code": 401, "msg": "who?"})
            return document({"code": 0, "data": {"token": f"t{logins}", "expiresIn": 60}})
        if request.headers["authorization"] != "Bearer t2":
            return document({"code": 401, "msg": "over"})
        return document({"code": 0, "data": {"id": request.document["name"]}}) if request.body else None

    async with raw_server(answers) as server:
        options, account = {"base_url": server.url}, {"username": "u", "password": "p"}
        connect = import_module("our_platform").connect
        platform = await connect(Connection(CenterId("ours"), "bk", options, account))
        assert await platform.submit("bk1", "true") == "bk1"
        assert logins == 2
        with pytest.raises(Unavailable):
            await platform.stop("bk1")
        refused = await connect(Connection(CenterId("ours"), "bk", options, {**account, "password": "x"}))
        with pytest.raises(Denied, match="who"):
            await refused.submit("bk2", "true")
        await platform._http.aclose()
        await refused._http.aclose()
    assert [r.path for r in server.requests if "stop" in r.path] == ["/tasks/bk1/stop"]


# ---------------------------------------------------------------- API, operations, architecture


@pytest.mark.parametrize("page", both("api.md"), ids=name_of)
def test_every_error_of_annex_b_is_listed(page: Path) -> None:
    rows = [cells for rows in tables(page).values() for cells in rows if re.fullmatch(r"`0\d{3}`", cells[1])]
    assert {(int(status), code.strip("`")): text for status, code, text, *_ in rows} == dict(ANNEX_B)
    assert len(rows) == 20


@pytest.mark.parametrize("page", both("api.md"), ids=name_of)
def test_every_endpoint_is_listed_and_no_other(page: Path) -> None:
    listed = re.findall(r"^\| `(GET|POST|DELETE|PUT) ([^`?]+)", prose(page), re.MULTILINE)
    assert sorted(listed) == sorted((route.method, route.path) for route in ROUTES)


@pytest.mark.parametrize("page", both("api.md"), ids=name_of)
def test_every_field_of_config_is_listed(page: Path) -> None:
    rows = by_code(tables(page)["config"])
    assert set(rows) == {to_camel(name) for name in Config.model_fields}


@pytest.mark.parametrize("page", both("operations.md"), ids=name_of)
def test_every_metric_is_listed(page: Path) -> None:
    exposed = {}
    for metric in [each for module in (telemetry, http, session, breaker) for each in vars(module).values()]:
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.collect()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            exposed[name] = family.type
    rows = by_code(tables(page)["/metrics"])
    assert {name: cells[0] for name, cells in rows.items()} == exposed


@pytest.mark.parametrize("page", both("operations.md"), ids=name_of)
def test_every_invariant_is_listed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [each.id for each in INVARIANTS if f"`{each.id}`" not in text] == []


@pytest.mark.parametrize("page", both("operations.md"), ids=name_of)
def test_log_actions_exist(page: Path) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "broker").rglob("*.py"))
    written = set(re.findall(r"log\.\w+\(\s*\"([\w.]+)\"", source))
    told = set(re.findall(r"`action=([\w.]+)`", prose(page)))
    assert told
    assert told <= written


@pytest.mark.parametrize("page", both("architecture.md"), ids=name_of)
def test_every_state_is_told(page: Path) -> None:
    coded = {cells[0].strip("`") for rows in tables(page).values() for cells in rows}
    assert {state.value for state in (*RunState, *JobState)} <= coded


def test_every_contract_of_the_layers_is_told() -> None:
    contracts = [each["name"] for each in project()["tool"]["importlinter"]["contracts"]]
    for page in both("architecture.md"):
        text = prose(page)
        assert [name for name in contracts if name not in text] == [], name_of(page)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=name_of)
def test_the_readme_tells_which_adapters_there_are(page: Path) -> None:
    rows = by_code([row for rows in tables(page).values() for row in rows])
    told = {name: cells[0] for name, cells in rows.items() if name in PLATFORMS}
    works = {"README.md": "works", "README.zh-CN.md": "可用"}[page.name]
    assert {name for name, state in told.items() if state == works} == set(ADAPTERS)
    assert set(told) == set(PLATFORMS)


def test_what_the_readme_says_is_missing_is_missing() -> None:
    missing = (ROOT / "README.md").read_text(encoding="utf-8").partition("Not there yet:")[2]
    missing = missing.partition("## ")[0]
    paths = {route.path for route in ROUTES}
    there = {
        "`simulate`": "simulate" in commands(),
        "nothing is preempted": "preemption" in installed_policies(),
        "images": "/resource/images" in paths,
        "data sets": "/datasets" in paths,
        "online services": "/onlineJob" in paths,
        "OpenAPI": "/openapi.json" in paths,
    }
    assert {words: words in missing for words in there} == {words: not done for words, done in there.items()}


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project()['project']['version']}]" in text
