"""The interface between the client and the ways to reach a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backline.client.control import ModelControl
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline.client.sending import OnOutcome, Sending, TaskSending
from backline.engine.values.messages import InferResponse, Parameter
from backline.engine.values.tensor import Tensor


@dataclass(frozen=True, slots=True)
class InferCall:
    """One request. `timeout` is in seconds, `outputs` is None for all outputs, and `version` is empty if the
    server chooses the version. `metadata` has names in lower case and values in printable ASCII.
    """

    model: str
    inputs: tuple[Tensor, ...]
    version: str = ""
    id: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: Mapping[str, Parameter] | None = None
    timeout: float = 60.0
    #: Header fields (over gRPC, metadata) for this request only.
    metadata: tuple[tuple[str, str], ...] = ()


class Transport(ABC):
    """One way to reach one server. A transport belongs to the event loop on which it is opened.

    Every method may raise a BacklineError, such as DeadlineExceeded after `timeout` seconds.
    """

    async def open(self) -> None:  # noqa: B027 - most transports connect with the first request
        """Prepares the transport; called once, before any other method."""

    @abstractmethod
    async def close(self) -> None:
        """Closes all connections; requests in flight fail."""

    @property
    @abstractmethod
    def control(self) -> ModelControl:
        """Lists and changes the server's models."""

    @abstractmethod
    async def infer(self, call: InferCall) -> InferResponse: ...

    def start_infer(self, call: InferCall, timeout: float, on_outcome: OnOutcome[InferResponse]) -> Sending:
        """Sends a call, which fails after `timeout` seconds; the call's own timeout is ignored. `on_outcome`
        gets the outcome.
        """
        return TaskSending(self.infer(replace(call, timeout=timeout)), on_outcome)

    @abstractmethod
    def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        """Yields a model's responses, each within `call.timeout`. Closing the generator cancels the call."""

    @abstractmethod
    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        """Encodes a call once and returns a function that sends it, without decoding the response."""

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
    async def model_config(
        self, model: str, version: str, timeout: float, *, explained: bool = False
    ) -> dict[str, Any]:
        """Returns the model's configuration, with the field names of config.pbtxt.

        With `explained`, parameters `backline.*` say how the server runs the model, if the server reports it.
        """

    @abstractmethod
    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        """Returns the `model_stats` of Triton's statistics extension, one entry per version.

        An empty `model` means all models.
        """

    @abstractmethod
    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        """Lists all versions, with the fields that every server of the protocol reports: name, state,
        reason.
        """
