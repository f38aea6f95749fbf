"""The page on security names real tests, every attacker has one, and its limits are the code's."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from adapters.http import MAX_ANSWER_BYTES, MAX_RAW_BYTES
from adapters.tai123_files import MAX_BYTES
from broker.api.dataset_upload import MAX_PARTS
from broker.api.models import MAX_INTEGER_DIGITS
from broker.api.reading import MAX_DEPTH
from broker.files import MAX_RESULT_FILES
from broker.reports import MOST_MESSAGE
from broker.tar import MAX_ENTRIES, MAX_HEADER_BYTES, MAX_HEADERS_BYTES
from tests.pages import ROOT, both, prose

TEST = re.compile(r"`(test_\w+)\.(test_\w+)`")
LIMITS = {
    "MAX_DEPTH": MAX_DEPTH,
    "MAX_PARTS": MAX_PARTS,
    "MAX_ENTRIES": MAX_ENTRIES,
    "MAX_HEADER_BYTES": MAX_HEADER_BYTES,
    "MAX_HEADERS_BYTES": MAX_HEADERS_BYTES,
    "MAX_RESULT_FILES": MAX_RESULT_FILES,
    "MAX_ANSWER_BYTES": MAX_ANSWER_BYTES,
    "MAX_RAW_BYTES": MAX_RAW_BYTES,
    "MAX_BYTES": MAX_BYTES,
    "MOST_MESSAGE": MOST_MESSAGE,
}
PAGES = both("security.md")


@cache
def functions(module: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
    return frozenset(
        each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_test_that_it_names_exists(page: Path) -> None:
    named = TEST.findall(prose(page))
    assert len(named) > 50
    assert [f"{module}.{test}" for module, test in named if test not in functions(module)] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_row_of_an_attacker_has_a_test(page: Path) -> None:
    attackers = prose(page).split("\n### ")[1:]
    assert len(attackers) == 7
    rows = [
        line
        for each in attackers
        for line in each.split("\n## ")[0].splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    assert len([row for row in rows if TEST.search(row.rsplit("|", 2)[1])]) == len(rows) - len(attackers)


def test_both_languages_name_the_same_tests() -> None:
    english, chinese = (TEST.findall(prose(page)) for page in PAGES)
    assert english == chinese


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_its_limits_are_those_of_the_code(page: Path) -> None:
    found = re.findall(r"^\| `(M[AO]\w+_\w+)` \| (\d+) \|", prose(page), re.MULTILINE)
    assert {name: int(value) for name, value in found} == LIMITS
    assert f" {MAX_DEPTH} " in prose(page)
    assert f" {MAX_INTEGER_DIGITS} " in prose(page)


def test_every_test_on_security_is_on_the_page() -> None:
    """But for variants of what is there: each module is named."""
    modules = {path.stem for path in (ROOT / "tests").glob("test_security_*.py")} - {"test_security_page"}
    assert modules <= {module for module, _ in TEST.findall(prose(PAGES[0]))}
