"""Stages for models whose requests are joined by configured rules (ragged, padded, or filled up)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from backline.backends.backend import Run
from backline.engine.config.joining import Joining
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.view.arrays import to_model
from backline.lifecycle.view.stage import Arrays, Stage
from backline.workers.joiner import Joiner
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Shape


class JoinRequests(Stage):
    """The stage that hides the inputs that joining creates, such as lengths, and shows clients the shapes of
    single requests.

    `run` runs one request; to run a batch, an Execution joins the requests with `joiner`. `joiner` and
    `joining` are None if the configuration has no rules.
    """

    per_request = True

    def __init__(self, outer: ModelConfig, path: Path) -> None:
        super().__init__(outer, path)
        self.joiner: Joiner | None = None
        #: The rules for which requests may share a batch.
        self.joining: Joining | None = None

    @property
    def changes_runs(self) -> bool:
        return self.outer.joining is not None

    @property
    def inner(self) -> ModelConfig:
        """The configuration of the model itself: ragged tensors are flat, and hidden inputs are listed.

        Lengths are listed as INT64 and masks as BOOL, but the datatypes in the model's file take precedence.
        """
        config, joining = self.outer, self.outer.joining
        if joining is None:
            return config
        # These shapes do not include the batch dimension. Backends prepend it if the model has one.
        flat, table = ((), (-1,)) if config.max_batch_size else ((-1,), (-1, -1))

        def seen(specs: tuple[TensorSpec, ...], flattened: Collection[str]) -> tuple[TensorSpec, ...]:
            # A flat tensor has one dimension even if a reshape is configured for it: that reshape affects
            # only batch inputs, which are computed from the tensor.
            return tuple(
                replace(spec, shape=flat, reshape=None) if spec.name in flattened else spec for spec in specs
            )

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

    def fit(self, inner: Signature) -> Signature:
        if self.outer.joining is None:
            return inner
        self._accept(inner, self.outer.joining)
        return self._seen(inner, self.outer.joining)

    def _accept(self, inner: Signature, joining: Joining) -> None:
        config = self.outer
        batch = (-1,) if config.max_batch_size else ()
        shapes = {spec.name: (*batch, *spec.shape) for spec in config.outputs}
        self.joiner = Joiner(
            f"model '{config.name}': {config.source}",
            joining,
            inner,
            {name: shapes[name] for name in joining.scattered},
            batched=bool(batch),
            reshapes=to_model(config),
        )
        self.joining = self.joiner.joining

    def _seen(self, inner: Signature, joining: Joining) -> Signature:
        config = self.outer
        batch = (-1,) if config.max_batch_size else ()
        shapes = {spec.name: (*batch, *spec.shape) for spec in (*config.inputs, *config.outputs)}
        flat = {name: shapes[name] for name in (*joining.ragged, *joining.scattered)}

        def shape(spec: TensorSpec) -> Shape:
            padding, cut = joining.padding.get(spec.name), joining.cuts.get(spec.name)
            axes = padding.axes if padding is not None else (cut.axis,) if cut is not None else ()
            # Clients may send shorter inputs, which are padded, and get shorter outputs, which are cut.
            padded = tuple(-1 if axis in axes else dim for axis, dim in enumerate(spec.shape))
            return flat.get(spec.name) or padded

        def seen(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            hidden = joining.hidden_inputs
            return tuple(replace(spec, shape=shape(spec)) for spec in specs if spec.name not in hidden)

        return Signature(seen(inner.inputs), seen(inner.outputs))

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        return self.run_together(run, [inputs], outputs)[0]

    def run_together(
        self, run: Run, requests: Sequence[Arrays], outputs: Sequence[str]
    ) -> list[list[np.ndarray]]:
        """Runs several requests as one; returns the outputs of each."""
        assert self.joiner is not None, "it was fitted to a model whose requests are joined by rules"
        rows = [next((len(array) for array in request.values()), 1) for request in requests]
        arrays = run(self.joiner.join(requests, rows), outputs)
        return self.joiner.split(requests, rows, outputs, arrays)

    def may_differ(self, name: str, axis: int) -> bool:
        """Returns whether requests in one batch may differ in this dimension of an input."""
        joining = self.joining
        return joining is not None and (
            name in joining.ragged or (name in joining.padding and axis in joining.padding[name].axes)
        )


class JoinInWorker(JoinRequests):
    """JoinRequests for a model in worker processes. Such a model joins requests itself or takes them one by
    one.

    In the server, this stage only decides which shapes clients see and which requests may share a batch.
    """

    @property
    def changes_runs(self) -> bool:
        return False

    @property
    def inner(self) -> ModelConfig:
        return self.outer

    def check(self, *, joins: bool) -> None:
        """Raises InvalidArgument if padding rules are configured but the model does not join requests."""
        joining = None if joins else self.outer.joining
        if joining is not None and (joining.padded or joining.allowed_batch_sizes or joining.cuts):
            raise InvalidArgument(
                f"model '{self.outer.name}': {self.outer.source} asks for padding, cut or"
                " allowed_batch_sizes, but this kind of Python model gets requests one at a time: remove them"
            )

    def _accept(self, inner: Signature, joining: Joining) -> None:
        padding = {name: replace(one, lengths="", mask="") for name, one in joining.padding.items()}
        kinds = Joining(ragged=joining.ragged, pad_all=joining.pad_all, padding=padding)
        where = f"model '{self.outer.name}': {self.outer.source}"
        self.joining = Joiner(where, kinds, inner, {}, batched=True).joining
