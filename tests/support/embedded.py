"""An engine without sockets in the test's own process, and requests to it as futures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from backline.embedded.embedded import Embedded
from backline.engine.ticket import Ticket
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse


async def start(repository: Path, **more: Any) -> Embedded:
    """An explicit-mode engine with every model of the repository and its state in a sibling folder."""
    more.setdefault("isolate", "never")
    options = LifecycleOptions(
        mode="explicit", load_models=(ALL_MODELS,), state_folder=repository.with_name("state"), **more
    )
    program = Embedded([repository], options)
    await program.start()
    return program


class AwaitedTicket:
    """A ticket for a request, and the future of its answer; the caller submits the ticket."""

    def __init__(self, request: InferRequest) -> None:
        self.done: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        self.ticket = Ticket(request, self._complete)

    def _complete(self, _: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        if error is not None:
            self.done.set_exception(error)
        elif response is not None:
            self.done.set_result(response)


def submit(program: Embedded, request: InferRequest) -> asyncio.Future[InferResponse]:
    """The future answer to a request, which is submitted at once."""
    awaited = AwaitedTicket(request)
    program.engine.submit(awaited.ticket)
    return awaited.done
