"""How the file of a model is recognised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """The files by which a backend's models are recognised in the folder of a version.

    `filenames` are complete names, in order of preference ("model.onnx"), also of a file in a folder ("model.savedmodel/saved_model.pb");
    `suffixes` recognise the only candidate of a folder (".onnx"). With `folder` the model is the whole folder that holds the file
    (saved_model.pb), not the file alone.
    """

    backend: str
    filenames: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    folder: bool = False
