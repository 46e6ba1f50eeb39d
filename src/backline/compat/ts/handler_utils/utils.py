"""Responses before the last one."""

from __future__ import annotations

from typing import Any


def send_intermediate_predict_response(
    ret: Any, req_id_map: Any, message: str, code: int, context: Any = None
) -> None:
    """Sends an answer to the request that is handled, as `[answer]` or `{0: answer}`; what the handler returns is the last one.

    Raises RuntimeError unless the configuration of the model says that it is decoupled.
    """
    context.send_intermediate(ret[0])
