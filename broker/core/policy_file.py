"""The text of a policy file becomes a set of policies, or all that is wrong with it.

What belongs here: which tables and keys there may be, of what types and how large.  What does not:
what a policy is (core/policy.py), finding their types (passed in), lines of the text
(broker/config/lines.py) and files.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from bisect import bisect_left
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from broker.core.amounts import LARGEST_KEY, LARGEST_MICRO
from broker.core.policy import PolicySet, Weighted

MOST_WEIGHT = 1_000_000
_SHOWN = 80


class PolicyError(ValueError):
    """Everything that is wrong with a policy file: (key path, message) each."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in errors))
        self.errors = errors


def load_policies(text: str, available: Mapping[str, type]) -> PolicySet:
    """The policies that a TOML text puts in force, in its order.

    `available` are the known policy types by name.  A policy without a table is not in force.
    Raises PolicyError with all errors at once.
    """
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError([("", f"not TOML: {error}")]) from error
    errors: list[tuple[str, str]] = []
    tables = document.pop("policies", {})
    errors += [(key, "unknown key; policies are tables named [policies.NAME]") for key in document]
    if not isinstance(tables, dict):
        raise PolicyError([*errors, ("policies", "must be tables named [policies.NAME]")])
    chosen: list[Weighted] = []
    for name, table in tables.items():
        known = available.get(name)
        if known is None:
            there = ", ".join(sorted(available))
            errors.append((f"policies.{name}", f"unknown policy; installed are {there}"))
        elif not isinstance(table, dict):
            errors.append((f"policies.{name}", "must be a table"))
        else:
            weighted = _weighted(name, known, dict(table), errors)
            chosen += [weighted] if weighted is not None else []
    if not errors and not any(hasattr(w.policy, "allow") for w in chosen):
        errors.append(("policies", "no policy in force tests what fits where; add [policies.fit]"))
    if errors:
        raise PolicyError(errors)
    return PolicySet(tuple(chosen))


def _weighted(
    name: str, known: type, table: dict[str, Any], errors: list[tuple[str, str]]
) -> Weighted | None:
    """One table; None when it is switched off or wrong (then `errors` has grown)."""
    before = len(errors)
    enabled = table.pop("enabled", True)
    if not isinstance(enabled, bool):
        errors.append((f"policies.{name}.enabled", f"must be true or false, not {enabled!r}"))
    permille = _permille(table.pop("weight", 1), f"policies.{name}.weight", errors)
    hints = typing.get_type_hints(known)
    fields = {f.name for f in dataclasses.fields(known) if f.init}
    for key, value in table.items():
        path = f"policies.{name}.{key}"
        if key not in fields:
            there = ", ".join(sorted(fields)) or "none"
            errors.append((path, f"unknown key; {name} has {there}, besides enabled and weight"))
        elif (rows := _row_type(hints[key])) is not None and isinstance(value, list):
            table[key] = _rows(path, rows, value, errors)
        elif fault := _fault(value, hints[key]):
            errors.append((path, fault))
    if len(errors) > before:
        return None
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    try:
        policy = known(**values)
    except (TypeError, ValueError) as error:
        errors.append((f"policies.{name}", str(error)))
        return None
    too_much = _too_much(policy, values, permille)
    errors += [(f"policies.{name}{key and '.'}{key}", message) for key, message in too_much]
    return Weighted(name, policy, permille) if enabled and not too_much else None


