"""Which fields of a configuration have an effect; all others are warned about by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

#: The fields that have an effect. A message that is not named as `<field>.` is not looked into.
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
        "input.optional",
        "input.allow_ragged_batch",
        "output.name",
        "output.data_type",
        "output.dims",
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
    }
)
#: The messages on the way to them.
_SECTIONS: Final = frozenset(name[: match.start()] for name in SUPPORTED for match in re.finditer(r"\.", name))
#: What says nothing more than what is so anyway.
_OFF: Final = {
    "model_repository_agents": "",
}


def without_effect(section: Any, prefix: str = "") -> Iterator[str]:
    """The paths of fields that are set but have no effect, without the indexes of lists."""
    for field, value in section.ListFields():
        path = prefix + field.name
        if path in SUPPORTED:
            continue
        if path in _SECTIONS:
            for part in value if field.is_repeated else (value,):
                yield from without_effect(part, path + ".")
        elif path not in _OFF or (field.message_type is not None and value.ListFields()):
            yield path
