"""Completes configurations: adds the defaults that Triton shows to clients, and determines from the files of
a Python model whether its code may complete the configuration.

A class for Triton's Python backend may have a method `auto_complete_config`, which adds inputs and outputs
with their datatypes and dims. Here the file is only searched as text; only a worker process runs its code.
"""

from __future__ import annotations

import re
from typing import Any, Final

from backline.engine.device import Places
from backline.repository.listing import Listing
from backline_client.protos import message
from backline_client.values.errors import BacklineError

#: Matches a definition of the class TritonPythonModel that inherits from no other class.
_PLAIN_CLASS = re.compile(rb"^class TritonPythonModel\s*(\(\s*(object\s*)?\))?:", re.MULTILINE)


def code_may_complete(text: bytes) -> bool:
    """Returns whether the class in a model.py may have `auto_complete_config`. Returns False only if the text
    proves that the class has no such method.
    """
    if b"auto_complete_config" in text:
        return True
    elsewhere = b"TritonPythonModel" in text or b"import *" in text
    return elsewhere and _PLAIN_CLASS.search(text) is None


def may_be_completed(backend: str, platform: str, listing: Listing) -> bool:
    """Returns whether the code of the model in the folder `listing` may complete the configuration."""
    if (backend or platform) and backend != "python":
        return False
    files = [path for path in listing.files if path.endswith("/model.py")]
    try:
        return any(code_may_complete(listing.read(path)) for path in files)
    except BacklineError:
        return True  # the load reports that the file cannot be read


_ONE_SECOND: Final = 1_000_000


def fill_defaults(config: Any, name: str, filename: str) -> None:
    """Adds Triton's defaults (core/src/model_config_utils.cc) to the inference.ModelConfig of the model
    `name`; `filename` is the backend's usual model file.
    """
    config.name = name
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    config.default_model_filename = config.default_model_filename or filename
    _fill_batching(config)
    if config.HasField("ensemble_scheduling"):
        return
    for memory in ("input_pinned_memory", "output_pinned_memory"):
        if not config.optimization.HasField(memory):
            getattr(config.optimization, memory).enable = True
    _fill_instance_groups(config, name)


def fill_places(config: Any, places: Places) -> None:
    """Sets the devices of the instance groups in an inference.ModelConfig; adds a group if there is none."""
    kinds = message("inference.ModelInstanceGroup")
    for placed in places.groups:
        group = (
            config.instance_group[placed.index]
            if config.instance_group
            else config.instance_group.add(name=placed.name, count=1)
        )
        group.kind = kinds.Kind.Value(f"KIND_{placed.devices[0].kind.upper()}")
        group.count = group.count or placed.group.count
        del group.gpus[:]
        group.gpus.extend(device.index for device in placed.devices if device.kind == "gpu")


def _fill_batching(config: Any) -> None:
    limit = config.max_batch_size
    if config.HasField("dynamic_batching") and limit > 0 and not config.dynamic_batching.preferred_batch_size:
        config.dynamic_batching.preferred_batch_size.append(limit)
    if config.HasField("sequence_batching"):
        batching = config.sequence_batching
        batching.max_sequence_idle_microseconds = batching.max_sequence_idle_microseconds or _ONE_SECOND
        if batching.HasField("oldest") and limit > 0 and not batching.oldest.preferred_batch_size:
            batching.oldest.preferred_batch_size.append(limit)


def _fill_instance_groups(config: Any, name: str) -> None:
    kinds = message("inference.ModelInstanceGroup")
    if not config.instance_group:
        config.instance_group.add(name=name)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{name}_{index}"
        group.count = max(group.count, 1)
        if group.kind == kinds.KIND_AUTO:
            group.kind = kinds.KIND_CPU
