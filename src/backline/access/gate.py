"""What stands between wire and dialects: the gate, which refuses requests by their header, and CORS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from backline.access.browsers import BrowserPolicy
from backline.access.scope import Scope
from backline.wire.application import Buffer, Fields, Gate, HttpRequest, ResponseStream

#: The maximum number of Host values cached as known, and as unknown. Clients may send any number of values.
_MAX_HOSTS = 64
#: How many seconds a browser may cache a preflight response.
_MAX_AGE = b"600"
_METHODS = b"GET, HEAD, POST, PUT, DELETE"


class ScopeGate(Gate):
    """Applies a browser policy to each request, by the scope of its route.

    A request that matches no route passes, and a dialect responds with 404.
    """

    def __init__(self, policy: BrowserPolicy, scope_of: Callable[[bytes, bytes], Scope | None]) -> None:
        self._policy = policy
        self._scope_of = scope_of
        self.own_hosts = set()
        self._others: set[bytes] = set()

    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], *, local: bool
    ) -> str | None:
        host = headers.get(b"host", b"")
        if host not in self.own_hosts and host not in self._others:
            known = self.own_hosts if self._policy.hosts.include(host) else self._others
            if len(known) >= _MAX_HOSTS:
                known.clear()
            known.add(host)
        scope = self._scope_of(method, path)
        return None if scope is None else self._policy.refusal(scope, headers, local=local)


class CrossOrigin:
    """Wraps the HTTP handler `http` so that web pages of the allowed `origins` can use it.

    It responds to preflight requests and adds access-control fields to responses (Fetch standard, "HTTP-CORS
    protocol"). Credentials are not allowed, so "*" exposes all response fields, such as those that separate
    binary tensors from JSON.
    """

    def __init__(self, http: Callable[[HttpRequest], None], origins: frozenset[bytes]) -> None:
        self._http = http
        self._origins = origins

    def __call__(self, request: HttpRequest) -> None:
        origin = request.headers.get(b"origin")
        if origin is None or origin not in self._origins:
            self._http(request)
            return
        shared = ((b"access-control-allow-origin", origin), (b"vary", b"origin"))
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
            self._http(_SharedRequest(request, (*shared, (b"access-control-expose-headers", b"*"))))


class _SharedRequest(HttpRequest):
    """A request that adds fields to its response."""

    __slots__ = ("_inner", "_shared")

    def __init__(self, inner: HttpRequest, shared: Fields) -> None:
        self._inner = inner
        self._shared = shared
        super().__init__(inner.method, inner.path, inner.query, inner.headers, inner.body)
        inner.body = b""  # leaves one reference to the body, which the handler may drop
        inner.on_abandon = self._disconnected

    def _disconnected(self) -> None:
        if self.on_abandon is not None:
            self.on_abandon()

    @property
    def peer(self) -> str:
        return self._inner.peer

    def respond(self, status: int, fields: Fields, body: Sequence[Buffer] = ()) -> None:
        self.on_abandon = None
        self._inner.respond(status, (*fields, *self._shared), body)

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        return self._inner.stream(status, (*fields, *self._shared))
