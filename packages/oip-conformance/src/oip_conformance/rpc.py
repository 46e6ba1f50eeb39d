"""A small gRPC client with messages of its own, so that it shares a process with other clients of the protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from oip_conformance.row import NoAnswer
from oip_conformance.tensors import DATATYPES, Tensor

_pool = descriptor_pool.DescriptorPool()
_file = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("oip.binpb").read_bytes()).file[0]
_pool.Add(_file)
_service = _file.service[0]
METHODS = {method.name: method for method in _service.method}
#: What a channel must carry for the rows about large tensors.
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def message(name: str, /, **fields: Any) -> Any:
    """A message of oip.proto, such as "ModelInferRequest"."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_file.package}.{name}"))(**fields)


class RpcError(Exception):
    """A call ended with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        self.details = details
        super().__init__(f"{code.name}: {details}")


class RpcClient:
    """Calls the methods of one server."""

    def __init__(self, target: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.target = target.removeprefix("grpc://")
        self._metadata = tuple((name.lower(), value) for name, value in metadata)
        self._channel = grpc.insecure_channel(self.target, options=_OPTIONS)

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, deadline: float, metadata: Sequence[tuple[str, str]] = ()) -> Any:
        """Calls a unary method.

        Raises RpcError if the call fails, NoAnswer if the row's time is over.
        """
        call = self._channel.unary_unary(*self._arguments(method))
        try:
            return call(request, timeout=max(0.01, deadline - time.monotonic()), metadata=(*self._metadata, *metadata))
        except grpc.RpcError as error:
            raise self._error(error, method, deadline) from None

    def future(self, method: str, request: Any, timeout: float) -> Any:
        """Starts a unary call and returns its future, which can be cancelled."""
        return self._channel.unary_unary(*self._arguments(method)).future(
            request, timeout=timeout, metadata=self._metadata
        )

    def stream(self, requests: Sequence[Any], deadline: float) -> Iterator[Any]:
        """Sends requests to ModelStreamInfer and yields its responses.

        Raises RpcError if the stream ends with a status other than OK, NoAnswer if the row's time is over.
        """
        call = self._channel.stream_stream(*self._arguments("ModelStreamInfer"))
        responses = call(iter(requests), timeout=max(0.01, deadline - time.monotonic()), metadata=self._metadata)
        try:
            yield from responses
        except grpc.RpcError as error:
            raise self._error(error, "ModelStreamInfer", deadline) from None
        finally:
            responses.cancel()

    def command(self, method: str, *requests: Any) -> str:
        """The call as a command line."""
        data = "\n".join(
            json.dumps(json_format.MessageToDict(request, preserving_proto_field_name=True))
            if request.ByteSize() < 4096
            else f"a request of {request.ByteSize()} bytes"
            for request in requests
        )
        name = f"{_file.package}.{_service.name}/{method}"
        return f"grpcurl -plaintext -proto oip.proto -d '{data}' {self.target} {name}"

    def _arguments(self, method: str) -> tuple[str, Any, Any]:
        answer = METHODS[method].output_type.rpartition(".")[2]
        kind = type(message(answer))
        return (
            f"/{_file.package}.{_service.name}/{method}",
            lambda request: request.SerializeToString(),
            kind.FromString,
        )

    def _error(self, error: Any, method: str, deadline: float) -> Exception:
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() > deadline - 0.05:
            return NoAnswer("an answer", f"none before the row's time was over from {method}")
        return RpcError(code, error.details() or "")


def parameter(value: Any) -> Any:
    """The InferParameter of a bool, an int, a float or a string."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return message("InferParameter", **{kinds[type(value)]: value})


def parameters(values: dict[str, Any] | None) -> dict[str, Any]:
    return {name: parameter(value) for name, value in (values or {}).items()}


def input_entry(tensor: Tensor, typed: bool, **given: Any) -> Any:
    """The entry of a tensor in `inputs`, with its data in `contents` if `typed`."""
    entry = message(
        "InferTensor",
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tensor.shape,
        parameters=parameters(given),
    )
    if typed:
        getattr(entry.contents, DATATYPES[tensor.datatype].contents).extend(tensor.data)
    return entry


def infer_request(
    model: str,
    tensors: Sequence[Tensor],
    typed: bool = False,
    outputs: Sequence[str] = (),
    version: str = "",
    id: str = "",
    given: dict[str, Any] | None = None,
) -> Any:
    """A ModelInferRequest, with the data in `raw_input_contents` unless `typed`."""
    return message(
        "ModelInferRequest",
        model_name=model,
        model_version=version,
        id=id,
        parameters=parameters(given),
        inputs=[input_entry(tensor, typed) for tensor in tensors],
        outputs=[message("InferRequestedOutputTensor", name=name) for name in outputs],
        raw_input_contents=[] if typed else [tensor.raw() for tensor in tensors],
    )
