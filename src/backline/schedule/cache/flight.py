"""Identical requests that are under way and share one run: who may join it, and how long it waits. Plain data, no clock of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from backline.engine.datatypes import DataType
from backline.engine.errors import BacklineError
from backline.engine.tensor import encode_tensor
from backline.engine.ticket import QUEUED, Completion, Owner, Ticket
from backline.schedule.queues.queue import QueueSettings, limit_wait

if TYPE_CHECKING:
    from asyncio import TimerHandle


class RequestKeys:
    """Makes the keys of the requests of one load of a model version.

    A key is the SHA-256 of the model, its version and the fingerprint of what was loaded, of each input's name, datatype, shape and bytes,
    of the outputs that are asked for, and of the request's parameters, which a model may read. It is not a short checksum, as Triton's is:
    whoever may ask a model that others ask too could make two requests that collide. What it costs is in docs/decisions/response-cache.md.
    """

    __slots__ = ("_start",)

    def __init__(self, model: str, version: str, fingerprint: str) -> None:
        self._start = hashlib.sha256(repr((model, version, fingerprint)).encode("utf-8", "surrogatepass"))

    def of(self, ticket: Ticket) -> bytes:
        """The key; inputs in another order make the same one. May be called on any thread."""
        digest = self._start.copy()
        inputs = ticket.request.inputs
        for name in sorted(inputs) if len(inputs) > 1 else inputs:
            tensor = inputs[name]
            data = encode_tensor(tensor)
            # Each part has its length before it, so that no two requests give the same bytes.
            digest.update(
                f"{name!r}:{tensor.datatype.name}:{tensor.shape}:{len(data)}|".encode(
                    "utf-8", "surrogatepass"
                )
            )
            digest.update(data)
        parameters = ticket.request.parameters
        if ticket.request.outputs is not None or parameters:
            rest = repr((ticket.request.outputs, sorted(parameters.items()) if parameters else None))
            digest.update(rest.encode("utf-8", "surrogatepass"))
        return digest.digest()


def input_bytes(ticket: Ticket) -> int:
    """The bytes that a key is made of; of BYTES tensors, whose elements would have to be looked at, about as many."""
    return sum(
        tensor.data.size * 32 if tensor.datatype is DataType.BYTES else tensor.data.nbytes
        for tensor in ticket.request.inputs.values()
    )


class Flight(Owner):
    """Requests with one key on their way: looked up, and then run as one, `run`. Moments are of time.monotonic_ns()."""

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
        """`leave` is called with each of its tickets that is cancelled."""
        self._leave = leave
        self.key = b""
        self.waiting = [ticket]
        self.began_ns = now_ns
        #: How long the look took.
        self.lookup_ns = 0
        self.run: Ticket | None = None
        #: Whether the request is still being submitted, and what it is refused with.
        self.submitting = True
        self.refusal: BacklineError | None = None
        #: Those that end requests at their deadlines.
        self.timers: dict[Ticket, TimerHandle] = {}

    def cancelled(self, ticket: Ticket) -> None:
        self._leave(self, ticket)

    @property
    def waits(self) -> bool:
        """Whether it has not begun to run."""
        return self.run is None or self.run.state is QUEUED

    def admits(self, ticket: Ticket, settings: QueueSettings) -> bool:
        """Whether a request may join: not behind a run that waits at a lower level than its own."""
        run = self.run
        return (
            not settings.levels
            or run is None
            or not self.waits
            or settings.level_of(ticket) >= settings.level_of(run)
        )

    def join(self, ticket: Ticket, settings: QueueSettings) -> None:
        """Adds a request. A run that still waits does so as long as the most patient of those who want it."""
        policy = settings.policy_of(settings.level_of(ticket))
        if not policy.delay:
            limit_wait(ticket, policy)
        run = self.run
        if run is not None and self.waits:
            if run.deadline is not None:
                first = self.waiting[0]
                if first.deadline is None:  # the queue has set one for the run
                    first.deadline = run.deadline
                run.postpone(latest((run.deadline, ticket.deadline)))
            run.waits_until = latest((run.waits_until, ticket.waits_until))
        self.waiting.append(ticket)

    def make_run(self, settings: QueueSettings, on_complete: Completion) -> Ticket:
        """One request for all that wait: the first one's inputs, the highest priority, the most patient deadline."""
        first = self.waiting[0]
        priority = first.request.priority
        if settings.levels:
            priority = min(map(settings.level_of, self.waiting))
        run = first.stand_in(on_complete, priority=priority)
        run.deadline = run.waits_until = latest(ticket.deadline for ticket in self.waiting)
        return run


def latest(deadlines: Iterable[float | None]) -> float | None:
    """The deadline of the most patient one, None if somebody waits for any time."""
    found = list(deadlines)
    return None if None in found else max(deadline for deadline in found if deadline is not None)
