"""Runs TorchServe's model archives in a worker process. A handler gets the rows of all requests in a batch,
and returns one result for each row.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from backline.dialects.bodies.multipart import MAX_PARTS, media_type, read_multipart
from backline.plugins.runtimes.torchserve import compat
from backline.plugins.runtimes.torchserve.compat.ts import __version__ as compatible_version
from backline.plugins.runtimes.torchserve.compat.ts.context import Context, RequestProcessor
from backline.plugins.runtimes.torchserve.compat.ts.metrics.metrics_store import MetricsStore
from backline.plugins.runtimes.torchserve.compat.ts.utils.util import list_classes_from_module
from backline.workers.channel.protocol import Spec, WorkerLoad, WorkerLoaded
from backline.workers.child.caller import Caller
from backline.workers.child.requests import RequestBatch, WorkerRequest
from backline.workers.child.worker_model import WorkerModel
from backline_client.system.file_lock import hold
from backline_client.values.datatypes import DataType
from backline_client.values.errors import (
    BacklineError,
    Cancelled,
    Internal,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    Unsupported,
)
from backline_client.values.tensor import Tensor

#: The settings of TorchServe's front end that have no effect in Backline, with the reasons.
_WITHOUT_EFFECT = {
    "startupTimeout": "loads have no timeout",
    "parallelType": "a model runs in one process",
    "parallelLevel": "a model runs in one process",
    "maxRetryTimeoutInSec": "the server decides when workers restart",
    "clientTimeoutInMills": "each request sets its deadline",
    "jobQueueSize": "set max_queue_size in the configuration of the model",
    "useJobTicket": "set max_queue_size in the configuration of the model",
    "useVenv": "a model's requirements file decides its environment",
}
#: Unsupported settings that cannot be ignored, because they change a model's results.
_UNSERVED = ("sequenceBatching", "continuousBatching", "asyncCommunication")


class ArchiveSettings:
    """The settings in model-config.yaml. `document` is the whole file, which handlers read as well. Raises
    InvalidArgument for unsupported settings and values of the wrong type.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        wrong = next((key for key in _UNSERVED if document.get(key)), None)
        if wrong is not None:
            raise InvalidArgument(
                f"model-config.yaml: {wrong} is not supported; remove it if the model works without it"
            )
        #: The maximum number of requests in a batch, or 0 for single requests without a batch dimension.
        self.batch_size = size if (size := self._number("batchSize", 1)) > 1 else 0
        self.max_queue_delay_us = self._number("maxBatchDelay", 0) * 1000 if self.batch_size else 0
        self.workers = self._number("minWorkers", 0) or self._number("maxWorkers", 0) or None
        timeout = self._number("responseTimeout", 0)
        self.response_timeout = float(timeout) if timeout else None
        self.warnings = [
            f"model-config.yaml: {key} has no effect: {why}"
            for key, why in _WITHOUT_EFFECT.items()
            if key in document
        ]

    def _number(self, key: str, default: int) -> int:
        value = self.document.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgument(
                f"model-config.yaml: {key} is {value!r}, expected a whole number of at least 0"
            )
        return value


INPUT, OUTPUT = "data", "output"
#: The parameter that every request over TorchServe's REST APIs has (see `_row`), and that over gRPC (see
#: `_row_of_fields`).
EXPLAIN, FIELDS = "explain", ":fields"
#: The parameter of a response with the HTTP status that the handler has set.
STATUS = ":status"
_BUILT_IN = ("base_handler", "image_classifier", "image_segmenter", "object_detector", "text_classifier")
_ENVELOPES = ("body", "json", "kserve", "kservev2")
#: The envelopes that take one request at a time.
_ALONE = ("kserve", "kservev2")
_ERRORS: Mapping[int, type[BacklineError]] = {
    404: NotFound,
    413: PayloadTooLarge,
    501: Unsupported,
    503: Unavailable,
}

Handle = Callable[[list[dict[str, Any]], Context], Any]


