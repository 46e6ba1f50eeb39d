"""The trace extension: what is traced, looked at and changed while the server runs, over REST and gRPC."""

from __future__ import annotations

from typing import Any

import msgspec

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.json_scan import check_document
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, Unsupported
from backline.engine.tracing import SettingValue, TraceControl
from backline.wire.application import Buffer, HttpRequest

_ROUTE = "/v2/trace/setting"
_MODEL_ROUTE = "/v2/models/{}/trace/setting"
_decoder = msgspec.json.Decoder(dict[str, str | list[str] | None])


class TraceSettings:
    """The handlers. Every answer has all settings of the model, or those of all models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", _ROUTE, self._get, "")
        router.add(Scope.ADMIN, "POST", _ROUTE, self._post, "")
        router.add(Scope.READ, "GET", _MODEL_ROUTE, self._get)
        router.add(Scope.ADMIN, "POST", _MODEL_ROUTE, self._post)

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
        """The fields of a TraceSettingResponse to a TraceSettingRequest, which sets what it names: a setting without a value is cleared."""
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
    """The changes of a body; an empty one changes nothing. Raises InvalidArgument, PayloadTooLarge."""
    check_document(body)
    try:
        return _decoder.decode(body or b"{}")
    except msgspec.MsgspecError as error:
        raise InvalidArgument(
            f"the body is no JSON object of trace settings, each a text, a list of texts, or null to have that of all models: {error}"
        ) from None
