"""The client's transport for inproc URLs: the engine runs in the client's program and shares its tensors.

Such a URL may have options, as in inproc:///path/to/models?model=add1&memory_budget=2GiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from backline.dialects.open_inference.configuration import explained_configuration, model_configuration
from backline.dialects.open_inference.metadata import model_listing, server_metadata, visible_to
from backline.dialects.open_inference.statistics import model_statistics
from backline.embedded.embedded import Embedded
from backline.engine.engine import Engine
from backline.engine.numbers import parse_bytes, parse_whole
from backline.engine.parameters import read_parameters
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.schedule.cache.config import parse_cache_config
from backline_client.client.address import Address
from backline_client.client.control import ModelControl, user_name
from backline_client.client.errors import ConnectionFailed, DeadlineExceeded
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata, complete_listing
from backline_client.client.transport import InferCall, Transport
from backline_client.protos import to_plain
from backline_client.values.control import Attempt, Change, Control, LabelMove, Overrides, Page
from backline_client.values.errors import InvalidArgument, Unsupported
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.spelling import nearest

#: The key that names a model to load. The key can be repeated.
_MODEL = "model"
_MOST = 2**63 - 1


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _whole(text: str) -> int:
    number = parse_whole(text, 0, _MOST)
    if number is None:
        raise ValueError("expected a whole number")
    return number


#: The fields of LifecycleOptions that a URL can set, each with the function that parses its value.
_READ: Mapping[str, Callable[[str], Any]] = {
    "namespacing": _boolean,
    "complete_configs": _boolean,
    "load_threads": _whole,
    "load_retries": _whole,
    "drain_seconds": float,
    "trust_pickle": _boolean,
    "trust_remote_code": _boolean,
    "strict_devices": _boolean,
    "memory_budget": parse_bytes,
    "max_queued_requests": _whole,
    "compute_threads": _whole,
    "response_cache": lambda text: parse_cache_config([text]),
    "cache_folder": Path,
    "state_folder": Path,
}


def read_options(query: str) -> LifecycleOptions:
    """Returns the options in the query of an inproc URL. By default, all models are loaded.

    With these options, the program may also load and unload models. Raises InvalidArgument for an unknown
    option or an invalid value.
    """
    models: list[str] = []
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name == _MODEL:
            models.append(text)
            continue
        if name not in _READ:
            near = nearest(name, (_MODEL, *_READ), 1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join((_MODEL, *_READ))}"
            raise InvalidArgument(f"an inproc URL has no option '{name}'; {hint}")
        try:
            given[name] = _READ[name](text)
        except ValueError as error:
            raise InvalidArgument(f"{name}={text} in an inproc URL: {error}") from None
    return LifecycleOptions(mode="explicit", load_models=tuple(models) or (ALL_MODELS,), **given)


Result = TypeVar("Result")


class InprocTransport(Transport):
    """Runs requests on an engine that uses the client's event loop. Loading the repository has no timeout."""

    def __init__(self, address: Address, embedded: Embedded | None = None) -> None:
        """Uses `embedded`; if it is None, creates an engine for the repository at the address."""
        self._url = address.url
        self._embedded = embedded or Embedded(address.path, read_options(address.query))
        self._engine = self._embedded.engine
        self._closed = False
        self._control = InprocControl(self._engine)

    @property
    def control(self) -> InprocControl:
        return self._control

    async def open(self) -> None:
        try:
            await self._embedded.start()
        except BaseException:
            await self._embedded.stop()
            raise

    async def close(self) -> None:
        self._closed = True
        await self._embedded.stop()

    async def infer(self, call: InferCall) -> InferResponse:
        if self._closed:
            raise ConnectionFailed(f"the client of {self._url} is closed")
        request = _request(call, monotonic() + call.timeout)
        try:
            async with asyncio.timeout(call.timeout):
                return await self._engine.infer(request)
        except TimeoutError:
            raise DeadlineExceeded(
                f"model '{call.model}' gave no response within {call.timeout:.3g} s"
            ) from None

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        if self._closed:
            raise ConnectionFailed(f"the client of {self._url} is closed")
        async with self._engine.stream(_request(call)) as responses:
            while True:
                try:
                    async with asyncio.timeout(call.timeout):
                        response = await anext(responses, None)
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"model '{call.model}' gave no response within {call.timeout:.3g} s"
                    ) from None
                if response is None:
                    return
                yield response

    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        async def send() -> None:
            await self.infer(call)

        return send

    async def server_live(self, timeout: float) -> bool:
        return self._engine.live

    async def server_ready(self, timeout: float) -> bool:
        return self._engine.ready

    async def server_metadata(self, timeout: float) -> ServerMetadata:
        found = server_metadata(self._engine)
        return ServerMetadata(found["name"], found["version"], tuple(found["extensions"]))

    async def model_ready(self, model: str, version: str, timeout: float) -> bool:
        return self._engine.is_ready(model, version)

    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata:
        await self._know(model, version)
        found = self._engine.find_ready(model, version)
        signature = found.signature
        versions = tuple(self._engine.served_versions(model))
        return ModelMetadata(
            model, versions, found.platform or found.backend, signature.inputs, signature.outputs
        )

    async def model_config(
        self, model: str, version: str, timeout: float, *, explained: bool = False
    ) -> dict[str, Any]:
        await self._know(model, version)
        read = explained_configuration if explained else model_configuration
        return to_plain(read(self._engine, model, version))

    async def _know(self, model: str, version: str) -> None:
        """Loads an on-demand version if the signature of the version is not known yet."""
        if self._engine.is_unknown(model, version):
            await self._engine.wake(model, version)

    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        return list(model_statistics(self._engine, model, version, visible_to(None), details=True))

    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        return await self._control.models(timeout)


