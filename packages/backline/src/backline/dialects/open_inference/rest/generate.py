"""The generate extension, and inference as a stream of events: `generate`, `generate_stream`, `infer_stream`.

The JSON of the generate extension has inputs and outputs as keys and their elements as values; all other keys
are parameters. An element of a BYTES input is a string, or an object with base64 as in TensorFlow Serving:
{"b64": "..."}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import Raw

from backline.dialects.answers import JSON, respond_error
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.event_stream import EventStreams, encoded
from backline.dialects.exchange import ReadRequest, RequestIntake, deadline_of
from backline.dialects.input_plan import InputPlan, check_tensors
from backline.dialects.json_data import (
    MAX_DEPTH,
    decode_data,
    decode_list,
    encode_data,
    read_numbers,
    read_texts,
    without_words,
)
from backline.dialects.json_scan import check_keys, count_elements
from backline.dialects.off_loop import LARGE, LargeRequest, OffLoop, turn_of
from backline.dialects.open_inference.metadata import SCALAR
from backline.dialects.open_inference.plan import InferPlan, prefix
from backline.dialects.open_inference.planning import apply_parameters
from backline.dialects.open_inference.rest.messages import Decoded, instead_of_json
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.responses import Responses
from backline.engine.tracing import Trace
from backline.wire.application import HttpRequest
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument, PayloadTooLarge
from backline_client.values.messages import InferRequest, InferResponse, Parameter
from backline_client.values.signature import TensorSpec
from backline_client.values.spelling import nearest
from backline_client.values.tensor import Buffer, Shape, Tensor, element_count

if TYPE_CHECKING:
    from backline.dialects.open_inference.rest.service import RestInference

_Answer: TypeAlias = Callable[[HttpRequest, str, Responses, InferPlan], None]
_Take: TypeAlias = Callable[[HttpRequest, Buffer, Mapping[bytes, bytes], str, str, float | None], None]

NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that"
    " generates various number of responses"
)
#: The only key, except for those of inputs, whose value may be an object.
_PARAMETERS = "parameters"
#: The maximum number of parameters that are compared with the names of missing inputs.
_MOST_COMPARED = 32
#: The maximum length of names that are too short to be compared letter by letter, such as "x" and "X1".
_SHORT = 2
#: The maximum number of inputs and parameters in one object. Each value is decoded separately, so a larger
#: number would block the event loop for too long.
MAX_PARAMETERS = 2048
#: Matches a flat, non-empty list of numbers and words in well-formed JSON.
_FLAT = re.compile(rb"\[[^\[\]{\"]*[^\[\]{\"\s][^\[\]{\"]*\]").fullmatch
_encode = msgspec.json.Encoder().encode
_KINDS = {
    b"{": "an object",
    b"[": "a list",
    b'"': "a string",
    b"t": "true or false",
    b"f": "true or false",
    b"n": "null",
}


_JSON_KINDS = {"object": "an object", "list": "a list"}


class Generate:
    """Handles the routes `generate`, `generate_stream` and `infer_stream`."""

    def __init__(self, engine: Engine, deferred: DeferredAnswers, inference: RestInference) -> None:
        self._engine = engine
        self._deferred = deferred
        self._inference = inference
        self._carrier = inference.carrier
        self._off_loop = OffLoop()
        self._streams = EventStreams(self._off_loop)
        self._take_one = self._intake(self._read, self._answer_with_one)
        self._take_stream = self._intake(self._read, self._answer_with_events)
        self._take_infer = self._intake(inference.read, self._answer_with_infer_events)

    def generate(self, model: str, version: str, request: HttpRequest) -> None:
        """Sends the model's only response. If the model returns no response or several, sends an error."""
        self._when_known(model, version, request, self._take_one)

    def generate_stream(self, model: str, version: str, request: HttpRequest) -> None:
        """Streams the model's responses, one event for each."""
        self._when_known(model, version, request, self._take_stream)

    def infer_stream(self, model: str, version: str, request: HttpRequest) -> None:
        """Accepts what `infer` accepts; sends each response as an event, in the JSON form of `infer`."""
        self._when_known(model, version, request, self._take_infer)

    def _intake(self, read: ReadRequest[InferPlan], answer: _Answer) -> _Take:
        def submit(
            request: HttpRequest,
            deadline: float | None,
            trace: Trace | None,
            asked: InferRequest,
            plan: InferPlan,
        ) -> None:
            responses = self._submit(request, asked, deadline, trace)
            answer(request, asked.model_name, responses, plan)

        return RequestIntake(self._engine, self._carrier, read, submit, self._off_loop).take

    def _submit(
        self, request: HttpRequest, asked: InferRequest, deadline: float | None, trace: Trace | None
    ) -> Responses:
        """Submits a request. If an input is missing, the error names a key that may be the misspelt input."""
        admit = None if request.identity is None else request.identity.follow
        try:
            return self._engine.stream(asked, deadline, trace=trace, admit=admit, fields=request.headers)
        except InvalidArgument as error:
            model = self._engine.find(asked.model_name, asked.model_version)
            raise InvalidArgument(error.message + _misspelt(asked, model)) from None

    def _when_known(self, model: str, version: str, request: HttpRequest, take: _Take) -> None:
        def known() -> None:
            take(request, request.body, request.headers, model, version, deadline_of(request.headers))

        self._deferred.when_known(model, version, request, known)

    def _read(
        self, body: Buffer, headers: Mapping[bytes, bytes], model: str, version: str, on_loop: bool
    ) -> Decoded:
        """Reads a request of the generate extension (see ReadRequest)."""
        served = self._engine.find_ready(model, version)
        if on_loop and len(body) > LARGE:
            raise LargeRequest
        return read_generate(body, headers, served)

    def _answer_with_one(
        self, request: HttpRequest, model: str, responses: Responses, plan: InferPlan
    ) -> None:
        answering = _answer_with_one(request, responses, self._off_loop, plan)
        self._streams.run(request, model, responses, answering)

    def _answer_with_events(
        self, request: HttpRequest, model: str, responses: Responses, plan: InferPlan
    ) -> None:
        self._streams.answer(request, model, responses, partial(write_generate, plan))

    def _answer_with_infer_events(
        self, request: HttpRequest, model: str, responses: Responses, plan: InferPlan
    ) -> None:
        self._streams.answer(request, model, responses, partial(self._infer_event, plan))

    def _infer_event(self, plan: InferPlan, response: InferResponse) -> bytes:
        _, (body, *binary) = self._inference.write(plan, response)
        if binary:
            raise InvalidArgument(
                "an event cannot carry binary data: request the outputs as JSON, or use gRPC's"
                " ModelStreamInfer"
            )
        return bytes(body)


