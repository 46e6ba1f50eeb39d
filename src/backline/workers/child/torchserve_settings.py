"""A model archive's model-config.yaml, in this server's terms."""

from __future__ import annotations

from typing import Any

from backline.engine.errors import InvalidArgument

#: Settings of TorchServe's front end without effect here, and why.
_WITHOUT_EFFECT = {
    "startupTimeout": "loads have no timeout",
    "parallelType": "a model runs in one process",
    "parallelLevel": "a model runs in one process",
    "maxRetryTimeoutInSec": "the server decides when workers restart",
    "clientTimeoutInMills": "each request sets its deadline",
    "jobQueueSize": "set max_queue_size in the configuration of the model",
    "useJobTicket": "set max_queue_size in the configuration of the model",
    "useVenv": "a model's requirements file decides its environment",
}
#: Settings that change what a model does, and so cannot be ignored.
_UNSERVED = ("sequenceBatching", "continuousBatching", "asyncCommunication")


class ArchiveSettings:
    """`document` is the whole file, which handlers read as well. Raises InvalidArgument for values of the
    wrong type.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        wrong = next((key for key in _UNSERVED if document.get(key)), None)
        if wrong is not None:
            raise InvalidArgument(f"model-config.yaml: {wrong} is not served here")
        #: Requests in a batch, 0 for single requests without a batch dimension.
        self.batch_size = size if (size := self._number("batchSize", 1)) > 1 else 0
        self.max_queue_delay_us = self._number("maxBatchDelay", 0) * 1000 if self.batch_size else 0
        self.workers = self._number("minWorkers", 0) or self._number("maxWorkers", 0) or None
        timeout = self._number("responseTimeout", 0)
        self.response_timeout = float(timeout) if timeout else None
        self.warnings = [
            f"model-config.yaml: {key} has no effect: {why}"
            for key, why in _WITHOUT_EFFECT.items()
            if key in document
        ]

    def _number(self, key: str, default: int) -> int:
        value = self.document.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgument(f"model-config.yaml: {key} is {value!r}, expected a number")
        return value
