"""How one value of the configuration is checked and converted.

What belongs here: a reader per kind of value (whole number, URL, time of day, money, credential ...).
What does not: which key has which reader, limit and default (broker.config.schema and its neighbours)
and where a value stands (broker.config.lines).  A reader takes the value as tomllib gave it, floats as
Decimal, and returns it converted or raises Wrong with what it is and what would be right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from broker.core.model import MICRO

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_PRICE_CNY = 1_000_000
"""Per hour: a higher price is taken for a mistake, and products with it stay far inside int64."""


class Wrong(Exception):
    """A value that is not acceptable.  `at` is the place inside the value, if it has parts."""

    def __init__(self, message: str, *, at: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True, slots=True)
class Place:
    """What a value may depend on beside itself: the file's folder, the environment, the catalogue."""

    base: Path
    environ: Mapping[str, str] = field(repr=False)
    known_accelerator: Callable[[str], str | None] | None = None

    def path(self, value: str) -> Path:
        """`value` as an absolute path, relative to the file's folder; "~/" is $HOME."""
        if value.startswith("~/"):
            home = self.environ.get("HOME", "")
            if not home:
                raise Wrong(f"is {shown(value)}, but HOME is not set; must be an absolute path")
            return Path(home, value[2:])
        return self.base / value


Read = Callable[[Any, Place], Any]


def shown(value: object) -> str:
    """A value as an error message shows it: short, and never the inside of a table or array."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
    if isinstance(value, int | Decimal):
        return str(value) if len(str(value)) <= 40 else f"a number of {len(str(value))} characters"
    return kind_of(value)


def kind_of(value: object) -> str:
    """The kind of a value alone, for secrets."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (dict, "a table"),
        (list, "an array"),
        (str, "text"),
        (bool, "a boolean"),
        ((int, Decimal), "a number"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")


# ---------------------------------------------------------------- plain values


def text(value: Any, _place: Place) -> str:
    """Text, possibly empty."""
    if not isinstance(value, str):
        raise Wrong(f"is {shown(value)}; must be text in quotes")
    return value


def filled(value: Any, place: Place) -> str:
    """Text that is not empty."""
    if not text(value, place):
        raise Wrong("is empty; must be text")
    return str(value)


def hidden(value: Any, _place: Place) -> str:
    """Text that is not empty and that no message shows."""
    if not isinstance(value, str):
        raise Wrong(f"is {kind_of(value)}; must be text in quotes")
    if not value:
        raise Wrong("is empty; must be text")
    return value


def flag(value: Any, _place: Place) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"is {shown(value)}; must be true or false")
    return value


def whole(low: int, high: int | None = None) -> Read:
    """An integer from `low` to `high`, both allowed."""

    def read(value: Any, _place: Place) -> int:
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong(f"is {shown(value)}; must be an integer {bounds}")
        if value < low or (high is not None and value > high):
            raise Wrong(f"is {shown(value)}; must be an integer {bounds}")
        return value

    return read


def seconds(low: float, high: float) -> Read:
    """A duration, with or without a fraction; given back as float."""

    def read(value: Any, _place: Place) -> float:
        number = isinstance(value, int | Decimal) and not isinstance(value, bool)
        # NaN is neither inside nor outside: ask for finite first.
        if not number or not Decimal(value).is_finite() or not low <= value <= high:
            raise Wrong(f"is {shown(value)}; must be a number from {low:g} to {high:g}")
        return float(value)

    return read


def choice(*allowed: str) -> Read:
    def read(value: Any, _place: Place) -> str:
        if value not in allowed:
            raise Wrong(f"is {shown(value)}; must be one of {', '.join(map(shown, allowed))}")
        return str(value)

    return read


def pattern(regex: str, meaning: str) -> Read:
    def read(value: Any, _place: Place) -> str:
        if not isinstance(value, str) or not re.fullmatch(regex, value):
            raise Wrong(f"is {shown(value)}; must be {meaning}")
        return value

    return read


