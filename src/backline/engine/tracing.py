"""The interface to request tracing. The engine and the schedulers pass traces on without reading them.

While nothing is traced, `Ticket.trace` is None and tracing costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from backline.engine.errors import BacklineError
    from backline.engine.ticket import Ticket

#: The protocol by which a request arrived, as it is called in traces.
TraceProtocol: TypeAlias = Literal["HTTP", "GRPC"]
#: The value of a trace setting as clients see it: one string or several.
SettingValue: TypeAlias = str | list[str]


class RunMoments(Protocol):
    """A run of a model; implemented by workers.batch.Batch.

    Times are of time.monotonic_ns(), or 0 for a moment that the run did not reach. A run that is not
    `executed` never reached the model.
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
    """The trace of a request, or of a client's exchange that contains requests. Lives on the event loop.

    Until a request is submitted, its ticket holds the parent's trace, from which `follow` creates the
    request's own trace.
    """

    @property
    def context(self) -> str:
        """The trace context, for models that trace their work: a JSON object with `traceparent`, or empty."""

    def follow(self, ticket: Ticket) -> Trace:
        """Creates the trace of a request made on behalf of this one. Called just before its submission."""

    def shared_with(self, others: Sequence[Trace]) -> Trace:
        """Returns the trace for a request on behalf of several: the one traced here and those of `others`."""

    def ran(self, run: RunMoments) -> None:
        """Records a run that included the traced request and has ended."""

    def unreadable(self, error: BacklineError) -> None:
        """Records that the client's message could not be read as a request."""


class Tracer(Protocol):
    """Decides which requests of clients are traced."""

    def arrived(
        self, protocol: TraceProtocol, model: str, headers: Mapping[bytes, bytes], began_ns: int
    ) -> Trace | None:
        """Starts the trace of a request that the server began to read at `began_ns` (of time.monotonic_ns()).

        Returns None if the request is not traced.
        """


class TraceControl(Protocol):
    """The tracing settings, which clients may change. An empty `model` means the settings for all models."""

    def settings(self, model: str) -> Mapping[str, SettingValue]:
        """Returns the settings. Raises InvalidArgument for an unknown model."""

    def update(self, model: str, changes: Mapping[str, SettingValue | None]) -> None:
        """Changes settings. None resets a setting to its value for all models, or to its initial value.

        Raises InvalidArgument for an invalid setting, Unsupported for one that cannot be changed at run time.
        """

    def recent(self) -> Sequence[Mapping[str, Any]]:
        """Returns the documents of the last requests traced while somebody was watching, oldest first."""

    def watch(self, watcher: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Passes a document to `watcher` for each request that ends; on a busy server, only for some of them.

        Returns a function that stops this. Tracing costs something only while somebody watches.
        """


def part_of(tickets: Sequence[Ticket]) -> Trace | None:
    """Returns the trace for a request made on behalf of these tickets; None if none of them is traced."""
    traces = [ticket.trace for ticket in tickets if ticket.trace is not None]
    if len(traces) < 2:
        return traces[0] if traces else None
    return traces[0].shared_with(traces[1:])
