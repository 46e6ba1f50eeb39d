"""The repositories, files and ports that the command lines of cases.py name."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]) for x in inputs]
"""
CONFIGURATION = """backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


class Places:
    """Creates what the command lines name in a folder, and holds a port while it is used as a context."""

    def __init__(self, folder: Path) -> None:
        for repository, models in (("good", "a"), ("bad", "ab"), ("other", "c"), ("unread", "au")):
            for name in models:
                version = folder / repository / name / "1"
                version.mkdir(parents=True)
                (version / "model.py").write_text('raise ValueError("boom")\n' if name == "b" else MODEL)
                wrong = "max_batch_size: -1\n" if name == "u" else ""
                (version.parent / "config.pbtxt").write_text(wrong + CONFIGURATION)
        self._taken = socket.socket()
        self._taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._taken.bind(("0.0.0.0", 0))
        self._taken.listen()
        self._names = {
            **{name: str(folder / name) for name in ("good", "bad", "other", "unread", "missing")},
            "log": str(folder / "server.log"),
            "trace": str(folder / "trace.json"),
            "taken": str(self._taken.getsockname()[1]),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._taken.close()

    def fill(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with the names in braces replaced."""
        filled = list(arguments)
        for name, value in self._names.items():
            filled = [argument.replace(f"{{{name}}}", value) for argument in filled]
        return filled

    def hide(self, text: str) -> str:
        """A text with names in braces instead of the places."""
        for name, value in self._names.items():
            text = text.replace(value, f"{{{name}}}")
        return text
