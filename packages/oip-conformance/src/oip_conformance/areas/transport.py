"""The transport: compression, many requests at once, large bodies, waiting and leaving."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor

from oip_conformance import specification as spec
from oip_conformance.areas.infer import LEFT, RIGHT
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Level
from oip_conformance.target import Target, check, equal, ok, outputs
from oip_conformance.tensors import Tensor, fp32

MUST, SHOULD, OBSERVED = Level
area = Area("transport", "required")


def _body(t: Target) -> bytes:
    return json.dumps({"inputs": [tensor.json() for tensor in t.tensors("sum", LEFT, RIGHT)]}).encode()


def _compressed(t: Target, coding: str, body: bytes) -> str:
    headers = ("Content-Type", "application/json"), ("Content-Encoding", coding)
    answer = t.post(t.path("sum", "infer"), body, *headers)
    if answer.status >= 400:
        return f"refused with {answer.status}"
    outputs(answer)
    return "taken"


@area.row("gzip-request", OBSERVED, None, "sum")
def gzip_request(t: Target) -> str:
    """A request body that is compressed with gzip."""
    return _compressed(t, "gzip", gzip.compress(_body(t)))


@area.row("broken-gzip", MUST, spec.INFER_ERROR, "sum")
def broken_gzip(t: Target) -> None:
    """A body that says that it is gzip, and is not, is an error."""
    headers = ("Content-Type", "application/json"), ("Content-Encoding", "gzip")
    answer = t.post(t.path("sum", "infer"), b"\x1f\x8b\x08\x00 this is not gzip", *headers)
    check(answer.status >= 400, "a status of 400 or more", answer.status)


def _large(rows: int) -> Tensor:
    return Tensor("INPUT", "FP32", (rows, 1024), [float(i % 997) for i in range(rows * 1024)])


def _coding(t: Target, accepted: str) -> tuple[str | None, Answer]:
    body = json.dumps({"inputs": [t.tensors("identity_fp32", _large(16))[0].json()]}).encode()
    answer = t.post(
        t.path("identity_fp32", "infer"), body, ("Content-Type", "application/json"), ("Accept-Encoding", accepted)
    )
    coding = ok(answer).header("Content-Encoding")
    body = gzip.decompress(answer.body) if coding == "gzip" else answer.body
    plain = Answer(answer.status, answer.headers, body)
    equal(outputs(plain)[t.output_names("identity_fp32")[0]].data, _large(16).data, "the values")
    return coding, answer


@area.row("gzip-answer", OBSERVED, None, "identity_fp32")
def gzip_answer(t: Target) -> str:
    """Whether a large answer is compressed for a client that accepts gzip."""
    return _coding(t, "gzip")[0] or "not compressed"


@area.row("identity-answer", MUST, spec.INFER_OK, "identity_fp32")
def identity_answer(t: Target) -> None:
    """An answer is not compressed for a client that accepts only identity."""
    equal(_coding(t, "identity")[0] or "identity", "identity", "the content coding")


@area.row("concurrent", MUST, spec.RESPONSE_ID, "sum")
def concurrent(t: Target) -> None:
    """Answers to requests at the same time are never swapped: each has the id and the values of its request."""

    def one(number: int) -> None:
        rows = [float(number * 4 + column) for column in range(4)]
        answer = t.infer("sum", fp32("LEFT", rows), fp32("RIGHT", [1.0] * 4), id=f"request-{number}")
        equal(ok(answer).json().get("id"), f"request-{number}", "id")
        equal(outputs(answer)[t.output_names("sum")[0]].data, [value + 1 for value in rows], f"values of {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(96)))


@area.row("concurrent-sizes", MUST, spec.RESPONSE_SHAPE, "sum")
def concurrent_sizes(t: Target) -> None:
    """Batches of different sizes at the same time come back with their own sizes."""

    def one(number: int) -> None:
        rows = [[float(number)] * 4] * (number % 3 + 1)
        found = outputs(t.infer("sum", fp32("LEFT", *rows), fp32("RIGHT", *rows)))[t.output_names("sum")[0]]
        equal((found.shape, set(found.data)), ((len(rows), 4), {2.0 * number}), f"shape and values of {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(48)))


@area.row("slow-does-not-block", SHOULD, spec.LIVE, "slow")
def slow_does_not_block(t: Target) -> None:
    """While a model computes, the server answers that it is live."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(t.infer, "slow", Tensor("INPUT", "INT32", (1,), [1200]))
        while not pending.running() and not pending.done():
            pass
        ok(t.get("/v2/health/live"))
        before = not pending.done()
        outputs(pending.result())
    check(before, "an answer about liveness before the model's", "one after it")


@area.row("slow", MUST, spec.INFER_OK, "slow")
def slow(t: Target) -> None:
    """A model that takes a second is waited for."""
    equal(next(iter(outputs(t.infer("slow", Tensor("INPUT", "INT32", (1,), [1000]))).values())).data, [1000], "output")


@area.row("client-leaves", MUST, spec.INFER_OK, "slow")
def client_leaves(t: Target) -> None:
    """A client that leaves before its answer harms no later request."""
    body = json.dumps({"inputs": [t.tensors("slow", Tensor("INPUT", "INT32", (1,), [300]))[0].json()]}).encode()
    for _ in range(3):
        t.leave(t.path("slow", "infer"), body)
    equal(next(iter(outputs(t.infer("slow", Tensor("INPUT", "INT32", (1,), [1]))).values())).data, [1], "output")


@area.row("body-1-mib", MUST, spec.INFER_OK, "identity_fp32")
def body_1_mib(t: Target) -> None:
    """A tensor of 131,072 elements in JSON, about a mebibyte, comes back whole."""
    tensor = _large(128)
    found = outputs(t.infer("identity_fp32", tensor))[t.output_names("identity_fp32")[0]]
    check(found.data == tensor.data, "the same elements", f"{len(found.data)} elements, or others")


@area.row("long-text", MUST, spec.INPUT_DATA, "identity_bytes")
def long_text(t: Target) -> None:
    """A text of 300,000 bytes comes back whole."""
    tensor = Tensor("INPUT", "BYTES", (1, 1), [b"abc" * 100_000])
    found = outputs(t.infer("identity_bytes", tensor))[t.output_names("identity_bytes")[0]]
    check(found.data == tensor.data, "the same 300,000 bytes", f"{len(found.data[0])} bytes")


@area.row("deep-json", MUST, spec.INFER_ERROR, "sum")
def deep_json(t: Target) -> None:
    """JSON that is nested 100,000 levels deep is refused, and the server goes on."""
    body = b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = t.post(t.path("sum", "infer"), body, ("Content-Type", "application/json"))
    check(answer.status >= 400, "a status of 400 or more", answer.status)
    outputs(t.infer("sum", LEFT, RIGHT))
