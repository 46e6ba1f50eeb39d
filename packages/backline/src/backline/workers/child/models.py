"""Clients inside a worker process, through which a model with a parameter `Models` calls other models. The
transport of these clients is the worker's channel.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any, NoReturn, TypeVar

import msgspec

from backline.engine.parameters import read_parameters
from backline.workers.channel.protocol import Described, RequestNote, Spec
from backline.workers.child.caller import Caller, ModelCall, Question
from backline.workers.child.requests import WorkerRequest
from backline_client.client.aio import AsyncClient
from backline_client.client.control import ModelControl
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelMetadata
from backline_client.client.sync import Client
from backline_client.client.transport import InferCall, Transport
from backline_client.values.control import Overrides
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Unsupported
from backline_client.values.messages import InferResponse, SequenceStep
from backline_client.values.signature import TensorSpec

T = TypeVar("T")
#: Options without a timeout: unless the model sets one, a call has the deadline of the request for which it
#: is made.
_OPTIONS = ClientOptions(timeout=inf)
_URL = "inproc:server"


class ModelsOfServer:
    """Creates clients for the model, one per request or batch. The clients share a cache of metadata."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._base = AsyncClient(_URL, _OPTIONS)

    def blocking(self, requests: Sequence[WorkerRequest]) -> Client:
        """Returns a client for a model whose `predict` is a plain function. It may be used on any thread."""
        return Client.over(self._base.through(BlockingTransport(self._caller, requests)), CallingThread())

    def awaitable(self, requests: Sequence[WorkerRequest]) -> AsyncClient:
        """Returns a client for a model whose `predict` is asynchronous."""
        return self._base.through(WorkerTransport(self._caller, requests))


class CallingThread:
    """Runs a client's coroutines on the calling thread. That is possible without an event loop, because the
    coroutines of a BlockingTransport never suspend.
    """

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to completion. Raises Unsupported if the coroutine suspends."""
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        coroutine.close()
        raise Unsupported("only an asynchronous model can wait for this: make its predict an `async def`")


def _for_clients(what: str) -> Callable[..., Coroutine[Any, Any, NoReturn]]:
    """Returns a method that raises Unsupported, because `what` is not available to models in workers."""

    async def refuse(*_: object) -> NoReturn:
        raise Unsupported(
            f"{what}: not available to a model, which can only call, load and unload other models;"
            " connect to the server with backline.connect(url)"
        )

    return refuse


class WorkerTransport(Transport):
    """The transport of asynchronous clients. `requests` are the worker's requests for which the calls are
    made.
    """

    def __init__(self, caller: Caller, requests: Sequence[WorkerRequest]) -> None:
        self._caller = caller
        self._requests = requests
        self._control = WorkerControl(self)

    @property
    def control(self) -> ModelControl:
        return self._control

    async def close(self) -> None:
        """Does nothing, because the channel belongs to the worker and must remain open."""

    async def infer(self, call: InferCall) -> InferResponse:
        return await self._caller.infer_async(self._call(call))

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        responses = self._caller.stream_async(self._call(call, whole=False))
        try:
            while (response := await responses.take(call.timeout)) is not None:
                yield response
        finally:
            responses.close()

    def _call(self, call: InferCall, *, whole: bool = True) -> ModelCall:
        """Converts a client's call to a ModelCall. With `whole`, the result has the call's timeout; otherwise
        it has none, because `stream` applies the timeout to each response.
        """
        parameters = read_parameters(call.parameters or {})
        step = parameters.sequence or SequenceStep(0)
        note = RequestNote(
            call.id or (self._requests[0].id if len(self._requests) == 1 else ""),
            parameters.others or {},
            None if call.outputs is None else list(call.outputs),
            timeout=call.timeout if whole and isfinite(call.timeout) else 0.0,
            priority=parameters.priority,
            sequence=step.id,
            sequence_start=step.start,
            sequence_end=step.end,
        )
        return ModelCall(
            call.model, call.inputs, call.version, self._requests, note, parameters.timeout or 0.0
        )

    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        async def send() -> None:
            await self.infer(call)

        return send

    async def ask(self, question: Question, timeout: float) -> Any:
        """Returns the server's answer to a question. Raises DeadlineExceeded after `timeout` seconds."""
        return await self._caller.ask_async(replace(question, requests=self._requests), timeout)

    async def server_live(self, timeout: float) -> bool:
        return True

    async def server_ready(self, timeout: float) -> bool:
        return bool(await self.ask(Question("ready"), timeout))

    async def model_ready(self, model: str, version: str, timeout: float) -> bool:
        return bool(await self.ask(Question("ready", model, version), timeout))

    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata:
        found = msgspec.convert(await self.ask(Question("describe", model, version), timeout), Described)
        return ModelMetadata(
            model, tuple(found.versions), found.platform, _specs(found.inputs), _specs(found.outputs)
        )

    server_metadata = _for_clients("the metadata of the server")
    model_config = _for_clients("the configuration of models")
    statistics = _for_clients("the statistics of models")
    repository_index = _for_clients("the list of models")


class BlockingTransport(WorkerTransport):
    """The transport of synchronous clients. Its coroutines block the thread, so they need no event loop."""

    async def infer(self, call: InferCall) -> InferResponse:
        return self._caller.infer(self._call(call))

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        responses = self._caller.stream(self._call(call, whole=False))
        try:
            while (response := responses.take(call.timeout)) is not None:
                yield response
        finally:
            responses.close()

    async def ask(self, question: Question, timeout: float) -> Any:
        return self._caller.ask(replace(question, requests=self._requests), timeout)


class WorkerControl(ModelControl):
    """The part of a client with which a model loads and unloads other models. All other methods raise
    Unsupported.
    """

    def __init__(self, transport: WorkerTransport) -> None:
        self._transport = transport

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        overrides = overrides or Overrides()
        files = {path: bytes(content) for path, content in overrides.files.items()}
        await self._transport.ask(Question("load", model, version, overrides.config, files), timeout)

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        await self._transport.ask(Question("unload", model, version, dependents=dependents), timeout)

    models = _for_clients("the list of models")
    labels = move_label = _for_clients("labels")
    history = _for_clients("the history of changes")
    audit = _for_clients("the audit log")
    refresh = _for_clients("the refresh of repositories")


def _specs(specs: Sequence[Spec]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            spec.name,
            DataType.from_name(spec.datatype),
            tuple(spec.shape),
            spec.optional,
            json=spec.json,
            column=spec.column,
        )
        for spec in specs
    )
