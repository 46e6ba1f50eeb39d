"""Requests that a model receives, and requests that it makes to call other models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, Final, Self

from backline.workers.channel.protocol import Parameter, RequestNote
from backline.workers.child.answers import CallStream
from backline.workers.child.caller import ModelCall, Question
from backline.workers.child.requests import WorkerRequest
from backline.workers.child.triton import worker
from backline.workers.child.triton.errors import TritonError, TritonModelException, to_triton
from backline.workers.child.triton.responses import (
    InferenceResponse,
    InferenceResponseSender,
    as_json,
    read_parameters,
)
from backline.workers.child.triton.tensor import Tensor
from backline_client.values.errors import BacklineError, Cancelled, DecoupledModel, NotFound
from backline_client.values.messages import InferResponse


class ResponseIterator:
    """An iterator over the responses to a call. A failed call ends with a response that has an error.

    As in Triton, the iterator ends with an empty response if the called model ended its stream in a separate
    message, after its last response.
    """

    def __init__(self, call: ModelCall, responses: CallStream) -> None:
        self._call = call
        self._responses = responses
        self._told_end = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferenceResponse:
        try:
            response = self._responses.take()
        except BacklineError as error:
            return _failure(self._call, error)
        if response is not None:
            return _response(response)
        if self._told_end or not self._responses.ended_alone:
            raise StopIteration
        self._told_end = True
        return InferenceResponse()

    def cancel(self) -> None:
        """Cancels the call. Responses that have already arrived can still be read."""
        self._responses.close()

    def __del__(self) -> None:
        with suppress(BacklineError, RuntimeError, AttributeError):
            self._responses.close()


def load_model(model_name: str, config: str = "", files: Mapping[str, bytes] | None = None) -> None:
    """Loads or reloads a model. `config` (JSON) replaces the configuration in the repository. `files`
    (contents by names such as "file:1/model.onnx") replace its files.

    Returns once the model is loaded. Raises TritonModelException with the reason if the load fails.
    """
    contents = {path.removeprefix("file:"): bytes(content) for path, content in (files or {}).items()}
    _ask(Question("load", model_name, config=config or None, files=contents))


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unloads a model. If the model is an ensemble, `unload_dependents` also unloads the models that it
    calls and that no other ensemble calls. Raises TritonModelException with the reason if the unload fails.
    """
    _ask(Question("unload", model_name, dependents=unload_dependents))


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Returns whether a model can serve; False also for an unknown model."""
    return bool(_ask(Question("ready", model_name, model_version)))


def _ask(question: Question) -> object:
    try:
        return worker.caller().ask(question)
    except NotFound as error:
        if question.what == "ready":
            return False
        raise TritonModelException(error.message) from None
    except BacklineError as error:
        raise TritonModelException(error.message) from None


def _response(response: InferResponse) -> InferenceResponse:
    return InferenceResponse(
        [Tensor.of(tensor) for tensor in response.outputs], parameters=response.parameters
    )


def _failure(call: ModelCall, error: BacklineError) -> InferenceResponse:
    if isinstance(error, DecoupledModel):
        said = TritonError(
            f"Model {call.model} - Error when running inference: Model {call.model} is using the decoupled."
            " The current BLS request call doesn't support models using the decoupled transaction policy."
            " Please use 'decoupled=True' argument to the 'exec' or"
            " 'async_exec' calls for decoupled models.'"
        )
        return InferenceResponse(error=said)
    if isinstance(error, Cancelled):
        return InferenceResponse(error=TritonError(error.message, TritonError.CANCELLED))
    said = to_triton(error)
    if error.refused:
        why = said.message()
        if why.startswith(f"Request for unknown model: '{call.model}' "):
            # Triton gives a calling model the text that clients get, with a prefix.
            why = f"Failed for execute the inference request. Model '{call.model}' is not ready. {why}"
        said = TritonError(f"Model {call.model} - Error when running inference: {why}", said.code())
    return InferenceResponse(error=said)


#: The numbers of the traced requests that `execute` is running. The value applies to the thread of `execute`,
#: and to the coroutines that `execute` starts.
_SERVED: ContextVar[tuple[int, ...]] = ContextVar("served", default=())

#: The trace context of a call whose spans are not added to any request's trace.
_NOWHERE = "{}"


class InferenceTrace:
    """The trace of a request. A model passes it on to the models that it calls."""

    __slots__ = ("_context", "_number")

    def __init__(self, request: WorkerRequest | None = None) -> None:
        self._context = "" if request is None else request.trace
        self._number = request.number if request is not None and request.trace else 0

    def get_context(self) -> str | None:
        """Returns the OpenTelemetry context as JSON, with `traceparent`, or None if the request has none."""
        return None if self._context in ("", _NOWHERE) else self._context

    @property
    def requests(self) -> tuple[int, ...]:
        """The numbers of the requests to whose traces a call belongs; by default, the requests that `execute`
        is running.
        """
        return (self._number,) if self._number else _SERVED.get()


@contextmanager
def serving(requests: Sequence[WorkerRequest]) -> Iterator[None]:
    """Assigns the calls made in the `with` block to the traces of these requests.

    This includes calls by coroutines started in the block, but not calls that name another trace.
    """
    token = _SERVED.set(tuple(request.number for request in requests if request.trace))
    try:
        yield
    finally:
        _SERVED.reset(token)


#: The bits of a request's `flags`.
SEQUENCE_START: Final = 1
SEQUENCE_END: Final = 2
#: The possible arguments of `set_release_flags`.
RELEASE_ALL: Final = 1
RELEASE_RESCHEDULE: Final = 2


class MemoryType(IntEnum):
    """Types of memory, with Triton's numbers."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


