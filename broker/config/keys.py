"""What a key of broker.toml is: its reader and its default; the keys of a settings class.

What belongs here: how keys are declared.  What does not: which there are (broker.config.schema for the
sections, broker.config.tables, broker.config.platforms) and reading them (broker.config.reading).
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import Any, Final, get_type_hints

from broker.config import values as v

RELOAD: Final = "reload"
"""In a field's annotation: a running broker takes the key over on SIGHUP, as it does centers."""


class Absent(Enum):
    """What the absence of a key without a default means."""

    REQUIRED = "required"  # an error
    OMITTED = "omitted"  # the key stays out of the result


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table: its reader, and its default as the reader would give it back."""

    read: v.Read
    default: Any = Absent.REQUIRED


def keys_of(section: type) -> dict[str, Key]:
    """The keys of a settings class: its fields whose annotation has a reader."""
    hints = get_type_hints(section, include_extras=True)
    return {
        each.name: Key(
            hints[each.name].__metadata__[0], Absent.REQUIRED if each.default is MISSING else each.default
        )
        for each in fields(section)
        if hasattr(hints[each.name], "__metadata__")
    }


def restart_keys(section: type) -> tuple[str, ...]:
    """The keys of a settings class that only a new process can apply."""
    hints = get_type_hints(section, include_extras=True)
    return tuple(name for name in keys_of(section) if RELOAD not in hints[name].__metadata__)
