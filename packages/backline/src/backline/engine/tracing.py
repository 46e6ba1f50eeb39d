"""The interface to request tracing. The engine and the schedulers pass traces on, but do not read them.

`Ticket.trace` is None for requests that are not traced, so tracing does not slow them down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from backline.engine.ticket import Ticket
    from backline_client.values.errors import BacklineError

#: The protocol by which a request arrived, as it is called in traces.
TraceProtocol: TypeAlias = Literal["HTTP", "GRPC"]
#: The value of a trace setting as clients see it: a string or a list of strings.
SettingValue: TypeAlias = str | list[str]


class RunMoments(Protocol):
    """A run of a model; implemented by workers.batch.Batch.

    Times are from time.monotonic_ns(); a time is 0 if the run did not reach that moment. A run that is not
    `executed` did not reach the model.
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
    """The trace of a request, or of an exchange with a client, which may contain several requests. Used only
    on the event loop.

    Until a request is submitted, its ticket has the trace of the parent, from which `follow` creates the
    trace of the request itself.
    """

    @property
    def context(self) -> str:
        """The trace context, for models that trace their own work: a JSON object with `traceparent`, or an
        empty object.
        """

    def follow(self, ticket: Ticket) -> Trace:
        """Creates the trace of a request that is made on behalf of the request traced here. Called just
        before the new request is submitted.
        """

    def shared_with(self, others: Sequence[Trace]) -> Trace:
        """Returns the trace for a request that is made on behalf of several requests: the request traced here
        and the requests of `others`.
        """

    def ran(self, run: RunMoments) -> None:
        """Records a run that included the traced request and has ended."""

    def unreadable(self, error: BacklineError) -> None:
        """Records that the client's message could not be read as a request."""


class Tracer(Protocol):
    """Decides which requests of clients are traced."""

    def arrived(
        self, protocol: TraceProtocol, model: str, headers: Mapping[bytes, bytes], began_ns: int
    ) -> Trace | None:
        """Starts the trace of a request that the server began to read at the time `began_ns` (from
        time.monotonic_ns()).

        Returns None if the request is not to be traced.
        """


class TraceControl(Protocol):
    """The tracing settings, which clients may change. An empty `model` means the settings for all models."""

    def settings(self, model: str) -> Mapping[str, SettingValue]:
        """Returns the settings. Raises InvalidArgument for an unknown model."""

    def update(self, model: str, changes: Mapping[str, SettingValue | None]) -> None:
        """Changes settings. The value None resets a model's setting to the setting for all models, and a
        setting for all models to its initial value.

        Raises InvalidArgument for an invalid setting, and Unsupported for a setting that cannot be changed at
        run time.
        """

    def recent(self) -> Sequence[Mapping[str, Any]]:
        """Returns the documents of the last requests that were traced while somebody was watching, oldest
        first.
        """

    def watch(self, watcher: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Passes a document to `watcher` for each request that ends; on a busy server, only for some
        requests.

        Returns a function that removes the watcher. Requests are traced for watchers only while there are
        any.
        """


def part_of(tickets: Sequence[Ticket]) -> Trace | None:
    """Returns the trace for a request made on behalf of these tickets; None if no ticket is traced."""
    traces = [ticket.trace for ticket in tickets if ticket.trace is not None]
    if len(traces) < 2:
        return traces[0] if traces else None
    return traces[0].shared_with(traces[1:])
