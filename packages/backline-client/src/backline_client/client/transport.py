"""The interface through which the client reaches a server, over any protocol."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from backline_client.client.control import ModelControl
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline_client.values.decodable import decodable
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Tensor

T = TypeVar("T")

#: Receives the response or the error of a request. Never called before the function that sends the request
#: has returned.
OnOutcome: TypeAlias = Callable[[T | None, BaseException | None], None]


class Sending(Protocol):
    """A request in flight to one server."""

    def abandon(self) -> None:
        """Abandons the request, so that its outcome is no longer reported."""


class TaskSending(Generic[T]):
    """A request that a coroutine sends in an asyncio task."""

    __slots__ = ("_on_outcome", "_task")

    def __init__(self, request: Coroutine[Any, Any, T], on_outcome: OnOutcome[T]) -> None:
        self._on_outcome: OnOutcome[T] | None = on_outcome
        self._task = asyncio.get_running_loop().create_task(request)
        self._task.add_done_callback(self._ended)

    def abandon(self) -> None:
        self._on_outcome = None
        self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        report, self._on_outcome = self._on_outcome, None
        if report is not None:
            report(None if error is not None else task.result(), error)


@decodable
class InferCall(Struct, frozen=True, eq=False):
    """One call, which usually carries one request. `timeout` is in seconds. `outputs` is None to request all
    outputs, and `version` is empty to let the server choose the version. `metadata` has names in lower case
    and values in printable ASCII.

    This is a msgspec struct because an instance is created for every request, and a frozen dataclass takes
    several times as long to create.
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
    #: The number of requests that the call carries, which a balancer counts.
    requests: int = 1
    #: The name by which a server in front distinguishes its callers. It is not sent.
    caller: str = ""


def form_of(call: InferCall) -> object:
    """Returns a key that is equal for calls that differ only in their ids, timeouts, metadata and the data of
    their tensors.

    Returns None for calls with parameters, because they have too many different forms to cache.
    """
    if call.parameters:
        return None
    inputs = call.inputs
    if len(inputs) == 1:  # the usual case; avoids building a list
        one = inputs[0]
        return call.model, call.version, call.outputs, one.name, one.datatype, one.shape
    return (
        call.model,
        call.version,
        call.outputs,
        *[(one.name, one.datatype, one.shape) for one in inputs],
    )


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
        """The interface that lists and changes the server's models."""

    @abstractmethod
    async def infer(self, call: InferCall) -> InferResponse: ...

    def start_infer(self, call: InferCall, timeout: float, on_outcome: OnOutcome[InferResponse]) -> Sending:
        """Sends a call, which fails after `timeout` seconds; the call's own timeout is ignored. Reports the
        response or the error to `on_outcome`.
        """
        return TaskSending(self.infer(replace(call, timeout=timeout)), on_outcome)

    @abstractmethod
    def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        """Yields a model's responses, each within `call.timeout`. Closing the generator cancels the call."""

    @abstractmethod
    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        """Encodes a call once and returns a function that sends the call, without decoding the response."""

    @abstractmethod
    async def server_live(self, timeout: float) -> bool: ...

    async def probe(self, timeout: float) -> bool:
        """Like `server_live`, but never waits for requests in flight to end."""
        return await self.server_live(timeout)

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

        With `explained`, parameters named `backline.*` say how the server runs the model, if the server
        reports this.
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
