"""TensorFlow Serving's gRPC APIs: PredictionService and ModelService."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import guarded
from backline.dialects.documents import read_message
from backline.dialects.exchange import GRPC, UnaryInference
from backline.dialects.input_plan import check_tensors
from backline.dialects.json_scan import MAX_DOCUMENT
from backline.dialects.off_loop import MANY, LargeRequest, OffLoop, is_long
from backline.dialects.open_inference.grpc.wire_format import MAX_FIELDS, length_prefix, whole_fields
from backline.dialects.plugin import DialectContext, Methods
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.plugins.dialects.tensorflow_serving.metadata import signature_document, signature_name
from backline.plugins.dialects.tensorflow_serving.reader import (
    PredictPlan,
    check_signature,
    fitted,
    wanted_outputs,
)
from backline.plugins.dialects.tensorflow_serving.states import status_document, versions_of
from backline.plugins.dialects.tensorflow_serving.tensors import MESSAGES, is_slow, read_tensor, write_tensor
from backline.plugins.dialects.tensorflow_serving.texts import (
    DECOUPLED,
    no_label,
    no_servable,
    wrong_inputs,
    wrong_output,
)
from backline.plugins.dialects.tensorflow_serving.writer import shaped
from backline.wire.application import Buffer, UnaryCall, UnaryMethod
from backline_client.values.errors import (
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unsupported,
)
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

_PACKAGE: Final = "tensorflow.serving"
_SPEC: Final = MESSAGES.message(f"{_PACKAGE}.ModelSpec")
_SIGNATURES: Final = "signature_def"
#: The tags of the fields of a PredictRequest. The spec has the same tag in all requests.
_MODEL_SPEC, _INPUTS, _OUTPUT_FILTER = 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2
#: The tags of an entry of a map.
_KEY, _VALUE = 1 << 3 | 2, 2 << 3 | 2
#: The tags of PredictResponse.outputs, of its model_spec, and of an entry's key and value.
_OUTPUT, _ANSWERED, _NAME, _TENSOR = b"\x0a", b"\x12", b"\x0a", b"\x12"
#: What is not served, and what to do instead.
_INSTEAD: Final = {
    "Classify": "send the features as named inputs to Predict",
    "Regress": "send the features as named inputs to Predict",
    "MultiInference": "call Predict for each model",
    "HandleReloadConfigRequest": (
        "change the repository or the file that lists the models, or call RepositoryModelLoad and"
        " RepositoryModelUnload of inference.GRPCInferenceService"
    ),
}


class RpcPlan(PredictPlan):
    """The plan of a PredictRequest. `signature` is the name of the signature that runs."""

    signature: str = ""

    def is_large(self, response: InferResponse) -> bool:
        return any(is_slow(one) and is_long(one) for one in response.outputs)


def spec_of(message: Buffer) -> Any:
    """Returns the ModelSpec of a request, without parsing the rest; None if there is none.

    A spec that comes in several parts is merged, as protobuf does. Fields after the first MAX_FIELDS are
    ignored. Raises InvalidArgument if the message is malformed.
    """
    fields = islice(whole_fields(message, 0, len(message)), MAX_FIELDS)
    parts = [message[start:end] for tag, start, end in fields if tag == _MODEL_SPEC]
    try:
        return _SPEC.FromString(b"".join(parts)) if parts else None
    except DecodeError:
        raise InvalidArgument("the ModelSpec of the request is malformed") from None


def _model_of(message: Buffer) -> str:
    try:
        spec = spec_of(message)
    except InvalidArgument:
        return ""
    return "" if spec is None else str(spec.name)


def _entry(message: Buffer, position: int, end: int) -> tuple[str, tuple[int, int]]:
    """Returns the key of a map's entry, and the start and end of its value."""
    key, place = "", (end, end)
    for number, (tag, start, stop) in enumerate(whole_fields(message, position, end)):
        if number == MANY:
            raise InvalidArgument(f"an input has more than {MANY} names and values")
        if tag == _KEY:
            key = _text(message, start, stop)
        elif tag == _VALUE:
            place = start, stop
    return key, place


