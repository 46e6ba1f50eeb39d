"""Tells a model on which device this instance of it should compute."""

from __future__ import annotations


class _Placement:
    device = "cpu"


def device() -> str:
    """Returns the device on which the server has placed this instance, in PyTorch's notation: "cpu", or
    "cuda:1" for GPU 1.

    Returns "cpu" outside a server, or if the configuration leaves the choice to the model (KIND_MODEL).
    """
    return _Placement.device


def place(kind: str, index: int) -> None:
    """Sets the device that `device` returns. The worker process calls this before it loads the model."""
    _Placement.device = f"cuda:{index}" if kind == "gpu" else "cpu"
