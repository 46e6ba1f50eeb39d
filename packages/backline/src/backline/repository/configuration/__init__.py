"""Reads a model's configuration from config.pbtxt, model.toml or a load request into a ModelConfig.

Each source is first converted to the message inference.ModelConfig, which is checked by Triton's rules. A
setting for which the message has no field becomes a parameter `backline.*` of the message.
"""

from __future__ import annotations

from backline.repository.configuration.files import ConfigFiles, find, missing, read

__all__ = ["ConfigFiles", "find", "missing", "read"]