class InprocControl(ModelControl):
    """Loads, unloads and labels an engine's models. A change continues after the caller's timeout."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._who = f"{user_name()} (inproc)"

    @property
    def _control(self) -> Control:
        control = self._engine.control
        if control is None:
            raise Unsupported(
                "the models of this engine cannot be loaded, unloaded or labelled: they do not come from a"
                " repository"
            )
        return control

    async def models(self, timeout: float) -> list[ModelIndex]:
        return complete_listing(
            self._engine.names(),
            msgspec.convert(model_listing(self._engine, visible_to(None)), list[ModelIndex]),
        )

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        await _within(timeout, self._control.load(model, version, overrides=overrides, who=self._who))

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        await _within(timeout, self._control.unload(model, version, dependents=dependents, who=self._who))

    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        self._engine.check_known(model)
        return dict(self._engine.labels(model))

    async def move_label(self, move: LabelMove, timeout: float) -> Change:
        return await _within(timeout, self._control.move_label(move, who=self._who))

    async def history(self, model: str, limit: int, cursor: str, timeout: float) -> Page[Change]:
        return await self._control.history(model, limit, cursor, form=lambda page: page)

    async def audit(self, limit: int, after: float, cursor: str, timeout: float) -> Page[Change | Attempt]:
        return await self._control.audit(limit, after, cursor, form=lambda page: page)

    async def refresh(self, timeout: float) -> None:
        await _within(timeout, self._control.refresh())


def _request(call: InferCall, deadline: float | None = None) -> InferRequest:
    """Converts a call to a request for the engine; parameters mean the same as in a request to a server."""
    parameters = read_parameters(call.parameters or {})
    return InferRequest(
        call.model,
        {tensor.name: tensor for tensor in call.inputs},
        model_version=call.version,
        id=call.id,
        outputs=call.outputs,
        parameters=parameters.others,
        priority=parameters.priority,
        timeout=parameters.timeout,
        sequence=parameters.sequence,
        deadline=deadline,
    )


async def _within(timeout: float, change: Coroutine[Any, Any, Result]) -> Result:
    """Waits for a change. Raises DeadlineExceeded after `timeout` seconds, without cancelling the change."""
    task = asyncio.ensure_future(change)
    # If the change fails after the timeout, nobody retrieves the error from the task, and asyncio would print
    # a traceback. This callback retrieves it; the lifecycle has already logged the error.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    done, _ = await asyncio.wait((task,), timeout=timeout)
    if not done:
        raise DeadlineExceeded(
            f"the change was not complete within {timeout:.3g} s; it continues, and models() shows its"
            " progress"
        )
    return task.result()
