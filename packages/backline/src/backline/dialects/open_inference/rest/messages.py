"""Reads inference requests over REST: JSON, followed by the tensors in binary form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from backline.dialects.input_plan import MAX_RANK, InputPlan, too_many_dimensions
from backline.dialects.json_data import decode_data, pack_numbers, without_words
from backline.dialects.json_scan import STEP, check_keys, count
from backline.dialects.off_loop import LARGE, MANY, LargeRequest
from backline.dialects.open_inference.plan import InferPlan, prefix, size_mismatch
from backline.dialects.open_inference.planning import PlanBuilder, apply_parameters, check_description
from backline.dialects.open_inference.rest.json_errors import ONE_SOURCE, unreadable
from backline.dialects.open_inference.shared_memory import REGION
from backline.engine.engine import Engine
from backline.engine.parameters import EMPTY_FINAL, RESERVED, WrongType
from backline.engine.shared_memory import SharedMemory
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.memo import Memo
from backline_client.values.tensor import Buffer, Shape, StringsMismatch, Tensor

HEADER_LENGTH = b"inference-header-content-length"
#: The maximum size in bytes of a JSON header whose plan is cached, and the maximum number of cached plans.
_MAX_REMEMBERED_SIZE = 1024
_MAX_REMEMBERED = 1024
_SIZE = "binary_data_size"
_ID_FIRST = b'{"id":"'
_DATA = b'"data":'
_BLANK = b" \t\r\n"
#: A request with one of these texts after its data is not cached, because a repeated key may replace the
#: data.
_DOUBTFUL = (b'"data"', b'"id"', b'"inputs"', b"\\")

Scalar = str | int | float | bool
#: A decoded request: its plan, its id, and its tensors by name.
Decoded = tuple[InferPlan, str, dict[str, Tensor]]


@decodable
class InputDocument(Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Scalar] = {}
    data: Raw = Raw()


@decodable
class LargeInputDocument(InputDocument):
    """An input of a large request. Its shape is decoded only after the JSON of the shape is known to be
    short.
    """

    shape: Raw  # type: ignore[assignment]


@decodable
class RequestedOutput(Struct):
    name: str
    parameters: dict[str, Scalar] = {}


@decodable
class RequestDocument(Struct):
    inputs: list[InputDocument]
    id: str = ""
    parameters: dict[str, Scalar] = {}
    outputs: list[RequestedOutput] | None = None


@decodable
class LargeRequestDocument(RequestDocument):
    inputs: list[LargeInputDocument]  # type: ignore[assignment]


class RestReader:
    """Reads requests. Plans of requests with small headers are cached, because clients repeat them.

    The header of a binary request is the cache key of its plan. For a request that is all JSON, with numbers
    for one input, the key is the text before the numbers, and the text after them must also be the same. The
    cached plan is used only if the numbers are well-formed JSON, so decoding the whole text would give the
    same plan.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._decoder = msgspec.json.Decoder(RequestDocument)
        self._large_decoder = msgspec.json.Decoder(LargeRequestDocument)
        self._plans: Memo[bytes, InferPlan] = Memo(_MAX_REMEMBERED)
        #: The plans of requests that are all JSON. The key is the text before the numbers, without the
        #: request's id; each plan is stored with the text that must follow the numbers.
        self._number_plans: Memo[bytes, tuple[InferPlan, bytes]] = Memo(_MAX_REMEMBERED)

    def read(
        self, body: Buffer, headers: Mapping[bytes, bytes], model: str, version: str, on_loop: bool
    ) -> Decoded:
        """Reads a request whose body starts with JSON (see ReadRequest)."""
        header_length = headers.get(HEADER_LENGTH)
        total = size = len(body)
        if header_length is not None:
            size = _parse_length(header_length, total)
            if size == 0:
                return self._read_raw(body, model, version)
        elif size <= LARGE:
            known = self._read_numbers(bytes(body))
            if known is not None:
                return known
        elif not on_loop:
            known = self._read_many_numbers(body, model, version)
            if known is not None:
                return known
        if size > _MAX_REMEMBERED_SIZE:
            if on_loop and size > LARGE:
                raise LargeRequest
            return self._read_document(memoryview(body)[:size], body, size, headers, model, version, on_loop)
        header = bytes(body[:size])
        id = ""
        plan = self._plans.get(header)
        if plan is None:
            id, key = split_id(header)
            if id:
                plan = self._plans.get(key)
            if plan is None:
                return self._read_document(header, body, size, headers, model, version, on_loop)
        if plan.single is not None:
            spec = plan.single
            if size + spec.size == total:
                return plan, id, {spec.name: spec.read(body, size, total)}
        if plan.large:
            self._check_large(plan, id, model, version, on_loop)
        if plan.shared is not None:
            plan = plan.holding(on_loop=on_loop)
        return plan, id, _read_binary(plan, body, size, model, id)

    def _read_numbers(self, text: bytes) -> Decoded | None:
        """Reads a request that differs from an earlier one only in its id and its input's values, without
        parsing the JSON. Returns None for any other request.
        """
        known = self._find_plan(text)
        if known is None:
            return None
        (plan, rest), id, start = known
        end = len(text) - len(rest)
        if text[end:] != rest:
            return None
        spec = plan.inputs[0]
        packed = pack_numbers(spec.datatype, text[start:end])
        if packed is None or len(packed) != spec.size:
            return None
        return plan, id, {spec.name: spec.read(packed, 0, spec.size)}

    def _read_many_numbers(self, body: Buffer, model: str, version: str) -> Decoded | None:
        """Reads a large request as `_read_numbers` does. Also returns None for nested lists and for numbers
        that do not fit the input.
        """
        known = self._find_plan(bytes(body[:_MAX_REMEMBERED_SIZE]))
        if known is None:
            return None
        (plan, rest), id, start = known
        end = len(body) - len(rest)
        data = bytes(body[start:end]).strip(_BLANK)
        spec = plan.inputs[0]
        flat = data[:1] == b"[" and data[1:2] != b"[" and data[-1:] == b"]"
        if not flat or body[end:] != rest or spec.datatype is DataType.BYTES:
            return None
        try:
            check_description(self._engine, model, version, id, plan)
            return plan, id, {spec.name: decode_data(spec, data, "")}
        except BacklineError:
            return None  # the caller reads the whole document, to find the error that comes first

    def _find_plan(self, text: bytes) -> tuple[tuple[InferPlan, bytes], str, int] | None:
        """Finds the plan of an earlier request with the same text before its input's numbers. `text` may be
        only the beginning of a request.

        Returns the plan with the text that must follow the numbers, the id, and where the numbers start.
        """
        start = text.find(_DATA, 0, _MAX_REMEMBERED_SIZE) + len(_DATA)
        if start < len(_DATA):
            return None
        key = text[:start]
        known = self._number_plans.get(key)
        if known is not None:
            return known, "", start
        id, key = split_id(key)
        known = self._number_plans.get(key) if id else None
        return None if known is None else (known, id, start)

    def _remember_numbers(self, header: Buffer, document: RequestDocument, plan: InferPlan) -> None:
        if len(plan.inputs) != 1 or plan.shared is not None or not plan.inputs[0].count:
            return
        beginning = bytes(header[:_MAX_REMEMBERED_SIZE])
        start = beginning.find(_DATA) + len(_DATA)
        if start < len(_DATA):
            return
        data = memoryview(document.inputs[0].data)
        begin = len(beginning) - len(beginning[start:].lstrip())
        end = begin + len(data)
        if len(header) - end > _MAX_REMEMBERED_SIZE or not _same(memoryview(header)[begin:end], data):
            return
        rest = bytes(header[end:])
        id, key = split_id(beginning[:start])
        doubtful = any(word in rest for word in _DOUBTFUL) or b'"id"' in key or b"\\" in key
        if id == document.id and not doubtful:
            self._number_plans.keep(key, (plan, rest))

    def _check_large(self, plan: InferPlan, id: str, model: str, version: str, on_loop: bool) -> None:
        if on_loop:
            raise LargeRequest
        check_description(self._engine, model, version, id, plan)

    def _read_document(
        self,
        header: Buffer,
        body: Buffer,
        size: int,
        headers: Mapping[bytes, bytes],
        model: str,
        version: str,
        on_loop: bool,
    ) -> Decoded:
        try:
            document = self._decode(header)
        except InvalidArgument as error:
            if HEADER_LENGTH in headers:
                raise
            raise InvalidArgument(error.message + instead_of_json(body, headers)) from None
        many = len(document.inputs) + len(document.outputs or ()) + len(document.parameters)
        if on_loop and many > MANY:
            raise LargeRequest
        plan = kept = make_plan(document, model, self._engine.shared_memory, len(body) - size)
        if plan.large or size > LARGE:
            self._check_large(plan, document.id, model, version, on_loop)
        if plan.shared is not None:
            plan = plan.holding(on_loop=on_loop)
        if None not in plan.declared:
            tensors = _read_binary(plan, body, size, model, document.id)
            if size <= _MAX_REMEMBERED_SIZE:
                id, key = split_id(bytes(header))
                if id == document.id:
                    self._plans.keep(key, kept)
            return plan, document.id, tensors
        tensors = {}
        for index, (spec, given, declared) in enumerate(
            zip(plan.inputs, document.inputs, plan.declared, strict=True)
        ):
            try:
                if declared is None:
                    tensors[spec.name] = decode_data(spec, bytes(given.data), f"$.inputs[{index}].data")
                else:
                    tensors[spec.name] = _read_declared(spec, declared, body, size, model)
                    size += declared
            except StringsMismatch as error:
                raise error.in_request(prefix(document.id), model) from None
        if size != len(body):
            raise _additional(model)
        if HEADER_LENGTH not in headers:
            self._remember_numbers(header, document, plan)
        return plan, document.id, tensors

    def _decode(self, header: Buffer) -> RequestDocument:
        if not header:
            raise InvalidArgument("the body is empty, expected a JSON object with the key 'inputs'")
        try:
            return self._decode_json(header)
        except InvalidArgument:
            rewritten = without_words(header)
            if rewritten is None:
                raise
        return self._decode_json(rewritten)

    def _decode_json(self, header: Buffer) -> RequestDocument:
        try:
            if len(header) > LARGE:
                check_keys(header)
                document: RequestDocument = self._large_decoder.decode(header)
                for given in document.inputs:
                    given.shape = _decode_shape(given.name, given.shape)  # type: ignore[arg-type]
                return document
            return self._decoder.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise unreadable(error, header) from None
        except RecursionError:
            raise InvalidArgument(
                "failed to parse the request JSON buffer: it is nested too deeply"
            ) from None

    def _read_raw(self, body: Buffer, model: str, version: str) -> Decoded:
        """Reads a raw request: the whole body is the data of the model's only input."""
        served = self._engine.find_ready(model, version)
        inputs = served.signature.inputs
        if len(inputs) != 1:
            raise InvalidArgument(
                f"{prefix('')}Raw request must only have 1 input (found 1) to be deduced but got"
                f" {len(inputs)} inputs in '{model}' model configuration"
            )
        declared = inputs[0]
        name, datatype = declared.name, declared.datatype
        shape = list(declared.shape)
        if served.max_batch_size:
            shape[0] = 1
        if datatype.itemsize == 0:
            if any(dimension not in (1, -1) for dimension in shape):
                raise InvalidArgument(
                    f"{prefix('')}For BYTE datatype raw input '{name}', the model must have input shape [1]"
                )
            element = b"".join((len(body).to_bytes(4, "little"), body))
            spec = InputPlan(name, datatype.name, (1,) * len(shape))
            tensor = spec.read(element, 0, len(element))
        else:
            variable = [index for index, dimension in enumerate(shape) if dimension < 0]
            if len(variable) > 1:
                raise InvalidArgument(
                    f"{prefix('')}The shape of the raw input '{name}' can not be deduced because there are"
                    " more than one variable-sized dimension"
                )
            if variable:
                row = datatype.itemsize
                for dimension in shape:
                    row *= dimension if dimension >= 0 else 1
                shape[variable[0]] = len(body) // row if row else 0
            spec = InputPlan(name, datatype.name, tuple(shape))
            if spec.size != len(body):
                raise size_mismatch(spec, len(body), model, "", "raw_input")
            tensor = spec.read(body, 0, len(body))
        plan = InferPlan((spec,))
        plan.binary_default = True
        return plan, "", {name: tensor}


