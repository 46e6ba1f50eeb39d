"""Constant load over HTTP and gRPC with stock clients; records every answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc.aio
import tritonclient.http.aio

MODEL = "add"
INPUT = np.zeros((1, 16), np.float32)


@dataclass(frozen=True)
class Answer:
    """The outcome of a request: the constant that was added, or an error. Times are of time.monotonic()."""

    target: str
    protocol: str
    sent: float
    answered: float
    constant: float
    error: str = ""

    @property
    def latency(self) -> float:
        return self.answered - self.sent


@dataclass
class ConstantLoad:
    """An open loop of `rate` requests a second, alternating between HTTP and gRPC, spread over `targets`."""

    http_url: str
    grpc_url: str
    rate: float
    targets: Sequence[str]
    answers: list[Answer] = field(default_factory=list)

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until `stop` is set, and returns after the last answer."""
        http = tritonclient.http.aio.InferenceServerClient(self.http_url, conn_limit=256)
        grpc = tritonclient.grpc.aio.InferenceServerClient(self.grpc_url)
        clients: list[tuple[str, Any, Any]] = [
            ("http", tritonclient.http, http),
            ("grpc", tritonclient.grpc, grpc),
        ]
        running: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        try:
            for number in itertools.count():
                delay = began + number / self.rate - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                if stop.is_set():
                    break
                protocol, module, client = clients[number % 2]
                target = self.targets[number // 2 % len(self.targets)]
                task = asyncio.create_task(self._ask(protocol, module, client, target))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)
        finally:
            await http.close()
            await grpc.close()

    async def _ask(self, protocol: str, module: Any, client: Any, target: str) -> None:
        tensor = module.InferInput("INPUT0", list(INPUT.shape), "FP32")
        tensor.set_data_from_numpy(INPUT)
        sent = time.monotonic()
        try:
            result = await client.infer(MODEL, [tensor], model_version=target)
            answered = time.monotonic()
            values = result.as_numpy("OUTPUT0")
            torn = values.shape != INPUT.shape or not (values == values[0, 0]).all()
            self.answers.append(
                Answer(
                    target,
                    protocol,
                    sent,
                    answered,
                    float(values[0, 0]),
                    f"a torn answer: {values}" if torn else "",
                )
            )
        except Exception as error:
            self.answers.append(
                Answer(
                    target, protocol, sent, time.monotonic(), float("nan"), f"{type(error).__name__}: {error}"
                )
            )
