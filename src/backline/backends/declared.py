"""The configuration of a model whose backend knows its tensors, and gives any number of responses."""

from __future__ import annotations

from collections.abc import Sequence

from backline.backends.parameters import Parameters
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature, TensorSpec


def check_tensors(
    config: ModelConfig, backend: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raises InvalidArgument unless the configuration is decoupled, without a batch, and names these tensors; -1 stands for any size."""
    where = f"{config.source or config.name}: the {backend} backend"
    if not config.decoupled:
        raise InvalidArgument(
            f"{where} gives any number of responses: add model_transaction_policy {{ decoupled: true }}"
        )
    if config.max_batch_size:
        raise InvalidArgument(
            f"{where} does not support batching, but max_batch_size is {config.max_batch_size}: set it to 0"
        )
    for kind, expected, given in (("input", inputs, config.inputs), ("output", outputs, config.outputs)):
        known = {spec.name: spec for spec in given}
        if known.keys() != {spec.name for spec in expected}:
            raise InvalidArgument(f"{where} needs the {kind}s {_names(expected)}, got {_names(given)}")
        for spec in expected:
            found = known[spec.name]
            fits = len(found.shape) == len(spec.shape) and all(
                size in (-1, got) for size, got in zip(spec.shape, found.shape, strict=True)
            )
            if found.datatype is not spec.datatype or not fits:
                raise InvalidArgument(
                    f"{where} expects {kind} '{spec.name}' to be {spec.datatype.name} with dims {list(spec.shape)},"
                    f" got {found.datatype.name} with dims {list(found.shape)}"
                )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs) or "none"


class DeclaredModel:
    """What such models have in common: the configuration is their signature, and there is no memory to give back."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        self.signature = Signature(config.inputs, config.outputs)
        self.warnings = Parameters(config, backend, ()).warnings

    def close(self) -> None:
        """See StreamingModel."""
