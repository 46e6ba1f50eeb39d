"""Which Host fields name the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.access.browsers import HostNames
from backline_client.values.errors import InvalidArgument

NAMES = HostNames.of(["Models", "gpu-1.example.net.", "*.example.org"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8000", "localhost.", "a.localhost:1", "127.0.0.1:8000", "127.9.9.9", "[::1]",
        "[::1]:8000", "192.168.1.2:80", "[fe80::1%25eth0]:8000", "models", "MODELS:8000", "gpu-1.example.net",
        "a.example.org", "a.b.example.org:1",
    ],
)  # fmt: skip
def test_names_of_the_server(host: str) -> None:
    assert NAMES.include(host.encode())


@pytest.mark.parametrize(
    "host",
    [
        "", ".", ":8000", "evil.example", "localhost.evil.example", "evillocalhost", "evil.example@localhost",
        "evil.example#localhost", "localhost:80:80", "localhost:evil.example", "localhost/evil",
        "localhost, evil.example", "[localhost]", "[127.0.0.1]", "::1", "example.org", "evilexample.org",
        "a.example.org.evil.example", "models.evil.example", "127.0.0.1.evil.example", "0x7f.1", "2130706433",
        "127.1", "[::1", "::1]", "loc\xe4lhost", "localhost evil",
    ],
)  # fmt: skip
def test_names_that_others_may_have(host: str) -> None:
    assert not NAMES.include(host.encode("latin-1"))


@given(st.binary(max_size=40))
def test_any_bytes_are_judged(host: bytes) -> None:
    NAMES.include(host)


@pytest.mark.parametrize("name", ["", "*", "*.", "http://a", "a:80", "a b", "a.*.b", ".", "a..b"])
def test_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a host name"):
        HostNames.of([name])
