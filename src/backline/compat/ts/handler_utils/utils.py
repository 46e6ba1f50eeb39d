"""Sends the intermediate responses of decoupled handlers."""

from __future__ import annotations

from typing import Any


def send_intermediate_predict_response(
    ret: Any, req_id_map: Any, message: str, code: int, context: Any = None
) -> None:
    """Sends a response, `ret[0]`, before the last one, which the handler returns.

    Raises RuntimeError unless the configuration declares the model decoupled.
    """
    context.send_intermediate(ret[0])
