"""Lists the fields and settings of a configuration that have an effect. All others cause a warning."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any, Final, Literal, TypeAlias

from backline.engine.config.model_config import ModelConfig

#: The fields that have an effect. If a field is listed without subfields, all its subfields have an effect.
SUPPORTED: Final = frozenset(
    {
        "name",
        "backend",
        "platform",
        "max_batch_size",
        "default_model_filename",
        "parameters",
        "version_policy",
        "input.name",
        "input.data_type",
        "input.dims",
        "input.reshape",
        "input.optional",
        "input.allow_ragged_batch",
        "output.name",
        "output.data_type",
        "output.dims",
        "output.reshape",
        "output.label_filename",
        "batch_input.kind",
        "batch_input.target_name",
        "batch_input.data_type",
        "batch_input.source_input",
        "batch_output.kind",
        "batch_output.target_name",
        "batch_output.source_input",
        "instance_group.name",
        "instance_group.count",
        "instance_group.kind",
        "instance_group.gpus",
        "instance_group.passive",
        "instance_group.secondary_devices",
        "instance_group.rate_limiter",
        "dynamic_batching",
        "ensemble_scheduling.step",
        "ensemble_scheduling.max_inflight_requests",
        "model_warmup",
        "sequence_batching.max_sequence_idle_microseconds",
        "sequence_batching.control_input",
        "sequence_batching.iterative_sequence",
        "sequence_batching.state.input_name",
        "sequence_batching.state.output_name",
        "sequence_batching.state.data_type",
        "sequence_batching.state.dims",
        "sequence_batching.state.initial_state",
        "sequence_batching.direct",
        "sequence_batching.oldest",
        "model_transaction_policy",
        "optimization.execution_accelerators",
        "response_cache.enable",
        "metric_tags",
        "model_metrics.metric_control",
    }
)
#: The paths of the sections that contain the supported fields.
_SECTIONS: Final = frozenset(
    name[: match.start()] for name in SUPPORTED for match in re.finditer(r"\.", name)
)
#: Sections that cause no warning when they are empty.
_OFF: Final = frozenset({"model_repository_agents"})

#: Where a model runs: in the server's process ("here"), as a model with its own code in worker processes
#: ("worker"), by a runtime in a worker process ("process"), as streams on threads ("stream"), only through
#: its steps ("ensemble"), or on other servers ("remote").
Kind: TypeAlias = Literal["here", "worker", "process", "stream", "ensemble", "remote"]
_OF_WORKERS: Final = ("python", "memory_limit_bytes")
_OF_RUNS: Final = ("lane", "lone_run_threads", "cpus", "execution_timeout_seconds")
#: For each kind of model, the native settings that have no effect on it, and the reason.
_IGNORED: Final[dict[Kind, tuple[str, tuple[str, ...]]]] = {
    "here": ("it is for models in worker processes", _OF_WORKERS),
    "worker": ("the model runs in worker processes", ("lane", "lone_run_threads")),
    "process": ("it is for Python models", ("python",)),
    "stream": ("the model sends any number of responses, on its own threads", (*_OF_RUNS, *_OF_WORKERS)),
    "remote": ("the model runs on other servers", ("lane", "lone_run_threads", "cpus", *_OF_WORKERS)),
    "ensemble": (
        "an ensemble runs nothing itself; set it for the models of its steps",
        (*_OF_RUNS, "idempotent", "batch_axis", "constant_input", *_OF_WORKERS),
    ),
}
#: The fields of ModelConfig whose names differ from the names of their settings.
_FIELDS: Final = {"batch_axis": "batch_axes", "constant_input": "constant_inputs"}


def without_effect(section: Any, prefix: str = "") -> Iterator[str]:
    """Yields the paths, without list indexes, of fields that are set but have no effect."""
    for field, value in section.ListFields():
        path = prefix + field.name
        if path in SUPPORTED:
            continue
        if path in _SECTIONS:
            for part in value if field.is_repeated else (value,):
                yield from without_effect(part, path + ".")
        elif path not in _OFF or (field.message_type is not None and value.ListFields()):
            yield path


def ignored_settings(config: ModelConfig, kind: Kind) -> tuple[str, ...]:
    """Returns a warning for each native setting that is set but has no effect on a model of this kind."""
    why, settings = _IGNORED[kind]
    given = [
        setting
        for setting in settings
        if getattr(config, _FIELDS.get(setting, setting)) not in (None, (), "", {})
    ]
    where = f"{posixpath.basename(config.source)} of '{config.name}'"
    return tuple(f"{where}: {setting} has no effect: {why}" for setting in given)
