"""The seam to what a model in a worker process may ask of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from backline.engine.ticket import Ticket
from backline.workers.channel.protocol import Described, Measure

Outcome: TypeAlias = Literal["success", "fail", "cancel"]


class Calls(Protocol):
    """What a model in a worker process may ask of the server. Lives on the event loop; every method raises
    BacklineError.
    """

    def submit(self, ticket: Ticket) -> None:
        """Engine.submit, but refuses a call that would wait for its own caller."""

    def ended(self, ticket: Ticket, outcome: Outcome, ns: int) -> None:
        """A call ended, after this many nanoseconds."""

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a model can serve; for an empty name, whether the server is ready."""

    async def describe(self, model: str, version: str) -> Described:
        """A model's inputs and outputs with full shapes, and its serving versions. Loads a model that is on
        demand.
        """

    async def load(self, model: str, version: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """Control.load. `config` is a configuration as JSON, `files` are contents by path."""

    async def unload(self, model: str, version: str, *, dependents: bool) -> None:
        """Control.unload."""

    def measure(self, message: Measure) -> float | None:
        """Records or reads a metric of the model; returns the value if one was asked for."""

    def forget(self) -> None:
        """The model is unloaded: its metrics are removed."""
