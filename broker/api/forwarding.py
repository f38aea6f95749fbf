"""Headers, cookies and paths of a request that is passed on to a service, and of its answer.

What belongs here: what a service gets to see and what of its answer a browser does, as plain rules
without connections.  What does not: who may (services.py) and passing it on (proxy.py).

All services and the broker itself share one host, so a service must not touch what browsers keep for
the others: its cookies are confined to its own path, and headers that act on the whole host are
dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from multidict import CIMultiDict
from yarl import URL

OWN_COOKIES = "broker_"
"""How the names of the broker's own cookies start."""

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Of one connection only (RFC 9110, 7.6.1), as is whatever Connection names."""

NOT_ONWARD = frozenset(
    {
        *("host", "x-auth-token", "expect", "x-request-id", "forwarded", "x-real-ip"),
        *("x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-proto"),
        *("cookie", "authorization", "content-length", "content-encoding"),  # added where they hold
    }
)
NOT_BACK = frozenset(
    {
        *("service-worker-allowed", "clear-site-data", "strict-transport-security", "alt-svc"),
        *("public-key-pins", "x-request-id", "set-cookie", "location", "content-location", "refresh"),
    }
)
"""What acts on the whole host, and what is added again in another form."""

DECODED = frozenset({"gzip", "deflate", "br", "zstd"})
"""Encodings of a request's body that the server takes off while it reads."""

_SENDABLE = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]*")


class Header(NamedTuple):
    name: str
    value: str


def size_of(headers: Iterable[tuple[str, str]]) -> int:
    """Bytes of a header as it is sent, one line each."""
    return sum(len(name) + len(value.encode(errors="surrogateescape")) + 4 for name, value in headers)


def sendable(value: str) -> bool:
    """Whether a value can be sent again: no bytes that are not UTF-8."""
    return _SENDABLE.fullmatch(value) is not None


def below(address: str, rest: str, query: str) -> URL | None:
    """A service's own path below its address, just as it was sent; None for one that leads elsewhere.

    The address alone decides where the request goes.
    """
    steps = rest.lower().replace("%2e", ".").split("/")
    bad = "\\" in rest or not (rest + query).isascii() or not (rest + query).isprintable() or " " in rest
    if bad or "." in steps or ".." in steps:
        return None
    if not usable(address):
        return None
    return URL(f"{address.rstrip('/')}/{rest}" + (f"?{query}" if query else ""), encoded=True)


def usable(address: str) -> bool:
    """Whether a center's word is an address, with nothing in it that would become more than one."""
    if not address.isascii() or not address.isprintable() or any(c in address for c in " \\@?#"):
        return False
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


# ---------------------------------------------------------------- to the service


def onward(headers: Iterable[tuple[str, str]], *, websocket: bool) -> Iterator[Header]:
    """What of a request's header is the service's business, one by one."""
    listed = [Header(*pair) for pair in headers]
    dropped = HOP_BY_HOP | NOT_ONWARD | _named_in_connection(listed)
    for header in listed:
        name = header.name.lower()
        if name not in dropped and not (websocket and name.startswith("sec-websocket-")):
            yield header


def others_cookies(headers: Iterable[tuple[str, str]]) -> str:
    """The cookies of a request without the broker's own; "" when none are left."""
    values = [value for name, value in headers if name.lower() == "cookie"]
    pairs = [pair.strip() for value in values for pair in value.split(";")]
    return "; ".join(pair for pair in pairs if pair and not pair.lower().startswith(OWN_COOKIES))


def _named_in_connection(headers: Iterable[Header]) -> frozenset[str]:
    values = [header.value for header in headers if header.name.lower() == "connection"]
    return frozenset(word.strip().lower() for value in values for word in value.split(","))


# ---------------------------------------------------------------- back from it


def back(headers: Iterable[tuple[str, str]], *, address: str, prefix: str) -> CIMultiDict[str]:
    """The header of an answer; `prefix` is the path of the service's own address at the broker."""
    listed = [Header(*pair) for pair in headers]
    dropped = HOP_BY_HOP | NOT_BACK | _named_in_connection(listed)
    found: CIMultiDict[str] = CIMultiDict()
    for name, value in listed:
        if not sendable(value):
            continue
        match name.lower():
            case "set-cookie":
                if (cookie := confined(value, prefix)) is not None:
                    found.add(name, cookie)
            case "location" | "content-location":
                found.add(name, located(value, address=address, prefix=prefix))
            case plain if plain not in dropped:
                found.add(name, value)
    return found


def located(value: str, *, address: str, prefix: str) -> str:
    """Where a service points to, as seen from outside: its own paths are below the prefix."""
    own = address.rstrip("/")
    if value == own or value.startswith((f"{own}/", f"{own}?")):
        value = value.removeprefix(own) or "/"
    if value.startswith("/") and not value.startswith(("//", prefix)):
        return prefix.rstrip("/") + value
    return value


def confined(cookie: str, prefix: str) -> str | None:
    """A cookie of a service, for its own path alone; None for one that looks like the broker's."""
    first, *attributes = (part.strip() for part in cookie.split(";"))
    if first.lower().startswith(OWN_COOKIES):
        return None
    kept, path = [first], ""
    for attribute in attributes:
        name, _, value = attribute.partition("=")
        match name.strip().lower():
            case "domain":
                pass
            case "path":
                path = value.strip()
            case _:
                kept.append(attribute)
    if path.startswith("/") and not path.startswith(prefix) and path != prefix.rstrip("/"):
        path = prefix.rstrip("/") + path
    return "; ".join((*kept, f"Path={path if path.startswith('/') else prefix}"))
