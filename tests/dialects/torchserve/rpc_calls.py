"""Calls of TorchServe's gRPC APIs, which are recorded from TorchServe itself and compared with ours.

To record, start TorchServe with two versions of the archive of handler.py, both with the name `echo`, and a
third archive, other.mar, in the model store:

    torchserve --start --model-store store --models echo=echo.mar echo=echo2.mar --disable-token-auth \
        --enable-model-api
    python -m dialects.torchserve.rpc_calls > rpc_exchanges.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc

from backline.plugins.dialects import torchserve
from backline_client.protos import Messages

MESSAGES = Messages(Path(torchserve.__file__).with_name("descriptors.binpb"))
INFERENCE, MANAGEMENT = torchserve.PLUGINS[0].services


def _predict(data: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "Predictions", {"model_name": "echo", "input": {"data": data}, **fields}


#: The methods and requests, in order. The requests of a stream are in a list. The bytes of inputs are in
#: Latin-1.
CALLS: tuple[tuple[str, Any], ...] = (
    ("Ping", {}),
    ("SetDefault", {"model_name": "echo", "model_version": "1.0"}),
    _predict("hello"),
    _predict("hello", model_version="2.0"),
    _predict("hello", input={"body": "hello"}),
    _predict("hello", input={"a": "1"}),
    _predict("hello", input={}),
    _predict("h\xc3\xa9\x00\xff"),
    _predict("bad"),
    _predict("broken"),
    _predict("few"),
    _predict("no list"),
    _predict("set"),
    _predict("text"),
    _predict("bytes"),
    _predict("number"),
    _predict("letters"),
    _predict("teapot"),
    _predict("typed"),
    _predict("x", model_version="9.0"),
    _predict("x", model_name="nope"),
    ("StreamPredictions", {"model_name": "nope", "input": {"data": "x"}}),
    ("StreamPredictions", {"model_name": "echo", "model_version": "9.0", "input": {"data": "x"}}),
    ("StreamPredictions2", [{"model_name": "echo", "input": {"data": "hello"}}]),
    ("ListModels", {"limit": 10}),
    ("ListModels", {"limit": 10, "next_page_token": 5}),
    ("ListModels", {"limit": -1}),
    ("DescribeModel", {"model_name": "nope"}),
    ("DescribeModel", {"model_name": "echo", "model_version": "9.0"}),
    ("RegisterModel", {}),
    ("RegisterModel", {"url": "nope.mar"}),
    ("RegisterModel", {"url": "../x.mar"}),
    ("RegisterModel", {"url": "other.mar", "initial_workers": 1, "synchronous": True}),
    ("ListModels", {"limit": 1}),
    ("ListModels", {"limit": 1, "next_page_token": 1}),
    ("ScaleWorker", {"model_name": "other", "min_worker": 1, "max_worker": 1, "synchronous": True}),
    ("ScaleWorker", {"model_name": "other", "model_version": "1.0", "min_worker": 1, "synchronous": True}),
    ("ScaleWorker", {"model_name": "other", "min_worker": 3, "max_worker": 2}),
    ("ScaleWorker", {"model_name": "nope", "min_worker": 1}),
    ("ScaleWorker", {"model_name": "other", "model_version": "9.0", "min_worker": 1}),
    ("SetDefault", {"model_name": "echo", "model_version": "7.0"}),
    ("SetDefault", {"model_name": "echo"}),
    ("SetDefault", {"model_name": "nope", "model_version": "1.0"}),
    ("UnregisterModel", {"model_name": "echo", "model_version": "1.0"}),
    ("UnregisterModel", {"model_name": "echo", "model_version": "9.0"}),
    ("UnregisterModel", {"model_name": "echo", "model_version": "2.0"}),
    ("UnregisterModel", {"model_name": "other"}),
    ("UnregisterModel", {"model_name": "other"}),
    # Answers that differ.
    _predict("x", model_name=""),
    ("StreamPredictions", {"model_name": "echo", "input": {"data": "text"}}),
    ("StreamPredictions2", [{"model_name": "nope", "sequence_id": "s", "input": {"data": "x"}}]),
    ("ListModels", {}),
    ("UnregisterModel", {}),
)


def ask(inference: grpc.Channel, management: grpc.Channel, method: str, request: Any) -> dict[str, Any]:
    """Calls a method. Returns the responses in "answers" and, if the call failed, its "code" and "text"."""
    of_inference = method == "Ping" or "Predictions" in method
    service = INFERENCE if of_inference else MANAGEMENT
    described = MESSAGES.pool().FindServiceByName(service).FindMethodByName(method)
    sent, received = (
        MESSAGES.message(kind.full_name) if kind.file.package != "google.protobuf" else None
        for kind in (described.input_type, described.output_type)
    )
    channel = inference if of_inference else management
    path = f"/{service}/{method}"
    write = lambda fields: b"" if sent is None else _filled(sent, fields).SerializeToString()  # noqa: E731
    answers: list[Any] = []
    try:
        if method.startswith("StreamPredictions"):
            call: Iterable[bytes]
            if isinstance(request, list):
                call = channel.stream_stream(path)(iter(map(write, request)), timeout=60)
            else:
                call = channel.unary_stream(path)(write(request), timeout=60)
            answers += (_shown(received.FromString(one)) for one in call)
        else:
            answers.append(_shown(received.FromString(channel.unary_unary(path)(write(request), timeout=60))))
    except grpc.RpcError as error:
        return {"answers": answers, "code": error.code().name, "text": error.details()}
    return {"answers": answers}


def _filled(kind: Any, fields: Mapping[str, Any]) -> Any:
    given = dict(fields)
    if "input" in given:
        given["input"] = {name: text.encode("latin-1") for name, text in given["input"].items()}
    return kind(**given)


def _shown(answer: Any) -> dict[str, Any]:
    """Returns the fields of a response that are set."""
    found: dict[str, Any] = {}
    for field, value in answer.ListFields():
        if field.name == "status":
            found["status"] = [value.code, value.message, value.details[0].value.decode("latin-1")]
        else:
            found[field.name] = value.decode("latin-1") if isinstance(value, bytes) else value
    return found


if __name__ == "__main__":
    ports = [grpc.insecure_channel(f"127.0.0.1:{port}") for port in (sys.argv[1:] or (7070, 7071))]
    told = [
        {"method": method, "request": request, **ask(*ports, method, request)} for method, request in CALLS
    ]
    json.dump(
        {"source": "TorchServe 0.12.0 with two versions of handler.py", "exchanges": told},
        sys.stdout,
        indent=1,
    )
