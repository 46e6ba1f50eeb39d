"""Gates in the models: a run that comes to one tells so, and waits until it opens. Both sides see files of one folder."""

from __future__ import annotations

import time
from pathlib import Path

#: Seconds that anything a scenario waits for may take, on a busy machine.
PATIENCE = 10.0


class Gate:
    """One gate, closed at first. The parameter `gate` of a request names it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / name

    def wait_entered(self) -> None:
        """Waits until a run has come to the gate."""
        self._wait("entered")

    def wait_cancelled(self) -> None:
        """Waits until the run at the gate has noticed that nobody waits for it."""
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
                raise TimeoutError(f"no run came to gate '{self.name}': there is no {file.name}")
            time.sleep(0.001)


class Note:
    """The runs of all requests whose parameter `note` names it, in the order in which they began."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / name

    @property
    def runs(self) -> list[str]:
        """Of each run the model and the values of its requests."""
        return self._path.read_text().splitlines() if self._path.exists() else []
