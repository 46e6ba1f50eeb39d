"""How model files are recognised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """The files by which a backend recognises its models in a version's folder.

    `filenames` are complete names, in order of preference ("model.onnx"), possibly in a subfolder
    ("model.savedmodel/saved_model.pb"). `suffixes` recognise the only candidate in a folder (".onnx"). With
    `folder`, the model is the whole folder that contains the file (as for saved_model.pb), not just the file.
    """

    backend: str
    filenames: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    folder: bool = False