def identifier(value: Any, place: Place) -> int | str:
    """A platform's own id, number or text, passed on as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return filled(value, place)


def array_of(read: Read, *, least: int = 0) -> Read:
    def read_all(value: Any, place: Place) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Wrong(f"is {shown(value)}; must be an array")
        if len(value) < least:
            raise Wrong(f"has {len(value)} elements; must have at least {least}")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(read(item, place))
            except Wrong as wrong:
                raise Wrong(str(wrong), at=(index, *wrong.at)) from None
        return tuple(items)

    return read_all


def table_of(read: Read, *names: str) -> Read:
    """A table whose values all have one kind; with `names`, of exactly these keys."""

    def read_all(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Wrong(f"is {shown(value)}; must be a table")
        for name in names:
            if name not in value:
                raise Wrong(f"has no {shown(name)}; must have {' and '.join(names)}")
        items = {}
        for name, item in value.items():
            if names and name not in names:
                raise Wrong(f"is not a known key; must be one of {', '.join(names)}", at=(name,))
            try:
                items[name] = read(item, place)
            except Wrong as wrong:
                raise Wrong(str(wrong), at=(name, *wrong.at)) from None
        return items

    return read_all


# ---------------------------------------------------------------- addresses and places


def host_port(value: Any, _place: Place) -> str:
    """ "host:port" with an IPv6 host in brackets; port 0 lets the system choose."""
    found = re.fullmatch(
        r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", value if isinstance(value, str) else ""
    )
    if found is None or int(found.group(2)) > 65535:
        raise Wrong(f'is {shown(value)}; must be "host:port", such as "127.0.0.1:8238"')
    return str(value)


def http_url(value: Any, _place: Place) -> str:
    """An absolute http or https URL without user, query or fragment; a closing slash is dropped."""
    wanted = "must be an http:// or https:// URL, such as https://center.example:8443/api"
    if not isinstance(value, str):
        raise Wrong(f"is {shown(value)}; {wanted}")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if "@" in value:  # checked before anything is shown: it may hold a password
        raise Wrong("holds a user or password; write them under [centers.credentials]")
    if not usable or re.search(r"[\s?#]", value):  # a query may hold a token: not shown either
        raise Wrong(f"is {shown(re.split('[?#]', value)[0])}; {wanted}")
    return value.rstrip("/")


def origin(value: Any, _place: Place) -> str:
    """The origin of a web page as browsers write it, or "*" for any."""
    wanted = 'must be "*", or a scheme and host such as "https://portal.example"'
    if value == "*":
        return "*"
    pattern = r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?"
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Wrong(f"is {shown(value)}; {wanted}, in lower case and without a path")
    return value


def network(value: Any, _place: Place) -> str:
    """An IP address or a network of them."""
    try:
        return str(ip_network(text(value, _place)))
    except ValueError:
        wanted = 'must be an IP address or network, such as "127.0.0.1" or "10.0.0.0/8"'
        raise Wrong(f"is {shown(value)}; {wanted}") from None


def optional(read: Read) -> Read:
    """An empty text, or what `read` takes."""

    def read_optional(value: Any, place: Place) -> Any:
        return "" if value == "" else read(value, place)

    return read_optional


def path_text(value: Any, place: Place) -> str:
    """An absolute path as text."""
    return str(place.path(filled(value, place)))


def path(value: Any, place: Place) -> Path:
    return place.path(filled(value, place))


def remote_path(value: Any, place: Place) -> str:
    """A path at the center: absolute, since the broker cannot know what it would be relative to."""
    if not filled(value, place).startswith("/"):
        raise Wrong(f"is {shown(value)}; must be an absolute path")
    return str(value)


def output(value: Any, place: Place) -> dict[str, str]:
    """{in_job, here}: one storage as a job sees it and as the broker sees it."""
    found: dict[str, str] = table_of(filled, "in_job", "here")(value, place)
    for name, read in (("in_job", remote_path), ("here", path_text)):
        try:
            found[name] = read(found[name], place)
        except Wrong as wrong:
            raise Wrong(str(wrong), at=(name,)) from None
    return found


def store_url(value: Any, place: Place) -> str:
    """SQLAlchemy's URL of a SQLite file or a PostgreSQL database.  It may hold a password: never shown."""
    wanted = (
        "must be sqlite:///FILE (sqlite:////FILE for an absolute path) or postgresql://user@host/database"
    )
    if not isinstance(value, str) or "://" not in value:
        raise Wrong(f"is not a database URL; {wanted}")
    scheme, _, rest = value.partition("://")
    if scheme == "sqlite":
        file, mark, query = rest[1:].partition("?")
        if not rest.startswith("/") or file in ("", ":memory:"):
            raise Wrong(f"names no database file; {wanted}")
        return f"sqlite:///{place.path(file)}{mark}{query}"
    if scheme != "postgresql":
        raise Wrong(f"has the scheme {shown(scheme)}; {wanted}")
    try:
        parts = urlsplit(value)
        usable = (parts.port or 1) > 0 and bool(parts.path.strip("/"))
    except ValueError:
        usable = False
    if not usable:
        raise Wrong(f"names no database or no valid port; {wanted}")
    return value


