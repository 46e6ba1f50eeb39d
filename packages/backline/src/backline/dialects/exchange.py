"""The path of an inference request from bytes to the engine and back, shared by all dialects.

A dialect supplies a reader, which turns bytes into a plan and inputs, and a writer, which turns an
InferResponse into bytes. Large requests and responses are read and written off the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, monotonic_ns
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from backline.access.scope import Scope
from backline.dialects.answers import fail_call, hidden_error, quota_fields, respond_error
from backline.dialects.forwarding import ForwardPattern
from backline.dialects.off_loop import LargeRequest, OffLoop, byte_count
from backline.engine.engine import Engine
from backline.engine.route import VIA, keep_route
from backline.engine.ticket import Ticket
from backline.engine.tracing import Trace, TraceProtocol
from backline.wire.application import Buffer, Fields, HttpRequest, UnaryCall
from backline.wire.grpc.timeout import InvalidTimeout, parse_timeout
from backline_client.values.errors import (
    BacklineError,
    DeadlineExceeded,
    DecoupledModel,
    InvalidArgument,
    Unsupported,
)
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor

#: The header field of gRPC's timeout, which HTTP clients may send too: up to eight digits and a unit, so
#: "250m" is 250 ms.
GRPC_TIMEOUT = b"grpc-timeout"
#: The field in which Envoy says, in requests that it forwards, how many milliseconds it waits for a response.
ENVOY_TIMEOUT = b"x-envoy-expected-rq-timeout-ms"


class RequestPlan(Protocol):
    """An inference request without its id and inputs."""

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        """Builds the request. A plan that names its model ignores `model` and `version`."""

    def is_large(self, response: InferResponse) -> bool:
        """Returns whether writing this response would block the event loop for too long."""

    def release(self) -> None:
        """Releases resources early, because the request has failed."""


Caller = TypeVar("Caller", bound=HttpRequest | UnaryCall)
Plan = TypeVar("Plan", bound=RequestPlan)
Plan_co = TypeVar("Plan_co", bound=RequestPlan, covariant=True)
Written = TypeVar("Written")
#: The header fields and the body of an HTTP response.
HttpBody: TypeAlias = tuple[Fields, Sequence[Buffer]]


class ReadRequest(Protocol[Plan_co]):
    """Reads a request: its plan, its id and its inputs by name."""

    def __call__(
        self, received: Buffer, fields: Mapping[bytes, bytes], model: str, version: str, on_loop: bool, /
    ) -> tuple[Plan_co, str, dict[str, Tensor]]:
        """Reads a request. `model` and `version` come from the URL and are empty in gRPC.

        `fields` are headers or metadata.

        Raises BacklineError for an invalid request, and LargeRequest if `on_loop` is true and reading would
        block the event loop for too long.
        """


class Carrier(Struct, Generic[Caller, Written], frozen=True):
    """The differences between HTTP and gRPC that matter to an exchange."""

    protocol: TraceProtocol
    #: Whether the transport itself ends a call at the deadline, so that only the queue needs to know the
    #: deadline.
    ends_at_deadline: bool
    reply: Callable[[Caller, Written], None]
    fail: Callable[[Caller, BacklineError], None]
    #: Selects the header fields or metadata that models see as parameters; None selects nothing.
    forward: ForwardPattern | None = None


def _respond(request: HttpRequest, written: HttpBody) -> None:
    fields, body = written
    identity = request.identity
    if identity is not None and identity.meter is not None and identity.meter.low:
        fields = (*fields, *quota_fields(identity.meter))
    request.respond(200, fields, body, compressible=True)


HTTP: Carrier[HttpRequest, HttpBody] = Carrier("HTTP", False, _respond, respond_error)
GRPC: Carrier[UnaryCall, Sequence[Buffer]] = Carrier(
    "GRPC", True, lambda call, message: call.reply(*message), fail_call
)


class RequestIntake(Generic[Caller, Plan]):
    """Reads requests, and passes them to `then`. Large requests are read off the event loop."""

    def __init__(
        self,
        engine: Engine,
        carrier: Carrier[Caller, Any],
        read: ReadRequest[Plan],
        then: Callable[[Caller, float | None, Trace | None, InferRequest, Plan], None],
        off_loop: OffLoop,
    ) -> None:
        """`then(caller, deadline, trace, request, plan)` submits the request, and may raise BacklineError."""
        self._engine = engine
        self._protocol = carrier.protocol
        self._ends_at_deadline = carrier.ends_at_deadline
        self._fail = carrier.fail
        self._forward = carrier.forward
        self._read = read
        self._then = then
        self._off_loop = off_loop

    def take(
        self,
        caller: Caller,
        received: Buffer,
        fields: Mapping[bytes, bytes],
        model: str,
        version: str,
        deadline: float | None,
    ) -> None:
        """Reads a request and passes it on. `deadline` is in seconds of time.monotonic().

        Raises BacklineError if the request is refused immediately.
        """
        began = 0 if self._engine.tracer is None else monotonic_ns()
        try:
            plan, id, inputs = self._read(received, fields, model, version, True)
        except LargeRequest:
            self._off_loop.run(
                caller,
                partial(self._read, received, fields, model, version, False),
                len(received),
                partial(self._taken, caller, fields, model, version, deadline, began),
            )
            return
        except BacklineError as error:
            trace_refusal(self._engine, self._protocol, model, fields, began, error)
            raise
        if self._ends_at_deadline:
            request, deadline = plan.request(model, version, id, inputs, deadline), None
        else:
            request = plan.request(model, version, id, inputs, None)
        if VIA in fields:
            keep_route(request, fields)
        if self._forward is not None:
            request = self._forward.apply(request, fields)
        # The permission for a model in the URL was already checked along with the route.
        if not model and (identity := caller.identity) is not None and not identity.infers_all:
            identity.require(Scope.INFER, request.model_name)
        trace = (
            trace_arrival(self._engine, self._protocol, request.model_name, fields, began) if began else None
        )
        self._then(caller, deadline, trace, request, plan)

    def _taken(
        self,
        caller: Caller,
        fields: Mapping[bytes, bytes],
        model: str,
        version: str,
        deadline: float | None,
        began: int,
        read: asyncio.Future[tuple[Plan, str, dict[str, Tensor]]],
    ) -> None:
        try:
            try:
                plan, id, inputs = read.result()
            except BacklineError as error:
                trace_refusal(self._engine, self._protocol, model, fields, began, error)
                raise
            ends_at_deadline = self._ends_at_deadline
            request = plan.request(model, version, id, inputs, deadline if ends_at_deadline else None)
            keep_route(request, fields)
            if self._forward is not None:
                request = self._forward.apply(request, fields)
            if caller.identity is not None:
                caller.identity.require(Scope.INFER, request.model_name)
            trace = trace_arrival(self._engine, self._protocol, request.model_name, fields, began)
            self._then(caller, None if ends_at_deadline else deadline, trace, request, plan)
        except BacklineError as error:
            self._fail(caller, error)
        except Exception as error:
            self._fail(caller, hidden_error("a large request", error))
        finally:
            del read  # the future holds the error, whose traceback holds this frame


class UnaryInference(Generic[Caller, Plan, Written]):
    """Inference with one response per request."""

    def __init__(
        self,
        engine: Engine,
        carrier: Carrier[Caller, Written],
        read: ReadRequest[Plan],
        write: Callable[[Plan, InferResponse], Written],
        off_loop: OffLoop,
        *,
        decoupled: str,
    ) -> None:
        """`write` may raise BacklineError. `decoupled` is the error text for decoupled models."""
        self._engine = engine
        self._reply = carrier.reply
        self._fail = carrier.fail
        self._write = write
        self._off_loop = off_loop
        self._decoupled = decoupled
        #: Reads and submits a request; see RequestIntake.take.
        self.take = RequestIntake(engine, carrier, read, self._submit, off_loop).take

    def _submit(
        self, caller: Caller, deadline: float | None, trace: Trace | None, request: InferRequest, plan: Plan
    ) -> None:
        ticket = Ticket(request, self._complete, context=(caller, plan), trace=trace)
        identity = caller.identity
        if identity is not None:
            identity.follow(ticket)
        if self._engine.fronts:
            ticket.fields = fields_of(caller)
        caller.on_abandon = partial(cancel, ticket)
        try:
            if deadline is None:
                self._engine.submit(ticket)
            else:
                self._engine.submit_until(ticket, deadline)
        except DecoupledModel:
            raise Unsupported(self._decoupled) from None

    def _complete(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        context = ticket.context
        if context is None:
            return
        # Breaks a reference cycle: the context holds the caller, and the caller's callback holds the ticket.
        # The callback need not be removed, as cancelling a ticket that is done has no effect.
        ticket.context = None
        caller: Caller
        plan: Plan
        caller, plan = context
        try:
            if response is None:
                plan.release()
                raise error  # type: ignore[misc]
            if plan.is_large(response):
                self._off_loop.run(
                    caller,
                    partial(self._write, plan, response),
                    byte_count(response.outputs),
                    partial(self._written, caller, ticket.request.model_name),
                )
                return
            written = self._write(plan, response)
        except DecoupledModel:
            self._fail(caller, Unsupported(self._decoupled))
        except BacklineError as failure:
            self._fail(caller, failure)
        except Exception as failure:
            self._fail(caller, hidden_answer(ticket.request.model_name, failure))
        else:
            self._reply(caller, written)

    def _written(self, caller: Caller, model: str, written: asyncio.Future[Written]) -> None:
        try:
            self._reply(caller, written.result())
        except BacklineError as failure:
            self._fail(caller, failure)
        except Exception as failure:
            self._fail(caller, hidden_answer(model, failure))
        finally:
            del written  # the future holds the error, whose traceback holds this frame


def fields_of(caller: HttpRequest | UnaryCall) -> Mapping[bytes, bytes]:
    """Returns the header fields or metadata of a caller."""
    return caller.headers if isinstance(caller, HttpRequest) else caller.metadata


def cancel(ticket: Ticket) -> None:
    """Cancels a request whose client has disconnected."""
    ticket.context = None
    ticket.cancel()


def hidden_answer(model: str, cause: BaseException) -> BacklineError:
    """Returns the error that a client sees when writing a response raised an unexpected exception."""
    return hidden_error(f"the response of model '{model}'", cause)


def trace_arrival(
    engine: Engine, protocol: TraceProtocol, model: str, fields: Mapping[bytes, bytes], began: int
) -> Trace | None:
    """Returns a trace for a request that arrived at `began` (time.monotonic_ns()). Returns None if `began` is
    0 or the request is not traced.
    """
    tracer = engine.tracer
    return tracer.arrived(protocol, model, fields, began) if began and tracer is not None else None


def trace_refusal(
    engine: Engine,
    protocol: TraceProtocol,
    model: str,
    fields: Mapping[bytes, bytes],
    began: int,
    error: BacklineError,
) -> None:
    """Traces a request that could not be read. `model` is empty if only the unread part names the model."""
    trace = trace_arrival(engine, protocol, model, fields, began)
    if trace is not None:
        trace.unreadable(error)


def deadline_of(headers: Mapping[bytes, bytes]) -> float | None:
    """Returns the deadline that the client of a new HTTP request has set, in seconds of time.monotonic(), or
    None.

    Raises InvalidArgument for a malformed timeout, and DeadlineExceeded for a timeout of zero.
    """
    given = [_seconds(name, headers[name]) for name in (GRPC_TIMEOUT, ENVOY_TIMEOUT) if name in headers]
    if not given:
        return None
    seconds = min(given)
    if seconds <= 0:
        raise DeadlineExceeded(
            "the deadline had already passed when the request arrived: send it with a timeout above 0"
        )
    return monotonic() + seconds


def _seconds(name: bytes, value: bytes) -> float:
    if name == GRPC_TIMEOUT:
        try:
            return parse_timeout(value)
        except InvalidTimeout as error:
            raise InvalidArgument(str(error)) from None
    if not value.isdigit() or len(value) > 15:
        raise InvalidArgument(
            f"{name.decode()} {value[:40].decode('latin-1')!r} is not a number of milliseconds"
        )
    return int(value) / 1000
