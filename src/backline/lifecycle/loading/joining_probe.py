"""Whether requests that a configuration's rules join get the same answers as alone: proved by running them."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from backline.backends.backend import LoadedModel
from backline.engine.errors import BacklineError
from backline.engine.joining import Joining
from backline.engine.signature import Signature
from backline.lifecycle.loading.batch_probe import BatchProbe, equal_rows
from backline.lifecycle.loading.trial_inputs import (
    FAMILIES,
    Arrays,
    Sizes,
    find_trial,
    free_dimensions,
    make_inputs,
)
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.stage import StagedModel

#: Seconds for finding sizes that the model accepts.
_SEARCH_BUDGET = 0.1
#: Requests that are joined for the proof.
_REQUESTS = 4


class _WithoutFilling(JoinRequests):
    """Leaves a request that runs alone at its own length: no padding to buckets, no batch sizes to fill up to."""

    def _accept(self, inner: Signature, joining: Joining) -> None:
        super()._accept(inner, joining)
        assert self.joiner is not None, "it was just made"
        self.joiner = self.joiner.not_filled_up()


def probe_joining(seen: LoadedModel, model: LoadedModel, join: JoinRequests) -> BatchProbe:
    """Runs a few requests of one item each, of different lengths where lengths may differ, alone and together.

    `seen` is the model as requests see it, `model` what they reach joined by `join`. Alone they are not filled up.
    """
    apart = StagedModel(model, _WithoutFilling(join.outer, join.path))
    trial = find_trial(apart, batched=True, deadline=perf_counter() + _SEARCH_BUDGET)
    if trial is None:
        return BatchProbe(False, "no input that was tried could be run, so nothing is known about batches")
    names = [spec.name for spec in seen.signature.outputs]
    varying = [
        (name, axis)
        for name, axis in free_dimensions(seen.signature, batched=True)
        if join.may_differ(name, axis)
    ]
    requests: list[Arrays] = []
    alone: list[list[np.ndarray]] = []
    for number, family in enumerate(
        (trial.family, *(other for other in FAMILIES if other is not trial.family))
    ):
        sizes: Sizes = {
            place: max(1, trial.sizes[place] - (number if place in varying else 0)) for place in trial.sizes
        }
        request = make_inputs(seen.signature, sizes, 1, family, number + 1)
        try:
            outputs = apart.run(request, names)
        except BacklineError:  # a length or a value that the model does not take
            continue
        requests.append(request)
        alone.append(outputs)
        if len(requests) == _REQUESTS:
            break
    if len(requests) < 2:
        return BatchProbe(
            False, "only one input that was tried could be run, so nothing is known about batches"
        )
    try:
        together = join.run_together(model.run, requests, names)
    except BacklineError as error:
        return BatchProbe(
            False, f"each of {len(requests)} requests can be run alone, but not all together: {error.message}"
        )
    for own, part in zip(alone, together, strict=True):
        for spec, expected, got in zip(seen.signature.outputs, own, part, strict=True):
            if expected.shape != got.shape:
                shapes = f"{list(expected.shape)} alone, but {list(got.shape)} together with others"
                return BatchProbe(False, f"output '{spec.name}' of a request has shape {shapes}")
            if not equal_rows(spec, expected, got):
                return BatchProbe(
                    False,
                    f"output '{spec.name}' of a request depends on the others of its batch, or on what it is"
                    " filled up with",
                )
    return BatchProbe(
        True,
        f"requests of different lengths got the same answers together as alone ({len(requests)} requests)",
    )
