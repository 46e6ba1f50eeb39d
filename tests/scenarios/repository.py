"""The scenarios' models, as a repository that Triton and Backline both read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SOURCES = Path(__file__).with_name("models")


@dataclass(frozen=True, slots=True)
class Served:
    """A model: its configuration, and the name of its file in `models/`; ensembles have no file."""

    config: str
    source: str = ""


def tensor(name: str, datatype: str = "INT32", dims: str = "1", extra: str = "") -> str:
    """An input or output of a configuration."""
    return f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] {extra}}}'


def tensors(inputs: list[str], outputs: list[str]) -> str:
    return f"input [ {', '.join(inputs)} ]\noutput [ {', '.join(outputs)} ]\n"


def worker(
    config: str = "",
    *,
    max_batch_size: int = 8,
    instances: int = 1,
    rate: str = "",
    dims: str = "1",
    plus: bool = False,
) -> Served:
    """The model `worker.py`; `plus` adds the optional input PLUS, `rate` the instances' rate limiter."""
    inputs = [
        tensor("IN", dims=dims),
        *([tensor("PLUS", dims=dims, extra="optional: true ")] if plus else ()),
    ]
    outputs = [tensor("OUT", dims=dims), tensor("RUN"), tensor("BATCH", "STRING")]
    shape = f"max_batch_size: {max_batch_size}\n{tensors(inputs, outputs)}"
    return Served(f"{shape}{instance_group(instances, rate)}{config}", "worker")


def instance_group(count: int = 1, rate: str = "") -> str:
    limiter = f"rate_limiter {{ {rate} }} " if rate else ""
    return f"instance_group [ {{ kind: KIND_CPU count: {count} {limiter}}} ]\n"


def write(folder: Path, models: Mapping[str, Served], gates: Path) -> Path:
    """Writes the repository, whose models use gates in the folder `gates`."""
    for name, model in models.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        config = model.config
        if model.source:
            shutil.copy(_SOURCES / f"{model.source}.py", version / "model.py")
            gates_folder = f'key: "gates" value: {{ string_value: "{gates}" }}'
            config = f'backend: "python"\n{config}parameters {{ {gates_folder} }}\n'
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    return folder
