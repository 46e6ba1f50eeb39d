"""The synchronous client: a thin facade over the asyncio client, which it runs on the process's background loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from backline.client.aio import AsyncClient, AsyncModel
from backline.client.background_loop import background_loop
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline.client.result import InferResult
from backline.engine.messages import Parameter


class Client:
    """A server, or a repository inside this program. May be used from any number of threads at once.

    Methods and errors are those of AsyncClient. Its event loop runs on one background thread of the process, so a call costs a change of
    threads (some 50 us); programs that want thousands of requests in flight use `connect_async`.
    """

    def __init__(self, url: str, options: ClientOptions) -> None:
        self._loop = background_loop()
        self._client = AsyncClient(url, options)
        if self._client.address.protocol == "inproc":
            self._loop.run(self._client.transport())  # load now, not within the first request

    def __repr__(self) -> str:
        return f"<Client {self._client.address.url}>"

    def __getitem__(self, model: str) -> Model:
        return self.model(model)

    def model(self, name: str, version: str | int = "") -> Model:
        """A model, at a version or at the one the server chooses. Asks the server nothing."""
        return Model(self, self._client.model(name, version))

    def live(self, timeout: float | None = None) -> bool:
        """Whether the server answers."""
        return self._loop.run(self._client.live(timeout))

    def ready(self, timeout: float | None = None) -> bool:
        """Whether the server and all its models are ready."""
        return self._loop.run(self._client.ready(timeout))

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the server is ready, also for one that has not started yet. Raises DeadlineExceeded with the last reason."""
        self._loop.run(self._client.wait_ready(timeout))

    def metadata(self, timeout: float | None = None) -> ServerMetadata:
        """The server program, its version and extensions."""
        return self._loop.run(self._client.metadata(timeout))

    def models(self, timeout: float | None = None) -> list[ModelIndex]:
        """All models and versions that the server knows, with their states."""
        return self._loop.run(self._client.models(timeout))

    def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The counters of all models, as the statistics extension shapes them; durations in nanoseconds."""
        return self._loop.run(self._client.statistics(timeout))

    def close(self) -> None:
        """Closes the connections; an embedded repository is unloaded."""
        self._loop.run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Model:
    """One model of a server; call it with its inputs."""

    def __init__(self, client: Client, model: AsyncModel) -> None:
        self._loop = client._loop
        self._model = model
        self.name = model.name
        self.version = model.version

    def __repr__(self) -> str:
        return repr(self._model).replace("AsyncModel", "Model", 1)

    def __call__(
        self,
        *inputs: Any,
        version: str | int | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        **named: Any,
    ) -> InferResult:
        """Runs the model: inputs in its order, or by name, or as one mapping (for inputs called like an option).

        `outputs` names those wanted, default all. Shapes are those of the model's metadata, the batch dimension included. The timeout in
        seconds covers everything, connecting too. Raises BacklineError.
        """
        call = self._model(
            *inputs, version=version, timeout=timeout, outputs=outputs, parameters=parameters, request_id=request_id, **named
        )
        return self._loop.run(call)

    def metadata(self, timeout: float | None = None) -> ModelMetadata:
        """Inputs, outputs, versions and platform."""
        return self._loop.run(self._model.metadata(timeout))

    def config(self, timeout: float | None = None) -> dict[str, Any]:
        """The configuration, with the field names of config.pbtxt."""
        return self._loop.run(self._model.config(timeout))

    def ready(self, timeout: float | None = None) -> bool:
        """Whether the model can answer."""
        return self._loop.run(self._model.ready(timeout))

    def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The counters of each version; durations in nanoseconds."""
        return self._loop.run(self._model.statistics(timeout))
