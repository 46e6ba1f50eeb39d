"""Wrong gRPC framing and wrong gRPC requests: refused promptly, without disturbing others."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

import pytest

from conformance.h2probe import Field, Outcome, Probe
from conformance.protobuf import fp32_contents, grpc_message, infer_request, tensor
from conformance.running_server import Server

INFER = "/inference.GRPCInferenceService/ModelInfer"
AT_ONCE = 1.0

OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = (
    0,
    3,
    4,
    5,
    8,
    12,
    13,
)


@dataclass(frozen=True)
class Call:
    """One call, as sent."""

    body: bytes = field(default_factory=lambda: grpc_message(infer_request()))
    path: str = INFER
    method: str = "POST"
    content_type: str = "application/grpc"
    te: str | None = "trailers"
    extra: tuple[Field, ...] = ()
    ended: bool = True

    def send(self, probe: Probe, stream: int) -> None:
        fields = probe.fields(self.method, self.path, [("content-type", self.content_type)])
        if self.te is not None:
            fields.append(("te", self.te))
        probe.headers(stream, [*fields, *self.extra], end=False)
        pieces = [self.body[at : at + 16384] for at in range(0, len(self.body), 16384)] or [b""]
        for piece in pieces[:-1]:
            probe.data(stream, piece, end=False)
        probe.data(stream, pieces[-1], end=self.ended)


def call(probe: Probe, stream: int, what: Call) -> Outcome:
    what.send(probe, stream)
    return probe.outcome(stream)


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Probe]]:
    """Opens HTTP/2 connections, which the end of the test closes."""
    probes: list[Probe] = []

    def make() -> Probe:
        probe = Probe(server.host, server.port)
        probes.append(probe)
        probe.handshake()
        return probe

    yield make
    for probe in probes:
        probe.close()


def assert_others_undisturbed(same: Probe, outcome: Outcome, connect: Callable[[], Probe]) -> None:
    """Asserts that valid calls succeed on this connection, if it is still open, and on another."""
    if not outcome.ended or outcome.ended.startswith("reset"):
        after = call(same, 3, Call())
        assert after.fields.get("grpc-status") == "0", f"the next call on the connection: {after}"
    other = call(connect(), 1, Call())
    assert other.fields.get("grpc-status") == "0", f"a call on another connection: {other}"


def test_valid_call(connect: Callable[[], Probe]) -> None:
    outcome = call(connect(), 1, Call())
    assert outcome.fields.get(":status") == "200", str(outcome)
    assert outcome.fields.get("grpc-status") == "0", str(outcome)
    assert struct.pack("<16f", *[1.0] * 16) in outcome.body


MESSAGE = infer_request()
PACKED = gzip.compress(MESSAGE)

#: Must be refused, with this status; None for any refusal.
MUST_REFUSE = {
    "no message": (Call(b""), None),
    "prefix cut to 3 bytes": (Call(grpc_message(MESSAGE)[:3]), None),
    "prefix longer than body": (Call(grpc_message(MESSAGE, length=len(MESSAGE) + 10)), None),
    "prefix shorter than body": (Call(grpc_message(MESSAGE, length=len(MESSAGE) - 10)), None),
    "two messages in a unary call": (Call(grpc_message(MESSAGE) * 2), None),
    "compressed flag without encoding": (Call(grpc_message(PACKED, flag=1)), INTERNAL),
    "compressed flag, not gzip": (
        Call(grpc_message(MESSAGE, flag=1), extra=(("grpc-encoding", "gzip"),)),
        None,
    ),
    "compressed flag, gzip cut off": (
        Call(grpc_message(PACKED[:-9], flag=1), extra=(("grpc-encoding", "gzip"),)),
        None,
    ),
    "compressed flag, bytes after gzip": (
        Call(grpc_message(PACKED + b"rest", flag=1), extra=(("grpc-encoding", "gzip"),)),
        None,
    ),
    "flag 2": (Call(grpc_message(MESSAGE, flag=2)), None),
    "unknown encoding": (
        Call(grpc_message(MESSAGE, flag=1), extra=(("grpc-encoding", "snappy"),)),
        UNIMPLEMENTED,
    ),
    "not a protobuf": (Call(grpc_message(b"\xff" * 40)), None),
    "field longer than message": (Call(grpc_message(b"\x0a\x7fadd1")), None),
    "model name that is not UTF-8": (Call(grpc_message(infer_request(b"\xff\xfe"))), None),
    "1 GB declared, stream ended": (Call(grpc_message(MESSAGE, length=1 << 30)), None),
    "1 GB declared, stream open": (
        Call(grpc_message(MESSAGE, length=1 << 30), ended=False),
        RESOURCE_EXHAUSTED,
    ),
    "4 GB declared, stream open": (
        Call(grpc_message(MESSAGE, length=(1 << 32) - 1), ended=False),
        RESOURCE_EXHAUSTED,
    ),
    "unknown method": (Call(path="/inference.GRPCInferenceService/Nothing"), UNIMPLEMENTED),
    "unknown service": (Call(path="/nobody.Nothing/ModelInfer"), UNIMPLEMENTED),
    "path without slash": (Call(path="inference.GRPCInferenceService"), None),
    "path of one word": (Call(path="/ModelInfer"), UNIMPLEMENTED),
    "method GET": (Call(method="GET"), None),
    "content-type text/plain": (Call(content_type="text/plain"), None),
}


@pytest.mark.parametrize("case", MUST_REFUSE)
def test_wrong_framing_is_refused(connect: Callable[[], Probe], case: str) -> None:
    wrong, status = MUST_REFUSE[case]
    probe = connect()
    outcome = call(probe, 1, wrong)
    assert outcome.answered, f"no answer: {outcome}"
    assert outcome.refused, f"taken: {outcome}"
    assert outcome.seconds < AT_ONCE
    if status is not None:
        assert outcome.fields.get("grpc-status") == str(status), str(outcome)
    assert_others_undisturbed(probe, outcome, connect)


#: May be accepted or refused, but must be answered.
MUST_ANSWER = {
    "grpc-timeout garbage": Call(extra=(("grpc-timeout", "soon"),)),
    "grpc-timeout of 9 digits": Call(extra=(("grpc-timeout", "123456789S"),)),
    "grpc-timeout negative": Call(extra=(("grpc-timeout", "-1S"),)),
    "grpc-timeout 0n": Call(extra=(("grpc-timeout", "0n"),)),
    "no te": Call(te=None),
    "binary header not base64": Call(extra=(("x-key-bin", "!!!"),)),
    "uncompressed with encoding": Call(extra=(("grpc-encoding", "gzip"),)),
    "content-type with subtype": Call(content_type="application/grpc+proto"),
}


@pytest.mark.parametrize("case", MUST_ANSWER)
def test_odd_metadata_is_answered(connect: Callable[[], Probe], case: str) -> None:
    probe = connect()
    outcome = call(probe, 1, MUST_ANSWER[case])
    assert outcome.answered, f"no answer: {outcome}"
    assert outcome.seconds < AT_ONCE
    assert_others_undisturbed(probe, outcome, connect)


@pytest.mark.parametrize("case", ["uncompressed with encoding", "content-type with subtype"])
def test_legal_variants_are_taken(connect: Callable[[], Probe], case: str) -> None:
    outcome = call(connect(), 1, MUST_ANSWER[case])
    assert outcome.fields.get("grpc-status") == "0", str(outcome)


def test_passed_deadline_is_reported(connect: Callable[[], Probe]) -> None:
    outcome = call(connect(), 1, MUST_ANSWER["grpc-timeout 0n"])
    assert outcome.fields.get("grpc-status") == str(DEADLINE_EXCEEDED), str(outcome)


def one_input(**changes: object) -> bytes:
    return infer_request(inputs=[tensor(**changes)])  # type: ignore[arg-type]


#: Well-framed calls that the model or the protocol refuses.
WRONG_REQUESTS = {
    "empty message": (b"", None),
    "unknown model": (infer_request("nobody"), NOT_FOUND),
    "empty model name": (infer_request(""), None),
    "unknown version": (infer_request(version="99"), NOT_FOUND),
    "version not a number": (infer_request(version="latest?"), None),
    "unknown input": (one_input(name="INPUT7"), INVALID_ARGUMENT),
    "no input": (infer_request(inputs=[], raw=[]), INVALID_ARGUMENT),
    "input twice": (infer_request(inputs=[tensor(), tensor()], raw=[bytes(64), bytes(64)]), INVALID_ARGUMENT),
    "unknown output": (infer_request(outputs=["OUTPUT7"]), None),
    "unknown datatype": (one_input(datatype="FP33"), INVALID_ARGUMENT),
    "wrong datatype": (one_input(datatype="INT32"), INVALID_ARGUMENT),
    "wrong rank": (one_input(shape=[16]), INVALID_ARGUMENT),
    "wrong shape": (one_input(shape=[1, 17]), INVALID_ARGUMENT),
    "negative dimension": (one_input(shape=[-1, 16]), INVALID_ARGUMENT),
    "both dimensions negative": (one_input(shape=[-1, -16]), INVALID_ARGUMENT),
    "shape 2^36 x 16": (one_input(shape=[68719476736, 16]), INVALID_ARGUMENT),
    "shape 1 x 2^63-1": (one_input(shape=[1, 9223372036854775807]), INVALID_ARGUMENT),
    "shape whose size is 2^64 + 64": (one_input(shape=[(1 << 58) + 1, 16]), INVALID_ARGUMENT),
    "too few bytes": (infer_request(raw=[bytes(60)]), INVALID_ARGUMENT),
    "too many bytes": (infer_request(raw=[bytes(68)]), INVALID_ARGUMENT),
    "no raw contents": (infer_request(raw=[]), INVALID_ARGUMENT),
    "more raw contents than inputs": (infer_request(raw=[bytes(64), bytes(64)]), INVALID_ARGUMENT),
    "raw and typed contents": (one_input(contents=fp32_contents(*[0.0] * 16)), INVALID_ARGUMENT),
    "typed contents of another type": (
        infer_request(inputs=[tensor(contents=b"\x12\x01\x01")], raw=[]),
        INVALID_ARGUMENT,
    ),
    "too few typed contents": (
        infer_request(inputs=[tensor(contents=fp32_contents(1.0))], raw=[]),
        INVALID_ARGUMENT,
    ),
    "overflow shape with typed contents": (
        infer_request(inputs=[tensor(shape=[68719476736, 16], contents=fp32_contents(1.0))], raw=[]),
        INVALID_ARGUMENT,
    ),
}


#: Unknown names, and names that no model can have.
NAMES = {
    "40 KB": ("x" * 40_000, INVALID_ARGUMENT),
    "CRLF": ("a\r\nb: c", INVALID_ARGUMENT),
    "NUL": ("a\0b", INVALID_ARGUMENT),
    "not ASCII": ("\u00e9\u4e2d\U0001f600", NOT_FOUND),
    "percent": ("%0a", INVALID_ARGUMENT),
}


@pytest.mark.parametrize(("name", "status"), NAMES.values(), ids=NAMES)
def test_name_in_the_message_is_short_and_escaped(
    connect: Callable[[], Probe], name: str, status: int
) -> None:
    probe = connect()
    outcome = call(probe, 1, Call(grpc_message(infer_request(name))))
    assert outcome.fields.get("grpc-status") == str(status), str(outcome)
    message = outcome.fields["grpc-message"]
    # Clients refuse more than 8 KB of header fields in all.
    assert len(message) < 4096
    assert all(" " <= character <= "~" for character in message)
    if status == NOT_FOUND:
        assert unquote(message).startswith(f"Request for unknown model: '{name}'")
    assert_others_undisturbed(probe, outcome, connect)


@pytest.mark.parametrize("case", WRONG_REQUESTS)
def test_wrong_request_is_refused(connect: Callable[[], Probe], case: str) -> None:
    message, status = WRONG_REQUESTS[case]
    probe = connect()
    outcome = call(probe, 1, Call(grpc_message(message)))
    assert not outcome.ended, f"a wrong request must get a status: {outcome}"
    assert outcome.refused, f"taken: {outcome}"
    assert outcome.seconds < AT_ONCE
    told = outcome.fields["grpc-status"]
    assert told == str(status) if status is not None else told not in ("2", "13"), str(outcome)
    assert outcome.fields.get("grpc-message"), "a refusal must say why"
    assert_others_undisturbed(probe, outcome, connect)
