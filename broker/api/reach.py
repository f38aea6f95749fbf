"""Which addresses requests to services may go to: what a center tells of one is a stranger's word.

What belongs here: the rule and the resolver that keeps it.  What does not: connections (proxy.py).

A center names the address of a service, and whoever may use the service then has the broker ask there.
Never asked, unless it is the center's own host, which an operator wrote into the configuration:
addresses that mean this machine, those of the link (clouds tell secrets there), and those that are
nobody's.  Private networks are asked: centers are reached through them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from broker.config import CenterSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
"""Where clouds tell machines their secrets, beside 169.254.0.0/16."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Forbidden(OSError):
    """A name that leads to an address that is never asked."""


def own_hosts(settings: CenterSettings | None) -> frozenset[str]:
    """The hosts of a center as its configuration names them; a local center's is this machine."""
    if settings is None:
        return frozenset()
    if settings.adapter == "local":
        return frozenset({"127.0.0.1"})
    stated = [value for value in settings.connection.values() if isinstance(value, str)]
    hosts = {urlsplit(value).hostname for value in stated if value.startswith(("http://", "https://"))}
    return frozenset(filter(None, (*hosts, settings.connection.get("eip"))))


def trusted(url: URL, own: Collection[str]) -> bool:
    """Whether the host is the center's own, or this machine where that is the center's own host."""
    host = url.host or ""
    return host in own or (_here(host) and any(map(_here, own)))


def forbidden(host: str) -> bool:
    """Whether a host, written as an address, is one that is never asked; names are resolved first."""
    try:
        found: Address = ipaddress.ip_address(host)
    except ValueError:
        return False
    within = [found, *_embedded(found)]
    return any(
        each.is_loopback
        or each.is_link_local
        or each.is_unspecified
        or each.is_multicast
        or each.is_reserved
        or each in METADATA
        for each in within
        if each not in _NAT64
    )


def _embedded(found: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address stands for."""
    if not isinstance(found, ipaddress.IPv6Address):
        return []
    inside = [found.ipv4_mapped, found.sixtofour]
    if found in _NAT64:
        inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    return [each for each in inside if each is not None]


def _here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guarded(AbstractResolver):
    """Names without the addresses that are never asked.  Looked at where the connection is made: a name
    may lead elsewhere the next time it is asked."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)  # type: ignore[arg-type]
        allowed = [each for each in found if not forbidden(each["host"])]
        if not allowed:
            raise Forbidden(f"{host} is an address that is never asked")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()
