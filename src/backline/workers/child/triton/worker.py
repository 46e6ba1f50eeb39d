"""The worker process that the API's functions use: it has one model."""

from __future__ import annotations

from pathlib import Path

from backline.workers.channel.protocol import WorkerLoad
from backline.workers.child.caller import Caller

_OUTSIDE = "triton_python_backend_utils works in worker processes of a server only"


class _Worker:
    load: WorkerLoad | None = None
    caller: Caller | None = None
    instance: str = ""


def begin(load: WorkerLoad, caller: Caller) -> None:
    """The model of this load is about to be imported."""
    _Worker.load, _Worker.caller = load, caller


def current() -> WorkerLoad:
    """What this worker loads. Raises RuntimeError outside of a worker."""
    if _Worker.load is None:
        raise RuntimeError(_OUTSIDE)
    return _Worker.load


def caller() -> Caller:
    """The channel to the server. Raises RuntimeError outside of a worker."""
    if _Worker.caller is None:
        raise RuntimeError(_OUTSIDE)
    return _Worker.caller


def name_instance(name: str) -> None:
    """Sets the instance name in Triton's texts."""
    _Worker.instance = name


def instance() -> str:
    """The instance name in Triton's texts."""
    return _Worker.instance


def get_model_dir() -> str:
    """The folder of the model's version, with its files."""
    return str(Path(current().path).parent)