def _too_much(policy: Any, values: Mapping[str, Any], permille: int) -> list[tuple[str, str]]:
    """The keys that let a policy come to more than a sum may be, each with the largest value allowed.

    A key is named when its default in its place would do; when none alone is at fault, the table is.
    """

    def comes_to(permille: int, **changed: int) -> int:
        one = dataclasses.replace(policy, **changed) if changed else policy
        return int(one.largest()) * permille // 1000

    def allowed(key: str, value: int) -> bool:
        try:
            return comes_to(permille, **{key: value}) <= LARGEST_MICRO
        except ValueError:  # not beside the other keys
            return False

    if not hasattr(type(policy), "largest") or comes_to(permille) <= LARGEST_MICRO:
        return []
    found = []
    if comes_to(1000) <= LARGEST_MICRO:
        found.append(("weight", Decimal(LARGEST_MICRO * 1000 // comes_to(1000)) / 1000))
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(policy)}
    for key, value in values.items():
        if type(value) is not int or not allowed(key, defaults[key]):
            continue
        above = range(defaults[key], value + 1)
        found.append((key, Decimal(above[bisect_left(above, True, key=lambda v: not allowed(key, v)) - 1])))
    why = f"or the largest job comes to more than {LARGEST_MICRO} micro-CNY"
    if not found:
        return [("", f"its keys and weight together are too much: {why}")]
    return [(key, f"must be at most {most}, {why}") for key, most in found]


def _row_type(hint: Any) -> Any:
    """The dataclass of a field that is an array of tables, else None."""
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(element := typing.get_args(hint)[0]):
        return element
    return None


def _rows(path: str, known: Any, tables: list[Any], errors: list[tuple[str, str]]) -> list[Any]:
    """An array of tables as dataclasses; those that are wrong are missing, and `errors` has grown."""
    rows = []
    hints = typing.get_type_hints(known)
    required = {f.name for f in dataclasses.fields(known) if f.default is dataclasses.MISSING}
    for number, table in enumerate(tables):
        where, before = f"{path}[{number}]", len(errors)
        if not isinstance(table, dict):
            errors.append((where, f"must be a table, not {table!r}"))
            continue
        for key, value in table.items():
            if key not in hints:
                errors.append((f"{where}.{key}", f"unknown key; there are {', '.join(sorted(hints))}"))
            elif fault := _fault(value, hints[key]):
                errors.append((f"{where}.{key}", fault))
        errors += [(where, f"{key} is missing") for key in sorted(required - set(table))]
        if len(errors) == before:
            try:
                rows.append(known(**table))
            except ValueError as error:
                errors.append((where, str(error)))
    return rows


def _permille(value: Any, path: str, errors: list[tuple[str, str]]) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        errors.append((path, f"must be a number, not {value!r}"))
        return 0
    exact = Decimal(value)
    if exact.is_finite() and 0 < exact <= MOST_WEIGHT:
        thousandths = exact * 1000
        if thousandths == int(thousandths):
            return int(thousandths)
    errors.append((path, f"must be from 0.001 to {MOST_WEIGHT} in steps of 0.001, not {_shown(value)}"))
    return 0


_WORDS: Mapping[Any, str] = {bool: "true or false", int: "a whole number", str: "a text", Decimal: "a number"}


def _fault(value: Any, hint: Any) -> str:
    """What is wrong with a key's value, "" when nothing is."""
    if not _is_a(value, hint):
        kinds = [h for h in (typing.get_args(hint) or (hint,)) if h in _WORDS]
        wanted = " or ".join(_WORDS[kind] for kind in kinds) or "as documented"
        return f"must be {wanted}, not {_shown(value)}"
    if isinstance(value, int | Decimal) and abs(Decimal(value)) > LARGEST_KEY:
        return f"must be at most {LARGEST_KEY}, not {_shown(value)}"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, str | bool) or not isinstance(value, int | Decimal):
        text = repr(value)
    else:  # digits beyond these make no difference to a reader
        text = str(value) if abs(Decimal(value).adjusted()) < _SHOWN else f"{Decimal(value):.6e}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a TOML value is of a field's type: bool, int, str, Decimal or a tuple of one of these."""
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return isinstance(value, list) and all(_is_a(v, element) for v in value)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # a key that may be left out
        return any(_is_a(value, one) for one in typing.get_args(hint) if one is not type(None))
    if hint is Decimal:
        return isinstance(value, int | Decimal) and type(value) is not bool and Decimal(value).is_finite()
    return type(value) is hint
