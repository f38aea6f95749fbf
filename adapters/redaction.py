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

_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|secret|authorization|credential|signature|cookie"
    r"|access[_-]?key|api[_-]?key|private[_-]?key)[\w.-]*|[\w.-]*token(?:[_-]?(?:id|key|value))?|pwd"
)
_QUOTED = re.compile(
    # "name": "value", also with the quotes escaped (JSON inside JSON) and cut off before its end
    rf"""(?P<head>(?P<q>\\*["'])(?:{_NAME})(?P=q)\s*:\s*)(?:(?P<v>\\*["'])(?:(?!(?P=v)).)*(?P=v)?|[^\s,;}}\]]+)""",
    re.IGNORECASE | re.DOTALL,
)
_ASSIGNED = re.compile(rf"(?P<head>\b(?:{_NAME})\s*=\s*)[^\s&;,\"'<>]+", re.IGNORECASE)
_HEADER = re.compile(rf"(?P<head>^\s*(?:{_NAME})\s*:[ \t]*)[^\r\n]+", re.IGNORECASE | re.MULTILINE)
_SCHEME = re.compile(r"(?P<head>\b(?:bearer|basic|digest)\s+)[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)
_USER_INFO = re.compile(r"(?P<head>://)[^/\s@\"'<>]+@")


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
        text = _QUOTED.sub(rf'\g<head>"{HIDDEN}"', text)
        text = _USER_INFO.sub(rf"\g<head>{HIDDEN}@", text)
        for pattern in (_HEADER, _ASSIGNED, _SCHEME):
            text = pattern.sub(rf"\g<head>{HIDDEN}", text)
        return text

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
