"""The application that every listener serves: all dialects together."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec.structs import replace

from backline.access.access import Access
from backline.access.browsers import BrowserPolicy
from backline.access.gate import AccessTarget, CrossOrigin, ScopeGate
from backline.access.identity import ANY_MODEL
from backline.access.restricted import RestrictedApis, api_of_method
from backline.access.scope import CHANGING, Scope
from backline.dialects.admission import Admission, Operation
from backline.dialects.answers import fail_call, hidden_error, render_error, respond_error
from backline.dialects.audit import Audit, AuditedIdentity
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.forwarding import NOTHING_FORWARDED, Forwarding
from backline.dialects.open_inference.rest.service import RestService
from backline.dialects.plugin import DialectContext, Dialects
from backline.dialects.router import FREE, Handler, MethodNotAllowed, Router
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

if TYPE_CHECKING:
    from backline.dialects.body_limits import BodyLimits

#: Returns the content type of the metrics page, and its text in pieces.
Page: TypeAlias = Callable[[], Coroutine[Any, Any, tuple[bytes, Sequence[Buffer]]]]
Method: TypeAlias = UnaryMethod | StreamMethod
Methods: TypeAlias = Mapping[bytes, Method]
_OPEN_INFERENCE = b"/inference.GRPCInferenceService/"
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
    dialects: tuple[str, ...] | None = None,
    default_model: str = "",
    restricted: RestrictedApis | None = None,
    forwarding: Forwarding = NOTHING_FORWARDED,
    state_folder: Path | None = None,
) -> Application:
    """Returns the application that serves an engine. With a `recorder`, clients can record requests.

    `metrics` produces the response to GET /metrics, on every port, and `scaling` the signal for autoscalers.
    `not_ready_status` is the HTTP status of a failed health check: 503, or Triton's 400 for clients that rely
    on that status. `browsers` limits what web pages may do, and `access` what each caller may do; without
    `access`, every caller may do everything. `restricted` names the APIs that need a header field, and
    `forwarding` says which fields models see as parameters. With `console`, browsers get the console; pages
    from the origins in `frame_ancestors` may show it in a frame. `dialects` are the names of the dialects to
    serve besides the Open Inference Protocol; None means all. `default_model` is the model of requests that
    name none; "" means the only one. Dialects may keep files in `state_folder`.
    """
    audit = Audit(engine, lambda method, path: _model_at(router, method, path))
    router = Router(audit.route)
    deferred = DeferredAnswers(engine)
    RestService(engine, deferred, not_ready_status=not_ready_status, forward=forwarding.http).add_routes(
        router
    )
    if metrics is not None:
        router.add(Scope.METRICS, "GET", "/metrics", _metrics_page(metrics, deferred))

    context = DialectContext(
        engine=engine,
        deferred=deferred,
        forwarding=forwarding,
        recorder=recorder,
        pages=console,
        frame_ancestors=tuple(frame_ancestors),
        default_model=default_model,
        state_folder=state_folder,
        replay=_HttpHandler(router, None),
    )
    served = Dialects(context, dialects)
    router.add_later(served.announce_built_in)
    if recorder is not None:
        router.add_later(partial(_add_recording, recorder, deferred))
    router.add_later(served.announce_installed)
    admission = None if access is None else Admission(access, audit)
    rpc = _LateMethods(
        lambda: _core_methods(engine, deferred, forwarding, scaling),
        served.methods_of,
        lambda path, method: _limited(path, _guarded(path, method, access, admission, audit), limits),
    )

    def target_of(method: bytes, path: bytes) -> AccessTarget | None:
        target = rpc.target(path) if _may_be_grpc(path) else None
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

    http: Callable[[HttpRequest], None] = _HttpHandler(router, admission)
    served.resume()

    return Application(
        http=CrossOrigin(http, browsers) if browsers.origins else http,
        rpc=rpc,
        render_error=render_error,
        gate=ScopeGate(browsers, target_of, access, audit.denied, restricted),
        is_vital=_is_vital,
        keeps_spelling=forwarding.http is not None,
        takes_websocket=router.takes_websocket,
        body_limit=lambda method, path: limits().of_route(method, path),
        close=served.close,
    )


def _add_recording(recorder: Recorder, deferred: DeferredAnswers, router: Router) -> None:
    from backline.dialects.open_inference.settings import RecordingRoutes

    RecordingRoutes(recorder, deferred).add_routes(router)


def _core_methods(
    engine: Engine,
    deferred: DeferredAnswers,
    forwarding: Forwarding,
    scaling: Callable[[], ScalingSignal] | None,
) -> Methods:
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
    return {
        **({} if scaling is None else ExternalScaler(scaling).methods()),
        **InferenceService(engine, deferred, forwarding.grpc).methods(),
        **HealthService(engine, services).methods(),
        **ReflectionService(services).methods(),
    }


def _may_be_grpc(path: bytes) -> bool:
    """Returns whether a path has the form /package.Service/Method, which no HTTP route has."""
    service, _, method = path[1:].partition(b"/")
    return b"." in service and bool(method)


class _LateMethods(Methods):
    """The gRPC methods by path. Those of the core are created at the first gRPC call, those of a dialect at
    the first call of one of its services.
    """

    def __init__(
        self,
        make: Callable[[], Methods],
        further: Callable[[str], Methods],
        guard: Callable[[bytes, Method], Method],
    ) -> None:
        """`further` returns the methods of a service that the core does not have. `guard` wraps a method so
        that it does what all methods must.
        """
        self._make = make
        self._further = further
        self._guard = guard
        self._targets: dict[bytes, AccessTarget] = {}
        self._methods: dict[bytes, Method] = {}
        #: The services of dialects whose methods were added, or could not be.
        self._added: set[bytes] = set()

    def _add(self, methods: Methods) -> None:
        for path, method in methods.items():
            self._targets[path] = _target(path, method)
            self._methods[path] = self._guard(path, method)

    def _find(self, path: bytes) -> Method | None:
        if not self._methods:
            self._add(self._make())
        found = self._methods.get(path)
        if found is not None:
            return found
        service = path[1:].partition(b"/")[0]
        try:
            methods = {} if service in self._added else self._further(service.decode())
        except UnicodeDecodeError:
            return None
        except Exception as error:
            hidden_error(f"the gRPC service {service.decode()}", error)
            self._added.add(service)
            return None
        if not methods:
            return None
        self._added.add(service)
        self._add({path: method for path, method in methods.items() if path not in self._methods})
        return self._methods.get(path)

    def target(self, path: bytes) -> AccessTarget | None:
        """For the access check: the scope that a method requires, and the model that it concerns."""
        self._find(path)
        return self._targets.get(path)

    def __getitem__(self, path: bytes) -> Method:
        found = self._find(path)
        if found is None:
            raise KeyError(path)
        return found

    def __iter__(self) -> Iterator[bytes]:
        self._find(b"")
        return iter(self._methods)

    def __len__(self) -> int:
        self._find(b"")
        return len(self._methods)


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


def _is_vital(method: bytes, path: bytes) -> bool:
    if method == b"POST":
        return path in _VITAL_CALLS
    return method in (b"GET", b"HEAD") and _VITAL_PAGE(path) is not None


class _HttpHandler:
    """The handler of every HTTP request. It never raises an exception."""

    def __init__(self, router: Router, admission: Admission | None) -> None:
        self.router = router
        self._resolve = router.resolve
        self._admit = None if admission is None else admission.admit

    def __call__(self, request: HttpRequest) -> None:
        try:
            operation = self._resolve(request)
            if operation.errors is not None:
                request.error_form = operation.errors
            if self._admit is None or operation.target is FREE:
                operation.handler(request)
            else:
                self._admit(request, request.headers, request.body, operation)(request)
        except MethodNotAllowed as error:
            respond_error(request, error, [(b"allow", error.allow)])
        except BacklineError as error:
            request.on_abandon = None
            respond_error(request, error)
        except Exception as error:
            request.on_abandon = None
            respond_error(request, hidden_error("an HTTP request", error))


def _target(path: bytes, method: Method) -> AccessTarget:
    """Returns the target of calls to a gRPC method. The path shows the scope, but not the name of a model."""
    scope = Scope(method.scope)
    if isinstance(method, UnaryMethod):
        named = method.lists or method.model_of is not None
    else:
        named = method.lists or scope is Scope.INFER
    return AccessTarget(scope, ANY_MODEL if named else None, api_of_method(path, scope), grpc=True)


def _model_at(router: Router, method: bytes, path: bytes) -> str | None:
    target = router.target(method, path)
    return None if target is None else target.model


def _guarded(
    path: bytes, method: Method, access: Access | None, admission: Admission | None, audit: Audit
) -> Method:
    """Wraps a method so that it checks the caller and records changes in the audit log. The messages of a
    stream are checked when they are read.
    """
    if isinstance(method, UnaryMethod):
        if Scope(method.scope) in CHANGING:
            method = audit.method(path, method)
        return method if admission is None else _admitting(path, method, admission)
    if access is None:
        return method
    scope, model, *_ = _target(path, method)
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


def _admitting(path: bytes, method: UnaryMethod, admission: Admission) -> UnaryMethod:
    admit = admission.admit
    unnamed = ANY_MODEL if method.lists else None
    operation = Operation(
        method.handler, _target(path, method), path, model_of=method.model_of, unnamed=unnamed
    )

    def handle(call: UnaryCall, received: Buffer) -> None:
        try:
            handler = admit(call, call.metadata, received, operation)
        except BacklineError as error:
            fail_call(call, error)
        else:
            handler(call, received)

    return replace(method, handler=handle)


def _limited(path: bytes, method: Method, limits: Callable[[], BodyLimits]) -> Method:
    """Wraps a method so that BodyLimits limits the size of its large messages.

    Only the messages of the Open Inference Protocol show which model they are for.
    """
    if Scope(method.scope) is Scope.INFER and not path.startswith(_OPEN_INFERENCE):
        return method
    return replace(method, limit_of=lambda call, beginning: limits().of_message(method, call, beginning))


def _metrics_page(page: Page, deferred: DeferredAnswers) -> Handler:
    def answer(request: HttpRequest) -> None:
        deferred.answer(
            request,
            page(),
            lambda told: request.respond(200, [(b"content-type", told[0])], told[1], compressible=True),
        )

    return answer
