"""The repositories, the shared memory object and the options of the servers that are compared."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

from dialects.triton_forms.repository import LOADED, write

OPTIONS = (
    "--model-control-mode=explicit",
    "--exit-on-error=false",
    "--cache-config=local,size=1048576",
    "--strict-readiness=false",
    *(f"--load-model={name}" for name in LOADED),
)


class Places:
    """Two repositories in a folder, and a shared memory object of 64 bytes while it is used as a context."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.first, self.second = write(folder)
        self.shared_object = f"/triton-forms-{os.getpid()}"
        self._file = Path("/dev/shm") / self.shared_object.strip("/")

    def __enter__(self) -> Self:
        self._file.write_bytes(bytes(64))
        return self

    def __exit__(self, *error: object) -> None:
        self._file.unlink()

    def hide(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer without the folder's name."""
        hidden: dict[str, Any] = json.loads(json.dumps(answer).replace(self._folder, "{folder}"))
        return hidden
