"""All dialects together: what a listener serves."""

from __future__ import annotations

from backline.access.browsers import BrowserPolicy
from backline.access.cross_origin import CrossOrigin
from backline.access.gate import ScopeGate
from backline.access.scope import Scope
from backline.dialects import health, reflection
from backline.dialects.answers import hidden_error, render_error, respond_error, respond_json
from backline.dialects.health import HealthService
from backline.dialects.metrics_page import MetricsPage, Page
from backline.dialects.open_inference import grpc_service
from backline.dialects.open_inference.grpc_service import InferenceService
from backline.dialects.open_inference.rest import RestService
from backline.dialects.open_inference.rest_recording import RestRecording
from backline.dialects.reflection import ReflectionService
from backline.dialects.router import MethodNotAllowed, Router
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, Unavailable
from backline.observe.recording import Recorder
from backline.version import __version__
from backline.wire.application import Application, HttpRequest

#: No pages from elsewhere, and no names but those of the loopback.
_LOOPBACK_ONLY = BrowserPolicy()


def build_application(
    engine: Engine,
    metrics: Page | None = None,
    *,
    recorder: Recorder | None = None,
    not_ready_status: int = Unavailable.http_status,
    browsers: BrowserPolicy = _LOOPBACK_ONLY,
) -> Application:
    """The application of an engine; with a `recorder` requests can be recorded.

    `metrics` gives what GET /metrics answers on every port. `not_ready_status` is the HTTP status of health
    questions whose answer is no: 503, or 400 for those who rely on Triton's. `browsers` says what web pages may do.
    """
    router = Router()
    RestService(engine, not_ready_status=not_ready_status).add_routes(router)
    router.add(Scope.READ, "GET", "/", _index_page)
    if recorder is not None:
        RestRecording(engine, recorder).add_routes(router)
    if metrics is not None:
        router.add(Scope.METRICS, "GET", "/metrics", MetricsPage(metrics))
    services = (grpc_service.SERVICE, health.SERVICE, reflection.SERVICE)
    rpc = {
        **InferenceService(engine).methods(),
        **HealthService(engine, services).methods(),
        **ReflectionService(services).methods(),
    }
    http = _HttpHandler(router)

    def scope_of(method: bytes, path: bytes) -> Scope | None:
        called = rpc.get(path)
        return router.scope(method, path) if called is None else Scope(called.scope)

    return Application(
        http=CrossOrigin(http, browsers.origins) if browsers.origins else http,
        rpc=rpc,
        render_error=render_error,
        gate=ScopeGate(browsers, scope_of),
        is_vital=_is_vital,
    )


#: What is answered however busy the server is: whoever restarts or routes around a server by these must not take load for failure.
_VITAL = frozenset(
    (
        b"/v2/health/live",
        b"/v2/health/ready",
        b"/metrics",
        b"/" + health.SERVICE.encode() + b"/Check",
        *(
            f"/{grpc_service.SERVICE}/{method}".encode()
            for method in ("ServerLive", "ServerReady", "ModelReady")
        ),
    )
)


def _is_vital(path: bytes) -> bool:
    """Whether a path is that of a health question or of the metrics."""
    return path in _VITAL or (path.startswith(b"/v2/models/") and path.endswith(b"/ready"))


class _HttpHandler:
    """Answers every HTTP request, and never raises."""

    def __init__(self, router: Router) -> None:
        self._resolve = router.resolve

    def __call__(self, request: HttpRequest) -> None:
        try:
            self._resolve(request)(request)
        except MethodNotAllowed as error:
            respond_error(request, error, [(b"allow", error.allow)])
        except BacklineError as error:
            request.on_disconnect = None
            respond_error(request, error)
        except Exception as error:
            request.on_disconnect = None
            respond_error(request, hidden_error("an HTTP request", error))


def _index_page(request: HttpRequest) -> None:
    respond_json(
        request,
        {
            "name": "backline",
            "version": __version__,
            "urls": {
                "server": "/v2",
                "live": "/v2/health/live",
                "ready": "/v2/health/ready",
                "models": "/v2/models",
                "model": "/v2/models/{model}",
                "infer": "/v2/models/{model}/infer",
                "labels": "/v2/models/{model}/labels",
                "repository": "/v2/repository/index",
                "history": "/v2/repository/history",
                "statistics": "/v2/models/stats",
                "metrics": "/metrics",
            },
        },
    )
