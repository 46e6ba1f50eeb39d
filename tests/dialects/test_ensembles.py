"""Ensembles over real ONNX models: on a server with Triton's clients, and in this program where a step is to be held up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from onnx import TensorProto, helper, numpy_helper

from backline.engine.datatypes import DataType
from backline.engine.engine import ModelState
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.tensor import Tensor
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.server import Embedded
from support.server import ServerProcess, serve

SIDE = 8
CUT = 4


def put(repository: Path, name: str, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> None:
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def detector(repository: Path) -> None:
    """From an image its brightest place: where a smoothing convolution is largest."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["smooth"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["smooth"], ["flat"]),
        helper.make_node("ArgMax", ["flat"], ["place"], axis=1, keepdims=1),
        helper.make_node("ReduceMax", ["flat"], ["score"], axes=[1], keepdims=1),
    ]
    outputs = [helper.make_tensor_value_info("place", TensorProto.INT64, ["b", 1]), floats("score", "b", 1)]
    put(repository, "detect", nodes, [floats("image", "b", 1, SIDE, SIDE)], outputs, {"kernel": np.ones((1, 1, 3, 3), np.float32)})


def cropper(repository: Path) -> None:
    """The CUT pixels from a place on, in the order of rows."""
    nodes = [
        helper.make_node("Reshape", ["image", "rows"], ["flat"]),
        helper.make_node("Add", ["place", "steps"], ["wanted"]),
        helper.make_node("Min", ["wanted", "last"], ["within"]),
        helper.make_node("GatherElements", ["flat", "within"], ["crop"], axis=1),
    ]
    inputs = [floats("image", "b", 1, SIDE, SIDE), helper.make_tensor_value_info("place", TensorProto.INT64, ["b", 1])]
    constants = {"rows": np.array([-1, SIDE * SIDE]), "steps": np.arange(CUT)[None], "last": np.array([SIDE * SIDE - 1])}
    put(repository, "crop", nodes, inputs, [floats("crop", "b", CUT)], constants)


def recogniser(repository: Path) -> None:
    """Probabilities of two classes: dark and bright."""
    weights = np.stack([-np.ones(CUT, np.float32), np.ones(CUT, np.float32)], axis=1)
    nodes = [helper.make_node("MatMul", ["crop", "weights"], ["logits"]), helper.make_node("Softmax", ["logits"], ["classes"], axis=1)]
    put(repository, "recognise", nodes, [floats("crop", "b", CUT)], [floats("classes", "b", 2)], {"weights": weights})


READ = f"""
platform: "ensemble"
max_batch_size: 8
input {{ name: "picture" data_type: TYPE_FP32 dims: [ 1, {SIDE}, {SIDE} ] }}
output {{ name: "text" data_type: TYPE_FP32 dims: [ 2 ] }}
output {{ name: "found" data_type: TYPE_FP32 dims: [ 1 ] }}
ensemble_scheduling {{
  step {{ model_name: "detect" model_version: -1
    input_map {{ key: "image" value: "picture" }} output_map {{ key: "place" value: "where" }}
    output_map {{ key: "score" value: "found" }} }}
  step {{ model_name: "crop" model_version: 1
    input_map {{ key: "image" value: "picture" }} input_map {{ key: "place" value: "where" }} output_map {{ key: "crop" value: "cut" }} }}
  step {{ model_name: "recognise" model_version: -1
    input_map {{ key: "crop" value: "cut" }} output_map {{ key: "classes" value: "text" }} }}
}}
"""


def reader(repository: Path) -> Path:
    detector(repository)
    cropper(repository)
    recogniser(repository)
    (repository / "read" / "1").mkdir(parents=True)
    (repository / "read" / "config.pbtxt").write_text(READ)
    return repository


