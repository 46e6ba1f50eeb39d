"""The configuration of a model: config.pbtxt or model.toml, or what a load brings along, read into a ModelConfig.

Both files become the same message (inference.ModelConfig), which is checked by Triton's rules; settings that it has no field for are
parameters `backline.*` of it.
"""

from __future__ import annotations

from backline.repository.configuration.files import ConfigFiles, find, missing, read
from backline.repository.configuration.override import read_override

__all__ = ["ConfigFiles", "find", "missing", "read", "read_override"]