def instead_of_json(body: Buffer, headers: Mapping[bytes, bytes]) -> str:
    """Returns the end of an error about a body that is not a JSON object: what the body is, and how to send a
    file.

    Empty if the body is empty, or begins like an object.
    """
    start = bytes(memoryview(body)[:64]).lstrip()
    if not start or start.startswith(b"{"):
        return ""
    kind = headers.get(b"content-type", b"")[:100].decode("latin-1").partition(";")[0].strip()
    what = f"The body has the content type {kind}" if kind else "The body has no content type"
    form = ", as curl sends it with -F" if kind == "multipart/form-data" else ""
    return (
        f". {what}{form}, but it must be a JSON object. To send a file as the only input, POST its bytes"
        " alone to the route infer, with the header field Inference-Header-Content-Length: 0"
        " (curl -H 'Inference-Header-Content-Length: 0' --data-binary @FILE)"
    )


def _same(one: memoryview, other: memoryview) -> bool:
    """Returns whether two texts, which may be large, have the same bytes."""
    return len(one) == len(other) and all(
        bytes(one[start : start + STEP]) == bytes(other[start : start + STEP])
        for start in range(0, len(one), STEP)
    )


def split_id(header: bytes) -> tuple[str, bytes]:
    """Splits a JSON header that starts with the id, as most clients write it, into the id and the rest.

    Returns "" and the whole header if the header starts otherwise, if there are blanks before the id, or if
    the id has escapes or characters other than printable ASCII.
    """
    if header.startswith(_ID_FIRST):
        end = header.find(b'"', len(_ID_FIRST))
        id = header[len(_ID_FIRST) : end]
        if header[end : end + 2] == b'",' and b"\\" not in id and id.isascii():
            text = id.decode()
            if text.isprintable():
                return text, b"{" + header[end + 2 :]
    return "", header


