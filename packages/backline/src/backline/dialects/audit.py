"""Records requests in the audit log: requests to routes and methods with a scope in CHANGING, and refused
requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from backline.access.gate import WrappedRequest, route_of
from backline.access.quota import TokenBucket
from backline.access.scope import Scope
from backline.engine.engine import Engine
from backline.wire.application import (
    Buffer,
    Call,
    Certificate,
    Denial,
    Fields,
    HttpRequest,
    ResponseStream,
    UnaryCall,
    UnaryMethod,
)
from backline_client.values.control import Attempt
from backline_client.values.errors import BacklineError

#: The maximum number of refusals logged per second for one address, and the maximum number in total.
PER_ADDRESS = 10
IN_TOTAL = 100
#: The maximum number of addresses that each have a separate limit; all other addresses share one limit.
_MAX_ADDRESSES = 4096
_OTHERS = "other addresses"
#: Seconds after which the number of suppressed refusals is logged.
_SUMMARY = 1.0
#: The maximum length in characters of the model's name and of the reason in a logged refusal. Longer texts
#: are truncated.
_LONGEST = 512


class RefusalLimit:
    """Decides which refusals to log. Callers pass the current time, in seconds of time.monotonic()."""

    def __init__(self, now: float) -> None:
        self._buckets: dict[str, TokenBucket] = {}
        self._total = TokenBucket(IN_TOTAL, IN_TOTAL, now)
        self._forget_at = now
        #: For each address, the number of refusals that were not logged, and the last of them.
        self.suppressed: dict[str, tuple[int, Attempt]] = {}

    def admits(self, attempt: Attempt, now: float) -> bool:
        """Returns whether to log a refusal. Counts a refusal that is not logged."""
        if now >= self._forget_at:
            # Full buckets are removed at most once a second, because an attacker with many addresses could
            # otherwise make each refusal scan them all.
            self._buckets = {name: known for name, known in self._buckets.items() if known.full_at > now}
            self._forget_at = now + 1
        address = attempt.address
        if address not in self._buckets and len(self._buckets) >= _MAX_ADDRESSES:
            address = _OTHERS
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = TokenBucket(PER_ADDRESS, PER_ADDRESS, now)
        if bucket.wait(1, now) or self._total.wait(1, now):
            if address not in self.suppressed and len(self.suppressed) >= _MAX_ADDRESSES:
                address = _OTHERS
            count, _ = self.suppressed.get(address, (0, attempt))
            self.suppressed[address] = (count + 1, replace(attempt, address=address))
            return False
        bucket.take(1, now)
        self._total.take(1, now)
        return True

    def summary(self) -> list[Attempt]:
        """Returns the last suppressed refusal of each address, with the number of suppressed refusals of that
        address, and resets the counts.
        """
        found = [replace(last, suppressed=count) for count, last in self.suppressed.values()]
        self.suppressed.clear()
        return found


class Audit:
    """Records attempts in the audit log, if the engine has a control, which keeps this log. Runs on the event
    loop.
    """

    def __init__(self, engine: Engine, model_of: Callable[[bytes, bytes], str | None]) -> None:
        """`model_of` returns the model that a method and path concern."""
        self._engine = engine
        self._model_of = model_of
        self._limit = RefusalLimit(time.monotonic())
        self._timer: asyncio.TimerHandle | None = None

    def denied(self, denial: Denial, route: str, model: str | None, peer: str) -> None:
        """Logs a refusal by the gate."""
        self._refused(denial.identity, peer, route, model, denial.message)

    def refused(
        self, caller: HttpRequest | Call, route: str, model: str | None, error: BacklineError
    ) -> None:
        """Logs a refusal for lack of a key or a scope; ignores other errors."""
        if error.http_status in (401, 403):
            identity = "" if caller.identity is None else caller.identity.name
            self._refused(identity, caller.peer, route, model, error.public_message)

    def _refused(self, identity: str, peer: str, route: str, model: str | None, detail: str) -> None:
        attempt = Attempt(
            time.time(), "refused", route, identity, peer, (model or "")[:_LONGEST], detail[:_LONGEST]
        )
        if self._limit.admits(attempt, time.monotonic()):
            self._note(attempt)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SUMMARY, self._summarise)

    def _summarise(self) -> None:
        self._timer = None
        now = time.time()  # entries are in the order of their times
        for attempt in self._limit.summary():
            self._note(replace(attempt, time=now))

    def ended(self, caller: HttpRequest | Call, route: str, model: str | None, error: str | None) -> None:
        """Logs a request with a scope in CHANGING. `error` says why it failed; None if it succeeded."""
        identity = "" if caller.identity is None else caller.identity.name
        outcome: Literal["done", "failed"] = "done" if error is None else "failed"
        self._note(Attempt(time.time(), outcome, route, identity, caller.peer, model or "", error or ""))

    def _note(self, attempt: Attempt) -> None:
        if self._engine.control is not None:
            self._engine.control.note(attempt)

    def route(self, handler: Callable[..., None]) -> Callable[..., None]:
        """Wraps the handler of a route, so that every response is logged."""

        def handle(*arguments: Any) -> None:
            *names, request = arguments
            model = self._model_of(request.method, request.path)
            audited = _AuditedRequest(request, self, model)
            try:
                handler(*names, audited)
            except Exception as error:
                detail = error.public_message if isinstance(error, BacklineError) else type(error).__name__
                self.ended(audited, route_of(request.method, request.path), model, detail)
                raise

        return handle

    def method(self, path: bytes, method: UnaryMethod) -> UnaryMethod:
        """Wraps a gRPC method, so that every response is logged."""
        handler, model_of = method.handler, method.model_of

        def handle(call: UnaryCall, received: Buffer) -> None:
            handler(_AuditedCall(call, self, path.decode(), received, model_of), received)

        return replace(method, handler=handle)


class _AuditedRequest(WrappedRequest):
    """A request that is logged when the response is sent."""

    __slots__ = ("_audit", "_model", "_peer")

    def __init__(self, inner: HttpRequest, audit: Audit, model: str | None) -> None:
        self._audit = audit
        self._model = model
        self._peer = inner.peer  # unknown once the client has disconnected
        super().__init__(inner)

    @property
    def peer(self) -> str:
        return self._peer

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        error = None if status < 400 else _error_text(body)
        self._audit.ended(self, route_of(self.method, self.path), self._model, error)
        super().respond(status, fields, body, compressible=compressible)

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        self._audit.ended(self, route_of(self.method, self.path), self._model, None)
        return super().stream(status, fields)


class _AuditedCall(UnaryCall):
    """A call that is logged when the response is sent."""

    __slots__ = ("_audit", "_inner", "_model", "_peer", "_route")

    def __init__(
        self,
        inner: UnaryCall,
        audit: Audit,
        route: str,
        received: Buffer,
        model_of: Callable[[Buffer], str] | None,
    ) -> None:
        super().__init__(inner.metadata, inner.deadline)
        self.identity = inner.identity
        self._inner = inner
        self._audit = audit
        self._route = route
        self._peer = inner.peer
        try:
            self._model = None if model_of is None else model_of(received)
        except BacklineError:  # the handler will raise the same error
            self._model = None
        inner.on_abandon = self._abandoned

    def _abandoned(self) -> None:
        if self.on_abandon is not None:
            self.on_abandon()

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def certificate(self) -> Certificate | None:
        return self._inner.certificate

    def reply(self, message: Buffer, *rest: Buffer) -> None:
        self._audit.ended(self, self._route, self._model, None)
        self._inner.reply(message, *rest)

    def fail(self, code: int, message: str, trailers: Fields = ()) -> None:
        self._audit.ended(self, self._route, self._model, message)
        self._inner.fail(code, message, trailers)


def _error_text(body: Sequence[Buffer]) -> str:
    try:
        found = msgspec.json.decode(b"".join(body))
        return str(found["error"] if "error" in found else found["message"])
    except (ValueError, TypeError, KeyError):
        return "failed"


class AuditedIdentity:
    """The identity of a stream's caller. If a message of the stream is refused, the identity logs the
    refusal.
    """

    def __init__(self, inner: Any, audit: Audit, call: Call, route: str) -> None:
        self._inner = inner
        self._audit = audit
        self._call = call
        self._route = route

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def require(self, scope: Scope, model: str | None) -> None:
        try:
            self._inner.require(scope, model)
        except BacklineError as error:
            self._audit.refused(self._call, self._route, model, error)
            raise
