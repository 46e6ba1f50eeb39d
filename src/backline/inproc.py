"""A repository inside this program, as a transport of the client: requests go straight to the engine, no byte of a tensor is copied.

It knows both sides, so it stands above the client and the server; the client looks it up by name when a URL says inproc.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from time import monotonic
from typing import Any

from backline.client.address import Address
from backline.client.errors import ConnectionFailed, DeadlineExceeded
from backline.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline.client.transport import InferCall, Transport
from backline.dialects.open_inference.configuration import model_configuration
from backline.dialects.open_inference.metadata import server_metadata
from backline.dialects.open_inference.parameters import apply_parameters
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.statistics import model_statistics
from backline.engine.messages import InferRequest, InferResponse
from backline.inproc_control import InprocControl
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.protos import to_plain
from backline.server import Embedded


class InprocTransport(Transport):
    """An engine of its own, on the client's event loop. Loading is not under any timeout."""

    def __init__(self, address: Address, embedded: Embedded | None = None) -> None:
        """Of the repository at the address, or of an engine that is there."""
        self._url = address.url
        # All models are loaded, and the program may change them.
        self._embedded = embedded or Embedded(
            [address.path], LifecycleOptions(mode="explicit", load_models=(ALL_MODELS,))
        )
        self._engine = self._embedded.engine
        self._closed = False
        self._control = InprocControl(self._engine)

    @property
    def control(self) -> InprocControl:
        return self._control

    async def open(self) -> None:
        await self._embedded.start()

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
                f"model '{call.model}' gave no answer within {call.timeout:.3g} s"
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

    async def model_config(self, model: str, version: str, timeout: float) -> dict[str, Any]:
        await self._know(model, version)
        return to_plain(model_configuration(self._engine, model, version))

    async def _know(self, model: str, version: str) -> None:
        """Loads a version that is on demand, if its inputs are not known before."""
        if self._engine.is_unknown(model, version):
            await self._engine.wake(model, version)

    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        return list(model_statistics(self._engine, model, version, details=True))

    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        return await self._control.models(timeout)


def _request(call: InferCall, deadline: float | None = None) -> InferRequest:
    """A call as the server's engine takes it; its parameters mean what they mean to a server."""
    plan = InferPlan(())
    apply_parameters(plan, call.parameters or {})
    return InferRequest(
        call.model,
        {tensor.name: tensor for tensor in call.inputs},
        model_version=call.version,
        id=call.id,
        outputs=call.outputs,
        parameters=plan.parameters,
        priority=plan.priority,
        timeout=plan.timeout,
        sequence=plan.sequence,
        deadline=deadline,
    )