def make_plan(document: RequestDocument, model: str, memory: SharedMemory | None, binary: int) -> InferPlan:
    """Makes the plan of a request, checked as far as possible without the model.

    `binary` bytes follow the JSON.
    """
    builder = PlanBuilder(model, document.id, memory)
    mismatch: InvalidArgument | None = None
    declared: list[int | None] = []
    bytes_size = 0
    for given in document.inputs:
        name, parameters = given.name, given.parameters
        try:
            place = builder.input_slice(name, parameters)
        except WrongType as error:
            raise _in_document(error) from None
        size = _declared_size(name, parameters)
        _check_source(
            name,
            {"'data'": bool(given.data), f"'{_SIZE}'": size is not None, f"'{REGION}'": place is not None},
        )
        spec = builder.add_input(name, given.datatype, given.shape, place)
        if place is not None:
            size = 0
        elif size is not None and size != spec.size:
            if spec.size < 0:
                bytes_size += size
            elif mismatch is None:
                mismatch = size_mismatch(spec, size, model, document.id)
        binary -= size or 0
        if binary < 0:
            raise _missing(spec, -binary, model)
        declared.append(size)
    if mismatch is not None:  # Triton compares sizes with shapes only after finding the bytes of every input
        raise _additional(model) if binary else mismatch
    plan = InferPlan(tuple(builder.inputs))
    plan.declared = tuple(declared)
    plan.large = bytes_size > LARGE
    if document.parameters:
        if EMPTY_FINAL in document.parameters:
            raise InvalidArgument(RESERVED)
        try:
            apply_parameters(plan, document.parameters)
        except WrongType as error:
            raise _in_document(error) from None
    for output in document.outputs or ():
        try:
            builder.add_output(plan, output.name, output.parameters, binary=True)
        except WrongType as error:
            raise _in_document(error, "set") from None
    if document.outputs:  # as in Triton, binary_data_output covers only outputs that are not listed
        plan.binary_default = False
    builder.finish(plan)
    return plan


