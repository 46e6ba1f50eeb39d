"""ONNX models of audio and of variable-length sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from support import models

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
#: Frame length and hop in samples at 16 kHz: 25 ms and 10 ms, the usual values in speech recognition.
WINDOW, HOP = 400, 160
BANDS = 40


def log_mel(path: Path) -> Path:
    """Log-mel spectrograms, as for speech recognition: `audio` [N, samples] to `frames` [N, frames, 40]."""
    bins = WINDOW // 2 + 1
    angles = 2 * np.pi * np.arange(bins)[:, None] * np.arange(WINDOW) / WINDOW
    hann = np.hanning(WINDOW + 1)[:-1]
    basis = np.concatenate([np.cos(angles) * hann, np.sin(angles) * hann])[:, None, :].astype(np.float32)
    nodes = [
        helper.make_node("Unsqueeze", ["audio", "one"], ["mono"]),
        helper.make_node("Conv", ["mono", "basis"], ["spectrum"], strides=[HOP]),
        helper.make_node("Mul", ["spectrum", "spectrum"], ["squares"]),
        helper.make_node("Split", ["squares"], ["cosines", "sines"], axis=1),
        helper.make_node("Add", ["cosines", "sines"], ["power"]),
        helper.make_node("MatMul", ["bands", "power"], ["energy"]),
        helper.make_node("Max", ["energy", "floor"], ["audible"]),
        helper.make_node("Log", ["audible"], ["loudness"]),
        helper.make_node("Transpose", ["loudness"], ["frames"], perm=[0, 2, 1]),
    ]
    initializers = [
        numpy_helper.from_array(basis, "basis"),
        numpy_helper.from_array(_bands(bins), "bands"),
        numpy_helper.from_array(np.array([1e-2], np.float32), "floor"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    return models.save(
        path, nodes, [("audio", FLOAT, ["N", "T"])], [("frames", FLOAT, ["N", "F", BANDS])], initializers
    )


def _bands(bins: int) -> np.ndarray:
    """Triangular filters, evenly spaced on the mel scale up to 8 kHz: [bands, bins]."""
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1) / 8000 * (bins - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    place = np.arange(bins)
    return np.maximum(0, np.minimum((place - low) / (middle - low), (high - place) / (high - middle))).astype(
        np.float32
    )


def recurrent(path: Path, size: int = 8) -> Path:
    """An LSTM over `x` [N, steps, 4], items of `steps` [N] valid steps; `y` [N, 8] is its last state."""
    random = np.random.default_rng(7)

    def weights(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.5, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Transpose", ["x"], ["by_step"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["by_step", "w", "r", "b", "steps"], ["", "last"], hidden_size=size),
        helper.make_node("Squeeze", ["last", "zero"], ["y"]),
    ]
    initializers = [
        weights("w", 1, 4 * size, 4),
        weights("r", 1, 4 * size, size),
        weights("b", 1, 8 * size),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
    ]
    return models.save(
        path,
        nodes,
        [("x", FLOAT, ["N", "T", 4]), ("steps", INT, ["N"])],
        [("y", FLOAT, ["N", size])],
        initializers,
    )


def mean(path: Path) -> Path:
    """The mean over all of `x` [N, T], padding included: `y` [N, 1]."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)]
    return models.save(path, nodes, [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", 1])])
