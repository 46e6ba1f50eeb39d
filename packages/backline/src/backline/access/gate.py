"""Refuses requests based on their header before they reach a protocol's handlers, and implements CORS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from backline.access.access import Access
from backline.access.browsers import BrowserPolicy
from backline.access.restricted import Api, RestrictedApis
from backline.access.scope import Scope
from backline.wire.application import (
    Buffer,
    Certificate,
    Denial,
    Fields,
    Gate,
    HttpRequest,
    Ingress,
    ResponseStream,
    WebSocket,
)
from backline.wire.connection import RETRY_AFTER
from backline_client.values.errors import BacklineError, Forbidden, Unavailable

#: The maximum number of cached Host values that name this server, and also of those that do not. Clients
#: choose the values.
_MAX_HOSTS = 64
#: How long a browser may cache a preflight response, in seconds.
_MAX_AGE = b"600"
_METHODS = b"GET, HEAD, POST, PUT, DELETE"


#: The fields of a response that asks for credentials (RFC 6750, section 3).
CHALLENGE: Fields = ((b"www-authenticate", b'Bearer realm="backline"'),)


METRICS_ONLY = "this port serves only metrics and health checks, because it has no TLS; use another port"


def route_of(method: bytes, path: bytes) -> str:
    """Formats a route for error texts and the log, such as "GET /v2/models"."""
    return f"{method[:32].decode('latin-1')} {path[:512].decode(errors='replace')}"


class AccessTarget(NamedTuple):
    """The scope that a route or gRPC method requires, and the model that a request concerns. The model is
    None if a request concerns the server or several models, and ANY_MODEL if the name is not known yet.
    """

    scope: Scope
    model: str | None = None
    #: The group to which the route belongs in Triton's options for restricted APIs.
    api: Api | None = None
    grpc: bool = False


def _nobody_asks(denial: Denial, route: str, model: str | None, peer: str) -> None:
    """Does nothing: the default of `on_refused`."""


class ScopeGate(Gate):
    """A gate that checks whether a request may use its route. Requests for unknown routes pass the gate, and
    the router refuses them.

    Without `access`, callers need no credentials, but web pages of other origins are kept out. With `access`,
    a request with a key or token may come from any page and have any Host, because a page can only send a
    credential that it knows.
    """

    def __init__(
        self,
        policy: BrowserPolicy,
        target_of: Callable[[bytes, bytes], AccessTarget | None],
        access: Access | None = None,
        on_refused: Callable[[Denial, str, str | None, str], None] = _nobody_asks,
        restricted: RestrictedApis | None = None,
    ) -> None:
        """`on_refused` is called with each denial, the route, its model and the client's address."""
        self._restricted = restricted
        self._on_refused = on_refused
        self._policy = policy
        self._target_of = target_of
        self._access = access
        self.own_hosts = set()
        self._others: set[bytes] = set()

    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], ingress: Ingress
    ) -> Denial | None:
        if self._access is None and self._restricted is None:
            self._learn(headers.get(b"host", b""))
        target = self._target_of(method, path)
        if target is None:
            return None
        if ingress.metrics_only and target.scope not in (Scope.METRICS, Scope.HEALTH):
            return Denial(Forbidden.http_status, Forbidden.grpc_code, METRICS_ONLY)
        if self._restricted is not None:
            restriction = self._restricted.refusal(target.api, headers, grpc=target.grpc)
            if restriction is not None:
                return Denial(Forbidden.http_status, Unavailable.grpc_code, restriction)
        ambient, name = True, ""
        if self._access is not None:
            try:
                identity = self._access.identify(headers, ingress)
                name = identity.name
                identity.require(target.scope, target.model)
            except BacklineError as error:
                fields = {401: CHALLENGE, 503: RETRY_AFTER}.get(error.http_status, ())
                return Denial(error.http_status, error.grpc_code, error.public_message, fields, name)
            ambient = identity.ambient
        reason = self._policy.refusal(target.scope, headers, local=ingress.local) if ambient else None
        return None if reason is None else Denial(Forbidden.http_status, Forbidden.grpc_code, reason)

    def refused(self, denial: Denial, method: bytes, path: bytes, peer: str) -> None:
        target = self._target_of(method, path)
        self._on_refused(denial, route_of(method, path), None if target is None else target.model, peer)

    def sharing(self, headers: Mapping[bytes, bytes]) -> Fields:
        return self._policy.sharing(headers)

    def _learn(self, host: bytes) -> None:
        """Adds the value of a Host field to `own_hosts` if the value names this server."""
        if host not in self.own_hosts and host not in self._others:
            known = self.own_hosts if self._policy.hosts.include(host) else self._others
            if len(known) >= _MAX_HOSTS:
                known.clear()
            known.add(host)


class CrossOrigin:
    """Wraps the HTTP handler `http`, so that web pages of the origins that `policy` allows can use it.

    Responds to preflight requests and adds access-control fields to responses.
    """

    def __init__(self, http: Callable[[HttpRequest], None], policy: BrowserPolicy) -> None:
        self._http = http
        self._policy = policy

    def __call__(self, request: HttpRequest) -> None:
        shared = self._policy.sharing(request.headers)
        if not shared:
            self._http(request)
            return
        if request.method == b"OPTIONS" and b"access-control-request-method" in request.headers:
            fields = [
                *shared,
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-max-age", _MAX_AGE),
            ]
            wanted = request.headers.get(b"access-control-request-headers")
            if wanted is not None:
                fields.append((b"access-control-allow-headers", wanted))
            request.respond(204, fields)
        else:
            self._http(_SharedRequest(request, shared))


class WrappedRequest(HttpRequest):
    """A request that wraps another one. Subclasses can change the response."""

    __slots__ = ("_inner",)

    def __init__(self, inner: HttpRequest) -> None:
        self._inner = inner
        super().__init__(inner.method, inner.path, inner.query, inner.headers, inner.body)
        self.identity, self.error_form = inner.identity, inner.error_form
        inner.body = b""  # so that the handler can free the body by dropping its own reference
        inner.on_abandon = self._disconnected

    def _disconnected(self) -> None:
        if self.on_abandon is not None:
            self.on_abandon()

    @property
    def peer(self) -> str:
        return self._inner.peer

    @property
    def certificate(self) -> Certificate | None:
        return self._inner.certificate

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        self.on_abandon = None
        self._inner.respond(status, fields, body, compressible=compressible)

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        return self._inner.stream(status, fields)

    def count_as_stream(self) -> None:
        self._inner.count_as_stream()

    def accept_websocket(self, protocol: bytes = b"") -> WebSocket | None:
        return self._inner.accept_websocket(protocol)


class _SharedRequest(WrappedRequest):
    """A request whose response gets the header fields `shared` in addition to its own."""

    __slots__ = ("_shared",)

    def __init__(self, inner: HttpRequest, shared: Fields) -> None:
        self._shared = shared
        super().__init__(inner)

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        super().respond(status, (*fields, *self._shared), body, compressible=compressible)

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        return self._inner.stream(status, (*fields, *self._shared))
