"""The gRPC service inference.GRPCInferenceService, and its unary inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import guarded, unary_method
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.documents import read_message
from backline.dialects.exchange import GRPC, UnaryInference
from backline.dialects.forwarding import ForwardPattern
from backline.dialects.off_loop import OffLoop
from backline.dialects.open_inference.configuration import model_configuration
from backline.dialects.open_inference.grpc.messages import GrpcReader, GrpcWriter
from backline.dialects.open_inference.grpc.stream import StreamInference
from backline.dialects.open_inference.grpc.wire_format import model_name
from backline.dialects.open_inference.metadata import (
    model_index,
    model_metadata,
    server_metadata,
    visible_to,
)
from backline.dialects.open_inference.repository import RepositoryCalls, named_in_load, refuse_repository
from backline.dialects.open_inference.settings import LoggingExtension, TraceSettings
from backline.dialects.open_inference.shared_memory import CudaRegions, SharedMemoryRegions
from backline.dialects.open_inference.statistics import model_statistics
from backline.engine.engine import Engine
from backline.wire.application import Buffer, StreamMethod, UnaryCall, UnaryMethod
from backline_client.protos import message, pool
from backline_client.values.errors import NotFound
from backline_client.values.tensor import in_pieces

#: Triton's error text for decoupled models.
_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class GrpcInference:
    """The handler of ModelInfer. The reader, the writer and the thread are also used for ModelStreamInfer."""

    def __init__(self, engine: Engine, forward: ForwardPattern | None = None) -> None:
        """`forward` says which metadata models see as parameters."""
        self.forward = forward
        writer = GrpcWriter(engine)
        self.write = writer.write
        self.read = GrpcReader(engine).read
        self.off_loop = OffLoop()
        carrier = replace(GRPC, forward=forward)
        self._take = UnaryInference(
            engine, carrier, self.read, writer.write_parts, self.off_loop, decoupled=_DECOUPLED
        ).take

    def infer(self, call: UnaryCall, received: Buffer) -> None:
        """Submits a request; the response follows later. Raises BacklineError if the request is refused
        immediately.
        """
        self._take(call, received, call.metadata, "", "", call.deadline)


SERVICE = "inference.GRPCInferenceService"
#: LogSettings and TraceSetting are used both to read and to change settings, so both need the stronger scope.
_SCOPES = {
    "ServerLive": Scope.HEALTH,
    "ServerReady": Scope.HEALTH,
    "ModelReady": Scope.READ,
    "ServerMetadata": Scope.READ,
    "ModelMetadata": Scope.READ,
    "ModelConfig": Scope.READ,
    "ModelStatistics": Scope.READ,
    "ModelInfer": Scope.INFER,
    "ModelStreamInfer": Scope.INFER,
    "RepositoryIndex": Scope.READ,
    "RepositoryModelLoad": Scope.MANAGE,
    "RepositoryModelUnload": Scope.MANAGE,
    "SystemSharedMemoryStatus": Scope.READ,
    "SystemSharedMemoryRegister": Scope.MANAGE,
    "SystemSharedMemoryUnregister": Scope.MANAGE,
    "CudaSharedMemoryStatus": Scope.READ,
    "CudaSharedMemoryRegister": Scope.MANAGE,
    "CudaSharedMemoryUnregister": Scope.MANAGE,
    "LogSettings": Scope.ADMIN,
    "TraceSetting": Scope.ADMIN,
}
#: The fields in which messages name their model. Methods that are not listed concern the server or every
#: model, or read the name in another way (ModelInfer, ModelStreamInfer and RepositoryModelLoad).
_MODEL_FIELDS = {
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
    "RepositoryModelUnload": "model_name",
    "TraceSetting": "model_name",
}
#: Methods that need not name a model. If no model is named, all models that the caller may read about are
#: listed.
_LISTS = frozenset(("ModelStatistics", "RepositoryIndex"))


class InferenceService:
    """The methods of the inference service. Most respond immediately from the engine's state."""

    def __init__(
        self, engine: Engine, deferred: DeferredAnswers, forward: ForwardPattern | None = None
    ) -> None:
        """`forward` says which metadata models see as parameters."""
        self._forward = forward
        self._engine = engine
        self._deferred = deferred

    def methods(self) -> dict[bytes, UnaryMethod | StreamMethod]:
        """Returns all methods of the service by gRPC path."""
        inference = GrpcInference(self._engine, self._forward)
        repository = RepositoryCalls(self._engine, self._deferred)
        served: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: {"live": self._engine.live},
            "ServerReady": lambda _: {"ready": self._engine.ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: server_metadata(self._engine),
            "ModelMetadata": lambda asked: _metadata(self._engine, asked.name, asked.version),
            "ModelConfig": lambda asked: {
                "config": model_configuration(self._engine, asked.name, asked.version)
            },
            "LogSettings": LoggingExtension(self._engine).call,
            "TraceSetting": TraceSettings(self._engine).answer,
            **self._shared_memory(),
        }
        methods: dict[bytes, UnaryMethod | StreamMethod] = {}
        for method in pool().FindServiceByName(SERVICE).methods:
            path = f"/{SERVICE}/{method.name}".encode()
            scope = _SCOPES[method.name]
            if method.name == "ModelInfer":
                methods[path] = UnaryMethod(guarded(inference.infer), scope, model_name)
            elif method.name == "ModelStreamInfer":
                methods[path] = StreamMethod(StreamInference(self._engine, inference).serve, scope)
            elif method.name == "RepositoryModelLoad":
                methods[path] = UnaryMethod(guarded(repository.load), scope, named_in_load)
            elif method.name == "RepositoryModelUnload":
                methods[path] = UnaryMethod(guarded(repository.unload), scope)
            elif method.name == "ModelStatistics":
                methods[path] = UnaryMethod(guarded(partial(self._statistics, method)), scope)
            elif method.name == "RepositoryIndex":
                methods[path] = UnaryMethod(guarded(partial(self._index, method)), scope)
            elif method.name in ("ModelMetadata", "ModelConfig"):
                methods[path] = unary_method(method, scope, served[method.name], self._known)
            else:
                methods[path] = unary_method(method, scope, served[method.name])
            field = _MODEL_FIELDS.get(method.name)
            served_by = methods[path]
            if field is not None and isinstance(served_by, UnaryMethod):
                methods[path] = served_by = replace(served_by, model_of=partial(_model_of, method, field))
            if method.name in _LISTS and isinstance(served_by, UnaryMethod):
                methods[path] = replace(served_by, lists=True)
        return methods

    def _model_ready(self, asked: Any) -> dict[str, bool]:
        """Returns the response that says whether a model is ready.

        As in Triton, an unknown model counts as not ready and is not an error.
        """
        try:
            return {"ready": self._engine.is_ready(asked.name, asked.version)}
        except NotFound:
            return {"ready": False}

    def _known(self, asked: Any, call: UnaryCall, answer: Callable[[], None]) -> None:
        self._deferred.when_known(asked.name, asked.version, call, answer)

    def _statistics(self, method: Any, call: UnaryCall, received: Buffer) -> None:
        """Responds with the encoded statistics of all models, one after another: concatenated protobuf
        messages merge into one.
        """
        asked = read_message(method.input_type.full_name, received)
        response_type = message(method.output_type.full_name)
        told = model_statistics(self._engine, asked.name, asked.version, visible_to(call.identity))
        written = (response_type(model_stats=[one]).SerializeToString() for one in told)
        self._deferred.answer(call, in_pieces(written), lambda models: call.reply(b"".join(models)))

    def _shared_memory(self) -> dict[str, Callable[[Any], Any]]:
        system = SharedMemoryRegions(self._engine)
        cuda = CudaRegions(system)
        return {
            "SystemSharedMemoryStatus": lambda asked: {
                "regions": {entry["name"]: entry for entry in system.status(asked.name)}
            },
            "SystemSharedMemoryRegister": lambda asked: system.register(
                asked.name, asked.key, asked.offset, asked.byte_size
            ),
            "SystemSharedMemoryUnregister": lambda asked: system.unregister(asked.name),
            "CudaSharedMemoryStatus": lambda asked: {
                "regions": {entry["name"]: entry for entry in cuda.status(asked.name)}
            },
            "CudaSharedMemoryRegister": lambda asked: cuda.register(
                asked.name, asked.raw_handle, "failed to register shared memory region: invalid args"
            ),
            "CudaSharedMemoryUnregister": lambda asked: cuda.unregister(asked.name),
        }

    def _index(self, method: Any, call: UnaryCall, received: Buffer) -> None:
        asked = read_message(method.input_type.full_name, received)
        if asked.repository_name:
            refuse_repository()
        listed = model_index(self._engine, visible_to(call.identity), only_ready=asked.ready)
        call.reply(message(method.output_type.full_name)(models=listed).SerializeToString())


def _model_of(method: Any, field: str, received: Buffer) -> str:
    """Returns the name of the model in a request message; empty for a message about every model."""
    name: str = getattr(read_message(method.input_type.full_name, received), field)
    return name


def _metadata(engine: Engine, name: str, version: str) -> dict[str, Any]:
    """Returns the metadata of a model in the form of its message."""
    document = model_metadata(engine, name, version)
    for tensor in (*document["inputs"], *document["outputs"]):
        if "parameters" in tensor:
            tensor["parameters"] = {
                key: {"bool_param" if value is True else "string_param": value}
                for key, value in tensor["parameters"].items()
            }
    return document
