"""A repository with one model of each kind that the console shows."""

from __future__ import annotations

import sys
from pathlib import Path

from onnx import TensorProto

from support import models

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "music_transcription"

WORDS = """
from collections.abc import Iterator


class Model:
    def predict(self, text: str) -> Iterator[str]:
        for word in text.split():
            yield word.upper()
"""
LISTENER = """
from collections.abc import Iterator

import numpy as np

from backline.model import FP32, Request


class Model:
    def load(self) -> None:
        self.heard = {}

    def predict(self, sound: FP32[-1], request: Request) -> Iterator[str]:
        heard = self.heard[request.sequence] = self.heard.get(request.sequence, 0) + sound.size
        yield f"{heard} samples"
        yield f"{np.argmax(np.abs(np.fft.rfft(sound))) * 16_000 / max(1, sound.size):.0f} Hz"
        if request.sequence_end:
            yield "the end"
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "x", data_type: TYPE_FP32, dims: [16] }]
output [{ name: "z", data_type: TYPE_FP32, dims: [16] }]
ensemble_scheduling { step [
  { model_name: "add1", model_version: -1,
    input_map { key: "INPUT0", value: "x" }, output_map { key: "OUTPUT0", value: "middle" } },
  { model_name: "add10", model_version: -1,
    input_map { key: "INPUT0", value: "middle" }, output_map { key: "OUTPUT0", value: "z" } }
] }
"""


def build(repository: Path) -> Path:
    """add1 in two versions, add10, sound without a batch, an ensemble, a stream, and a broken file."""
    models.add1(repository, "add1", "1", 1.0)
    models.add1(repository, "add1", "2", 2.0)
    (repository / "add1" / "config.pbtxt").write_text("version_policy { all {} }\n")
    (repository / "add1" / "examples").mkdir()
    (repository / "add1" / "examples" / "ones.json").write_text('{"INPUT0": [' + ", ".join(["1"] * 16) + "]}")
    (repository / "add1" / "examples" / "damaged.json").write_text("{")
    models.add1(repository, "add10", "1", 10.0)
    models.identity_of(repository, "sound", TensorProto.FLOAT, (1, "N"))
    (repository / "both" / "1").mkdir(parents=True)
    (repository / "both" / "config.pbtxt").write_text(ENSEMBLE)
    (repository / "words" / "1").mkdir(parents=True)
    (repository / "words" / "1" / "model.py").write_text(WORDS)
    (repository / "words" / "examples").mkdir()
    (repository / "words" / "examples" / "letters.txt").write_text("a b c d")
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    return repository


def add_listener(repository: Path) -> None:
    """Adds `listener`, which says for each chunk of sound at 16 kHz how much of a sequence it has heard and
    which frequency is the loudest.
    """
    (repository / "listener" / "1").mkdir(parents=True)
    (repository / "listener" / "1" / "model.py").write_text(LISTENER)
    (repository / "listener" / "config.pbtxt").write_text(
        "sequence_batching { max_sequence_idle_microseconds: 60000000 }\n"
    )


def add_transcription(repository: Path) -> None:
    """Adds basic_pitch, which hears notes in music. Raises FileNotFoundError if it is not installed."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import build_repository

        build_repository.build(repository)
    finally:
        sys.path.remove(str(EXAMPLE))