TRITONSERVER_MEMORY_GPU: Final = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU: Final = MemoryType.TRITONSERVER_MEMORY_CPU


class PreferredMemory:
    """The memory for the outputs of a call. It is always CPU memory, because workers use no other."""

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        """Raises TritonModelException for GPU memory."""
        if MemoryType(preferred_memory_type) is MemoryType.TRITONSERVER_MEMORY_GPU:
            raise TritonModelException(
                "PreferredMemory: tensors of worker processes are in CPU memory;"
                " ask for TRITONSERVER_MEMORY_CPU and move the tensor to the GPU"
            )
        self.preferred_memory_type = MemoryType(preferred_memory_type)
        self.preferred_device_id = preferred_device_id


class InferenceRequest:
    """A request that the model received, or one that it creates to call another model. `correlation_id` is
    the id of the request's sequence, or 0 for none. `timeout` is in microseconds.
    """

    __slots__ = (
        "_correlation_id",
        "_flags",
        "_id",
        "_inputs",
        "_model_name",
        "_model_version",
        "_outputs",
        "_parameters",
        "_release_flags",
        "_request",
        "_sender",
        "_timeout",
        "_trace",
    )

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] | None = None,
        requested_output_names: Sequence[str] | None = None,
        model_name: str | None = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Any = None,
    ) -> None:
        """Creates a request to the model `model_name`. With version -1, the server chooses the version.

        Raises TypeError if `inputs`, `requested_output_names` or `model_name` is missing, and
        TritonModelException for invalid values.
        """
        if inputs is None or requested_output_names is None or model_name is None:
            raise TypeError("InferenceRequest: inputs, requested_output_names and model_name must be given")
        if type(correlation_id) not in (int, str):
            raise TritonModelException("Correlation ID must be integer or string")
        where = f"for request with id '{request_id}' and model name '{model_name}' should not be empty."
        if any(tensor is None for tensor in inputs):
            raise TritonModelException(f"Input tensor {where}")
        if any(not isinstance(name, str) for name in requested_output_names):
            raise TypeError(
                f"InferenceRequest: requested_output_names are {list(requested_output_names)}, expected"
                " strings"
            )
        if not all(requested_output_names):
            raise TritonModelException(f"Requested output name {where}")
        self._id = request_id
        self._correlation_id = correlation_id
        self._inputs: list[Tensor] | None = list(inputs)
        self._outputs = frozenset(requested_output_names)
        self._model_name = model_name
        self._model_version = int(model_version)
        self._flags = flags
        self._timeout = int(timeout)
        self._trace = trace or InferenceTrace()
        self._parameters: dict[str, Parameter] = read_parameters(parameters)
        self._release_flags = RELEASE_ALL
        self._request: WorkerRequest | None = None
        self._sender: InferenceResponseSender | None = None

    @classmethod
    def received(
        cls, request: WorkerRequest, model: str, version: int, outputs: frozenset[str], *, decoupled: bool
    ) -> InferenceRequest:
        """Wraps a request that this model received; `outputs` are all outputs of the model."""
        made = cls.__new__(cls)
        made._id = request.id
        made._correlation_id = request.sequence
        made._inputs = None
        made._outputs = outputs if request.wanted is None else frozenset(request.wanted)
        made._model_name = model
        made._model_version = version
        made._flags = SEQUENCE_START * request.sequence_start | SEQUENCE_END * request.sequence_end
        made._timeout = request.queue_timeout_us
        made._trace = InferenceTrace(request)
        made._parameters = dict(request.parameters)
        made._release_flags = RELEASE_ALL
        made._request = request
        made._sender = InferenceResponseSender(request, made._outputs, decoupled=decoupled)
        return made

    def inputs(self) -> list[Tensor]:
        if self._inputs is None:
            assert self._request is not None, "it was received"
            self._inputs = [Tensor.of(tensor) for tensor in self._request.inputs.values()]
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def flags(self) -> int:
        """Returns the flags that are set, combined by bitwise OR: TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
        and TRITONSERVER_REQUEST_FLAG_SEQUENCE_END.
        """
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        """Returns how long the request may wait in the queue, in microseconds, or 0 for no limit."""
        return self._timeout

    def parameters(self) -> str:
        """Returns the parameters as a JSON object. As in Triton, returns "" if the model itself created this
        request, without parameters.
        """
        return as_json(self._parameters) or ("" if self._request is None else "{}")

    def trace(self) -> InferenceTrace:
        return self._trace

    def requested_output_names(self) -> set[str]:
        """Returns the names of the requested outputs, or of all outputs if the request names none."""
        return set(self._outputs)

    def model_name(self) -> str:
        return self._model_name

    def get_response_sender(self) -> InferenceResponseSender:
        """Returns the sender for responses that are not returned from `execute`. Raises TritonModelException
        for a request that the model created itself.
        """
        if self._sender is None:
            raise TritonModelException("only a request that was passed to `execute` has a response sender")
        return self._sender

    def is_cancelled(self) -> bool:
        """Returns whether the request is cancelled."""
        return self._request is not None and self._request.cancelled

    # calling another model

    def exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """Calls the model and waits for its response. With `decoupled`, returns an iterator over the
        responses. If the call fails, the response has an error.
        """
        call = self._call()
        if decoupled:
            return ResponseIterator(call, worker.caller().stream(call))
        try:
            return _response(worker.caller().infer(call))
        except BacklineError as error:
            return _failure(call, error)

    async def async_exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """The asynchronous counterpart of `exec`."""
        call = self._call()
        if decoupled:
            return ResponseIterator(call, worker.caller().stream(call))
        try:
            return _response(await worker.caller().infer_async(call))
        except BacklineError as error:
            return _failure(call, error)

    def _call(self) -> ModelCall:
        note = RequestNote(
            self._id,
            self._parameters,
            list(self._outputs),
            sequence=self._correlation_id,
            sequence_start=bool(self._flags & SEQUENCE_START),
            sequence_end=bool(self._flags & SEQUENCE_END),
        )
        version = str(self._model_version) if self._model_version > 0 else ""
        inputs = [tensor.to_engine() for tensor in self.inputs()]
        traced = self._trace.requests
        return ModelCall(
            self._model_name, inputs, version, note=note, queue_timeout=self._timeout / 1e6, traced=traced
        )

    # releasing the request

    def set_release_flags(self, flags: int) -> None:
        """Sets what happens to the request after `execute` has returned. With
        TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, the request is run again; with the default,
        TRITONSERVER_REQUEST_RELEASE_ALL, it is not. Raises TritonModelException for other flags.
        """
        if flags not in (RELEASE_ALL, RELEASE_RESCHEDULE):
            raise TritonModelException(
                f"set_release_flags: {flags} is neither RELEASE_ALL nor RELEASE_RESCHEDULE"
            )
        self._release_flags = flags

    @property
    def release_flags(self) -> int:
        """The flags set by `set_release_flags`."""
        return self._release_flags


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """Returns the input of this name in a request, or None if it is missing."""
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)
