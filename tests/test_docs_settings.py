"""The pages of configuration, reasons and policies say what the code does; see test_docs.py."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from broker.config import SECTIONS
from broker.config.keys import Absent, Key, keys_of, restart_keys
from broker.config.platforms import AMPHA, PLATFORMS, REMOTE_KEYS
from broker.config.schema import CenterSettings
from broker.config.tables import ASSET_KEYS, IMAGE_KEYS, POOL_KEYS, PRICE_KEYS, SPEC_KEYS
from broker.core import explain
from broker.core.policy import PolicySet
from broker.core.policy_file import load_policies
from broker.core.problem import build
from tests import builders
from tests.pages import (
    ENGLISH,
    ROOT,
    blocks,
    both,
    by_code,
    headings,
    installed_policies,
    name_of,
    prose,
    tables,
)

# ---------------------------------------------------------------- configuration


class Words(NamedTuple):
    required: str
    none: str
    restart: str


WORDS = {"docs": Words("required", "none", "restart"), "zh-CN": Words("必填", "无", "重启")}
PRICE_DEFAULTS = {"from": '`"00:00"`', "to": '`"24:00"`'}


def default_cell(name: str, key: Key, words: Words) -> str:
    """How a page writes a default."""
    value = key.default
    if value is Absent.REQUIRED:
        return words.required
    if value is Absent.OMITTED:
        return words.none
    if isinstance(value, frozenset):
        return "`" + json.dumps(["mon", "tue", "wed", "thu", "fri", "sat", "sun"]) + "`"
    if isinstance(value, tuple):
        return "`[]`" if not value else f"`{list(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return f"`{value:.17g}`"
    return f'`"{value.value if isinstance(value, enum.Enum) else value}"`'


def sections() -> Iterator[tuple[str, Mapping[str, Key]]]:
    """Heading and keys of every table of broker.toml."""
    for name, section in SECTIONS.items():
        yield f"[{name}]", keys_of(section)
    yield "[[specs]]", SPEC_KEYS
    yield "[[centers]]", {**keys_of(CenterSettings), "adapter": Key(lambda v, _: v)}
    for name, keys in (("pools", POOL_KEYS), ("prices", PRICE_KEYS), ("images", IMAGE_KEYS)):
        yield f"[[centers.{name}]]", keys
    for name in ("datasets", "models", "apps"):
        yield f"[[centers.{name}]]", ASSET_KEYS
    yield "[centers.connection]", REMOTE_KEYS
    for name, platform in PLATFORMS.items():
        own = {key: each for key, each in platform.connection.items() if key not in REMOTE_KEYS}
        yield f'adapter = "{name}"', own


@pytest.mark.parametrize("page", both("configuration.md"), ids=name_of)
def test_configuration_has_every_key_with_its_default(page: Path) -> None:
    words = WORDS[page.parent.name]
    found = tables(page)
    for heading, keys in sections():
        rows = by_code(found[heading])
        credentials = {name for name in rows if name.startswith("credentials.")}
        assert set(rows) - credentials == set(keys), heading
        for name, key in keys.items():
            wanted = default_cell(name, key, words)
            if heading == "[[centers.prices]]":
                wanted = PRICE_DEFAULTS.get(name, wanted)
            assert rows[name][1] == wanted, f"{heading} {name}"


@pytest.mark.parametrize("page", both("configuration.md"), ids=name_of)
def test_configuration_says_what_needs_a_restart(page: Path) -> None:
    words = WORDS[page.parent.name]
    for name, section in SECTIONS.items():
        for key, cells in by_code(tables(page)[f"[{name}]"]).items():
            assert cells[2] == (words.restart if key in restart_keys(section) else "reload"), f"{name}.{key}"


@pytest.mark.parametrize("page", both("configuration.md"), ids=name_of)
def test_configuration_has_every_credential(page: Path) -> None:
    words = WORDS[page.parent.name]
    for name, platform in PLATFORMS.items():
        rows = by_code(tables(page).get(f'adapter = "{name}"', []))
        given = {key: cells[1] for key, cells in rows.items() if key.startswith("credentials.")}
        assert set(given) == {f"credentials.{key}" for key in platform.credentials}, name
        for key in (*platform.required, *platform.optional):
            wanted = words.required if key in platform.required else words.none
            assert given[f"credentials.{key}"] == wanted, f"{name} {key}"
    assert AMPHA.together  # pairs are told in the text of the rows


def test_the_toml_of_the_pages_is_toml() -> None:
    for page in ENGLISH:
        for block in blocks(page):
            if block.language == "toml":
                tomllib.loads(block.text)


# ---------------------------------------------------------------- reasons, policies


def test_reasons_are_the_vocabulary() -> None:
    page = ROOT / "docs/reasons.md"
    rows = {code: tuple(cells) for code, cells in by_code(tables(page)["Codes"]).items()}
    assert rows == {code: (group, unit, text) for code, group, unit, text in explain.vocabulary()}
    assert list(rows) == [code for code, *_ in explain.vocabulary()], "the order is the order of the tests"


def test_chinese_reasons_are_the_vocabulary() -> None:
    rows = by_code(tables(ROOT / "docs/zh-CN/reasons.md")["代码"])
    vocabulary = {code: (group, unit, text) for code, group, unit, text in explain.vocabulary()}
    assert list(rows) == list(vocabulary)
    for code, (group, unit, text) in vocabulary.items():
        assert rows[code][:2] == [group, unit], code
        assert set(re.findall(r"\{\w+\}", rows[code][2])) == set(re.findall(r"\{\w+\}", text)), code


@pytest.mark.parametrize("page", both("reasons.md"), ids=name_of)
def test_groups_of_reasons_are_all_told(page: Path) -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", prose(page), re.MULTILINE))
    assert {group.value for group in explain.Group} <= told


@pytest.mark.parametrize("page", both("policies.md"), ids=name_of)
def test_policies_have_their_keys_and_defaults(page: Path) -> None:
    found = tables(page)
    for name, policy in installed_policies().items():
        keys = {f.name: f"`{f.default}`" for f in dataclasses.fields(policy)}
        assert f"`{name}`" in "".join(text for _, text in headings(page)), name
        rows = by_code(found.get(name, []))
        assert {key: cells[1] for key, cells in rows.items()} == keys, name


def test_the_policy_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/policies.md"
    (code,) = [block.text for block in blocks(page) if block.language == "python"]
    (tmp_path / "our_policies.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "our_policies", raising=False)
    home = import_module("our_policies").Home
    tomls = [tomllib.loads(b.text) for b in blocks(page) if b.language == "toml"]
    (table,) = [t["policies"] for t in tomls if "home" in t.get("policies", {})]
    text = "".join(
        f"[policies.{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
        for name, keys in {"fit": {}, **table}.items()
    )
    policies: PolicySet = load_policies(text, {**installed_policies(), "home": home})
    (near,) = table["home"]["centers"]
    world = builders.snapshot(
        *(builders.center(name) for name in (near, "elsewhere")),
        *(builders.pool(f"{name}/a") for name in (near, "elsewhere")),
        builders.job_class(wish=2),
    )
    problem = build(world, policies)
    at = [str(problem.pools[i].center) for i in problem.option_pool]
    cost = dict(zip(at, problem.cost.tolist(), strict=True))
    rank = 1  # equal costs are told apart by the order of pools, a micro-CNY per rank
    assert abs(cost["elsewhere"] - cost[near] - 2 * table["home"]["price"]) <= rank


def test_the_trace_of_the_page_is_replayed(tmp_path: Path) -> None:
    found = [block.text for block in blocks(ROOT / "docs/simulator.md") if block.language == "csv"]
    words = [sys.executable, "-m", "broker", "simulate", "--json"]
    for name, text in zip(("trace", "centers"), found, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
        words += [f"--{name}", str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] == len(found[0].splitlines()) - 1
