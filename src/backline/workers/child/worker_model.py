"""The seam inside a worker process: what kind of model it runs is behind `WorkerModel`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from backline.workers.channel.protocol import WorkerLoad, WorkerLoaded
from backline.workers.child.caller import Caller
from backline.workers.child.requests import RequestBatch


class WorkerModel(Protocol):
    """A model in a worker process. `loaded` is what the server is told of it."""

    loaded: WorkerLoaded

    def execute(self, batch: RequestBatch) -> Awaitable[None] | None:
        """Runs a batch and answers its requests, now or later (see WorkerRequest): all are answered when this returns, unless it is
        `decoupled` or `deferred`.

        A model whose `loaded.concurrency` is above 1 returns an awaitable, which runs on the worker's event loop; its next batch may come
        before it has ended. What it raises is the failure of all requests without an answer.
        """

    def close(self) -> None:
        """The worker ends."""


#: What `WorkerLoad.adapter` names: with a Caller the model may call other models of the server. What it raises is told as the reason of the
#: failed load.
Adapter: TypeAlias = Callable[[WorkerLoad, Caller], WorkerModel]
