"""What the published schema says of a field whose rule is a function.

What belongs here: notes for JSON Schema, none of which judges a request.  What does not: the rules
(models.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Stated:
    """Keywords to add to a field's schema, for use in Annotated."""

    def __init__(self, **keywords: Any) -> None:
        self._keywords = keywords

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), **self._keywords}


class Number(Stated):
    """A JSON number in the schema, though it is read as a Decimal."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "number", **self._keywords}


def whole_text(pattern: re.Pattern[str]) -> str:
    """The pattern as a schema has it, where it could otherwise match anywhere."""
    return f"^(?:{pattern.pattern})$"


def one_of(*choices: Mapping[str, Any]) -> ConfigDict:
    """Of a model: exactly one of some fields must be there, each as stated."""
    options: list[Any] = [{"required": list(each), "properties": dict(each)} for each in choices]
    return ConfigDict(json_schema_extra={"oneOf": options})


NUL_FREE = r"^[^\x00]*$"
NO_NUL = Stated(pattern=NUL_FREE)
