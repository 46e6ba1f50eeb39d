"""The seam between the client and the ways to reach a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backline.client.control import ModelControl
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline.engine.messages import InferResponse, Parameter
from backline.engine.tensor import Tensor


@dataclass(frozen=True, slots=True)
class InferCall:
    """One inference as the client means it; `timeout` in seconds, `outputs` None for all, `version` empty for the server's choice."""

    model: str
    inputs: tuple[Tensor, ...]
    version: str = ""
    id: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: Mapping[str, Parameter] | None = None
    timeout: float = 60.0


class Transport(ABC):
    """One server, reached one way. Every method raises BacklineError, DeadlineExceeded after `timeout` seconds among them.

    Lives on the event loop on which it is opened.
    """

    async def open(self) -> None:  # noqa: B027 - most transports connect with the first request
        """Prepares; called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Closes all connections; requests under way fail."""

    @property
    @abstractmethod
    def control(self) -> ModelControl:
        """What lists and changes the server's models."""

    @abstractmethod
    async def infer(self, call: InferCall) -> InferResponse: ...

    @abstractmethod
    def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        """The responses of a model one by one, none to any number. `call.timeout` is the longest wait for each; closing cancels."""

    @abstractmethod
    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        """A call encoded once, to be sent many times: each is answered in full and checked for an error, but not decoded."""

    @abstractmethod
    async def server_live(self, timeout: float) -> bool: ...

    @abstractmethod
    async def server_ready(self, timeout: float) -> bool: ...

    @abstractmethod
    async def server_metadata(self, timeout: float) -> ServerMetadata: ...

    @abstractmethod
    async def model_ready(self, model: str, version: str, timeout: float) -> bool: ...

    @abstractmethod
    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata: ...

    @abstractmethod
    async def model_config(self, model: str, version: str, timeout: float) -> dict[str, Any]:
        """The model's configuration, with the field names of config.pbtxt."""

    @abstractmethod
    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        """The `model_stats` of the statistics extension, one entry a version; all models for an empty name."""

    @abstractmethod
    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        """Names, versions, states and reasons, which every server of the protocol tells."""
