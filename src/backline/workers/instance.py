"""The seam to where a batch runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias, TypeGuard, runtime_checkable

from backline.workers.batch import Batch

#: Called on the event loop when the batch has run and the instance is free again.
Finished: TypeAlias = Callable[["Instance", Batch], None]


class Instance(Protocol):
    """Something that runs one batch at a time, wherever it lives."""

    #: Whether `run` returns at once and the batch runs off the event loop.
    beside_loop: ClassVar[bool]

    def run(self, batch: Batch, finished: Finished) -> None:
        """Starts a batch; the instance must be free. May call `finished` before it returns."""

    def close(self) -> None:
        """Releases what the instance holds, once its batch has ended."""


@runtime_checkable
class WaitsForTurn(Protocol):
    """An instance whose batch may have to wait for a permit.

    Meanwhile `form_again`, set by the driver, re-forms the batch: without expired and cancelled requests,
    perhaps with newer ones. None may be left.
    """

    form_again: Callable[[Batch], None] | None

    def look_again(self) -> None:
        """Re-forms the batch that waits, if there is one."""


class Remembers(Protocol):
    """An instance whose model may keep the state of sequences. `memory` is a new object whenever that
    state was lost, and None while there is no worker.
    """

    @property
    def memory(self) -> object: ...


def remembers(instance: Instance) -> TypeGuard[Remembers]:
    """Whether an instance Remembers; of an instance that wraps another, whether that one does. Not
    isinstance, which since Python 3.12 looks at the class only.
    """
    return hasattr(instance, "memory")
