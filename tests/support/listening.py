"""Two real audio networks and a melody: basic-pitch detects notes, swift-f0 a single voice's pitch."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

RATE = 22050
SAMPLES = 43844
#: MIDI numbers of the notes, one every quarter of a second.
MELODY = (57, 64, 60, 69, 62, 65, 59)

RECOGNISE = """
max_batch_size: 0
version_policy { all {} }
instance_group { count: 1 }
parameters { key: "backline.constant_input.fmin" value { string_value: "46.875" } }
parameters { key: "backline.constant_input.fmax" value { string_value: "2093.75" } }
"""


def package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    return Path(next(iter(spec.submodule_search_locations)))


DETECTOR = package("basic_pitch") / "saved_models" / "icassp_2022" / "nmp.onnx"
RECOGNISER = package("swift_f0") / "model.onnx"


def put_networks(repository: Path) -> None:
    """Adds the networks as detect (windows of SAMPLES samples at RATE) and recognise (audio at 16 kHz)."""
    for model, file in (("detect", DETECTOR), ("recognise", RECOGNISER)):
        (repository / model / "1").mkdir(parents=True)
        shutil.copy(file, repository / model / "1" / "model.onnx")
    (repository / "recognise" / "config.pbtxt").write_text(RECOGNISE)


def melody() -> np.ndarray:
    """A synthetic melody, each note with a few harmonics and a decay: [SAMPLES, 1]."""
    seconds = np.arange(SAMPLES) / RATE
    wave = np.zeros(SAMPLES)
    for index, note in enumerate(MELODY):
        own = seconds - 0.1 - index / 4
        tone = sum(
            np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * (n + 1) * own) / (n + 1) ** 2 for n in range(4)
        )
        wave += np.where((own >= 0) & (own < 0.24), tone * np.exp(-4 * own), 0)
    return (0.4 * wave[:, None]).astype(np.float32)


def hear(pitch: np.ndarray, confidence: np.ndarray) -> int:
    """The MIDI number of the estimated pitch."""
    heard = float(np.median(pitch[confidence > 0.5]))
    return round(69 + 12 * np.log2(heard / 440))
