"""`python -m tests.openapi_document FILE`: write the OpenAPI document and check it against its specification.

What belongs here: the document as this tree has it, for tests and for those who want the file.  What
does not: tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from openapi_spec_validator import validate

import broker
from broker.api.app import ROUTES
from broker.api.openapi import document

MAX_PAGE_SIZE = 1000


def built() -> dict[str, Any]:
    """The document of a broker with the default limits."""
    return document(ROUTES, version=broker.__version__, max_page_size=MAX_PAGE_SIZE)


def strict() -> dict[str, Any]:
    """The same, and no object of an answer has a field beside those declared."""
    made = built()
    for schema in made["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return made


def main(file: str) -> None:
    made = built()
    validate(made)
    Path(file).write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{file}: OpenAPI {made['openapi']}, {sum(map(len, made['paths'].values()))} operations, valid")


if __name__ == "__main__":
    main(sys.argv[1])
