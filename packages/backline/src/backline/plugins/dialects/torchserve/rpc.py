"""TorchServe's gRPC APIs: InferenceAPIsService and ManagementAPIsService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final, TypeAlias
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.admission import admit_message
from backline.dialects.answers import fail_call, guarded, hidden_error
from backline.dialects.bodies.media import accepted
from backline.dialects.bodies.multipart import MAX_PARTS, FormPart
from backline.dialects.bodies.plan import BodyPlan, server_parameters
from backline.dialects.bodies.reader import read_parts
from backline.dialects.bodies.writer import write_body
from backline.dialects.documents import read_message
from backline.dialects.exchange import GRPC, UnaryInference, trace_arrival, trace_refusal
from backline.dialects.json_scan import MAX_DOCUMENT
from backline.dialects.off_loop import LARGE, LargeRequest, OffLoop, turn_of
from backline.dialects.open_inference.grpc.wire_format import length_prefix, string_field
from backline.dialects.plugin import DialectContext, Methods
from backline.engine.engine import Engine
from backline.engine.route import keep_route
from backline.plugins.dialects.torchserve.errors import (
    PredictionFailed,
    RpcFailure,
    find_ready,
    no_worker,
    pretty,
)
from backline.plugins.dialects.torchserve.inference import of_archive
from backline.plugins.dialects.torchserve.management import PAGE, Management, described, model_at
from backline.plugins.dialects.torchserve.requests import (
    BODY,
    FIELDS,
    STAND_INS,
    ArchivePlan,
    Plan,
    body_tensor,
    content_of,
    is_archive,
)
from backline.wire.application import Buffer, RpcError, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from backline_client.protos import Messages
from backline_client.values.errors import (
    BacklineError,
    Internal,
    InvalidArgument,
    QuotaExceeded,
    Unavailable,
)
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

_MESSAGES: Final = Messages(Path(__file__).with_name("descriptors.binpb"))
_INFERENCE: Final = "org.pytorch.serve.grpc.inference"
_MANAGEMENT: Final = "org.pytorch.serve.grpc.management"
_REQUEST: Final = f"{_INFERENCE}.PredictionsRequest"
#: The numbers of fields. Those of the model and version are the same in all requests but a registration.
_MODEL, _VERSION, _SEQUENCE = 1, 2, 4
_REGISTERED, _URL = 5, 9
#: The tags of PredictionResponse.prediction and google.rpc.ErrorInfo.reason.
_PREDICTION = _REASON = b"\x0a"
_DECOUPLED: Final = "the model sends any number of responses: call StreamPredictions"
_ERROR_INFO: Final = "type.googleapis.com/google.rpc.ErrorInfo"
_Work: TypeAlias = Callable[[Any, UnaryCall], "str | Coroutine[Any, Any, str]"]


def _read(name: str, received: Buffer, limit: int) -> Any:
    return read_message(name, received, limit, _MESSAGES.message)


def _registered(received: Buffer) -> str:
    """Returns the name of the model that a registration is about."""
    return string_field(received, _REGISTERED) or model_at(string_field(received, _URL))


class RpcReader:
    """Reads PredictionsRequests. The method `read` implements the protocol ReadRequest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(
        self, received: Buffer, metadata: Mapping[bytes, bytes], name: str, version: str, on_loop: bool
    ) -> tuple[Plan, str, dict[str, Tensor]]:
        if on_loop and len(received) > LARGE:
            raise LargeRequest
        given = _read(_REQUEST, received, len(received)).input
        if len(given) > MAX_PARTS:
            raise InvalidArgument(
                f"the request has {len(given)} inputs, more than the {MAX_PARTS} that are allowed"
            )
        model = find_ready(self._engine, name, version)
        id = str(uuid4())
        if is_archive(model):
            row = msgspec.msgpack.encode(dict(given))
            return ArchivePlan(id, {FIELDS: True}), id, {BODY: body_tensor(model, row)}
        parts = [FormPart(field, "", "", value) for field, value in given.items()]
        body = read_parts(model, parts, stand_ins=STAND_INS)
        parameters = server_parameters(model, body.parameters)
        plan = BodyPlan(accepted(b""), body.unbatched, body.rows, model.signature.outputs, parameters)
        return plan, id, body.inputs


def _content(plan: Plan, response: InferResponse) -> bytes:
    return write_body(plan, response)[1] if isinstance(plan, BodyPlan) else content_of(response)


def _write(plan: Plan, response: InferResponse) -> Sequence[Buffer]:
    return _encoded(_content(plan, response))


def _encoded(content: bytes) -> tuple[bytes, bytes]:
    """Returns a PredictionResponse with this prediction, in two parts."""
    return _PREDICTION + length_prefix(len(content)), content


def _failure(error: BacklineError, *, archive: bool) -> RpcFailure:
    """Returns the error of a request that a model was to run."""
    if archive:
        error = of_archive(error)
    elif error.http_status == Internal.http_status:
        error = PredictionFailed(error)
    return RpcFailure(error)


