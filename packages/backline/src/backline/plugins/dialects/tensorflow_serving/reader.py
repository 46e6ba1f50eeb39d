"""Reads the body of a prediction: `instances`, a list of rows, or `inputs`, a value for each input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw, Struct

from backline.dialects.bodies.json_arrays import read_array
from backline.dialects.bodies.json_rows import MAX_ROWS
from backline.dialects.bodies.json_text import decoded
from backline.dialects.input_plan import check_tensors
from backline.dialects.json_scan import check_keys, count
from backline.dialects.off_loop import LARGE, PIECE, LargeRequest, is_long, stop_if_abandoned
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.plugins.dialects.tensorflow_serving.texts import (
    mismatch,
    no_signature,
    shape_of,
    shown,
    unreadable,
)
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument, PayloadTooLarge, Unsupported
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Buffer, Tensor

#: The output that the verb `explain` asks for, and that the verb `predict` leaves out.
EXPLANATIONS: Final = "explanations"
DEFAULT_SIGNATURE: Final = "serving_default"
#: The parameter of a model's configuration that names the signature of a SavedModel.
SIGNATURE: Final = "TF_SIGNATURE_DEF"
_B64: Final = "b64"
#: The longest value that is examined again to say which of its elements is wrong.
_EXAMINED: Final = 1 << 20
_raw_list = msgspec.json.Decoder(list[Raw]).decode
_raw_object = msgspec.json.Decoder(dict[str, Raw]).decode


@decodable
class _Document(Struct):
    """The keys that are read; all others are ignored, as in TensorFlow Serving."""

    signature_name: str = ""
    instances: Raw = Raw()
    inputs: Raw = Raw()


_decode = msgspec.json.Decoder(_Document).decode


class PredictPlan(Struct, eq=False):
    """A RequestPlan of a prediction, which also says how to write the response.

    With `rows`, the response is a list of rows. With `unbatched`, the only row went to a model without a
    batch dimension. With `narrow`, the inputs left out a last dimension of 1, so the response does too.
    """

    rows: bool
    unbatched: bool = False
    narrow: bool = False
    outputs: tuple[str, ...] | None = None

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        return InferRequest(model, inputs, version, id, self.outputs, None, 0, deadline)

    def is_large(self, response: InferResponse) -> bool:
        return any(map(is_long, response.outputs))

    def release(self) -> None:
        """Does nothing: a plan holds no resources."""


class PredictReader:
    """Reads the bodies of predictions, or of explanations. `read` implements the protocol ReadRequest."""

    def __init__(self, engine: Engine, *, explains: bool = False) -> None:
        self._engine = engine
        self._explains = explains

    def read(
        self, body: Buffer, headers: Mapping[bytes, bytes], model: str, version: str, on_loop: bool
    ) -> tuple[PredictPlan, str, dict[str, Tensor]]:
        served = self._engine.find_ready(model, version)
        if on_loop and len(body) > LARGE:
            raise LargeRequest
        outputs = wanted_outputs(served, explains=self._explains)
        try:
            document: _Document = decoded(body, _decode)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise unreadable(error, bytes(body[:PIECE])) from None
        except RecursionError:
            raise InvalidArgument("JSON Parse error: it is nested too deeply at offset: 0") from None
        check_signature(served, document.signature_name)
        rows = bool(document.instances)
        if rows == bool(document.inputs):
            if rows:
                raise InvalidArgument(
                    f"JSON Value: {shown(bytes(body[:PIECE]))} Not formatted correctly expecting only one of"
                    " 'inputs' or 'instances' keys to exist "
                )
            raise InvalidArgument("Missing 'inputs' or 'instances' key")
        specs = served.signature.inputs
        if rows:
            given = _read_instances(specs, bytes(document.instances))
        else:
            given = _read_inputs(specs, bytes(document.inputs))
        check_tensors(given)
        plan = PredictPlan(rows, outputs=outputs)
        return plan, "", fitted(served, given, plan)


def wanted_outputs(model: Model, *, explains: bool = False) -> tuple[str, ...] | None:
    """Returns the outputs to ask for; None means all. Raises Unsupported if the model has none."""
    names = tuple([spec.name for spec in model.signature.outputs])
    if EXPLANATIONS in names:
        return (EXPLANATIONS,) if explains else tuple(one for one in names if one != EXPLANATIONS)
    if explains:
        raise Unsupported(
            f"model '{model.name}' does not explain: it needs an output '{EXPLANATIONS}', but has"
            f" {', '.join(names)}"
        )
    return None


def check_signature(model: Model, name: str) -> None:
    """Raises InvalidArgument for a signature that the model does not serve."""
    if name and name not in (DEFAULT_SIGNATURE, model.config.parameters.get(SIGNATURE)):
        raise no_signature(name)


def _read_inputs(specs: Sequence[TensorSpec], text: bytes) -> dict[str, Tensor]:
    """Reads `inputs`: the value of the only input, or an object with a value for each."""
    values = _by_name(specs, text)
    if values is None:
        spec = _only(specs, "inputs is a plain value/list, but expecting an object")
        return {spec.name: _read(spec, text)}
    given = {}
    for spec in specs:
        if spec.name in values:
            given[spec.name] = _read(spec, bytes(values[spec.name]))
        elif not spec.optional:
            raise InvalidArgument(f"Missing named input: {spec.name} in 'inputs' object.")
    return given


def _read_instances(specs: Sequence[TensorSpec], text: bytes) -> dict[str, Tensor]:
    """Reads `instances`: a list with the value of the only input, or an object, for each row."""
    if text[:1] != b"[":
        raise InvalidArgument(f"JSON Value: {shown(text)} Excepting 'instances' to be an list/array")
    first = text[1:].lstrip()
    if first[:1] == b"]":
        raise InvalidArgument("JSON Value: [] No values in 'instances' array")
    if first[:1] != b"{":
        spec = _only(specs, "instances is a plain list, but expecting list of objects")
        return {spec.name: _read(spec, text, rows=True)}
    if len(text) > LARGE and (objects := count(text, ord("{"))) > MAX_ROWS:
        raise PayloadTooLarge(f"'instances' has {objects} objects, more than the {MAX_ROWS} allowed")
    rows = _raw_list(text)
    if first[1:].lstrip()[:5] == b'"b64"' and _by_name(specs, bytes(rows[0])) is None:
        spec = _only(specs, "instances is a plain list, but expecting list of objects")
        return {spec.name: _read(spec, text, rows=True)}
    return _read_objects({spec.name: spec for spec in specs}, rows)


def _read_objects(specs: Mapping[str, TensorSpec], rows: Sequence[Raw]) -> dict[str, Tensor]:
    """Reads rows that are objects: the values of an input are joined to one text, then read as one array."""
    columns: dict[str, list[Raw]] = {}
    for number, raw in enumerate(rows):
        if len(raw) > LARGE:
            check_keys(raw)
        try:
            row = _raw_object(raw)
        except msgspec.ValidationError:
            raise InvalidArgument(f"Expecting object but got list at item {number} of input list") from None
        if row.keys() != columns.keys():
            _check_row(specs, row, number, columns)
            columns = {name: [] for name in row}
        for name, value in row.items():
            columns[name].append(value)
        if not number % PIECE:
            stop_if_abandoned()
    return {
        name: _read(specs[name], b"[%b]" % b",".join(values), rows=True, key=name)
        for name, values in columns.items()
    }


def _check_row(
    specs: Mapping[str, TensorSpec], row: Mapping[str, Raw], number: int, before: Collection[str]
) -> None:
    """Raises InvalidArgument for a row with a key that is no input, without a required one, or with other
    keys than those of the rows before it.
    """
    for name in row:
        if name not in specs:
            raise InvalidArgument(
                f"Failed to process element: {number} key: {name[:64]} of 'instances' list. Error:"
                f" INVALID_ARGUMENT: JSON object: does not have named input: {name[:64]}"
            )
    needed = before or [name for name, spec in specs.items() if not spec.optional]
    if before or any(name not in row for name in needed):
        raise InvalidArgument(
            f"Failed to process element: {number} of 'instances' list. JSON object:"
            f" {shown(msgspec.json.encode(row))} keys must be equal to: {','.join(sorted(needed))}"
        )


def _by_name(specs: Sequence[TensorSpec], text: bytes) -> dict[str, Raw] | None:
    """Returns the values of an object with inputs by name; None for anything else, such as a string in
    base64.
    """
    if text[:1] != b"{":
        return None
    if len(text) > LARGE:
        check_keys(text)
    values = _raw_object(text)
    is_string = values.keys() == {_B64} and all(spec.name != _B64 for spec in specs)
    return None if is_string else values


def _only(specs: Sequence[TensorSpec], problem: str) -> TensorSpec:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidArgument(f"{problem} as multiple input tensors required as per tensorinfo_map: {names}")
    return specs[0]


def _read(spec: TensorSpec, text: bytes, *, rows: bool = False, key: str = "") -> Tensor:
    """Reads the value of an input. The errors are TensorFlow Serving's; with `rows`, they name the row."""
    try:
        return read_array(spec, text)
    except InvalidArgument as error:
        if len(text) > _EXAMINED:
            raise
        value = msgspec.json.decode(text)
        if rows:
            raise _wrong_row(spec, value, key, error) from None
        raise InvalidArgument(mismatch(spec, value, shape_of(value)) or error.message) from None


