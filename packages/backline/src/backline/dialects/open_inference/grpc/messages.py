"""Reads inference.ModelInferRequest, with raw or typed contents, and writes ModelInferResponse, with raw
contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from backline.dialects.input_plan import MAX_RANK, InputPlan, too_many_dimensions
from backline.dialects.off_loop import LARGE, MANY, PIECE, LargeRequest
from backline.dialects.open_inference.grpc.wire_format import (
    MALFORMED,
    check_fields,
    response_parts,
    split_request,
)
from backline.dialects.open_inference.outputs import wanted_outputs
from backline.dialects.open_inference.plan import InferPlan, prefix, size_mismatch
from backline.dialects.open_inference.planning import PlanBuilder, apply_parameters, check_description
from backline.dialects.open_inference.shared_memory import REGION, REGION_SIZE, SharedInput
from backline.engine.engine import Engine
from backline.engine.parameters import RESERVED, RESERVED_BUT, WrongType
from backline.engine.shared_memory import SharedMemory
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.memo import Memo
from backline_client.values.messages import InferRequest, InferResponse, Parameter
from backline_client.values.tensor import Buffer, StringsMismatch, Tensor, encode_tensor, wrong_count

#: The maximum size in bytes of a message (without contents) whose plan is cached, and the maximum number of
#: cached plans and heads.
_MAX_REMEMBERED_SIZE = 1024
_MAX_REMEMBERED = 1024


class ContentsField(NamedTuple):
    """The InferTensorContents field of a datatype, with limits if the datatype is narrower than the field."""

    name: str
    limits: tuple[int, int] | None = None


_CONTENTS = {
    DataType.BOOL: ContentsField("bool_contents"),
    DataType.INT8: ContentsField("int_contents", (-(2**7), 2**7 - 1)),
    DataType.INT16: ContentsField("int_contents", (-(2**15), 2**15 - 1)),
    DataType.INT32: ContentsField("int_contents"),
    DataType.INT64: ContentsField("int64_contents"),
    DataType.UINT8: ContentsField("uint_contents", (0, 2**8 - 1)),
    DataType.UINT16: ContentsField("uint_contents", (0, 2**16 - 1)),
    DataType.UINT32: ContentsField("uint_contents"),
    DataType.UINT64: ContentsField("uint64_contents"),
    DataType.FP32: ContentsField("fp32_contents"),
    DataType.FP64: ContentsField("fp64_contents"),
    DataType.BYTES: ContentsField("bytes_contents"),
}


class ModelPlan(InferPlan):
    """An InferPlan that includes the name of the model."""

    __slots__ = ("model_name", "model_version")

    def __init__(self, inputs: tuple[InputPlan, ...], model_name: str, model_version: str) -> None:
        super().__init__(inputs)
        self.model_name = model_name
        self.model_version = model_version

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        """Builds the request. `model` and `version` are unused: the plan names the model."""
        return InferRequest(
            self.model_name,
            inputs,
            self.model_version,
            id,
            self.outputs,
            self.parameters,
            self.priority,
            deadline,
            self.timeout,
            self.sequence,
        )

    def is_binary(self, output: str) -> bool:
        """Returns True, because gRPC has no JSON form of tensors."""
        return True


#: A decoded request: its plan, its id, and its tensors by name.
Decoded = tuple[ModelPlan, str, dict[str, Tensor]]


class GrpcReader:
    """Reads requests. Plans of small requests with raw contents are cached, because clients repeat them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parse = message("inference.ModelInferRequest").FromString
        self._plans: Memo[bytes, ModelPlan] = Memo(_MAX_REMEMBERED)
        #: For messages without an id whose only raw content is their last field: where the content starts, by
        #: the size of the message, and plans by everything before the content. The content's length is part
        #: of that, so a message of the right size that begins like an earlier one needs no parsing.
        self._starts: Memo[int, int] = Memo(_MAX_REMEMBERED)
        self._begun: Memo[bytes, tuple[ModelPlan, InputPlan]] = Memo(_MAX_REMEMBERED)

    def read(
        self, received: Buffer, _: Mapping[bytes, bytes], model: str, version: str, on_loop: bool
    ) -> Decoded:
        """Reads a request (see ReadRequest). `model` and `version` are unused: the message names both."""
        size = len(received)
        begin = self._starts.get(size)
        if begin is not None:
            # Large messages are memoryviews. For bytes, the slice alone is cheaper.
            start = received[:begin]
            known = self._begun.get(start if type(start) is bytes else bytes(start))
            if known is not None:
                plan, spec = known
                if spec.size == size - begin:
                    return plan, "", {spec.name: spec.read(received, begin, size)}
        return self._read(received, on_loop=on_loop)

    def _read(self, received: Buffer, *, on_loop: bool) -> Decoded:
        rest, id, places = split_request(received)
        plan = self._plans.get(rest)
        if plan is None:
            if on_loop and len(rest) > LARGE:
                raise LargeRequest
            if len(rest) > LARGE:
                check_fields(rest)
            try:
                parsed = self._parse(rest)
            except DecodeError:
                raise InvalidArgument(MALFORMED) from None
            # The length is checked first, because that costs nearly nothing, and most requests are short.
            if (
                on_loop
                and len(rest) > MANY
                and len(parsed.inputs) + len(parsed.outputs) + len(parsed.parameters) > MANY
            ):
                raise LargeRequest
            plan = make_plan(parsed, id, self._engine.shared_memory)
            if len(rest) > LARGE:
                self._check(plan, id)
            typed = [given.name for given in parsed.inputs if given.HasField("contents")]
            if places and typed:
                raise InvalidArgument(
                    "contents field must not be specified when using raw_input_contents for"
                    f" '{typed[0]}' for model '{plan.model_name}'"
                )
            if not places and any(spec.count for spec in plan.inputs if not isinstance(spec, SharedInput)):
                plan = plan if plan.shared is None else plan.holding(on_loop=on_loop)
                pairs = zip(plan.inputs, parsed.inputs, strict=True)
                return plan, id, {s.name: _read_contents(s, given, plan.model_name, id) for s, given in pairs}
            if not typed and len(rest) <= _MAX_REMEMBERED_SIZE:
                self._plans.keep(rest, plan)
        spec = plan.single
        if spec is not None and len(places) == 1:
            start, end = places[0]
            if end - start == spec.size:
                if not id and end == len(received) and start <= _MAX_REMEMBERED_SIZE:
                    self._starts.keep(end, start)
                    self._begun.keep(bytes(received[:start]), (plan, spec))
                return plan, id, {spec.name: spec.read(received, start, end)}
        if plan.shared is not None:
            plan = plan.holding(on_loop=on_loop)
            places = _with_shared(plan, places)
        specs = plan.inputs
        if len(places) != len(specs):
            if not places:  # either no input has elements, or the contents are missing
                return plan, id, {spec.name: _read_nothing(spec, plan.model_name) for spec in specs}
            detail = f"expected {len(specs)} raw_input_contents, one for each input, got {len(places)}"
            if len(places) < len(specs):
                raise _no_contents(specs[len(places)], plan.model_name, detail)
            raise InvalidArgument(f"{detail}, for model '{plan.model_name}'")
        tensors = {}
        checked = False
        for spec, (start, end) in zip(specs, places, strict=True):
            if spec.size < 0:
                if end - start > LARGE and not checked:
                    if on_loop:
                        raise LargeRequest
                    self._check(plan, id)
                    checked = True
            elif end - start != spec.size and not isinstance(spec, SharedInput):
                raise size_mismatch(spec, end - start, plan.model_name, id)
            try:
                tensors[spec.name] = spec.read(received, start, end)
            except StringsMismatch as error:
                raise error.in_request(prefix(id), plan.model_name) from None
        return plan, id, tensors

    def _check(self, plan: ModelPlan, id: str) -> None:
        check_description(self._engine, plan.model_name, plan.model_version, id, plan)