def timezone(value: Any, place: Place) -> str:
    name = filled(value, place)
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of the zone data
        raise Wrong(f'is {shown(name)}; must be a known time zone, such as "Asia/Shanghai"') from None
    return name


# ---------------------------------------------------------------- supply and money


def accelerator(value: Any, place: Place) -> str:
    """The canonical name of a product, or "" for none."""
    name = text(value, place)
    if not name or place.known_accelerator is None:
        return name
    canonical = place.known_accelerator(name)
    if canonical is None:
        raise Wrong(
            f"is {shown(name)}; must be a product of the accelerator catalogue (accelerators.toml)"
            ' or one of its aliases, such as "Nvidia/GPU/A800"'
        )
    return canonical


def price(value: Any, _place: Place) -> int:
    """CNY as an exact decimal of at most six places; given back as micro-CNY."""
    wanted = f"must be a number of CNY from 0 to {MAX_PRICE_CNY} with at most 6 decimals"
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise Wrong(f"is {shown(value)}; {wanted}")
    if not Decimal(value).is_finite() or not 0 <= value <= MAX_PRICE_CNY:
        raise Wrong(f"is {shown(value)}; {wanted}")
    exact = Decimal(value).quantize(Decimal("0.000001"), context=Context(prec=28))
    if exact != value:  # comparing decimals is exact at any length
        raise Wrong(f"is {shown(value)}; {wanted}")
    return int(exact * MICRO)


def minute_of_day(*, end: bool) -> Read:
    """ "HH:MM" as minutes since midnight; "24:00" only as the end of a window."""

    def read(value: Any, _place: Place) -> int:
        if end and value == "24:00":
            return 24 * 60
        found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", value if isinstance(value, str) else "")
        if found is None:
            last = "24:00" if end else "23:59"
            raise Wrong(f'is {shown(value)}; must be a time of day in quotes, "00:00" to "{last}"')
        return int(found.group(1)) * 60 + int(found.group(2))

    return read


def weekdays(value: Any, place: Place) -> frozenset[int]:
    """Names of days as numbers, Monday 0."""
    return frozenset(DAYS.index(day) for day in array_of(choice(*DAYS), least=1)(value, place))


# ---------------------------------------------------------------- credentials


def credential(value: Any, place: Place) -> str:
    """A secret: text, {env="NAME"}, {file="/path"} or {credential="name"} (systemd).

    No message shows the secret or a value that stands in its place.
    """
    if isinstance(value, str):
        return hidden(value, place)
    forms = {"env": _from_env, "file": _from_file, "credential": _from_systemd}
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= forms.keys():
        raise Wrong(
            f"is {kind_of(value)} of another form; must be text in quotes,"
            ' {env="NAME"}, {file="/path"} or {credential="name"}'
        )
    ((form, name),) = value.items()
    if not isinstance(name, str) or not name:
        raise Wrong(f"is {kind_of(name)}; must be a name in quotes", at=(form,))
    return forms[form](name, place)


def _from_env(name: str, place: Place) -> str:
    if not place.environ.get(name):
        raise Wrong(f"names the environment variable {shown(name)}, which is not set or empty")
    return place.environ[name]


def _from_file(name: str, place: Place) -> str:
    return _secret_of(place.path(name))


def _from_systemd(name: str, place: Place) -> str:
    folder = place.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise Wrong(
            f"names the credential {shown(name)}, but CREDENTIALS_DIRECTORY is not set;"
            " the service needs LoadCredential="
        )
    if "/" in name or name in (".", ".."):
        raise Wrong(f"names the credential {shown(name)}; must be a name without a slash")
    return _secret_of(Path(folder, name))


def _secret_of(file: Path) -> str:
    """The text of a secret's file without its trailing newline."""
    try:
        secret = file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Wrong(f"names the file {file}, which is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise Wrong(f"names the file {file}, which cannot be read: {reason}") from None
    if not secret:
        raise Wrong(f"names the file {file}, which is empty")
    return secret
