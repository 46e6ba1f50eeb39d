"""TensorFlow Serving's gRPC APIs: recorded exchanges, datatypes, limits, and a stock client."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import Caller, FakeUnaryCall, add_model
from google.protobuf import text_format
from test_tensorflow_serving import make_caller

from backline.dialects.application import build_application
from backline.dialects.off_loop import LARGE
from backline.engine.engine import Engine
from backline.plugins.dialects.tensorflow_serving.rpc import spec_of
from backline.plugins.dialects.tensorflow_serving.tensors import MESSAGES, read_tensor, write_tensor
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor
from support.models import add1
from support.server import ServerProcess, serve

EXCHANGES = tomllib.loads(
    Path(__file__).with_name("tensorflow_serving_rpc_exchanges.toml").read_text("utf-8")
)
CLIENT = Path(__file__).with_name("tensorflow_serving_client.py")
REQUEST = MESSAGES.message("tensorflow.serving.PredictRequest")
RESPONSE = MESSAGES.message("tensorflow.serving.PredictResponse")
TENSOR = MESSAGES.message("tensorflow.TensorProto")


def method_of(name: str) -> Any:
    service = (
        "ModelService" if name in ("GetModelStatus", "HandleReloadConfigRequest") else "PredictionService"
    )
    return MESSAGES.pool().FindServiceByName(f"tensorflow.serving.{service}").FindMethodByName(name)


def call(caller: Caller, name: str, received: bytes) -> FakeUnaryCall:
    path = f"/{method_of(name).containing_service.full_name}/{name}"
    return caller.call(path.encode(), received)


@pytest.fixture
def served() -> Caller:
    return make_caller()


@pytest.mark.parametrize("exchange", EXCHANGES["exchange"], ids=lambda one: one["source"])
def test_recorded_exchanges(served: Caller, exchange: dict[str, Any]) -> None:
    described = method_of(exchange["method"])
    request = text_format.Parse(
        exchange["request"],
        MESSAGES.message(described.input_type.full_name)(),
        descriptor_pool=MESSAGES.pool(),
    )

    found = call(served, exchange["method"], request.SerializeToString())

    assert (found.code, found.error) == (exchange.get("code", 0), exchange.get("error", ""))
    if "answer" in exchange:
        kind = MESSAGES.message(described.output_type.full_name)
        expected = text_format.Parse(exchange["answer"], kind(), descriptor_pool=MESSAGES.pool())
        assert kind.FromString(found.message) == expected


def request_of(model: str, **tensors: Any) -> bytes:
    request = REQUEST(model_spec={"name": model})
    for name, tensor in tensors.items():
        request.inputs[name].CopyFrom(tensor)
    encoded: bytes = request.SerializeToString()
    return encoded


FIELDS = {
    "FP32": "float_val",
    "FP64": "double_val",
    "BYTES": "string_val",
    "INT64": "int64_val",
    "BOOL": "bool_val",
    "FP16": "half_val",
    "BF16": "half_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
}


@pytest.mark.parametrize("datatype", list(DataType), ids=lambda one: one.name)
def test_values_of_every_datatype_come_back_in_their_field(datatype: DataType) -> None:
    array = np.array([[1, 0], [0, 1], [1, 1]])
    data = (
        array.astype(str).astype("S").astype(object)
        if datatype is DataType.BYTES
        else array.astype(datatype.dtype)
    )
    tensor = Tensor("x", datatype, (3, 2), data)

    written = b"".join(write_tensor(tensor))

    parsed = TENSOR.FromString(written)
    assert len(getattr(parsed, FIELDS.get(datatype.name, "int_val"))) == 6
    again = read_tensor("x", written, 0, len(written), on_loop=True)
    assert (again.datatype, again.shape, again.data.tolist()) == (datatype, (3, 2), data.tolist())
    if datatype is not DataType.BYTES:
        content = TENSOR(dtype=parsed.dtype, tensor_shape=parsed.tensor_shape, tensor_content=data.tobytes())
        written = content.SerializeToString()
        again = read_tensor("x", memoryview(written), 0, len(written), on_loop=True)
        assert again.data.tolist() == data.tolist()
        assert not again.data.flags.owndata


@pytest.mark.parametrize(("datatype", "value"), [(5, 70_000), (6, 200), (4, -1), (17, 65_536)])
def test_numbers_out_of_range_are_refused(datatype: int, value: int) -> None:
    written = TENSOR(dtype=datatype, int_val=[value]).SerializeToString()
    with pytest.raises(
        InvalidArgument, match="tensor parsing error: x: a value of its int_val is out of range"
    ):
        read_tensor("x", written, 0, len(written), on_loop=True)


async def test_large_requests_are_read_and_answered_off_the_loop() -> None:
    engine = Engine()
    for name, datatype in (("numbers", DataType.INT64), ("texts", DataType.BYTES)):
        spec = TensorSpec("x", datatype, (-1,))
        output = TensorSpec("y", datatype, (-1,))
        add_model(engine, name, [spec], [output], lambda one: {"y": one["x"]})
    engine.refresh()
    caller = Caller(engine, build_application(engine, dialects=("tensorflow-serving",)))
    shape = {"dim": [{"size": 50_000}]}
    numbers = TENSOR(dtype=9, tensor_shape=shape, int64_val=range(50_000))
    texts = TENSOR(dtype=7, tensor_shape=shape, string_val=[b"%d" % one for one in range(50_000)])

    for model, tensor in (("numbers", numbers), ("texts", texts)):
        received = request_of(model, x=tensor)
        assert len(received) > LARGE
        found = call(caller, "Predict", received)
        assert found.message is None
        await found.answered.wait()
        assert RESPONSE.FromString(found.message).outputs["y"] == tensor


def test_large_floats_are_read_at_once(served: Caller) -> None:
    numbers = np.arange(80_000, dtype=np.float32)
    shape = {"dim": [{"size": 80_000}, {"size": 1}]}
    for tensor in (
        TENSOR(dtype=1, tensor_shape=shape, tensor_content=numbers.tobytes()),
        TENSOR(dtype=1, tensor_shape=shape, float_val=numbers),
    ):
        found = call(served, "Predict", request_of("half_plus_two", x=tensor))
        assert list(RESPONSE.FromString(found.message).outputs["y"].float_val) == (numbers / 2 + 2).tolist()


def test_a_message_cut_anywhere_is_refused(served: Caller) -> None:
    tensor = TENSOR(dtype=1, tensor_shape={"dim": [{"size": 2}, {"size": 1}]}, float_val=[1, 2])
    whole = request_of("half_plus_two", x=tensor)
    for length in range(1, len(whole)):
        found = call(served, "Predict", whole[:length])
        assert found.code == 3, length
        assert "internal" not in found.error


async def test_damaged_messages_get_errors_of_their_own(served: Caller) -> None:
    """Whatever the bytes are, the call ends, and not with an internal error."""
    tensor = TENSOR(dtype=1, tensor_shape={"dim": [{"size": 2}, {"size": 1}]}, float_val=[1, 2])
    texts = TENSOR(dtype=7, tensor_shape={"dim": [{"size": 2}]}, tensor_content=b"\x01\x03abcd")
    random = np.random.default_rng(7)
    for number in range(3000):
        damaged = bytearray(
            request_of("half_plus_two", x=tensor) if number % 2 else request_of("upper", text=texts)
        )
        for place in random.integers(0, len(damaged), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        found = call(served, "Predict", bytes(damaged))
        if found.code == 0 and found.message is None:
            await found.answered.wait()
        assert found.code in (0, 3, 5, 8), (bytes(damaged), found.code, found.error)


@pytest.mark.parametrize("field", ["inputs", "output_filter"])
async def test_requests_with_too_many_fields_are_refused(served: Caller, field: str) -> None:
    received = request_of("half_plus_two") + (b"\x12\x00" if field == "inputs" else b"\x1a\x00") * 10_000
    found = call(served, "Predict", received)
    await found.answered.wait()
    assert (found.code, found.error) == (8, "the request has more than 8192 inputs and outputs")


def test_a_spec_in_several_parts_is_one() -> None:
    """The name that permissions are checked for is the name of the model that runs."""
    parts = REQUEST(model_spec={"name": "first"}), REQUEST(model_spec={"name": "second"})
    joined = b"".join(one.SerializeToString() for one in parts) + b"\x0a\x02\x12\x00"
    assert spec_of(joined) == REQUEST.FromString(joined).model_spec
    assert spec_of(joined).name == "second"


# a stock client, in a process of its own


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    models = folder / "models"
    add1(models)
    add1(models, version="2", constant=2.0)
    (models / "add1" / "config.pbtxt").write_text(
        "version_policy { all {} }\n"
        'parameters { key: "backline.labels.canary" value { string_value: "1" } }\n'
    )
    half = models / "half" / "1"
    half.mkdir(parents=True)
    (half / "model.py").write_text(
        "from backline.model import FP32\n\n\nclass Model:\n    max_batch_size = 32\n\n"
        "    def predict(self, x: FP32[1]) -> FP32[1]:\n        return x / 2 + 2\n"
    )
    write_trees(models / "trees" / "1")
    with serve(models, folder / "log") as running:
        yield running


def write_trees(folder: Path) -> None:
    """A LightGBM model with an input of 3 features."""
    import lightgbm

    folder.mkdir(parents=True)
    rows = np.arange(300, dtype=np.float64).reshape(100, 3)
    data = lightgbm.Dataset(rows, rows[:, 0], params={"verbose": -1})
    lightgbm.train({"verbose": -1, "num_threads": 1}, data, 5).save_model(folder / "model.txt")


def test_a_stock_client_calls_models_of_three_backends(server: ServerProcess) -> None:
    ran = subprocess.run(
        [sys.executable, str(CLIENT), f"127.0.0.1:{server.grpc_port}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    missing = {"error": "NotFound", "text": "Servable not found for request: Specific(nope, 0)"}
    trees = found.pop("trees")
    assert len(trees) == 2
    assert trees[0] < trees[1]
    assert found.pop("trees metadata")
    assert found == {
        "add1": [[2.0 + one for one in range(16)]],
        "add1 version 1": [[1.0 + one for one in range(16)]],
        "add1 label": [[1.0 + one for one in range(16)]],
        "add1 floats": [3.0] * 16,
        "add1 metadata": {
            "model_version": 2,
            "inputs": {"INPUT0": {"shape": [-1, 16], "dtype": "DT_FLOAT"}},
            "outputs": {"OUTPUT0": {"shape": [-1, 16], "dtype": "DT_FLOAT"}},
        },
        "add1 status": {
            "2": {"state": "AVAILABLE", "error_code": 0, "error_message": ""},
            "1": {"state": "AVAILABLE", "error_code": 0, "error_message": ""},
        },
        "half": [[2.5], [3.0], [4.5]],
        "half metadata": {
            "model_version": 1,
            "inputs": {"x": {"shape": [-1, 1], "dtype": "DT_FLOAT"}},
            "outputs": {"output": {"shape": [-1, 1], "dtype": "DT_FLOAT"}},
        },
        "half status": {"1": {"state": "AVAILABLE", "error_code": 0, "error_message": ""}},
        "predict nope": missing,
        "metadata nope": missing,
        "status nope": {"error": "NotFound", "text": "Could not find any versions of model nope"},
        "wrong input": {
            "error": "InvalidArgument",
            "text": "input tensor alias not found in signature: z. Inputs expected to be in the set {x}.",
        },
        "classify": {
            "error": "Unimplemented",
            "text": "Classify is not served: send the features as named inputs to Predict",
        },
    }