def make_plan(request: Any, id: str, memory: SharedMemory | None) -> ModelPlan:
    """Makes the plan of a parsed request, checked as far as possible without the model."""
    builder = PlanBuilder(request.model_name, id, memory)
    for given in request.inputs:
        name = given.name
        if len(given.shape) > MAX_RANK:
            raise too_many_dimensions(name, len(given.shape))
        parameters = _parameters(given.parameters)
        try:
            place = builder.input_slice(name, parameters)
        except WrongType as error:
            raise _in_message(error, name) from None
        _check_region(given, parameters)
        if place is not None and given.HasField("contents"):
            raise InvalidArgument(
                f"input '{name}' has contents and is also in shared memory: send only one of the two"
            )
        builder.add_input(name, given.datatype, tuple(given.shape), place)
    plan = ModelPlan(tuple(builder.inputs), request.model_name, request.model_version)
    if request.parameters:
        try:
            apply_parameters(plan, _parameters(request.parameters))
        except InvalidArgument as error:
            raise _in_message(error) from None
    for given in request.outputs:
        parameters = _parameters(given.parameters)
        try:
            builder.add_output(plan, given.name, parameters)
        except WrongType as error:
            raise _in_message(error, "" if error.key == "classification" else given.name) from None
        _check_region(given, parameters)
    builder.finish(plan)
    return plan


