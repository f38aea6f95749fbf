"""What a platform has beyond the protocol of adapters: commands of its own, and calls that it makes.

What belongs here: the types of an adapter's optional tables (`commands`, `callbacks`).  What does not:
the protocol (adapter.py, from which these can be had too).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from broker.core.model import CenterId, NodeShape


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What a platform answered to a raw call of an operator."""

    status: int
    body: bytes
    content_type: str = "application/json"


class ArgumentKind(StrEnum):
    TEXT = "text"
    WHOLE = "whole"  # an integer
    FLAG = "flag"
    FILE = "file"  # the text of a file of whoever gives the command


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a vendor command.  `name` is lower case with hyphens, as on the command line.

    A `secret` one is never written into the audit.  `many`: a list of values.
    """

    name: str
    help: str
    kind: ArgumentKind = ArgumentKind.TEXT
    required: bool = False
    many: bool = False
    secret: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VendorCommand:
    """What only this platform can do, for operators; the scheduler never uses it.

    `run` gets the checked arguments by name: str, int, bool or tuples of them; those that were not
    given are absent, a flag is False.  It gives back what JSON can hold (Decimal too) and raises
    adapter errors.
    """

    name: str
    help: str
    run: Callable[[Mapping[str, Any]], Awaitable[Any]]
    arguments: tuple[Argument, ...] = ()
    timeout_s: int = 60


@dataclass(frozen=True, slots=True)
class PlatformRequest:
    """A request that a platform makes of us."""

    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a user of a platform, who is an account here, stands: `left_micro` is what the tenant may still
    spend, None: any sum."""

    may_create: bool
    left_micro: int | None


class Desk(Protocol):
    """Where adapters ask for what their platforms ask the broker.  It answers at once, from memory that is
    at most some seconds old."""

    async def look(self) -> None:
        """Bring the memory up to date, for what it does not have."""
        ...

    def standing(self, center: CenterId, user: str) -> Standing | None:
        """None: the platform's user of that id is no account here."""
        ...

    def rate_micro(self, center: CenterId, shape: NodeShape) -> int | None:
        """Micro-CNY of one node of this shape per hour now, where it is cheapest at the center; 0 where it
        states no price, None where nothing is known of such nodes.

        The shape may have the platform's own product name and no memory per card.
        """
        ...


@dataclass(frozen=True, slots=True)
class Callback:
    """A path that a platform calls.  Several centers may have the same one: `answer` gives None for a
    request that is not signed by its own center, and then another center is asked."""

    method: str
    path: str
    answer: Callable[[PlatformRequest], Awaitable[RawAnswer | None]]
