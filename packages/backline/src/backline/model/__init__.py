"""The names that a `model.py` imports: type hints, special parameters of `predict`, metrics and errors.

    class Model:
        def predict(self, x: FP32[16]) -> FP32[16]:
            return x + 1

This package needs NumPy but no server, so a model can be used in a notebook or a test like any other class:
`Model().predict(x)`.
"""

from __future__ import annotations

from backline.model.audio import Audio
from backline.model.hints import (
    BF16,
    BOOL,
    BYTES,
    FP16,
    FP32,
    FP64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Models,
    Request,
)  # fmt: skip
from backline.model.image import Image
from backline.model.metrics import Counter, Gauge, Histogram
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable

__all__ = [
    "BF16",
    "BOOL",
    "BYTES",
    "FP16",
    "FP32",
    "FP64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "Audio",
    "BacklineError",
    "Counter",
    "Gauge",
    "Histogram",
    "Image",
    "InvalidArgument",
    "Models",
    "Request",
    "Unavailable",
    "device",
]


class _Placement:
    device = "cpu"


def device() -> str:
    """Returns the device on which the server has placed this instance, in PyTorch's notation: "cpu", or
    "cuda:1" for GPU 1.

    Also returns "cpu" if no server runs the model, or if the configuration leaves the choice to the model
    (KIND_MODEL).
    """
    return _Placement.device


def place(kind: str, index: int) -> None:
    """Sets the device that `device` returns. The worker process calls this before it loads the model."""
    _Placement.device = f"cuda:{index}" if kind == "gpu" else "cpu"
