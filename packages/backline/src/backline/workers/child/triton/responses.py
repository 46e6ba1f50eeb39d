"""Responses, and the sender with which a model responds to a request."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from backline.workers.channel.protocol import Parameter
from backline.workers.child.requests import WorkerRequest
from backline.workers.child.triton.errors import TritonError, TritonModelException, to_backline
from backline.workers.child.triton.tensor import Tensor
from backline_client.values import tensor as engine
from backline_client.values.errors import ModelFailed

#: The flag of `InferenceResponseSender.send` that marks the last response.
FINAL: Final = 1


class InferenceResponse:
    """A response: output tensors, or an error."""

    __slots__ = ("_error", "_outputs", "_parameters")

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None, parameters: Any = None
    ) -> None:
        for tensor in output_tensors:
            if tensor is None:
                raise TritonModelException("Output tensor for inference response should not be empty.")
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"InferenceResponse: an output tensor is a {type(tensor).__name__}, expected a"
                    " pb_utils.Tensor"
                )
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(
                f"InferenceResponse: the error is a {type(error).__name__}, expected a pb_utils.TritonError"
            )
        self._outputs = list(output_tensors)
        self._error = error
        self._parameters = read_parameters(parameters)

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """Returns the parameters as a JSON object, or "" if there are none."""
        return as_json(self._parameters)


class InferenceResponseSender:
    """Sends responses to one request. May be used on any thread, even after `execute` has returned.

    The request is open until its last response. If the sender is garbage-collected earlier, the request
    fails, because nothing can respond to it any more.
    """

    __slots__ = ("_closed", "_decoupled", "_lock", "_outputs", "_request", "_sent")

    def __init__(self, request: WorkerRequest, outputs: AbstractSet[str], *, decoupled: bool) -> None:
        self._request = request
        self._outputs = outputs
        self._decoupled = decoupled
        self._lock = threading.Lock()
        self._sent = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent, because the request has ended, failed or been rescheduled."""
        return self._closed

    def is_cancelled(self) -> bool:
        """Returns whether the request is cancelled."""
        return self._request.cancelled

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Sends a response. The flag TRITONSERVER_RESPONSE_COMPLETE_FINAL marks it as the last one; without a
        response, the flag ends the request.

        Blocks while the client does not read responses. Raises TypeError if `response` is not an
        InferenceResponse, and TritonModelException, with Triton's texts, if it cannot be sent.
        """
        if flags not in (0, FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if flags == 0 and response is None:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(
                f"send: the response is a {type(response).__name__}, expected a pb_utils.InferenceResponse"
            )
        with self._lock:
            self._check(response, flags)
            self._sent += response is not None
            self._closed = flags == FINAL
        if self._request.answered or self._request.cancelled:
            if flags == FINAL and not self._request.answered:
                self._request.end()
            return
        if response is None:
            self._request.end()
        elif response._error is not None:
            self._request.fail(to_backline(response._error))
        elif self._decoupled and flags == 0:
            self._request.send(self._tensors(response), response._parameters)
        else:
            self._request.answer(self._tensors(response), response._parameters)

    def _check(self, response: InferenceResponse | None, flags: int) -> None:
        if not self._decoupled:
            if response is not None and self._sent:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send more than one response."
                )
            if response is None and flags == FINAL and not self._sent:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send complete final before sending"
                    " a response."
                )
        if self._closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")

    def _tensors(self, response: InferenceResponse) -> list[engine.Tensor]:
        """Returns those outputs of a response that the request asks for."""
        return [tensor.to_engine() for tensor in response._outputs if tensor.name() in self._outputs]

    def reschedule(self) -> None:
        """Closes the sender without a last response, so that the request is run again."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and not self._request.answered:
            self._request.reschedule()

    def fail(self, text: str) -> None:
        """Fails the request, unless its last response was sent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and not self._request.answered:
            self._request.fail(ModelFailed(text))

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.fail(
                "the model sent no final response to the request, and no longer holds the request's response"
                " sender"
            )


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """Returns the output of this name in a response, or None if it is missing."""
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def read_parameters(given: Any) -> dict[str, Parameter]:
    """Reads parameters from a dict, a JSON object in text form, or None. Raises TritonModelException for
    other types, and ValueError for invalid JSON.
    """
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, Mapping):
        raise TritonModelException(f"Expect parameters to have type dict, found type {type(given)}")
    for key, value in given.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, float, str)):
            raise TritonModelException(
                f"Expect parameters values to have type bool/int/str, found type {type(value)}"
            )
    return dict(given)


def as_json(parameters: Mapping[str, Parameter]) -> str:
    """Encodes parameters as a JSON object, or as "" if there are none."""
    return json.dumps(parameters, ensure_ascii=False, separators=(",", ":")) if parameters else ""
