"""The interface through which a worker's model calls the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from backline.engine.ticket import Ticket
from backline.workers.channel.protocol import Described, Measure

Outcome: TypeAlias = Literal["success", "fail", "cancel"]


class Calls(Protocol):
    """The functions of the server that a model in a worker process may call. Use them only on the event loop.
    All methods may raise BacklineError.
    """

    def submit(self, ticket: Ticket) -> None:
        """Submits a call as Engine.submit does, but refuses a call that would wait for its own caller."""

    def ended(self, ticket: Ticket, outcome: Outcome, ns: int) -> None:
        """Reports that a call ended after `ns` nanoseconds."""

    def is_ready(self, model: str, version: str) -> bool:
        """Returns whether a model can serve or, for an empty name, whether the server is ready."""

    async def describe(self, model: str, version: str) -> Described:
        """Describes a model: its inputs and outputs, with their full shapes, and the versions that take
        requests. Loads an on-demand model first.
        """

    async def load(self, model: str, version: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """Loads a model; see Control.load. `config` is JSON, and `files` maps paths to file contents."""

    async def unload(self, model: str, version: str, *, dependents: bool) -> None:
        """Unloads a model; see Control.unload."""

    def measure(self, message: Measure) -> float | None:
        """Declares, creates, changes or reads a metric that the model defines, as `message` says. Returns the
        metric's value if `message` asks for it, otherwise None.
        """

    def forget(self) -> None:
        """Removes the model's metrics, because the model is unloaded."""
