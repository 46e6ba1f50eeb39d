"""Fingerprints of versions, which change when a version must be loaded again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: Fields that apply to loaded versions, or only decide when and which versions are loaded. A change to any
#: other field causes a load. `declared` only repeats other fields, and adds some without effect.
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
        "warnings",
    }
)


def load_key(config: ModelConfig) -> str:
    """A text that two configurations share if a change from one to the other needs no load."""
    relevant = [
        (field.name, _relevant(field.name, getattr(config, field.name)))
        for field in fields(config)
        if field.name not in _APPLIED_WITHOUT_LOAD
    ]
    return _digest(repr(relevant))


def fingerprint(files: Mapping[str, FileEntry], config: ModelConfig) -> str:
    """The fingerprint of a version that needs `files` (by path) and is loaded under `config`."""
    return _digest(repr([(path, files[path].identity) for path in sorted(files)]) + load_key(config))


def _relevant(name: str, value: object) -> object:
    if name == "instance_groups" and isinstance(value, tuple):
        return _of_groups(value)
    return _plain(value)


def _of_groups(groups: Sequence[InstanceGroup]) -> object:
    """Devices and resources of instances; their number applies without a load, as does `instance_count`."""
    where = dict.fromkeys(
        (group.kind, group.gpus) for group in groups or (InstanceGroup(0),) if not group.passive
    )
    return tuple(where), tuple((group.resources, group.priority) for group in groups if group.limited)


def _plain(value: object) -> object:
    return sorted(value.items()) if isinstance(value, Mapping) else value


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
