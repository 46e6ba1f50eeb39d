"""The REST routes of the Open Inference Protocol, and unary inference over REST."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import encode_json, respond_encoded, respond_json
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.exchange import ENVOY_TIMEOUT, GRPC_TIMEOUT, HTTP, UnaryInference, deadline_of
from backline.dialects.forwarding import ForwardPattern
from backline.dialects.off_loop import OffLoop
from backline.dialects.open_inference.metadata import (
    model_listing,
    rest_metadata,
    server_metadata,
    visible_to,
)
from backline.dialects.open_inference.rest.messages import HEADER_LENGTH, RestReader
from backline.dialects.open_inference.rest.response_writer import RestWriter
from backline.dialects.open_inference.statistics import model_statistics
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.wire.application import HttpRequest
from backline_client.protos import to_plain
from backline_client.values.errors import NotFound
from backline_client.values.private_places import for_clients
from backline_client.values.tensor import in_pieces

#: Triton's error text for decoupled models.
_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


class RestInference:
    """The handler of the infer routes. The reader and the writer are also used for `infer_stream`."""

    def __init__(
        self, engine: Engine, deferred: DeferredAnswers, forward: ForwardPattern | None = None
    ) -> None:
        """`forward` says which header fields models see as parameters."""
        self._engine = engine
        self._deferred = deferred
        self.write = RestWriter(engine).write
        self.read = RestReader(engine).read
        self.carrier = replace(HTTP, forward=forward)
        self._take = UnaryInference(
            engine, self.carrier, self.read, self.write, OffLoop(), decoupled=_DECOUPLED
        ).take

    def infer(self, model: str, version: str, request: HttpRequest) -> None:
        """Submits a request; the response follows later. Raises BacklineError if the request is refused
        immediately.
        """
        headers = request.headers
        deadline = deadline_of(headers) if GRPC_TIMEOUT in headers or ENVOY_TIMEOUT in headers else None
        # A raw request cannot be read without knowing the model's input.
        if headers.get(HEADER_LENGTH) == b"0" and self._engine.is_unknown(model, version):
            self._deferred.when_known(model, version, request, partial(self.infer, model, version, request))
            return
        self._take(request, request.body, headers, model, version, deadline)


#: Triton's status for failed health checks.
_TRITON_NOT_READY = 400
_MODEL = "/v2/models/{}"
_VERSION = "/v2/models/{}/versions/{}"


class RestService:
    """Registers the REST routes. `not_ready_status` is the HTTP status of failed health checks.

    Triton's status, 400, makes all health checks behave as in Triton: an unknown model counts as not ready,
    and responses have no body except for the reason why a model is not ready.
    """

    def __init__(
        self,
        engine: Engine,
        deferred: DeferredAnswers,
        *,
        not_ready_status: int,
        forward: ForwardPattern | None = None,
    ) -> None:
        self._engine = engine
        self._not_ready_status = not_ready_status
        self._as_triton = not_ready_status == _TRITON_NOT_READY
        self._deferred = deferred
        self._inference = RestInference(engine, deferred, forward)

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", "/v2", self._server_metadata)
        router.add(Scope.HEALTH, "GET", "/v2/health/live", self._live)
        router.add(Scope.HEALTH, "GET", "/v2/health/ready", self._ready)
        router.add(Scope.READ, "GET", "/v2/models", self._models, lists=True)
        router.add(Scope.READ, "GET", "/v2/models/stats", self._statistics, "", "", lists=True)
        for pattern, version in ((_MODEL, ("",)), (_VERSION, ())):
            router.add(Scope.READ, "GET", pattern, self._model_metadata, *version)
            router.add(Scope.READ, "GET", pattern + "/ready", self._model_ready, *version)
            for path, explained in (("config", False), ("explain-config", True)):
                answer = partial(self._configuration, explained)
                router.add(Scope.READ, "GET", f"{pattern}/{path}", answer, *version)
            router.add(Scope.READ, "GET", pattern + "/config-origins", self._origins, *version)
            router.add(Scope.READ, "GET", pattern + "/stats", self._statistics, *version)
            router.add(Scope.INFER, "POST", pattern + "/infer", self._inference.infer, *version)
        router.add_later(self._add_extensions)

    def _add_extensions(self, router: Router) -> None:
        from backline.dialects.open_inference.repository import RepositoryRoutes
        from backline.dialects.open_inference.rest.generate import Generate
        from backline.dialects.open_inference.settings import LoggingExtension, TraceSettings
        from backline.dialects.open_inference.shared_memory import SharedMemoryRoutes

        generate = Generate(self._engine, self._deferred, self._inference)
        for pattern, version in ((_MODEL, ("",)), (_VERSION, ())):
            router.add(Scope.INFER, "POST", pattern + "/infer_stream", generate.infer_stream, *version)
            router.add(Scope.INFER, "POST", pattern + "/generate", generate.generate, *version)
            router.add(Scope.INFER, "POST", pattern + "/generate_stream", generate.generate_stream, *version)
        RepositoryRoutes(self._engine, self._deferred).add_routes(router)
        SharedMemoryRoutes(self._engine).add_routes(router)
        LoggingExtension(self._engine).add_routes(router)
        TraceSettings(self._engine).add_routes(router)

    def _server_metadata(self, request: HttpRequest) -> None:
        respond_json(request, server_metadata(self._engine))

    def _live(self, request: HttpRequest) -> None:
        self._respond_health(request, self._engine.live)

    def _ready(self, request: HttpRequest) -> None:
        self._respond_health(request, self._engine.ready)

    def _respond_health(self, request: HttpRequest, good: bool) -> None:
        status = 200 if good else self._not_ready_status
        if self._as_triton:
            request.respond(status, ())
        else:
            respond_json(request, {"live": self._engine.live, "ready": self._engine.ready}, status)

    def _models(self, request: HttpRequest) -> None:
        """Lists the names of the models that the caller may see, as KServe does, and the state of every
        version.
        """
        may_see = visible_to(request.identity)
        names = [name for name in self._engine.names() if may_see(name)]
        respond_json(request, {"models": names, "versions": model_listing(self._engine, may_see)})

    def _model_metadata(self, name: str, version: str, request: HttpRequest) -> None:
        self._deferred.when_known(
            name, version, request, lambda: respond_json(request, rest_metadata(self._engine, name, version))
        )

    def _model_ready(self, name: str, version: str, request: HttpRequest) -> None:
        try:
            model = self._engine.find(name, version)
        except NotFound as error:
            if not self._as_triton:
                raise
            self._respond_unready(name, error.message, request)
            return
        if model.ready:
            if self._as_triton:
                request.respond(200, ())
            else:
                respond_json(request, {"name": name, "ready": True})
            return
        told = for_clients(model.reason or model.unready)
        why = f": {told}" if told else ""
        self._respond_unready(name, f"'{name}' version {model.version} is {model.state.value}{why}", request)

    def _respond_unready(self, name: str, why: str, request: HttpRequest) -> None:
        state = {} if self._as_triton else {"name": name, "ready": False}
        document = {**state, "error": f"Model version not ready: {why}"}
        respond_json(request, document, self._not_ready_status)

    def _configuration(self, explained: bool, name: str, version: str, request: HttpRequest) -> None:
        def respond() -> None:
            # Imported late, because few clients ask for configurations.
            from backline.dialects.open_inference.configuration import (
                explained_configuration,
                model_configuration,
            )

            read = explained_configuration if explained else model_configuration
            respond_json(request, to_plain(read(self._engine, name, version)))

        self._deferred.when_known(name, version, request, respond)

    def _origins(self, name: str, version: str, request: HttpRequest) -> None:
        def respond() -> None:
            from backline.dialects.open_inference.configuration import configuration_origins

            values = configuration_origins(self._engine, name, version)
            respond_json(request, {"name": name, "values": values})

        self._deferred.when_known(name, version, request, respond)

    def _statistics(self, name: str, version: str, request: HttpRequest) -> None:
        may_see = visible_to(request.identity)
        told = map(encode_json, model_statistics(self._engine, name, version, may_see, details=True))

        def answer(models: list[bytes]) -> None:
            respond_encoded(request, b'{"model_stats":[%b]}' % b",".join(models))

        self._deferred.answer(request, in_pieces(told), answer)
