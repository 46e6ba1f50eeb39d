"""Sequences on a running server over HTTP and gRPC: states, controls, errors, version changes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from backline import connect
from backline.embedded.embedded import Embedded
from backline.lifecycle.options import LifecycleOptions
from backline.schedule.sequences.state_store import MemoryStateStore
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, Unsupported
from backline_client.values.messages import InferRequest, SequenceStep
from backline_client.values.tensor import Tensor
from support.server import ServerProcess, serve

VAD = """
max_batch_size = 16
instance_group = [{ count = 1 }]
batch_axis = { state = 1, stateN = 1 }
constant_input = { sr = 16000 }

[sequence_batching]
max_sequence_idle_microseconds = 20000000
oldest = { max_candidate_sequences = 64 }

[[sequence_batching.state]]
input_name = "state"
output_name = "stateN"
data_type = "TYPE_FP32"
dims = [2, 128]
"""

#: Returns x, the controls, and the running sum of the sequence, kept only in the server's state.
COUNTER = """
max_batch_size: 4
instance_group [{ count: 1 }]
sequence_batching {
  max_sequence_idle_microseconds: %(idle)d
  %(strategy)s
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }] },
    { name: "END" control [{ kind: CONTROL_SEQUENCE_END int32_false_true: [5, 7] }] },
    { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] }] },
    { name: "ID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
  state [{ input_name: "sum" output_name: "sum_out" data_type: TYPE_FP32 dims: [1]
           initial_state: { name: "ten" data_type: TYPE_FP32 dims: [1] data_file: "ten" } }]
}
output [{ name: "seen" data_type: TYPE_FP32 dims: [4] }, { name: "sum_out" data_type: TYPE_FP32 dims: [1] }]
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
"""


def counter_model(path: Path, step: float) -> None:
    kinds = {
        "x": TensorProto.FLOAT,
        "START": TensorProto.FLOAT,
        "END": TensorProto.INT32,
        "READY": TensorProto.BOOL,
    }
    kinds |= {"ID": TensorProto.UINT64, "sum": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, ["N", 1]) for name, kind in kinds.items()]
    casts = [
        helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT)
        for name in ("END", "READY", "ID")
    ]
    nodes = [
        *casts,
        helper.make_node("Concat", ["START", "END_f", "READY_f", "ID_f"], ["seen"], axis=1),
        helper.make_node("Mul", ["x", "step"], ["scaled"]),
        helper.make_node("Add", ["sum", "scaled"], ["sum_out"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("seen", 4), ("sum_out", 1))
    ]
    constant = helper.make_tensor("step", TensorProto.FLOAT, [1], [step])
    graph = helper.make_graph(nodes, "counter", inputs, outputs, [constant])
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def counter(repository: Path, name: str, strategy: str, idle: int = 20_000_000) -> None:
    folder = repository / name
    counter_model(folder / "1" / "model.onnx", 1.0)
    (folder / "initial_state").mkdir()
    (folder / "initial_state" / "ten").write_bytes(np.float32(10).tobytes())
    (folder / "config.pbtxt").write_text(COUNTER % {"strategy": strategy, "idle": idle})


def silero() -> Path:
    return Path(
        str(importlib.metadata.distribution("silero-vad").locate_file("silero_vad/data/silero_vad.onnx"))
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences") / "models"
    (folder / "vad" / "1").mkdir(parents=True)
    shutil.copy(silero(), folder / "vad" / "1" / "model.onnx")
    (folder / "vad" / "model.toml").write_text(VAD)
    counter(folder, "oldest", "oldest { max_candidate_sequences: 4 }")
    counter(folder, "direct", "direct {}")
    counter(folder, "short", "oldest { max_candidate_sequences: 1 }", idle=100_000)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serve(
        repository, repository.parent / "log", "--model-control-mode", "explicit", "--load-model", "*"
    ) as running:
        yield running


def one_by_one(sound: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(silero()), options, providers=["CPUExecutionProvider"])
    answers = np.empty((*sound.shape[:2], 1, 1), np.float32)
    for stream, chunks in enumerate(sound):
        state = np.zeros((2, 1, 128), np.float32)
        for index, chunk in enumerate(chunks):
            answers[stream, index], state = session.run(
                None, {"input": chunk, "state": state, "sr": np.array(16000, np.int64)}
            )
    return answers


async def test_interleaved_audio_streams_are_batched_and_answered_as_one_by_one(
    server: ServerProcess,
) -> None:
    sound = np.random.default_rng(3).standard_normal((48, 12, 1, 576)).astype(np.float32) * np.float32(0.1)
    answers = np.empty((48, 12, 1, 1), np.float32)
    options = ClientOptions(timeout=25)
    async with AsyncClient(server.url, options) as http, AsyncClient(server.grpc_url, options) as grpc:

        async def talk(client: AsyncClient, stream: int) -> None:
            async with client["vad"].sequence() as say:
                for index in range(12):
                    answers[stream, index] = (await say(sound[stream, index], end=index == 11))["output"]

        await asyncio.gather(*(talk((http, grpc)[stream % 2], stream) for stream in range(48)))
        (statistics,) = await http["vad"].statistics()
        metadata = await http["vad"].metadata()
    np.testing.assert_array_equal(answers, one_by_one(sound))
    assert int(statistics["inference_count"]) == 48 * 12
    assert int(statistics["execution_count"]) * 3 < int(statistics["inference_count"])
    assert [spec.name for spec in metadata.inputs] == ["input"]
    assert [spec.name for spec in metadata.outputs] == ["output"]


@pytest.mark.parametrize("model", ["oldest", "direct"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_model_receives_the_sequence_and_position_of_a_request(
    server: ServerProcess, model: str, protocol: str
) -> None:
    with (
        connect(server.url if protocol == "http" else server.grpc_url) as client,
        client[model].sequence(42) as say,
    ):
        answers = [say([[1.0]]), say([[2.0]]), say([[3.0]], end=True)]
    assert [answer["seen"].tolist()[0] for answer in answers] == [[1, 5, 1, 42], [0, 5, 1, 42], [0, 7, 1, 42]]


@pytest.mark.parametrize("model", ["oldest", "direct"])
async def test_no_two_sequences_mix_their_states(server: ServerProcess, model: str) -> None:
    async with AsyncClient(server.grpc_url, ClientOptions(timeout=25)) as client:

        async def add(stream: int) -> list[float]:
            async with client[model].sequence(1000 + stream) as say:
                return [
                    float((await say([[float(stream)]], end=step == 9))["sum_out"][0, 0])
                    for step in range(10)
                ]

        sums = await asyncio.gather(*(add(stream) for stream in range(1, 12)))
    assert sums == [[10.0 + stream * step for step in range(1, 11)] for stream in range(1, 12)]


def test_a_generate_request_is_a_step_of_its_sequence(server: ServerProcess) -> None:
    sums = []
    for number, flags in ((1, {"sequence_start": True}), (2, {}), (3, {"sequence_end": True})):
        body = json.dumps({"x": [float(number)], "sequence_id": 991, **flags}).encode()
        asked = urllib.request.Request(
            f"{server.url}/v2/models/oldest/generate", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            sums.append(json.load(answer)["seen"])
    assert [seen[0] for seen in sums] == [1, 0, 0]
    assert [seen[1] for seen in sums] == [5, 5, 7]


def test_second_start_of_a_sequence_resets_its_state(server: ServerProcess) -> None:
    with connect(server.url) as client:
        ask = client["oldest"]
        for start, expected in ((True, 11.0), (False, 12.0), (True, 11.0)):
            answer = ask([[1.0]], parameters={"sequence_id": 9, "sequence_start": start})
            assert answer["sum_out"][0, 0] == expected
        ask([[1.0]], parameters={"sequence_id": 9, "sequence_end": True})


#: Error texts of Triton 2.51 for the same requests.
NO_START = (
    "inference request for sequence 5 to model '{}' must specify the START flag on the first request of "
    "the sequence"
)
NO_ID = "inference request to model '{}' must specify a non-zero or non-empty correlation ID"
NOT_ONE = "inference request to model '{}' must specify batch-size 1 due to requirements of sequence batcher"


@pytest.mark.parametrize("model", ["oldest", "direct"])
@pytest.mark.parametrize(
    ("parameters", "rows", "expected"),
    [
        ({"sequence_id": 5}, 1, NO_START),
        ({"sequence_id": 0, "sequence_start": True}, 1, NO_ID),
        ({"sequence_id": "", "sequence_start": True}, 1, NO_ID),
        ({}, 1, NO_ID),
        ({"sequence_id": 5, "sequence_start": True}, 2, NOT_ONE),
    ],
)
def test_request_without_sequence_is_refused_with_tritons_text(
    server: ServerProcess, model: str, parameters: dict, rows: int, expected: str
) -> None:
    with connect(server.url) as client, pytest.raises(InvalidArgument) as refused:
        client[model]([[1.0]] * rows, parameters=parameters)
    assert refused.value.message == expected.format(model)


def test_an_id_of_more_than_128_characters_is_refused(server: ServerProcess) -> None:
    with (
        connect(server.url) as client,
        pytest.raises(Unsupported, match="string correlation ID cannot be longer than 128 characters"),
    ):
        client["oldest"]([[1.0]], parameters={"sequence_id": "x" * 129, "sequence_start": True})


def test_string_id_is_refused_by_a_model_with_numeric_ids(server: ServerProcess) -> None:
    with (
        connect(server.url) as client,
        pytest.raises(InvalidArgument, match="'abc' is a string and does not fit input 'ID'"),
    ):
        client["oldest"]([[1.0]], parameters={"sequence_id": "abc", "sequence_start": True})


async def test_an_idle_sequence_ends_and_the_next_one_gets_its_place(server: ServerProcess) -> None:
    async with AsyncClient(server.url, ClientOptions(timeout=20)) as client:
        ask = client["short"]
        await ask([[1.0]], parameters={"sequence_id": 1, "sequence_start": True})
        await ask([[1.0]], parameters={"sequence_id": 2, "sequence_start": True})  # waits for the only slot
        with pytest.raises(InvalidArgument, match="must specify the START flag"):
            await ask([[1.0]], parameters={"sequence_id": 1})


def test_open_sequences_stay_with_their_version_while_a_new_one_serves(tmp_path: Path) -> None:
    counter(tmp_path / "models", "m", "oldest { max_candidate_sequences: 4 }")
    options = ("--model-control-mode", "explicit", "--load-model", "m")
    with serve(tmp_path / "models", tmp_path / "log", *options) as running, connect(running.url) as client:
        before = client["m"].sequence(1)
        assert before([[1.0]])["sum_out"][0, 0] == 11.0
        counter_model(tmp_path / "models" / "m" / "2" / "model.onnx", 100.0)
        client.load("m")
        after = client["m"].sequence(2)
        assert after([[1.0]])["sum_out"][0, 0] == 110.0
        second = before([[1.0]], end=True)
        assert (second.model_version, second["sum_out"][0, 0]) == ("1", 12.0)
        assert after([[1.0]], end=True).model_version == "2"


def test_sequences_go_on_with_the_next_load_of_their_version(tmp_path: Path) -> None:
    counter(tmp_path / "models", "m", "oldest { max_candidate_sequences: 4 }")
    options = ("--model-control-mode", "explicit", "--load-model", "m", "--drain-timeout-secs", "0.2")
    with serve(tmp_path / "models", tmp_path / "log", *options) as running, connect(running.url) as client:
        say = client["m"].sequence(1)
        assert say([[1.0]])["sum_out"][0, 0] == 11.0
        client.unload("m")
        client.load("m")
        assert say([[1.0]], end=True)["sum_out"][0, 0] == 12.0


def test_servers_that_share_a_store_go_on_with_each_others_sequences(tmp_path: Path) -> None:
    counter(tmp_path / "models", "oldest", "oldest { max_candidate_sequences: 4 }")
    store = MemoryStateStore()

    def ask(x: float, *, start: bool = False) -> InferRequest:
        tensor = Tensor("x", DataType.FP32, (1, 1), np.array([[x]], np.float32))
        return InferRequest("oldest", {"x": tensor}, sequence=SequenceStep(7, start))

    async def scenario() -> None:
        first, second = (
            Embedded([tmp_path / "models"], LifecycleOptions(state_store=store, state_folder=tmp_path / name))
            for name in ("one", "two")
        )
        await first.start()
        await second.start()
        await first.engine.infer(ask(1, start=True))
        await first.engine.infer(ask(2))
        answer = await second.engine.infer(ask(4))
        await first.stop()
        await second.stop()
        assert {tensor.name: tensor.data.tolist() for tensor in answer.outputs}["sum_out"] == [[17]]

    asyncio.run(scenario())
