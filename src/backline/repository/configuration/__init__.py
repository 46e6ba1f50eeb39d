"""A model's configuration, from config.pbtxt, model.toml or a load request, read into a ModelConfig.

All three become the same message (inference.ModelConfig), which is checked by Triton's rules. Settings that
it has no field for are its parameters `backline.*`.
"""

from __future__ import annotations

from backline.repository.configuration.files import ConfigFiles, find, missing, read
from backline.repository.configuration.override import read_override

__all__ = ["ConfigFiles", "find", "missing", "read", "read_override"]
