"""Joins identical requests in flight, so that they are run only once. Identical requests have the same
key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from backline.engine.ticket import QUEUED, Completion, Owner, Ticket
from backline.schedule.queues.queue import QueueSettings, limit_wait
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError
from backline_client.values.tensor import encode_tensor

if TYPE_CHECKING:
    from asyncio import TimerHandle


class RequestKeys:
    """Computes the keys of requests to a load of a model version.

    A key is the SHA-256 of the model, its version, the fingerprint of the loaded files, the name, datatype,
    shape and bytes of each input, the requested outputs, and the parameters, which the model may read.
    Security: Triton uses a short checksum, with which a client could construct a request that has the same
    key as another client's request, so that the other client would get a wrong response.
    docs/decisions/response-cache.md says how long computing the SHA-256 takes.
    """

    __slots__ = ("_start",)

    def __init__(self, model: str, version: str, fingerprint: str) -> None:
        self._start = hashlib.sha256(repr((model, version, fingerprint)).encode("utf-8", "surrogatepass"))

    def of(self, ticket: Ticket) -> bytes:
        """Returns the key of a request. The key does not depend on the order of the inputs. May be called on
        any thread.
        """
        digest = self._start.copy()
        inputs = ticket.request.inputs
        for name in sorted(inputs) if len(inputs) > 1 else inputs:
            tensor = inputs[name]
            data = encode_tensor(tensor)
            # The data of each input is preceded by its length, so that two different requests cannot give the
            # same bytes.
            head = f"{name!r}:{tensor.datatype.name}:{tensor.shape}:{len(data)}|"
            digest.update(head.encode("utf-8", "surrogatepass"))
            digest.update(data)
        parameters = ticket.request.parameters
        if ticket.request.outputs is not None or parameters:
            rest = repr((ticket.request.outputs, sorted(parameters.items()) if parameters else None))
            digest.update(rest.encode("utf-8", "surrogatepass"))
        return digest.digest()


def input_bytes(ticket: Ticket) -> int:
    """Returns the number of bytes from which the key of a request is computed. For BYTES tensors, the number
    is an estimate.
    """
    return sum(
        tensor.data.size * 32 if tensor.datatype is DataType.BYTES else tensor.data.nbytes
        for tensor in ticket.request.inputs.values()
    )


class Flight(Owner):
    """Requests in flight that have the same key, and share a lookup and a `run`. Times are from
    time.monotonic_ns().
    """

    __slots__ = (
        "_leave",
        "began_ns",
        "key",
        "lookup_ns",
        "refusal",
        "run",
        "submitting",
        "timers",
        "waiting",
    )

    def __init__(self, ticket: Ticket, now_ns: int, leave: Callable[[Flight, Ticket], None]) -> None:
        """Creates a flight with one request. When a ticket of the flight is cancelled, `leave` is called with
        the flight and the ticket.
        """
        self._leave = leave
        self.key = b""
        self.waiting = [ticket]
        self.began_ns = now_ns
        #: The duration of the lookup, in nanoseconds.
        self.lookup_ns = 0
        self.run: Ticket | None = None
        #: Whether `CachedQueue.submit` is still in progress for the first request.
        self.submitting = True
        #: The error with which `submit` refuses the first request; None if the request is not refused.
        self.refusal: BacklineError | None = None
        #: The timers that expire requests at their deadlines.
        self.timers: dict[Ticket, TimerHandle] = {}

    def cancelled(self, ticket: Ticket) -> None:
        self._leave(self, ticket)

    @property
    def waits(self) -> bool:
        """Whether the shared run has not started yet."""
        return self.run is None or self.run.state is QUEUED

    def admits(self, ticket: Ticket, settings: QueueSettings) -> bool:
        """Returns whether a request may join the flight. While the run is queued, requests with a higher
        priority may not join.
        """
        run = self.run
        return (
            not settings.levels
            or run is None
            or not self.waits
            or settings.level_of(ticket) >= settings.level_of(run)
        )

    def join(self, ticket: Ticket, settings: QueueSettings) -> None:
        """Adds a request. If the run is still queued, the deadline of the run becomes the latest deadline of
        its requests.
        """
        policy = settings.policy_of(settings.level_of(ticket))
        if not policy.delay:
            limit_wait(ticket, policy)
        run = self.run
        if run is not None and self.waits:
            if run.deadline is not None:
                first = self.waiting[0]
                if first.deadline is None:  # only the queue's timeout limits the run
                    first.deadline = run.deadline
                run.postpone(latest((run.deadline, ticket.deadline)))
            run.waits_until = latest((run.waits_until, ticket.waits_until))
        self.waiting.append(ticket)

    def make_run(self, settings: QueueSettings, on_complete: Completion) -> Ticket:
        """Creates the stand-in that runs for all requests of this flight.

        The stand-in has the inputs of the first request, and the highest priority and the latest deadline of
        all requests.
        """
        first = self.waiting[0]
        priority = first.request.priority
        if settings.levels:
            priority = min(map(settings.level_of, self.waiting))
        run = first.stand_in(on_complete, priority=priority)
        run.deadline = run.waits_until = latest(ticket.deadline for ticket in self.waiting)
        return run


def latest(deadlines: Iterable[float | None]) -> float | None:
    """Returns the latest of the deadlines; None if one of them is None, which means no deadline."""
    found = list(deadlines)
    return None if None in found else max(deadline for deadline in found if deadline is not None)
