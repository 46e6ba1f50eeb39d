"""A client with TensorFlow and tensorflow-serving-api, given the gRPC port. Prints how many calls it made."""

import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

calls = []
channel = grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}")
prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
models = model_service_pb2_grpc.ModelServiceStub(channel)


def predict(name, version=None, label=None, outputs=(), **inputs):
    calls.append("predict")
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value)
    return prediction.Predict(request, 30)


def refused(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("not refused")


def status(name, version=None):
    calls.append("status")
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return models.GetModelStatus(request, 30).model_version_status


def metadata(name, field="signature_def"):
    calls.append("metadata")
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=[field])
    request.model_spec.name = name
    found = prediction.GetModelMetadata(request, 30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert found.metadata["signature_def"].Unpack(signatures)
    return signatures.signature_def["serving_default"]


row = np.arange(16, dtype=np.float32).reshape(1, 16)
inputs, outputs = metadata("add1").inputs, metadata("add1").outputs
assert [one.size for one in next(iter(inputs.values())).tensor_shape.dim] == [-1, 16]
(x,), (y,) = inputs, outputs

# ONNX, with versions
found = predict("add1", **{x: tf.make_tensor_proto(row)})
assert found.model_spec.version.value == 2
assert np.array_equal(tf.make_ndarray(found.outputs[y]), row + 2)
found = predict("add1", version=1, **{x: tf.make_tensor_proto(row)})
assert list(found.outputs[y].float_val) == (row + 1).reshape(-1).tolist()
large = np.zeros((20_000, 16), np.float32)
assert np.array_equal(
    tf.make_ndarray(predict("add1", **{x: tf.make_tensor_proto(large)}).outputs[y]), large + 2
)
typed = tf.make_tensor_proto(row)
typed.ClearField("tensor_content")
typed.float_val.extend(row.reshape(-1).tolist())
assert np.array_equal(tf.make_ndarray(predict("add1", **{x: typed}).outputs[y]), row + 2)
same = tf.make_tensor_proto(3.0, shape=[2, 16])  # one value, for all elements
assert np.array_equal(
    tf.make_ndarray(predict("add1", **{x: same}).outputs[y]), np.full((2, 16), 5, np.float32)
)

# A SavedModel
assert list(predict("half", x=tf.make_tensor_proto([1.0, 2.0, 5.0])).outputs["y"].float_val) == [
    2.5,
    3.0,
    4.5,
]
assert metadata("half").method_name == "tensorflow/serving/predict"

# A Python model, with texts
found = predict(
    "python", outputs=["output"], text=tf.make_tensor_proto(["ab"]), x=tf.make_tensor_proto([[1.0, 2.0]])
)
assert tf.make_ndarray(found.outputs["output"]).tolist() == [[2.0, 4.0]]

# States
assert [(one.version, one.state) for one in status("add1")] == [(2, 30), (1, 30)]
assert [one.version for one in status("add1", 1)] == [1]

# Errors
assert refused(lambda: predict("nope")) == ("NOT_FOUND", "Servable not found for request: Latest(nope)")
assert refused(lambda: predict("add1", label="x")) == (
    "INVALID_ARGUMENT",
    "Unrecognized servable version label: x",
)
assert refused(lambda: status("nope")) == ("NOT_FOUND", "Could not find any versions of model nope")
code, text = refused(lambda: predict("half"))
assert (code, text[:40]) == ("INVALID_ARGUMENT", "input size does not match signature: 0!=")
code, text = refused(lambda: predict("half", x=tf.make_tensor_proto("text")))
assert code == "INVALID_ARGUMENT", text
print(f"{len(calls)} calls")
