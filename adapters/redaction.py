"""Keeps secrets out of texts: of everything that a message, a log or an operator's answer quotes.

Here: replacing the values that are known to be secret, and the values of fields whose names say that
they are.  Not here: where texts come from.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

HIDDEN = "***"
MAX_LATER = 64
"""Secrets learnt while running (session tokens) that are remembered, the newest ones."""
_SHORT = 6  # a value shorter than this is only replaced where it stands alone

# Each pattern looks at a character a bounded number of times: texts come from strangers and are long.
_NAME = re.compile(
    r".*(?:password|passwd|passphrase|secret|authorization|credential|signature|cookie"
    r"|access[_-]?key|api[_-]?key|private[_-]?key).*|.*token(?:[_-]?(?:id|key|value))?|pwd",
    re.IGNORECASE,
)
_LONGEST_NAME = 128
# Head of a field, which has its name, and its value.  "name": "value" also with the quotes escaped (JSON
# inside JSON) and cut off before its end; name=value; a header's line.
_FIELDS = tuple(
    (re.compile(head, re.MULTILINE), re.compile(value, re.DOTALL))
    for head, value in (
        (
            r"""(?<!\\)(?P<q>\\*+["'])(?P<name>[\w.-]++)(?P=q)\s*+:\s*+""",
            r"""(?P<v>\\*+["'])(?:(?!(?P=v)).)*+(?:(?P=v))?|[^\s,;}\]]+""",
        ),
        (r"(?<![\w.-])(?P<name>[\w.-]++)[ \t]*+=[ \t]*+", r"[^\s&;,\"'<>]+"),
        (r"^[ \t]*+(?P<name>[\w.-]++):[ \t]*+", r"[^\r\n]+"),
    )
)
_SCHEME = re.compile(r"(?P<head>\b(?:bearer|basic|digest)\s+)[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)
_USER_INFO = re.compile(r"(?P<head>://)[^/\s@\"'<>]++@")


class Redaction:
    """The secrets of one center."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known = [secret for secret in secrets if secret]
        self._later: deque[str] = deque(maxlen=MAX_LATER)
        self._build()

    def add(self, secret: str) -> None:
        """A secret learnt later: a session token, a password as it is sent."""
        if secret and secret not in self._later and secret not in self._known:
            self._later.append(secret)
            self._build()

    def _build(self) -> None:
        forms = {form for secret in (*self._known, *self._later) for form in _forms(secret)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._longest = len(longest_first[0]) if longest_first else 0
        parts = [
            re.escape(form) if len(form) >= _SHORT else rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
            for form in longest_first
        ]
        self._values = re.compile("|".join(parts)) if parts else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._values is not None:
            text = self._values.sub(HIDDEN, text)
        for head, value in _FIELDS:
            text = _without_values(text, head, value)
        text = _USER_INFO.sub(rf"\g<head>{HIDDEN}@", text)
        return _SCHEME.sub(rf"\g<head>{HIDDEN}", text)

    def excerpt(self, text: str, most: int = 200) -> str:
        """The beginning of the text in one line, without secrets.

        Secrets are taken out before the cut, or one that is cut in two would not be known again.
        """
        seen = text[: 16 * most + self._longest]
        cut = len(seen) < len(text)
        clean = self(seen)
        if cut:  # its end may be the beginning of one
            clean = clean[: max(0, len(clean) - self._longest)]
        line = " ".join(clean.split())
        return line[:most] + ("…" if cut or len(line) > most else "")


def _without_values(text: str, head: re.Pattern[str], value: re.Pattern[str]) -> str:
    """The text with the values of secret fields replaced; a value stays quoted where it was."""
    kept, at = [], 0
    for field in head.finditer(text):
        name = field["name"]
        if field.start() < at or len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
            continue
        if found := value.match(text, field.end()):
            quote_mark = field.groupdict().get("q") or ""
            kept += [text[at : field.end()], quote_mark, HIDDEN, quote_mark]
            at = found.end()
    return "".join([*kept, text[at:]])


def _forms(secret: str) -> set[str]:
    """A secret as it may come back: as it is, in a URL, in JSON, in a Basic header."""
    return {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        base64.b64encode(secret.encode()).decode(),
    }
