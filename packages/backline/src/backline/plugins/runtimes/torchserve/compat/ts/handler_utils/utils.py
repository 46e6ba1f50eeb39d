"""Sends the intermediate responses of decoupled handlers."""

from __future__ import annotations

from typing import Any


def send_intermediate_predict_response(
    ret: Any, req_id_map: Any, message: str, code: int, context: Any = None
) -> None:
    """Sends `ret[0]` as an intermediate response. The last response is the handler's return value. The other
    arguments, except `context`, have no effect.

    Raises RuntimeError unless the configuration declares the model decoupled.
    """
    context.send_intermediate(ret[0])