def _text(message: Buffer, start: int, end: int) -> str:
    try:
        return str(message[start:end], "utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument("a name in the request is not UTF-8") from None


class RpcReader:
    """Reads PredictRequests. The method `read` implements the protocol ReadRequest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(
        self, received: Buffer, _: Mapping[bytes, bytes], name: str, version: str, on_loop: bool
    ) -> tuple[RpcPlan, str, dict[str, Tensor]]:
        model = self._engine.find_ready(name, version)
        places: dict[str, tuple[int, int]] = {}
        outputs: list[str] = []
        for number, (tag, start, end) in enumerate(whole_fields(received, 0, len(received))):
            if number == MANY and on_loop:
                raise LargeRequest
            if number == MAX_FIELDS:
                raise PayloadTooLarge(f"the request has more than {MAX_FIELDS} inputs and outputs")
            if tag == _INPUTS:
                key, place = _entry(received, start, end)
                places[key] = place
            elif tag == _OUTPUT_FILTER:
                outputs.append(_text(received, start, end))
        check_signature(model, spec_of(received).signature_name)
        _check_names(model, places, outputs)
        given = {key: read_tensor(key, received, *place, on_loop=on_loop) for key, place in places.items()}
        check_tensors(given)
        wanted = tuple(outputs) or wanted_outputs(model)
        plan = RpcPlan(False, outputs=wanted, signature=signature_name(model))
        return plan, "", fitted(model, given, plan)


def _check_names(model: Model, inputs: Mapping[str, object], outputs: Sequence[str]) -> None:
    """Raises InvalidArgument, with TensorFlow Serving's texts, unless the names are those of the model."""
    specs = model.signature.inputs
    known = {spec.name for spec in specs}
    missing = {spec.name for spec in specs if not spec.optional} - inputs.keys()
    if missing or not known.issuperset(inputs):
        raise wrong_inputs(known, inputs, missing)
    offered = [spec.name for spec in model.signature.outputs]
    for number, name in enumerate(outputs):
        if name not in offered:
            raise wrong_output(name, offered)
        if name in outputs[:number]:
            raise InvalidArgument(f"duplicate output tensor alias: {name}")


def _write(plan: RpcPlan, response: InferResponse) -> list[Any]:
    """Returns the parts of a PredictResponse."""
    parts: list[Any] = []
    for tensor in response.outputs:
        name = tensor.name.encode()
        value = write_tensor(shaped(plan, tensor) if plan.narrow else tensor)
        size = sum(map(len, value))
        key = _NAME + length_prefix(len(name)) + name + _TENSOR + length_prefix(size)
        parts += (_OUTPUT + length_prefix(len(key) + size) + key, *value)
    spec = _spec(response.model_name, response.model_version, plan.signature).SerializeToString()
    parts.append(_ANSWERED + length_prefix(len(spec)) + spec)
    return parts


def _spec(name: str, version: str, signature: str = "") -> Any:
    """Returns a ModelSpec. A version that is no number is left out."""
    spec = _SPEC(name=name, signature_name=signature)
    if (number := _number(version)) is not None:
        spec.version.value = number
    return spec


def _number(version: str) -> int | None:
    is_number = version.isascii() and version.isdigit() and len(version) < 19
    return int(version) if is_number else None


class RpcService:
    """The methods of both services."""

    def __init__(self, context: DialectContext) -> None:
        self._engine = context.engine
        self._deferred = context.deferred
        self._take = UnaryInference(
            context.engine,
            replace(GRPC, forward=context.forwarding.grpc),
            RpcReader(context.engine).read,
            _write,
            OffLoop(),
            decoupled=DECOUPLED,
        ).take

    def methods(self) -> Methods:
        prediction, models = f"{_PACKAGE}.PredictionService", f"{_PACKAGE}.ModelService"
        found = {
            f"/{prediction}/Predict": UnaryMethod(guarded(self._predict), Scope.INFER, _model_of),
            f"/{prediction}/GetModelMetadata": UnaryMethod(guarded(self._metadata), Scope.READ, _model_of),
            f"/{models}/GetModelStatus": UnaryMethod(guarded(self._status), Scope.READ, _model_of),
        }
        for service, name, scope, model_of in (
            (prediction, "Classify", Scope.INFER, _model_of),
            (prediction, "Regress", Scope.INFER, _model_of),
            (prediction, "MultiInference", Scope.INFER, None),
            (models, "HandleReloadConfigRequest", Scope.MANAGE, None),
        ):
            found[f"/{service}/{name}"] = UnaryMethod(guarded(partial(_refuse, name)), scope, model_of)
        return {path.encode(): method for path, method in found.items()}

    def _predict(self, call: UnaryCall, received: Buffer) -> None:
        name, version = self._asked(received)
        take = partial(self._take, call, received, call.metadata, name, version, call.deadline)
        self._when_known(name, version, call, take)

    def _asked(self, received: Buffer) -> tuple[str, str]:
        """Returns the model and the version or label that a request names."""
        spec = spec_of(received)
        if spec is None:
            raise InvalidArgument("Missing ModelSpec")
        if not spec.name:
            raise InvalidArgument("ModelSpec has no name specified.")
        if not spec.HasField("version_label"):
            return spec.name, self._version(spec) if spec.HasField("version") else ""
        if spec.version_label not in self._engine.labels(spec.name):
            known = self._engine.is_known(spec.name)
            raise no_label(spec.version_label) if known else no_servable(spec.name, "")
        return spec.name, spec.version_label

    def _version(self, spec: Any) -> str:
        """Returns the version that a spec names. OpenVINO Model Server's client sends 0 for the latest."""
        engine, name, version = self._engine, spec.name, str(spec.version.value)
        if (
            version == "0"
            and engine.is_known(name)
            and all(one.version != "0" for one in engine.versions(name))
        ):
            return ""
        return version

    def _when_known(self, name: str, version: str, call: UnaryCall, answer: Callable[[], None]) -> None:
        """Calls `answer` when the model's signature is known. NotFound gets TensorFlow Serving's text."""
        try:
            self._deferred.when_known(name, version, call, answer)
        except NotFound:
            if self._engine.is_known(name) and not version:
                raise  # the model is known, and the error says why no version of it is served
            raise no_servable(name, version) from None

    def _metadata(self, call: UnaryCall, received: Buffer) -> None:
        asked = read_message(f"{_PACKAGE}.GetModelMetadataRequest", received, MAX_DOCUMENT, MESSAGES.message)
        name, version = self._asked(received)
        if not asked.metadata_field:
            raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in asked.metadata_field:
            if field != _SIGNATURES:
                raise InvalidArgument(f"Metadata field {field[:64]} is not supported")

        def known() -> None:
            model = self._engine.find_ready(name, version)
            kind = MESSAGES.message(f"{_PACKAGE}.SignatureDefMap")
            signatures = ParseDict(signature_document(model)["metadata"][_SIGNATURES], kind())
            told = MESSAGES.message(f"{_PACKAGE}.GetModelMetadataResponse")()
            told.model_spec.CopyFrom(_spec(model.name, model.version))
            told.metadata[_SIGNATURES].type_url = f"type.googleapis.com/{_PACKAGE}.SignatureDefMap"
            told.metadata[_SIGNATURES].value = signatures.SerializeToString()
            call.reply(told.SerializeToString())

        self._when_known(name, version, call, known)

    def _status(self, call: UnaryCall, received: Buffer) -> None:
        name, version = self._asked(received)
        document = status_document(versions_of(self._engine, name, version))
        for one in document["model_version_status"]:
            one["version"] = _number(one["version"]) or 0  # the field has only numbers
        told = ParseDict(document, MESSAGES.message(f"{_PACKAGE}.GetModelStatusResponse")())
        call.reply(told.SerializeToString())


def _refuse(name: str, _: UnaryCall, __: Buffer) -> None:
    raise Unsupported(f"{name} is not served: {_INSTEAD[name]}")
