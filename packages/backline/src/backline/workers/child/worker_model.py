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
        """Runs a batch and responds to its requests. When this method and any awaitable that it returned are
        done, each request has a response, unless the model is `decoupled` or `deferred`; see WorkerRequest.

        A model whose `loaded.concurrency` is above 1 returns an awaitable, which runs on the worker's event
        loop. The next batch may arrive before the awaitable completes. An exception fails all requests of the
        batch that have no response.
        """

    def close(self) -> None:
        """Releases the resources of the model, before the worker ends."""


#: A function that creates the model that a LOAD message describes. The model can call other models through
#: the Caller. If the function raises an exception, the load fails.
Adapter: TypeAlias = Callable[[WorkerLoad, Caller], WorkerModel]
