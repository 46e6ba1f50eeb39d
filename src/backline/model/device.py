"""Where this instance of a model is to compute."""

from __future__ import annotations


class _Placement:
    device = "cpu"


def device() -> str:
    """The device that the server has placed this instance on, as PyTorch calls it: "cpu", or "cuda:1" for GPU 1.

    "cpu" without a server, and where the configuration leaves the place to the model (KIND_MODEL).
    """
    return _Placement.device


def place(kind: str, index: int) -> None:
    """Sets it, in the worker process that runs the model."""
    _Placement.device = f"cuda:{index}" if kind == "gpu" else "cpu"