def expected(pictures: np.ndarray) -> np.ndarray:
    """What the three models give, computed with numpy."""
    rows = []
    for picture in pictures[:, 0]:
        padded = np.pad(picture, 1)
        smooth = sum(padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3))
        places = np.minimum(np.argmax(smooth) + np.arange(CUT), SIDE * SIDE - 1)
        total = picture.reshape(-1)[places].sum()
        logits = np.array([-total, total])
        rows.append(np.exp(logits) / np.exp(logits).sum())
    return np.array(rows, np.float32)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.3, (3, 1, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("ensembles")
    with serve(reader(folder / "models"), log=folder / "log") as running:
        running.wait_ready()
        yield running


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_reads_a_picture_by_three_models(server: ServerProcess, pictures: np.ndarray, protocol: str) -> None:
    module = http_client if protocol == "http" else grpc_client
    port = server.http_port if protocol == "http" else server.grpc_port
    given = module.InferInput("picture", list(pictures.shape), "FP32")
    given.set_data_from_numpy(pictures)
    client = module.InferenceServerClient(f"127.0.0.1:{port}")

    answer = client.infer("read", [given])

    np.testing.assert_allclose(answer.as_numpy("text"), expected(pictures), rtol=1e-5)
    client.close()


def test_its_configuration_and_metadata_are_shown_as_tritons(server: ServerProcess) -> None:
    client = http_client.InferenceServerClient(f"127.0.0.1:{server.http_port}")

    config, metadata = client.get_model_config("read"), client.get_model_metadata("read")

    assert (config["platform"], config["instance_group"]) == ("ensemble", [])
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["detect", "crop", "recognise"]
    assert metadata["inputs"] == [{"name": "picture", "datatype": "FP32", "shape": [-1, 1, SIDE, SIDE]}]
    client.close()


class Asked:
    """A request, and what came of it."""

    def __init__(self, picture: np.ndarray, outputs: tuple[str, ...] | None = None) -> None:
        self.done: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        tensor = Tensor("picture", DataType.FP32, picture.shape, picture)
        self.request = InferRequest("read", {"picture": tensor}, self._complete, outputs=outputs, id="mine")

    def _complete(self, _: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
        if error is not None:
            self.done.set_exception(error)
        elif response is not None:
            self.done.set_result(response)


async def embedded(folder: Path) -> Embedded:
    options = LifecycleOptions(mode="explicit", load_models=(ALL_MODELS,), state_folder=folder / "state")
    program = Embedded([reader(folder / "models")], options)
    await program.start()
    return program


def executions(program: Embedded) -> dict[str, tuple[int, int]]:
    return {m.name: (m.statistics.inference_count, m.statistics.execution_count) for m in program.engine.models()}


async def test_only_the_steps_run_that_the_wanted_output_needs(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await embedded(tmp_path)
    asked = Asked(pictures, ("found",))

    program.engine.submit(asked.request)
    response = await asked.done

    assert [tensor.name for tensor in response.outputs] == ["found"]
    assert executions(program) == {"detect": (3, 1), "crop": (0, 0), "recognise": (0, 0), "read": (3, 1)}
    await program.stop()


async def test_steps_of_several_requests_run_in_batches(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await embedded(tmp_path)
    asked = [Asked(pictures[:1]) for _ in range(4)]

    for one in asked:
        program.engine.submit(one.request)
    await asyncio.gather(*(one.done for one in asked))

    counts = executions(program)
    assert counts["read"] == (4, 4)
    assert all(counts[step] == (4, 1) for step in ("detect", "crop", "recognise"))
    await program.stop()


async def test_cancelling_stops_the_steps_that_remain(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await embedded(tmp_path)
    cancelled, witness = Asked(pictures[:1]), Asked(pictures[:1])
    detect = program.engine.find("detect").queue
    submit = program.engine.find("crop").queue.submit

    program.engine.submit(cancelled.request)
    # The moment between the first step and the second: the queue of the second model gets a request, which is the cancelled one's.
    intercepted = program.engine.find("crop").queue = Intercepted(submit, cancelled.request)
    await intercepted.done.wait()
    program.engine.submit(witness.request)
    await witness.done

    counts = executions(program)
    assert detect is not None
    assert not cancelled.done.done()
    assert counts["detect"] == (2, 2)
    assert counts["recognise"] == (1, 1)
    await program.stop()


class Intercepted:
    """A queue in front of a model's: the first request that comes is that of an ensemble whose client goes away in this moment."""

    pending = 0

    def __init__(self, submit, leaving: InferRequest) -> None:
        self._submit = submit
        self._leaving = leaving
        self.done = asyncio.Event()

    def submit(self, request: InferRequest) -> None:
        self._submit(request)
        if not self._leaving.cancelled:
            self._leaving.cancel()
            assert request.cancelled
            self.done.set()


async def test_an_error_of_a_step_says_in_which_ensemble(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await embedded(tmp_path)
    asked = Asked(pictures)
    asked.request.deadline = 0.0

    program.engine.submit(asked.request)

    with pytest.raises(BacklineError, match=r"^in ensemble 'read', .*'detect'"):
        await asked.done
    await program.stop()


async def test_it_goes_out_of_service_with_a_step_and_comes_back_with_it(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await embedded(tmp_path)
    control = program.engine.control
    assert control is not None

    await control.unload("crop", who="test")
    with pytest.raises(Unavailable, match="ensemble 'read' depends on 'crop' whose required version 1 is not loaded"):
        program.engine.submit(Asked(pictures).request)
    await control.load("crop", who="test")
    asked = Asked(pictures)
    program.engine.submit(asked.request)

    np.testing.assert_allclose((await asked.done).outputs[0].data, expected(pictures), rtol=1e-5)
    await program.stop()


async def test_unloading_with_dependents_unloads_the_steps_and_loading_loads_them(tmp_path: Path) -> None:
    program = await embedded(tmp_path)
    control = program.engine.control
    assert control is not None

    await control.unload("read", dependents=True, who="test")
    gone = [name for name in ("detect", "crop", "recognise", "read") if not program.engine.served_versions(name)]
    await control.load("read", who="test")

    assert gone == ["detect", "crop", "recognise", "read"]
    assert all(program.engine.served_versions(name) == ["1"] for name in gone)
    await program.stop()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("TYPE_FP32 dims: [ 2 ]", "TYPE_FP32 dims: [ 3 ]"),
            r"ensemble tensor text: inconsistent shape: \[-1,3\] is inferred from model read",
        ),
        (('model_name: "crop"', 'model_name: "cropp"'), "ensemble read contains models that are not available or ambiguous: cropp"),
        (
            ('key: "crop" value: "cut"', 'key: "crp" value: "cut"'),
            "mapping to non-existing input crp in model recognise|mapped from non-existing",
        ),
        (("model_version: 1", "model_version: 7"), "ensemble 'read' depends on 'crop' whose required version 7 is not loaded"),
        (("TYPE_FP32 dims: [ 1, 8, 8 ]", "TYPE_INT32 dims: [ 1, 8, 8 ]"), "inconsistent data type: TYPE_INT32 is inferred from model read"),
    ],
)
async def test_an_ensemble_that_does_not_fit_its_models_is_refused(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    program = await embedded(tmp_path)
    control = program.engine.control
    assert control is not None
    config = tmp_path / "models" / "read" / "config.pbtxt"
    assert change[0] in READ
    config.write_text(READ.replace(*change))

    with pytest.raises(InvalidArgument, match=reason):
        await control.load("read", who="test")

    assert program.engine.served_versions("read") == ["1"]
    await program.stop()


async def test_a_step_that_begins_to_give_many_responses_makes_the_ensemble_decoupled(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (repository / "cut" / "1").mkdir(parents=True)
    one = "from backline.model import FP32\n\n\nclass Model:\n    def predict(self, x: FP32[1]) -> FP32[1]:\n        return x\n"
    (repository / "cut" / "1" / "model.py").write_text(one)
    (repository / "whole" / "1").mkdir(parents=True)
    (repository / "whole" / "config.pbtxt").write_text(
        """
        platform: "ensemble"
        input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
        ensemble_scheduling { step { model_name: "cut" model_version: -1
          input_map { key: "x" value: "x" } output_map { key: "output" value: "y" } } }
        """
    )
    options = LifecycleOptions(mode="explicit", load_models=(ALL_MODELS,), state_folder=tmp_path / "state")
    program = Embedded([repository], options)
    await program.start()
    control = program.engine.control
    assert control is not None
    before = program.engine.find("whole").decoupled

    many = one.replace("import FP32", "import FP32\nfrom collections.abc import Iterator").replace("-> FP32[1]", "-> Iterator[FP32[1]]")
    (repository / "cut" / "1" / "model.py").write_text(many.replace("return x", "yield x\n        yield -x"))
    await control.load("cut", who="test")
    x = Tensor("x", DataType.FP32, (1,), np.ones(1, np.float32))
    request = InferRequest("whole", {"x": x}, lambda *_: None)
    values = [float(response.outputs[0].data[0]) async for response in program.engine.stream(request)]

    assert (before, program.engine.find("whole").decoupled, values) == (False, True, [1.0, -1.0])
    await program.stop()


async def test_a_step_that_was_put_to_sleep_still_gets_its_batch_of_one(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    recogniser(repository)
    (repository / "recognise" / "model.toml").write_text("idle_unload_seconds = 0.1\n")
    (repository / "alone" / "1").mkdir(parents=True)
    (repository / "alone" / "config.pbtxt").write_text(
        f"""
        platform: "ensemble"
        input {{ name: "cut" data_type: TYPE_FP32 dims: [ {CUT} ] }}
        output {{ name: "text" data_type: TYPE_FP32 dims: [ 2 ] }}
        ensemble_scheduling {{ step {{ model_name: "recognise" model_version: -1
          input_map {{ key: "crop" value: "cut" }} output_map {{ key: "classes" value: "text" }} }} }}
        """
    )
    options = LifecycleOptions(mode="explicit", load_models=(ALL_MODELS,), state_folder=tmp_path / "state")
    program = Embedded([repository], options)
    await program.start()
    asleep = asyncio.Event()
    program.engine.watch(lambda: asleep.set() if program.engine.find("recognise").state is not ModelState.READY else None)
    await asleep.wait()

    cut = Tensor("cut", DataType.FP32, (CUT,), np.ones(CUT, np.float32))
    response = await program.engine.infer(InferRequest("alone", {"cut": cut}, lambda *_: None))

    assert response.outputs[0].shape == (2,)
    await program.stop()
