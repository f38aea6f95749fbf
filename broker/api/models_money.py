"""Bodies of requests about budgets, balances and links of platform users.

What belongs here and what does not: as in models.py.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from broker.api.models import Body, ShortText, Text, annex, is_text, number
from broker.api.stated import Number

MOST_CNY = 1_000_000_000_000


def _fen(value: Decimal) -> Decimal:
    if not -MOST_CNY <= value <= MOST_CNY:  # a comparison rounds nothing
        annex("0204", f"must be at most {MOST_CNY} CNY")
    if value.quantize(Decimal("0.01")) != value:
        annex("0202", "must have at most two decimal places")
    return value


def _not_negative(value: Decimal) -> Decimal:
    if value < 0:
        annex("0204", "must be at least 0")
    return value


def _not_zero(value: Decimal) -> Decimal:
    if value == 0:
        annex("0204", "must not be 0")
    return value


Cny = Annotated[Decimal, BeforeValidator(number), AfterValidator(_fen)]


class SetBudget(Body):
    """What a tenant may spend."""

    cny: Annotated[
        Cny,
        AfterValidator(_not_negative),
        Number(minimum=0, maximum=MOST_CNY),
        Field(description="CNY; at most two decimal places."),
    ]
    per: Annotated[
        Literal["month", "total"],
        BeforeValidator(is_text),
        Field(description="Every calendar month, or in all from now on."),
    ] = "total"


class AddEntry(Body):
    """Added to a tenant's balance, or taken from it."""

    amount: Annotated[
        Cny,
        AfterValidator(_not_zero),
        Number(minimum=-MOST_CNY, maximum=MOST_CNY, **{"not": {"const": 0}}),
        Field(description="CNY; below 0: taken from it."),
    ]
    note: Annotated[Text, Field(max_length=255, description="Why; at most 255 characters.")] = ""


class LinkUser(Body):
    """A user of a center's platform."""

    center_id: Annotated[ShortText, Field(description="The center.")]
    user: Annotated[ShortText, Field(description="The user's id at the center's platform.")]
