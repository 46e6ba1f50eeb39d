"""The synchronous client: a thin facade over the asyncio client, run on the process's background loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from backline_client.client.aio import AsyncClient, AsyncModel
from backline_client.client.background_loop import background_loop
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline_client.client.result import InferResult
from backline_client.client.sequences import RequestSequence
from backline_client.values.control import STABLE, Attempt, Change
from backline_client.values.messages import Parameter

if TYPE_CHECKING:
    from backline_client.client.jobs import Job

T = TypeVar("T")


class Runner(Protocol):
    """Runs coroutines on behalf of threads that wait for their results."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


class Client:
    """A client of a server, of several servers with the same models, or of a repository in this process. Any
    number of threads may share the client.

    Methods and errors are those of AsyncClient. The event loop runs on one background thread per process, so
    each call costs two thread switches (about 50 us). Programs with thousands of requests in flight should
    use `connect_async`.
    """

    def __init__(self, url: str, options: ClientOptions) -> None:
        self._loop: Runner = background_loop()
        self._client = AsyncClient(url, options)
        if self._client.address.protocol == "inproc":
            self._loop.run(self._client.transport())  # loads the models now instead of at the first request

    @classmethod
    def over(cls, client: AsyncClient, loop: Runner) -> Self:
        """Returns a facade for `client` that runs its coroutines on `loop`."""
        self = cls.__new__(cls)
        self._loop, self._client = loop, client
        return self

    def __repr__(self) -> str:
        return f"<Client {self._client.address.url}>"

    def __getitem__(self, model: str) -> Model:
        return self.model(model)

    def model(self, name: str, version: str | int = "") -> Model:
        """Returns the model with this name. Unless `version` is given, the server picks the version.

        Raises InvalidArgument for an empty name.
        """
        return Model(self, self._client.model(name, version))

    def live(self, timeout: float | None = None) -> bool:
        """Returns whether the server reports that it is live.

        Raises BacklineError if the server cannot be reached.
        """
        return self._loop.run(self._client.live(timeout))

    def ready(self, timeout: float | None = None) -> bool:
        """Returns whether the server reports that it is ready."""
        return self._loop.run(self._client.ready(timeout))

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the server has started and is ready. Raises DeadlineExceeded, with the last known
        reason, if the server is not ready in time.
        """
        self._loop.run(self._client.wait_ready(timeout))

    def metadata(self, timeout: float | None = None) -> ServerMetadata:
        """Returns the server's name, version and protocol extensions."""
        return self._loop.run(self._client.metadata(timeout))

    def models(self, timeout: float | None = None) -> list[ModelIndex]:
        """Lists the models and versions on the server: state, reason, labels, memory and load progress."""
        return self._loop.run(self._client.models(timeout))

    def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Returns the counters of all models, as in Triton's statistics extension. Durations are in ns."""
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
        """Loads a model, or one version of it, and returns when the model is ready; see AsyncClient.load."""
        self._loop.run(self._client.load(name, version, config=config, files=files, timeout=timeout))

    def unload(
        self,
        name: str,
        version: str | int | None = None,
        *,
        dependents: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Takes a model, or one version of it, out of service; see AsyncClient.unload."""
        self._loop.run(self._client.unload(name, version, dependents=dependents, timeout=timeout))

    def labels(self, name: str, timeout: float | None = None) -> dict[str, str]:
        """Returns the labels of a model, each with the version that it points to."""
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
        """Points a label to a version.

        If `expected` is given, raises InvalidArgument unless the label points to that version now. "" means
        that the label must not exist yet.
        """
        return self._loop.run(
            self._client.set_label(name, label, version, expected=expected, timeout=timeout)
        )

    def remove_label(
        self, name: str, label: str, *, expected: str | int | None = None, timeout: float | None = None
    ) -> Change:
        """Removes a label. If `expected` is given, raises InvalidArgument unless the label points to that
        version now.
        """
        return self._loop.run(self._client.remove_label(name, label, expected=expected, timeout=timeout))

    def promote(
        self,
        name: str,
        version: str | int,
        *,
        expected: str | int | None = None,
        timeout: float | None = None,
    ) -> Change:
        """Makes a version the default for requests that name none, by moving the label "stable"."""
        return self._loop.run(self._client.promote(name, version, expected=expected, timeout=timeout))

    def rollback(self, name: str, label: str = STABLE, timeout: float | None = None) -> Change:
        """Points a label back to the version to which it pointed before its last move.

        A second rollback undoes the move before that.
        """
        return self._loop.run(self._client.rollback(name, label, timeout))

    def history(self, name: str = "", limit: int = 100, timeout: float | None = None) -> list[Change]:
        """Returns the latest changes of a model, or of all models, newest first: who did what, and when."""
        return self._loop.run(self._client.history(name, limit, timeout))

    def audit(
        self, limit: int = 100, after: float = 0.0, timeout: float | None = None
    ) -> list[Change | Attempt]:
        """Returns the latest entries of the audit log, at most `limit`, newest first. Entries made before
        `after` (seconds since 1970) are left out.
        """
        return self._loop.run(self._client.audit(limit, after, timeout))

    def job(self, id: str) -> Job:
        """Returns the job with this id. Its state is unknown until the server is asked."""
        from backline_client.client.jobs import Job

        return Job(self._loop, self._client.job(id))

    def jobs(
        self, state: str = "", model: str = "", limit: int = 100, timeout: float | None = None
    ) -> list[Job]:
        """Returns the caller's jobs, newest first. `state` may name several states, separated by commas."""
        from backline_client.client.jobs import Job

        found = self._loop.run(self._client.jobs(state, model, limit, timeout))
        return [Job(self._loop, one) for one in found]

    def refresh(self, timeout: float | None = None) -> None:
        """Makes the server scan its repositories. Returns once all models found are ready or have failed."""
        self._loop.run(self._client.refresh(timeout))

    def close(self) -> None:
        """Closes the connections, or unloads the embedded repository."""
        self._loop.run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Model:
    """One model of a server. Call the object with the model's inputs to run the model."""

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
        """Runs the model.

        Pass inputs by position, by name, or as one mapping, which is needed for an input that has the name of
        an option. `outputs` names the outputs to return; by default, all are returned. Shapes are those of
        the model's metadata, including the batch dimension. The timeout, in seconds, includes the time to
        connect. Raises BacklineError.
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
        """Runs the model and yields its responses as they arrive: one, or any number if the model is
        decoupled.

        The arguments are those of a call, but the timeout in seconds limits the wait for each response. If
        the caller takes responses slowly, the model pauses once the buffers of the connection are full.
        Leaving the loop early cancels the request.

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

    def submit(
        self,
        *inputs: Any,
        version: str | int | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        key: str = "",
        priority: int | None = None,
        attempts: int | None = None,
        expires: float | None = None,
        kept: float | None = None,
        attempt_limit: float | None = None,
        **named: Any,
    ) -> Job:
        """Submits a request as a job, which the server has on disk when this returns, and runs later; see
        AsyncModel.submit.

        >>> job = client["basic_pitch"].submit(audio)
        >>> notes = job.result()
        """
        from backline_client.client.jobs import Job

        submitted = self._model.submit(
            *inputs,
            version=version,
            timeout=timeout,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            key=key,
            priority=priority,
            attempts=attempts,
            expires=expires,
            kept=kept,
            attempt_limit=attempt_limit,
            **named,
        )
        return Job(self._loop, self._loop.run(submitted))

    def sequence(self, id: int | str | None = None) -> RequestSequence:
        """Begins a sequence of requests to a model that keeps state. The default `id` is random."""
        return RequestSequence(self, id)

    def metadata(self, timeout: float | None = None) -> ModelMetadata:
        """Returns the model's inputs, outputs, versions and platform."""
        return self._loop.run(self._model.metadata(timeout))

    def config(self, timeout: float | None = None, *, explained: bool = False) -> dict[str, Any]:
        """Returns the configuration, with the field names of config.pbtxt.

        With `explained`, parameters named `backline.*` also say where and how the server runs the model, and
        why. These parameters are missing over gRPC, and from servers other than Backline.
        """
        return self._loop.run(self._model.config(timeout, explained=explained))

    def ready(self, timeout: float | None = None) -> bool:
        """Returns whether the model can serve requests."""
        return self._loop.run(self._model.ready(timeout))

    def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Returns the counters of each version; durations are in nanoseconds."""
        return self._loop.run(self._model.statistics(timeout))


async def _next(responses: AsyncGenerator[InferResult, None]) -> InferResult | None:
    return await anext(responses, None)
