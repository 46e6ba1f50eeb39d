"""An ensemble of real networks: basic-pitch finds onsets, Python cuts clips, swift-f0 estimates pitch."""

from __future__ import annotations

import asyncio
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton

from backline.embedded.embedded import Embedded
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest, ResponseFlow
from backline_client.values.tensor import Tensor
from support.listening import DETECTOR, MELODY, RECOGNISER, hear, melody, put_networks
from support.server import ServerProcess, serve

#: The crop step: each confident onset of basic-pitch becomes 0.2 s of audio at 16 kHz, as swift-f0 needs.
CROP = """
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from backline.model import FP32


class Cut(NamedTuple):
    clip: FP32[1, -1]
    at: FP32[1]


class Model:
    def predict(self, audio: FP32[43844, 1], onset: FP32[172, 88]) -> Iterator[Cut]:
        strength = onset.max(axis=1)
        inner = strength[1:-1]
        peaks = np.flatnonzero((inner > 0.5) & (inner >= strength[:-2]) & (inner > strength[2:])) + 1
        for peak in peaks:
            begin = peak * 256 / 22050
            moments = begin + np.arange(3200) / 16000
            clip = np.interp(moments, np.arange(len(audio)) / 22050, audio[:, 0]).astype(np.float32)
            yield Cut(clip[None], np.array([begin], np.float32))
"""
LISTEN = """
platform: "ensemble"
input { name: "audio" data_type: TYPE_FP32 dims: [ 43844, 1 ] }
output [
  { name: "pitch" data_type: TYPE_FP64 dims: [ 1, -1 ] },
  { name: "confidence" data_type: TYPE_FP32 dims: [ 1, -1 ] },
  { name: "at" data_type: TYPE_FP32 dims: [ 1 ] }
]
ensemble_scheduling {
  max_inflight_requests: 2
  step { model_name: "detect" model_version: 1
    input_map { key: "serving_default_input_2:0" value: "audio" }
    output_map { key: "StatefulPartitionedCall:2" value: "onsets" } }
  step { model_name: "crop" model_version: 1
    input_map { key: "audio" value: "audio" } input_map { key: "onset" value: "onsets" }
    output_map { key: "clip" value: "note" } output_map { key: "at" value: "at" } }
  step { model_name: "recognise" model_version: 1
    input_map { key: "audio" value: "note" }
    output_map { key: "pitch" value: "pitch" } output_map { key: "confidence" value: "confidence" } }
}
"""


def put_listening(repository: Path) -> Path:
    """Adds the ensemble listen and its models; recognise also has a version newer than the pinned one."""
    put_networks(repository)
    shutil.copytree(repository / "recognise" / "1", repository / "recognise" / "2")
    (repository / "crop" / "1").mkdir(parents=True)
    (repository / "crop" / "1" / "model.py").write_text(CROP)
    (repository / "listen" / "1").mkdir(parents=True)
    (repository / "listen" / "config.pbtxt").write_text(LISTEN)
    return repository


def heard_here(audio: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pitch, confidence and time of each note, from the same networks and code in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    detector, recogniser = (
        onnxruntime.InferenceSession(str(file), options) for file in (DETECTOR, RECOGNISER)
    )
    (onsets,) = detector.run(["StatefulPartitionedCall:2"], {"serving_default_input_2:0": audio[None]})
    code: dict[str, Any] = {"__name__": "crop"}
    exec(CROP, code)
    limits = {"fmin": np.array(46.875, np.float32), "fmax": np.array(2093.75, np.float32)}
    return [
        (*recogniser.run(["pitch", "confidence"], {"audio": cut.clip, **limits}), cut.at)
        for cut in code["Model"]().predict(audio, onsets[0])
    ]


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return melody()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("listening")
    with serve(put_listening(folder / "models"), folder / "server.log") as running:
        yield running


def test_the_stream_of_notes_equals_the_networks_in_process(server: ServerProcess, audio: np.ndarray) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    given = triton.InferInput("audio", list(audio.shape), "FP32")
    given.set_data_from_numpy(audio)
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer("listen", [given], enable_empty_final_response=True)
    notes = []
    final = False
    while not final:
        answer = answers.get(timeout=30)
        response = answer.get_response()
        final = response.parameters["triton_final_response"].bool_param
        if response.outputs:
            notes.append((answer.as_numpy("pitch"), answer.as_numpy("confidence"), answer.as_numpy("at")))
    client.stop_stream()

    expected = heard_here(audio)
    assert len(notes) == len(expected)
    for note, alone in zip(notes, expected, strict=True):
        for got, wanted in zip(note, alone, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert [hear(pitch, confidence) for pitch, confidence, _ in notes] == list(MELODY)
    by_version = {stats["version"]: stats["execution_count"] for stats in statistics(client)}
    assert by_version["1"] == len(notes)  # pinned, although a newer version exists
    assert by_version["2"] == 0
    client.close()


def statistics(client: triton.InferenceServerClient) -> list[dict[str, Any]]:
    stats = client.get_inference_statistics("recognise", as_json=True)["model_stats"]
    return [
        {"version": one["version"], "execution_count": int(one.get("execution_count", 0))} for one in stats
    ]


def test_cancelling_the_client_stops_the_remaining_steps(tmp_path: Path, audio: np.ndarray) -> None:
    counts = asyncio.run(leave_with_the_first_note(tmp_path, audio))

    assert counts["detect", "1"].execution_count == 1
    assert (
        counts["recognise", "1"].execution_count <= 2
    )  # the step that answered, and at most one concurrent step
    assert counts["listen", "1"].cancelled == 1


async def leave_with_the_first_note(
    folder: Path, audio: np.ndarray
) -> dict[tuple[str, str], ModelStatistics]:
    """The statistics of all versions once everything has ended."""
    options = LifecycleOptions(mode="explicit", load_models=(ALL_MODELS,), state_folder=folder / "state")
    program = Embedded([put_listening(folder / "models")], options)
    await program.start()
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(ticket: Ticket, _: object) -> None:
        ticket.cancel()
        first.set_result(None)

    tensor = Tensor("audio", DataType.FP32, audio.shape, audio)
    program.engine.submit(
        Ticket(
            InferRequest("listen", {"audio": tensor}), lambda *_: None, on_response=leave, flow=ResponseFlow()
        )
    )
    await first
    counts = {(model.name, model.version): model.statistics for model in program.engine.models()}
    await program.stop()
    return counts