def load(message: WorkerLoad, caller: Caller) -> WorkerModel:
    """Imports and initialises the handler of an unpacked archive. Raises any exception that the handler
    raises, and InvalidArgument if the handler or a setting is invalid.
    """
    folder = Path(message.path)
    if sys.platform != "win32":
        hold(folder)
    # A model that is being debugged shares the process with its earlier loads, whose modules are removed
    # here.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{folder.parent}{os.sep}"):
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    if find_spec("ts") is None:  # TorchServe is not installed
        sys.path.append(str(Path(compat.__file__).parent))
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))
    settings = ArchiveSettings(json.loads(message.parameters["model-config"]))
    batch = settings.batch_size if message.max_batch_size is None else message.max_batch_size
    context = Context(
        message.name,
        str(folder),
        manifest,
        max(batch, 1),
        message.device_index if message.device_kind == "gpu" else None,
        compatible_version,
        metrics=MetricsStore(None, message.name),
        model_yaml_config=settings.document,
    )
    return TorchServeModel(
        _handler(manifest["model"]["handler"], folder, context), context, message, settings, batch
    )


def _handler(name: str, folder: Path, context: Context) -> Handle:
    """Imports the handler `name`, and returns the initialised function that handles batches: a function of
    the module, or a method of its only class with a method `handle`.
    """
    module_name, _, function = name.partition(":")
    module_name = module_name.rpartition("/")[2].removesuffix(".py")
    if (folder / f"{module_name}.py").is_file() or (folder / module_name).is_dir():
        module = importlib.import_module(module_name)
    else:
        module = _built_in(module_name)
    entry = getattr(module, function or "handle", None)
    if callable(entry):
        entry(None, context)
        return entry  # type: ignore[no-any-return]
    classes = [one for one in list_classes_from_module(module) if callable(getattr(one, "handle", None))]
    if len(classes) != 1:
        found = ", ".join(one.__name__ for one in classes) or "none"
        raise InvalidArgument(
            f"handler '{name}': expected a function handle(data, context),"
            f" or one class with a method of that name; found {found}"
        )
    instance = classes[0]()
    if callable(getattr(instance, "initialize", None)):
        instance.initialize(context)
    return instance.handle  # type: ignore[no-any-return]


def _built_in(name: str) -> Any:
    if name not in _BUILT_IN:
        raise InvalidArgument(
            f"the archive does not contain its handler '{name}.py',"
            f" and no built-in handler has that name; the built-in handlers are {', '.join(_BUILT_IN)}"
        )
    try:
        return importlib.import_module(f"ts.torch_handler.{name}")
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f"the built-in handler '{name}' needs the package '{error.name}', which is not installed: add it"
            " to the archive's requirements.txt"
        ) from None


