"""Creates the benchmark models, each with one request and the expected answer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from harness.environment import CannotRun, file_of
from harness.folders import BENCH

NAMES = ("add1", "ident", "basic_pitch")
REPOSITORY = BENCH / "models"
#: The folder of the repository of add1 with every scheduling feature enabled, and its configuration.
SCHEDULED = BENCH / "scheduled"
SCHEDULING = """
max_batch_size: 64
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
dynamic_batching {
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 2000000
    allow_timeout_override: true max_queue_size: 512 }
  priority_queue_policy { key: 1 value: { default_timeout_microseconds: 1000000
    allow_timeout_override: true max_queue_size: 256 } }
}
"""


@dataclass(frozen=True)
class Model:
    """A model with one FP32 input, and the request with one item that every load generator sends."""

    name: str
    file: Path
    input_name: str
    #: The shape of the request's tensor, including the batch dimension of 1.
    shape: tuple[int, ...]
    #: The approximate time per execution in milliseconds: slow models need longer measurements.
    run_ms: float
    #: The parameters of the request, which are all numbers.
    parameters: tuple[tuple[str, int], ...] = ()

    @property
    def large(self) -> bool:
        """Whether the request is so large that perf_analyzer fails over gRPC with 16 or more clients."""
        return 4 * math.prod(self.shape) > 1 << 18

    @cached_property
    def input(self) -> np.ndarray:
        size = int(np.prod(self.shape))
        if self.name == "ident":
            data = np.full(size, 0.5)
        elif self.name == "basic_pitch":
            # Two seconds of an A major chord at the model's rate of 22,050 Hz, rounded as in typical JSON.
            seconds = np.arange(size) / 22050
            data = np.round(
                sum(np.sin(2 * np.pi * hertz * seconds) for hertz in (220.0, 277.18, 329.63)) * 0.25, 4
            )
        elif self.name == "voice_encoder":
            # The values have the range of mel spectrograms of speech.
            data = np.random.default_rng(0).gamma(0.5, 0.5, size)
        else:
            data = np.arange(size)
        return np.asarray(data, dtype=np.float32).reshape(self.shape)

    @cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        """The outputs of ONNX Runtime in this process, with which every peer's first answer is compared."""
        session = onnxruntime.InferenceSession(str(self.file), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {self.input_name: self.input}), strict=True))

    def binary_request(self) -> tuple[bytes, dict[str, str]]:
        """Returns body and headers of the v2 request with binary input and output tensors."""
        raw = self.input.tobytes()
        tensor = {
            "name": self.input_name,
            "shape": self.shape,
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }
        parameters = {"binary_data_output": True, **dict(self.parameters)}
        header = json.dumps({"inputs": [tensor], "parameters": parameters}, separators=(",", ":")).encode()
        return header + raw, {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        }

    def http_request(self) -> bytes:
        """Returns the whole HTTP/1.1 request, with binary tensors in both directions."""
        body, headers = self.binary_request()
        lines = [
            f"POST /v2/models/{self.name}/infer HTTP/1.1",
            "Host: 127.0.0.1",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def json_request(self) -> tuple[bytes, dict[str, str]]:
        """Returns body and headers of the v2 request with JSON input and output tensors."""
        data = [float(f"{value:.6g}") for value in self.input.ravel()]
        tensor = {"name": self.input_name, "shape": self.shape, "datatype": "FP32", "data": data}
        return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode(), {
            "Content-Type": "application/json"
        }

    def request(self, encoding: str) -> tuple[bytes, dict[str, str]]:
        return self.binary_request() if encoding == "binary" else self.json_request()

    def grpc_request(self) -> bytes:
        """Returns the serialised ModelInferRequest with raw contents."""
        from tritonclient.grpc import service_pb2

        return service_pb2.ModelInferRequest(
            model_name=self.name,
            inputs=[
                service_pb2.ModelInferRequest.InferInputTensor(
                    name=self.input_name, datatype="FP32", shape=self.shape
                )
            ],
            raw_input_contents=[self.input.tobytes()],
            parameters={
                name: service_pb2.InferParameter(int64_param=value) for name, value in self.parameters
            },
        ).SerializeToString()

    def check(self, answer: dict[str, np.ndarray]) -> None:
        """Raises CannotRun if the answer is wrong, so that no server that is fast but wrong is listed."""
        for name, right in self.outputs.items():
            got = answer.get(name)
            if got is None:
                raise CannotRun(
                    f"its answer for {self.name} lacks the output {name}; it has {sorted(answer)}"
                )
            if got.size != right.size or not np.allclose(
                got.reshape(right.shape), right, rtol=1e-3, atol=1e-3
            ):
                raise CannotRun(
                    f"its answer for {self.name}, output {name}, is wrong:"
                    f" {got.ravel()[:4]} instead of {right.ravel()[:4]}"
                )


def write_model(path: Path, operator: str, dims: Sequence[int | str], constant: float | None = None) -> None:
    """Writes a model with one operator on a tensor [N, *dims]; `constant` is its second operand."""
    x = helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["N", *dims])
    y = helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["N", *dims])
    constants = (
        [] if constant is None else [helper.make_tensor("constant", TensorProto.FLOAT, [1], [constant])]
    )
    node = helper.make_node(operator, ["INPUT0", *(one.name for one in constants)], ["OUTPUT0"])
    graph = helper.make_graph([node], "graph", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_slow_model(path: Path, layers: int, width: int = 512, batch: int | str = 1) -> None:
    """Writes a model of `layers` successive matrix products on a [batch, width]; "N" is any batch size."""
    x = helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, [batch, width])
    y = helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, [batch, width])
    weights = helper.make_tensor(
        "weights", TensorProto.FLOAT, [width, width], np.eye(width, dtype=np.float32).tobytes(), raw=True
    )
    names = ["INPUT0", *(f"x{i}" for i in range(1, layers)), "OUTPUT0"]
    nodes = [helper.make_node("MatMul", [names[i], "weights"], [names[i + 1]]) for i in range(layers)]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def fetch_basic_pitch(path: Path) -> None:
    """Extracts the ONNX file from the basic-pitch wheel (Apache-2.0), which depends on TensorFlow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_of("basic-pitch", "0.4.0", "nmp.onnx").read_bytes())


def scheduled_add1() -> Model:
    """Returns add1 with dynamic batching, priorities and queue policies. Its requests set a priority and a
    timeout.
    """
    plain = model("add1", SCHEDULED)
    (SCHEDULED / "add1" / "config.pbtxt").write_text(SCHEDULING)
    return replace(plain, parameters=(("priority", 1), ("timeout", 500_000)))


def model(name: str, repository: Path = REPOSITORY) -> Model:
    """Returns the model `name` in `repository`, and creates it if it is missing."""
    path = repository / name / "1" / "model.onnx"
    if name == "add1":
        if not path.exists():
            write_model(path, "Add", [16], 1.0)
        return Model(name, path, "INPUT0", (1, 16), 0.01)
    if name == "ident":
        if not path.exists():
            write_model(path, "Identity", [3, 224, 224])
        return Model(name, path, "INPUT0", (1, 3, 224, 224), 0.1)
    if name == "basic_pitch":
        if not path.exists():
            fetch_basic_pitch(path)
        return Model(name, path, "serving_default_input_2:0", (1, 43844, 1), 20.0)
    raise CannotRun(f"unknown model {name!r}, expected one of {', '.join(NAMES)}")
