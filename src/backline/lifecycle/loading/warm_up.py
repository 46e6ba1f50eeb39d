"""Warm-up: requests that a version must answer before it is ready, so that no client pays for what happens only once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice

import numpy as np

from backline.backends.backend import LoadedModel, StreamingModel
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.messages import InferRequest
from backline.engine.ticket import Ticket, unsubmitted
from backline.lifecycle.loading.warm_up_samples import Sample

log = logging.getLogger("backline.lifecycle")

#: Responses that a stream is asked for: one may have no end.
STREAMED_RESPONSES = 100


def warm_up(
    name: str,
    model: LoadedModel | StreamingModel,
    check: Callable[[Ticket], None],
    samples: Iterable[Sample],
) -> int:
    """Runs the samples of the model called `name`, each as a request that `check` would let in; returns how many runs there were.

    Takes as long as it takes: to be called on a thread. Raises BacklineError when a sample fails, with its label. Recorded samples that do
    not fit the model are left out.
    """
    runs = 0
    all_outputs = tuple(spec.name for spec in model.signature.outputs)
    for sample in samples:
        try:
            request = fitting_request(name, check, sample)
        except InvalidArgument as error:
            if sample.must_fit:
                raise
            log.warning("a recorded request is left out: %s", error.message)
            continue
        inputs = {name: tensor.data for name, tensor in request.inputs.items()}
        try:
            for _ in range(sample.count):
                _run(model, inputs, sample.outputs or all_outputs)
                runs += 1
        except BacklineError as error:
            raise type(error)(f"{sample.label} failed: {error.message}") from None
    return runs


def fitting_request(name: str, check: Callable[[Ticket], None], sample: Sample) -> InferRequest:
    """The sample as a request to the model called `name`. Raises InvalidArgument, with its label, where `check` does not let it in."""
    request = InferRequest(name, dict(sample.inputs), outputs=sample.outputs)
    try:
        check(unsubmitted(request))
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{sample.label} does not fit the model: {_without_id(error.message)}"
        ) from None
    return request


def _run(
    model: LoadedModel | StreamingModel, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> None:
    if not isinstance(model, StreamingModel):
        model.run(inputs, outputs)
        return
    with closing(model.stream(inputs, outputs, {})) as responses:
        for _ in islice(responses, STREAMED_RESPONSES):
            pass


def _without_id(message: str) -> str:
    return message.removeprefix("[request id: <id_unknown>] ")
