"""The Open Inference Protocol over REST: its routes, without inference itself."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from backline.dialects.answers import respond_json
from backline.dialects.open_inference.configuration import configuration_json, model_configuration
from backline.dialects.open_inference.metadata import model_index, model_metadata, server_metadata
from backline.dialects.open_inference.rest_inference import RestInference
from backline.dialects.open_inference.statistics import model_statistics
from backline.dialects.router import Router
from backline.engine.engine import Engine, ModelState
from backline.engine.errors import InvalidArgument, Unsupported
from backline.wire.application import HttpRequest

_MODEL = "/v2/models/{}"
_VERSION = "/v2/models/{}/versions/{}"
#: Parts of the protocol's extensions that are known, but not served.
_UNSUPPORTED = {
    "shared memory": (
        ("GET", "/v2/{kind}sharedmemory/status"),
        ("GET", "/v2/{kind}sharedmemory/region/{}/status"),
        ("POST", "/v2/{kind}sharedmemory/region/{}/register"),
        ("POST", "/v2/{kind}sharedmemory/region/{}/unregister"),
        ("POST", "/v2/{kind}sharedmemory/unregister"),
    ),
    "loading and unloading models by request": (
        ("POST", "/v2/repository/models/{}/load"),
        ("POST", "/v2/repository/models/{}/unload"),
        ("POST", "/v2/repository/{}/models/{}/load"),
        ("POST", "/v2/repository/{}/models/{}/unload"),
    ),
    "tracing": (
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/trace/setting"),
        ("GET", "/v2/models/{}/trace/setting"),
        ("POST", "/v2/models/{}/trace/setting"),
    ),
    "changing the log by request": (("GET", "/v2/logging"), ("POST", "/v2/logging")),
    "the generate extension": (
        ("POST", _MODEL + "/generate"),
        ("POST", _MODEL + "/generate_stream"),
        ("POST", _VERSION + "/generate"),
        ("POST", _VERSION + "/generate_stream"),
    ),
}


class IndexQuery(Struct):
    ready: bool = False


class RestService:
    """The handlers of the routes. `not_ready_status` is the status of health questions whose answer is no."""

    def __init__(self, engine: Engine, *, not_ready_status: int) -> None:
        self._engine = engine
        self._not_ready_status = not_ready_status
        self._inference = RestInference(engine)
        self._index_decoder = msgspec.json.Decoder(IndexQuery)

    def add_routes(self, router: Router) -> None:
        router.add("GET", "/v2", self._server_metadata)
        router.add("GET", "/v2/health/live", self._live)
        router.add("GET", "/v2/health/ready", self._ready)
        router.add("GET", "/v2/models", self._models)
        router.add("GET", "/v2/models/stats", self._statistics, "", "")
        for pattern, version in ((_MODEL, ("",)), (_VERSION, ())):
            router.add("GET", pattern, self._model_metadata, *version)
            router.add("GET", pattern + "/ready", self._model_ready, *version)
            router.add("GET", pattern + "/config", self._configuration, *version)
            router.add("GET", pattern + "/stats", self._statistics, *version)
            router.add("POST", pattern + "/infer", self._inference.infer, *version)
        for method in ("GET", "POST"):
            router.add(method, "/v2/repository/index", self._index)
            router.add(method, "/v2/repository/{}/index", self._named_index)
        for what, routes in _UNSUPPORTED.items():
            for method, pattern in routes:
                for kind in ("system", "cuda") if "{kind}" in pattern else ("",):
                    router.add(method, pattern.replace("{kind}", kind), _unsupported(what))

    def _server_metadata(self, request: HttpRequest) -> None:
        respond_json(request, server_metadata())

    def _live(self, request: HttpRequest) -> None:
        self._respond_health(request, self._engine.live)

    def _ready(self, request: HttpRequest) -> None:
        self._respond_health(request, self._engine.ready)

    def _respond_health(self, request: HttpRequest, good: bool) -> None:
        document = {"live": self._engine.live, "ready": self._engine.ready}
        respond_json(request, document, 200 if good else self._not_ready_status)

    def _models(self, request: HttpRequest) -> None:
        """The names, as KServe lists them; beside them the states of all versions."""
        index = model_index(self._engine, only_ready=False)
        names = list(dict.fromkeys(entry["name"] for entry in index))
        respond_json(request, {"models": names, "versions": [entry for entry in index if "version" in entry]})

    def _model_metadata(self, name: str, version: str, request: HttpRequest) -> None:
        respond_json(request, model_metadata(self._engine, name, version))

    def _model_ready(self, name: str, version: str, request: HttpRequest) -> None:
        model = self._engine.find(name, version)
        if model.state is ModelState.READY:
            respond_json(request, {"name": name, "ready": True})
            return
        why = f": {model.reason}" if model.reason else ""
        error = f"Model version not ready: '{name}' version {model.version} is {model.state.value}{why}"
        respond_json(request, {"name": name, "ready": False, "error": error}, self._not_ready_status)

    def _configuration(self, name: str, version: str, request: HttpRequest) -> None:
        respond_json(request, configuration_json(model_configuration(self._engine, name, version)))

    def _statistics(self, name: str, version: str, request: HttpRequest) -> None:
        respond_json(request, model_statistics(self._engine, name, version))

    def _index(self, request: HttpRequest) -> None:
        query = IndexQuery()
        if request.method == b"POST" and request.body:
            try:
                query = self._index_decoder.decode(request.body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidArgument(f"failed to parse the request JSON: {error}") from None
            except RecursionError:
                raise InvalidArgument("failed to parse the request JSON: it is nested too deeply") from None
        respond_json(request, model_index(self._engine, only_ready=query.ready))

    def _named_index(self, _: str, request: HttpRequest) -> None:
        raise Unsupported("'repository_name' specification is not supported")


def _unsupported(what: str) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise Unsupported(f"{what} is not supported by this server")

    return refuse
