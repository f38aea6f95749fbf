"""One pass over a TOML document: tables checked against their keys, with all errors gathered.

What belongs here: the syntax error, unknown, missing and wrong keys, and the line of each.  What does
not: which keys there are (broker.config.schema and its neighbours) and rules between keys (broker.config).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from broker.config.keys import Absent, Key
from broker.config.lines import KeyPath, key_lines
from broker.config.values import Place, Wrong, kind_of


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: `key` as `centers[0].pools[1].cores` ("" for the file itself), `line` from 1."""

    key: str
    line: int
    message: str


class ConfigError(Exception):
    """A configuration that cannot be used, with all that is wrong, in the order of the file.

    `file` is set when it is another file than the one that was asked for.
    """

    def __init__(self, errors: tuple[Problem, ...], file: Path | None = None) -> None:
        super().__init__("; ".join(f"line {each.line}: {each.key}: {each.message}" for each in errors))
        self.errors = errors
        self.file = file


def _number(text: str) -> Decimal:
    """A TOML float, exact; one whose exponent no Decimal holds becomes infinite and is refused later."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def document_of(text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The tables of a TOML text and the lines of their keys; ConfigError for the first syntax error."""
    try:
        return tomllib.loads(text, parse_float=_number), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(found.group(1)) if found else text.count("\n") + 1  # "(at end of document)"
        message = str(error)[: found.start()] if found else str(error)
        raise ConfigError((Problem("", line, f"is not TOML: {message}"),)) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, deep nesting
        raise ConfigError((Problem("", 1, f"cannot be read as TOML: {error}"),)) from error


def rendered(path: KeyPath) -> str:
    """A key path as people write it; keys that need quotes have them."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else json.dumps(part, ensure_ascii=False))
    return text


class Reading:
    """One pass over a document: checks tables against their keys and gathers what is wrong."""

    def __init__(self, lines: Mapping[KeyPath, int], place: Place) -> None:
        self.problems: list[Problem] = []
        self.place = place
        self._lines = lines

    def line(self, path: KeyPath) -> int:
        """Where a key stands; a key that is absent stands at the nearest table around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def wrong(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(rendered(path), self.line(path), message))

    def table(self, value: Any, path: KeyPath) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self.wrong(path, f"is {kind_of(value)}; must be a table: [{rendered(path)}]")
        return None

    def tables(self, value: Any, path: KeyPath) -> list[tuple[dict[str, Any], KeyPath]]:
        """The elements of an array of tables, each with its path."""
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            name = re.sub(r"\[\d+\]", "", rendered(path))
            self.wrong(path, f"is {kind_of(value)}; must be tables, each with the heading [[{name}]]")
            return []
        return [(each, (*path, index)) for index, each in enumerate(value)]

    def unknown(self, table: Mapping[str, Any], path: KeyPath, known: Collection[str]) -> None:
        for name in table:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'none'}"
                self.wrong((*path, name), f"is not a known key; {hint}")

    def values(
        self,
        table: Mapping[str, Any],
        path: KeyPath,
        keys: Mapping[str, Key],
        *,
        nested: Collection[str] = (),
    ) -> dict[str, Any]:
        """What the table says and its defaults; a key that is wrong is absent.

        `nested` are known keys that somebody else reads.
        """
        self.unknown(table, path, (*keys, *nested))
        found: dict[str, Any] = {}
        for name, key in keys.items():
            if name in table:
                try:
                    found[name] = key.read(table[name], self.place)
                except Wrong as wrong:
                    self.wrong((*path, name, *wrong.at), str(wrong))
            elif key.default is Absent.REQUIRED:
                self.wrong((*path, name), "is missing")
            elif key.default is not Absent.OMITTED:
                found[name] = key.default
        return found

    def unique(self, seen: dict[Any, KeyPath], value: Any, path: KeyPath, *, shown_as: str) -> None:
        """`value` of the key at `path` must not have been seen before."""
        first = seen.setdefault(value, path)
        if first != path:
            where = f"{rendered(first)} (line {self.line(first)})"
            self.wrong(path, f"is {shown_as}, as {where}; must differ")
