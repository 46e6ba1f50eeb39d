"""The asyncio client: models as awaitable functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import structs

from backline_client.client.address import Address
from backline_client.client.arrays import to_tensor
from backline_client.client.control import ModelControl, to_overrides
from backline_client.client.errors import ConnectionFailed, DeadlineExceeded
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline_client.client.result import InferResult
from backline_client.client.sequences import AsyncSequence
from backline_client.client.transport import InferCall, Transport
from backline_client.values.control import ANY_VERSION, STABLE, Attempt, Change, Entry, LabelMove, Page
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable, Unsupported
from backline_client.values.messages import InferResponse, Parameter
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline_client.client.jobs import AsyncJob

#: Seconds between checks of a server that is not ready yet.
READY_POLL = 0.1


def open_transport(address: Address, options: ClientOptions) -> Transport:
    """Returns the transport for an address.

    Raises InvalidArgument if a package is not installed or the options cannot be used, and Unavailable if
    grpcio was used before a fork.
    """
    if address.protocol == "http":
        from backline_client.client.http_transport import HttpTransport

        return HttpTransport(address, options)
    if address.protocol == "grpc":
        from backline_client.client.grpc_transport import GrpcTransport

        return GrpcTransport(address, options)
    return _inproc_transport(address)


def _inproc_transport(address: Address) -> Transport:
    # Imported by name: applications that use a remote server install only the client.
    try:
        module = import_module("backline.embedded.transport")
    except ModuleNotFoundError as error:
        if error.name != "backline":
            raise
        raise InvalidArgument(
            f"{address.url}: models in this process need the server's package: pip install backline"
        ) from None
    transport: Transport = module.InprocTransport(address)
    return transport


def open_transports(url: str, addresses: Sequence[Address], options: ClientOptions) -> Transport:
    """Returns the transport for the addresses that a URL names; see `open_transport`."""
    if len(addresses) == 1 and not addresses[0].changes:
        return open_transport(addresses[0], options)
    from backline_client.client.balanced_transport import BalancedTransport

    return BalancedTransport(url, addresses, options, open_transport)


class AsyncClient:
    """A client of a server, of several servers with the same models, or of a repository in this process.

    The first request, or `async with`, opens the client and binds it to the running event loop.

    Every method may raise a BacklineError: NotFound, InvalidArgument, Unavailable, DeadlineExceeded,
    ConnectionFailed and others.
    """

    def __init__(self, url: str, options: ClientOptions) -> None:
        self._addresses = Address.parse_all(url)
        #: The server's address. If there are several servers, the address of the first one, but with all URLs
        #: in its field `url`, as they were given.
        self.address = self._addresses[0]
        if len(self._addresses) > 1:
            self.address = replace(self.address, url=url)
        self.options = options
        self._transport: Transport | None = None
        self._opening: asyncio.Lock | None = None
        self._closed = False
        self._models: dict[tuple[str, str], AsyncModel] = {}
        #: Model metadata fetched so far, by name and version.
        self._known: dict[tuple[str, str], ModelMetadata] = {}

    def through(self, transport: Transport) -> Self:
        """Returns a copy of this client that uses `transport`, which must be open. Both clients share the
        model metadata fetched so far.
        """
        other = copy(self)
        other._transport = transport
        other._models = {}
        return other

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address.url}>"

    async def transport(self) -> Transport:
        """Returns the transport, opened on first use."""
        if self._transport is not None:
            return self._transport
        if self._closed:
            raise ConnectionFailed(f"the client of {self.address.url} is closed: connect again")
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._transport is None:
                transport = open_transports(self.address.url, self._addresses, self.options)
                await transport.open()
                self._transport = transport
        return self._transport

    def __getitem__(self, model: str) -> AsyncModel:
        return self.model(model)

    def model(self, name: str, version: str | int = "") -> AsyncModel:
        """Returns the model with this name. Unless `version` is given, the server picks the version.

        Raises InvalidArgument for an empty name.
        """
        if not name:
            raise InvalidArgument("the name of a model is empty: pass a name, such as client.model('add1')")
        key = name, str(version)
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = AsyncModel(self, *key)
        return found

    async def live(self, timeout: float | None = None) -> bool:
        """Returns whether the server reports that it is live.

        Raises BacklineError if the server cannot be reached.
        """
        return await (await self.transport()).server_live(self._limit(timeout))

    async def ready(self, timeout: float | None = None) -> bool:
        """Returns whether the server reports that it is ready."""
        return await (await self.transport()).server_ready(self._limit(timeout))

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until the server has started and is ready. Raises DeadlineExceeded, with the last known
        reason, if the server is not ready in time.
        """
        limit = self._limit(timeout)
        end = monotonic() + limit
        reason = ""
        while (left := end - monotonic()) > 0:
            try:
                if await self.ready(left):
                    return
                reason = await self._unready(max(end - monotonic(), 0.001)) or reason
            except Unavailable as error:
                reason = error.message
            except DeadlineExceeded as error:
                # This client's own timeout cut the check short, so the reason from an earlier check says
                # more.
                reason = reason or error.message
            await asyncio.sleep(min(READY_POLL, max(end - monotonic(), 0)))
        raise DeadlineExceeded(
            f"{self.address.url} was not ready within {limit:g} s: {reason or 'it gave no reason'}"
        )

    async def _unready(self, timeout: float) -> str:
        """Returns a text that says which models are not ready, and why. It is empty if the server does not
        report this.
        """
        try:
            index = await (await self.transport()).repository_index(timeout)
        except BacklineError:
            return ""
        lines = [
            f"{entry.name} {entry.version} is {entry.state}{f' ({entry.reason})' if entry.reason else ''}"
            for entry in index
            if entry.state not in ("READY", "ON_DEMAND", "")
        ]
        return "; ".join(lines)

    async def metadata(self, timeout: float | None = None) -> ServerMetadata:
        """Returns the server's name, version and protocol extensions."""
        return await (await self.transport()).server_metadata(self._limit(timeout))

    async def models(self, timeout: float | None = None) -> list[ModelIndex]:
        """Lists the models and versions on the server: state, reason, labels, memory and load progress."""
        return await (await self._control()).models(self._limit(timeout))

    async def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Returns the counters of all models, as in Triton's statistics extension. Durations are in ns."""
        return await (await self.transport()).statistics("", "", self._limit(timeout))

    async def load(
        self,
        name: str,
        version: str | int | None = None,
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Loads a model, or one version of it, and returns when the model is ready.

        A version whose files have changed is reloaded; the loaded copy serves requests until the new copy is
        ready.

        `config` (a mapping or its JSON, with the names of config.pbtxt) replaces the configuration in the
        repository, and `files` ({"1/model.onnx": bytes or a pathlib.Path}) replaces the files there. If the
        load fails, an error is raised with the reason, and the versions in service stay in service. If the
        timeout expires, DeadlineExceeded is raised, but the load continues.
        """
        overrides = to_overrides(config, files)
        limit = self._limit(timeout)
        try:
            await (await self._control()).load(name, _version(version), overrides, limit)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{error.message}. The load of '{name}' continues; models() shows its progress"
            ) from None

    async def unload(
        self,
        name: str,
        version: str | int | None = None,
        *,
        dependents: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Takes a model, or one version of it, out of service.

        With `dependents`, the models in an ensemble's steps are unloaded too, except those that another
        ensemble needs. `dependents` has no effect if a version is given.
        """
        await (await self._control()).unload(name, _version(version), dependents, self._limit(timeout))

    async def labels(self, name: str, timeout: float | None = None) -> dict[str, str]:
        """Returns the labels of a model, each with the version that it points to."""
        return await (await self._control()).labels(name, self._limit(timeout))

    async def set_label(
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
        move = LabelMove("label", name, label, str(version), _expected(expected))
        return await (await self._control()).move_label(move, self._limit(timeout))

    async def remove_label(
        self, name: str, label: str, *, expected: str | int | None = None, timeout: float | None = None
    ) -> Change:
        """Removes a label. If `expected` is given, raises InvalidArgument unless the label points to that
        version now.
        """
        move = LabelMove("unlabel", name, label, expected=_expected(expected))
        return await (await self._control()).move_label(move, self._limit(timeout))

    async def promote(
        self,
        name: str,
        version: str | int,
        *,
        expected: str | int | None = None,
        timeout: float | None = None,
    ) -> Change:
        """Makes a version the default for requests that name none, by moving the label "stable"."""
        move = LabelMove("promote", name, STABLE, str(version), _expected(expected))
        return await (await self._control()).move_label(move, self._limit(timeout))

    async def rollback(self, name: str, label: str = STABLE, timeout: float | None = None) -> Change:
        """Points a label back to the version to which it pointed before its last move.

        A second rollback undoes the move before that.
        """
        move = LabelMove("rollback", name, label)
        return await (await self._control()).move_label(move, self._limit(timeout))

    async def history(self, name: str = "", limit: int = 100, timeout: float | None = None) -> list[Change]:
        """Returns the latest changes of a model, or of all models, newest first: who did what, and when."""
        control, left = await self._control(), self._limit(timeout)
        return await _collect(
            limit, left, lambda more, cursor, left: control.history(name, more, cursor, left)
        )

    async def audit(
        self, limit: int = 100, after: float = 0.0, timeout: float | None = None
    ) -> list[Change | Attempt]:
        """Returns the latest entries of the audit log, at most `limit`, newest first. Entries made before
        `after` (seconds since 1970) are left out.
        """
        control, left = await self._control(), self._limit(timeout)
        return await _collect(
            limit, left, lambda more, cursor, left: control.audit(more, after, cursor, left)
        )

    def job(self, id: str) -> AsyncJob:
        """Returns the job with this id. Its state is unknown until the server is asked."""
        from backline_client.client.jobs import AsyncJob

        return AsyncJob(self, {"id": id})

    async def jobs(
        self, state: str = "", model: str = "", limit: int = 100, timeout: float | None = None
    ) -> list[AsyncJob]:
        """Returns the caller's jobs, newest first. `state` may name several states, separated by commas."""
        from backline_client.client import jobs

        return await jobs.listed(self, state, model, limit, self._limit(timeout))

    async def refresh(self, timeout: float | None = None) -> None:
        """Makes the server scan its repositories. Returns once all models found are ready or have failed."""
        await (await self._control()).refresh(self._limit(timeout))

    async def _control(self) -> ModelControl:
        return (await self.transport()).control

    async def close(self) -> None:
        """Closes the connections, or unloads the embedded repository."""
        self._closed = True
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> Self:
        await self.transport()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _limit(self, timeout: float | None) -> float:
        if timeout is None:
            return self.options.timeout
        if not timeout > 0:
            raise InvalidArgument(f"timeout is {timeout}, expected a number of seconds above 0")
        return float(timeout)


class AsyncModel:
    """One model of a server. Call the object with the model's inputs to run the model."""

    def __init__(self, client: AsyncClient, name: str, version: str) -> None:
        self._client = client
        self.name = name
        self.version = version
        self._key = name, version

    def __repr__(self) -> str:
        version = f" version {self.version}" if self.version else ""
        return f"<{type(self).__name__} {self.name}{version} at {self._client.address.url}>"

    async def __call__(
        self,
        *inputs: Any,
        version: str | int | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        **named: Any,
    ) -> InferResult:
        """Runs the model; the arguments and errors are those of the synchronous Model.__call__."""
        model = self if version is None else self._client.model(self.name, version)
        started = monotonic()
        limit = self._client._limit(timeout)
        transport = await self._client.transport()
        call = await model._call(inputs, named, outputs, parameters, request_id, limit)
        call = structs.replace(call, timeout=max(limit - (monotonic() - started), 0.001))
        try:
            response: InferResponse = await transport.infer(call)
        except (InvalidArgument, NotFound):
            self._client._known.pop(model._key, None)  # another version may be served by now
            raise
        except Unsupported as error:
            if "decoupled transaction policy" not in error.message:
                raise
            hint = "call stream(...) instead, and iterate over the responses"
            raise Unsupported(f"{error.message}: {hint}") from error
        return InferResult(response, self._client._known.get(model._key))

    async def stream(
        self,
        *inputs: Any,
        version: str | int | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        **named: Any,
    ) -> AsyncGenerator[InferResult, None]:
        """Runs the model and yields its responses as they arrive: one, or any number if the model is
        decoupled.

        The arguments are those of a call, but the timeout in seconds limits the wait for each response. If
        the caller takes responses slowly, the model pauses once the buffers of the connection are full. To
        leave the loop early, close the generator (contextlib.aclosing), which cancels the request.

        >>> async for part in client["repeat"].stream(IN=values, DELAY=delays, WAIT=wait): ...
        """
        model = self if version is None else self._client.model(self.name, version)
        limit = self._client._limit(timeout)
        transport = await self._client.transport()
        call = await model._call(inputs, named, outputs, parameters, request_id, limit)
        async with aclosing(transport.stream(call)) as responses:
            async for response in responses:
                yield InferResult(response, self._client._known.get(model._key))

    async def _call(
        self,
        inputs: tuple[Any, ...],
        named: Mapping[str, Any],
        outputs: Sequence[str] | None,
        parameters: Mapping[str, Parameter] | None,
        request_id: str,
        limit: float,
    ) -> InferCall:
        """Returns the call to send, with its inputs converted to the types in the model's metadata."""
        fresh = self._key not in self._client._known
        metadata = await self._known(limit)
        try:
            tensors = _tensors(metadata, inputs, named)
        except InvalidArgument:
            if fresh:
                raise
            # The model may have changed since its metadata was fetched.
            metadata = await self._known(limit, again=True)
            tensors = _tensors(metadata, inputs, named)
        if isinstance(outputs, str):
            raise InvalidArgument(f"outputs is the string {outputs!r}, expected a list: [{outputs!r}]")
        if parameters:
            _check_parameters(parameters)
        return InferCall(
            self.name,
            tensors,
            self.version,
            request_id,
            None if outputs is None else tuple(outputs),
            parameters,
            limit,
        )

    async def submit(
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
    ) -> AsyncJob:
        """Submits a request as a job, which the server has on disk when this returns, and runs later.

        The arguments up to `request_id`, and the inputs, are those of a call. Submissions with the same `key`
        are one job; without a key, each call of this method is. The other arguments are the settings of the
        job, in seconds where they are times; the server has defaults.

        >>> job = await client["basic_pitch"].submit(audio)
        >>> notes = await job.result()
        """
        from backline_client.client import jobs

        model = self if version is None else self._client.model(self.name, version)
        limit = self._client._limit(timeout)
        call = await model._call(inputs, named, outputs, parameters, request_id, limit)
        settings = {
            "priority": priority,
            "attempts": attempts,
            "expires": expires,
            "kept": kept,
            "attempt_limit": attempt_limit,
        }
        return await jobs.submit(self._client, call, key, settings)

    def sequence(self, id: int | str | None = None) -> AsyncSequence:
        """Begins a sequence of requests to a model that keeps state. The default `id` is random."""
        return AsyncSequence(self, id)

    async def metadata(self, timeout: float | None = None) -> ModelMetadata:
        """Returns the model's inputs, outputs, versions and platform."""
        return await self._known(self._client._limit(timeout), again=True)

    async def config(self, timeout: float | None = None, *, explained: bool = False) -> dict[str, Any]:
        """Returns the configuration, with the field names of config.pbtxt.

        With `explained`, parameters named `backline.*` also say where and how the server runs the model, and
        why. These parameters are missing over gRPC, and from servers other than Backline.
        """
        transport = await self._client.transport()
        limit = self._client._limit(timeout)
        return await transport.model_config(self.name, self.version, limit, explained=explained)

    async def ready(self, timeout: float | None = None) -> bool:
        """Returns whether the model can serve requests."""
        transport = await self._client.transport()
        return await transport.model_ready(self.name, self.version, self._client._limit(timeout))

    async def statistics(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Returns the counters of each version; durations are in nanoseconds."""
        transport = await self._client.transport()
        return await transport.statistics(self.name, self.version, self._client._limit(timeout))

    async def _known(self, limit: float, *, again: bool = False) -> ModelMetadata:
        known = self._client._known
        found = known.get(self._key)
        if found is None or again:
            transport = await self._client.transport()
            found = known[self._key] = await transport.model_metadata(self.name, self.version, limit)
        return found


async def _collect(
    limit: int, timeout: float, read: Callable[[int, str, float], Awaitable[Page[Entry]]]
) -> list[Entry]:
    """Reads pages until there are `limit` entries. `read` gets the number of entries that are missing, the
    cursor and the time that is left.
    """
    end = monotonic() + timeout
    page = await read(limit, "", timeout)
    entries = list(page.entries)
    while page.cursor and len(entries) < limit:
        page = await read(limit - len(entries), page.cursor, max(0.001, end - monotonic()))
        entries += page.entries
    return entries


def _version(version: str | int | None) -> str:
    return "" if version is None else str(version)


def _expected(expected: str | int | None) -> str:
    return ANY_VERSION if expected is None else str(expected)


def _check_parameters(parameters: Mapping[str, Parameter]) -> None:
    for key, value in parameters.items():
        if not isinstance(key, str) or not isinstance(value, (str, int, float)):
            raise InvalidArgument(
                f"parameter {key!r} is {value!r}, expected a string, an integer, a float, or true or false"
            )


def _tensors(
    metadata: ModelMetadata, inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    specs = {spec.name: spec for spec in metadata.inputs}
    values: dict[str, Any] = {}
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        values.update(inputs[0])
    else:
        if len(inputs) > len(specs):
            raise InvalidArgument(
                f"model '{metadata.name}' has {len(specs)} inputs, got {len(inputs)}."
                f" {_expected_inputs(metadata)}"
            )
        values.update(zip(specs, inputs, strict=False))
    for name, value in named.items():
        if name in values:
            raise InvalidArgument(
                f"input '{name}' of model '{metadata.name}' was given twice, by position and by name;"
                " pass it once"
            )
        values[name] = value
    for name in values:
        if name not in specs:
            raise InvalidArgument(
                f"model '{metadata.name}' has no input '{name}'. {_expected_inputs(metadata)}"
            )
    # Only the server checks for missing inputs: metadata does not always say which inputs are optional.
    return tuple(to_tensor(metadata.name, specs[name], value) for name, value in values.items())


def _expected_inputs(metadata: ModelMetadata) -> str:
    return "It expects " + ", ".join(map(str, metadata.inputs))
