"""Parsing of server URLs."""

from __future__ import annotations

from typing import Any

import pytest

from backline_client.client.address import Address
from backline_client.values.errors import InvalidArgument


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a", ("http", "a", 8000, "", False)),
        ("a:9", ("http", "a", 9, "", False)),
        ("https://a/models/", ("http", "a", 443, "/models", True)),
        ("grpc://[::1]:5", ("grpc", "::1", 5, "", False)),
        ("grpcs://a", ("grpc", "a", 443, "", True)),
        ("unix:/run/s", ("http", "", 0, "/run/s", False)),
        ("grpc+unix:///run/s", ("grpc", "", 0, "/run/s", False)),
        ("inproc:///models/a b", ("inproc", "", 0, "/models/a b", False)),
        ("inproc://relative", ("inproc", "", 0, "relative", False)),
    ],
)
def test_urls_are_parsed(url: str, expected: tuple[object, ...]) -> None:
    address = Address.parse(url)
    assert (address.protocol, address.host, address.port, address.path, address.tls) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("htp://a", "did you mean http:"),
        ("", "is not a server URL"),
        ("/models", "is not a server URL"),
        ("http://", "names no host"),
        ("http://a:b", "is not a server URL"),
        ("http://a..b", "names a host that cannot exist"),
        (f"dns+grpc://{'a' * 70}", "names a host that cannot exist"),
        ("8000", "names a port, but no host: use localhost:8000"),
        ("http://u:p@a", "headers="),
        ("http://a?x=1", "query"),
        ("grpc://a/b", "gRPC cannot use"),
        ("unix:", "names no path"),
    ],
)
def test_invalid_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Address.parse(url)


@pytest.mark.parametrize("urls", [None, ["http://a", "http://b"], b"http://a"])
def test_an_object_that_is_not_a_string_is_refused_with_how_to_name_several_servers(urls: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"type {type(urls).__name__}: pass a string, in which commas"):
        Address.parse_all(urls)
