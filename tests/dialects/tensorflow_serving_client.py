"""Calls a server with ovmsclient, which has TensorFlow Serving's stock stubs, and prints what it got.

A program of its own, because the stubs register names that TensorFlow registers too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from ovmsclient import make_grpc_client, make_tensor_proto
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    classification_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

ROW = np.arange(16, dtype=np.float32)[None]
STUBS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.NOT_FOUND: "NotFound",
    grpc.StatusCode.INVALID_ARGUMENT: "InvalidArgument",
    grpc.StatusCode.UNIMPLEMENTED: "Unimplemented",
}


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def main(address: str) -> None:
    client = make_grpc_client(address)
    channel = grpc.insecure_channel(address)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def labelled(label: str = "", **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "add1"
        if label:
            request.model_spec.version_label = label
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(value)
        return stub.Predict(request, timeout=30).outputs["OUTPUT0"]

    calls: dict[str, Callable[[], Any]] = {
        "add1": lambda: client.predict({"INPUT0": ROW}, "add1"),
        "add1 version 1": lambda: client.predict({"INPUT0": ROW}, "add1", 1),
        "add1 label": lambda: np.reshape(
            labelled("canary", INPUT0=make_tensor_proto(ROW)).float_val, (1, 16)
        ),
        "add1 floats": lambda: list(
            labelled(INPUT0=make_tensor_proto(np.ones((1, 16), np.float32))).float_val
        ),
        "add1 metadata": lambda: client.get_model_metadata("add1"),
        "add1 status": lambda: client.get_model_status("add1"),
        "half": lambda: client.predict({"x": np.array([[1], [2], [5]], np.float32)}, "half"),
        "half metadata": lambda: client.get_model_metadata("half"),
        "half status": lambda: client.get_model_status("half"),
        "trees metadata": lambda: client.get_model_metadata("trees"),
        "predict nope": lambda: client.predict({"x": ROW}, "nope"),
        "metadata nope": lambda: client.get_model_metadata("nope"),
        "status nope": lambda: client.get_model_status("nope"),
        "wrong input": lambda: client.predict({"z": ROW}, "half"),
        "classify": lambda: stub.Classify(
            classification_pb2.ClassificationRequest(model_spec={"name": "half"}), timeout=30
        ),
    }
    found = {name: told(work) for name, work in calls.items()}
    (name, spec), *_ = found["trees metadata"]["inputs"].items()
    types = {"DT_FLOAT": np.float32, "DT_DOUBLE": np.float64}
    rows = np.array([[0, 1, 2], [297, 298, 299]], types[spec["dtype"]])
    found["trees"] = np.ravel(client.predict({name: rows}, "trees")).tolist()
    json.dump(found, sys.stdout)


def told(work: Callable[[], Any]) -> Any:
    try:
        return plain(work())
    except Exception as error:
        cause = error if isinstance(error, grpc.RpcError) else error.__context__
        if not isinstance(cause, grpc.RpcError):
            raise
        return {"error": STUBS.get(cause.code(), str(cause.code())), "text": cause.details()}


if __name__ == "__main__":
    main(sys.argv[1])
