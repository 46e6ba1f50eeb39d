"""Requests, and how stock clients send them: over HTTP, over gRPC, or on a gRPC stream."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from scenarios.gate import PATIENCE

#: What varies from run to run: durations, and the repository's folder.
_DURATION = re.compile(r"\b\d+ ms\b")
_FOLDER = re.compile(r"[\w./-]+/(?=model\.py\b)")


@dataclass(frozen=True, slots=True)
class Request:
    """One inference request.

    `options` are further arguments of the client's `infer`, such as `priority`, `timeout` (microseconds) or
    `sequence_id`.
    """

    model: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def without(self, name: str) -> Request:
        """The same request without one of its inputs."""
        return replace(self, inputs={other: array for other, array in self.inputs.items() if other != name})

    def arguments(self, client: ModuleType) -> dict[str, Any]:
        """Arguments for a client of the module `client`."""
        inputs = []
        for name, array in self.inputs.items():
            tensor = client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        outputs = (
            None if self.outputs is None else [client.InferRequestedOutput(name) for name in self.outputs]
        )
        return {"model_name": self.model, "inputs": inputs, "outputs": outputs, **self.options}


def answered(result: Any) -> dict[str, Any]:
    """A response as plain data: its outputs by name, and its id and parameters if it has any."""
    document = result.get_response()
    if not isinstance(document, dict):
        document = result.get_response(as_json=True)
    seen: dict[str, Any] = {}
    for output in document.get("outputs", ()):
        array = result.as_numpy(output["name"])
        seen[output["name"]] = _plain(array)
    if document.get("id"):
        seen["id"] = document["id"]
    parameters = {
        name: _value(value)
        for name, value in document.get("parameters", {}).items()
        if name != "binary_data_size"
    }
    if parameters:
        seen["parameters"] = dict(sorted(parameters.items()))
    return seen


def _plain(array: np.ndarray | None) -> Any:
    if array is None:
        return None
    if array.dtype == np.object_:
        array = np.array(
            [value.decode() if isinstance(value, bytes) else value for value in array.reshape(-1)], np.object_
        ).reshape(array.shape)
    return array.reshape(-1).tolist()[0] if array.size == 1 else array.tolist()


def _value(value: Any) -> Any:
    """A parameter's value: in protobuf's JSON an object's only field, with 64-bit numbers as strings."""
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        return int(inner) if kind.startswith("int64") else inner
    return value


def failed(error: InferenceServerException) -> dict[str, Any]:
    """An error as plain data: its status and its message, without what varies from run to run."""
    status, text = error.status(), plain_text(error.message() or "")
    if (
        status == "StatusCode.DEADLINE_EXCEEDED"
    ):  # the client or the server reports it, whichever notices first
        text = "the deadline passed"
    return {"status": status, "error": text}


def plain_text(text: str) -> str:
    return _FOLDER.sub("", _DURATION.sub("N ms", text))


class Pending:
    """A request in flight; `on_done` is called with its answer."""

    def __init__(self, request: Request, on_done: Callable[[Pending], None]) -> None:
        self.request = request
        self.outcome: dict[str, Any] = {}
        self._on_done = on_done
        self._done = threading.Event()
        #: Cancels the request.
        self.cancel: Callable[[], object] = lambda: None

    def answer(self, outcome: dict[str, Any]) -> None:
        self.outcome = outcome
        self._on_done(self)
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def done_within(self, seconds: float) -> bool:
        """Whether the answer arrives within `seconds`."""
        return self._done.wait(seconds)

    def result(self) -> dict[str, Any]:
        """The answer. Raises TimeoutError if none arrives."""
        if not self._done.wait(PATIENCE):
            raise TimeoutError(f"no answer from model '{self.request.model}'")
        return self.outcome


class Way(Protocol):
    """A way to send requests: one of the clients."""

    def send(self, pending: Pending) -> None:
        """Sends the request without waiting for the answer."""

    def close(self) -> None: ...


class Http:
    """tritonclient.http, with a thread and a client per request so that any number can be in flight."""

    def __init__(self, address: str) -> None:
        self._address = address

    def send(self, pending: Pending) -> None:
        threading.Thread(target=self._infer, args=(pending,), daemon=True).start()

    def _infer(self, pending: Pending) -> None:
        try:
            with tritonclient.http.InferenceServerClient(self._address) as client:
                outcome = answered(client.infer(**pending.request.arguments(tritonclient.http)))
        except InferenceServerException as error:
            outcome = failed(error)
        pending.answer(outcome)

    def close(self) -> None:
        pass


class Grpc:
    """tritonclient.grpc on a connection that has already served a request, unless `warm` is false."""

    def __init__(self, address: str, *, warm: bool = True) -> None:
        # gRPC channels with equal arguments share a connection, so each gets a distinct argument.
        own = [("grpc.use_local_subchannel_pool", 1)]
        self._client = tritonclient.grpc.InferenceServerClient(address, channel_args=own)
        if warm:
            self._client.is_server_live()

    def send(self, pending: Pending) -> None:
        def done(result: Any, error: InferenceServerException | None) -> None:
            pending.answer(answered(result) if error is None else failed(error))

        call = self._client.async_infer(callback=done, **pending.request.arguments(tritonclient.grpc))
        pending.cancel = call.cancel

    def close(self) -> None:
        self._client.close()


class Stream:
    """A gRPC stream and its responses in order."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self._received: queue.Queue[dict[str, Any]] = queue.Queue()
        self._client = tritonclient.grpc.InferenceServerClient(address)
        self._client.start_stream(self._receive, headers=headers)

    def _receive(self, result: Any, error: InferenceServerException | None) -> None:
        self._received.put(answered(result) if error is None else failed(error))

    def send(self, request: Request, *, empty_final: bool = False) -> None:
        arguments = request.arguments(tritonclient.grpc)
        self._client.async_stream_infer(enable_empty_final_response=empty_final, **arguments)

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next `count` responses. Raises queue.Empty if they do not arrive."""
        return [self._received.get(timeout=PATIENCE) for _ in range(count)]

    def close(self, *, cancel: bool = False) -> list[dict[str, Any]]:
        """Ends the stream and returns its remaining responses; idempotent.

        With `cancel`, requests in flight are cancelled rather than awaited.
        """
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()
        rest = []
        while not self._received.empty():
            rest.append(self._received.get())
        return rest
