"""Responses to valid requests do not depend on fragmentation."""

from __future__ import annotations

import socket

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import WireServer, read_answer


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    path = draw(st.sampled_from([b"/echo", b"/later", b"/dump", b"/later?q=1", b"/unknown"]))
    body = draw(st.binary(max_size=200)) * draw(st.sampled_from([0, 1, 1, 1, 30, 900]))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    fields = b"".join(
        b"X-%d: %b\r\n" % (n, value)
        for n, value in enumerate(draw(st.lists(st.sampled_from([b"", b"a", b"b" * 50]), max_size=4)))
    )
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n%b" % (path, fields)
    if framing == "none":
        return head + b"\r\n"
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    size = draw(st.sampled_from([7, 100, 5000]))
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[i : i + size]), body[i : i + size]) for i in range(0, len(body), size)
    )
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    status, fields, body = read_answer(client)
    del fields["date"]
    return status, fields, body


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), sequence=st.lists(requests(), max_size=8))
def test_any_fragmentation_gives_the_same_responses(
    echo_server: WireServer, data: st.DataObject, sequence: list[bytes]
) -> None:
    apart = []
    for request in sequence:
        with echo_server.connect() as client:
            client.sendall(request)
            apart.append(answer(client))
    stream = b"".join(sequence)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    with echo_server.connect() as client:
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            client.sendall(stream[start:end])
        assert [answer(client) for _ in sequence] == apart
