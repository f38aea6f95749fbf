"""JSON that a stranger wrote, read by the letter: what other programs might read otherwise is none.

What belongs here: how a text becomes a document, for bodies of clients (broker.api) and answers of centers
(adapters).  What does not: sizes, encodings, and which fields there are.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

_SHOWN = 80


def parse(text: str) -> Any:
    """A document as RFC 8259 has it, its fractions as Decimal.

    Raises ValueError for what is none, for NaN and Infinity, a key that is there twice, and what is nested
    too deeply or a number too large to be read.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except InvalidOperation:
        raise ValueError("a number has too large an exponent") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two values is meant nobody can tell, and another program before us may have read the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:  # not counted one by one: a stranger's object may have a million keys
            if name in seen:
                raise ValueError(f"the key {name[:_SHOWN]!r} is there twice")
            seen.add(name)
    return found


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