def _wrong_row(spec: TensorSpec, rows: Sequence[object], key: str, error: InvalidArgument) -> InvalidArgument:
    named = f" key: {key}" if key else ""
    shape = shape_of(rows[0])
    for number, row in enumerate(rows):
        found = mismatch(spec, row, shape_of(row))
        if not found and shape_of(row) != shape:
            expected, got = (",".join(map(str, one)) for one in (shape, shape_of(row)))
            found = f"Expecting shape [{expected}] but got: [{got}]"
        if found:
            return InvalidArgument(
                f"Failed to process element: {number}{named} of 'instances' list. Error: INVALID_ARGUMENT:"
                f" {found}"
            )
    return error


def fitted(model: Model, given: dict[str, Tensor], plan: PredictPlan) -> dict[str, Tensor]:
    """Returns the inputs in the ranks of the model, and notes in the plan what the response must undo.

    The only row may go to a model without a batch dimension. Inputs may leave out a last dimension of 1.
    """
    for spec in model.signature.inputs:
        tensor = given.get(spec.name)
        if tensor is None or len(tensor.shape) == len(spec.shape):
            continue
        shape = tensor.shape
        if plan.rows and not model.max_batch_size and shape[0] == 1 and len(shape) == len(spec.shape) + 1:
            plan.unbatched, shape = True, shape[1:]
        elif shape and len(shape) == len(spec.shape) - 1 and spec.shape[-1] in (1, -1):
            plan.narrow, shape = True, (*shape, 1)
        given[spec.name] = Tensor(spec.name, tensor.datatype, shape, tensor.data.reshape(shape))
    return given
