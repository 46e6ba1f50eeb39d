"""Loads a model with different settings in this process, and measures it under load."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Self

import numpy as np
from msgspec import structs

from backline.cli.inputs import Inputs, request_inputs
from backline.cli.load_generator import closed_loop
from backline.embedded.embedded import Embedded
from backline.embedded.transport import InprocTransport
from backline.engine.model import Model
from backline.lifecycle.options import LifecycleOptions
from backline.observe.prediction_log import read_log
from backline.plugins.tools.tune.search import LoadMeasurement
from backline.plugins.tools.tune.settings import (
    RUNTIME_OPTIONS,
    RuntimeOptions,
    Tunable,
    TunedSettings,
    bucket_choices,
    configured,
)
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall, Transport
from backline_client.protos import message, to_plain
from backline_client.values.errors import BacklineError, InvalidArgument

_URL = "inproc:tune"
#: After a change of settings, load is generated for this many seconds before the measurement begins.
_WARM_UP = 0.03
#: The maximum duration of a measurement in which no request completes, in seconds.
_LONGEST = 60.0
#: The maximum number of recorded requests to use. They are sent in rotation.
_MOST_REQUESTS = 200


class Trials:
    """An asynchronous context manager that loads a model with one combination of settings at a time."""

    def __init__(self, repository: str, name: str, options: LifecycleOptions) -> None:
        self._name = name
        self._embedded = Embedded([repository], structs.replace(options, mode="explicit"))
        self._client = AsyncClient(_URL, ClientOptions(timeout=600))
        self._transport: Transport | None = None
        self._sends: Iterator[Callable[[], Awaitable[None]]] = cycle(())
        self._loaded: TunedSettings | None = None
        self._tunable: Tunable | None = None
        #: The configuration in the model's files, an inference.ModelConfig.
        self.declared: Any = None

    async def __aenter__(self) -> Self:
        transport = InprocTransport(self._client.address, self._embedded)
        await transport.open()
        self._transport = transport
        self._client = self._client.through(transport)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def inspect(self) -> Tunable:
        """Loads the model as a server would, and returns what can be varied.

        Raises InvalidArgument for models that cannot be tuned, such as ensembles, decoupled and sequence
        models, and models with an objective.
        """
        await self._client.load(self._name)
        model = self._embedded.engine.find_ready(self._name)
        self.declared = message("inference.ModelConfig").FromString(model.config.declared)
        self._tunable = tunable_of(model)
        self._loaded = None
        return self._tunable

    async def prepare(
        self, shapes: Sequence[str], given: Inputs, recorded: Path | None
    ) -> tuple[str, Tunable]:
        """Prepares the requests, from a recording or from the same inputs as for `backline bench`.

        Returns a description of the requests, and what can be varied. If recorded requests have different
        lengths, this includes choices of padding buckets. Sends one request, so that errors occur before the
        measurements.
        """
        assert self._transport is not None, "within the context"
        assert self._tunable is not None, "inspected before"
        calls = (
            [InferCall(self._name, inputs) for inputs in recorded_inputs(recorded)]
            if recorded is not None
            else [InferCall(self._name, await self._inputs(shapes, given))]
        )
        await self._transport.infer(calls[0])
        self._sends = cycle([self._transport.prepare(call) for call in calls])
        padding = self._padding()
        choices = bucket_choices(padded_lengths(calls, padding), padding)
        self._tunable = replace(self._tunable, buckets=choices)
        described = ", ".join(
            f"{tensor.name} {tensor.datatype.name}{list(tensor.shape)}" for tensor in calls[0].inputs
        )
        return described if recorded is None else f"{len(calls)} recorded requests", self._tunable

    def _padding(self) -> dict[str, tuple[int, ...]]:
        """Returns the buckets of each input that is padded along the first dimension after the batch
        dimension.
        """
        joining = self._embedded.engine.find_ready(self._name).config.joining
        if joining is None:
            return {}
        return {name: rule.buckets for name, rule in joining.padding.items() if rule.axes in ((), (1,))}

    async def _inputs(self, shapes: Sequence[str], given: Inputs) -> tuple[Any, ...]:
        handle = self._client.model(self._name)
        metadata = (await handle.metadata()).completed(await handle.config())
        return request_inputs(metadata, shapes, given)

    async def measure(self, settings: TunedSettings, concurrency: int, seconds: float) -> LoadMeasurement:
        """Measures settings for `seconds` under the load of `concurrency` callers. Raises BacklineError if
        the model cannot be loaded with them, or if no request succeeds.

        If no request completes in that time, measures again for longer, up to `_LONGEST` seconds.
        """
        await self._load(settings)
        while True:
            before = await self._batches()
            load = await closed_loop(self._send, concurrency, seconds)
            after = await self._batches()
            if load.latencies:
                break
            if load.last_error is not None:
                raise load.last_error
            if seconds >= _LONGEST:
                raise InvalidArgument(
                    f"no request completed within {seconds:.3g} s: the model hangs, or is too slow to tune"
                )
            seconds = min(4 * seconds, _LONGEST)
        latencies = np.frombuffer(load.latencies, np.int64) / 1e9
        return LoadMeasurement(
            settings,
            concurrency,
            len(latencies) / load.seconds,
            float(latencies.mean()),
            float(np.percentile(latencies, 99)),
            sum(load.errors.values()),
            _mean_runs(before, after),
        )

    async def _send(self) -> None:
        await next(self._sends)()

    async def _load(self, settings: TunedSettings) -> None:
        if settings == self._loaded:
            return
        assert self._tunable is not None, "inspected before"
        self._loaded = None
        text = override(configured(self.declared, settings, self._tunable))
        # Reloading would not apply a change of instance_group alone, so the model is unloaded first.
        await self._client.unload(self._name)
        await self._client.load(self._name, config=text)
        self._loaded = settings
        with suppress(BacklineError):
            await closed_loop(self._send, max(settings.batch, settings.instances), _WARM_UP)

    async def _batches(self) -> Mapping[int, tuple[int, int]]:
        """Returns the number of runs so far and their total time in nanoseconds, by batch size."""
        assert self._transport is not None, "within the context"
        entries = await self._transport.statistics(self._name, "", 60.0)
        return {
            int(batch["batch_size"]): (
                int(batch["compute_infer"]["count"]),
                sum(int(batch[part]["ns"]) for part in ("compute_input", "compute_infer", "compute_output")),
            )
            for entry in entries
            for batch in entry.get("batch_stats", ())
        }


def padded_lengths(calls: Sequence[InferCall], padded: Iterable[str]) -> dict[str, list[int]]:
    """Returns the lengths of each padded input, one for each request that contains the input."""
    found: dict[str, list[int]] = {name: [] for name in padded}
    for call in calls:
        for tensor in call.inputs:
            if tensor.name in found and len(tensor.shape) > 1:
                found[tensor.name].append(int(tensor.shape[1]))
    return {name: lengths for name, lengths in found.items() if lengths}


def _mean_runs(
    before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]
) -> dict[int, float]:
    means = {}
    for size, (count, ns) in after.items():
        earlier_count, earlier_ns = before.get(size, (0, 0))
        if count > earlier_count:
            means[size] = (ns - earlier_ns) / (count - earlier_count) / 1e9
    return means


def tunable_of(model: Model) -> Tunable:
    """Returns what can be varied in a loaded model. Raises InvalidArgument if the model cannot be tuned."""
    config = model.config
    kinds = (
        (config.ensemble is not None, "is an ensemble: tune the models that it calls"),
        (model.decoupled, "is decoupled, and the time of its responses depends on each request"),
        (config.sequence is not None, "has sequences, which are batched by their own rules"),
        (config.objective_seconds is not None, "has an objective, which sets its batches: remove it first"),
    )
    for holds, why in kinds:
        if holds:
            raise InvalidArgument(f"model '{model.name}' {why}")
    placement = model.placement
    if placement is None:
        raise InvalidArgument(f"model '{model.name}' has no instances that could be tuned")
    lane: Any = placement.lane
    batch = model.max_batch_size
    # The shapes in a configuration lack the batch dimension only if the configuration sets max_batch_size.
    batched = batch > 0 and (config.max_batch_size is not None or not config.inputs)
    options = RUNTIME_OPTIONS.get(model.backend, RuntimeOptions())
    threads = config.parameters.get(options.threads, "")
    base = TunedSettings(
        lane,
        max(1, placement.instances),
        batch if batched else 0,
        config.max_queue_delay_us,
        int(threads) if threads.isdecimal() and int(threads) else 1,
        config.parameters.get(options.optimization, "all"),
        config.parameters.get(options.arena, "1").lower() in ("1", "true"),
    )
    return Tunable(
        base,
        batch if batched else 0,
        options,
        hosted=lane == "process",
        placed=any(group.gpus or group.kind in ("gpu", "model") for group in config.instance_groups),
        inline=lane == "inline",
    )


def override(config: Any) -> str:
    """Returns a configuration in the JSON form of a load request, without fields that are not set."""
    plain = {key: value for key, value in to_plain(config).items() if value not in ("", 0, [], {}, False)}
    return json.dumps(plain)


def recorded_inputs(file: Path) -> list[tuple[Any, ...]]:
    """Returns the inputs of the first _MOST_REQUESTS requests in a recording. Raises InvalidArgument if the
    file does not exist, or has no requests.
    """
    if not file.exists():
        raise InvalidArgument(
            f"'{file}' does not exist. To record requests, run 'backline models record NAME' against a server"
            " that receives requests; then pass the --state-dir of that server with --data recorded"
        )
    found = [tuple(one.inputs.values()) for one in read_log(file) if one.inputs][:_MOST_REQUESTS]
    if not found:
        raise InvalidArgument(f"'{file}' has no requests: record some with 'backline models record NAME'")
    return found
