"""PyTorch programs on GPUs: which there are, and what a run there needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from backline.backends.cuda import cuda_gpus
from backline.engine.device import Device, Gpus


def usable_gpus(torch: Any) -> Gpus:
    """The GPUs of CUDA, or of ROCm, which PyTorch calls so as well."""
    if not (torch.version.cuda or torch.version.hip):
        return Gpus(
            reason=f"the installed PyTorch {torch.__version__} is built for the CPU alone:"
            " pip install torch from an index of builds with CUDA (https://pytorch.org/get-started)"
        )
    if not torch.cuda.is_available():
        why = cuda_gpus().reason or "no GPU that it is built for is there"
        return Gpus(reason=f"PyTorch {torch.__version__} cannot use a GPU: {why}")
    return Gpus(tuple(range(torch.cuda.device_count())))


def device_name(device: Device) -> str | None:
    """What PyTorch calls a device; None where the file decides."""
    return {"cpu": "cpu", "gpu": f"cuda:{device.index}", "model": None}[device.kind]


def moving(torch: Any, call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A program that is called with tensors of the CPU and runs on another device."""
    device = torch.device(name)

    def current() -> AbstractContextManager[Any]:
        # For tensors that the program makes itself, on "the" GPU.
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def run(*values: Any) -> Any:
        with current():
            return call(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in values))

    return run
