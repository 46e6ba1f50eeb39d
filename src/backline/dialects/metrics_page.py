"""GET /metrics, on every port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from backline.dialects.answers import hidden_error, respond_error
from backline.wire.application import Buffer, HttpRequest

#: The content type of the metrics, and their text in pieces.
Page: TypeAlias = Callable[[], Awaitable[tuple[bytes, Sequence[Buffer]]]]


class MetricsPage:
    """The handler of the route."""

    def __init__(self, page: Page) -> None:
        self._page = page
        #: Held strongly: the loop knows its tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: HttpRequest) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: HttpRequest) -> None:
        try:
            content_type, text = await self._page()
        except Exception as error:
            respond_error(request, hidden_error("the metrics", error))
        else:
            request.respond(200, [(b"content-type", content_type)], text)