#: The fields of InferParameter that Triton accepts for a parameter. For parameters not listed here, Triton
#: accepts only bool_param or only int64_param.
_FIELDS = {
    "priority": "int64_param or uint64_param",
    "sequence_id": "int64_param or string_param",
    REGION: "string_param",
}


def _in_message(error: InvalidArgument, tensor: str = "") -> InvalidArgument:
    """Returns the error for a parameter of the request or of a tensor in it. Triton's texts for gRPC and JSON
    differ.
    """
    if error.message == RESERVED:
        return InvalidArgument(RESERVED_BUT)
    if isinstance(error, WrongType):
        fields = _FIELDS.get(error.key) or ("bool_param" if error.kind == "boolean" else "int64_param")
        of = f" for tensor '{tensor}'" if tensor else ""
        return InvalidArgument(
            f"invalid value type for '{error.key}' parameter{of}, expected {fields}.: {error.message}"
        )
    return error


def _parameters(given: Any) -> dict[str, Parameter]:
    return {key: _parameter(key, value) for key, value in given.items()}


def _check_region(tensor: Any, parameters: Mapping[str, Parameter]) -> None:
    """Raises InvalidArgument for a shared memory region that is given without a size.

    As in Triton, such a region is allowed only over HTTP.
    """
    if REGION in parameters and REGION_SIZE not in parameters:
        raise InvalidArgument(
            f"'{REGION_SIZE}' must be specified along with '{REGION}' parameter for tensor '{tensor.name}'"
        )


