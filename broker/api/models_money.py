"""Bodies of requests about budgets, balances and links of platform users."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from broker.api.models import ANNEX, Body, ShortText, Text
from broker.api.stated import Number

MOST_CNY = 1_000_000_000_000


def _number(value: Any) -> Decimal:
    """A JSON number, exact."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("number_type", "must be a number")
    return value if isinstance(value, Decimal) else Decimal(value)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be a text")
    return value


def _refuse(code: str, text: str) -> PydanticCustomError:
    return PydanticCustomError(f"{ANNEX}{code}", "{text}", {"text": text, "field": ""})


def _fen(value: Decimal) -> Decimal:
    if not -MOST_CNY <= value <= MOST_CNY:  # a comparison rounds nothing
        raise _refuse("0204", f"must be at most {MOST_CNY} CNY")
    if value.quantize(Decimal("0.01")) != value:
        raise _refuse("0202", "must have at most two decimal places")
    return value


def _not_negative(value: Decimal) -> Decimal:
    if value < 0:
        raise _refuse("0204", "must be at least 0")
    return value


def _not_zero(value: Decimal) -> Decimal:
    if value == 0:
        raise _refuse("0204", "must not be 0")
    return value


Cny = Annotated[Decimal, BeforeValidator(_number), AfterValidator(_fen)]


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
        BeforeValidator(_text),
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
