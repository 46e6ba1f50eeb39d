"""The seam to where a batch runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias, TypeGuard, runtime_checkable

from backline.workers.batch import Batch

#: Called on the event loop when the batch has run and the instance is free again.
Finished: TypeAlias = Callable[["Instance", Batch], None]


class Instance(Protocol):
    """Something that runs one batch at a time, wherever it lives."""

    #: Whether `run` returns at once and the batch runs beside the event loop.
    beside_loop: ClassVar[bool]

    def run(self, batch: Batch, finished: Finished) -> None:
        """Starts a batch; the instance must be free. `finished` may be called before this returns."""

    def close(self) -> None:
        """Gives back what the instance holds, once its batch has ended."""


@runtime_checkable
class WaitsForTurn(Protocol):
    """An instance before which a batch may have to wait. `form_again`, which whoever runs batches on it sets, forms one anew: without those
    who are late or gone, perhaps with others that have come since. Nothing may be left of it.
    """

    form_again: Callable[[Batch], None] | None

    def look_again(self) -> None:
        """Has the batch that waits, if one does, formed anew now."""


class Remembers(Protocol):
    """An instance in which a model may keep what it knows of sequences. `memory` is another object once that is lost, None while there is
    nothing that could remember.
    """

    @property
    def memory(self) -> object: ...


def remembers(instance: Instance) -> TypeGuard[Remembers]:
    """Whether an instance Remembers; of one that runs another, whether that one does. From Python 3.12 on isinstance asks the class."""
    return hasattr(instance, "memory")