def _check_source(name: str, given: dict[str, bool]) -> None:
    """Raises InvalidArgument unless the data of an input has exactly one source."""
    found = [what for what, there in given.items() if there]
    if len(found) != 1:
        raise InvalidArgument(
            f"{ONE_SOURCE} {f'set {chr(32).join(found)}' if found else 'no field is set'} (input '{name}')"
        )


def _in_document(error: WrongType, did: str = "parse") -> InvalidArgument:
    """Returns the error for a parameter of the wrong JSON type: Triton's text, then that of `error`."""
    what = f"attempt to access JSON non-{error.kind} as {error.kind}"
    return InvalidArgument(f"Unable to {did} '{error.key}': {what}: {error.message}")


def _declared_size(name: str, parameters: dict[str, Any]) -> int | None:
    if not parameters or _SIZE not in parameters:
        return None
    size = parameters[_SIZE]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**63:
        raise InvalidArgument(
            "Unable to parse 'binary_data_size': attempt to access JSON non-unsigned-integer as"
            f" unsigned-integer: parameter 'binary_data_size' of input '{name}' must be a number of bytes,"
            f" got {size!r}"
        )
    return size


def _read_binary(plan: InferPlan, body: Buffer, offset: int, model: str, id: str) -> dict[str, Tensor]:
    """Returns the tensors of a plan whose inputs are all in binary form, consecutive from `offset`."""
    total = len(body)
    tensors = {}
    for spec, size in zip(plan.inputs, plan.declared, strict=True):
        end = offset + size  # type: ignore[operator]
        if end > total:
            raise _missing(spec, end - total, model)
        try:
            tensors[spec.name] = spec.read(body, offset, end)
        except StringsMismatch as error:
            raise error.in_request(prefix(id), model) from None
        offset = end
    if offset != total:
        raise _additional(model)
    return tensors


