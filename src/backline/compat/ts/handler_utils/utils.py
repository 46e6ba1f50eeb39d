"""Intermediate responses."""

from __future__ import annotations

from typing import Any


def send_intermediate_predict_response(
    ret: Any, req_id_map: Any, message: str, code: int, context: Any = None
) -> None:
    """Sends an intermediate response, `[answer]` or `{0: answer}`; what the handler returns is the last
    one.

    Raises RuntimeError unless the configuration declares the model decoupled.
    """
    context.send_intermediate(ret[0])