async def _answer_with_one(
    request: HttpRequest, responses: Responses, off_loop: OffLoop, plan: InferPlan
) -> None:
    try:
        response = await anext(responses, None)
        if response is None or await anext(responses, None) is not None:
            raise Internal(NOT_ONE)
        body = await encoded(off_loop, turn_of(request), partial(write_generate, plan), response)
    except BacklineError as error:
        respond_error(request, error)
    else:
        request.respond(200, [(b"content-type", JSON)], [body], compressible=True)


def _misspelt(asked: InferRequest, model: Model) -> str:
    """Returns the end of an error about missing inputs: the name of a parameter that may be one of them,
    misspelt.

    Empty if no parameter resembles a missing input.
    """
    missing = [
        spec.name for spec in model.signature.inputs if not spec.optional and spec.name not in asked.inputs
    ]
    return "".join(
        f" '{key}' names no input, so it is a parameter: did you mean '{near[0]}'?"
        for key in islice(asked.parameters or (), _MOST_COMPARED)
        if (near := _near(key, missing))
    )


def _near(key: str, names: Sequence[str]) -> list[str]:
    """Returns the name that a key may be, misspelt; of two short names, any is near the other."""
    return nearest(key, names) or [name for name in names if max(len(name), len(key)) <= _SHORT][:1]


