"""Gates hold a model's execution until the scenario opens them; they are files in a shared folder."""

from __future__ import annotations

import time
from pathlib import Path

#: Timeout in seconds of any wait in a scenario, generous enough for a busy machine.
PATIENCE = 10.0


class Gate:
    """A gate, initially closed. A request names it in its parameter `gate`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / name

    def wait_entered(self) -> None:
        """Waits until an execution has reached the gate."""
        self._wait("entered")

    def wait_cancelled(self) -> None:
        """Waits until the execution at the gate has seen its request cancelled."""
        self._wait("cancelled")

    @property
    def entered(self) -> bool:
        return self._path.with_suffix(".entered").exists()

    def open(self) -> None:
        self._path.with_suffix(".open").touch()

    def _wait(self, what: str) -> None:
        file = self._path.with_suffix(f".{what}")
        end = time.monotonic() + PATIENCE
        while not file.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"no execution reached gate '{self.name}': {file.name} is missing")
            time.sleep(0.001)


class Note:
    """The executions of requests that name it in their parameter `note`, in order of their start."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / name

    @property
    def runs(self) -> list[str]:
        """The model and the input values of each execution."""
        return self._path.read_text().splitlines() if self._path.exists() else []
