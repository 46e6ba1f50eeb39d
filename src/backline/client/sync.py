"""The synchronous client: a thin facade over the asyncio client, which it runs on the process's background loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from backline.client.aio import AsyncClient, AsyncModel
from backline.client.background_loop import background_loop
from backline.client.options import ClientOptions
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline.client.result import InferResult
from backline.client.sequences import RequestSequence
from backline.engine.control import STABLE, Change
from backline.engine.messages import Parameter

T = TypeVar("T")


class Runner(Protocol):
    """What runs the coroutines of a client for threads that wait for them."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


class Client:
    """A server, or a repository inside this program. May be used from any number of threads at once.

    Methods and errors are those of AsyncClient. Its event loop runs on one background thread of the process, so a call costs a change of
    threads (some 50 us); programs that want thousands of requests in flight use `connect_async`.
    """

    def __init__(self, url: str, options: ClientOptions) -> None:
        self._loop: Runner = background_loop()
        self._client = AsyncClient(url, options)
        if self._client.address.protocol == "inproc":
            self._loop.run(self._client.transport())  # load now, not within the first request

    @classmethod
    def over(cls, client: AsyncClient, loop: Runner) -> Self:
        """The facade of a client whose coroutines are run by `loop`."""
        self = cls.__new__(cls)
        self._loop, self._client = loop, client
        return self

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
        """All models and versions that the server knows: states, reasons, labels, memory, and how far loads are."""
        return self._loop.run(self._client.models(timeout))

    def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The counters of all models, as the statistics extension shapes them; durations in nanoseconds."""
        return self._loop.run(self._client.statistics(timeout))

    def load(
        self,
        name: str,
        version: str | int | None = None,
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Loads a model, or one version of it; what is loaded and has changed is loaded again, new before old. Returns when it is ready.

        `config` replaces the repository's configuration (a mapping or its JSON, with the names of config.pbtxt), `files` its files
        ({"1/model.onnx": bytes or a pathlib.Path}). A failed load leaves what was served serving, and its reason is raised. After
        DeadlineExceeded the load goes on.
        """
        self._loop.run(self._client.load(name, version, config=config, files=files, timeout=timeout))

    def unload(
        self,
        name: str,
        version: str | int | None = None,
        *,
        dependents: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Takes a model, or one version of it, out of service; `dependents`: with the steps of an ensemble, see AsyncClient."""
        self._loop.run(self._client.unload(name, version, dependents=dependents, timeout=timeout))

    def labels(self, name: str, timeout: float | None = None) -> dict[str, str]:
        """The labels of a model and the versions they point to."""
        return self._loop.run(self._client.labels(name, timeout))

    def set_label(
        self,
        name: str,
        label: str,
        version: str | int,
        *,
        expected: str | int | None = None,
        timeout: float | None = None,
    ) -> Change:
        """Points a label to a version; with `expected` only if it points there now ("" for a label that does not exist yet)."""
        return self._loop.run(
            self._client.set_label(name, label, version, expected=expected, timeout=timeout)
        )

    def remove_label(
        self, name: str, label: str, *, expected: str | int | None = None, timeout: float | None = None
    ) -> Change:
        """Removes a label; with `expected` only if it points there now."""
        return self._loop.run(self._client.remove_label(name, label, expected=expected, timeout=timeout))

    def promote(
        self,
        name: str,
        version: str | int,
        *,
        expected: str | int | None = None,
        timeout: float | None = None,
    ) -> Change:
        """Makes a version the one that requests without a version get: moves the label "stable"."""
        return self._loop.run(self._client.promote(name, version, expected=expected, timeout=timeout))

    def rollback(self, name: str, label: str = STABLE, timeout: float | None = None) -> Change:
        """Points a label back to where it pointed before its last move."""
        return self._loop.run(self._client.rollback(name, label, timeout))

    def history(self, name: str = "", limit: int = 100, timeout: float | None = None) -> list[Change]:
        """The last changes, newest first: who did what, when. Of all models without a name."""
        return self._loop.run(self._client.history(name, limit, timeout))

    def refresh(self, timeout: float | None = None) -> None:
        """Makes the server look at its repositories now; returns when what they hold is served or has failed."""
        self._loop.run(self._client.refresh(timeout))

    def close(self) -> None:
        """Closes the connections; an embedded repository is unloaded."""
        self._loop.run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            *inputs,
            version=version,
            timeout=timeout,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            **named,
        )
        return self._loop.run(call)

    def stream(
        self,
        *inputs: Any,
        version: str | int | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        **named: Any,
    ) -> Generator[InferResult, None, None]:
        """Runs the model and yields its responses as they come: any number of them, one where the model is not decoupled.

        The arguments are those of a call; the timeout in seconds is the longest wait for each response. While responses are not taken the
        model waits; leaving early cancels it.

        >>> for part in client["repeat"].stream(IN=values, DELAY=delays, WAIT=wait): ...
        """
        responses = self._model.stream(
            *inputs,
            version=version,
            timeout=timeout,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            **named,
        )
        try:
            while (result := self._loop.run(_next(responses))) is not None:
                yield result
        finally:
            self._loop.run(responses.aclose())

    def sequence(self, id: int | str | None = None) -> RequestSequence:
        """A new sequence of requests, for a model that keeps a state between them; `id` is by default a random number."""
        return RequestSequence(self, id)

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


async def _next(responses: AsyncGenerator[InferResult, None]) -> InferResult | None:
    return await anext(responses, None)
