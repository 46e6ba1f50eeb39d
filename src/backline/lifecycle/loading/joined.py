"""A model whose requests are joined by a configuration's rules, as it is seen and tried while it is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from backline.backends.backend import LoadedModel
from backline.engine.datatypes import DataType
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.joining import Joining
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature, TensorSpec
from backline.engine.tensor import Shape
from backline.lifecycle.loading.batch_probe import BatchProbe, equal_rows
from backline.lifecycle.loading.reshaped import to_model
from backline.lifecycle.loading.trial_inputs import (
    FAMILIES,
    Arrays,
    Sizes,
    find_trial,
    free_dimensions,
    make_inputs,
)
from backline.workers.joiner import Joiner
from backline.workers.model_in_workers import ModelInWorkers

#: Seconds for finding sizes that the model accepts.
_SEARCH_BUDGET = 0.1
#: Requests that are joined for the proof.
_REQUESTS = 4


def make_joiner(config: ModelConfig, signature: Signature) -> Joiner | None:
    """What joins the requests of a model that takes `signature`; None where they are joined as they are. Raises InvalidArgument."""
    joining = config.joining
    if joining is None:
        return None
    batch = (-1,) if config.max_batch_size else ()
    shapes = {spec.name: (*batch, *spec.shape) for spec in config.outputs}
    scattered = {name: shapes[name] for name in joining.scattered}
    return Joiner(
        f"model '{config.name}': {config.source}",
        joining,
        signature,
        scattered,
        batched=bool(batch),
        reshapes=to_model(config),
    )


def joining_of_workers(config: ModelConfig, model: ModelInWorkers) -> Joining | None:
    """Which requests may be joined of a model in worker processes, which joins them itself, or gets them one by one.

    Raises InvalidArgument where the configuration asks for what cannot be done with the latter (Triton's Python backend).
    """
    joining = config.joining
    if joining is None:
        return None
    where = f"model '{config.name}': {config.source}"
    if not model.loaded.joins and (joining.padded or joining.allowed_batch_sizes or joining.cuts):
        raise InvalidArgument(
            f"{where} asks for padding or allowed_batch_sizes, but this kind of Python model gets each request by itself"
        )
    padding = {name: replace(padding, lengths="", mask="") for name, padding in joining.padding.items()}
    kinds = Joining(ragged=joining.ragged, pad_all=joining.pad_all, padding=padding)
    return Joiner(where, kinds, model.signature, {}, batched=True).joining


def as_the_model_sees(config: ModelConfig) -> ModelConfig:
    """The configuration as the backend needs it, which joins nothing: flat tensors have one dimension, hidden inputs are among the others.

    Lengths and masks are of the datatype of the model's file; where that says none they are INT64 and BOOL.
    """
    joining = config.joining
    if joining is None:
        return config
    # A backend puts the batch in front of every shape, where there is one.
    flat, table = ((), (-1,)) if config.max_batch_size else ((-1,), (-1, -1))

    def seen(specs: tuple[TensorSpec, ...], flattened: Collection[str]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=flat) if spec.name in flattened else spec for spec in specs)

    hidden = [
        TensorSpec(target, given.datatype, table if given.kind == "BATCH_ITEM_SHAPE" else flat)
        for given in joining.batch_inputs
        for target in given.targets
    ]
    for padding in joining.padding.values():
        hidden += [TensorSpec(padding.lengths, DataType.INT64, flat)] if padding.lengths else []
        hidden += [TensorSpec(padding.mask, DataType.BOOL, table)] if padding.mask else []
    inputs = (*seen(config.inputs, joining.ragged), *hidden) if config.inputs else ()
    return replace(config, inputs=inputs, outputs=seen(config.outputs, joining.scattered))


def as_clients_see(signature: Signature, config: ModelConfig) -> Signature:
    """The signature without the inputs that no client sends, and with the shapes of the configuration where the model's are flat."""
    joining = config.joining
    if joining is None:
        return signature
    batch = (-1,) if config.max_batch_size else ()
    shapes = {spec.name: (*batch, *spec.shape) for spec in (*config.inputs, *config.outputs)}
    flat = {name: shapes[name] for name in (*joining.ragged, *joining.scattered)}

    def shape(spec: TensorSpec) -> Shape:
        padding, cut = joining.padding.get(spec.name), joining.cuts.get(spec.name)
        axes = padding.axes if padding is not None else (cut.axis,) if cut is not None else ()
        # What is filled up, and cut again, may be shorter than the model's.
        return flat.get(spec.name) or tuple(
            -1 if axis in axes else dim for axis, dim in enumerate(spec.shape)
        )

    def seen(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(spec, shape=shape(spec)) for spec in specs if spec.name not in joining.hidden_inputs
        )

    return Signature(seen(signature.inputs), seen(signature.outputs))


class JoinedModel:
    """A model as a request sees it that is run alone: what is hidden is made up for it."""

    def __init__(self, model: LoadedModel, joiner: Joiner, signature: Signature) -> None:
        self._model = model
        self._joiner = joiner
        self.signature = signature
        self.threads_per_run = model.threads_per_run
        self.warnings = model.warnings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See LoadedModel."""
        return self.run_together([inputs], outputs)[0]

    def run_together(
        self, requests: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str]
    ) -> list[list[np.ndarray]]:
        """The outputs of each of several requests that run as one."""
        rows = [next((len(array) for array in request.values()), 1) for request in requests]
        arrays = self._model.run(self._joiner.join(requests, rows), outputs)
        return self._joiner.split(requests, rows, outputs, arrays)

    def not_filled_up(self) -> JoinedModel:
        """The model when requests are neither padded to buckets nor batches filled up."""
        return JoinedModel(self._model, self._joiner.not_filled_up(), self.signature)

    def may_differ(self, name: str, axis: int) -> bool:
        """Whether requests that run together may differ in this dimension of an input."""
        joining = self._joiner.joining
        return name in joining.ragged or (name in joining.padding and axis in joining.padding[name].axes)

    def close(self) -> None:
        """See LoadedModel."""
        self._model.close()


def probe_joining(model: JoinedModel) -> BatchProbe:
    """Whether requests get the same answers joined as alone: a few of one item each, of different lengths where lengths may differ.

    Alone they reach the model as they are, not filled up.
    """
    apart = model.not_filled_up()
    trial = find_trial(apart, batched=True, deadline=perf_counter() + _SEARCH_BUDGET)
    if trial is None:
        return BatchProbe(False, "no input that was tried could be run, so nothing is known about batches")
    names = [spec.name for spec in model.signature.outputs]
    varying = [
        (name, axis)
        for name, axis in free_dimensions(model.signature, batched=True)
        if model.may_differ(name, axis)
    ]
    requests: list[Arrays] = []
    alone: list[list[np.ndarray]] = []
    for number, family in enumerate(
        (trial.family, *(other for other in FAMILIES if other is not trial.family))
    ):
        sizes: Sizes = {
            place: max(1, trial.sizes[place] - (number if place in varying else 0)) for place in trial.sizes
        }
        request = make_inputs(model.signature, sizes, 1, family, number + 1)
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
        together = model.run_together(requests, names)
    except BacklineError as error:
        return BatchProbe(
            False, f"each of {len(requests)} requests can be run alone, but not all together: {error.message}"
        )
    for own, part in zip(alone, together, strict=True):
        for spec, expected, got in zip(model.signature.outputs, own, part, strict=True):
            if expected.shape != got.shape:
                shapes = f"{list(expected.shape)} alone, but {list(got.shape)} together with others"
                return BatchProbe(False, f"output '{spec.name}' of a request has shape {shapes}")
            if not equal_rows(spec, expected, got):
                return BatchProbe(
                    False,
                    f"output '{spec.name}' of a request depends on the others of its batch, or on what it is filled up with",
                )
    return BatchProbe(
        True,
        f"requests of different lengths got the same answers together as alone ({len(requests)} requests)",
    )
