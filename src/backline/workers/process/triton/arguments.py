"""What `initialize` gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backline.workers.process.protocol import Load


def arguments(message: Load, config: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of `initialize`, all of them texts, under Triton's names."""
    kind, device, name = _instance(message, config)
    return {
        "model_config": message.configuration,
        "model_instance_kind": kind,
        "model_instance_name": name,
        "model_instance_device_id": str(device),
        "model_repository": str(Path(message.folder)),
        "model_version": message.version,
        "model_name": message.name,
    }


def _instance(message: Load, config: Mapping[str, Any]) -> tuple[str, int, str]:
    """The kind ("CPU"), the device and the name of the instance: groups count their own, a group with devices once for each."""
    left = message.instance
    for group in config.get("instance_group", ()):
        count, devices = group["count"], group.get("gpus") or [0]
        of_group = count * len(devices)
        if left < of_group:
            name = f"{group['name']}_{left % count}" if of_group > 1 else f"{group['name']}_0"
            return group["kind"].removeprefix("KIND_"), devices[left // count], name
        left -= of_group
    return "CPU", 0, f"{message.name}_{message.instance}"
