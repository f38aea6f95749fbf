"""The page on T/AI 123.8 has every clause, table, endpoint, code and open question, and names real tests.

What belongs here: docs/standard.md, in both languages, against the standard's own lists and the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from broker.api.app import ROUTES
from broker.api.errors import ANNEX_B

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs/standard.md", ROOT / "docs/zh-CN/standard.md"]

ENDPOINTS = {
    "7.2.1": ("POST /auth/tokens", range(1, 5)),
    "7.3.1": ("GET /centers", range(5, 9)),
    "7.3.2": ("GET /resource/specs", range(9, 13)),
    "7.3.3": ("GET /resource/idle", range(13, 19)),
    "7.3.4": ("GET /resource/images", range(19, 23)),
    "7.3.5": ("GET /datasets", range(23, 27)),
    "7.3.6": ("POST /datasets/upload", range(27, 30)),
    "7.4.1": ("POST /trainjob", range(30, 35)),
    "7.4.2": ("GET /trainjob", range(35, 40)),
    "7.4.3": ("GET /trainjob/{id}", range(40, 46)),
    "7.4.4": ("GET /trainjob/{id}/tasks/{taskId}/logs/url", range(46, 49)),
    "7.4.5": ("POST /trainjob/{id}/stop", range(49, 52)),
    "7.4.6": ("DELETE /trainjob/{id}", range(52, 54)),
    "7.4.7": ("GET /trainjob/{id}/download", range(54, 56)),
    "7.4.8": ("POST /onlineJob", range(56, 61)),
}
"""By clause: the endpoint and its tables of Annex A."""

FUNCTIONS = ("1", "1", "1", "2", "2", "2", "3a", "3b", "3c", "3d", "4a", "4b", "4b")
"""The letters of clause 7.1, one for each row."""

OPEN_QUESTIONS = 31


def rows(page: Path, columns: int) -> list[list[str]]:
    """The rows of that many columns, without the headings."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [each.strip() for each in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == columns and not set(cells[0]) <= {"-"} and cells[-1].startswith("`"):
            found.append(cells)
    return found


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@cache
def functions(module: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(each.name for each in tree.body if isinstance(each, kinds))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_clause_has_its_endpoint_and_tables(page: Path) -> None:
    told = {cells[0]: (cells[2].strip("`"), cells[1]) for cells in rows(page, 5)}
    assert told == {
        clause: (endpoint, f"A.{tables[0]}–A.{tables[-1]}")
        for clause, (endpoint, tables) in ENDPOINTS.items()
    }
    assert [table for _, tables in ENDPOINTS.values() for table in tables] == list(range(1, 61))


def test_what_is_tested_is_served() -> None:
    served = {f"{route.method} {route.path}" for route in ROUTES}
    assert {endpoint for endpoint, _ in ENDPOINTS.values()} <= served
    paths = {route.path for route in ROUTES}
    for cells in rows(PAGES[0], 3):
        for name in quoted(cells[1]):
            method, _, path = name.rpartition(" ")
            if path.startswith("/"):
                assert name in served if method else path in paths, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_function_of_clause_7_1_has_a_row(page: Path) -> None:
    assert tuple(cells[0].split()[0] for cells in rows(page, 3)) == FUNCTIONS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_code_and_every_open_question_has_a_row(page: Path) -> None:
    four = rows(page, 4)
    codes = [(int(cells[0]), cells[1].strip("`")) for cells in four if cells[1].startswith("`0")]
    assert codes[:20] == list(ANNEX_B)
    numbers = [cells[0] for cells in four if len(cells[0]) < 3]
    assert numbers == [str(number) for number in range(1, OPEN_QUESTIONS + 1)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tests_it_names_exist(page: Path) -> None:
    named = [quoted(cells[-1]) for columns in (3, 4, 5) for cells in rows(page, columns)]
    assert len(named) == len(FUNCTIONS) + len(ANNEX_B) + len(ENDPOINTS) + OPEN_QUESTIONS
    for name in flat(named):
        module, _, function = name.partition(".")
        assert function.startswith("test_"), name
        assert function in functions(module), name


def test_both_pages_name_the_same_tests() -> None:
    english, chinese = (
        [quoted(cells[-1]) for columns in (3, 4, 5) for cells in rows(page, columns)] for page in PAGES
    )
    assert english == chinese


def flat(lists: Iterable[list[str]]) -> list[str]:
    return [each for one in lists for each in one]
