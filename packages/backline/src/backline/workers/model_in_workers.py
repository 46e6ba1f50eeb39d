"""The interface of a model in worker processes. This module does not import the code that runs worker
processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backline.engine.device import Place, Places
from backline.engine.statistics import ResponseStatistics
from backline.workers.instance import Instance
from backline_client.values.signature import Signature

if TYPE_CHECKING:
    from backline.workers.channel.protocol import WorkerLoaded


class ModelInWorkers(ABC):
    """The counterpart of `LoadedModel` for models in worker processes. Use it only on the event loop, except
    for `run`, which is for other threads, and `close`, which may be called on any thread.
    """

    #: The worker's description of the model.
    loaded: WorkerLoaded
    signature: Signature
    warnings: tuple[str, ...]
    #: The devices of the model, and the place of each of its workers.
    placed: Places
    places: tuple[Place, ...]
    #: The statistics of a decoupled model's responses; None for other models.
    responses: ResponseStatistics | None
    #: Called with the reason when no worker has been running for a while, and with "" when a worker runs
    #: again.
    on_available: Callable[[str], None]
    #: Called with `unready` whenever `unready` changes.
    on_ready: Callable[[str], None]
    #: Why the model reports that it is not ready; empty if it is ready.
    unready: str

    @property
    def threads_per_run(self) -> int:
        """The number of cores that one run occupies; 0 means all."""
        return self.loaded.threads_per_run

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """The process ids of the running workers."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The place where the model runs, as text for messages."""

    @property
    @abstractmethod
    def debugged(self) -> bool:
        """Whether the model runs in the server's process, for a debugger."""

    @property
    @abstractmethod
    def resizable(self) -> bool:
        """Whether `resize` may be called."""

    @abstractmethod
    async def resize(self, placed: Places, places: tuple[Place, ...]) -> None:
        """Starts and ends workers while the model serves, until there is one for each of `places`.

        Raises BacklineError, and keeps the workers as they are, if a worker cannot be started.
        """

    @abstractmethod
    def instances(self) -> Sequence[Instance]:
        """Returns one instance for each batch that the workers can run at the same time."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs the model as LoadedModel.run does, on any thread except the event loop's. For a decoupled
        model, returns the last response.
        """

    @abstractmethod
    def close(self) -> None:
        """Stops the workers. On the event loop, returns immediately; on another thread, returns when the
        workers have ended.
        """