class TorchServeModel:
    """A model that runs a handler on rows made from input tensors. The handler's results become the output
    tensor.
    """

    def __init__(
        self, handle: Handle, context: Context, message: WorkerLoad, settings: ArchiveSettings, batch: int
    ) -> None:
        envelope = message.parameters.get("service_envelope", "")
        if envelope:
            handle = _in_envelope(envelope, handle)
        self._handle = handle
        self._context = context
        self._together = batch > 0 and envelope not in _ALONE
        self._may_repeat = message.idempotent is not False
        inputs = message.inputs or [Spec(INPUT, DataType.BYTES.name, [1])]
        outputs = message.outputs or [Spec(OUTPUT, DataType.BYTES.name, [1])]
        if len(outputs) != 1 or outputs[0].datatype != DataType.BYTES.name:
            raise InvalidArgument(
                "the configuration of a model archive may name only one output,"
                " of TYPE_STRING, for the results of the handler"
            )
        self._output = outputs[0].name
        self._batched = batch > 0
        policy = json.loads(message.configuration or "{}").get("model_transaction_policy", {})
        self._decoupled = bool(policy.get("decoupled"))
        if self._decoupled and self._batched:
            raise InvalidArgument(
                "a model archive that is decoupled takes one request at a time: set max_batch_size to 0"
            )
        self.loaded = WorkerLoaded(
            inputs,
            outputs,
            batch,
            decoupled=self._decoupled,
            platform="torchserve",
            warnings=settings.warnings,
            instances=settings.workers,
            execution_timeout_seconds=settings.response_timeout,
            max_queue_delay_us=settings.max_queue_delay_us,
        )

    def execute(self, batch: RequestBatch) -> None:
        """Runs all requests in one call of the handler. If that call fails for several requests, and requests
        may run twice, runs each request separately.
        """
        if self._together and len(batch.requests) > 1:
            try:
                self._answer(batch.requests)
                return
            except Exception as error:
                if not self._may_repeat:
                    raise
                print(
                    f"a batch of {len(batch.requests)} failed, so its requests run one by one: {error!r}",
                    file=sys.stderr,
                    flush=True,
                )
        for request in batch.requests:
            if not request.answered:
                try:
                    self._answer([request])
                except Exception as error:
                    if len(batch.requests) == 1:
                        raise
                    said = f"{type(error).__name__}: {error}"
                    request.fail(error if isinstance(error, BacklineError) else Internal(said))

    def _answer(self, requests: Sequence[WorkerRequest]) -> None:
        rows: list[dict[str, Any]] = []
        processors: list[RequestProcessor] = []
        ids: dict[int, str] = {}
        for request in requests:
            header = {name: str(value) for name, value in request.parameters.items()}
            as_fields = header.pop(FIELDS, None) is not None
            count = request.rows if self._batched else 1
            for row in range(count):
                ids[len(rows)] = request.id or str(request.number)
                if as_fields:
                    rows.append(_row_of_fields(request.inputs[INPUT].data.reshape(-1)[row]))
                elif EXPLAIN in header:
                    rows.append(_row(request.inputs[INPUT].data.reshape(-1)[row], header))
                else:
                    rows.append(
                        {
                            name: value
                            for tensor in request.inputs.values()
                            for name, value in self._fields(tensor, row, header)
                        }
                    )
                processors.append(RequestProcessor(header))
        context = self._context
        if self._decoupled:
            context.send_intermediate = partial(self._send, requests[0])
        context.request_ids = context.metrics.request_ids = ids
        context.request_processor = processors
        answers = self._run(rows)
        start = 0
        for request in requests:
            end = start + (request.rows if self._batched else 1)
            self._complete(request, answers[start:end], processors[start:end])
            start = end

    def _fields(self, tensor: Tensor, row: int, header: Mapping[str, str]) -> Sequence[tuple[str, Any]]:
        """Returns the fields of a row as pairs of name and value. Values of numeric inputs are arrays. The
        bytes of the input "data" are decoded according to the content type of the request, and also returned
        as the field "body".
        """
        data = tensor.data[row] if self._batched else tensor.data
        if tensor.datatype is not DataType.BYTES:
            return [(tensor.name, data)]
        value: Any = data.reshape(-1)[0] if data.size == 1 else data.tolist()
        if tensor.name != INPUT:
            return [(tensor.name, value)]
        value = _decoded(value, header)
        return [(INPUT, value), ("body", value)]

    def _run(self, rows: list[dict[str, Any]]) -> list[Any]:
        try:
            answers = self._handle(rows, self._context)
        except Exception as error:
            code = getattr(error, "error_code", None)
            if type(error).__name__ == "PredictionException" and isinstance(code, int):
                raise _error(code, str(getattr(error, "message", error))) from error
            raise
        if not isinstance(answers, list):
            raise Internal(
                f"Invalid model predict output: the handler returned a {type(answers).__name__},"
                f" expected a list with one result for each of {len(rows)} rows"
            )
        if len(answers) != len(rows):
            raise Internal(
                "number of batch response mismatched:"
                f" the handler returned {len(answers)} results for {len(rows)} rows"
            )
        return answers

    def _complete(
        self, request: WorkerRequest, answers: Sequence[Any], processors: Sequence[RequestProcessor]
    ) -> None:
        plain = _is_of_torchserve(request)
        encoded = [_encoded(answer, indent=2 if plain else None) for answer in answers]
        parameters = dict(processors[0].get_response_headers())
        for content, processor in zip(encoded, processors, strict=True):
            status = processor.get_response_status_code()
            if plain and status != 200:
                parameters[STATUS] = str(status)
            elif status >= 400:
                phrase = processor.get_response_status_phrase() or content.decode("utf-8", "replace")
                request.fail(_error(status, phrase))
                return
        if self._decoupled:
            request.send([self._tensor(encoded)], parameters)
            request.end()
        else:
            request.answer([self._tensor(encoded)], parameters)

    def _send(self, request: WorkerRequest, answer: Any) -> None:
        """Sends a response other than the last. If the request is cancelled, raises Cancelled, which ends the
        handler.
        """
        if request.cancelled:
            raise Cancelled("the request was cancelled")
        indent = 2 if _is_of_torchserve(request) else None
        request.send([self._tensor([_encoded(answer, indent=indent)])])

    def _tensor(self, encoded: Sequence[bytes]) -> Tensor:
        data = np.empty(len(encoded), np.object_)
        data[:] = encoded
        shape = (len(encoded), 1) if self._batched else (1,)
        return Tensor(self._output, DataType.BYTES, shape, data.reshape(shape))

    def close(self) -> None:
        """Does nothing, because handlers have no hook for unloading."""


