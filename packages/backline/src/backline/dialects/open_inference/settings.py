"""Lets operators read and change trace settings, log settings and recordings while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.documents import read_document
from backline.dialects.json_scan import check_document
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.tracing import SettingValue, TraceControl
from backline.observe.recording import DEFAULT_BYTES, Recorder
from backline.wire.application import Buffer, HttpRequest
from backline_client.values.control import LOG_SETTINGS, LogValue
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument, Unsupported

_TRACE = "/v2/trace/setting"
_TRACE_MODEL = "/v2/models/{}/trace/setting"
_RECORD = "/v2/models/{}/record"
_RECORD_VERSION = "/v2/models/{}/versions/{}/record"
_FIELDS: dict[type, str] = {bool: "bool_param", int: "uint32_param", str: "string_param"}
_log_decoder = msgspec.json.Decoder(dict[str, Any])
_trace_decoder = msgspec.json.Decoder(dict[str, str | list[str] | None])


class TraceSettings:
    """The trace extension over REST and gRPC. A response has all settings of a model or of the server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", _TRACE, self._get, "")
        router.add(Scope.ADMIN, "POST", _TRACE, self._post, "")
        router.add(Scope.READ, "GET", _TRACE_MODEL, self._get)
        router.add(Scope.ADMIN, "POST", _TRACE_MODEL, self._post)

    @property
    def _control(self) -> TraceControl:
        control = self._engine.trace_control
        if control is None:
            raise Unsupported("tracing is not supported by this server")
        return control

    def _get(self, model: str, request: HttpRequest) -> None:
        respond_json(request, self._control.settings(model))

    def _post(self, model: str, request: HttpRequest) -> None:
        control = self._control
        control.update(model, _read(request.body))
        respond_json(request, control.settings(model))

    def answer(self, asked: Any) -> dict[str, Any]:
        """Applies a TraceSettingRequest; a setting without a value is cleared. Returns the fields of the
        response.
        """
        control = self._control
        if asked.settings:
            changes = {name: _value(name, list(given.value)) for name, given in asked.settings.items()}
            control.update(asked.model_name, changes)
        told = control.settings(asked.model_name)
        return {
            "settings": {
                name: {"value": [value] if isinstance(value, str) else value} for name, value in told.items()
            }
        }


def _value(name: str, values: list[str]) -> SettingValue | None:
    if not values:
        return None
    return values[0] if len(values) == 1 and name != "trace_level" else values


def _read(body: Buffer) -> dict[str, SettingValue | None]:
    """Reads the trace settings to change from a JSON object; an empty body changes nothing. None clears a
    setting.

    Raises InvalidArgument if the body is not an object of settings, and PayloadTooLarge above MAX_DOCUMENT
    bytes.
    """
    check_document(body)
    try:
        return _trace_decoder.decode(body or b"{}")
    except msgspec.MsgspecError as error:
        raise InvalidArgument(
            "the body is not a JSON object of trace settings, each a string, a list of strings, or"
            f" null for the global value: {error}"
        ) from None


class LoggingExtension:
    """The logging extension over REST and gRPC. Every response has all current settings."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", "/v2/logging", self._show)
        router.add(Scope.ADMIN, "POST", "/v2/logging", self._change)

    def call(self, asked: Any) -> dict[str, Any]:
        """Applies a LogSettingsRequest, if it has settings, and returns the fields of the response."""
        changes = {name: _given(setting) for name, setting in asked.settings.items()}
        return {
            "settings": {
                name: {_FIELDS[type(value)]: value} for name, value in self._updated(changes).items()
            }
        }

    def _show(self, request: HttpRequest) -> None:
        respond_json(request, self._updated({}))

    def _change(self, request: HttpRequest) -> None:
        """Applies a JSON object of settings.

        A setting of null remains unchanged, and an empty body changes nothing.
        """
        check_document(request.body)
        try:
            document = _log_decoder.decode(request.body or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(f"failed to parse the request JSON buffer: {error}") from None
        respond_json(
            request, self._updated({name: value for name, value in document.items() if value is not None})
        )

    def _updated(self, changes: Mapping[str, object]) -> Mapping[str, LogValue]:
        log = self._engine.log_control
        if log is None:
            raise Unsupported(
                "the logging extension is not supported by this server: its log belongs to the program that"
                " embeds it"
            )
        if changes:
            # Changed log settings can fill the disk or hide errors, so they are refused wherever changes of
            # models are refused.
            if self._engine.control is not None:
                self._engine.control.check_changeable(LOG_SETTINGS)
            log.update(changes)
        return log.settings()


def _given(setting: Any) -> object:
    """Returns the value of a setting, or None if the client left the setting out."""
    kind = setting.WhichOneof("parameter_choice")
    return None if kind is None else getattr(setting, kind)


@decodable
class RecordDocument(Struct, forbid_unknown_fields=True):
    """A request to record `count` requests, of at most `max_bytes` in total."""

    count: int = 8
    max_bytes: int = DEFAULT_BYTES


class RecordingRoutes:
    """Routes that record a model's requests for its warm-up. Every response is a RecordingState."""

    def __init__(self, recorder: Recorder, deferred: DeferredAnswers) -> None:
        self._recorder = recorder
        self._deferred = deferred

    def add_routes(self, router: Router) -> None:
        router.add(Scope.ADMIN, "POST", _RECORD, self._start, "")
        router.add(Scope.ADMIN, "POST", _RECORD_VERSION, self._start)
        router.add(Scope.READ, "GET", _RECORD, self._state)
        router.add(Scope.ADMIN, "DELETE", _RECORD, self._stop)

    def _start(self, model: str, version: str, request: HttpRequest) -> None:
        asked = read_document(RecordDocument, request.body)
        respond_json(
            request, self._recorder.start(model, version, count=asked.count, max_bytes=asked.max_bytes)
        )

    def _state(self, model: str, request: HttpRequest) -> None:
        respond_json(request, self._recorder.state(model))

    def _stop(self, model: str, request: HttpRequest) -> None:
        self._deferred.answer(request, self._recorder.stop(model), partial(respond_json, request))
