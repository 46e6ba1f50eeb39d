"""An engine with small numpy models, and HTTP requests and gRPC calls without a wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from backline.dialects.application import build_application
from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState, Placement, Serving
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline.wire.application import (
    Application,
    Buffer,
    Fields,
    HttpRequest,
    ResponseStream,
    StreamCall,
    UnaryCall,
)
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor

Compute = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
OIP = b"/inference.GRPCInferenceService/"


def arrived_at(ns: int) -> Ticket:
    """The ticket of a request that arrived at this time.monotonic_ns()."""
    return Ticket(InferRequest("add1", {}, arrived_ns=ns), lambda *_: None)


class NumpyQueue:
    """Runs each request immediately, or holds it until it is released."""

    def __init__(self, model: Model, compute: Compute) -> None:
        self._model = model
        self._compute = compute
        self.held: list[Ticket] | None = None
        self.seen: list[Ticket] = []
        self.full = False

    @property
    def pending(self) -> int:
        return len(self.held or ())

    def submit(self, ticket: Ticket) -> None:
        if self.full:
            raise Unavailable("Exceeds maximum queue size", retry_after=2)
        self.seen.append(ticket)
        if self.held is None:
            self._run(ticket)
        else:
            self.held.append(ticket)

    def hold(self) -> None:
        self.held = []

    def release(self, index: int = 0) -> None:
        assert self.held is not None
        self._run(self.held.pop(index))

    def _run(self, ticket: Ticket) -> None:
        if ticket.cancelled:
            return
        request = ticket.request
        try:
            arrays = self._compute({name: tensor.data for name, tensor in request.inputs.items()})
        except BacklineError as error:
            ticket.complete(None, error)
            return
        outputs = [
            Tensor(spec.name, spec.datatype, arrays[spec.name].shape, arrays[spec.name])
            for spec in self._model.signature.outputs
            if request.outputs is None or spec.name in request.outputs
        ]
        ticket.complete(InferResponse(self._model.name, self._model.version, request.id, outputs), None)


def add_model(
    engine: Engine,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    compute: Compute,
    *,
    version: str = "1",
    max_batch_size: int = 0,
) -> Model:
    model = Model(
        name,
        version,
        ModelConfig(name, backend="numpy", platform="numpy_function", default_model_filename="model.npy"),
    )
    model.signature = Signature(tuple(inputs), tuple(outputs))
    model.max_batch_size = max_batch_size
    model.placement = Placement("inline", 2, max_batch_size)
    check = RequestCheck(name, model.signature, max_batch_size, strict=True)
    model.serving = Serving(check, NumpyQueue(model, compute))
    model.state = ModelState.READY
    engine.add(model)
    return model


def _fail(_: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise Internal("the runtime failed: out of luck")


def _break(_: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"OUTPUT0": "no array"}  # type: ignore[dict-item]


def fill_engine() -> Engine:
    engine = Engine()
    row = TensorSpec("INPUT0", DataType.FP32, (-1, 16))
    for version in ("1", "2"):
        add_model(
            engine,
            "add1",
            [row],
            [TensorSpec("OUTPUT0", DataType.FP32, (-1, 16))],
            lambda arrays: {"OUTPUT0": arrays["INPUT0"] + 1},
            version=version,
            max_batch_size=64,
        )
    add_model(
        engine,
        "pair",
        [TensorSpec("A", DataType.INT32, (2,)), TensorSpec("B", DataType.INT32, (2,))],
        [TensorSpec("SUM", DataType.INT32, (2,)), TensorSpec("DIFFERENCE", DataType.INT32, (2,))],
        lambda arrays: {"SUM": arrays["A"] + arrays["B"], "DIFFERENCE": arrays["A"] - arrays["B"]},
    )
    add_model(
        engine,
        "animals",
        [TensorSpec("SCORES", DataType.FP32, (-1, 4))],
        [TensorSpec("CLASSES", DataType.FP32, (-1, 4), labels=("cat", "dog", "owl"))],
        lambda arrays: {"CLASSES": arrays["SCORES"]},
        max_batch_size=8,
    )
    for name, compute in (("failing", _fail), ("broken", _break)):
        add_model(
            engine, name, [row], [TensorSpec("OUTPUT0", DataType.FP32, (-1, 16))], compute, max_batch_size=8
        )
    for datatype in DataType:
        for rank in range(4):
            shape = (-1,) * rank
            add_model(
                engine,
                f"echo_{datatype.name}_{rank}",
                [TensorSpec("INPUT0", datatype, shape)],
                [TensorSpec("OUTPUT0", datatype, shape)],
                lambda arrays: {"OUTPUT0": arrays["INPUT0"]},
            )
    loading = Model("loading", "1", ModelConfig("loading"))
    loading.state = ModelState.LOADING
    loading.reason = "reading the file"
    engine.add(loading)
    engine.declare("empty")
    engine.refresh()
    engine.started()
    return engine


@dataclass
class HttpAnswer:
    status: int
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> object:
        size = self.fields.get(b"inference-header-content-length")
        return json.loads(self.body if size is None else self.body[: int(size)])

    @property
    def error(self) -> str:
        document = json.loads(self.body)
        assert list(document) == ["error"], document
        return document["error"]


class FakeHttpRequest(HttpRequest):
    """Keeps its response."""

    def __init__(
        self,
        method: bytes,
        path: bytes,
        headers: dict[bytes, bytes],
        body: Buffer,
        query: bytes = b"",
        peer: str = "",
    ) -> None:
        super().__init__(method, path, query, headers, body)
        self._peer = peer
        self.answer: HttpAnswer | None = None
        self.answered = asyncio.Event()
        self.streamed = asyncio.Event()
        self.buffers: Sequence[Buffer] = ()

    @property
    def peer(self) -> str:
        return self._peer

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        assert self.answer is None, "answered twice"
        self.buffers = body
        self.answer = HttpAnswer(status, dict(fields), b"".join(body))
        self.answered.set()

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        self.streamed.set()
        raise ConnectionResetError("streams go nowhere here")


class FakeUnaryCall(UnaryCall):
    """Keeps its response."""

    def __init__(self, metadata: dict[bytes, bytes] | None = None, deadline: float | None = None) -> None:
        super().__init__(metadata or {}, deadline)
        self.message: bytes | None = None
        self.code: int | None = None
        self.error = ""
        self.answered = asyncio.Event()

    @property
    def peer(self) -> str:
        return "local"

    def reply(self, message: Buffer, *rest: Buffer) -> None:
        assert self.code is None, "answered twice"
        self.code = 0
        self.message = b"".join((message, *rest))
        self.answered.set()

    def fail(self, code: int, message: str, trailers: Fields = ()) -> None:
        assert self.code is None, "answered twice"
        self.code = code
        self.error = message
        self.answered.set()


class FakeStreamCall(StreamCall):
    """A stream whose client is a pair of queues."""

    def __init__(self, metadata: dict[bytes, bytes] | None = None) -> None:
        super().__init__(metadata or {}, None)
        self.requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.responses: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> Buffer | None:
        return await self.requests.get()

    async def send(self, message: Buffer) -> None:
        await self.responses.put(bytes(message))


class Caller:
    """Calls an application without a wire."""

    def __init__(self, engine: Engine, application: Application) -> None:
        self.engine = engine
        self.application = application

    def http(
        self, method: str, path: str, body: Buffer = b"", headers: dict[bytes, bytes] | None = None
    ) -> FakeHttpRequest:
        path, _, query = path.partition("?")
        request = FakeHttpRequest(method.encode(), path.encode(), headers or {}, body, query.encode())
        self.application.http(request)
        return request

    def get(self, path: str) -> HttpAnswer:
        answer = self.http("GET", path).answer
        assert answer is not None
        return answer

    def post(self, path: str, body: Buffer = b"", header_length: int | None = None) -> HttpAnswer:
        headers = {} if header_length is None else {b"inference-header-content-length": b"%d" % header_length}
        answer = self.http("POST", path, body, headers).answer
        assert answer is not None
        return answer

    async def get_later(self, path: str) -> HttpAnswer:
        """As `get`, for a response that comes later."""
        request = self.http("GET", path)
        await request.answered.wait()
        assert request.answer is not None
        return request.answer

    async def post_large(self, path: str, body: Buffer) -> HttpAnswer:
        """As `post`, for a body that may be read off the event loop."""
        request = self.http("POST", path, body)
        await request.answered.wait()
        assert request.answer is not None
        return request.answer

    def infer(self, model: str, document: object, binary: bytes | None = None) -> HttpAnswer:
        header = json.dumps(document).encode()
        if binary is None:
            return self.post(f"/v2/models/{model}/infer", header)
        return self.post(f"/v2/models/{model}/infer", header + binary, len(header))

    def call(self, path: bytes, received: Buffer) -> FakeUnaryCall:
        call = FakeUnaryCall()
        self.application.rpc[path].handler(call, received)  # type: ignore[arg-type]
        return call

    def rpc(self, method: str, **fields: object):
        """The response message of a method of the inference service."""
        call = self.rpc_call(method, **fields)
        assert call.code == 0, (call.code, call.error)
        assert call.message is not None
        return message(f"inference.{method}Response").FromString(call.message)

    async def rpc_later(self, method: str, **fields: object):
        """As `rpc`, for a response that comes later."""
        call = self.rpc_call(method, **fields)
        await call.answered.wait()
        assert call.code == 0, (call.code, call.error)
        assert call.message is not None
        return message(f"inference.{method}Response").FromString(call.message)

    def rpc_infer(self, **fields: object):
        """The response message of ModelInfer."""
        call = self.rpc_call("ModelInfer", **fields)
        assert call.code == 0, (call.code, call.error)
        return message("inference.ModelInferResponse").FromString(call.message)

    def rpc_call(self, method: str, **fields: object) -> FakeUnaryCall:
        return self.call(
            OIP + method.encode(), message(f"inference.{method}Request")(**fields).SerializeToString()
        )


def make_caller() -> Caller:
    async def page() -> tuple[bytes, list[bytes]]:
        return b"text/plain; charset=utf-8", [b"metric 1\n", b"other 2\n"]

    engine = fill_engine()
    return Caller(engine, build_application(engine, page))
