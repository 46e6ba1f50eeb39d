"""The interface between schedulers and the places where batches run."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias, TypeGuard, runtime_checkable

from backline.workers.batch import Batch

#: Called on the event loop when a batch has run and its instance is free again.
Finished: TypeAlias = Callable[["Instance", Batch], None]


class Instance(Protocol):
    """An instance, which runs one batch at a time: on the event loop, on a thread, or in a worker process."""

    #: Whether `run` returns at once, and the batch runs outside the event loop.
    off_loop: ClassVar[bool]

    def run(self, batch: Batch, finished: Finished) -> None:
        """Starts a batch. The instance must be free. May call `finished` before it returns."""

    def close(self) -> None:
        """Releases the resources of the instance, once its batch has ended."""


@runtime_checkable
class WaitsForTurn(Protocol):
    """An instance whose batch may have to wait for a permit before it runs.

    While the batch waits, `form_again`, which the scheduler sets, removes expired and cancelled requests from
    the batch and fills it up with newer ones. The batch may become empty.
    """

    form_again: Callable[[Batch], None] | None

    def look_again(self) -> None:
        """Calls `form_again` with the waiting batch, if there is one."""


class Remembers(Protocol):
    """An instance whose model may keep the state of sequences. `memory` becomes a new object when that state
    is lost, and is None while there is no worker.
    """

    @property
    def memory(self) -> object: ...


def remembers(instance: Instance) -> TypeGuard[Remembers]:
    """Returns whether an instance, or the one that it wraps, implements `Remembers`.

    isinstance cannot be used: since Python 3.12, it ignores the attributes that a wrapper forwards.
    """
    return hasattr(instance, "memory")
