"""The way of an answer to the one who asked."""

from __future__ import annotations

import logging

from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse

log = logging.getLogger("backline.schedule")


def deliver(request: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
    """Completes a request, if anybody waits for it. A fault of theirs is theirs alone: others wait behind them."""
    if request.cancelled:
        return
    try:
        request.on_complete(request, response, error)
    except Exception:
        log.exception("the answer of model '%s' could not be delivered", request.model_name)
