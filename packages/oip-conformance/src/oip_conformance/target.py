"""The server under test as the rows see it: requests, what a correct answer looks like, and the names of its models."""

from __future__ import annotations

import difflib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np

from oip_conformance import rpc
from oip_conformance.http1 import Answer, HttpClient
from oip_conformance.row import Failure, NoAnswer, NotRun
from oip_conformance.rpc import RpcClient, RpcError
from oip_conformance.suite_models import MODELS
from oip_conformance.tensors import DATATYPES, Tensor, read_raw, same_values

_T = TypeVar("_T")
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(slots=True)
class Target:
    """One server, and the exchanges with it since `begin`."""

    http: HttpClient
    rpc: RpcClient | None = None
    #: The names that the suite's models have on the server, where they differ.
    names: dict[str, str] = field(default_factory=dict)
    #: Names of inputs and outputs that differ from the suite's, by model, in the suite's order.
    ports: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    deadline: float = math.inf
    #: Each request of the current row as a command line, and its answer as text.
    exchanges: list[tuple[str, str]] = field(default_factory=list)

    def begin(self, seconds: float) -> None:
        """Starts a row: what it asks must be answered within this time, all in all."""
        self.deadline = time.monotonic() + seconds
        self.exchanges.clear()

    # Names

    def name(self, model: str) -> str:
        """The server's name for one of the suite's models."""
        return self.names.get(model, model)

    def input_names(self, model: str) -> list[str]:
        return self.ports[model][0] if model in self.ports else [port.name for port in MODELS[model].inputs]

    def output_names(self, model: str) -> list[str]:
        return self.ports[model][1] if model in self.ports else [port.name for port in MODELS[model].outputs]

    def path(self, model: str, what: str = "", version: str | None = None) -> str:
        """The path of one of the suite's models, or of a part of it such as "infer"."""
        parts = ["/v2/models", self.name(model), *(("versions", version) if version is not None else ()), what]
        return "/".join(part for part in parts if part)

    def tensors(self, model: str, *tensors: Tensor) -> list[Tensor]:
        """The tensors under the names of the model's inputs."""
        return [
            Tensor(name, tensor.datatype, tensor.shape, tensor.data)
            for name, tensor in zip(self.input_names(model), tensors, strict=True)
        ]

    # REST

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | list[Any] = b"",
        headers: Sequence[tuple[str, str]] = (),
        stop_after: int | None = None,
    ) -> Answer:
        """Sends a request; a dict or a list is sent as JSON."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = (("Content-Type", "application/json"), *headers)
        sent = time.monotonic()
        try:
            request, answer = self.http.send(method, path, tuple(headers), body, self.deadline, stop_after)
        except NoAnswer as error:
            self.exchanges.append((error.got, f"no answer in {time.monotonic() - sent:.1f} s"))
            raise
        self.exchanges.append((request.curl(), answer.text()))
        return answer

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, body: bytes | dict[str, Any] | list[Any] = b"", *headers: tuple[str, str]) -> Answer:
        return self.request("POST", path, body, headers)

    def leave(self, path: str, body: bytes) -> None:
        """Sends a request and leaves without its answer."""
        self.http.leave(path, body, self.deadline)

    def infer(
        self, model: str, *tensors: Tensor, outputs: Sequence[Any] = (), version: str | None = None, **fields: Any
    ) -> Answer:
        """An inference request in JSON; `fields` are those of the request object."""
        body: dict[str, Any] = {**fields, "inputs": [tensor.json() for tensor in self.tensors(model, *tensors)]}
        if outputs:
            body["outputs"] = [{"name": name} if isinstance(name, str) else name for name in outputs]
        return self.post(self.path(model, "infer", version), body)

    def infer_binary(
        self,
        model: str,
        *tensors: Tensor,
        outputs: Sequence[Any] = (),
        as_json: Sequence[int] = (),
        header: int = 0,
        tail: bytes = b"",
        **fields: Any,
    ) -> Answer:
        """An inference request with tensors in binary form, but for those whose index is in `as_json`.

        Args:
            header: how much the length of the JSON is wrong in the header field.
            tail: bytes after the last tensor.
        """
        named = self.tensors(model, *tensors)
        entries, blobs = [], []
        for index, tensor in enumerate(named):
            if index in as_json:
                entries.append(tensor.json())
                continue
            blobs.append(tensor.raw())
            entries.append(tensor.entry(binary_data_size=len(blobs[-1])))
        body: dict[str, Any] = {**fields, "inputs": entries}
        if outputs:
            body["outputs"] = [{"name": name} if isinstance(name, str) else name for name in outputs]
        return self.post_binary(self.path(model, "infer"), body, b"".join(blobs) + tail, header)

    def post_binary(self, path: str, body: dict[str, Any], data: bytes, header: int = 0) -> Answer:
        """Sends JSON and the binary data after it, with the length of the JSON (`header` bytes off) in its field."""
        text = json.dumps(body).encode()
        return self.post(
            path,
            text + data,
            ("Content-Type", "application/octet-stream"),
            (HEADER_LENGTH, str(len(text) + header)),
        )

    # gRPC

    def call(self, method: str, request: Any = None, metadata: Sequence[tuple[str, str]] = ()) -> Any:
        """Calls a unary method.

        Raises RpcError.
        """
        return self._recorded(
            method, [request], lambda client, sent: client.call(method, sent[0], self.deadline, metadata)
        )

    def stream(self, requests: Sequence[Any]) -> list[Any]:
        """Sends requests to ModelStreamInfer, half-closes, and returns all responses.

        Raises RpcError.
        """
        return self._recorded(
            "ModelStreamInfer", requests, lambda client, sent: list(client.stream(sent, self.deadline))
        )

    def rpc_infer(self, model: str, *tensors: Tensor, typed: bool = False, **fields: Any) -> Any:
        """Calls ModelInfer for one of the suite's models.

        Raises RpcError.
        """
        named = self.tensors(model, *tensors)
        return self.call("ModelInfer", rpc.infer_request(self.name(model), named, typed, **fields))

    def _recorded(self, method: str, requests: Sequence[Any], send: Callable[[RpcClient, list[Any]], _T]) -> _T:
        if self.rpc is None:
            raise NotRun("no gRPC address was given")
        sent = [rpc.message("Empty") if request is None else request for request in requests]
        command = self.rpc.command(method, *sent)
        try:
            response = send(self.rpc, sent)
        except (RpcError, Failure) as error:
            self.exchanges.append((command, str(error)))
            raise
        parts: list[Any] = response if isinstance(response, list) else [response]
        large = sum(part.ByteSize() for part in parts) > 4096
        self.exchanges.append((command, "a large response" if large else "\n".join(map(str, parts)) or "OK"))
        return response


def check(condition: object, expected: str, got: object, hint: str = "") -> None:
    """Raises Failure unless the condition holds."""
    if not condition:
        raise Failure(expected, got, hint)


def equal(got: object, wanted: object, what: str) -> None:
    """Raises Failure unless the two are equal."""
    check(got == wanted, f"{what} {wanted!r}", repr(got))


def key(document: Any, name: str, kind: type | tuple[type, ...] | None = None, what: str = "the answer") -> Any:
    """The value of a key, of one of the given types.

    Raises Failure, which names the most similar key if the key is missing.
    """
    check(isinstance(document, dict), f"{what}: an object", document)
    if name not in document:
        similar = difflib.get_close_matches(name, document, 1, 0.6)
        raise Failure(
            f"{what}: a key '{name}'",
            f"the keys {', '.join(map(repr, document)) or 'of an empty object'}",
            f"'{similar[0]}' should be called '{name}'" if similar else "",
        )
    value = document[name]
    if kind is not None:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        matches = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        check(matches, f"{what}: '{name}' of type {' or '.join(k.__name__ for k in kinds)}", value)
    return value


def ok(answer: Answer) -> Answer:
    """The answer, if its status is 200."""
    if answer.status != 200:
        hint = ""
        if answer.status in (404, 405, 501):
            hint = "the route, the model or the feature seems not to exist on this server"
        raise Failure("status 200", f"status {answer.status}: {answer.body[:300].decode(errors='replace')}", hint)
    return answer


def refused(answer: Answer, *statuses: int) -> str:
    """The message of an error: the status says so, and the body is an object with `error`, a text."""
    wanted = " or ".join(map(str, statuses)) if statuses else "of an error"
    check(
        answer.status in statuses if statuses else answer.status >= 400,
        f"a status {wanted}",
        f"status {answer.status}: {answer.body[:300].decode(errors='replace')}",
    )
    message = key(answer.json(), "error", str, "the body of an error")
    check(message, "an error with a text", "an empty text")
    return str(message)


def outputs(answer: Answer) -> dict[str, Tensor]:
    """The output tensors of an answer, each complete and as long as its shape says."""
    ok(answer)
    document = answer.json()
    length = answer.header(HEADER_LENGTH)
    rest = answer.body[int(length) :] if length is not None else b""
    found: dict[str, Tensor] = {}
    for entry in key(document, "outputs", list):
        name = key(entry, "name", str, "an output")
        check(name not in found, "each output once", f"'{name}' twice")
        what = f"output '{name}'"
        datatype = key(entry, "datatype", str, what)
        check(datatype in DATATYPES, f"{what}: a datatype of the protocol", datatype)
        shape = key(entry, "shape", list, what)
        check(all(type(size) is int and size >= 0 for size in shape), f"{what}: a shape of whole numbers", shape)
        size = (entry.get("parameters") or {}).get("binary_data_size")
        if size is not None:
            check(length is not None or size == 0, f"a header field {HEADER_LENGTH}, since {what} is binary", "none")
            check("data" not in entry, f"{what}: either binary data or 'data'", "both")
            check(type(size) is int and 0 <= size <= len(rest), f"{what}: at most {len(rest)} bytes", size)
            found[name] = read_raw(name, datatype, tuple(shape), rest[:size])
            rest = rest[size:]
            continue
        data = flat(key(entry, "data", list, what))
        check(len(data) == math.prod(shape), f"{what}: {math.prod(shape)} elements for shape {shape}", len(data))
        found[name] = Tensor(name, datatype, tuple(shape), [_element(item, datatype, what) for item in data])
    check(not rest, "a body that ends with the last tensor", f"{len(rest)} more bytes")
    return found


def _element(item: Any, datatype: str, what: str) -> Any:
    """An element of `data` as Tensor has it."""
    if datatype == "BYTES":
        check(isinstance(item, str), f"{what}: texts for BYTES", item)
        return item.encode()
    if datatype == "BOOL":
        check(isinstance(item, bool), f"{what}: true or false for BOOL", item)
        return item
    check(isinstance(item, int | float) and not isinstance(item, bool), f"{what}: numbers", item)
    if datatype in ("FP16", "FP32"):
        # Any decimal that reads as the same number is right.
        return float(np.dtype(DATATYPES[datatype].numpy).type(item))
    if datatype in ("FP64", "BF16"):
        return float(item)
    check(isinstance(item, int), f"{what}: whole numbers for {datatype}", item)
    return item


def flat(data: Any) -> list[Any]:
    """The elements of nested lists, in row-major order."""
    return [leaf for item in data for leaf in flat(item)] if isinstance(data, list) else [data]


def same(got: Tensor | None, wanted: Tensor, what: str = "", shape: bool = True) -> None:
    """Raises Failure unless datatype, elements and, if it matters, shape agree; the names may differ."""
    what = what or f"output '{wanted.name}'"
    if got is None:
        raise Failure(what, "no such output")
    equal(got.datatype, wanted.datatype, f"{what}: datatype")
    check(not shape or got.shape == wanted.shape, f"{what}: shape {list(wanted.shape)}", list(got.shape))
    if not same_values(got.data, wanted.data):
        raise Failure(f"{what}: {_short(wanted.data)}", _short(got.data))


def _short(data: list[Any]) -> str:
    return repr(data) if len(data) <= 16 else f"{data[:8]!r} and {len(data) - 8} more"


def rpc_outputs(response: Any) -> dict[str, Tensor]:
    """The output tensors of a ModelInferResponse, from raw or typed contents."""
    raw = list(response.raw_output_contents)
    if raw:
        check(
            len(raw) == len(response.outputs),
            f"raw_output_contents for each of {len(response.outputs)} outputs",
            f"{len(raw)} of them",
        )
    found: dict[str, Tensor] = {}
    for index, entry in enumerate(response.outputs):
        what = f"output '{entry.name}'"
        check(entry.datatype in DATATYPES, f"{what}: a datatype of the protocol", entry.datatype)
        check(entry.name not in found, "each output once", f"'{entry.name}' twice")
        shape = tuple(entry.shape)
        if raw:
            check(not entry.contents.ByteSize(), f"{what}: raw or typed contents", "both")
            found[entry.name] = read_raw(entry.name, entry.datatype, shape, raw[index])
            continue
        contents = DATATYPES[entry.datatype].contents
        check(contents, f"{what}: {entry.datatype} in raw_output_contents", "no raw_output_contents")
        data = list(getattr(entry.contents, contents))
        check(len(data) == math.prod(shape), f"{what}: {math.prod(shape)} elements for {list(shape)}", len(data))
        found[entry.name] = Tensor(entry.name, entry.datatype, shape, data)
    return found


def rpc_refused(call: Callable[[], Any], *codes: grpc.StatusCode) -> RpcError:
    """The error of a call that must fail, with one of the codes if any are given."""
    try:
        response = call()
    except RpcError as error:
        wanted = " or ".join(code.name for code in codes)
        check(not codes or error.code in codes, f"status {wanted}", str(error))
        return error
    raise Failure("a status other than OK", f"OK: {str(response)[:300]}")


def stream_outcome(call: Callable[[], list[Any]]) -> Iterator[str]:
    """The errors of a stream: those in its messages, then the status that it ends with, if not OK."""
    try:
        yield from (response.error_message for response in call() if response.error_message)
    except RpcError as error:
        yield str(error)