def _with_shared(plan: ModelPlan, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the start and end of each input's raw contents; (0, 0) for an input in shared memory."""
    carried = iter(places)
    found = [(0, 0) if isinstance(spec, SharedInput) else next(carried, None) for spec in plan.inputs]
    return [*(place for place in found if place is not None), *carried]


def _parameter(key: str, value: Any) -> Parameter:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidArgument(
            f"parameter '{key}' has no value. It should be either 'int', 'bool', or 'string'."
        )
    parameter: Parameter = getattr(value, choice)
    return parameter


def _read_nothing(spec: InputPlan, model: str) -> Tensor:
    if spec.count:
        raise _no_contents(spec, model)
    return Tensor(spec.name, spec.datatype, spec.shape, np.empty(spec.shape, spec.dtype))


def _no_contents(spec: InputPlan, model: str, detail: str = "") -> InvalidArgument:
    detail = detail or f"input '{spec.name}' has neither contents nor raw_input_contents"
    return InvalidArgument(
        f"unable to find data for input tensor '{spec.name}' for model '{model}' in request. ({detail})"
    )


def _other_contents(spec: InputPlan, model: str, field: str, detail: str) -> InvalidArgument:
    """Returns the error for typed contents in a field that does not belong to the datatype."""
    widest = {"int_contents": DataType.INT32, "uint_contents": DataType.UINT32}
    got = widest.get(field) or next((one for one, its in _CONTENTS.items() if its.name == field), None)
    return InvalidArgument(
        f"unexpected explicit tensor data for input tensor '{spec.name}' for model '{model}' of type"
        f" '{got.name if got else field}', expected datatype '{spec.datatype.name}': {detail}"
    )


def _read_contents(spec: InputPlan, given: Any, model: str, id: str) -> Tensor:
    """Returns the tensor of typed contents.

    Raises InvalidArgument if the contents do not match the datatype and shape.
    """
    if isinstance(spec, SharedInput):
        return spec.read(b"", 0, 0)
    name, datatype = spec.name, spec.datatype
    field = _CONTENTS.get(datatype)
    if field is None:
        given_in = next((present.name for present, _ in given.contents.ListFields()), "")
        detail = f"datatype {datatype.name} must use raw_input_contents: it has no typed contents"
        raise _other_contents(spec, model, given_in, detail)
    if spec.count and not given.HasField("contents"):
        raise _no_contents(spec, model)
    for present, _ in given.contents.ListFields():
        if present.name != field.name:
            detail = f"it must use {field.name}, got {present.name}"
            raise _other_contents(spec, model, present.name, detail)
    values = getattr(given.contents, field.name)
    if len(values) != spec.count:
        if datatype is DataType.BYTES:
            raise wrong_count(name, spec.count, len(values)).in_request(prefix(id), model)
        raise size_mismatch(spec, len(values) * datatype.itemsize, model, id)
    data = np.empty(spec.count, spec.dtype)
    # Copied in parts, because the interpreter cannot switch threads during a copy.
    for start in range(0, spec.count, PIECE):
        part = values[start : start + PIECE]
        if field.limits is not None:
            low, high = field.limits
            if min(part) < low or max(part) > high:
                raise InvalidArgument(
                    f"input '{name}' has a value in {field.name} that {datatype.name} cannot hold"
                )
        if datatype is not DataType.BYTES:  # numpy takes thirty times as long for numbers in a list
            part = np.fromiter(part, spec.dtype, len(part))
        data[start : start + len(part)] = part
    return Tensor(name, datatype, spec.shape, data.reshape(spec.shape))


class GrpcWriter:
    """Writes responses. The part before the contents is cached, because it is the same in many responses."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._message = message("inference.ModelInferResponse")
        self._heads: Memo[object, bytes] = Memo(_MAX_REMEMBERED)
        #: Cached beginnings of responses with one output of a known size: everything before the output's
        #: bytes.
        self._beginnings: Memo[object, bytes] = Memo(_MAX_REMEMBERED)

    def write(self, plan: ModelPlan, response: InferResponse) -> bytes:
        """Encodes a response as a message. Raises BacklineError if an output cannot be classified, or does
        not fit into its shared memory.
        """
        return b"".join(self.write_parts(plan, response))

    def write_parts(self, plan: ModelPlan, response: InferResponse) -> Sequence[Buffer]:
        """Encodes a response as a message, in parts so that outputs need not be copied.

        Raises the same errors as `write`.
        """
        outputs = response.outputs if plan.keeps_outputs else wanted_outputs(self._engine, plan, response)
        if len(outputs) == 1 and not response.id and not response.parameters:
            output = outputs[0]
            # A StoredTensor's bytes are in a shared memory region, so the message has none.
            if output.datatype is not DataType.BYTES and type(output) is Tensor:
                return self._beginning(response, output), encode_tensor(output)
        if response.parameters:
            head = self._head(response, outputs)
        else:
            key = (
                response.model_name,
                response.model_version,
                tuple([(output.name, output.datatype, output.shape) for output in outputs]),
            )
            known = self._heads.get(key)
            if known is None:
                known = self._heads.keep(key, self._head(response, outputs))
            head = known
        return response_parts(head, response.id, map(encode_tensor, outputs))

    def _beginning(self, response: InferResponse, output: Tensor) -> bytes:
        """Returns everything before the bytes of the output, in a response with one output (not BYTES) and no
        id.
        """
        key = (response.model_name, response.model_version, output.name, output.datatype, output.shape)
        known = self._beginnings.get(key)
        if known is None:
            head, tag, length, _ = response_parts(
                self._head(response, [output]), "", (encode_tensor(output),)
            )
            known = self._beginnings.keep(key, b"".join((head, tag, length)))
        return known

    def _head(self, response: InferResponse, outputs: list[Tensor]) -> bytes:
        head = self._message(model_name=response.model_name, model_version=response.model_version)
        for key, value in (response.parameters or {}).items():
            set_parameter(head.parameters[key], value)
        for output in outputs:
            head.outputs.add(name=output.name, datatype=output.datatype.name, shape=output.shape)
        serialized: bytes = head.SerializeToString()
        return serialized


def set_parameter(entry: Any, value: Parameter) -> None:
    """Sets the field of an inference.InferParameter that fits the type of `value`."""
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
        if value < 2**63:
            entry.int64_param = value
        else:
            entry.uint64_param = value
    elif isinstance(value, float):
        entry.double_param = value
    else:
        entry.string_param = value
