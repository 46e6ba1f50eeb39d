"""The kinds of files that PyTorch writes, recognised without executing anything in them."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from backline.backends.runtime import read_start
from backline.engine.errors import InvalidArgument

_EXPORT = "torch.export.save(torch.export.export(model, example_inputs), 'model.pt2')"
#: What torch.export.load unpickles, below data/constants/ (torch/export/pt2_archive/constants.py).
_PICKLED_CONSTANTS = ("custom_obj_", "opaque_obj_")


class PytorchKind(Enum):
    """What a file holds."""

    TORCH_SCRIPT = "TorchScript"
    EXPORTED = "a torch.export program"
    COMPILED = "an AOTInductor package"


def identify(path: Path) -> PytorchKind:
    """The kind of model in a file.

    Raises InvalidArgument, saying what to do, for a checkpoint (weights without a network) and for files not
    written by PyTorch.
    """
    start = read_start(path)
    if start[:1] == b"\x80":  # the format of torch.save before PyTorch 1.6: a bare pickle
        raise _checkpoint(path)
    if start[:2] != b"PK":
        raise InvalidArgument(
            f"'{path}' is not a file of PyTorch: it is neither a zip archive nor a checkpoint"
        )
    try:
        with ZipFile(path) as archive:
            # Below the file's name when it was written.
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (BadZipFile, OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"'{path}' is a broken archive ({error}); was it copied completely?") from None
    if any(name.startswith("data/aotinductor/") for name in names):
        return PytorchKind.COMPILED
    if any(name.startswith("models/") for name in names) or "serialized_exported_program.json" in names:
        unsafe = [
            name
            for name in names
            if name.startswith(tuple(f"data/constants/{prefix}" for prefix in _PICKLED_CONSTANTS))
        ]
        if unsafe:
            raise InvalidArgument(
                f"'{path}' holds objects that only executing a pickle could restore ({unsafe[0]});"
                " export the network without custom objects"
            )
        return PytorchKind.EXPORTED
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return PytorchKind.TORCH_SCRIPT
    if "data.pkl" in names:
        raise _checkpoint(path)
    raise InvalidArgument(f"'{path}' is a zip archive, but not a model written by PyTorch")


def compiled_for(path: Path) -> str:
    """The kind of device that an AOTInductor package is compiled for ("cpu", "cuda"); "" if unknown."""
    with ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_metadata.json") and "/data/aotinductor/" in name:
                return str(json.loads(archive.read(name)).get("AOTI_DEVICE_KEY", ""))
    return ""


def _checkpoint(path: Path) -> InvalidArgument:
    return InvalidArgument(
        f"'{path}' is a checkpoint that is not a model: it was written by torch.save and holds weights, or a"
        " pickle of Python objects,"
        f" which is never executed. Export the network with its weights: {_EXPORT}"
    )
