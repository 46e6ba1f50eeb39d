"""Limits the size of a request to what its model or route can need, before the body is received."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from backline.access.gate import AccessTarget
from backline.access.identity import ANY_MODEL
from backline.access.scope import CHANGING, Scope
from backline.dialects.admission import MAX_REMEMBERED_SIZE
from backline.dialects.open_inference.grpc.wire_format import first_model_name
from backline.dialects.router import MethodNotAllowed, Router
from backline.engine.engine import Engine
from backline.engine.largest_request import SizeOf, json_size, largest_request_to, protobuf_size
from backline.engine.model import Model
from backline.wire.application import Bound, Buffer, Call, Denial, StreamMethod, UnaryMethod
from backline.wire.limits import BodyLimit
from backline.wire.uploads import FREE
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound
from backline_client.values.memo import Memo

_MAX_REMEMBERED = 1024
#: The maximum number of remembered routes whose paths are longer than MAX_REMEMBERED_SIZE. Each of them takes
#: up to 8 KiB.
_MAX_REMEMBERED_LONG = 16
_ADVICE = (
    "This is the size of the largest inputs plus 1 MiB for names and parameters: check the model's name, the"
    " shapes of the inputs and the batch size, and send large values as inputs instead of as parameters."
)
#: The limit of requests that neither run a model nor change anything.
_OTHER = BodyLimit(FREE, " for this route", "Only requests that run or change models may be larger.")
#: Adds no limit; the server's own limit on requests still applies.
_UNLIMITED = BodyLimit(sys.maxsize)


class BodyLimits:
    """The limits of large bodies. Used on the event loop.

    Invariant: a body above its limit either cannot be valid or has more than 1 MiB of names, parameters and
    unusual whitespace. While the inputs of a model are variable or unknown, the server's limit applies. When
    models change, the limits are computed again; a body that is being received at that time gets the new
    limit.
    """

    def __init__(
        self,
        engine: Engine,
        router: Router,
        target_of: Callable[[bytes, bytes], AccessTarget | None],
        may_infer: Callable[[Call, str], bool],
    ) -> None:
        """`may_infer` returns whether the caller may run the model of that name."""
        self._engine = engine
        self._router = router
        self._target_of = target_of
        self._may_infer = may_infer
        #: The limits of routes. Security: the limit is looked up again for every piece of a chunked body, and
        #: matching a long path takes half a millisecond, so long paths are remembered too.
        self._routes: Memo[tuple[bytes, bytes], BodyLimit] = Memo(_MAX_REMEMBERED)
        self._long_routes: Memo[tuple[bytes, bytes], BodyLimit] = Memo(_MAX_REMEMBERED_LONG)
        #: The limit of messages that do not begin with a model's name; None if the limit must be computed
        #: again.
        self._of_any: BodyLimit | None = None
        engine.watch(self._models_changed)

    def _models_changed(self) -> None:
        self._routes.clear()
        self._long_routes.clear()
        self._of_any = None

    def of_route(self, method: bytes, path: bytes) -> Bound:
        """Returns the limit of a large HTTP body, or a denial if the request would be refused anyway, such as
        with 404 or 405.
        """
        routes = self._routes if len(path) <= MAX_REMEMBERED_SIZE else self._long_routes
        known = routes.get((method, path))
        if known is not None:
            return known
        try:
            return routes.keep((method, path), self._find(method, path))
        except BacklineError as error:
            return _denial(error)

    def _find(self, method: bytes, path: bytes) -> BodyLimit:
        """Returns the limit of a large HTTP body. Raises BacklineError for a request that has no handler or
        names an unknown model.
        """
        target = self._target_of(method, path)
        if target is None:
            self._router.check(method, path)
        elif target.scope is Scope.INFER and target.model not in (None, ANY_MODEL):
            return self._of_model(target.model, json_size)
        elif target.scope is Scope.INFER or target.scope in CHANGING:
            return _UNLIMITED
        return _OTHER

    def of_message(self, method: UnaryMethod | StreamMethod, call: Call, beginning: Buffer) -> Bound:
        """Returns the limit of a large gRPC message, given its first bytes.

        If the sender may not run the model, the message is received anyway, and the handler then refuses it.
        The limit that is returned in this case reveals nothing about the model. The same limit applies if a
        message on a stream names an unknown model, or gives a name that no model can have, because only this
        request may fail then, not the whole stream.
        """
        scope = Scope(method.scope)
        if scope is not Scope.INFER:
            return _UNLIMITED if scope in CHANGING else _OTHER
        try:
            name = first_model_name(beginning)
            if name is None or not self._may_infer(call, name):
                return self._of_any_model()
            return self._of_model(name, protobuf_size)
        except (NotFound, InvalidArgument) as error:
            return self._of_any_model() if isinstance(method, StreamMethod) else _denial(error)
        except BacklineError as error:
            return _denial(error)

    def _of_model(self, name: str, size_of: SizeOf) -> BodyLimit:
        """Returns the limit of requests to a model. Raises NotFound for an unknown model."""
        return _limit(self._engine.versions(name), size_of, f" for model '{name}'")

    def _of_any_model(self) -> BodyLimit:
        if self._of_any is None:
            self._of_any = _limit(self._engine.models(), protobuf_size, " for any model")
        return self._of_any


def _limit(versions: Iterable[Model], size_of: SizeOf, whose: str) -> BodyLimit:
    size = largest_request_to(versions, size_of)
    return _UNLIMITED if size is None else BodyLimit(size, whose, _ADVICE)


def _denial(error: BacklineError) -> Denial:
    # A response with status 405 must have this field (RFC 9110, section 15.5.6).
    fields = [(b"allow", error.allow)] if isinstance(error, MethodNotAllowed) else ()
    return Denial(error.http_status, error.grpc_code, error.public_message, fields)
