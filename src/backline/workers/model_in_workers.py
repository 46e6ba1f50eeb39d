"""A model that runs in worker processes, as it is seen from outside: who only asks what a model is need not import how they work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backline.engine.device import Place, Places
from backline.engine.response_statistics import ResponseStatistics
from backline.engine.signature import Signature
from backline.workers.instance import Instance

if TYPE_CHECKING:
    from backline.workers.channel.protocol import WorkerLoaded


class ModelInWorkers(ABC):
    """What `LoadedModel` is for models in this process. Lives on the event loop; `run` and `close` are for other threads."""

    threads_per_run = 1
    #: What the model said of itself when it was loaded.
    loaded: WorkerLoaded
    signature: Signature
    warnings: tuple[str, ...]
    #: The devices that it is on, and what each of its workers is told of them.
    placed: Places
    places: tuple[Place, ...]
    #: Counts the responses of a model that gives any number of them; None for others.
    responses: ResponseStatistics | None
    #: Called when there has been no worker for a while, with the reason, and when there is one again, with "".
    on_available: Callable[[str], None]
    #: Called when the model says of itself that it is not ready, with the reason, or that it is again, with "".
    on_ready: Callable[[str], None]
    #: What `on_ready` was told last.
    unready: str

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """The workers that live."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where the model runs, for people."""

    @property
    @abstractmethod
    def debugged(self) -> bool:
        """Whether the model runs in this process, where a person looks at it."""

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """The resident memory of all workers."""

    @abstractmethod
    def instances(self) -> Sequence[Instance]:
        """A place for each batch that the workers take at once."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See LoadedModel. Called on any thread but the event loop's. Of a model of many responses it gives the last one."""

    @abstractmethod
    def close(self) -> None:
        """Stops the workers. On the event loop it returns at once, on other threads when they have ended."""
