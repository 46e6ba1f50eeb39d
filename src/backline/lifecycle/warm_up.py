"""Warm-up: requests that a version must answer before it is ready, so that no client pays for what happens only once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from backline.backends.backend import LoadedModel
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.messages import InferRequest
from backline.engine.signature import RequestCheck
from backline.lifecycle.warm_up_samples import Sample

log = logging.getLogger("backline.lifecycle")


def warm_up(name: str, model: LoadedModel, check: RequestCheck, samples: Iterable[Sample]) -> int:
    """Runs the samples of the model called `name`, each as a request that `check` would let in; returns how many runs there were.

    Takes as long as it takes: to be called on a thread. Raises BacklineError when a sample fails, with its label. Recorded samples that do
    not fit the model are left out.
    """
    runs = 0
    all_outputs = tuple(spec.name for spec in model.signature.outputs)
    for sample in samples:
        request = InferRequest(name, dict(sample.inputs), lambda *_: None, outputs=sample.outputs)
        try:
            check(request)
        except InvalidArgument as error:
            if sample.must_fit:
                raise InvalidArgument(f"{sample.label} does not fit the model: {_without_id(error.message)}") from None
            log.warning("%s is left out, as it does not fit the model: %s", sample.label, _without_id(error.message))
            continue
        inputs = {name: tensor.data for name, tensor in request.inputs.items()}
        try:
            for _ in range(sample.count):
                model.run(inputs, sample.outputs or all_outputs)
                runs += 1
        except BacklineError as error:
            raise type(error)(f"{sample.label} failed: {error.message}") from None
    return runs


def _without_id(message: str) -> str:
    return message.removeprefix("[request id: <id_unknown>] ")
