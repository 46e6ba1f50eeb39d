"""The application that every listener serves: all dialects together."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cache, cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec.structs import replace

from backline.access.access import AUTHORIZATION, Access
from backline.access.browsers import BrowserPolicy
from backline.access.gate import AccessTarget, CrossOrigin, ScopeGate, route_of
from backline.access.identity import ANY_MODEL, Identity
from backline.access.restricted import RestrictedApis, api_of_method
from backline.access.scope import CHANGING, EVERYBODY, Scope
from backline.dialects.answers import fail_call, hidden_error, render_error, respond_error
from backline.dialects.audit import Audit, AuditedIdentity
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.forwarding import NOTHING_FORWARDED, Forwarding
from backline.dialects.open_inference.grpc.wire_format import model_name
from backline.dialects.open_inference.rest.service import RestService
from backline.dialects.router import MAX_REMEMBERED_SIZE, Handler, MethodNotAllowed, Router
from backline.engine.engine import Engine
from backline.observe.recording import Recorder
from backline.observe.scaling import ScalingSignal
from backline.wire.application import (
    Application,
    Buffer,
    Call,
    HttpRequest,
    RpcError,
    StreamCall,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)
from backline_client.values.errors import BacklineError, Unavailable
from backline_client.values.memo import Memo

if TYPE_CHECKING:
    from backline.dialects.body_limits import BodyLimits

#: Returns the content type of the metrics page, and its text in pieces.
Page: TypeAlias = Callable[[], Coroutine[Any, Any, tuple[bytes, Sequence[Buffer]]]]
#: Refuses pages of other origins, and knows no host names except those of the loopback address.
_LOOPBACK_ONLY = BrowserPolicy()


def build_application(
    engine: Engine,
    metrics: Page | None = None,
    *,
    scaling: Callable[[], ScalingSignal] | None = None,
    recorder: Recorder | None = None,
    not_ready_status: int = Unavailable.http_status,
    browsers: BrowserPolicy = _LOOPBACK_ONLY,
    access: Access | None = None,
    console: bool = True,
    frame_ancestors: Sequence[str] = (),
    restricted: RestrictedApis | None = None,
    forwarding: Forwarding = NOTHING_FORWARDED,
) -> Application:
    """Returns the application that serves an engine. With a `recorder`, clients can record requests.

    `metrics` produces the response to GET /metrics, on every port, and `scaling` the signal for autoscalers.
    `not_ready_status` is the HTTP status of a failed health check: 503, or Triton's 400 for clients that rely
    on that status. `browsers` limits what web pages may do, and `access` what each caller may do; without
    `access`, every caller may do everything. `restricted` names the APIs that need a header field, and
    `forwarding` says which fields models see as parameters. With `console`, browsers get the console; pages
    from the origins in `frame_ancestors` may show it in a frame.
    """
    audit = Audit(engine, lambda method, path: _model_at(router, method, path))
    router = Router(audit.route)
    deferred = DeferredAnswers(engine)
    RestService(engine, deferred, not_ready_status=not_ready_status, forward=forwarding.http).add_routes(
        router
    )
    if metrics is not None:
        router.add(Scope.METRICS, "GET", "/metrics", _metrics_page(metrics, deferred))

    def add_other_dialects(router: Router) -> None:
        from backline.dialects.open_inference.settings import RecordingRoutes
        from backline.plugins.dialects.console.examples import Examples
        from backline.plugins.dialects.console.service import ConsoleService
        from backline.plugins.dialects.openapi.service import OpenApiService
        from backline.plugins.dialects.plain.service import PlainService
        from backline.plugins.dialects.plain.sockets import SocketService

        PlainService(engine, deferred).add_routes(router)
        SocketService(engine).add_routes(router)
        OpenApiService(engine, deferred).add_routes(router)
        ConsoleService(engine, deferred, with_page=console, frame_ancestors=frame_ancestors).add_routes(
            router
        )
        Examples(engine, deferred, recorder).add_routes(router)
        if recorder is not None:
            RecordingRoutes(recorder, deferred).add_routes(router)

    router.add_later(add_other_dialects)
    rpc = _LateMethods(lambda: _grpc_methods(engine, deferred, forwarding, access, audit, scaling, limits))

    def target_of(method: bytes, path: bytes) -> AccessTarget | None:
        target = rpc.targets.get(path) if _may_be_grpc(path) else None
        return target or router.target(method, path)

    def may_infer(call: Call, model: str) -> bool:
        try:
            return access is None or access.identify(call.metadata, call).may(Scope.INFER, model)
        except BacklineError:
            return False

    @cache
    def limits() -> BodyLimits:
        # Imported late, because few servers receive large bodies.
        from backline.dialects.body_limits import BodyLimits

        return BodyLimits(engine, router, target_of, may_infer)

    http: Callable[[HttpRequest], None] = _HttpHandler(router)
    if access is not None:
        http = _IdentifyingHandler(router, access, audit)

    return Application(
        http=CrossOrigin(http, browsers) if browsers.origins else http,
        rpc=rpc,
        render_error=render_error,
        gate=ScopeGate(browsers, target_of, access, audit.denied, restricted),
        is_vital=_is_vital,
        keeps_spelling=forwarding.http is not None,
        takes_websocket=_takes_websocket,
        body_limit=lambda method, path: limits().of_route(method, path),
    )


def _grpc_methods(
    engine: Engine,
    deferred: DeferredAnswers,
    forwarding: Forwarding,
    access: Access | None,
    audit: Audit,
    scaling: Callable[[], ScalingSignal] | None,
    limits: Callable[[], BodyLimits],
) -> tuple[dict[bytes, AccessTarget], _Methods]:
    """Returns the targets and the methods by gRPC path."""
    # Imported late, so that a server with only HTTP clients starts sooner and needs less memory.
    from backline.dialects.open_inference.grpc.service import SERVICE, InferenceService
    from backline.dialects.standard_services import (
        EXTERNAL_SCALER,
        HEALTH,
        REFLECTION,
        ExternalScaler,
        HealthService,
        ReflectionService,
    )

    services = (SERVICE, HEALTH, REFLECTION, *(() if scaling is None else (EXTERNAL_SCALER,)))
    rpc = {
        **({} if scaling is None else ExternalScaler(scaling).methods()),
        **InferenceService(engine, deferred, forwarding.grpc).methods(),
        **HealthService(engine, services).methods(),
        **ReflectionService(services).methods(),
    }
    targets = {
        path: _target(method)._replace(api=api_of_method(path), grpc=True) for path, method in rpc.items()
    }
    rpc = {path: _audited(path, method, audit) for path, method in rpc.items()}
    if access is not None:
        rpc = {path: _identifying(path, method, access, audit) for path, method in rpc.items()}
    return targets, {path: _bounded(method, limits) for path, method in rpc.items()}


_Methods: TypeAlias = Mapping[bytes, UnaryMethod | StreamMethod]


def _may_be_grpc(path: bytes) -> bool:
    """Returns whether a path has the form /package.Service/Method, which no HTTP route has."""
    service, _, method = path[1:].partition(b"/")
    return b"." in service and bool(method)


class _LateMethods(_Methods):
    """The gRPC methods by path, created at the first gRPC call."""

    def __init__(self, make: Callable[[], tuple[Mapping[bytes, AccessTarget], _Methods]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> tuple[Mapping[bytes, AccessTarget], _Methods]:
        return self._make()

    @property
    def targets(self) -> Mapping[bytes, AccessTarget]:
        """For the access check: the scope that each method requires, and the model that it concerns."""
        return self._made[0]

    def __getitem__(self, path: bytes) -> UnaryMethod | StreamMethod:
        return self._made[1][path]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._made[1])

    def __len__(self) -> int:
        return len(self._made[1])


#: Methods and paths that are served under any load, so that orchestrators and load balancers do not mistake
#: load for failure.
_VITAL_CALLS = frozenset(
    (
        b"/grpc.health.v1.Health/Check",
        b"/inference.GRPCInferenceService/ServerLive",
        b"/inference.GRPCInferenceService/ServerReady",
        b"/inference.GRPCInferenceService/ModelReady",
    )
)
_VITAL_PAGE = re.compile(
    rb"/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready|/metrics"
).fullmatch


def _takes_websocket(path: bytes) -> bool:
    """Returns whether a path belongs to SocketService.

    The service is created at the first request to such a path.
    """
    return path.startswith(b"/models/") and path.endswith(b"/stream")


def _is_vital(method: bytes, path: bytes) -> bool:
    if method == b"POST":
        return path in _VITAL_CALLS
    return method in (b"GET", b"HEAD") and _VITAL_PAGE(path) is not None


class _HttpHandler:
    """The handler of every HTTP request. It never raises an exception."""

    def __init__(self, router: Router) -> None:
        self._resolve = self._handler_of = router.resolve

    def __call__(self, request: HttpRequest) -> None:
        try:
            self._handler_of(request)(request)
        except MethodNotAllowed as error:
            respond_error(request, error, [(b"allow", error.allow)])
        except BacklineError as error:
            request.on_abandon = None
            respond_error(request, error)
        except Exception as error:
            request.on_abandon = None
            respond_error(request, hidden_error("an HTTP request", error))


class _IdentifyingHandler(_HttpHandler):
    """A handler that also checks the caller. The gate's check is not enough, because the wire does not repeat
    it for later requests with the same head, and a key may have expired in the meantime.
    """

    def __init__(self, router: Router, access: Access, audit: Audit) -> None:
        super().__init__(router)
        self._audit = audit
        self._target = router.target
        self._identify = access.identify
        #: The identity and the handler of each request that may be repeated without another check, by its
        #: credential or its identity, its method and its path.
        self._admitted: Memo[Any, tuple[Identity, Handler]] = access.memo()
        self._handler_of = self._admit

    def _admit(self, request: HttpRequest) -> Handler:
        """Admits the caller of a request and returns the handler.

        Raises BacklineError if the caller is refused.
        """
        known = self._admitted.get((request.headers.get(AUTHORIZATION), request.method, request.path))
        if known is None:
            handler, metered = self._check(request)
            if not metered:
                return handler
            identity = request.identity
        else:
            identity, handler = known
            request.identity = identity
        meter = identity.meter
        if meter is not None:
            only, size = meter.only, len(request.body)
            if (
                only is not None and only.paid >= 1 and only.paid_bytes >= size and only.in_flight < only.most
            ):  # inlines Meter.charge, for speed
                only.paid -= 1
                only.paid_bytes -= size
                return handler
            model = None
            if meter.by_model and (target := self._target(request.method, request.path)) is not None:
                model = target.model
            meter.charge(model, size, monotonic())
        return handler

    def _check(self, request: HttpRequest) -> tuple[Handler, bool]:
        """Sets the identity of a request. Returns the handler, and whether the request counts against quotas.

        Raises BacklineError if the caller is refused.
        """
        method, path = request.method, request.path
        try:
            identity = request.identity = self._identify(request.headers, request)
        except BacklineError as error:
            target = self._target(method, path)
            if target is None:
                return self._resolve(request), False  # raises the error for an unknown route
            self._audit.refused(request, route_of(method, path), target.model, error)
            raise
        known = self._admitted.get((identity, method, path))
        if known is not None:
            return known[1], True
        target = self._target(method, path)
        handler = self._resolve(request)
        if target is None:
            return handler, False
        try:
            identity.require(target.scope, target.model)
        except BacklineError as error:
            self._audit.refused(request, route_of(method, path), target.model, error)
            raise
        if target.scope in EVERYBODY:
            return handler, False
        given = request.headers.get(AUTHORIZATION, b"")
        if identity.lasts and len(path) <= MAX_REMEMBERED_SIZE and len(given) <= MAX_REMEMBERED_SIZE:
            # A request without a key or token may come from any certificate's holder, so these are remembered
            # by their identity only.
            self._admitted.keep((given or identity, method, path), (identity, handler))
        return handler, True


def _target(method: UnaryMethod | StreamMethod) -> AccessTarget:
    """Returns the target of calls to a gRPC method. The path shows the scope, but not the name of a model."""
    scope = Scope(method.scope)
    named = (
        scope is Scope.INFER
        or method.lists
        or (isinstance(method, UnaryMethod) and method.model_of is not None)
    )
    return AccessTarget(scope, ANY_MODEL if named else None)


def _model_at(router: Router, method: bytes, path: bytes) -> str | None:
    target = router.target(method, path)
    return None if target is None else target.model


def _audited(path: bytes, method: UnaryMethod | StreamMethod, audit: Audit) -> UnaryMethod | StreamMethod:
    changes = isinstance(method, UnaryMethod) and Scope(method.scope) in CHANGING
    return audit.method(path, method) if changes else method  # type: ignore[arg-type]


def _identifying(
    path: bytes, method: UnaryMethod | StreamMethod, access: Access, audit: Audit
) -> UnaryMethod | StreamMethod:
    """Wraps a method so that it also checks the caller. Inference messages are checked when they are read."""
    if isinstance(method, UnaryMethod):
        return _identifying_unary(path, method, access, audit)
    scope, model, *_ = _target(method)
    handler = method.handler

    async def serve(call: StreamCall) -> None:
        try:
            identity = call.identity = access.identify(call.metadata, call)
            identity.require(scope, model)
        except BacklineError as error:
            audit.refused(call, path.decode(), model, error)
            raise RpcError(error.grpc_code, error.public_message) from None
        call.identity = AuditedIdentity(identity, audit, call, path.decode())
        await handler(call)

    return replace(method, handler=serve)


def _identifying_unary(path: bytes, method: UnaryMethod, access: Access, audit: Audit) -> UnaryMethod:
    identify, admitted = access.identify, access.memo()
    scope, model, *_ = _target(method)
    handler, model_of = method.handler, method.model_of
    unnamed = ANY_MODEL if method.lists else None
    name_of: Callable[[Buffer], str | None] = model_of or (lambda _: None)
    infers = scope is Scope.INFER
    metered = scope is not Scope.HEALTH
    if infers:
        name_of = model_name

    def check(call: UnaryCall, received: Buffer) -> Identity:
        identity: Identity = identify(call.metadata, call)
        call.identity = identity
        if admitted.get(identity) is None:
            identity.require(scope, model if model_of is None else model_of(received) or unnamed)
            if infers and not identity.infers_all:
                identity.require(scope, model_name(received))
            elif model_of is None and identity.lasts:
                # As in `_IdentifyingHandler._check`: without a key or token, only the identity is remembered.
                given = call.metadata.get(AUTHORIZATION, b"")
                if len(given) <= MAX_REMEMBERED_SIZE:
                    admitted.keep(given or identity, identity)
        return identity

    def handle(call: UnaryCall, received: Buffer) -> None:
        try:
            identity = admitted.get(call.metadata.get(AUTHORIZATION))
            if identity is None:
                identity = check(call, received)
            else:
                call.identity = identity
            meter = identity.meter
            if meter is not None and metered:
                only, size = meter.only, len(received)
                if (
                    only is not None
                    and only.paid >= 1
                    and only.paid_bytes >= size
                    and only.in_flight < only.most
                ):  # inlines Meter.charge, for speed
                    only.paid -= 1
                    only.paid_bytes -= size
                else:
                    meter.charge(name_of(received) if meter.by_model else None, size, monotonic())
        except BacklineError as error:
            audit.refused(call, path.decode(), model_name(received) if infers else None, error)
            fail_call(call, error)
        else:
            handler(call, received)

    return replace(method, handler=handle)


def _bounded(
    method: UnaryMethod | StreamMethod, limits: Callable[[], BodyLimits]
) -> UnaryMethod | StreamMethod:
    """Wraps a method so that BodyLimits limits the size of its large messages."""
    return replace(method, limit_of=lambda call, beginning: limits().of_message(method, call, beginning))


def _metrics_page(page: Page, deferred: DeferredAnswers) -> Handler:
    def answer(request: HttpRequest) -> None:
        deferred.answer(
            request,
            page(),
            lambda told: request.respond(200, [(b"content-type", told[0])], told[1], compressible=True),
        )

    return answer
