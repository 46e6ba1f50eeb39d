"""Reads a model's configuration from config.pbtxt, model.toml or a load request into a ModelConfig.

Each source is first read into the message inference.ModelConfig, which is checked by Triton's rules. A
setting for which the message has no field is stored as a parameter, `backline.*`.
"""

from __future__ import annotations

from backline.repository.configuration.files import ConfigFiles, find, missing, read
from backline.repository.configuration.override import read_override

__all__ = ["ConfigFiles", "find", "missing", "read", "read_override"]
