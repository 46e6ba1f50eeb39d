"""What has to change before a version is loaded again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields

from backline.engine.instance_group import InstanceGroup
from backline.engine.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: What is applied to a version that is loaded already, or concerns only when and which versions are loaded. A field that is not named here
#: causes a load when it changes. `declared` repeats the others, and has fields without effect besides.
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
        "declared",
        "source",
        "warnings",
    }
)


def load_key(config: ModelConfig) -> str:
    """A text that is the same for two configurations under which a model is loaded in the same way: changes between them need no load."""
    relevant = [(field.name, _plain(getattr(config, field.name))) for field in fields(config) if field.name not in _APPLIED_WITHOUT_LOAD]
    return _digest(repr(relevant))


def fingerprint(files: Mapping[str, FileEntry], config: ModelConfig) -> str:
    """The fingerprint of a version that needs `files`, by path, and is loaded under `config`."""
    return _digest(repr([(path, files[path].identity) for path in sorted(files)]) + load_key(config))


def _plain(value: object) -> object:
    if isinstance(value, tuple) and value and isinstance(value[0], InstanceGroup):
        # How many instances there are is applied without a load, as `instance_count`; what each takes is not.
        return tuple((group.resources, group.priority) for group in value if group.limited)
    return sorted(value.items()) if isinstance(value, Mapping) else value


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
