"""Where every key of a TOML text stands: tomllib gives values without positions.

What belongs here: a scanner that follows the text's structure and notes lines.  What does not:
values and their checks.  The text must already have been accepted by tomllib, so the scanner
checks nothing; the two are held together by a property test.  Only broker.config calls this.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

KeyPath = tuple[str | int, ...]
"""Keys and array indices from the root: ("centers", 0, "pools", 1, "cores")."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACES = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    # The multi-line forms come first; they may end with up to two quotes of their own content.
    ('"""', re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL)),
    ("'''", re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL)),
    ('"', re.compile(r'"(?:[^"\\]|\\.)*"')),
    ("'", re.compile(r"'[^']*'")),
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key, table and array element of a valid TOML text.

    A key stands where its name is first written, so a table stands at its header and an element of
    an array of tables at its own `[[header]]`.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._newlines = [found.start() for found in re.finditer("\n", text)]
        self._tables: dict[KeyPath, int] = {}  # how many [[headers]] an array of tables has so far

    def scan(self) -> None:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._here("["):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _here(self, token: str) -> bool:
        return self._text.startswith(token, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Move past a match at this place and return it."""
        found = pattern.match(self._text, self._at)
        assert found is not None, f"the text is not valid TOML at offset {self._at}"
        self._at = found.end()
        return found.group()

    def _note(self, path: KeyPath, at: int) -> None:
        """`path` is written at this offset, unless it was written before."""
        self.lines.setdefault(path, bisect_left(self._newlines, at) + 1)

    def _header(self) -> KeyPath:
        """Read `[a.b]` or `[[a.b]]`; the path its keys belong to."""
        start = self._at
        brackets = 2 if self._here("[[") else 1
        self._at += brackets
        keys = self._key()
        path: KeyPath = ()
        for depth, key in enumerate(keys, start=1):
            path = (*path, key)
            self._note(path, start)
            if brackets == 2 and depth == len(keys):
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:  # a name of an array of tables means its newest element
                path = (*path, self._tables[path] - 1)
                self._note(path, start)
        self._at += brackets
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        start = self._at
        for key in self._key():
            path = (*path, key)
            self._note(path, start)
        self._at += 1  # past "="
        self._skip(_SPACES)
        self._value(path)

    def _key(self) -> list[str]:
        """Read a dotted key and the spaces after it."""
        keys = []
        while True:
            self._skip(_SPACES)
            keys.append(self._segment())
            self._skip(_SPACES)
            if not self._here("."):
                return keys
            self._at += 1

    def _segment(self) -> str:
        if self._here('"') or self._here("'"):
            return next(iter(tomllib.loads(f"{self._string()} = 0")))
        return self._skip(_BARE_KEY)

    def _string(self) -> str:
        return self._skip(next(pattern for quotes, pattern in _STRINGS if self._here(quotes)))

    def _value(self, path: KeyPath) -> None:
        if self._here("["):
            self._array(path)
        elif self._here("{"):
            self._inline_table(path)
        elif self._here('"') or self._here("'"):
            self._string()
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        index = 0
        self._at += 1
        self._skip(_BLANK)
        while not self._here("]"):
            self._note((*path, index), self._at)
            self._value((*path, index))
            index += 1
            self._next_item()
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BLANK)
        while not self._here("}"):
            self._pair(path)
            self._next_item()
        self._at += 1

    def _next_item(self) -> None:
        self._skip(_BLANK)
        if self._here(","):
            self._at += 1
            self._skip(_BLANK)
