"""Ensembles of real ONNX models, on a server with Triton's clients and, to delay steps, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from backline.embedded.embedded import Embedded
from backline.engine.model import ModelState, Serving
from backline.engine.ticket import Ticket
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.embedded import start
from support.reading import CUT, READ, SIDE, Asked, expected, reader, recogniser
from support.server import ServerProcess, serve


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
def test_tritonclient_reads_a_picture_by_three_models(
    server: ServerProcess, pictures: np.ndarray, protocol: str
) -> None:
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
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == [
        "detect",
        "crop",
        "recognise",
    ]
    assert metadata["inputs"] == [{"name": "picture", "datatype": "FP32", "shape": [-1, 1, SIDE, SIDE]}]
    client.close()


def executions(program: Embedded) -> dict[str, tuple[int, int]]:
    return {
        m.name: (m.statistics.inference_count, m.statistics.execution_count) for m in program.engine.models()
    }


async def test_only_the_steps_run_that_the_wanted_output_needs(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await start(reader(tmp_path / "models"))
    asked = Asked(pictures, ("found",))

    program.engine.submit(asked.ticket)
    response = await asked.done

    assert [tensor.name for tensor in response.outputs] == ["found"]
    assert executions(program) == {"detect": (3, 1), "crop": (0, 0), "recognise": (0, 0), "read": (3, 1)}
    await program.stop()


async def test_steps_of_several_requests_run_in_batches(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await start(reader(tmp_path / "models"))
    asked = [Asked(pictures[:1]) for _ in range(4)]

    for one in asked:
        program.engine.submit(one.ticket)
    await asyncio.gather(*(one.done for one in asked))

    counts = executions(program)
    assert counts["read"] == (4, 4)
    assert all(counts[step] == (4, 1) for step in ("detect", "crop", "recognise"))
    await program.stop()


async def test_cancelling_stops_the_steps_that_remain(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await start(reader(tmp_path / "models"))
    cancelled, witness = Asked(pictures[:1]), Asked(pictures[:1])
    crop = program.engine.find("crop")

    program.engine.submit(cancelled.ticket)
    # Cancels between the steps: when the queue of the second model receives the request.
    intercepted = Intercepted(crop.serving.queue.submit, cancelled.ticket)
    crop.serving = Serving(crop.serving.check, intercepted)
    await intercepted.done.wait()
    program.engine.submit(witness.ticket)
    await witness.done

    counts = executions(program)
    assert not cancelled.done.done()
    assert counts["detect"] == (2, 2)
    assert counts["recognise"] == (1, 1)
    await program.stop()


class Intercepted:
    """Wraps a model's queue: the client of the first request leaves just as the request arrives."""

    pending = 0

    def __init__(self, submit, leaving: Ticket) -> None:
        self._submit = submit
        self._leaving = leaving
        self.done = asyncio.Event()

    def submit(self, ticket: Ticket) -> None:
        self._submit(ticket)
        if not self._leaving.cancelled:
            self._leaving.cancel()
            assert ticket.cancelled
            self.done.set()


async def test_an_error_of_a_step_says_in_which_ensemble(tmp_path: Path, pictures: np.ndarray) -> None:
    program = await start(reader(tmp_path / "models"))
    asked = Asked(pictures)
    asked.ticket.deadline = 0.0

    program.engine.submit(asked.ticket)

    with pytest.raises(BacklineError, match=r"^in ensemble 'read', .*'detect'"):
        await asked.done
    await program.stop()


async def test_it_goes_out_of_service_with_a_step_and_comes_back_with_it(
    tmp_path: Path, pictures: np.ndarray
) -> None:
    program = await start(reader(tmp_path / "models"))
    control = program.engine.control
    assert control is not None

    await control.unload("crop", who="test")
    with pytest.raises(
        Unavailable, match="ensemble 'read' depends on 'crop' whose required version 1 is not loaded"
    ):
        program.engine.submit(Asked(pictures).ticket)
    await control.load("crop", who="test")
    asked = Asked(pictures)
    program.engine.submit(asked.ticket)

    np.testing.assert_allclose((await asked.done).outputs[0].data, expected(pictures), rtol=1e-5)
    await program.stop()


async def test_unloading_with_dependents_unloads_the_steps_and_loading_loads_them(tmp_path: Path) -> None:
    program = await start(reader(tmp_path / "models"))
    control = program.engine.control
    assert control is not None

    await control.unload("read", dependents=True, who="test")
    gone = [
        name for name in ("detect", "crop", "recognise", "read") if not program.engine.served_versions(name)
    ]
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
        (
            ('model_name: "crop"', 'model_name: "cropp"'),
            "ensemble read contains models that are not available or ambiguous: cropp. Did you mean 'crop'?",
        ),
        (
            ('key: "crop" value: "cut"', 'key: "crp" value: "cut"'),
            "mapping to non-existing input crp in model recognise|mapped from non-existing",
        ),
        (
            ("model_version: 1", "model_version: 7"),
            "ensemble 'read' depends on 'crop' whose required version 7 is not loaded",
        ),
        (
            ("TYPE_FP32 dims: [ 1, 8, 8 ]", "TYPE_INT32 dims: [ 1, 8, 8 ]"),
            "inconsistent data type: TYPE_INT32 is inferred from model read",
        ),
    ],
)
async def test_an_ensemble_that_does_not_fit_its_models_is_refused(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    program = await start(reader(tmp_path / "models"))
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
    one = (
        "from backline.model import FP32\n\n\nclass Model:\n    def predict(self, x: FP32[1]) -> FP32[1]:\n"
        "        return x\n"
    )
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
    program = await start(repository)
    control = program.engine.control
    assert control is not None
    before = program.engine.find("whole").decoupled

    many = one.replace("import FP32", "import FP32\nfrom collections.abc import Iterator").replace(
        "-> FP32[1]", "-> Iterator[FP32[1]]"
    )
    (repository / "cut" / "1" / "model.py").write_text(many.replace("return x", "yield x\n        yield -x"))
    await control.load("cut", who="test")
    x = Tensor("x", DataType.FP32, (1,), np.ones(1, np.float32))
    request = InferRequest("whole", {"x": x})
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
    program = await start(repository)
    asleep = asyncio.Event()
    program.engine.watch(
        lambda: asleep.set() if program.engine.find("recognise").state is not ModelState.READY else None
    )
    await asleep.wait()

    cut = Tensor("cut", DataType.FP32, (CUT,), np.ones(CUT, np.float32))
    response = await program.engine.infer(InferRequest("alone", {"cut": cut}))

    assert response.outputs[0].shape == (2,)
    await program.stop()
