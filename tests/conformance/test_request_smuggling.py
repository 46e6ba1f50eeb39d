"""Requests with ambiguous framing (RFC 9112, sections 2 to 7) are refused; smuggled requests stay unanswered.

Each case is sent over a new connection and followed by an honest request. A refusal is a 4xx or 5xx response,
or a close without one. Where a case leaves the framing ambiguous, the request after it must not be answered.
"""

from __future__ import annotations

import pytest

from conformance.h1probe import HttpProbe
from conformance.running_server import Server

#: A route that accepts a body of five bytes.
BODY = b"{   }"
CHUNKED = b"5\r\n" + BODY + b"\r\n0\r\n\r\n"
PIPELINED = b"GET /v2/health/live HTTP/1.1\r\nHost: pipelined\r\nConnection: close\r\n\r\n"
LENGTH = b"Content-Length: 5"
TE = b"Transfer-Encoding: chunked"


def post(
    *fields: bytes,
    body: bytes = BODY,
    line: bytes = b"POST /v2/repository/index HTTP/1.1",
    host: bytes | None = b"Host: x",
) -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields]) + b"\r\n\r\n" + body


#: Ambiguous framing: refused, and the connection is closed.
MUST_REFUSE_AND_CLOSE = {
    "CL and TE": post(LENGTH, TE, body=CHUNKED),
    "TE and CL": post(TE, LENGTH, body=CHUNKED),
    "two different CL": post(LENGTH, b"Content-Length: 6"),
    "CL list 5, 6": post(b"Content-Length: 5, 6"),
    "CL +5": post(b"Content-Length: +5"),
    "CL -1": post(b"Content-Length: -1"),
    "CL 0x5": post(b"Content-Length: 0x5"),
    "CL 5 5": post(b"Content-Length: 5 5"),
    "CL 5_0": post(b"Content-Length: 0_5"),
    "CL empty": post(b"Content-Length:"),
    "CL 2^64+5": post(b"Content-Length: 18446744073709551621"),
    "TE xchunked": post(b"Transfer-Encoding: xchunked", body=CHUNKED),
    "TE chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=CHUNKED),
    "TE chunked twice": post(TE, TE, body=CHUNKED),
    "TE with vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=CHUNKED),
    "TE space before colon": post(b"Transfer-Encoding : chunked", body=CHUNKED),
    "bare LF after chunk size": post(TE, body=b"5\n" + BODY + b"\r\n0\r\n\r\n"),
    "bare LF in chunk extension": post(TE, body=b"5;a\n" + BODY + b"\r\n0\r\n\r\n"),
    "bare LF after chunk data": post(TE, body=b"5\r\n" + BODY + b"\n0\r\n\r\n"),
    "chunk without CRLF after data": post(TE, body=b"5\r\n" + BODY + b"0\r\n\r\n"),
    "chunk size 0x5": post(TE, body=b"0x5\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size 2^64+5": post(TE, body=b"10000000000000005\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size -5": post(TE, body=b"-5\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size empty": post(TE, body=b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "space in name": post(b"X Y: z", LENGTH),
    "empty name": post(b": z", LENGTH),
    "no colon": post(b"nocolon", LENGTH),
    "bad method": post(LENGTH, line=b"P(ST /v2/repository/index HTTP/1.1"),
    "garbage after version": post(LENGTH, line=b"POST /v2/repository/index HTTP/1.1 garbage"),
    "garbage version": post(LENGTH, line=b"POST /v2/repository/index HTTP/1.1x"),
    "unknown version": post(LENGTH, line=b"POST /v2/repository/index HTTP/9.9"),
}

#: Clear framing: refused, but the connection may stay open.
MUST_REFUSE = {
    "no Host": post(LENGTH, host=None),
    "two Hosts": post(b"Host: y", LENGTH),
}

#: The specifications leave the choice to the server, as long as it responds or closes.
MAY_TAKE = {
    "two equal CL": post(LENGTH, LENGTH),
    "CL list 5, 5": post(b"Content-Length: 5, 5"),
    "TE folded": post(b"Transfer-Encoding:\r\n chunked", body=CHUNKED),
    "TE in HTTP/1.0": post(TE, body=CHUNKED, line=b"POST /v2/repository/index HTTP/1.0"),
    "header folded": post(b"X-A: b\r\n c", LENGTH),
    "bare LF in head": b"POST /v2/repository/index HTTP/1.1\nHost: x\nContent-Length: 5\n\n" + BODY,
    "bare CR in value": post(b"X-A: b\rc", LENGTH),
    "NUL in value": post(b"X-A: b\0c", LENGTH),
    "space before first field": post(b" X-A: b", LENGTH, host=None),
    "space after chunk size": post(TE, body=b"5 \r\n" + BODY + b"\r\n0\r\n\r\n"),
    "trailer field": post(TE, body=b"5\r\n" + BODY + b"\r\n0\r\nX-Trailer: t\r\n\r\n"),
}


def statuses(server: Server, request: bytes) -> tuple[list[int], bool]:
    """The statuses of all responses to a request and the one after it, and whether the server closed."""
    probe = HttpProbe(server.host, server.port)
    try:
        probe.send(request + PIPELINED)
        return [answer.status for answer in probe.answers()], probe.closed
    finally:
        probe.close()


def test_control_is_taken(server: Server) -> None:
    assert statuses(server, post(LENGTH)) == ([200, 200], True)


def test_control_with_chunks_is_taken(server: Server) -> None:
    assert statuses(server, post(TE, body=CHUNKED)) == ([200, 200], True)


@pytest.mark.parametrize("case", MUST_REFUSE_AND_CLOSE)
def test_ambiguous_request_is_refused_and_closes(server: Server, case: str) -> None:
    found, closed = statuses(server, MUST_REFUSE_AND_CLOSE[case])
    assert len(found) <= 1, f"a second request was answered: {found}"
    assert all(400 <= status < 600 and status != 500 for status in found), f"taken: {found}"
    assert closed, "the connection stays open though nobody knows where the next request begins"


@pytest.mark.parametrize("case", MUST_REFUSE)
def test_request_is_refused(server: Server, case: str) -> None:
    found, closed = statuses(server, MUST_REFUSE[case])
    assert found or closed, "no answer"
    assert not found or 400 <= found[0] < 500, f"taken: {found}"


@pytest.mark.parametrize("case", MAY_TAKE)
def test_odd_request_is_taken_or_refused(server: Server, case: str) -> None:
    found, closed = statuses(server, MAY_TAKE[case])
    assert closed, "the connection hangs"
    assert 500 not in found
    assert len(found) <= 2
    if found and found[0] == 200:
        assert found in ([200], [200, 200])


def test_whole_of_a_pipeline_is_answered_in_order(server: Server) -> None:
    probe = HttpProbe(server.host, server.port)
    try:
        once = [
            post(LENGTH),
            b"GET /v2/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
        probe.send(b"".join(once) * 20 + PIPELINED)
        assert [answer.status for answer in probe.answers()] == [200, 404, 200] * 20 + [200]
    finally:
        probe.close()