class _Key:
    """A key of an object, equal only to itself, so that a dict keeps duplicate keys."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


_decode = msgspec.json.Decoder(dict[_Key, Raw], dec_hook=lambda _, text: _Key(text)).decode
_any = msgspec.json.Decoder()
_skip = msgspec.json.Decoder(Raw).decode


def read_generate(body: Buffer, headers: Mapping[bytes, bytes], model: Model) -> Decoded:
    """Reads the request in `body`. Raises InvalidArgument, with Triton's texts, and PayloadTooLarge for too
    many keys.

    As in Triton, keys that name inputs are tensors, `id` is the request's id, and all other keys are
    parameters. The keys in the object `parameters` are read in the same way.
    """
    if len(body) > LARGE:
        check_keys(body)
    try:
        document = _parse(body)
    except InvalidArgument as error:
        rewritten = without_words(body)
        if rewritten is None:
            raise InvalidArgument(error.message + instead_of_json(body, headers)) from None
        document = _parse(rewritten)
    _check_count(document)
    inputs = {spec.name: spec for spec in model.signature.inputs}
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {}
    for key, value in document.items():
        if key.text == _PARAMETERS and _PARAMETERS not in inputs:
            if _first(value) != b"{":
                raise InvalidArgument(
                    f"Expected JSON object for keyword: '{_PARAMETERS}': it is {_kind(value)}"
                )
            given = _decode(value)
            _check_count(given)
            for name, part in given.items():
                try:
                    _take(name.text, part, inputs, tensors, parameters)
                except InvalidArgument as error:
                    raise InvalidArgument(f"Converting keyword: '{_PARAMETERS}': {error.message}") from None
        else:
            _take(key.text, value, inputs, tensors, parameters)
    check_tensors(tensors)
    id = parameters.pop("id", "")
    if not isinstance(id, str):
        raise InvalidArgument(
            f"'id' must be a string, got {'true or false' if isinstance(id, bool) else 'a number'}"
        )
    plan = InferPlan(())
    plan.json_outputs = frozenset(spec.name for spec in model.signature.outputs if spec.json)
    if not parameters:
        return plan, id, tensors
    # Unlike `infer`, Triton's generate extension accepts parameters whose names start with "triton_".
    reserved = {key: value for key, value in parameters.items() if key.startswith("triton_")}
    apply_parameters(plan, {key: value for key, value in parameters.items() if key not in reserved})
    if reserved:
        plan.parameters = {**(plan.parameters or {}), **reserved}
    return plan, id, tensors


def _check_count(keys: dict[_Key, Raw]) -> None:
    """Raises PayloadTooLarge for an object with more than MAX_PARAMETERS keys."""
    if len(keys) > MAX_PARAMETERS:
        raise PayloadTooLarge(
            f"the request JSON has {len(keys)} inputs and parameters in one object, more than the"
            f" {MAX_PARAMETERS} allowed. Send many values as one tensor"
        )


def write_generate(plan: InferPlan, response: InferResponse) -> bytes:
    """Encodes a response as JSON: a single element as itself, several elements as a flat list.

    Raises InvalidArgument for values that JSON cannot represent, and Internal for an output that must be JSON
    but is not.
    """
    document: dict[str, Any] = {
        tensor.name: _value(tensor, is_json=tensor.name in plan.json_outputs) for tensor in response.outputs
    }
    document.update(response.parameters or {})
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.id:
        document["id"] = response.id
    return _encode(dict(sorted(document.items())))


def _parse(body: Buffer) -> dict[_Key, Raw]:
    """Returns the keys with undecoded values, because how to decode a tensor depends on the model's input."""
    if not body:
        raise InvalidArgument("the body is empty, expected a JSON object with inputs by name")
    try:
        try:
            return _decode(body)
        except msgspec.ValidationError:
            kind = _kind(_skip(body))  # raises if the text is not well-formed JSON
    except RecursionError:
        raise InvalidArgument("failed to parse the request JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"failed to parse the request JSON buffer: {error}") from None
    raise InvalidArgument(
        f"failed to parse the request JSON: it is {kind}, expected an object with inputs by name"
    )


def _take(
    key: str,
    value: Raw,
    inputs: dict[str, TensorSpec],
    tensors: dict[str, Tensor],
    parameters: dict[str, Parameter],
) -> None:
    spec = inputs.get(key)
    if spec is not None:
        if key in tensors:
            raise InvalidArgument(f"{prefix('')}input '{key}' already exists in request")
        tensors[key] = _tensor(spec, value)
        return
    if _first(value) in (b"{", b"[", b"n"):
        near = _near(key, [name for name in inputs if name not in tensors])
        hint = f" '{key[:64]}' names no input: did you mean '{near[0]}'?" if near else ""
        raise InvalidArgument(
            f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'.{hint}"
        )
    parameters[key] = _plain(f"parameter '{key}'", value)


def _plain(what: str, text: Raw | bytes, *, strings: bool = True) -> Any:
    """Decodes well-formed JSON. Raises InvalidArgument if a number is out of range. `strings` is as for
    `decode_list`.
    """
    try:
        return decode_list(_any, text, strings=strings) if _first(text) == b"[" else _any.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"Unable to parse the value of {what}: {error}") from None


