"""The interface between schedulers and the places where batches run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeAlias, TypeGuard

from backline.engine.ticket import Ticket
from backline.workers.batch import Batch

#: Called on the event loop when a batch has run and its instance is free again.
Finished: TypeAlias = Callable[["Instance", Batch], None]


class Instance(Protocol):
    """An instance, which runs one batch at a time: on the event loop, on a thread, in a worker process, or on
    another server.
    """

    #: Whether all batches run outside the event loop, so that `run` returns immediately. If not,
    #: `runs_off_loop` says which batches do.
    off_loop: ClassVar[bool]

    def run(self, batch: Batch, finished: Finished) -> None:
        """Starts a batch. The instance must be free. May call `finished` before it returns."""

    def close(self) -> None:
        """Releases the resources of the instance, once its batch has ended."""


def runs_off_loop(instance: Instance, tickets: Sequence[Ticket]) -> bool:
    """Returns whether an instance will run a batch of these requests outside the event loop."""
    if instance.off_loop:
        return True
    leaves_loop = getattr(instance, "leaves_loop", None)
    return leaves_loop is not None and leaves_loop(tickets)


def makes_calls(instances: Sequence[Instance]) -> bool:
    """Returns whether each of the instances of a version only stands for a call in flight to another server,
    so that their number does not say how many batches run at the same time.
    """
    return any(hasattr(instance, "calls_server") for instance in instances)


class WaitsForTurn(Protocol):
    """An instance whose batch may have to wait for a permit before it runs.

    The scheduler sets `form_again`. While the batch waits, `form_again` removes expired and cancelled
    requests from the batch, and adds newer requests in their place. The batch may become empty.
    """

    form_again: Callable[[Batch], None] | None

    def look_again(self) -> None:
        """Calls `form_again` with the waiting batch, if there is one."""


def waits_for_turn(instance: Instance) -> TypeGuard[WaitsForTurn]:
    """Returns whether an instance implements `WaitsForTurn`."""
    return hasattr(instance, "look_again")


class Remembers(Protocol):
    """An instance whose model may keep the states of sequences. `memory` stands for these states: it is a new
    object whenever they have been lost, and None while there is no worker.
    """

    @property
    def memory(self) -> object: ...


def remembers(instance: Instance) -> TypeGuard[Remembers]:
    """Returns whether an instance, or the instance that it wraps, implements `Remembers`.

    isinstance cannot be used: since Python 3.12, it ignores the attributes that a wrapper forwards.
    """
    return hasattr(instance, "memory")