def _read_declared(spec: InputPlan, size: int, body: Buffer, offset: int, model: str) -> Tensor:
    end = offset + size
    if end > len(body):
        raise _missing(spec, end - len(body), model)
    return spec.read(body, offset, end)


def _missing(spec: InputPlan, size: int, model: str) -> InvalidArgument:
    return InvalidArgument(
        f"unexpected size for input '{spec.name}', expecting {size} additional bytes for model '{model}'"
    )


def _additional(model: str) -> InvalidArgument:
    return InvalidArgument(f"unexpected additional input data for model '{model}'")


def _decode_shape(name: str, raw: Raw) -> Shape:
    rank = count(raw, ord(",")) + 1
    if rank > MAX_RANK:
        raise too_many_dimensions(name, rank)
    return msgspec.json.decode(raw, type=tuple[int, ...])


def _parse_length(text: bytes, total: int) -> int:
    if not text.removeprefix(b"-").isdigit() or len(text) > 19:
        raise InvalidArgument(
            "invalid value of the header Inference-Header-Content-Length, expected a number of"
            f" bytes, got: {text[:64].decode('latin-1')}"
        )
    size = int(text)
    if not 0 <= size <= total:
        raise InvalidArgument(f"inference header size should be in range (0, {total}), got: {size}")
    return size
