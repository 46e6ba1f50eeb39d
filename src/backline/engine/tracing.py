"""The seam to what follows requests on their way: the engine and the schedule carry it, and do not look inside.

While nothing is traced, `Ticket.trace` is None and this costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from backline.engine.errors import BacklineError
    from backline.engine.ticket import Ticket

#: How a request came, as traces call it.
TraceProtocol: TypeAlias = Literal["HTTP", "GRPC"]
#: Values of trace settings as clients see them: texts, or several of them.
SettingValue: TypeAlias = str | list[str]


class RunMoments(Protocol):
    """A run of a model, as workers.batch.Batch has it: moments of time.monotonic_ns(), of which those that it did not come to are 0.

    One that is not `executed` never came to the model.
    """

    executed: bool
    items: int
    started_ns: int
    gathered_ns: int
    ran_ns: int
    ended_ns: int

    @property
    def tickets(self) -> Sequence[Ticket]: ...
    @property
    def parts(self) -> Sequence[RunMoments] | None: ...


class Trace(Protocol):
    """What follows one request, or the exchange with a client that requests are for. Lives on the event loop.

    Before it is submitted, the trace of a request is that which it is a part of; from then on it is its own.
    """

    @property
    def context(self) -> str:
        """Where it stands, for models that trace what they do: a JSON object with `traceparent`, or an empty one."""

    def follow(self, ticket: Ticket) -> Trace:
        """The trace of a request that is part of this one; called just before it is submitted."""

    def beside(self, others: Sequence[Trace]) -> Trace:
        """This one, for a request that is a part of the others, too."""

    def ran(self, run: RunMoments) -> None:
        """A run with this request has ended."""

    def unreadable(self, error: BacklineError) -> None:
        """No request could be made of what the client sent."""


class Tracer(Protocol):
    """What is told of the requests of clients."""

    def arrived(
        self, protocol: TraceProtocol, model: str, headers: Mapping[bytes, bytes], began_ns: int
    ) -> Trace | None:
        """A request has come, which was read from `began_ns` of time.monotonic_ns() on; the answer is None if it is not to be followed."""


class TraceControl(Protocol):
    """What clients may see and change of what is followed. `model` is empty for all models that have nothing of their own."""

    def settings(self, model: str) -> Mapping[str, SettingValue]:
        """The settings. Raises InvalidArgument for an unknown model."""

    def update(self, model: str, changes: Mapping[str, SettingValue | None]) -> None:
        """Sets some of them; None has a setting be that of all models, or of the start, again.

        Raises InvalidArgument for what cannot be, Unsupported for what cannot be changed while the server runs.
        """


def part_of(tickets: Sequence[Ticket]) -> Trace | None:
    """The trace for a request that is made for these, if any of them is traced."""
    traces = [ticket.trace for ticket in tickets if ticket.trace is not None]
    if len(traces) < 2:
        return traces[0] if traces else None
    return traces[0].beside(traces[1:])
