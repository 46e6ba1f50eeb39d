"""Calls of other models of the server: business logic scripting, in Triton's terms."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Self

from backline.engine.errors import BacklineError, Cancelled, DecoupledModel, NotFound
from backline.engine.messages import InferResponse
from backline.workers.child.answers import CallStream
from backline.workers.child.caller import ModelCall, Question
from backline.workers.child.triton import worker
from backline.workers.child.triton.errors import TritonError, TritonModelException, to_triton
from backline.workers.child.triton.responses import InferenceResponse
from backline.workers.child.triton.tensor import Tensor


def infer(call: ModelCall) -> InferenceResponse:
    """The only response, which carries the error if there is one. Blocks."""
    try:
        return _response(worker.caller().infer(call))
    except BacklineError as error:
        return _failure(call, error)


async def infer_async(call: ModelCall) -> InferenceResponse:
    """`infer` for coroutines."""
    try:
        return _response(await worker.caller().infer_async(call))
    except BacklineError as error:
        return _failure(call, error)


def stream(call: ModelCall) -> ResponseIterator:
    """The responses one by one. The call starts at once."""
    return ResponseIterator(call, worker.caller().stream(call))


class ResponseIterator:
    """The responses to a call; an error is the last one. A reader that stops early may cancel the rest.

    If the called model ended its stream separately, after the last response, an empty response marks that, as
    in Triton.
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
        """Cancels further responses; those that have arrived can still be read."""
        self._responses.close()

    def __del__(self) -> None:
        with suppress(BacklineError, RuntimeError, AttributeError):
            self._responses.close()


def load_model(model_name: str, config: str = "", files: Mapping[str, bytes] | None = None) -> None:
    """Loads or reloads a model. `config` (JSON) and `files` (contents by "file:1/model.onnx") replace the
    repository's.

    Returns once it is loaded. Raises TritonModelException with the reason if that fails.
    """
    contents = {path.removeprefix("file:"): bytes(content) for path, content in (files or {}).items()}
    _ask(Question("load", model_name, config=config or None, files=contents))


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unloads a model, with `unload_dependents` also an ensemble's steps. Raises TritonModelException with
    the reason.
    """
    _ask(Question("unload", model_name, dependents=unload_dependents))


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model can serve."""
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
    return InferenceResponse(error=to_triton(error))
