"""A pipeline of real networks: an async function calls basic-pitch and swift-f0 concurrently."""

from __future__ import annotations

import asyncio
import queue
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

import backline
from backline_client.client import Client
from support.listening import DETECTOR, MELODY, RATE, SAMPLES, put_networks
from support.repositories import put
from support.server import ServerProcess, serve

HEAR = """
import asyncio
from typing import NamedTuple

import numpy as np

from backline.model import FP32, INT64, Models


class Heard(NamedTuple):
    note: INT64[-1]
    certainty: FP32[-1]


async def hear(audio: FP32[-1, 43844, 1], models: Models) -> Heard:
    notes, certainties = [], []
    for window in audio:
        moments = np.arange(0, 43844 / 22050, 1 / 16000)
        voice = np.interp(moments, np.arange(43844) / 22050, window[:, 0]).astype(np.float32)
        detected, heard = await asyncio.gather(
            models["detect"](window[None]), models["recognise"](voice[None])
        )
        pitch = np.median(heard["pitch"][heard["confidence"] > 0.5])
        notes.append(round(69 + 12 * np.log2(pitch / 440)))
        certainties.append(detected["StatefulPartitionedCall:1"][0, :, notes[-1] - 21].max())
    return Heard(np.array(notes), np.array(certainties, np.float32))
"""


def code() -> dict[str, Any]:
    """The pipeline's module namespace, as a notebook or test would have it."""
    names: dict[str, Any] = {"__name__": "hear"}
    exec(HEAR, names)
    return names


def played(notes: tuple[int, ...]) -> np.ndarray:
    """A window of audio for each note, with a few harmonics: [notes, SAMPLES, 1]."""
    seconds = np.arange(SAMPLES) / RATE
    frequencies = 440 * 2 ** ((np.array(notes)[:, None] - 69) / 12)
    wave = sum(np.sin(2 * np.pi * frequencies * (n + 1) * seconds) / (n + 1) ** 2 for n in range(4))
    return (0.3 * np.asarray(wave) * np.exp(-seconds))[..., None].astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pipeline")
    put_networks(folder / "models")
    put(folder / "models" / "hear" / "1" / "model.py", HEAR)
    with serve(folder / "models", folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with backline.connect(server.url) as client:
        yield client


def executions(client: Client) -> dict[str, int]:
    return {one["name"]: int(one["execution_count"]) for one in client.statistics()}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_gets_the_answers_of_the_networks_in_process(
    server: ServerProcess, protocol: str
) -> None:
    audio = played(MELODY)
    module = http_client if protocol == "http" else grpc_client
    client = module.InferenceServerClient(
        f"127.0.0.1:{server.http_port if protocol == 'http' else server.grpc_port}"
    )
    given = module.InferInput("audio", list(audio.shape), "FP32")
    given.set_data_from_numpy(audio)

    answer = client.infer("hear", [given])

    assert answer.as_numpy("note").tolist() == list(MELODY)
    detector = onnxruntime.InferenceSession(str(DETECTOR))
    (detected,) = detector.run(["StatefulPartitionedCall:1"], {"serving_default_input_2:0": audio})
    certainty = [detected[index, :, note - 21].max() for index, note in enumerate(MELODY)]
    np.testing.assert_allclose(answer.as_numpy("certainty"), certainty, rtol=1e-4)
    client.close()


def test_the_pipeline_file_runs_outside_the_server(server: ServerProcess) -> None:
    audio = played(MELODY[:2])

    async def hear_here() -> Any:
        async with backline.connect_async(server.url) as models:
            return await code()["hear"](audio, models)

    heard = asyncio.run(hear_here())

    assert heard.note.tolist() == list(MELODY[:2])
    assert (heard.certainty > 0.5).all()


def test_pipeline_steps_are_counted_and_shown(server: ServerProcess, client: Client) -> None:
    def steps() -> dict[str, int]:
        (stats,) = client["hear"].statistics()
        return {
            called: int(counts["success"]["count"]) for called, counts in stats.get("call_stats", {}).items()
        }

    before = steps()
    client["hear"](played(MELODY[:3]))
    after = steps()

    assert {called: count - before.get(called, 0) for called, count in after.items()} == {
        "detect": 3,
        "recognise": 3,
    }
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    labels = 'model="hear",version="1",called="detect",outcome="success"'
    assert re.search(rf"^backline_model_calls_total{{{labels}}} {after['detect']}$", metrics, re.MULTILINE)
    assert re.search(rf"^backline_model_call_seconds_total{{{labels}}} 0*\.?\d", metrics, re.MULTILINE)
    show = [sys.executable, "-m", "backline", "models", "show", "hear", "--url", server.url]
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^1 +detect +{after['detect']} +0 +0 +\d", shown, re.MULTILINE), shown


def test_cancelling_the_client_stops_the_remaining_steps(server: ServerProcess, client: Client) -> None:
    audio = played(MELODY * 9)
    given = grpc_client.InferInput("audio", list(audio.shape), "FP32")
    given.set_data_from_numpy(audio)
    answers: queue.Queue[Any] = queue.Queue()
    begun = executions(client)
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as stock:
        call = stock.async_infer("hear", [given], lambda result, error: answers.put(error))
        while executions(client)["detect"] < begun["detect"] + 3:
            time.sleep(0.005)
        call.cancel()
        assert "CANCELLED" in str(answers.get(timeout=10))
    left = executions(client)

    client["hear"](played(MELODY[:1]))  # the witness, queued after whatever was still in flight

    ended = executions(client)
    for step in ("detect", "recognise"):
        assert ended[step] - begun[step] < len(audio) // 2
        assert ended[step] - left[step] <= 2  # the executing step, and the witness
    (stats,) = client["hear"].statistics()
    assert stats["response_stats"]["0"]["cancel"]["count"] == 1
