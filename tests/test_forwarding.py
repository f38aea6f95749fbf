"""The rules of what is passed on of headers, cookies and paths."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.api.forwarding import (
    HOP_BY_HOP,
    back,
    below,
    confined,
    located,
    onward,
    others_cookies,
    sendable,
)

ADDRESS, PREFIX = "http://10.0.0.1:8000", "/services/j-1/"
paths = st.text(st.characters(max_codepoint=0x250), max_size=30)


@given(paths, paths)
def test_a_request_goes_to_the_address_of_the_run_or_nowhere(rest: str, query: str) -> None:
    for address in (ADDRESS, f"{ADDRESS}/base/", "https://x.example"):
        url = below(address, rest, query)
        if url is not None:
            there, asked = urlsplit(address), urlsplit(str(url))
            assert (asked.scheme, asked.netloc) == (there.scheme, there.netloc)
            assert asked.path.startswith(f"{there.path.rstrip('/')}/")
            assert "\r" not in str(url)
            assert "\n" not in str(url)


@pytest.mark.parametrize(
    ("rest", "query", "url"),
    [
        ("", "", f"{ADDRESS}/"),
        ("a%2Fb", "q=%20&q", f"{ADDRESS}/a%2Fb?q=%20&q"),
        ("//evil.example/", "", f"{ADDRESS}///evil.example/"),
        ("@evil.example", "", f"{ADDRESS}/@evil.example"),
        ("..", "", None),
        ("a/%2E%2e/b", "", None),
        ("a\\b", "", None),
        ("a b", "", None),
        ("a\r\nX: y", "", None),
        ("作", "", None),
    ],
)
def test_paths(rest: str, query: str, url: str | None) -> None:
    found = below(ADDRESS, rest, query)
    assert (None if found is None else str(found)) == url


@pytest.mark.parametrize("address", ["", "ftp://x/", "//x", "http://", "x:1", "file:///etc/passwd"])
def test_addresses_that_are_none(address: str) -> None:
    assert below(address, "", "") is None


@given(st.lists(st.tuples(st.sampled_from(["Connection", "X-A", "X-B", "TE", "Host", "Cookie"]), st.text())))
def test_nothing_of_one_connection_is_passed_on(headers: list[tuple[str, str]]) -> None:
    named = {w.strip().lower() for n, v in headers if n == "Connection" for w in v.split(",")}
    for name, _ in onward(headers, websocket=False):
        assert name.lower() not in HOP_BY_HOP | named | {"host", "cookie"}


def test_a_websockets_handshake_is_not_passed_on() -> None:
    headers = [("Sec-WebSocket-Key", "x"), ("Sec-Fetch-Mode", "websocket"), ("Origin", "http://x")]
    assert [name for name, _ in onward(headers, websocket=True)] == ["Sec-Fetch-Mode", "Origin"]


def test_cookies_without_the_brokers_own() -> None:
    assert others_cookies([("Cookie", "a=1; broker_service=x;b=2"), ("cookie", " Broker_y=1 ; c")]) == (
        "a=1; b=2; c"
    )
    assert others_cookies([("Cookie", "broker_service=x")]) == ""


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60))
def test_a_cookie_stays_at_its_service(cookie: str) -> None:
    found = confined(cookie, PREFIX)
    if found is None:
        assert cookie.strip().lower().startswith("broker_")
    else:
        *_, path = found.split("; ")
        assert path.startswith(f"Path={PREFIX.rstrip('/')}")
        attributes = [part.strip().lower() for part in found.split(";")[1:]]
        assert not any(attribute.startswith("domain") for attribute in attributes if "=" in attribute)
        assert sum(attribute.startswith("path=") for attribute in attributes) == 1


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("/a", "/services/j-1/a"),
        ("/", "/services/j-1/"),
        ("/services/j-1/a", "/services/j-1/a"),
        ("/services/j-12/a", "/services/j-1/services/j-12/a"),
        (ADDRESS, "/services/j-1/"),
        (f"{ADDRESS}/a?b", "/services/j-1/a?b"),
        (f"{ADDRESS}1/a", f"{ADDRESS}1/a"),
        ("https://x.example/", "https://x.example/"),
        ("//x.example/", "//x.example/"),
        ("a", "a"),
    ],
)
def test_where_a_service_points_to(value: str, seen: str) -> None:
    assert located(value, address=ADDRESS, prefix=PREFIX) == seen


def test_an_answers_header() -> None:
    headers = [
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Type", "text/plain"),
        ("X-Two", "a"),
        ("X-Two", "b"),
        ("X-Bytes", "\udce9"),
        ("Alt-Svc", "h3=:443"),
    ]
    found = back(headers, address=ADDRESS, prefix=PREFIX)
    assert list(found.items()) == [("Content-Type", "text/plain"), ("X-Two", "a"), ("X-Two", "b")]


def test_what_can_be_sent() -> None:
    assert sendable("a\tb 作 é")
    assert not any(sendable(text) for text in ("a\r\nb", "\0", "\udce9", "\x7f"))
