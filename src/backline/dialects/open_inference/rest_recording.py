"""Recording the requests of a model for its warm-up, over REST: begun, looked at, and stopped."""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.open_inference.changes import Changes
from backline.dialects.open_inference.documents import read_document
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.observe.recording import DEFAULT_BYTES, Recorder
from backline.wire.application import HttpRequest

_ROUTE = "/v2/models/{}/record"
_VERSION_ROUTE = "/v2/models/{}/versions/{}/record"


class RecordDocument(Struct, forbid_unknown_fields=True):
    """`count` requests, of at most `max_bytes` in all."""

    count: int = 8
    max_bytes: int = DEFAULT_BYTES


class RestRecording:
    """The handlers of the routes. Every answer is a RecordingState."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._recorder = recorder
        self._changes = Changes(engine)

    def add_routes(self, router: Router) -> None:
        router.add(Scope.ADMIN, "POST", _ROUTE, self._start, "")
        router.add(Scope.ADMIN, "POST", _VERSION_ROUTE, self._start)
        router.add(Scope.READ, "GET", _ROUTE, self._state)
        router.add(Scope.ADMIN, "DELETE", _ROUTE, self._stop)

    def _start(self, model: str, version: str, request: HttpRequest) -> None:
        asked = read_document(RecordDocument, request.body)
        respond_json(
            request, self._recorder.start(model, version, count=asked.count, max_bytes=asked.max_bytes)
        )

    def _state(self, model: str, request: HttpRequest) -> None:
        respond_json(request, self._recorder.state(model))

    def _stop(self, model: str, request: HttpRequest) -> None:
        self._changes.answer_request(request, self._recorder.stop(model), partial(respond_json, request))
