"""The interface of a model in a worker process, for every kind of model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from backline.workers.channel.protocol import WorkerLoad, WorkerLoaded
from backline.workers.child.caller import Caller
from backline.workers.child.requests import RequestBatch


class WorkerModel(Protocol):
    """A model in a worker process. `loaded` describes it to the server."""

    loaded: WorkerLoaded

    def execute(self, batch: RequestBatch) -> Awaitable[None] | None:
        """Runs a batch and responds to its requests. All have a response when this returns, unless the
        model is `decoupled` or `deferred`; see WorkerRequest.

        A model whose `loaded.concurrency` is above 1 returns an awaitable, which runs on the worker's event
        loop; its next batch may arrive before it completes. An exception fails all requests without a
        response.
        """

    def close(self) -> None:
        """Releases what the model holds, before the worker ends."""


#: Creates the model of a load, which can call other models through the Caller. Exceptions fail the load.
Adapter: TypeAlias = Callable[[WorkerLoad, Caller], WorkerModel]
