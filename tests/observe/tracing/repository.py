"""Models for both Triton and Backline (an adder, a model that calls it, an ensemble), and more for Backline
alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_MODELS = Path(__file__).with_name("models")
_TENSORS = (
    'input [ { name: "IN" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'
    'output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'
)
_PYTHON = (
    f'backend: "python"\nmax_batch_size: 8\n{_TENSORS}instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n'
)
_STEP = (
    '{{ model_name: "add" model_version: -1'
    ' input_map {{ key: "IN" value: "{}" }} output_map {{ key: "OUT" value: "{}" }} }}'
)
_ENSEMBLE = (
    f'platform: "ensemble"\nmax_batch_size: 8\n{_TENSORS}'
    f"ensemble_scheduling {{ step [ {_STEP.format('IN', 'between')}, {_STEP.format('between', 'OUT')} ] }}\n"
)
#: More adders, with other schedulers, caches and batchers between request and run.
ADDING = {
    "cached": "response_cache { enable: true }",
    "sequential": "sequence_batching { }",
    "splitting": "dynamic_batching { } parameters "
    '{ key: "backline.enable_large_batch_splitting" value: { string_value: "true" } }',
}
#: Read by Triton too.
SHARED = {"add": _PYTHON, "caller": _PYTHON, "twice": _ENSEMBLE}


def write_repository(folder: Path) -> Path:
    """Writes the models for both servers."""
    for name, config in SHARED.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        if (_MODELS / f"{name}.py").exists():
            shutil.copy(_MODELS / f"{name}.py", version / "model.py")
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    return folder


def add_models(folder: Path) -> Path:
    """Writes the models for Backline alone."""
    for name in ("pipeline", "batched", "waiting", "counting"):
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(_MODELS / f"{name}.py", version / "model.py")
    for name, settings in ADDING.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(_MODELS / "add.py", version / "model.py")
        (folder / name / "config.pbtxt").write_text(f"{_PYTHON}{settings}\n")
    (folder / "cached_steps" / "1").mkdir(parents=True)
    (folder / "cached_steps" / "config.pbtxt").write_text(f"{_ENSEMBLE}{ADDING['cached']}\n")
    (folder / "waiting" / "config.pbtxt").write_text(
        "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n"
    )
    batching = "dynamic_batching { preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 20000000 }"
    (folder / "batched" / "config.pbtxt").write_text(f"max_batch_size: 2 {batching}\n")
    return folder