def _tensor(spec: TensorSpec, value: Raw) -> Tensor:
    text = bytes(value)
    if len(text) <= LARGE and (numbers := read_numbers(spec.datatype, text)) is not None:
        shape = _shape(spec, len(numbers))
        if element_count(shape) == len(numbers):
            return Tensor(spec.name, spec.datatype, shape, numbers.reshape(shape))
    if spec.json and _kind(value) == _JSON_KINDS[spec.json]:
        return _decoded(spec, 1, _encode(_text(spec, value)))
    if _first(value) == b"n" and spec.datatype is DataType.BYTES:  # null is not text, whatever the shape
        return decode_data(InputPlan(spec.name, spec.datatype.name, (1,)), b"[null]", f"$.{spec.name}")
    if _first(value) == b"{":
        if spec.datatype is DataType.BYTES:
            return _decoded(spec, 1, text)
        raise _no_shape(spec, ": it is an object, expected one element or a list of them")
    if len(text) > LARGE and _first(value) == b"[":
        return _decoded(spec, count_elements(text), text)
    if spec.datatype.dtype.kind == "f" and _FLAT(text):
        return _decoded(spec, text.count(b",") + 1, text)
    decoded = _plain(
        f"input '{spec.name}'",
        text if _first(value) in b'["' else b"[" + text + b"]",
        strings=spec.datatype is DataType.BYTES,
    )
    elements = decoded if isinstance(decoded, list) else [decoded]
    for _ in range(MAX_DEPTH):
        if not any(isinstance(element, list) for element in elements):
            break
        elements = list(
            chain.from_iterable(element if isinstance(element, list) else [element] for element in elements)
        )
    try:
        return _decoded(spec, len(elements), _encode(elements))
    except UnicodeEncodeError:
        raise InvalidArgument(f"the JSON of input '{spec.name}' has unpaired surrogates") from None


def _text(spec: TensorSpec, value: Raw) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the JSON of input '{spec.name}' is not UTF-8 text: {error.reason}") from None


def _decoded(spec: TensorSpec, count: int, text: bytes) -> Tensor:
    plan = InputPlan(spec.name, spec.datatype.name, _shape(spec, count))
    return decode_data(plan, text, f"$.{spec.name}")


def _shape(spec: TensorSpec, count: int) -> Shape:
    """Returns a shape for `count` elements: the innermost variable dimension gets all elements that the fixed
    dimensions leave, and other variable dimensions are 1. Raises InvalidArgument if no such shape exists.
    """
    shape = list(spec.shape or SCALAR)
    for dimension in shape:
        if dimension > 0:
            if count % dimension:
                raise _no_shape(spec)
            count //= dimension
    for index in reversed(range(len(shape))):
        if shape[index] < 0:
            shape[index], count = count, 1
    if count != 1 and 0 not in spec.shape:
        raise _no_shape(spec)
    return tuple(shape)


def _no_shape(spec: TensorSpec, detail: str = "") -> InvalidArgument:
    return InvalidArgument(
        f"The schema can not convert input '{spec.name}' to tensor with proper shape{detail}"
    )


def _value(tensor: Tensor, *, is_json: bool) -> Any:
    values = read_texts(tensor) if is_json and tensor.datatype is DataType.BYTES else encode_data(tensor)
    if isinstance(values, Raw):
        return Raw(bytes(values)[1:-1]) if tensor.data.size == 1 else values
    if is_json:
        try:
            values = [_skip(text) for text in values]
        except (ValueError, RecursionError) as error:
            raise Internal(
                f"output '{tensor.name}' must be JSON, but the model returned other text: {error}"
            ) from None
    return values[0] if len(values) == 1 else values


def _first(value: Raw | bytes) -> bytes:
    return bytes(memoryview(value)[:1])


def _kind(value: Raw) -> str:
    return _KINDS.get(_first(value), "a number")
