"""The worker process that the API's functions speak for: there is one model in it."""

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
    """The model of this message is about to be imported."""
    _Worker.load, _Worker.caller = load, caller


def current() -> WorkerLoad:
    """What this worker has loaded. Raises RuntimeError outside of one."""
    if _Worker.load is None:
        raise RuntimeError(_OUTSIDE)
    return _Worker.load


def caller() -> Caller:
    """What this worker asks the server with. Raises RuntimeError outside of one."""
    if _Worker.caller is None:
        raise RuntimeError(_OUTSIDE)
    return _Worker.caller


def name_instance(name: str) -> None:
    """What Triton calls this instance in its texts."""
    _Worker.instance = name


def instance() -> str:
    """What Triton calls this instance in its texts."""
    return _Worker.instance


def get_model_dir() -> str:
    """The folder of the model's version, with its files."""
    return str(Path(current().path).parent)
