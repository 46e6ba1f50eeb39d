"""Unmodified tritonclient: concurrent requests, and the server's counters for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

from support.server import ServerProcess

Arrays = Mapping[str, np.ndarray]
#: Sends requests to a model concurrently and returns the answers in order.
Ask = Callable[[str, Sequence[Arrays]], list[Arrays]]


def over_http(server: ServerProcess) -> Iterator[Ask]:
    def ask(model: str, requests: Sequence[Arrays]) -> list[Arrays]:
        asked = [client.async_infer(model, _inputs(tritonclient.http, request)) for request in requests]
        results = [one.get_result() for one in asked]
        return [
            {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}
            for result in results
        ]

    with tritonclient.http.InferenceServerClient(
        server.url.removeprefix("http://"), concurrency=16
    ) as client:
        yield ask


def over_grpc(server: ServerProcess) -> Iterator[Ask]:
    def infer(model: str, request: Arrays) -> Arrays:
        result = client.infer(model, _inputs(tritonclient.grpc, request))
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    with (
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
        ThreadPoolExecutor(16) as threads,
    ):
        client.is_server_live()  # connects the channel
        yield lambda model, requests: list(threads.map(infer, [model] * len(requests), requests))


def _inputs(library: Any, arrays: Arrays) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


@dataclass(frozen=True)
class Counts:
    """Successful and failed requests, items, executions, and executions by batch size."""

    succeeded: int
    failed: int
    items: int
    runs: int
    sizes: Mapping[int, int]

    def since(self, before: Counts) -> Counts:
        sizes = {size: count - before.sizes.get(size, 0) for size, count in self.sizes.items()}
        return Counts(
            self.succeeded - before.succeeded,
            self.failed - before.failed,
            self.items - before.items,
            self.runs - before.runs,
            {size: count for size, count in sizes.items() if count},
        )


def counts(server: ServerProcess, model: str) -> Counts:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        (stats,) = client.get_inference_statistics(model)["model_stats"]
    requests = stats["inference_stats"]
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in stats["batch_stats"]}
    return Counts(
        requests["success"]["count"],
        requests["fail"]["count"],
        stats["inference_count"],
        stats["execution_count"],
        sizes,
    )
