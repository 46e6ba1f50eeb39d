"""A job's request as the dialects see it: the one that was accepted, whose response is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from backline.access.scope import Scope
from backline.engine.ticket import QUEUED, Ticket
from backline.wire.application import Buffer, Fields, HttpRequest, ResponseStream
from backline_client.values.errors import Forbidden

#: The name under which all jobs together take one turn among the callers of a queue.
_TURN = "\0jobs"


class JobIdentity:
    """The caller of a job's request: it may only run the model for which the job was accepted, and gives way
    to interactive requests.
    """

    name = ""
    kind = "job"
    meter = None
    infers_all = False

    def __init__(self, owner: str, model: str, levels: int) -> None:
        """`levels` is the number of the model's priority levels; jobs have the lowest."""
        self.holder = owner
        self._model = model
        self._levels = levels
        self._ticket: Ticket | None = None

    @property
    def waits(self) -> bool:
        """Whether the request waits in a queue."""
        return self._ticket is not None and self._ticket.state is QUEUED

    def follow(self, ticket: Ticket) -> None:
        ticket.identity = _TURN
        if self._levels:
            ticket.request = replace(ticket.request, priority=self._levels)
            ticket.level = self._levels
        self._ticket = ticket

    def may(self, scope: Scope, model: str | None) -> bool:
        return scope is Scope.INFER and model == self._model

    def require(self, scope: Scope, model: str | None) -> None:
        if not self.may(scope, model):
            raise Forbidden(f"this job may only run the model '{self._model}'")


class ReplayedRequest(HttpRequest):
    """A request that no client waits for. `answered` gets its status, header fields and body."""

    __slots__ = ("answered",)

    def __init__(self, path: bytes, headers: Mapping[bytes, bytes], body: Buffer) -> None:
        super().__init__(b"POST", path, b"", headers, body)
        self.answered: asyncio.Future[tuple[int, Fields, list[Buffer]]] = (
            asyncio.get_running_loop().create_future()
        )

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        self.on_abandon = None
        if not self.answered.done():
            self.answered.set_result((status, fields, list(body)))

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        return _KeptStream(self, status, fields)

    def abandon(self) -> None:
        """Cancels the request, as if its client had disconnected."""
        if self.on_abandon is not None:
            self.on_abandon()


class _KeptStream(ResponseStream):
    def __init__(self, request: ReplayedRequest, status: int, fields: Fields) -> None:
        self._request = request
        self._status = status
        self._fields = fields
        self._chunks: list[Buffer] = []

    async def send(self, chunk: Buffer) -> None:
        self._chunks.append(bytes(chunk))

    def close(self) -> None:
        self._request.respond(self._status, self._fields, self._chunks)
