"""Admits requests: one path for HTTP requests, gRPC calls and the messages of streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from backline.access.access import AUTHORIZATION, Access
from backline.access.gate import AccessTarget, route_of
from backline.access.identity import Identity
from backline.access.scope import EVERYBODY, Scope
from backline.wire.application import Buffer, Call, HttpRequest
from backline_client.values.errors import BacklineError

if TYPE_CHECKING:
    from backline.dialects.answers import ErrorForm
    from backline.dialects.audit import Audit
    from backline_client.values.memo import Memo

#: The maximum length in bytes of a path or credential that is remembered. Real ones are far shorter.
MAX_REMEMBERED_SIZE = 512


class Operation(Struct, frozen=True, eq=False):
    """What a request asks for: an HTTP method on a path, or a gRPC method (whose `method` is empty)."""

    handler: Callable[..., None]
    target: AccessTarget
    path: bytes
    method: bytes = b""
    #: Reads the model's name from a message; None if the target tells the model.
    model_of: Callable[[Buffer], str] | None = None
    #: What a message without a model's name concerns.
    unnamed: str | None = None
    #: The form of errors; None for the form of most dialects.
    errors: ErrorForm | None = None

    @property
    def route(self) -> str:
        return route_of(self.method, self.path) if self.method else self.path.decode()

    def model(self, body: Buffer) -> str | None:
        """Returns the model that a request concerns, as in AccessTarget."""
        return self.target.model if self.model_of is None else self.model_of(body) or self.unnamed


class Admission:
    """Checks who sends a request, whether the caller may do that, and whether its quotas allow it.

    The gate's check is not enough, because the wire does not repeat it for later requests with the same head,
    and a key may have expired in the meantime.
    """

    def __init__(self, access: Access, audit: Audit) -> None:
        self._identify = access.identify
        self._audit = audit
        #: The identities that may use an operation, by credential (or identity, see `_check`) and operation.
        #: Access clears the memo whenever a permission changes.
        self._admitted: Memo[Any, Identity] = access.memo()

    def admit(
        self, caller: HttpRequest | Call, fields: Mapping[bytes, bytes], body: Buffer, operation: Operation
    ) -> Callable[..., None]:
        """Sets the identity of a caller, counts the request against its quotas, and returns the handler.

        Raises BacklineError if the caller is refused.
        """
        identity = self._admitted.get((fields.get(AUTHORIZATION), operation))
        if identity is None:
            identity = self._check(caller, fields, body, operation)
        else:
            caller.identity = identity
        meter = identity.meter
        if meter is not None and operation.target.scope not in EVERYBODY and not meter.try_fast(len(body)):
            meter.charge(operation.model(body) if meter.by_model else None, len(body), monotonic())
        return operation.handler

    def _check(
        self, caller: HttpRequest | Call, fields: Mapping[bytes, bytes], body: Buffer, operation: Operation
    ) -> Identity:
        scope = operation.target.scope
        try:
            identity = caller.identity = self._identify(fields, caller)
            if self._admitted.get((identity, operation)) is not None:
                return identity
            infers = scope is Scope.INFER
            if operation.model_of is None or infers:
                identity.require(scope, operation.target.model)
            if operation.model_of is not None and not (infers and identity.infers_all):
                # Not remembered, because the next message may name another model.
                identity.require(scope, operation.model(body))
                return identity
        except BacklineError as error:
            self._audit.refused(caller, operation.route, _named(operation, body), error)
            raise
        given = fields.get(AUTHORIZATION, b"")
        if identity.lasts and max(len(given), len(operation.path)) <= MAX_REMEMBERED_SIZE:
            # A request without a key or token may come from any certificate's holder, so these are remembered
            # by their identity only.
            self._admitted.keep((given or identity, operation), identity)
        return identity


def _named(operation: Operation, body: Buffer) -> str | None:
    """Returns the model that a refused request names; None if there is none or it cannot be read."""
    try:
        return operation.model(body) or None
    except BacklineError:
        return None


def admit_message(identity: Identity | None, scope: Scope, model: str | None, size: int) -> None:
    """Admits a message of `size` bytes on an open stream, whose caller may have lost its permission since.

    Raises BacklineError if the caller is refused.
    """
    if identity is not None:
        identity.require(scope, model)
        if identity.meter is not None:
            identity.meter.charge(model, size, monotonic())
