"""Measures a model under load: what `backline bench` does, for programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from backline.cli.command import run
from backline.cli.connection import nearest_model
from backline.cli.inputs import Inputs, request_inputs
from backline.cli.load_generator import (
    Arrivals,
    BenchStep,
    LoadResult,
    ServerShare,
    closed_loop,
    open_loop,
)
from backline.plugins.tools.bench.report import BenchReport
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall, Transport
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound

Reported = TypeVar("Reported")
#: The numbers of requests in flight that are measured by default.
CONCURRENCIES = (1, 2, 4, 8, 16, 32)
#: The server that is measured by default.
URL = "http://localhost:8000"


def bench(
    model: str,
    url: str = URL,
    *,
    concurrency: Sequence[int] = CONCURRENCIES,
    rate: Sequence[float] = (),
    arrivals: Arrivals = "poisson",
    duration: float = 5.0,
    warm_up: float = 0.5,
    inputs: Inputs = (),
    input_shapes: Sequence[str] = (),
    version: str = "",
    options: ClientOptions | None = None,
    started: Callable[[str], None] = lambda about: None,
) -> BenchReport:
    """Measures the throughput and latency of a model on a server, one step for each number of `concurrency`
    (requests in flight) or, if given, of `rate` (requests per second, spaced as `arrivals` says).

    Each step takes `warm_up` and then `duration` seconds. `inputs` are arrays by input name, or items as for
    `--input`; other required inputs get random values, in the shapes of `input_shapes` ("NAME:DIMS").
    `url` may be inproc:///path/to/repository, to load the model in this process. `started` is called with a
    description of what is measured.

    Raises InvalidArgument if the inputs do not fit the model, NotFound if the server does not have it, and
    the server's error if no request of a step succeeds.

    >>> report = backline.bench("add1", concurrency=[1, 8], duration=1)
    >>> [(step.concurrency, step.throughput, step.percentiles_us["p99"]) for step in report.steps]
    """
    steps: list[tuple[int | None, float | None]] = (
        [(None, each) for each in rate] if rate else [(int(each), None) for each in concurrency]
    )
    if not steps or any((count or each or 0) <= 0 for count, each in steps):
        raise InvalidArgument("concurrency and rate need numbers above 0, one for each step")
    plan = _Plan(model, version, steps, arrivals, duration, warm_up)
    return run(
        _measure(url, options or ClientOptions(max_connections=4096), plan, input_shapes, inputs, started)
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The plan of a benchmark. Each step is a pair: the number of requests in flight, or None, and the number
    of requests per second, or None. `duration` and `warm_up` are in seconds per step.
    """

    model: str
    version: str
    steps: list[tuple[int | None, float | None]]
    arrivals: Arrivals
    duration: float
    warm_up: float


async def _measure(
    url: str,
    options: ClientOptions,
    plan: _Plan,
    shapes: Sequence[str],
    inputs: Inputs,
    started: Callable[[str], None],
) -> BenchReport:
    async with AsyncClient(url, options) as client:
        transport = await client.transport()
        try:
            metadata = await transport.model_metadata(plan.model, plan.version, options.timeout)
        except NotFound as error:
            raise nearest_model(plan.model, await client.models(), error) from None
        config = await _reported(transport.model_config(plan.model, plan.version, options.timeout), {})
        tensors = request_inputs(metadata.completed(config), shapes, inputs)
        call = InferCall(plan.model, tensors, plan.version, timeout=options.timeout)
        await transport.infer(call)  # so that an error occurs once here, and not in every request of the load
        described = ", ".join(
            f"{tensor.name} {tensor.datatype.name}{list(tensor.shape)}" for tensor in tensors
        )
        server = await transport.server_metadata(options.timeout)
        started(f"{plan.model} at {client.address.url} ({server.name} {server.version}): {described}")
        steps = [await _step(transport, call, plan, *step) for step in plan.steps]
        return BenchReport(
            plan.model, client.address.url, f"{server.name} {server.version}", described, steps
        )


async def _step(
    transport: Transport, call: InferCall, plan: _Plan, concurrency: int | None, rate: float | None
) -> BenchStep:
    send = transport.prepare(call)

    async def load(seconds: float) -> LoadResult:
        if concurrency is not None:
            return await closed_loop(send, concurrency, seconds)
        return await open_loop(send, rate or 1.0, seconds, plan.arrivals)

    if plan.warm_up:
        await load(plan.warm_up)
    before = await _reported(transport.statistics(plan.model, plan.version, call.timeout), [])
    measured = await load(plan.duration)
    after = await _reported(transport.statistics(plan.model, plan.version, call.timeout), [])
    if not measured.latencies and measured.last_error is not None:
        raise measured.last_error
    return BenchStep.of(measured, ServerShare.between(before, after), concurrency=concurrency, rate=rate)


async def _reported(asked: Awaitable[Reported], otherwise: Reported) -> Reported:
    """Returns the result of `asked`, a request to the server, or `otherwise` if the request fails."""
    try:
        return await asked
    except BacklineError:
        return otherwise
