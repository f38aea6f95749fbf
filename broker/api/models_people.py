"""Bodies of requests about accounts, tenants and API keys.

What belongs here and what does not: as in models.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from broker.api.models import AccountName, Body, Password, TenantName, Text, annex, is_text
from broker.api.stated import Stated

MOST_NAME = 64

_APPLICATION = re.compile(r"[^/]{1,64}")


def _shown_name(value: str) -> str:
    """A name that people read: it may have spaces inside, and any script."""
    if not 1 <= len(value) <= MOST_NAME:
        annex("0204", f"must have 1 to {MOST_NAME} characters, has {len(value)}")
    if not value.isprintable() or value != value.strip() or not _APPLICATION.fullmatch(value):
        annex("0202", "must be printable, without / and without spaces at its ends")
    return value


ShownName = Annotated[str, AfterValidator(_shown_name), Stated(minLength=1, maxLength=MOST_NAME)]
ScopeName = Annotated[Literal["read", "jobs", "data", "admin"], BeforeValidator(is_text)]


class Register(Body):
    name: Annotated[AccountName, Field(description="1 to 64 of A-Z a-z 0-9 . _ @ -.")]
    password: Annotated[Password, Field(description="1 to 1024 characters.")]
    tenant: Annotated[
        TenantName | None, Field(description="The one that registration is for, or absent.")
    ] = None


class CreateTenant(Body):
    id: Annotated[TenantName, Field(description="1 to 64 of A-Z a-z 0-9 . _ -.")]


class CreateKey(Body):
    name: Annotated[ShownName, Field(description="Unique among the account's keys; 1 to 64 characters.")]
    scopes: Annotated[
        list[ScopeName], Field(min_length=1, max_length=16, description="What it may be used for.")
    ]
    application: Annotated[
        ShownName | None, Field(description="The application that acts with it; absent: none.")
    ] = None
    expires_at: Annotated[
        Text | None, Field(description="Its end, a time that is to come; absent: none.")
    ] = None
