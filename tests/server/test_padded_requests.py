"""Batches of requests with different lengths on a real server: padding, buckets, masks, allowed sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import backline
from support import audio_models
from support.repositories import put
from support.server import ServerProcess, serve
from support.stock_clients import Arrays, Ask, Counts, counts, over_grpc, over_http

#: A batch runs only when full; each test sends exactly the requests that its batches need.
TOGETHER = "dynamic_batching = { preferred_batch_size = [%d], max_queue_delay_microseconds = 20000000 }"
LOG_MEL = f"""
max_batch_size = 8
{TOGETHER % 3}

[padding.audio]
buckets = [8000, 16000]

[cut.frames]
to = "audio"
hop = {audio_models.HOP}
window = {audio_models.WINDOW}

[[model_warmup]]
name = "short"
batch_size = 1
inputs.audio = {{ data_type = "FP32", dims = [1000], random_data = true }}
"""
RECURRENT = f"""
max_batch_size = 8
allowed_batch_sizes = [1, 2, 8]
padding.x.lengths = "steps"
{TOGETHER % 3}
"""
MASKED = f"""
max_batch_size = 8
allowed_batch_sizes = [4, 8]
{TOGETHER % 3}

[padding.x]
value = 1000
mask = "real"
"""
MASKED_IN_PYTHON = """
from typing import NamedTuple

import numpy as np
from backline.model import BOOL, FP32, INT64


class Answer(NamedTuple):
    mean: FP32[1]
    seen: INT64[2]


class Model:
    def predict(self, x: FP32[-1], real: BOOL[-1, -1]) -> Answer:
        assert (x[~real] == 1000).all()
        mean = np.where(real, x, 0).sum(axis=1, keepdims=True) / real.sum(axis=1, keepdims=True)
        return Answer(mean, np.tile(x.shape, (len(x), 1)))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    audio_models.log_mel(folder / "log_mel" / "1" / "model.onnx")
    audio_models.recurrent(folder / "recurrent" / "1" / "model.onnx")
    audio_models.mean(folder / "mean" / "1" / "model.onnx")
    put(folder / "masked" / "1" / "model.py", MASKED_IN_PYTHON)
    put(folder / "log_mel" / "model.toml", LOG_MEL)
    put(folder / "recurrent" / "model.toml", RECURRENT)
    put(folder / "masked" / "model.toml", MASKED)
    put(folder / "mean" / "model.toml", "max_batch_size = 8\npad_variable_length_inputs = true")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Ask]:
    yield from over_http(server) if request.param == "http" else over_grpc(server)


def alone(repository: Path, model: str, inputs: Arrays) -> np.ndarray:
    """The runtime's answer to a single request, without a server."""
    session = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx")
    return session.run(None, dict(inputs))[0]


def glide(samples: int, pitch: float) -> np.ndarray:
    """A voice whose pitch glides up, at 16 kHz."""
    time = np.arange(samples) / 16000
    return sum(np.sin(2 * np.pi * pitch * k * (time + time**2)) / k for k in range(1, 6)).astype(np.float32)[
        np.newaxis
    ]


def test_audio_of_different_lengths_is_batched_and_each_request_gets_its_own_frames(
    server: ServerProcess, repository: Path, ask: Ask
) -> None:
    requests = [{"audio": glide(samples, 110 + samples / 100)} for samples in (8001, 12345, 16000)]
    before = counts(server, "log_mel")

    answers = ask("log_mel", requests)

    assert counts(server, "log_mel").since(before) == Counts(3, 0, 3, 1, {3: 1})
    for request, answer in zip(requests, answers, strict=True):
        expected = alone(repository, "log_mel", request)
        assert answer["frames"].shape == expected.shape
        np.testing.assert_allclose(answer["frames"], expected, rtol=1e-4, atol=1e-4)


def test_interleaved_long_and_short_requests_are_batched_by_bucket(server: ServerProcess, ask: Ask) -> None:
    short, long = [{"audio": glide(4000, 200)}], [{"audio": glide(15000, 100)}]
    before = counts(server, "log_mel")

    answers = ask("log_mel", (short + long) * 3)

    assert counts(server, "log_mel").since(before) == Counts(6, 0, 6, 2, {3: 2})
    assert [answer["frames"].shape[1] for answer in answers] == [23, 92] * 3


def test_a_request_longer_than_the_last_bucket_keeps_its_length(server: ServerProcess, ask: Ask) -> None:
    answers = ask("log_mel", [{"audio": np.repeat(glide(20000, 100), 3, axis=0)}])

    assert answers[0]["frames"].shape == (3, 123, audio_models.BANDS)


def test_a_model_that_takes_lengths_answers_as_if_unbatched(
    server: ServerProcess, repository: Path, ask: Ask
) -> None:
    random = np.random.default_rng(3)
    requests = [{"x": random.normal(size=(1, steps, 4)).astype(np.float32)} for steps in (5, 8, 6)]
    before = counts(server, "recurrent")

    answers = ask("recurrent", requests)

    assert counts(server, "recurrent").since(before) == Counts(3, 0, 3, 1, {3: 1})
    for request, answer in zip(requests, answers, strict=True):
        expected = alone(
            repository, "recurrent", {**request, "steps": np.array([request["x"].shape[1]], np.int32)}
        )
        np.testing.assert_allclose(answer["y"], expected, rtol=1e-5)


def test_a_python_model_gets_a_mask_and_only_allowed_batch_sizes(server: ServerProcess, ask: Ask) -> None:
    requests = [{"x": np.arange(1, length + 1, dtype=np.float32)[np.newaxis]} for length in (5, 8, 6)]

    answers = ask("masked", requests)

    assert [answer["mean"].tolist() for answer in answers] == [[[3.0]], [[4.5]], [[3.5]]]
    assert [answer["seen"].tolist() for answer in answers] == [[[4, 8]]] * 3


def test_a_model_whose_answers_depend_on_padding_is_warned_about(server: ServerProcess) -> None:
    assert (
        "max_batch_size is 8, but joining requests changes outputs: "
        "output 'y' of a request depends on the other requests" in server.output
    )


def test_clients_see_neither_mask_nor_length_inputs(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        assert [spec.name for spec in client["masked"].metadata().inputs] == ["x"]
        assert [spec.name for spec in client["recurrent"].metadata().inputs] == ["x"]
