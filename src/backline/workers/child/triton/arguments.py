"""What `initialize` gets."""

from __future__ import annotations

from pathlib import Path

from backline.workers.process.protocol import Load


def arguments(message: Load) -> dict[str, str]:
    """The arguments of `initialize`, all of them texts, under Triton's names."""
    return {
        "model_config": message.configuration,
        "model_instance_kind": message.device_kind.upper(),
        "model_instance_name": message.instance,
        "model_instance_device_id": str(message.device_index),
        "model_repository": str(Path(message.folder)),
        "model_version": message.version,
        "model_name": message.name,
    }