class RpcService:
    """The methods of both services."""

    def __init__(self, context: DialectContext) -> None:
        self._engine = context.engine
        self._deferred = context.deferred
        self._management = Management(context.engine)
        self._off_loop = OffLoop()
        self._read = RpcReader(context.engine).read
        self._forward = context.forwarding.grpc
        self._to_models = self._unary(archive=False)
        self._to_archives = self._unary(archive=True)

    def _unary(self, *, archive: bool) -> UnaryInference[UnaryCall, Plan, Sequence[Buffer]]:
        def fail(call: UnaryCall, error: BacklineError) -> None:
            fail_call(call, _failure(error, archive=archive))

        carrier = replace(GRPC, forward=self._forward, fail=fail)
        return UnaryInference(self._engine, carrier, self._read, _write, self._off_loop, decoupled=_DECOUPLED)

    def methods(self) -> Methods:
        inference, management = f"{_INFERENCE}.InferenceAPIsService", f"{_MANAGEMENT}.ManagementAPIsService"
        model_of = partial(string_field, number=_MODEL)
        found: dict[str, UnaryMethod | StreamMethod] = {
            f"/{inference}/Ping": UnaryMethod(guarded(self._ping), Scope.HEALTH),
            f"/{inference}/Predictions": UnaryMethod(guarded(self._predict), Scope.INFER, model_of),
            f"/{inference}/StreamPredictions": StreamMethod(self._stream, Scope.INFER),
            f"/{inference}/StreamPredictions2": StreamMethod(self._stream_both_ways, Scope.INFER),
        }
        for name, kind, scope, named, work in (
            ("DescribeModel", "DescribeModelRequest", Scope.READ, model_of, self._describe),
            ("ListModels", "ListModelsRequest", Scope.READ, None, self._list),
            ("RegisterModel", "RegisterModelRequest", Scope.MANAGE, _registered, self._register),
            ("ScaleWorker", "ScaleWorkerRequest", Scope.MANAGE, model_of, self._scale),
            ("SetDefault", "SetDefaultRequest", Scope.MANAGE, model_of, self._set_default),
            ("UnregisterModel", "UnregisterModelRequest", Scope.MANAGE, model_of, self._unregister),
        ):
            handler = guarded(partial(self._manage, f"{_MANAGEMENT}.{kind}", work))
            found[f"/{management}/{name}"] = UnaryMethod(handler, scope, named, lists=name == "ListModels")
        return {path.encode(): method for path, method in found.items()}

    # inference

    def _ping(self, call: UnaryCall, _: Buffer) -> None:
        health = pretty({"status": "Healthy" if self._engine.ready else "Unhealthy"}).decode().rstrip()
        told = _MESSAGES.message(f"{_INFERENCE}.TorchServeHealthResponse")(health=health)
        call.reply(told.SerializeToString())

    def _predict(self, call: UnaryCall, received: Buffer) -> None:
        name, version = self._asked(received)

        def known() -> None:
            model = find_ready(self._engine, name, version)
            taker = self._to_archives if is_archive(model) else self._to_models
            try:
                taker.take(call, received, call.metadata, name, version, call.deadline)
            except BacklineError as error:
                raise _refusal(name, error) from None

        if self._engine.is_unknown(name, version):
            self._deferred.answer(call, self._wake(name, version), lambda _: known())
        else:
            known()

    def _asked(self, received: Buffer) -> tuple[str, str]:
        """Returns the model and version of a request. Raises RpcFailure if they are missing or not ready."""
        name, version = string_field(received, _MODEL), string_field(received, _VERSION)
        try:
            if not name:
                raise InvalidArgument("Parameter model_name is required.")
            find_ready(self._engine, name, version)
        except Unavailable as error:
            raise RpcFailure(error) from None
        except BacklineError as error:
            raise RpcFailure(error, Internal.grpc_code) from None  # as in TorchServe
        return name, version

    async def _wake(self, name: str, version: str) -> None:
        try:
            await self._engine.wake(name, version)
        except BacklineError as error:
            raise _refusal(name, error) from None

    async def _stream(self, call: StreamCall) -> None:
        """Sends the responses to one request."""
        received = await call.receive()
        if received is None:
            raise RpcError(InvalidArgument.grpc_code, "StreamPredictions needs a request message")
        try:
            async for content in self._results(call, received):
                await call.send(b"".join(_encoded(content)))
        except RpcFailure as error:
            raise RpcError(error.grpc_code, error.message) from None

    async def _stream_both_ways(self, call: StreamCall) -> None:
        """Responds to each request before it reads the next. Errors are responses too, and do not end the
        stream.
        """
        response = _MESSAGES.message(f"{_INFERENCE}.PredictionResponse")
        while (received := await call.receive()) is not None:
            sequence = string_field(received, _SEQUENCE)
            tail = response(sequence_id=sequence).SerializeToString()
            try:
                async for content in self._results(call, received, is_sequence=True):
                    await call.send(b"".join((*_encoded(content), tail)))
            except RpcFailure as error:
                failed = response(sequence_id=sequence or None)
                failed.status.code, failed.status.message = error.grpc_code, error.text
                reason = error.kind.encode()
                failed.status.details.add(
                    type_url=_ERROR_INFO, value=_REASON + length_prefix(len(reason)) + reason
                )
                await call.send(failed.SerializeToString())

    async def _results(
        self, call: StreamCall, received: Buffer, *, is_sequence: bool = False
    ) -> AsyncIterator[bytes]:
        """Runs a request that came on a stream, and yields the results. Raises RpcFailure."""
        archive = False
        name, metadata = string_field(received, _MODEL), call.metadata
        began = 0 if self._engine.tracer is None else monotonic_ns()
        try:
            admit_message(call.identity, Scope.INFER, name or None, len(received))
            if is_sequence and not string_field(received, _SEQUENCE):
                raise RpcFailure(InvalidArgument("Parameter sequenceId is required."), Internal.grpc_code)
            name, version = self._asked(received)
            if self._engine.is_unknown(name, version):
                await self._wake(name, version)
            archive = is_archive(find_ready(self._engine, name, version))
            read = partial(self._read, received, metadata, name, version)
            try:
                plan, id, inputs = read(True)
            except LargeRequest:
                work = partial(read, False)
                plan, id, inputs = await self._off_loop.submit(work, len(received), turn_of(call))
            request = plan.request(name, version, id, inputs, call.deadline)
            keep_route(request, metadata)
            if self._forward is not None:
                request = self._forward.apply(request, metadata)
            admit = None if call.identity is None else call.identity.follow
            trace = trace_arrival(self._engine, "GRPC", name, metadata, began)
            responses = self._engine.stream(request, trace=trace, admit=admit)
        except RpcFailure:
            raise
        except BacklineError as error:
            trace_refusal(self._engine, "GRPC", name, metadata, began, error)
            raise _refusal(name, error, archive=archive) from None
        except Exception as error:
            raise RpcFailure(hidden_error("a gRPC stream", error)) from None
        try:
            async with responses:
                async for response in responses:
                    yield _content(plan, response)
        except BacklineError as error:
            raise _failure(error, archive=archive) from None

    # management

    def _manage(self, kind: str, work: _Work, call: UnaryCall, received: Buffer) -> None:
        try:
            told = work(_read(kind, received, MAX_DOCUMENT), call)
        except BacklineError as error:
            raise RpcFailure(error) from None
        if isinstance(told, str):
            _tell(call, told)
        else:
            self._deferred.answer(call, _in_form(told), partial(_tell, call))

    def _list(self, asked: Any, call: UnaryCall) -> str:
        limit = _number(asked.limit, PAGE)
        return _pretty(self._management.page(limit, _number(asked.next_page_token, 0), call.identity))

    def _describe(self, asked: Any, call: UnaryCall) -> str | Coroutine[Any, Any, str]:
        models = self._management.versions(asked.model_name, asked.model_version)
        if not asked.customized:
            return _pretty([described(model) for model in models])

        async def customized() -> str:
            return _pretty(await self._management.customized(models, call.metadata, call.identity))

        return customized()

    def _register(self, asked: Any, call: UnaryCall) -> Coroutine[Any, Any, str]:
        given = {field.name: str(value) for field, value in asked.ListFields()}
        return self._management.register(given, call)

    def _scale(self, asked: Any, _: UnaryCall) -> str:
        least = _number(asked.min_worker, 1)
        most = _number(asked.max_worker, least)
        return self._management.scale(asked.model_name, asked.model_version, least, most)

    def _set_default(self, asked: Any, call: UnaryCall) -> Coroutine[Any, Any, str]:
        return self._management.set_default(asked.model_name, asked.model_version, call)

    def _unregister(self, asked: Any, call: UnaryCall) -> Coroutine[Any, Any, str]:
        return self._management.unregister(asked.model_name, asked.model_version, call)


def _tell(call: UnaryCall, text: str) -> None:
    call.reply(_MESSAGES.message(f"{_MANAGEMENT}.ManagementResponse")(msg=text).SerializeToString())


async def _in_form(work: Coroutine[Any, Any, str]) -> str:
    try:
        return await work
    except BacklineError as error:
        raise RpcFailure(error) from None


def _refusal(model: str, error: BacklineError, *, archive: bool = False) -> RpcFailure:
    """Returns the error of a request that was refused before the model ran."""
    if isinstance(error, RpcFailure):
        return error
    if isinstance(error, Unavailable) and not isinstance(error, QuotaExceeded):
        return RpcFailure(no_worker(model, error))
    return _failure(error, archive=archive)


def _number(value: int, default: int) -> int:
    """Returns a number of a request, or `default` for 0, which stands for a number that is missing, and for
    numbers below it.
    """
    return value if value > 0 else default


def _pretty(document: Any) -> str:
    return pretty(document).decode().rstrip()
