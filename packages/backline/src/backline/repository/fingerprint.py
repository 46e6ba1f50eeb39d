"""Computes the fingerprint of a version, which changes when the version must be loaded again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: Fields that can change without a new load. A change to such a field is applied to versions that are already
#: loaded, or the field only determines which versions are loaded and when. `declared` repeats other fields,
#: and adds fields without effect. A change to any field that is not listed here causes a load.
_APPLIED_WITHOUT_LOAD = frozenset(
    {
        "version_policy",
        "instance_count",
        "dynamic_batching",
        "preferred_batch_sizes",
        "max_queue_delay_us",
        "priority_levels",
        "default_priority_level",
        "queue_policy",
        "priority_queue_policies",
        "labels",
        "pinned",
        "on_demand",
        "idle_unload_seconds",
        "load_retries",
        "metric_tags",
        "first_response_bounds_ms",
        "declared",
        "source",
        "places",
        "warnings",
    }
)


#: The names of the fields whose changes cause a load, and a function that returns the values of these fields.
_RELEVANT: Final = tuple(name for name in ModelConfig.__struct_fields__ if name not in _APPLIED_WITHOUT_LOAD)
_values_of: Final = attrgetter(*_RELEVANT)


def load_key(config: ModelConfig) -> str:
    """Returns a digest of a configuration. Two configurations have the same digest if a change from one to
    the other needs no load.
    """
    # Most fields have their defaults, and a server may have thousands of models.
    texts = [
        text if type(value) is type(default) and value == default else _text(name, value)
        for name, value, default, text in zip(_RELEVANT, _values_of(config), *_DEFAULTS, strict=True)
    ]
    return _digest(f"[{', '.join(texts)}]")


def fingerprint(files: Mapping[str, FileEntry], config: ModelConfig) -> str:
    """Returns the fingerprint of a version that needs `files`, keyed by path, and is loaded with `config`."""
    return _digest(repr([(path, files[path].identity) for path in sorted(files)]) + load_key(config))


def _text(name: str, value: Any) -> str:
    if name == "instance_groups" and isinstance(value, tuple):
        value = _of_groups(value)
    elif isinstance(value, Mapping):
        value = sorted(value.items())
    return repr((name, value))


def _of_groups(groups: Sequence[InstanceGroup]) -> object:
    """Returns the devices and resources of the instances, but not their number, which can change without a
    load.
    """
    where = dict.fromkeys(
        (group.kind, group.gpus) for group in groups or (InstanceGroup(0),) if not group.passive
    )
    return tuple(where), tuple((group.resources, group.priority) for group in groups if group.limited)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


#: The defaults of the fields in _RELEVANT, and their texts.
_DEFAULTS: Final = (_values_of(ModelConfig("")), tuple(map(_text, _RELEVANT, _values_of(ModelConfig("")))))
