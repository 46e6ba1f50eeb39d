"""Warm-up: requests that a version answers before it is ready, so that no client pays for one-time work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from backline.backends.backend import Run
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.messages import InferRequest
from backline.engine.ticket import Ticket, unsubmitted
from backline.lifecycle.loading.warm_up_samples import WarmUpRequest

log = logging.getLogger("backline.lifecycle")


def warm_up(
    name: str,
    run: Run,
    all_outputs: tuple[str, ...],
    check: Callable[[Ticket], None],
    samples: Iterable[WarmUpRequest],
) -> int:
    """Runs the samples of the model `name`, each checked by `check`; returns the number of runs.

    May take minutes: call it on a thread. Raises BacklineError with the sample's label when one fails.
    Recorded samples that do not fit are skipped.
    """
    runs = 0
    for sample in samples:
        try:
            request = fitting_request(name, check, sample)
        except InvalidArgument as error:
            if sample.must_fit:
                raise
            log.warning("a recorded request is skipped: %s", error.message)
            continue
        inputs = {name: tensor.data for name, tensor in request.inputs.items()}
        try:
            for _ in range(sample.count):
                run(inputs, sample.outputs or all_outputs)
                runs += 1
        except BacklineError as error:
            raise type(error)(f"{sample.label} failed: {error.message}") from None
    return runs


def fitting_request(name: str, check: Callable[[Ticket], None], sample: WarmUpRequest) -> InferRequest:
    """The sample as a request to the model `name`. Raises InvalidArgument with its label if unfit."""
    request = InferRequest(name, dict(sample.inputs), outputs=sample.outputs)
    try:
        check(unsubmitted(request))
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{sample.label} does not fit the model: {_without_id(error.message)}"
        ) from None
    return request


def _without_id(message: str) -> str:
    return message.removeprefix("[request id: <id_unknown>] ")
