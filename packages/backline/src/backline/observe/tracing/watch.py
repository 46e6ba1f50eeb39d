"""Traces for people who watch requests in the console or with `backline watch`. The latest traces are kept in
memory. Requests are traced only while somebody watches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from backline.observe.tracing.trace import UNKNOWN_VERSION, Exchange, RequestTrace
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.private_places import for_clients

#: The maximum number of requests that are traced per second, not counting the console's own requests.
PER_SECOND = 20
#: The number of traces that are kept in memory.
KEPT = 100
#: The prefix of the ids of the console's own requests, which are always traced while somebody watches.
OWN_ID = b"console-"
#: The maximum number of requests to models in a trace. There is a limit because a pipeline may make any
#: number of requests.
_MAX_REQUESTS = 200


class TraceWatch:
    """A TraceWriter that converts each exchange to a document and passes the document to the `watchers`."""

    def __init__(self) -> None:
        self.recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.watchers: list[Callable[[dict[str, Any]], None]] = []
        self._open: dict[int, list[RequestTrace[Any]]] = {}
        self._second = 0
        self._admitted = 0

    def admits(self, began_ns: int, id: bytes) -> bool:
        """Returns whether to trace a request that arrived at `began_ns` with this id."""
        if not self.watchers:
            return False
        if id.startswith(OWN_ID):
            return True
        second = began_ns // 1_000_000_000
        if second != self._second:
            self._second, self._admitted = second, 0
        self._admitted += 1
        return self._admitted <= PER_SECOND

    # as a writer

    def arrived(self, exchange: Exchange[None]) -> None:
        """Records nothing, because the document is made when the exchange ends."""

    def began(self, trace: RequestTrace[None], request: InferRequest) -> None:
        """Records nothing; see `arrived`."""

    def context(self, kept: None) -> str:
        return "{}"

    def responded(self, request: RequestTrace[None], response: InferResponse) -> None:
        """Records nothing, because the document has only the number of responses."""

    def ended(self, request: RequestTrace[Any]) -> None:
        requests = self._open.setdefault(id(request.exchange), [])
        if len(requests) < _MAX_REQUESTS:
            requests.append(request)

    def answered(self, exchange: Exchange[Any]) -> None:
        requests = self._open.pop(id(exchange), [])
        document = _document(exchange, requests)
        self.recent.append(document)
        for watcher in tuple(self.watchers):
            watcher(document)

    def flush(self) -> None:
        """Does nothing, because each document is passed on immediately."""

    async def close(self) -> None:
        """Does nothing; see `flush`."""


def _document(exchange: Exchange[Any], requests: list[RequestTrace[Any]]) -> dict[str, Any]:
    """Returns a trace as plain data. Times are in microseconds from the arrival of the request."""
    start = exchange.began_ns

    def since(moment: int) -> int:
        return max(0, (moment - start) // 1000)

    ordered = sorted(requests, key=lambda one: one.began_ns)
    index = {id(one): number for number, one in enumerate(ordered)}
    took = since(exchange.sent_ns)
    first = ordered[0] if ordered else None
    return {
        "time": time.time() - took / 1e6,
        "protocol": exchange.protocol,
        "model": exchange.model or (first.model_name if first else ""),
        "id": first.id if first else "",
        "took": took,
        "read": since(exchange.read_ns),
        "error": for_clients(exchange.error.message) if exchange.error else "",
        "requests": [
            {
                "model": one.model_name,
                "version": "" if one.model_version == UNKNOWN_VERSION else one.model_version,
                "parent": index.get(id(one.parent), -1),
                "began": since(one.began_ns),
                "ended": since(one.ended_ns),
                "batch_size": one.batch_size,
                "responses": one.responses,
                "error": for_clients(one.error.message) if one.error else "",
                "runs": [
                    {
                        "started": since(run.started_ns),
                        "gathered": since(run.gathered_ns),
                        "ran": since(run.ran_ns),
                        "ended": since(run.ended_ns),
                        "batch_size": run.batch_size,
                    }
                    for run in one.runs
                ],
            }
            for one in ordered
        ],
    }
