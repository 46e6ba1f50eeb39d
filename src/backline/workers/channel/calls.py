"""The seam to what a model in a worker process may ask of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from backline.engine.ticket import Ticket
from backline.workers.channel.protocol import Described, Measure

Outcome: TypeAlias = Literal["success", "fail", "cancel"]


class Calls(Protocol):
    """What a model in a worker process may ask of the server. Lives on the event loop; every method raises BacklineError."""

    def submit(self, ticket: Ticket) -> None:
        """Engine.submit, which refuses what could wait for itself."""

    def ended(self, ticket: Ticket, outcome: Outcome, ns: int) -> None:
        """A call has ended after so many nanoseconds."""

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a model can answer, or without a name the server is ready."""

    async def describe(self, model: str, version: str) -> Described:
        """The inputs and outputs of a model, with full shapes, and its versions; one that is on demand is loaded for it."""

    async def load(self, model: str, version: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """Control.load, with the JSON of a configuration and contents of files by path, if there are any."""

    async def unload(self, model: str, version: str, *, dependents: bool) -> None:
        """Control.unload."""

    def measure(self, message: Measure) -> float | None:
        """A metric of the model itself; the answer is the value that was asked for."""

    def forget(self) -> None:
        """The model is unloaded: nobody counts for it any more."""
