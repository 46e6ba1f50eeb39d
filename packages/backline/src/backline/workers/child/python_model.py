"""Python models in a worker process: a class or function in a `model.py`, whose type hints are the model's
signature.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import numpy as np

from backline.model import metrics, place
from backline.model.hints import DECODED_LIMIT, Models, Request, without_none
from backline.workers.channel.protocol import Kind, NumberList, WorkerLoad, WorkerLoaded
from backline.workers.child.caller import Caller, Measures
from backline.workers.child.model_code import ModelCode, find_model, import_file
from backline.workers.child.requests import RequestBatch, WorkerRequest
from backline.workers.child.tracebacks import details, reason
from backline.workers.child.triton import worker
from backline.workers.child.typed_values import TypedValue
from backline.workers.child.worker_model import WorkerModel
from backline_client.values.errors import BacklineError, Cancelled, Internal, InvalidArgument, ModelFailed
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.workers.child.decoder import Decoder
    from backline.workers.child.models import ModelsOfServer
    from backline.workers.joiner import Joiner

_STREAMS = (Iterator, Generator, AsyncIterator, AsyncGenerator)
#: The number of batches that an asynchronous model takes at the same time.
_CONCURRENCY = 64
#: The name of the class in a model for Triton's Python backend.
_TRITON_CLASS = "TritonPythonModel"
#: The folder of the module `triton_python_backend_utils`, which such models import.
_TRITON_API = Path(__file__).parent / "triton" / "importable"


def load(message: WorkerLoad, caller: Caller) -> WorkerModel:
    """Imports the file and creates its model. Raises any exception that the file raises, and InvalidArgument
    (or ModelFailed, if the model has a config.pbtxt) if the file has no valid model.
    """
    worker.begin(message, caller)
    place(message.device_kind, message.device_index)
    metrics.connect(Measures(caller), model=message.name, version=message.version)
    # This folder comes before the folders of installed packages, because an environment may contain a copy of
    # Triton's module that works only in editors.
    sys.path.insert(0, str(_TRITON_API))
    module = import_file(Path(message.path), Path(message.folder))
    if hasattr(module, _TRITON_CLASS):
        from backline.workers.child.triton.model import load_class

        return load_class(getattr(module, _TRITON_CLASS), message)
    try:
        code = find_model(module, message.path)
    except InvalidArgument as error:
        if not (Path(message.folder) / "config.pbtxt").is_file():
            raise
        # A model that has a configuration in Triton's format fails with Triton's error texts.
        name = f"{message.version}.{Path(message.path).stem}"
        raise ModelFailed(
            f"AttributeError: module '{name}' has no attribute '{_TRITON_CLASS}'; {error.message}"
        ) from None
    return PythonModel(code, message, caller)


class PythonModel:
    """A model that is either a class with `predict`, and optionally `load` and `unload`, or a function."""

    def __init__(self, code: ModelCode, message: WorkerLoad, caller: Caller) -> None:
        self._where = f"{Path(message.path).name}, {code.name}"
        self._folder = message.folder
        batch = message.max_batch_size
        if batch is None:
            batch = code.setting("max_batch_size") or 0
        self._batched = batch > 0
        self._read_hints(code)
        self._joiner = self._make_joiner(message)
        self._caller = caller
        self._models: ModelsOfServer | None = None
        if self._models_argument:
            # This is imported here, because only models that call others need the client.
            from backline.workers.child.models import ModelsOfServer

            self._models = ModelsOfServer(caller)
        if (limit := code.setting("memory_limit_bytes")) is not None:
            caller.tell(Kind.LIMIT, NumberList([limit]))
        self._object = None if code.owner is None else code.owner()
        self._predict: Callable[..., Any] = code.predict if self._object is None else self._object.predict
        _finish(getattr(self._object, "load", None))
        self.loaded = WorkerLoaded(
            [value.spec for name, value in self._inputs.items() if name not in self._hidden],
            [value.spec for value in self._outputs],
            batch,
            decoupled=self._stream,
            concurrency=_CONCURRENCY if self._asynchronous else 1,
            warnings=[
                f"{Path(message.path).name} of model '{message.name}': {warning}"
                for warning in code.misspelt()
            ],
            instances=code.setting("instances"),
            idempotent=message.idempotent if message.idempotent is not None else code.setting("idempotent"),
            execution_timeout_seconds=code.setting("execution_timeout_seconds"),
            joins=self._joiner is not None,
        )

    def _make_joiner(self, message: WorkerLoad) -> Joiner | None:
        """Returns the joiner for the model's requests, or None if the configuration has no rules for joining.
        Raises InvalidArgument if the rules do not fit the model.

        The type hint of a hidden input describes the whole input, rather than one item of it.
        """
        joining = message.joining
        self._hidden = frozenset() if joining is None else joining.hidden_inputs
        self._flat = frozenset() if joining is None else frozenset(joining.scattered)
        if joining is None:
            return None
        if self._stream:
            raise InvalidArgument(
                f"{self._where} yields any number of responses per request, so requests cannot be joined:"
                " remove ragged inputs, batch_input, batch_output, padding, cut and allowed_batch_sizes from"
                " the configuration"
            )
        batch = (-1,) if self._batched else ()
        inputs = tuple(
            self._joined_spec(value, () if name in self._hidden else batch)
            for name, value in self._inputs.items()
        )
        outputs = tuple(self._joined_spec(value, batch) for value in self._outputs)
        shapes = {spec.name: spec.shape for spec in outputs}
        from backline.workers.joiner import Joiner

        scattered = {name: shapes.get(name, ()) for name in joining.scattered}
        return Joiner(self._where, joining, Signature(inputs, outputs), scattered, batched=self._batched)

    def _joined_spec(self, value: TypedValue, batch: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(value.name, value.datatype, (*batch, *value.shape))

    def _read_hints(self, code: ModelCode) -> None:
        predict = code.predict
        hints = self._hints_of(predict)
        limit = code.setting("decoded_limit_bytes") or DECODED_LIMIT
        self._inputs: dict[str, TypedValue] = {}
        self._request_argument = self._models_argument = ""
        for parameter in code.parameters:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise InvalidArgument(
                    f"{self._where}: '{parameter}' cannot be an input; give every input its own name"
                )
            hint = without_none(hints.get(parameter.name))
            if hint is Request:
                self._request_argument = parameter.name
            elif hint is Models:
                self._models_argument = parameter.name
            else:
                optional = parameter.default is not parameter.empty
                self._inputs[parameter.name] = TypedValue.of(
                    parameter.name, hint, self._where, optional=optional, limit=limit
                )
        timeout = code.setting("decode_timeout_seconds")
        self._decoder: Decoder | None = None
        if any(value.media for value in self._inputs.values()):
            # This is imported here, because only models that take files need it.
            from backline.workers.child.decoder import DECODE_TIMEOUT, Decoder

            self._decoder = Decoder(timeout or DECODE_TIMEOUT)
            self._decoder.start()
        answer = hints.get("return")
        self._asynchronous = inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict)
        self._stream = get_origin(answer) in _STREAMS
        self._outputs, self._single = self._read_outputs(get_args(answer)[0] if self._stream else answer)
        if self._batched and (self._stream or self._request_argument):
            raise InvalidArgument(
                f"{self._where}: a model with max_batch_size sends one response and cannot take a Request;"
                " set max_batch_size to 0"
            )
        if self._batched and any(
            value.kind is not None for value in (*self._inputs.values(), *self._outputs)
        ):
            raise InvalidArgument(
                f"{self._where}: a model with max_batch_size takes and returns arrays; use BYTES[1] for text"
            )

    def _hints_of(self, annotated: Any) -> dict[str, Any]:
        try:
            return typing.get_type_hints(annotated)
        except Exception as error:  # hints in quotes are arbitrary expressions
            raise InvalidArgument(
                f"{self._where}: a type hint cannot be read: {type(error).__name__}: {error}"
            ) from None

    def _read_outputs(self, answer: Any) -> tuple[list[TypedValue], bool]:
        """Returns the outputs that the return type hint `answer` describes, and whether the hint is for a
        single value rather than a class with several.
        """
        is_class = (
            typing.is_typeddict(answer) or dataclasses.is_dataclass(answer) or hasattr(answer, "_fields")
        )
        if not (isinstance(answer, type) and is_class):
            return [TypedValue.of("output", answer, self._where, output=True)], True
        hints = self._hints_of(answer)
        return [TypedValue.of(name, hint, self._where, output=True) for name, hint in hints.items()], False

    # running batches

    def execute(self, batch: RequestBatch) -> Awaitable[None] | None:
        if self._asynchronous:
            return self._execute_async(batch)
        try:
            if self._takes_all(batch):
                self._execute_batch(batch)
            else:
                for request in batch.requests:
                    self._execute_alone(request)
        finally:
            self._end_calls(batch)
        return None

    def _takes_all(self, batch: RequestBatch) -> bool:
        """Returns whether the requests of a batch are run together, by one call of the model."""
        return self._joiner is not None or (self._batched and batch.columns is not None)

    def _batch_arguments(self, batch: RequestBatch) -> dict[str, Any]:
        if self._joiner is not None:
            return self._joined_arguments(self._joiner, batch.requests)
        return self._arguments(batch.columns or {}, batch.requests)

    def _answer_batch(self, batch: RequestBatch, answer: Any) -> None:
        if self._joiner is not None:
            self._answer_joined(self._joiner, batch.requests, answer)
        else:
            batch.answer(batch.requests, self._tensors(answer, batch.rows))

    def _joined_arguments(self, joiner: Joiner, requests: Sequence[WorkerRequest]) -> dict[str, Any]:
        arrays = joiner.join(*_given(requests))
        tensors = {
            name: Tensor(name, self._inputs[name].datatype, array.shape, array)
            for name, array in arrays.items()
        }
        return self._arguments(tensors, requests)

    def _answer_joined(self, joiner: Joiner, requests: Sequence[WorkerRequest], answer: Any) -> None:
        given, rows = _given(requests)
        tensors = self._tensors(answer, joiner.run_size(rows) if self._batched else None)
        outputs = joiner.split(
            given, rows, [tensor.name for tensor in tensors], [tensor.data for tensor in tensors]
        )
        for request, own in zip(requests, outputs, strict=True):
            pairs = zip(tensors, own, strict=True)
            request.answer([Tensor(t.name, t.datatype, array.shape, array) for t, array in pairs])

    def _execute_batch(self, batch: RequestBatch) -> None:
        """Runs all requests in one call of the model. If the call fails for several requests, and requests
        may run twice, runs each request separately, so that only invalid requests fail.
        """
        try:
            self._answer_batch(batch, self._predict(**self._batch_arguments(batch)))
        except BaseException as error:
            if len(batch.requests) == 1 or not self._may_repeat:
                raise
            del error
        for request in batch.requests:
            if not request.answered:
                self._execute_alone(request)

    @property
    def _may_repeat(self) -> bool:
        return self.loaded.idempotent is not False

    def _execute_alone(self, request: WorkerRequest) -> None:
        try:
            _check_awaited(request)
            answer = self._predict(**self._alone_arguments(request))
            if self._stream:
                for response in answer:
                    if request.cancelled:
                        break
                    request.send(self._tensors(response, None))
                request.end()
            else:
                self._answer_alone(request, answer)
        except BaseException as error:
            self._fail(request, error)

    def _alone_arguments(self, request: WorkerRequest) -> dict[str, Any]:
        if self._joiner is not None:
            return self._joined_arguments(self._joiner, (request,))
        return self._arguments(request.inputs, (request,))

    def _answer_alone(self, request: WorkerRequest, answer: Any) -> None:
        if self._joiner is not None:
            self._answer_joined(self._joiner, (request,), answer)
        else:
            request.answer(self._tensors(answer, request.rows if self._batched else None))

    async def _execute_async(self, batch: RequestBatch) -> None:
        try:
            if self._takes_all(batch):
                await self._execute_batch_async(batch)
            await asyncio.gather(
                *(self._execute_alone_async(request) for request in batch.requests if not request.answered)
            )
        finally:
            self._end_calls(batch)

    async def _execute_batch_async(self, batch: RequestBatch) -> None:
        try:
            self._answer_batch(batch, await self._predict(**self._batch_arguments(batch)))
        except BaseException as error:
            if len(batch.requests) == 1 or not self._may_repeat:
                raise
            del error

    async def _execute_alone_async(self, request: WorkerRequest) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "it is a coroutine"
        request.on_abandon = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            _check_awaited(request)
            answer = self._predict(**self._alone_arguments(request))
            if self._stream:
                async for response in answer:
                    if request.cancelled:
                        break
                    await request.send_async(self._tensors(response, None))
                if inspect.isasyncgen(answer):
                    await answer.aclose()
                request.end()
            else:
                self._answer_alone(request, await answer)
        except BaseException as error:
            self._fail(request, error)

    def _arguments(self, inputs: Mapping[str, Tensor], requests: Sequence[WorkerRequest]) -> dict[str, Any]:
        arguments = {
            name: self._inputs[name].to_python(tensor, self._decoder) for name, tensor in inputs.items()
        }
        if self._request_argument:
            request = requests[0]
            arguments[self._request_argument] = Request(
                request.id,
                request.parameters,
                request.sequence,
                request.sequence_start,
                request.sequence_end,
                json.loads(request.trace or "{}"),
            )
        if self._models is not None:
            make = self._models.awaitable if self._asynchronous else self._models.blocking
            arguments[self._models_argument] = make(requests)
        return arguments

    def _end_calls(self, batch: RequestBatch) -> None:
        """Cancels calls of other models that were made for the batch and are still in flight."""
        if self._models is not None:
            self._caller.end_calls(batch.requests)

    def _tensors(self, answer: Any, rows: int | None) -> Sequence[Tensor]:
        if self._single:
            values: Mapping[str, Any] = {self._outputs[0].name: answer}
        elif isinstance(answer, Mapping):
            values = answer
        else:
            values = answer._asdict() if hasattr(answer, "_asdict") else getattr(answer, "__dict__", {})
        missing = [output.name for output in self._outputs if output.name not in values]
        if missing:
            raise Internal(
                f"{self._where} returned a {type(answer).__name__} without output '{missing[0]}', which its"
                " type hints name"
            )
        try:
            return [
                output.to_flat(values[output.name])
                if output.name in self._flat
                else output.to_tensor(values[output.name], rows)
                for output in self._outputs
            ]
        except (TypeError, ValueError) as error:
            raise Internal(
                f"{self._where} returned a value that contradicts its type hints: {error}"
            ) from None

    def _fail(self, request: WorkerRequest, error: BaseException) -> None:
        if request.answered:
            return
        if request.cancelled and isinstance(error, asyncio.CancelledError):
            error = Cancelled("the request was cancelled")
        if isinstance(error, BacklineError):
            request.fail(error)
            return
        print(details(error), file=sys.stderr, flush=True)
        request.fail(Internal(reason(error, self._folder)))

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        _finish(getattr(self._object, "unload", None))


def _given(requests: Sequence[WorkerRequest]) -> tuple[list[dict[str, np.ndarray]], list[int]]:
    arrays = [{name: tensor.data for name, tensor in request.inputs.items()} for request in requests]
    return arrays, [request.rows for request in requests]


def _check_awaited(request: WorkerRequest) -> None:
    """Raises Cancelled if the request was cancelled before it started."""
    if request.cancelled:
        raise Cancelled("the request was cancelled")


def _finish(hook: Any) -> None:
    """Calls a hook of the model if the model defines it. If the hook returns a coroutine, runs the coroutine
    to completion.
    """
    if hook is None:
        return
    result = hook()
    if inspect.iscoroutine(result):
        asyncio.get_event_loop().run_until_complete(result)
