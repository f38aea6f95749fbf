"""The pages of the documentation, taken apart for the tests that compare them with the code.

What belongs here: reading pages, and what the project says of itself.  What does not: tests.
"""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
ENGLISH = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs/zh-CN").glob("*.md"))]
PAGES = [*ENGLISH, *CHINESE, ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def twin(page: Path) -> Path:
    if page.parent == ROOT:
        return ROOT / f"{page.stem}.zh-CN.md"
    return page.parent / "zh-CN" / page.name


def both(page: str) -> list[Path]:
    """An English page of docs/ and its Chinese twin."""
    path = ROOT / "docs" / page
    return [path, twin(path)]


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", prose(page), re.MULTILINE)]


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The rows of the tables below each heading, by the heading's first code word, else its text."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in prose(page).splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
            code = re.search(r"`([^`]+)`", title)
            heading = code[1] if code else title
        elif line.startswith("|") and not re.fullmatch(r"[| :-]+", line):
            cells = [each.replace("\\|", "|").strip() for each in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, []).append(cells)
    return found


def by_code(rows: list[list[str]]) -> dict[str, list[str]]:
    """Rows whose first cell is one code word, by that word; there must be no two of a word."""
    coded = [(cells[0].strip("`"), cells[1:]) for cells in rows if re.fullmatch(r"`[^`]+`", cells[0])]
    assert len(dict(coded)) == len(coded), "a row occurs twice"
    return dict(coded)


# ---------------------------------------------------------------- the project itself


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def installed_policies() -> dict[str, type]:
    """By pyproject.toml, which an installation may be older than."""
    found = {}
    for name, place in project()["project"]["entry-points"]["broker.policies"].items():
        module, _, type_name = place.partition(":")
        found[name] = getattr(import_module(module), type_name)
    return found
