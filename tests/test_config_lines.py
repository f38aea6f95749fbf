"""The line of every key of a TOML text, held against tomllib and against a writer that counts."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.lines import KeyPath, key_lines

CONFIG = Path(__file__).parent.parent / "config"

KEYS = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True), st.text(max_size=4))
SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.sampled_from(["true", "inf", "-1.5e3", "1979-05-27 07:32:00", "1979-05-27T07:32:00Z", "07:32:00.5"]),
    st.sampled_from(["''", '""', "'#]}'", '"\\"#]}="', "'''\n#'\n]'''", '"""\n\\"""a\n"""""', "''''a'''''"]),
)


class Writer:
    """Writes TOML and notes, by counting what it has written, where every key went."""

    def __init__(self, draw: st.DrawFn, newline: str) -> None:
        self.draw = draw
        self.newline = newline
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def put(self, text: str) -> None:
        self.text += text.replace("\n", self.newline)

    def note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def key(self, name: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9_-]+", name) and self.draw(st.booleans()):
            return name
        if re.fullmatch(r"[^'\x00-\x1f\x7f]*", name) and self.draw(st.booleans()):
            return f"'{name}'"
        return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")

    def gap(self) -> None:
        """What may stand between the elements of an array."""
        self.put(self.draw(st.sampled_from(["", " ", "\n", " # ]},\n\n"])))

    def value(self, path: KeyPath, depth: int) -> None:
        kind = self.draw(st.sampled_from(["scalar", "array", "table"] if depth else ["scalar"]))
        if kind == "scalar":
            self.put(self.draw(SCALARS))
            return
        if kind == "array":
            self.put("[")
            for index in range(self.draw(st.integers(0, 3))):
                self.put("," if index else "")
                self.gap()
                self.note((*path, index))
                self.value((*path, index), depth - 1)
                self.gap()
            self.put("]")
            return
        self.put("{ ")
        for index, name in enumerate(self.names()):
            self.put(", " if index else "")
            self.pair(path, name, depth - 1)
        self.put(" }")

    def names(self) -> list[str]:
        return self.draw(st.lists(KEYS, max_size=3, unique=True))

    def pair(self, path: KeyPath, name: str, depth: int) -> None:
        """`name = value` or, dotted, `name.b.c = value`."""
        keys = [name, *self.draw(st.lists(KEYS, max_size=2))]
        for length in range(1, len(keys) + 1):
            self.note((*path, *keys[:length]))
        self.put(" . ".join(self.key(key) for key in keys) + " = ")
        self.value((*path, *keys), depth)

    def pairs(self, path: KeyPath, names: list[str]) -> None:
        for name in names:
            self.put(self.draw(st.sampled_from(["", "\n", "  ", "# [x]\n"])))
            self.pair(path, name, 2)
            self.put(self.draw(st.sampled_from(["\n", " # = 'x\n", "\n\n"])))

    def header(self, path: KeyPath, names: list[str], brackets: int) -> None:
        """A heading: names of the keys alone, without the indices that an array of tables adds."""
        self.note(path)
        self.put("[" * brackets + ".".join(self.key(name) for name in names) + "]" * brackets + "\n")

    def section(self, name: str) -> None:
        if self.draw(st.booleans()):
            self.header((name,), [name], 1)
            self.pairs((name,), self.names())
            return
        for index in range(self.draw(st.integers(1, 3))):
            self.note((name,))
            self.header((name, index), [name], 2)
            self.pairs((name, index), ["inner" + each for each in self.names()])
            for number in range(self.draw(st.integers(0, 2))):
                self.note((name, index, "sub"))
                self.header((name, index, "sub", number), [name, "sub"], 2)
                self.pairs((name, index, "sub", number), self.names())


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    writer = Writer(draw, draw(st.sampled_from(["\n", "\r\n"])))
    names = draw(st.lists(KEYS, max_size=6, unique=True))
    cut = draw(st.integers(0, len(names)))
    writer.pairs((), names[:cut])
    for name in names[cut:]:
        writer.section(name)
    return writer


def paths_of(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every key path of a document as tomllib reads it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: set[KeyPath] = {path} if path else set()
    for name, item in items:
        found |= paths_of(item, (*path, name))
    return found


@given(writer=documents())
def test_every_key_of_a_document_has_its_line(writer: Writer) -> None:
    found = key_lines(writer.text)
    assert set(found) == paths_of(tomllib.loads(writer.text))
    assert found == writer.lines


@pytest.mark.parametrize("file", sorted(CONFIG.rglob("*.toml")), ids=lambda file: file.name)
def test_every_key_of_the_packaged_files_has_its_line(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    found = key_lines(text)
    assert set(found) == paths_of(tomllib.loads(text))
    rows = text.splitlines()
    assert all(str(path[-1]) in rows[line - 1] for path, line in found.items() if isinstance(path[-1], str))
