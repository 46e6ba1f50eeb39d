"""A scheduler over a real model that can be held up, and its responses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from backline.engine.config.model_config import QueuePolicy
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings, QueueTotal
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.splitting import SplittingQueue
from backline.workers.here.execution import Execution
from backline.workers.here.instances import InlineInstance, ThreadInstance
from backline.workers.instance import Instance
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor


class Doubler:
    """y = 2 x over FP32 [N]; waits for `gate`, refuses batches with a 13, fails on 14."""

    signature = Signature((TensorSpec("x", DataType.FP32, (-1,)),), (TensorSpec("y", DataType.FP32, (-1,)),))
    threads_per_run = 1
    warnings = ()

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.threads: list[threading.Thread] = []

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self.gate.wait(10)
        x = inputs["x"]
        self.batches.append(len(x))
        self.threads.append(threading.current_thread())
        if 13 in x:
            raise InvalidArgument("13 is refused")
        if 14 in x:
            raise RuntimeError("boom")
        return [x * 2]

    def close(self) -> None:
        pass


class Bench:
    """A scheduler over a Doubler, and its responses."""

    def __init__(
        self,
        *,
        inline: bool,
        policy: BatchPolicy | None = None,
        queue: QueueSettings | None = None,
        instances: int = 1,
        preserve_ordering: bool = False,
        total: QueueTotal | None = None,
        split_at: int = 0,
        idempotent: bool = True,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.model = Doubler()
        self.statistics = ModelStatistics()
        execute = Execution("m", "1", self.model, idempotent=idempotent)
        made: list[Instance] = [
            InlineInstance(execute, None, lambda run: ThreadInstance(run, self.loop, "m-large"))
            if inline
            else ThreadInstance(execute, self.loop, "m")
            for _ in range(instances)
        ]
        self.scheduler = Scheduler(
            "m",
            Settings(policy or BatchPolicy(8), queue or QueueSettings(QueuePolicy(100))),
            made,
            self.statistics,
            loop=self.loop,
            preserve_ordering=preserve_ordering,
            total=total,
        )
        self.queue = SplittingQueue(self.scheduler, split_at, self.statistics) if split_at else self.scheduler

    def ask(
        self,
        *values: float,
        deadline: float | None = None,
        timeout: float | None = None,
        priority: int = 0,
        then: Callable[[], object] = lambda: None,
    ) -> tuple[Ticket, asyncio.Future[InferResponse]]:
        answer: asyncio.Future[InferResponse] = self.loop.create_future()

        def complete(_: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(response)  # type: ignore[arg-type]
            then()

        data = np.array(values, np.float32)
        inputs = {"x": Tensor("x", DataType.FP32, data.shape, data)}
        request = InferRequest("m", inputs, deadline=deadline, timeout=timeout, priority=priority)
        ticket = Ticket(request, complete)
        ticket.batch_size = len(values)
        self.queue.submit(ticket)
        return ticket, answer


def values(response: InferResponse) -> list[float]:
    return response.outputs[0].data.tolist()  # type: ignore[no-any-return]
