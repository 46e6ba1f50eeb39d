"""The logging extension: the settings of the log, seen and changed, over REST and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.json_scan import check_document
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, Unsupported
from backline.engine.log_control import LogValue
from backline.wire.application import HttpRequest

_FIELDS: dict[type, str] = {bool: "bool_param", int: "uint32_param", str: "string_param"}
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class LoggingExtension:
    """The handlers. Both protocols answer with all settings, after a change."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_routes(self, router: Router) -> None:
        router.add(Scope.READ, "GET", "/v2/logging", self._show)
        router.add(Scope.ADMIN, "POST", "/v2/logging", self._change)

    def call(self, asked: Any) -> dict[str, Any]:
        """LogSettings: the fields of the response to a request message; one without settings asks only."""
        changes = {name: _value(setting) for name, setting in asked.settings.items()}
        return {
            "settings": {
                name: {_FIELDS[type(value)]: value} for name, value in self._updated(changes).items()
            }
        }

    def _show(self, request: HttpRequest) -> None:
        respond_json(request, self._updated({}))

    def _change(self, request: HttpRequest) -> None:
        """The body is an object, an empty one if it is empty; a setting that is null stays as it is."""
        check_document(request.body)
        try:
            document = _decode(request.body or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(f"failed to parse the request JSON buffer: {error}") from None
        respond_json(
            request, self._updated({name: value for name, value in document.items() if value is not None})
        )

    def _updated(self, changes: Mapping[str, object]) -> Mapping[str, LogValue]:
        log = self._engine.log_control
        if log is None:
            raise Unsupported(
                "changing the log by request is not supported by this server: its log is that of the program around it"
            )
        if changes:
            # Who may fill the disk, or silence what is wrong, is a question of who may change the server.
            if self._engine.control is not None:
                self._engine.control.check_changeable("the settings of the log")
            log.update(changes)
        return log.settings()


def _value(setting: Any) -> object:
    """None where the client has set none."""
    kind = setting.WhichOneof("parameter_choice")
    return None if kind is None else getattr(setting, kind)
