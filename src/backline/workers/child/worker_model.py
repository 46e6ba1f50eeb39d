"""The seam inside a worker process: every kind of model is a `WorkerModel`."""

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
        """The worker ends."""


#: Makes the model of a load; with the Caller it can call other models. An exception becomes the error of the
#: load.
Adapter: TypeAlias = Callable[[WorkerLoad, Caller], WorkerModel]