def _in_envelope(name: str, handle: Handle) -> Handle:
    if name not in _ENVELOPES:
        raise InvalidArgument(
            f"parameter 'service_envelope' is '{name}', expected one of {', '.join(_ENVELOPES)}"
        )
    module = importlib.import_module(f"ts.torch_handler.request_envelope.{name}")
    (envelope,) = list_classes_from_module(module)
    return envelope(handle).handle  # type: ignore[no-any-return]


def _decoded(value: bytes, header: Mapping[str, str]) -> Any:
    """Decodes a body as JSON, text or bytes, by the content type in `header`. Raises InvalidArgument if the
    body is invalid.
    """
    given = next((text for name, text in header.items() if name.lower() == "content-type"), "")
    kind = given.partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return json.loads(value)
        return value.decode() if kind.startswith("text/") else value
    except ValueError as error:
        raise InvalidArgument(f"input '{INPUT}' is not {kind}: {error}") from None


def _is_of_torchserve(request: WorkerRequest) -> bool:
    """Returns whether a request came over one of TorchServe's APIs."""
    return EXPLAIN in request.parameters or FIELDS in request.parameters


def _row_of_fields(body: bytes) -> dict[str, Any]:
    """Returns the row that a gRPC client sent, field by field. Raises InvalidArgument if it is malformed."""
    try:
        fields = msgspec.msgpack.decode(body, type=dict[str, bytes])
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"the fields of the row are malformed: {error}") from None
    return {name: bytearray(value) for name, value in fields.items()}


def _row(body: bytes, header: Mapping[str, str]) -> dict[str, Any]:
    """Returns the row that TorchServe makes of a body: the fields of a form, or else the field "body".

    Raises InvalidArgument for a malformed form.
    """
    given = next((text for name, text in header.items() if name.lower() == "content-type"), "")
    kind, attributes = media_type(given.encode("latin-1", "replace"))
    if kind == "multipart/form-data":
        parts = read_multipart(body, attributes.get("boundary", ""))
        return {part.name: bytearray(part.body) for part in parts}
    if kind == "application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(body, max_num_fields=MAX_PARTS)
        except ValueError:
            raise InvalidArgument(f"the form has more than {MAX_PARTS} fields") from None
        return {name.decode("utf-8", "replace"): bytearray(value) for name, value in pairs}
    if kind == "application/json":
        with contextlib.suppress(ValueError, RecursionError):
            return {"body": json.loads(body)}
    if kind.startswith("text/"):
        with contextlib.suppress(ValueError):
            return {"body": body.decode()}
    return {"body": bytearray(body)}


def _encoded(answer: Any, *, indent: int | None = None) -> bytes:
    """Encodes a result as TorchServe does: bytes and text unchanged, everything else as JSON. With `indent`,
    the JSON is in TorchServe's own form. Raises Internal if the result has no JSON form.
    """
    if isinstance(answer, (bytes, bytearray)):
        return bytes(answer)
    if isinstance(answer, str):
        return answer.encode()
    try:
        return json.dumps(answer, indent=indent, ensure_ascii=indent is not None, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise Internal(
            "Unsupported model output data type."
            f" The handler returned a {type(answer).__name__} that is neither bytes, text nor JSON: {error}"
        ) from None


def _plain(value: Any) -> Any:
    """Converts arrays, tensors and their scalars to lists and numbers, which have a JSON form."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")


def _error(status: int, message: str) -> BacklineError:
    return _ERRORS.get(status, InvalidArgument if status < 500 else Internal)(message)
